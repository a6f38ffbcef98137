//! What waits, as gauges, and what operators did, as counters: read from the database every few seconds.
//!
//! Every worker reports the same, since it is the database's; take the maximum over the workers, not the sum.

use std::time::Duration;

use shared::{
    audit, events,
    outbox::{self, Gauges},
};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval};

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Runs for ever; after a failure the figures stay as they were, and the next round tries again.
pub(crate) async fn run(pool: PgPool) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since = None;
    loop {
        tick.tick().await;
        if let Err(error) = look(&pool, &mut since).await {
            tracing::warn!(%error, "the gauges are not renewed; trying again");
            metrics::counter!("outbox_database_errors_total", "loop" => "gauges").increment(1);
        }
    }
}

async fn look(pool: &PgPool, since: &mut Option<OffsetDateTime>) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    let gauges = outbox::gauges(&mut tx).await?;
    // Acts are counted from the worker's start on, as counters are.
    let since = match *since {
        Some(since) => since,
        None => *since.insert(shared::database::now(&mut tx).await?),
    };
    let lag = events::lag(&mut tx).await?;
    let totals = audit::totals_since(&mut tx, since).await?;
    tx.commit().await?;
    report(&gauges);
    metrics::gauge!("event_log_lag_seconds").set(lag.as_secs_f64());
    metrics::counter!("outbox_requeued_total").absolute(totals.requeued);
    metrics::counter!("outbox_discarded_total").absolute(totals.discarded);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats, and these numbers are bounded")]
fn report(gauges: &Gauges) {
    for class in &gauges.classes {
        let label = class.class.as_str();
        metrics::gauge!("outbox_depth", "lane_class" => label).set(class.depth as f64);
        metrics::gauge!("outbox_oldest_age_seconds", "lane_class" => label).set(class.oldest_age.as_secs_f64());
        metrics::gauge!("outbox_paused", "scope" => label).set(f64::from(u8::from(class.paused)));
    }
    metrics::gauge!("outbox_paused", "scope" => "all").set(f64::from(u8::from(gauges.all_paused)));
    metrics::gauge!("outbox_paused", "scope" => "lane").set(gauges.paused_lanes as f64);
    metrics::gauge!("outbox_dead_letters").set(gauges.dead_letters as f64);
    metrics::gauge!("outbox_held_lanes").set(gauges.held_lanes as f64);
}
