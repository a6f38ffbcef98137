//! `outboxctl verify` and `outboxctl repair`: errands that a worker does, waited for.

use std::{io::IsTerminal as _, time::Duration};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use shared::{
    config::DatabaseArgs,
    ids::ConversationId,
    outbox::{self, Repair},
    tasks::{self, Task, TaskStatus},
    workers,
};
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    Failed,
    print::{clean, count, json, say, table},
    session::{self, Who, parse_reason},
};

/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// After so long without a beginning, it is said that nobody begins.
const SAY_AFTER: Duration = Duration::from_secs(10);

const VERIFY_EXAMPLES: &str = "\
A worker reads the rooms and compares: it takes a request for each hundred events. What is under way is no finding, so it
may run at any time. Nothing is changed without --repair. What --repair does to each kind of finding is in OPERATING.md,
under \"Comparing with Matrix\"; a message that is missing is sent again, and then stands behind what was sent since.

Ctrl-C leaves the task to the workers: outboxctl verify --conversation … may be asked again at any time.

Exit codes: 0 nothing differs; 1 something differed (also if it was repaired), or could not be compared; 2 wrong use

Examples:
  outboxctl verify --conversation 0197b1c0-…
  outboxctl verify --all --json | jq -r '.findings[] | [.kind, .conversation_id, .words] | @tsv'
  outboxctl verify --conversation 0197b1c0-… --repair --reason 'after the restore of the homeserver'";

#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// Compare this conversation
    #[arg(long, value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    conversation: Option<Uuid>,
    /// Compare all conversations that have a room
    #[arg(long)]
    all: bool,
    /// Repair what can be repaired
    #[arg(long, requires = "reason")]
    repair: bool,
    /// Why, for the trail
    #[arg(long, value_parser = parse_reason)]
    reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    database: DatabaseArgs,
}

const REPAIR_EXAMPLES: &str = "\
rejoin       the service account joins the room again, if it may; the room is made whole, and its lane goes on
reinvite     dead invitations come back, and members who are not in the room are invited
adopt-alias  the room that stands under the conversation's alias becomes its room, whoever made it, if it is no other
             conversation's and the service account may set its state; else the alias is freed, and another room is made

Where Matrix refuses, it says what a person has to do there.

Exit codes: 0 done; 1 it could not be done; 2 wrong use

Examples:
  outboxctl list --state held                 why lanes are held, and which repair there is
  outboxctl repair --conversation 0197b1c0-… rejoin --reason 'invited it again'
  outboxctl repair --conversation 0197b1c0-… adopt-alias --reason 'the old deployment made that room'";

#[derive(Debug, Args)]
#[command(after_help = REPAIR_EXAMPLES)]
pub(crate) struct RepairArgs {
    /// Which repair
    repair: Which,
    /// The conversation
    #[arg(long, value_name = "ID")]
    conversation: Uuid,
    /// Why, for the trail
    #[arg(long, value_parser = parse_reason)]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// A repair, as it is typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    Rejoin,
    Reinvite,
    AdoptAlias,
}

impl From<Which> for Repair {
    fn from(which: Which) -> Self {
        match which {
            Which::Rejoin => Self::Rejoin,
            Which::Reinvite => Self::Reinvite,
            Which::AdoptAlias => Self::AdoptAlias,
        }
    }
}

pub(crate) async fn verify(args: &VerifyArgs) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let conversation_id = args.conversation.map(ConversationId::from);
    let mut tx = pool.begin().await?;
    if let Some(conversation_id) = conversation_id {
        known(&mut tx, conversation_id).await?;
    }
    let task = tasks::start_verify(&mut tx, &by, conversation_id, args.repair, args.reason.as_deref()).await?;
    tx.commit().await?;
    if task.expected == 0 && conversation_id.is_some() {
        return Err(Failed::Other(anyhow::anyhow!("the conversation has no room yet: nothing to compare")));
    }
    let task = ended(&pool, task).await?;
    let clean_all = task.status == TaskStatus::Done && task.counted().is_empty() && task.refused == 0;
    if args.json {
        json(&task)?;
    } else {
        say(&in_words(&task));
    }
    if clean_all { Ok(()) } else { Err(Failed::Reported) }
}

