//! Requeueing by a filter: first what would come back, then exactly that, step by step as a task.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use shared::{
    database,
    outbox::DeadFilter,
    tasks::{self, AsOf, Preview, Step, Task, TaskStatus},
};
use sqlx::PgPool;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep},
};

use crate::{
    Failed,
    print::{clean, count, json, or_dash, say, table},
    requeue::RequeueArgs,
    session,
};

/// How long to wait when there is no step to take: others are at it, or the rate allows no more yet.
const NEXT_LOOK: Duration = Duration::from_millis(100);

/// Where there is no terminal, how often a line tells how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// How long the database may be away before the task is left to the workers.
const PATIENCE: Duration = Duration::from_secs(30);

/// By a filter, across conversations.
pub(crate) async fn requeue(args: &RequeueArgs) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    tasks::take_time(&mut tx).await?;
    let filter = args.filter.dead(&mut tx).await?;
    if args.dry_run {
        let preview = tasks::preview_requeue(&mut tx, &filter, args.as_of.as_ref()).await?;
        return tell(args, &filter, &preview);
    }
    let Some(as_of) = &args.as_of else {
        return Err(Failed::Usage(
            "look first what comes back: --dry-run prints it, and the --as-of with which exactly that is requeued"
                .to_owned(),
        ));
    };
    let task = tasks::start_requeue(&mut tx, &by, &filter, as_of, args.rate, args.reason.as_deref()).await?;
    // Until here Ctrl-C ends it, and there is no task. From the commit on it leaves the task to the workers, and says so.
    let interrupted = signal(SignalKind::interrupt())?;
    tx.commit().await?;
    shared::wake::wake_now(&pool).await;
    if args.detach {
        return ended(args, &task);
    }
    ended(args, &follow(&pool, task, interrupted).await?)
}

/// What would come back.
fn tell(args: &RequeueArgs, filter: &DeadFilter, preview: &Preview) -> Result<(), Failed> {
    if args.json {
        json(preview)?;
    } else {
        say(&in_words(args, filter, preview));
    }
    if preview.back > 0 { Ok(()) } else { Err(Failed::Reported) }
}

fn in_words(args: &RequeueArgs, filter: &DeadFilter, preview: &Preview) -> String {
    let mut lines = Vec::new();
    let rows: Vec<_> = preview
        .first
        .iter()
        .map(|letter| {
            [
                letter.conversation_id.to_string(),
                letter.seq.to_string(),
                letter.outbox_id.to_string(),
                clean(&letter.kind),
                clean(&letter.cause),
                or_dash(letter.errcode.as_deref()),
            ]
        })
        .collect();
    if !rows.is_empty() {
        lines.push(table(["conversation", "place", "operation", "kind", "cause", "errcode"], &rows));
        if preview.back > preview.first.len() as u64 {
            lines.push(format!("and {} more", preview.back - preview.first.len() as u64));
        }
    }
    for refused in &preview.refused {
        lines.push(format!("{} would stay: {}", count(refused.count, "dead letter"), refused.reason_in_words));
    }
    let along = if preview.along > 0 {
        format!(", {} of them edits and reactions that come with their message", preview.along)
    } else {
        String::new()
    };
    let of = count(preview.conversations, "conversation");
    lines.push(format!("{} would come back{along}; of {of}", count(preview.back, "operation")));
    if preview.lanes_waiting > 0 {
        let waiting = count(preview.lanes_waiting, "lane");
        lines.push(format!("{waiting} of theirs held or paused: what comes back there waits for a resume"));
    }
    if preview.back > 0 {
        lines.push(format!("as of {}; to requeue exactly these:", preview.as_of));
        lines.push(format!("  {}", command(args, filter, &preview.as_of)));
    }
    lines.join("\n")
}

