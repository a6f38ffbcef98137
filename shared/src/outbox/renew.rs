//! Renewing: leases last as long as their owner is alive.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::LaneClaim;
use crate::ids::{ConversationId, LaneId, WorkerId};

/// Extends leases that have not lapsed. Returns the claims whose lease was not extended: those that are no longer held,
/// and those whose lane somebody has locked just now. Waiting for that one would hold up all others.
pub async fn renew(
    conn: &mut PgConnection,
    worker_id: WorkerId,
    claims: &[LaneClaim],
    lease: Duration,
) -> Result<Vec<LaneClaim>, sqlx::Error> {
    let conversations: Vec<Uuid> = claims.iter().map(|claim| claim.conversation_id.as_uuid()).collect();
    let lanes: Vec<Uuid> = claims.iter().map(|claim| claim.lane_id.as_uuid()).collect();
    let epochs: Vec<i64> = claims.iter().map(|claim| claim.epoch).collect();
    let renewed = sqlx::query!(
        r#"
        with mine as (
            select l.conversation_id, l.lane_id
            from lanes l
            join unnest($1::uuid[], $2::uuid[], $3::bigint[]) as c (conversation_id, lane_id, epoch)
                on l.conversation_id = c.conversation_id and l.lane_id = c.lane_id and l.epoch = c.epoch
            where l.owner = $4 and l.leased_until > outbox_now()
            for no key update of l skip locked
        )
        update lanes l
        set leased_until = outbox_now() + make_interval(secs => $5)
        from mine
        where l.conversation_id = mine.conversation_id and l.lane_id = mine.lane_id
        returning l.conversation_id as "conversation_id: ConversationId", l.lane_id as "lane_id: LaneId"
        "#,
        &conversations,
        &lanes,
        &epochs,
        worker_id.as_uuid(),
        lease.as_secs_f64(),
    )
    .fetch_all(conn)
    .await?;
    let held: std::collections::HashSet<_> = renewed.iter().map(|row| (row.conversation_id, row.lane_id)).collect();
    Ok(claims.iter().filter(|claim| !held.contains(&(claim.conversation_id, claim.lane_id))).copied().collect())
}