pub(crate) async fn repair(args: &RepairArgs) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let conversation_id = ConversationId::from(args.conversation);
    let mut tx = pool.begin().await?;
    known(&mut tx, conversation_id).await?;
    let reason = Some(args.reason.as_str());
    let task = tasks::start_repair(&mut tx, &by, conversation_id, args.repair.into(), json!({}), reason).await?;
    tx.commit().await?;
    let task = ended(&pool, task).await?;
    if args.json {
        json(&task)?;
    } else {
        for finding in task.findings.as_array().into_iter().flatten() {
            say(&clean(finding["words"].as_str().unwrap_or_default()));
        }
        if let Some(error) = &task.error {
            say(&format!("it could not be done: {}", clean(error)));
        }
        if task.status == TaskStatus::Cancelled {
            say("it was cancelled");
        }
    }
    if task.status == TaskStatus::Done { Ok(()) } else { Err(Failed::Reported) }
}

async fn known(conn: &mut PgConnection, conversation_id: ConversationId) -> Result<(), Failed> {
    if outbox::is_conversation(conn, conversation_id).await? {
        return Ok(());
    }
    Err(Failed::Other(anyhow::anyhow!("there is no conversation {conversation_id}")))
}

/// Waits until a task has ended, and shows how far it is.
async fn ended(pool: &PgPool, mut task: Task) -> Result<Task, Failed> {
    let progress = std::io::stderr().is_terminal();
    let begun = Instant::now();
    let works = |worker: &workers::WorkerSeen| worker.circuit != "disabled";
    let mut said = false;
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
        if progress && task.expected > 1 {
            eprint!("\r{} of {} conversations", task.done + task.refused, task.expected);
        }
        if !said && task.done + task.refused == 0 && begun.elapsed() >= SAY_AFTER {
            eprintln!("no worker has got anywhere with task {task_id} yet: does one run, with MATRIX_ENABLED=true?");
            said = true;
        }
    }
    if progress && task.expected > 1 {
        eprintln!();
    }
    Ok(task)
}

fn in_words(task: &Task) -> String {
    let counts = task.counted();
    let findings: Vec<&Value> = task.findings.as_array().into_iter().flatten().collect();
    let text = |finding: &Value, key: &str| clean(finding[key].as_str().unwrap_or("-"));
    let rows: Vec<[String; 6]> = findings
        .iter()
        .map(|finding| {
            let repaired = match (&finding["repaired"], &finding["repairable"]) {
                (Value::Bool(true), _) => "yes",
                (_, Value::Bool(true)) => "can be",
                _ => "no",
            };
            [
                text(finding, "kind"),
                text(finding, "conversation_id"),
                text(finding, "outbox_id"),
                text(finding, "event_id"),
                repaired.to_owned(),
                text(finding, "words"),
            ]
        })
        .collect();
    let mut lines = Vec::new();
    if !rows.is_empty() {
        lines.push(table(["FINDING", "CONVERSATION", "OPERATION", "EVENT", "REPAIRED", ""], &rows));
    }
    let all: u64 = counts.values().sum();
    if all > rows.len() as u64 {
        lines.push(format!("and {} more", all - rows.len() as u64));
    }
    let by_kind: Vec<String> = counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let differs = if by_kind.is_empty() { "nothing differs".to_owned() } else { by_kind.join(", ") };
    lines.push(format!("{} compared: {differs}", count(task.done, "conversation")));
    if task.refused > 0 {
        lines.push(format!("{} could not be compared", count(task.refused, "conversation")));
    }
    match task.status {
        TaskStatus::Cancelled => lines.push("it was cancelled before it was through".to_owned()),
        TaskStatus::Failed => lines.push(format!("it failed: {}", clean(task.error.as_deref().unwrap_or_default()))),
        TaskStatus::Running | TaskStatus::Done => {}
    }
    lines.join("\n")
}
