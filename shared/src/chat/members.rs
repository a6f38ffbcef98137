//! Members that come and go after a conversation was created.

use sqlx::PgConnection;

use super::{ChatError, Turn, is_member};
use crate::{
    calls,
    events::{self, EventKind},
    ids::{LaneId, OutboxId, UserId},
    outbox::{self, Kind, Operation},
};

/// What a change of membership did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// It was so already.
    Unchanged,
    /// It changed; true when a worker has something to do for it.
    Changed(bool),
}

/// Adds a user. On Matrix they are invited, if there is or may be a room; else the room will be created with them.
pub async fn add_member(conn: &mut PgConnection, turn: &Turn, user_id: UserId) -> Result<Membership, ChatError> {
    if is_member(conn, turn.conversation_id, user_id).await? {
        return Ok(Membership::Unchanged);
    }
    begin_stay(conn, turn, user_id).await?;
    Ok(Membership::Changed(enqueue_change(conn, turn, user_id, Kind::Invite).await?))
}

/// Removes a user. On Matrix they are removed from the room, if there is or may be one.
pub async fn remove_member(conn: &mut PgConnection, turn: &mut Turn, user_id: UserId) -> Result<Membership, ChatError> {
    if !is_member(conn, turn.conversation_id, user_id).await? {
        return Ok(Membership::Unchanged);
    }
    calls::leave(conn, turn, user_id).await?;
    end_stay(conn, turn, user_id).await?;
    Ok(Membership::Changed(enqueue_change(conn, turn, user_id, Kind::Remove).await?))
}

/// A user belongs to the conversation from the turn's place on.
pub(crate) async fn begin_stay(conn: &mut PgConnection, turn: &Turn, user_id: UserId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into conversation_members (conversation_id, user_id, added_seq) values ($1, $2, $3)",
        turn.conversation_id.as_uuid(),
        user_id.as_uuid(),
        turn.seq,
    )
    .execute(&mut *conn)
    .await?;
    events::record(conn, turn.conversation_id, EventKind::MemberAdded, user_id.as_uuid()).await
}

/// A user who belongs to the conversation does so up to the turn's place.
pub(crate) async fn end_stay(conn: &mut PgConnection, turn: &Turn, user_id: UserId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update conversation_members set removed_seq = $3
        where conversation_id = $1 and user_id = $2 and removed_seq is null
        "#,
        turn.conversation_id.as_uuid(),
        user_id.as_uuid(),
        turn.seq,
    )
    .execute(&mut *conn)
    .await?;
    events::record(conn, turn.conversation_id, EventKind::MemberRemoved, user_id.as_uuid()).await
}

/// Enqueues a change of membership at the turn's place.
pub async fn enqueue_membership(
    conn: &mut PgConnection,
    turn: &Turn,
    user_id: UserId,
    kind: Kind,
) -> Result<(), sqlx::Error> {
    let operation = Operation {
        outbox_id: OutboxId::generate(),
        lane_id: LaneId::from(turn.conversation_id),
        kind,
        subject_id: user_id.as_uuid(),
        revision: None,
        target_outbox_id: None,
        not_before: None,
        expires_at: None,
    };
    outbox::enqueue(conn, turn, &operation).await?;
    Ok(())
}

/// Enqueues a change of membership, also while Matrix is disabled, if the room exists or something that creates it may
/// be under way. Without a room there is nothing to change: it will be created with the members of that moment.
async fn enqueue_change(
    conn: &mut PgConnection,
    turn: &Turn,
    user_id: UserId,
    kind: Kind,
) -> Result<bool, sqlx::Error> {
    let may_have_room = sqlx::query_scalar!(
        r#"
        select exists (select 1 from matrix_room_mappings where conversation_id = $1)
            or exists (select 1 from lanes where conversation_id = $1 and open > 0)
            or exists (select 1 from dead_letters where conversation_id = $1) as "may_have_room!"
        "#,
        turn.conversation_id.as_uuid(),
    )
    .fetch_one(&mut *conn)
    .await?;
    if !may_have_room {
        return Ok(false);
    }
    enqueue_membership(conn, turn, user_id, kind).await?;
    Ok(true)
}
