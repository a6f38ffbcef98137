//! Enqueueing: one operation at the end of its lane, in the transaction of the write that it carries.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Kind;
use crate::{
    chat::Turn,
    ids::{LaneId, OutboxId},
    trace::TraceParent,
};

/// An operation to enqueue.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its id, which is also its transaction id and marker.
    pub outbox_id: OutboxId,
    /// The lane that it queues in.
    pub lane_id: LaneId,
    /// What it does.
    pub kind: Kind,
    /// What it is about: the message, or the member.
    pub subject_id: Uuid,
    /// Which revision it carries, if it carries text.
    pub revision: Option<i32>,
    /// For a redaction, the operation whose event goes.
    pub target_outbox_id: Option<OutboxId>,
    /// When it is due; none for at once.
    pub not_before: Option<OffsetDateTime>,
    /// When it is no longer worth sending.
    pub expires_at: Option<OffsetDateTime>,
}

/// Puts an operation at the end of its lane, at the turn's sequence number.
///
/// The turn proves that the conversation is locked. A lane that already has work keeps its due time: a new message never
/// re-arms one that backs off. Returns how many live operations the lane has now.
pub async fn enqueue(conn: &mut PgConnection, turn: &Turn, operation: &Operation) -> Result<i32, sqlx::Error> {
    let open = sqlx::query_scalar!(
        r#"
        update lanes
        set open = open + 1,
            due_at = case when open > 0 then due_at
                else outbox_lane_due($4::timestamptz, $3::timestamptz, hold, paused_until) end
        where conversation_id = $1 and lane_id = $2
        returning open
        "#,
        turn.conversation_id.as_uuid(),
        operation.lane_id.as_uuid(),
        turn.at,
        operation.not_before.unwrap_or(turn.at),
    )
    .fetch_one(&mut *conn)
    .await?;
    sqlx::query!(
        r#"
        insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, target_outbox_id,
            enqueued_at, due_at, expires_at, attempts, failures, trace)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $12, $10, 0, 0, $11)
        "#,
        turn.conversation_id.as_uuid(),
        operation.lane_id.as_uuid(),
        turn.seq,
        operation.outbox_id.as_uuid(),
        operation.kind.as_str(),
        operation.subject_id,
        operation.revision,
        operation.target_outbox_id.map(OutboxId::as_uuid),
        turn.at,
        operation.expires_at,
        turn.trace.as_ref().map(TraceParent::as_str),
        operation.not_before.unwrap_or(turn.at),
    )
    .execute(&mut *conn)
    .await?;
    Ok(open)
}
