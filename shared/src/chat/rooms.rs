//! The Matrix room of a conversation, as the database knows it.

use std::collections::HashMap;

use sqlx::PgConnection;

use crate::ids::{ConversationId, MatrixUserId, RoomId, UserId};

/// Where a conversation's operations are sent: its room and who belongs there.
#[derive(Debug, Clone)]
pub struct RoomPlan {
    /// What people call the conversation.
    pub name: Option<String>,
    /// Who belongs in its room now.
    pub members: Vec<UserId>,
    /// Who belonged to it once, and does not belong in its room any more.
    pub absent: Vec<UserId>,
}

/// Who belongs in a conversation's room: its members as of just before the first change of membership that is still to be
/// carried out, for that comes in its turn. Not as of the operation that the room is needed for: one that was requeued
/// stands before changes that were carried out long ago.
pub async fn room_plan(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
) -> Result<Option<RoomPlan>, sqlx::Error> {
    let seq = sqlx::query_scalar!(
        r#"
        select coalesce(min(seq) - 1, 9223372036854775807) as "seq!" from outbox
        where conversation_id = $1 and lane_id = $1 and kind in ('invite', 'remove')
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_one(&mut *conn)
    .await?;
    let row = sqlx::query!(
        r#"
        select c.name, array(
            select m.user_id from conversation_members m
            where m.conversation_id = c.conversation_id and m.added_seq <= $2
                and (m.removed_seq is null or m.removed_seq > $2)
            order by m.added_seq, m.user_id
        ) as "members!: Vec<UserId>", array(
            select distinct m.user_id from conversation_members m
            where m.conversation_id = c.conversation_id and m.removed_seq <= $2
                and not exists (
                    select 1 from conversation_members n
                    where n.conversation_id = m.conversation_id and n.user_id = m.user_id and n.added_seq <= $2
                        and (n.removed_seq is null or n.removed_seq > $2)
                )
        ) as "absent!: Vec<UserId>"
        from conversations c
        where c.conversation_id = $1
        "#,
        conversation_id.as_uuid(),
        seq,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| RoomPlan { name: row.name, members: row.members, absent: row.absent }))
}

/// Remembers the room of a conversation. The first to say so is right: returns the room that counts.
pub async fn save_room_mapping(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    room_id: &RoomId,
    ready: bool,
) -> Result<RoomId, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        insert into matrix_room_mappings (conversation_id, matrix_room_id, created_at, ready_at)
        values ($1, $2, outbox_now(), case when $3 then outbox_now() end)
        on conflict (conversation_id) do update
        set ready_at = case when matrix_room_mappings.matrix_room_id = excluded.matrix_room_id
            then coalesce(matrix_room_mappings.ready_at, excluded.ready_at)
            else matrix_room_mappings.ready_at end
        returning matrix_room_id as "room_id: RoomId"
        "#,
        conversation_id.as_uuid(),
        room_id.as_str(),
        ready,
    )
    .fetch_one(conn)
    .await
}

/// The conversation goes on in another room, which is not known to be whole yet. False when it had left the old one
/// already.
pub async fn replace_room(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    old: &RoomId,
    new: &RoomId,
) -> Result<bool, sqlx::Error> {
    let replaced = sqlx::query_scalar!(
        r#"
        with replaced as (
            update matrix_room_mappings
            set matrix_room_id = $3, predecessor_room_id = $2, created_at = outbox_now(), ready_at = null
            where conversation_id = $1 and matrix_room_id = $2
            returning conversation_id
        ), remembered as (
            insert into left_rooms (conversation_id, matrix_room_id, left_at)
            select conversation_id, $2, outbox_now() from replaced
            on conflict do nothing
        )
        select count(*) as "replaced!" from replaced
        "#,
        conversation_id.as_uuid(),
        old.as_str(),
        new.as_str(),
    )
    .fetch_one(conn)
    .await?;
    Ok(replaced == 1)
}

/// The room of a conversation, and whether it is known to be whole.
pub async fn load_room_mapping(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
) -> Result<Option<(RoomId, bool)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select matrix_room_id as "room_id: RoomId", ready_at is not null as "ready!"
        from matrix_room_mappings where conversation_id = $1
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.room_id, row.ready)))
}

/// The conversation of a room.
pub async fn lookup_conversation_by_room_id(
    conn: &mut PgConnection,
    room_id: &RoomId,
) -> Result<Option<ConversationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select conversation_id as "conversation_id: ConversationId"
        from matrix_room_mappings where matrix_room_id = $1
        "#,
        room_id.as_str(),
    )
    .fetch_optional(conn)
    .await
}

/// Which of these people are contacts: in the room, but no users of ours; and who they are on Matrix.
pub async fn contacts(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    people: &[UserId],
) -> Result<HashMap<UserId, MatrixUserId>, sqlx::Error> {
    let ids: Vec<_> = people.iter().map(|id| id.as_uuid()).collect();
    let rows = sqlx::query!(
        r#"
        select contact_id as "contact_id: UserId", matrix_user_id from conversation_contacts
        where conversation_id = $1 and contact_id = any($2)
        "#,
        conversation_id.as_uuid(),
        &ids,
    )
    .fetch_all(conn)
    .await?;
    let named = rows.into_iter().filter_map(|row| Some((row.contact_id, row.matrix_user_id.parse().ok()?)));
    Ok(named.collect())
}
