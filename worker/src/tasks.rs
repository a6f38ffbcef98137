//! Tasks of operators, step by step: every worker takes part, and each step is one's.
//!
//! A bulk requeue needs the database only, so it goes on while Matrix is away or switched off. What asks the homeserver
//! is done by workers that deliver, under a lease (see [`shared::tasks::lease`]).

use std::time::Duration;

use shared::{
    metric,
    tasks::{self, Step, TaskKind},
};
use sqlx::PgPool;
use tokio::time::sleep;

use crate::Signals;

/// How often to look for a task that is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs for ever; a failure is logged and the next round tries again.
pub(crate) async fn run(pool: PgPool, signals: Signals) {
    loop {
        let mut worked = false;
        for kind in [TaskKind::Requeue, TaskKind::Verify, TaskKind::Repair] {
            let stepped = match kind {
                TaskKind::Requeue => requeue(&pool, &signals).await,
                // Nobody does these yet: they wait.
                TaskKind::Verify | TaskKind::Repair => Ok(false),
            };
            match stepped {
                Ok(stepped) => worked |= stepped,
                Err(error) => {
                    metric::DATABASE_ERRORS.with(["tasks"]).increment(1);
                    tracing::warn!(%error, task.kind = kind.as_str(), "a step of a task failed; trying again");
                }
            }
        }
        if !worked {
            sleep(LOOK_EVERY).await;
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
