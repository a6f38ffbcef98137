//! What stands around a place of a conversation, for whoever is about to bring something back to it. References only.

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    database::plan_as_asked,
    ids::{ConversationId, EventId, MessageId, UserId},
};

/// A message near a place.
#[derive(Debug, Clone, Serialize)]
pub struct Neighbour {
    /// The message.
    pub message_id: MessageId,
    /// Its place in the conversation.
    pub seq: i64,
    /// Who wrote it.
    pub author_id: UserId,
    /// True when it was said on Matrix.
    pub from_matrix: bool,
    /// When it was written.
    #[serde(with = "time::serde::rfc3339")]
    pub written_at: OffsetDateTime,
    /// When it was deleted.
    #[serde(with = "time::serde::rfc3339::option")]
    pub deleted_at: Option<OffsetDateTime>,
    /// When it was delivered to the room, if it was.
    #[serde(with = "time::serde::rfc3339::option")]
    pub sent_at: Option<OffsetDateTime>,
    /// Its event in the room.
    pub event_id: Option<EventId>,
    /// True when it is dead.
    pub dead: bool,
    /// True when it waits or is under way.
    pub live: bool,
}

/// The messages around a place of a conversation, by place: so many before it, and as many from it on. In a transaction.
pub async fn neighbours(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    seq: i64,
    each: i64,
) -> Result<Vec<Neighbour>, sqlx::Error> {
    plan_as_asked(conn).await?;
    sqlx::query_as!(
        Neighbour,
        r#"
        select m.message_id as "message_id!: MessageId", m.seq as "seq!", m.author_id as "author_id!: UserId",
            m.origin = 'matrix' as "from_matrix!", m.created_at as "written_at!", m.deleted_at,
            s.sent_at as "sent_at?", coalesce(s.event_id, m.matrix_event_id) as "event_id?: EventId",
            d.outbox_id is not null as "dead!", o.outbox_id is not null as "live!"
        from (
            (select * from messages where conversation_id = $1 and seq < $2 order by seq desc limit $3)
            union all
            (select * from messages where conversation_id = $1 and seq >= $2 order by seq limit $3)
        ) m
        left join sent_events s on s.conversation_id = m.conversation_id and s.outbox_id = m.send_outbox_id
        left join dead_letters d on d.conversation_id = m.conversation_id and d.outbox_id = m.send_outbox_id
        left join outbox o on o.conversation_id = m.conversation_id and o.outbox_id = m.send_outbox_id
        order by m.seq
        "#,
        conversation_id.as_uuid(),
        seq,
        each,
    )
    .fetch_all(conn)
    .await
}

/// Whether there is a conversation of this id.
pub async fn is_conversation(conn: &mut PgConnection, id: ConversationId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from conversations where conversation_id = $1) as "there!""#,
        id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}
