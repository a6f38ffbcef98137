//! `outboxctl show`.

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    outbox::{self, AttemptView, MessageFacts, Moment, Shown},
};
use uuid::Uuid;

use crate::{
    Failed,
    print::{at, clean, count, json, repair_command, say},
    session,
    timeline::of_operation,
};

const EXAMPLES: &str = "Examples:
  outboxctl show 0197a3c4-...          an operation, or a message or a call with all its operations
  outboxctl show 0197a3c4-... --json | jq '.operations[].timeline[] | [.at, .words]'

Exit codes: 0 it is known; 1 nothing is known of it; 2 wrong use";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ShowArgs {
    /// An operation, a message or a call
    id: Uuid,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// What is known of an id, as programs read it.
#[derive(Serialize)]
struct Report {
    id: Uuid,
    message: Option<MessageFacts>,
    operations: Vec<Told>,
}

/// An operation with all that happened to it.
#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    shown: Shown,
    timeline: Vec<Moment>,
}

pub(crate) async fn show(args: &ShowArgs) -> Result<(), Failed> {
    let pool = session::database(&args.database)?;
    let mut conn = pool.acquire().await?;
    let found = outbox::find(&mut conn, args.id).await?;
    // What an operation is about may be a message; a member is none.
    let message_id = found.first().map_or(args.id, |found| found.subject_id);
    let message = outbox::message_facts(&mut conn, message_id).await?;
    if found.is_empty() && message.is_none() {
        eprintln!("nothing is known of {}: no message, and no operation that is live, dead or delivered", args.id);
        return Err(Failed::Reported);
    }
    let mut operations = Vec::with_capacity(found.len());
    for found in found {
        let timeline = outbox::operation_timeline(&mut conn, &found).await?;
        operations.push(Told { shown: outbox::show(&mut conn, found).await?, timeline });
    }
    let report = Report { id: args.id, message, operations };
    if args.json {
        return json(&report);
    }
    if let Some(message) = &report.message {
        say(&describe_message(message, report.operations.is_empty()));
    }
    for operation in &report.operations {
        say(&describe(operation));
    }
    Ok(())
}

fn describe_message(message: &MessageFacts, nothing_left: bool) -> String {
    let mut lines = vec![
        format!("message      {}", message.message_id),
        format!("conversation {} (place {})", message.conversation_id, message.seq),
        format!("author       {}", message.author_id),
        format!("written      {}, revision {}", at(message.created_at), message.revision),
    ];
    if let Some(deleted_at) = message.deleted_at {
        lines.push(format!("deleted      {}", at(deleted_at)));
    }
    if message.disabled {
        lines.push("matrix       never meant for it: Matrix was switched off".to_owned());
    } else if nothing_left {
        lines.push("matrix       nothing of it left, and nothing will".to_owned());
    }
    lines.join("\n")
}

fn describe(Told { shown, timeline }: &Told) -> String {
    let state = serde_json::to_value(shown.explanation.state).unwrap_or_default();
    let mut lines = vec![
        String::new(),
        format!("operation    {} ({})", shown.found.outbox_id, clean(&shown.found.kind)),
        format!("state        {}", state.as_str().unwrap_or_default()),
    ];
    let mut line = |name: &str, text: String| lines.push(format!("{name:12} {text}"));
    line("conversation", shown.found.conversation_id.to_string());
    if let (Some(lane_id), Some(seq)) = (shown.lane_id, shown.seq) {
        line("lane", format!("{lane_id} (place {seq})"));
    }
    if let Some(event_id) = &shown.explanation.event_id {
        line("event", clean(event_id.as_str()));
    }
    if let Some(dead) = &shown.dead {
        let errcode = dead.errcode.as_deref().map(|errcode| format!(" ({})", clean(errcode))).unwrap_or_default();
        line("died", at(dead.died_at));
        line("cause", format!("{}{errcode}", clean(&dead.cause_in_words)));
        line("what to do", clean(&dead.hint));
    } else if let Some(waiting_for) = &shown.explanation.waiting_for {
        let due = shown.explanation.due_at.map(|due| format!(", from {}", at(due))).unwrap_or_default();
        line("waits for", format!("{}{due}", clean(waiting_for)));
    }
    if let Some(withdrawn) = &shown.withdrawn {
        line("given up", format!("{} ({})", at(withdrawn.withdrawn_at), clean(&withdrawn.reason)));
    }
    if let Some(maybe_sent_at) = shown.maybe_sent_at {
        line("in doubt", format!("it may stand in the room since {}", at(maybe_sent_at)));
    }
    if shown.lane_id.is_some() {
        line("in its lane", format!("{} before it, {} behind it", shown.explanation.ahead, shown.behind));
    }
    for (name, attempt) in [("first error", &shown.first_error), ("last error", &shown.last_error)] {
        if let Some(attempt) = attempt {
            line(name, format!("{}: {}", at(attempt.at), error(attempt)));
        }
    }
    line("in short", clean(&shown.explanation.sentence));
    if let Some(repair) = shown.explanation.repair {
        line("repair", repair_command(repair, shown.found.conversation_id));
    }
    lines.push(format!("{}; what happened:", count(shown.attempts_total, "attempt")));
    lines.push(of_operation(timeline));
    lines.join("\n")
}

fn error(attempt: &AttemptView) -> String {
    let status = attempt.http_status.map(|status| status.to_string());
    let parts = [Some(attempt.outcome.clone()), status, attempt.errcode.clone(), attempt.detail.clone()];
    clean(&parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
}
