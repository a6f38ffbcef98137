//! Housekeeping: the partitions of the attempts' history.

use std::time::Duration;

use shared::database;
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};

/// How often to look.
const EVERY: Duration = Duration::from_hours(1);

/// Runs for ever; a failure is logged and the next round tries again.
pub(crate) async fn run(pool: PgPool) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = database::add_attempt_partitions(&pool).await {
            tracing::warn!(%error, "partitions for attempts not added; they go into the default partition");
        }
    }
}
