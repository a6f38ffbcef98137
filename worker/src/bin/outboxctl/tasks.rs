//! `outboxctl tasks`.

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::TaskId,
    tasks::{self, Task, TaskStatus},
};

use crate::{
    Failed,
    print::{at, clean, count, json, say, table},
    session::{self, Who, parse_reason},
};

const EXAMPLES: &str = "\
Tasks are what is too much for one transaction: requeueing by a filter, comparing with Matrix, repairing. Whoever began one
may go away: the workers do it.

Examples:
  outboxctl tasks                                the newest, and how far they are
  outboxctl tasks <ID>                           one of them, with what it found or could not do
  outboxctl tasks --cancel <ID> --reason 'wrong filter'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TasksArgs {
    /// Only this one, with all that is known of it
    #[arg(conflicts_with_all = ["cancel", "limit", "cursor"])]
    id: Option<TaskId>,
    /// End this one: what it has not done yet stays as it is
    #[arg(long, value_name = "ID", conflicts_with_all = ["limit", "cursor"])]
    cancel: Option<TaskId>,
    /// Why, for the trail
    #[arg(long, value_parser = parse_reason, requires = "cancel")]
    reason: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Where to go on: the `next_cursor` of the page before
    #[arg(long)]
    cursor: Option<TaskId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// A page, as programs read it.
#[derive(Serialize)]
struct Page {
    items: Vec<Task>,
    next_cursor: Option<TaskId>,
}

pub(crate) async fn tasks(args: &TasksArgs) -> Result<(), Failed> {
    if let Some(task_id) = args.cancel {
        return cancel(args, task_id).await;
    }
    let pool = session::database(&args.database)?;
    let mut conn = pool.acquire().await?;
    if let Some(task_id) = args.id {
        let task = tasks::task(&mut conn, task_id).await?;
        let Some(task) = task else { return Err(unknown(task_id)) };
        return show(args, &task);
    }
    let mut items = tasks::tasks(&mut conn, args.cursor, i64::from(args.limit) + 1).await?;
    let more = items.len() > usize::from(args.limit);
    items.truncate(usize::from(args.limit));
    let next_cursor = items.last().filter(|_| more).map(|task| task.task_id);
    let page = Page { items, next_cursor };
    if args.json {
        return json(&page);
    }
    if page.items.is_empty() {
        say("nobody began a task yet");
        return Ok(());
    }
    let rows: Vec<_> = page
        .items
        .iter()
        .map(|task| {
            [
                at(task.created_at),
                task.task_id.to_string(),
                task.kind.as_str().to_owned(),
                task.status.as_str().to_owned(),
                format!("{} of {}", task.done, task.expected),
                task.refused.to_string(),
                clean(&task.created_by),
                clean(task.reason.as_deref().unwrap_or("-")),
            ]
        })
        .collect();
    say(&table(["begun", "task", "kind", "status", "done", "refused", "by", "why"], &rows));
    if let Some(cursor) = page.next_cursor {
        say(&format!("There is more: --cursor {cursor}"));
    }
    Ok(())
}

fn unknown(task_id: TaskId) -> Failed {
    eprintln!("there is no task {task_id}");
    Failed::Reported
}

async fn cancel(args: &TasksArgs, task_id: TaskId) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    let cancelled = tasks::cancel(&mut tx, &by, task_id, args.reason.as_deref()).await?;
    tx.commit().await?;
    let task = tasks::task(&mut *pool.acquire().await?, task_id).await?;
    let Some(task) = task else { return Err(unknown(task_id)) };
    if !cancelled {
        eprintln!("the task {task_id} does not run: it is {}", task.status.as_str());
        return Err(Failed::Reported);
    }
    show(args, &task)
}

fn show(args: &TasksArgs, task: &Task) -> Result<(), Failed> {
    if args.json {
        return json(task);
    }
    say(&in_words(task));
    let findings = task.findings.as_array().map(Vec::as_slice).unwrap_or_default();
    for finding in findings {
        say(&clean(&finding.to_string()));
    }
    Ok(())
}

/// How far a task is, in a line.
pub(crate) fn in_words(task: &Task) -> String {
    let refused = if task.refused > 0 { format!(", {} refused", task.refused) } else { String::new() };
    let status = match task.status {
        TaskStatus::Cancelled => {
            format!("cancelled by {}", clean(task.ended_by.as_deref().unwrap_or("an operator")))
        }
        TaskStatus::Failed => format!("failed: {}", clean(task.error.as_deref().unwrap_or_default())),
        TaskStatus::Running if task.error.is_some() => {
            format!("running, in trouble: {}", clean(task.error.as_deref().unwrap_or_default()))
        }
        status => status.as_str().to_owned(),
    };
    let of =
        count(task.expected, if task.kind == shared::tasks::TaskKind::Requeue { "operation" } else { "conversation" });
    format!("{} {}: {status}; {} of {of} done{refused}", task.kind.as_str(), task.task_id, task.done)
}
