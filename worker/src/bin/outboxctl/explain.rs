//! `outboxctl explain`.

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, OutboxId},
    outbox::{self, Explanation},
};
use uuid::Uuid;

use crate::{
    Failed,
    print::{clean, json, repair_command, say},
    session,
};

const EXAMPLES: &str = "\
Says in a sentence what an operation waits for, when it goes, and what to do; of a message or a call, for each of its
operations. Times are UTC.

Examples:
  outboxctl explain 0197a3c4-...
  outboxctl explain 0197a3c4-... --json | jq -r '.operations[].sentence'

Exit codes: 0 it is known; 1 nothing is known of it; 2 wrong use";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExplainArgs {
    /// An operation, a message or a call
    id: Uuid,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Serialize)]
struct Report {
    id: Uuid,
    operations: Vec<Explained>,
}

#[derive(Serialize)]
struct Explained {
    outbox_id: OutboxId,
    conversation_id: ConversationId,
    kind: String,
    #[serde(flatten)]
    explanation: Explanation,
}

pub(crate) async fn explain(args: &ExplainArgs) -> Result<(), Failed> {
    let pool = session::database(&args.database)?;
    let mut conn = pool.acquire().await?;
    let mut report = Report { id: args.id, operations: Vec::new() };
    for found in outbox::find(&mut conn, args.id).await? {
        report.operations.push(Explained {
            explanation: outbox::explain(&mut conn, found.conversation_id, found.outbox_id).await?,
            outbox_id: found.outbox_id,
            conversation_id: found.conversation_id,
            kind: found.kind,
        });
    }
    if report.operations.is_empty() {
        let Some(message) = outbox::message_facts(&mut conn, args.id).await? else {
            eprintln!("nothing is known of {}: it never was, or was taken back before it left", args.id);
            return Err(Failed::Reported);
        };
        let why = match (message.disabled, message.deleted_at) {
            (true, _) => "it was never meant for Matrix, which was switched off",
            (false, Some(_)) => "it was deleted, and nothing of it is left to do",
            (false, None) => "it went before it left, and nothing of it is on Matrix",
        };
        if args.json {
            return json(&report);
        }
        say(&format!("message {}: {why}", args.id));
        return Ok(());
    }
    if args.json {
        return json(&report);
    }
    for operation in &report.operations {
        let kind = clean(&operation.kind);
        say(&format!("{kind} {}: {}", operation.outbox_id, clean(&operation.explanation.sentence)));
        if let Some(repair) = operation.explanation.repair {
            say(&format!("  {}", repair_command(repair, operation.conversation_id)));
        }
    }
    Ok(())
}
