//! `outboxctl repair`: an errand that a worker does, waited for.

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use shared::{
    config::DatabaseArgs,
    ids::ConversationId,
    outbox::{self, Ailment, Counted, Repair},
    tasks::{self, Task, TaskStatus},
};
use uuid::Uuid;

use crate::{
    Failed,
    errand::{ended, how_it_ended, known},
    print::{clean, count, json, say, table},
    session::{self, Who, parse_reason},
};

const EXAMPLES: &str = "\
rejoin       the service account joins the room again, if it may; the room is made whole, and its lane goes on
reinvite     dead invitations come back, and members who are not in the room are invited
adopt-alias  the room that stands under the conversation's alias becomes its room, whoever made it, if it is no other
             conversation's and the service account may set its state; else the alias is freed, and another room is made

Where Matrix refuses, it says what a person has to do there. --all repairs every conversation that suffers from it now:
whose lane is held for that, or, to reinvite, whose invitations died of a refusal. One that cannot be repaired keeps the
others from nothing. Ctrl-C leaves the task to the workers.

Exit codes: 0 done; 1 it could not be done, or not for all, or there was nothing to repair; 2 wrong use

Examples:
  outboxctl list --state held                 why lanes are held, and which repair there is
  outboxctl repair --all rejoin --dry-run     how many conversations it would be
  outboxctl repair --all rejoin --reason 'the account was removed by mistake'
  outboxctl repair --all reinvite --errcode M_FORBIDDEN --reason 'their server lets us in again'
  outboxctl repair --conversation 0197b1c0-… rejoin --reason 'invited it again'
  outboxctl repair --conversation 0197b1c0-… adopt-alias --reason 'the old deployment made that room'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RepairArgs {
    /// Which repair
    repair: Which,
    /// Repair this conversation
    #[arg(long, value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    conversation: Option<Uuid>,
    /// Repair all conversations that need it
    #[arg(long)]
    all: bool,
    /// With --all, to reinvite: only the invitations that died of this code
    #[arg(long, value_name = "CODE", conflicts_with = "conversation")]
    errcode: Option<String>,
    /// With --all: say how many conversations it would be, and change nothing
    #[arg(long, conflicts_with = "conversation")]
    dry_run: bool,
    /// Why, for the trail
    #[arg(long, value_parser = parse_reason, required_unless_present = "dry_run")]
    reason: Option<String>,
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

pub(crate) async fn repair(args: &RepairArgs) -> Result<(), Failed> {
    let repair = Repair::from(args.repair);
    match args.conversation {
        Some(id) => repair_one(args, repair, id.into()).await,
        None => repair_all(args, Ailment { repair, errcode: args.errcode.as_deref() }).await,
    }
}

async fn repair_one(args: &RepairArgs, repair: Repair, conversation_id: ConversationId) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    known(&mut tx, conversation_id).await?;
    let task = tasks::start_repair(&mut tx, &by, conversation_id, repair, args.reason.as_deref()).await?;
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
            say("it was cancelled before it was through");
        }
    }
    if task.status == TaskStatus::Done { Ok(()) } else { Err(Failed::Reported) }
}

/// How many conversations a repair of all would be of.
#[derive(Serialize)]
struct DryRun {
    conversations: Counted,
}

async fn repair_all(args: &RepairArgs, of: Ailment<'_>) -> Result<(), Failed> {
    if let Some(problem) = of.problem() {
        return Err(Failed::Usage(format!("--{problem}")));
    }
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    tasks::take_time(&mut tx).await?;
    if args.dry_run {
        let conversations = outbox::count_ailing(&mut tx, of).await?;
        if args.json {
            json(&DryRun { conversations })?;
        } else {
            let noun = if conversations.count == 1 && !conversations.more { "conversation" } else { "conversations" };
            say(&format!("{conversations} {noun} would be repaired ({}); nothing was changed", of.repair.as_str()));
        }
        return if conversations.count > 0 { Ok(()) } else { Err(Failed::Reported) };
    }
    let task = tasks::start_repairs(&mut tx, &args.who.name()?, of, args.reason.as_deref()).await?;
    tx.commit().await?;
    let task = ended(&pool, task).await?;
    if args.json {
        json(&task)?;
    } else {
        say(&all_in_words(&task));
    }
    let all_done = task.status == TaskStatus::Done && task.refused == 0 && task.expected > 0;
    if all_done { Ok(()) } else { Err(Failed::Reported) }
}

fn all_in_words(task: &Task) -> String {
    if task.expected == 0 {
        return "no conversation needs that: nothing was changed".to_owned();
    }
    let text = |finding: &Value, key: &str| clean(finding[key].as_str().unwrap_or("-"));
    let rows: Vec<[String; 2]> = task
        .findings
        .as_array()
        .into_iter()
        .flatten()
        .map(|finding| [text(finding, "conversation_id"), text(finding, "words")])
        .collect();
    let mut lines = Vec::new();
    if !rows.is_empty() {
        lines.push(table(["CONVERSATION", "NOT REPAIRED"], &rows));
    }
    let untold = task.refused - i64::try_from(rows.len()).unwrap_or(i64::MAX);
    if untold > 0 {
        lines.push(format!("and {untold} more"));
    }
    lines.push(format!("{} repaired", count(task.done, "conversation")));
    if task.refused > 0 {
        lines.push(format!("{} could not be repaired", count(task.refused, "conversation")));
    }
    lines.extend(how_it_ended(task));
    lines.join("\n")
}