/// What to type next. Ages have become times, since an age would choose others later.
fn command(args: &RequeueArgs, filter: &DeadFilter, as_of: &AsOf) -> String {
    let time = |at: Option<time::OffsetDateTime>| {
        at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok())
    };
    let mut words = vec!["outboxctl requeue".to_owned()];
    for (option, value) in [
        ("--conversation", filter.conversation_id.map(|id| id.to_string())),
        ("--kind", filter.kind.clone()),
        ("--user", filter.user_id.map(|id| id.to_string())),
        ("--errcode", filter.errcode.clone()),
        ("--cause", filter.cause.clone()),
        ("--text", filter.text.clone()),
        ("--since", time(filter.since)),
        ("--until", time(filter.until)),
        ("--rate", args.rate.map(|rate| rate.to_string())),
        ("--reason", args.reason.clone()),
        ("--as-of", Some(as_of.to_string())),
    ] {
        if let Some(value) = value {
            words.push(format!("{option} {}", quoted(&value)));
        }
    }
    if filter.is_empty() {
        words.push("--all".to_owned());
    }
    words.join(" ")
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@,/+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// How far it is: a bar on a terminal, else a line now and then. On standard error, beside what programs read.
struct Progress {
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Progress {
    fn new(task: &Task) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(u64::try_from(task.expected).unwrap_or(0));
            let style = ProgressStyle::with_template("{bar:30} {human_pos} of {human_len}, {per_sec}, {eta} to go");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        if bar.is_none() {
            eprintln!("task {}: {} to bring back", task.task_id, count(task.expected, "operation"));
        }
        Self { bar, told: Instant::now() }
    }

    fn tell(&mut self, task: &Task) {
        if let Some(bar) = &self.bar {
            bar.set_position(u64::try_from(task.done).unwrap_or(0));
        } else if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            eprintln!("{} of {} came back", task.done, task.expected);
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Takes the steps of a task, beside whichever worker does, until it has ended. Ctrl-C leaves it to the workers.
async fn follow(pool: &PgPool, mut task: Task, mut interrupted: Signal) -> Result<Task, Failed> {
    let mut progress = Progress::new(&task);
    let mut away_since = None;
    let mut trouble = None;
    while task.status == TaskStatus::Running {
        let taken = tokio::select! {
            taken = one(pool, &task) => taken,
            _ = interrupted.recv() => {
                progress.end();
                let task_id = task.task_id;
                eprintln!("{} of {} came back. The task goes on: the workers take its steps.", task.done, task.expected);
                eprintln!("Look with `outboxctl tasks {task_id}`, end it with `outboxctl tasks --cancel {task_id}`.");
                return Err(Failed::Reported);
            }
        };
        match taken {
            Ok((next, idle)) => {
                task = next;
                away_since = None;
                progress.tell(&task);
                if trouble != task.error {
                    trouble.clone_from(&task.error);
                    if let (Some(trouble), TaskStatus::Running) = (&trouble, task.status) {
                        eprintln!("{}", clean(trouble));
                    }
                }
                if idle && task.status == TaskStatus::Running {
                    sleep(NEXT_LOOK).await;
                }
            }
            Err(error) if database::is_unavailable(&error) => {
                if away_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    progress.end();
                    eprintln!("the database is away; the task {} goes on when it is back", task.task_id);
                    return Err(error.into());
                }
                sleep(NEXT_LOOK).await;
            }
            Err(error) => {
                progress.end();
                return Err(error.into());
            }
        }
    }
    progress.end();
    Ok(task)
}

/// A step, and how far the task is after it. True when there was none to take.
async fn one(pool: &PgPool, task: &Task) -> Result<(Task, bool), sqlx::Error> {
    let step = tasks::step(pool, Some(task.task_id)).await?;
    let idle = matches!(step, Step::Idle);
    if !idle {
        shared::wake::wake_now(pool).await;
    }
    let task = tasks::task(&mut *pool.acquire().await?, task.task_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    Ok((task, idle))
}

/// How a task ended, or that it began.
fn ended(args: &RequeueArgs, task: &Task) -> Result<(), Failed> {
    if args.json {
        json(task)?;
    } else {
        say(&crate::tasks::in_words(task));
    }
    match task.status {
        TaskStatus::Running => Ok(()),
        TaskStatus::Done if task.done > 0 => Ok(()),
        _ => Err(Failed::Reported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_typed_next_survives_a_shell() {
        assert_eq!(quoted("M_TOO_LARGE"), "M_TOO_LARGE");
        assert_eq!(quoted("it's late"), r"'it'\''s late'");
        assert_eq!(quoted(""), "''");
    }
}
