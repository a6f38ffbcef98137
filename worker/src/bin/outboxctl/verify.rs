//! `outboxctl verify`: an errand that a worker does, waited for.

use clap::Args;
use serde_json::Value;
use shared::{
    config::DatabaseArgs,
    ids::ConversationId,
    tasks::{self, Task, TaskStatus},
    verify::FindingKind,
};
use uuid::Uuid;

use crate::{
    Failed,
    errand::{ended, how_it_ended, known},
    print::{clean, count, json, say, table},
    session::{self, Who, parse_reason},
};

const EXAMPLES: &str = "\
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
#[command(after_help = EXAMPLES)]
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

fn in_words(task: &Task) -> String {
    let mut counts = task.counted();
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
    // Found or refused: what could not be read is told once.
    let unread = counts.remove(FindingKind::Unreadable.as_str()).unwrap_or(0);
    let read = u64::try_from(task.done + task.refused).unwrap_or(0).saturating_sub(unread);
    let by_kind: Vec<String> = counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let differs = if by_kind.is_empty() { "nothing differs".to_owned() } else { by_kind.join(", ") };
    lines.push(format!("{} compared: {differs}", count(read, "conversation")));
    if unread > 0 {
        lines.push(format!("{} could not be compared", count(unread, "conversation")));
    }
    lines.extend(how_it_ended(task));
    lines.join("\n")
}
