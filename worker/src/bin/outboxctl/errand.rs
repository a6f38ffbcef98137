//! Errands: tasks that a worker does on Matrix, waited for.

use std::{io::IsTerminal as _, time::Duration};

use shared::{
    ids::ConversationId,
    outbox,
    tasks::{self, Task, TaskStatus},
    workers,
};
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use crate::{Failed, print::clean};

/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Where there is no terminal, how often a line tells how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// After so long without a beginning, it is said that nobody begins.
const SAY_AFTER: Duration = Duration::from_secs(10);

/// Refuses a conversation that there is not.
pub(crate) async fn known(conn: &mut PgConnection, conversation_id: ConversationId) -> Result<(), Failed> {
    if outbox::is_conversation(conn, conversation_id).await? {
        return Ok(());
    }
    Err(Failed::Other(anyhow::anyhow!("there is no conversation {conversation_id}")))
}

/// Waits until a task has ended, and shows on standard error which it is and how far.
pub(crate) async fn ended(pool: &PgPool, mut task: Task) -> Result<Task, Failed> {
    let progress = std::io::stderr().is_terminal();
    let begun = Instant::now();
    let works = |worker: &workers::WorkerSeen| worker.circuit != "disabled";
    let (mut said, mut told) = (false, begun);
    let mut trouble = None;
    let far = |task: &Task| format!("{} of {} conversations", task.done + task.refused, task.expected);
    if task.expected > 1 {
        eprintln!("task {}: {} conversations", task.task_id, task.expected);
    }
    if task.status == TaskStatus::Running && !workers::seen(&mut *pool.acquire().await?).await?.iter().any(works) {
        eprintln!("no worker runs with MATRIX_ENABLED=true: task {} waits for one", task.task_id);
        said = true;
    }
    while task.status == TaskStatus::Running {
        sleep(LOOK_EVERY).await;
        let task_id = task.task_id;
        task = tasks::task(&mut *pool.acquire().await?, task_id)
            .await?
            .ok_or_else(|| anyhow::anyhow!("the task {task_id} is gone"))?;
        if task.status == TaskStatus::Running && task.error != trouble {
            if let Some(error) = &task.error {
                // Behind how far it is.
                let line = if progress && task.expected > 1 { "\n" } else { "" };
                eprintln!("{line}{}", clean(error));
                said = true;
            }
            trouble.clone_from(&task.error);
        }
        if task.expected > 1 {
            if progress {
                eprint!("\r{}", far(&task));
            } else if told.elapsed() >= TELL_EVERY {
                eprintln!("{}", far(&task));
                told = Instant::now();
            }
        }
        if !said && task.done + task.refused == 0 && begun.elapsed() >= SAY_AFTER {
            eprintln!(
                "no worker has got anywhere with task {task_id} yet: does one run, with MATRIX_ENABLED=true, or is it at \
                 another task (`outboxctl tasks`)?"
            );
            said = true;
        }
    }
    if progress && task.expected > 1 {
        eprintln!();
    }
    Ok(task)
}

/// What there is to say about a task that did not get through.
pub(crate) fn how_it_ended(task: &Task) -> Option<String> {
    match task.status {
        TaskStatus::Cancelled => Some("it was cancelled before it was through".to_owned()),
        TaskStatus::Failed => Some(format!("it failed: {}", clean(task.error.as_deref().unwrap_or_default()))),
        TaskStatus::Running | TaskStatus::Done => None,
    }
}
