//! What waits, as gauges, and what operators did, as counters: read from the database every few seconds. With it how the
//! database itself is.
//!
//! Every worker reports the same, since it is the database's; take the maximum over the workers, not the sum.

use std::time::Duration;

use shared::{
    audit, database, events, inbound, metric,
    outbox::{self, Gauges},
    postgres::{self, Health, Horizon},
};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval};

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What the figures depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    /// For how long the homeserver is trusted to remember a transaction.
    pub(crate) dedupe_window: Duration,
    /// Whether what happens on Matrix is read at all.
    pub(crate) syncs: bool,
}

/// Runs for ever; after a failure the figures stay as they were, and the next round tries again.
pub(crate) async fn run(pool: PgPool, watch: Watch) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut since, mut horizon) = (None, Horizon::default());
    loop {
        tick.tick().await;
        // Apart from each other: what keeps the database from clearing up slows the way to what waits.
        let looks = [look_at_server(&pool, &mut horizon).await, look(&pool, watch, &mut since).await];
        for error in looks.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "the gauges are not renewed; trying again");
            metric::DATABASE_ERRORS.with(["gauges"]).increment(1);
        }
    }
}

async fn look_at_server(pool: &PgPool, horizon: &mut Horizon) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    outbox::limit_patience(&mut tx).await?;
    let health = postgres::health(&mut tx).await?;
    tx.commit().await?;
    report_server(&health, horizon);
    Ok(())
}

async fn look(pool: &PgPool, watch: Watch, since: &mut Option<OffsetDateTime>) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    let gauges = outbox::gauges(&mut tx).await?;
    let beyond_the_window = outbox::beyond_the_window(&mut tx, watch.dedupe_window).await?;
    // Acts are counted from the worker's start on, as counters are.
    let since = match *since {
        Some(since) => since,
        None => *since.insert(database::now(&mut tx).await?),
    };
    let lag = events::lag(&mut tx).await?;
    let totals = audit::totals_since(&mut tx, since).await?;
    let inbox = inbound::gauges(&mut tx, since).await?;
    tx.commit().await?;
    report(&gauges);
    set(&metric::DEDUPE_WINDOW_RISK.with([]), beyond_the_window);
    metric::EVENT_LOG_LAG.set(lag.as_secs_f64());
    metric::OUTBOX_REQUEUED.absolute(totals.requeued);
    metric::OUTBOX_DISCARDED.absolute(totals.discarded);
    if watch.syncs {
        metric::SYNC_AGE.set(inbox.age.as_secs_f64());
    }
    set(&metric::SYNC_INBOX_DEPTH.with(["awaits_target"]), inbox.awaits_target);
    set(&metric::SYNC_INBOX_DEPTH.with(["poison"]), inbox.poison);
    Ok(())
}

fn report(gauges: &Gauges) {
    for class in &gauges.classes {
        let label = class.class.as_str();
        set(&metric::OUTBOX_DEPTH.with([label]), class.depth);
        metric::OUTBOX_OLDEST_AGE.with([label]).set(class.oldest_age.as_secs_f64());
        metric::OUTBOX_PAUSED.with([label]).set(f64::from(u8::from(class.paused)));
    }
    metric::OUTBOX_PAUSED.with(["all"]).set(f64::from(u8::from(gauges.all_paused)));
    set(&metric::OUTBOX_PAUSED.with(["lane"]), gauges.paused_lanes);
    set(&metric::OUTBOX_DEAD_LETTERS.with([]), gauges.dead_letters);
    set(&metric::OUTBOX_HELD_LANES.with([]), gauges.held_lanes);
    set(&metric::OUTBOX_BLOCKED_ROOMS.with([]), gauges.blocked_conversations);
}

fn report_server(health: &Health, horizon: &mut Horizon) {
    metric::XMIN_HORIZON_AGE.set(horizon.age(health.horizon.as_ref()).as_secs_f64());
    for table in &health.tables {
        let label = table.table.as_str();
        set(&metric::LIVE_TUPLES.with([label]), table.live);
        set(&metric::DEAD_TUPLES.with([label]), table.dead);
        set(&metric::TABLE_SIZE.with([label]), table.bytes);
    }
    metric::NOTIFICATION_QUEUE.set(health.notification_queue);
    set(&metric::CONNECTIONS.with([]), health.connections);
    set(&metric::CONNECTIONS_MAX.with([]), health.connections_max);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats; beyond 2^53 nobody reads the last digit")]
fn set(gauge: &metrics::Gauge, value: i64) {
    gauge.set(value as f64);
}
