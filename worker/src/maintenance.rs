//! Housekeeping: calls that nobody answers, operations that expire, the old end of the event log, idempotency keys of yesterday, the partitions of
//! the attempts' history.
//!
//! Every worker does it; all of it may be done by several at once.

use std::time::Duration;

use shared::{call_limits, calls, database, events, idempotency, inbound, metric, outbox};
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};

use crate::Signals;

/// How often to look for operations that expired.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);

/// How often the event log is cut: once in so many of the above.
const FORGET_EVERY: u32 = 60;

/// How often the rest is done: once in so many of the above.
const TIDY_EVERY: u32 = 3600;

/// How long an event of Matrix waits for its target, and one that makes no sense for somebody who looks at it.
const PARKED_FOR_DAYS: i32 = 30;

/// How many rows are touched in one go, so that nothing else waits.
const BATCH: i64 = 500;

/// Runs for ever; a failure is logged and the next round tries again.
pub(crate) async fn run(pool: PgPool, events_retention: Duration, signals: Signals) {
    let mut tick = interval(EXPIRE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0_u32;
    loop {
        tick.tick().await;
        match calls::time_out(&pool, BATCH).await {
            Ok(0) => {}
            Ok(ended) => {
                metric::VOIP_CALLS_TIMED_OUT.increment(ended);
                signals.tell.committed();
                signals.look.notify_one();
            }
            Err(error) => tracing::warn!(%error, "calls that nobody answered are not ended; trying again"),
        }
        match outbox::expire(&pool, BATCH).await {
            Ok(expired) => {
                metric::OUTBOX_EXPIRED.increment(expired.operations);
                metric::VOIP_INVITE_FAILED.with(["expired"]).increment(expired.invites);
                if expired.operations > 0 {
                    signals.tell.committed();
                }
            }
            Err(error) => tracing::warn!(%error, "expiry failed; trying again"),
        }
        if round.is_multiple_of(FORGET_EVERY)
            && let Err(error) = forget(&pool, events_retention).await
        {
            tracing::warn!(%error, "the event log is not cut; trying again later");
        }
        if round.is_multiple_of(TIDY_EVERY)
            && let Err(error) = tidy(&pool).await
        {
            tracing::warn!(%error, "housekeeping failed; trying again later");
        }
        round = round.wrapping_add(1);
    }
}

async fn forget(pool: &PgPool, older_than: Duration) -> Result<(), sqlx::Error> {
    while calls::wipe(pool, older_than, BATCH).await? == u64::try_from(BATCH).unwrap_or(0) {}
    loop {
        let gone = events::forget(pool, older_than, BATCH).await?;
        metric::EVENT_LOG_FORGOTTEN.increment(gone);
        if gone < u64::try_from(BATCH).unwrap_or(0) {
            return Ok(());
        }
    }
}

async fn tidy(pool: &PgPool) -> Result<(), sqlx::Error> {
    database::add_attempt_partitions(pool).await?;
    while idempotency::forget(pool, BATCH).await? == u64::try_from(BATCH).unwrap_or(0) {}
    while call_limits::forget(pool, BATCH).await? == u64::try_from(BATCH).unwrap_or(0) {}
    let mut conn = pool.acquire().await?;
    while inbound::forget_parked(&mut conn, PARKED_FOR_DAYS, BATCH).await? == u64::try_from(BATCH).unwrap_or(0) {}
    Ok(())
}
