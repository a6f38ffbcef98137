//! Whose room an event comes from, and who sent it.

use sqlx::PgConnection;

use super::Inbox;
use crate::{
    chat::Turn,
    ids::{ConversationId, MatrixUserId, RoomId, UserId},
};

/// The conversation whose room this is, or was before it was replaced.
pub async fn conversation_of_room(
    conn: &mut PgConnection,
    room_id: &RoomId,
) -> Result<Option<ConversationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select conversation_id as "conversation_id!: ConversationId" from matrix_room_mappings where matrix_room_id = $1
        union all
        select conversation_id from left_rooms where matrix_room_id = $1
        limit 1
        "#,
        room_id.as_str(),
    )
    .fetch_optional(conn)
    .await
}

/// Whether nothing was ever received from a room, or sent there.
pub async fn is_new_room(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    room_id: &RoomId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select not exists (select 1 from received_events where conversation_id = $1 and room_id = $2)
            and not exists (select 1 from sent_events where conversation_id = $1 and room_id = $2) as "new!"
        "#,
        conversation_id.as_uuid(),
        room_id.as_str(),
    )
    .fetch_one(conn)
    .await
}

/// Whether this is the conversation's room now. What happens to the members of one that it left, or is about to have, is
/// of no consequence.
pub(super) async fn is_present_room(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    room_id: &RoomId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select not exists (
            select 1 from matrix_room_mappings where conversation_id = $1 and matrix_room_id <> $2
        ) as "present!"
        "#,
        conversation_id.as_uuid(),
        room_id.as_str(),
    )
    .fetch_one(conn)
    .await
}

/// A Matrix user as we know them: a user of ours, or a contact, who is written down when first seen, `present` or not. None for a name of our
/// namespace that is no user's.
pub(super) async fn person(
    conn: &mut PgConnection,
    turn: &Turn,
    inbox: Inbox<'_>,
    user: &MatrixUserId,
    present: bool,
) -> Result<Option<UserId>, sqlx::Error> {
    match user.nova_user(inbox.server()) {
        Some(Ok(user_id)) => Ok(Some(user_id)),
        Some(Err(_)) => Ok(None),
        None => {
            sqlx::query!(
                r#"
                insert into conversation_contacts (conversation_id, contact_id, matrix_user_id, present, first_seen_at)
                values ($1, $2, $3, $5, $4)
                on conflict do nothing
                "#,
                turn.conversation_id.as_uuid(),
                user.contact_id().as_uuid(),
                user.as_str(),
                turn.at,
                present,
            )
            .execute(conn)
            .await?;
            Ok(Some(user.contact_id()))
        }
    }
}

/// The ids under which Matrix users appear, of those who have one.
pub(super) fn mentioned(inbox: Inbox<'_>, users: &[MatrixUserId]) -> Vec<UserId> {
    let known = users.iter().filter_map(|user| match user.nova_user(inbox.server()) {
        Some(user_id) => user_id.ok(),
        None => Some(user.contact_id()),
    });
    let mut ids: Vec<UserId> = Vec::new();
    for id in known {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}
