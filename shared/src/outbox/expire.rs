//! What time does: operations that are no longer worth sending end.

use sqlx::PgPool;

use super::{leave_lane, lock_lane};
use crate::ids::{ConversationId, LaneId, OutboxId};

/// What expired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    /// Operations.
    pub operations: u64,
    /// Invites to calls among them.
    pub invites: u64,
}

/// Ends what is no longer worth sending and still waits; also while everything is paused. Returns how many, and how many of them were
/// invites to calls.
///
/// Call it again while it returns as many as `limit`.
pub async fn expire(pool: &PgPool, limit: i64) -> Result<Expired, sqlx::Error> {
    let overdue = sqlx::query!(
        r#"
        select o.conversation_id as "conversation_id: ConversationId", o.lane_id as "lane_id: LaneId",
            o.outbox_id as "outbox_id: OutboxId"
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where o.expires_at <= outbox_now() and o.seq > l.frozen_through and o.maybe_sent_at is null
        order by o.expires_at
        limit $1
        "#,
        limit,
    )
    .fetch_all(pool)
    .await?;
    let mut expired = Expired::default();
    for row in overdue {
        let mut tx = pool.begin().await?;
        lock_lane(&mut tx, row.conversation_id, row.lane_id).await?;
        // Handed meanwhile: the sender knows its deadline too.
        let gone = sqlx::query!(
            r#"
            with gone as (
                delete from outbox o
                using lanes l
                where o.conversation_id = $1 and o.outbox_id = $2
                    and l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
                    and o.seq > l.frozen_through and o.maybe_sent_at is null
                returning o.conversation_id, o.kind, o.subject_id
            ), told as (
                insert into events (conversation_id, kind, subject_id)
                select conversation_id, case kind when 'message' then 'message_delivery' else 'call_updated' end,
                    subject_id
                from gone where kind in ('message', 'call_invite')
            )
            select outbox_now() as "now!", kind = 'call_invite' as "invite!" from gone
            "#,
            row.conversation_id.as_uuid(),
            row.outbox_id.as_uuid(),
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(gone) = gone {
            leave_lane(&mut tx, row.conversation_id, row.lane_id, 1, gone.now).await?;
            expired.operations += 1;
            expired.invites += u64::from(gone.invite);
        }
        tx.commit().await?;
    }
    Ok(expired)
}
