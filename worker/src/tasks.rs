//! Bulk requeues, step by step: every worker takes part, and each step is one's.
//!
//! They need the database only, so they go on while Matrix is away or switched off. What asks the homeserver is done by
//! workers that deliver; see [`crate::errands`].

use std::time::Duration;

use shared::{
    metric,
    tasks::{self, Step},
};
use sqlx::PgPool;
use tokio::time::sleep;

use crate::Signals;

/// How often to look for a task that is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs for ever; a failure is logged and the next round tries again.
pub(crate) async fn run(pool: PgPool, signals: Signals) {
    loop {
        match requeue(&pool, &signals).await {
            Ok(true) => {}
            Ok(false) => sleep(LOOK_EVERY).await,
            Err(error) => {
                metric::DATABASE_ERRORS.with(["tasks"]).increment(1);
                tracing::warn!(%error, "a step of a bulk requeue failed; trying again");
                sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// Takes a step of a requeue. False when there is none to take.
async fn requeue(pool: &PgPool, signals: &Signals) -> Result<bool, sqlx::Error> {
    let Step::Back { task_id, letters, ended } = tasks::step(pool, None).await? else { return Ok(false) };
    if letters > 0 {
        signals.look.notify_one();
        signals.tell.committed();
    }
    if ended {
        tracing::info!(task.id = %task_id, "a requeue is through");
    }
    Ok(true)
}
