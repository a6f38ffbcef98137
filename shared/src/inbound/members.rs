//! People who come to a room and leave it, as others have it.

use sqlx::PgConnection;

use super::{Applied, Asked, InboundError, Inbox, Incoming, Membership, Record, people, refuse, remember};
use crate::{
    calls,
    chat::{self, Turn},
    ids::{ConversationId, MatrixUserId, UserId},
};

/// A change of membership that others made.
pub(super) struct Change<'a> {
    pub(super) user: &'a MatrixUserId,
    pub(super) membership: Membership,
    pub(super) display_name: Option<&'a str>,
    pub(super) now: Option<Asked>,
}

pub(super) async fn member(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
    change: &Change<'_>,
) -> Result<Applied, InboundError> {
    if change.user == inbox.service_user {
        remember(conn, turn, event, &Record::void(None)).await?;
        return Ok(Applied::Unchanged);
    }
    let Some(user_id) = people::person(conn, turn, inbox, change.user, false).await? else {
        return refuse(conn, turn, event, "user_format").await;
    };
    remember(conn, turn, event, &Record::new("member", user_id.as_uuid())).await?;
    let changed = if change.user.nova_user(inbox.server()).is_none() {
        contact(conn, turn, user_id, change).await?
    } else if *change.user == MatrixUserId::of(user_id, inbox.server()) {
        user_of_ours(conn, turn, user_id, change).await?
    } else {
        // Another spelling of the name is another account, whom we never invite.
        false
    };
    Ok(if changed { Applied::Changed } else { Applied::Unchanged })
}

async fn contact(
    conn: &mut PgConnection,
    turn: &mut Turn,
    contact_id: UserId,
    change: &Change<'_>,
) -> Result<bool, sqlx::Error> {
    sqlx::query!(
        r#"
        update conversation_contacts
        set present = case when $4 then present else $3 end, display_name = coalesce($5, display_name)
        where conversation_id = $1 and contact_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        contact_id.as_uuid(),
        change.membership.is_present(),
        change.membership == Membership::Knock,
        change.display_name,
    )
    .execute(&mut *conn)
    .await?;
    if matches!(change.membership, Membership::Leave | Membership::Ban) {
        calls::leave(conn, turn, contact_id).await?;
    }
    Ok(true)
}

/// A user of ours joined a room to which somebody else invited them, or left it. Only what the room says of them now
/// counts, and not while a change of ours is on its way.
async fn user_of_ours(
    conn: &mut PgConnection,
    turn: &mut Turn,
    user_id: UserId,
    change: &Change<'_>,
) -> Result<bool, InboundError> {
    let Some(now) = change.now else { return Ok(false) };
    let is_member = chat::is_member(conn, turn.conversation_id, user_id).await?;
    let changed = match now.membership {
        Some(Membership::Join) => !is_member,
        None | Some(Membership::Leave | Membership::Ban) => is_member,
        Some(Membership::Invite | Membership::Knock) => false,
    };
    if !changed || ours_is_newer(conn, turn, user_id, now.seq).await? {
        return Ok(false);
    }
    turn.advance(conn).await?;
    if is_member {
        calls::leave(conn, turn, user_id).await?;
        chat::end_stay(conn, turn, user_id).await?;
    } else {
        chat::begin_stay(conn, turn, user_id).await?;
    }
    Ok(true)
}

/// Whether a change of a user's membership is on its way to Matrix: until it is done, what the room says of them may be of
/// before or after.
pub async fn change_under_way(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    user_id: UserId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from outbox
            where conversation_id = $1 and subject_id = $2 and kind in ('invite', 'remove')
        ) as "under_way!"
        "#,
        conversation_id.as_uuid(),
        user_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Whether the database knows something newer of the user than the room did when it was asked.
async fn ours_is_newer(
    conn: &mut PgConnection,
    turn: &Turn,
    user_id: UserId,
    asked_at_seq: i64,
) -> Result<bool, sqlx::Error> {
    if change_under_way(conn, turn.conversation_id, user_id).await? {
        return Ok(true);
    }
    sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from conversation_members
            where conversation_id = $1 and user_id = $2 and greatest(added_seq, removed_seq) > $3
        ) as "newer!"
        "#,
        turn.conversation_id.as_uuid(),
        user_id.as_uuid(),
        asked_at_seq,
    )
    .fetch_one(conn)
    .await
}
