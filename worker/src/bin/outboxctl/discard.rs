//! `outboxctl discard`.

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, OutboxId},
    operator,
    outbox::Refused,
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Failed,
    print::{count, json, say},
    session::{self, Who, parse_reason},
    targets,
};

const EXAMPLES: &str = "\
What is discarded never goes to Matrix; the message itself stays, for readers of the API. What may have been sent all the
same is remembered: if it turns up in the room, it is kept up to date there, and a delete still redacts it.

Examples:
  outboxctl discard <ID> --reason 'spam'
  outboxctl list --errcode M_BAD_JSON --json | jq -r '.items[].outbox_id' | xargs outboxctl discard --reason 'a fault'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DiscardArgs {
    /// Operations, or messages
    #[arg(required = true)]
    ids: Vec<Uuid>,
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

/// What went, as programs read it.
#[derive(Serialize)]
struct Report {
    discarded: usize,
    conversations: Vec<OfConversation>,
    refused: Vec<Refused>,
}

#[derive(Serialize)]
struct OfConversation {
    conversation_id: ConversationId,
    operations: Vec<OutboxId>,
}

pub(crate) async fn discard(args: &DiscardArgs) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let targets = targets::resolve(&mut *pool.acquire().await?, &args.ids).await?;
    let mut report = Report { discarded: 0, conversations: Vec::new(), refused: targets.refused.clone() };
    let (mut gone, mut failed) = (Vec::new(), None);
    for (conversation_id, ids) in &targets.letters {
        let operations = match one(&pool, &by, *conversation_id, ids, &args.reason).await {
            Ok(operations) => operations,
            // What was done before a failure is told all the same.
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        gone.extend_from_slice(&operations);
        report.discarded += operations.len();
        report.conversations.push(OfConversation { conversation_id: *conversation_id, operations });
    }
    if args.json {
        json(&report)?;
    } else {
        for refused in &report.refused {
            say(&format!("{} is not discarded: {}", refused.id, refused.in_words));
        }
        say(&format!("{} discarded", count(report.discarded as u64, "operation")));
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    if report.discarded > 0 && targets.all_served(&gone) { Ok(()) } else { Err(Failed::Reported) }
}

/// Dead letters of one conversation: one act, in one transaction.
async fn one(
    pool: &PgPool,
    by: &str,
    conversation_id: ConversationId,
    ids: &[OutboxId],
    reason: &str,
) -> Result<Vec<OutboxId>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let gone = operator::discard(&mut tx, by, conversation_id, ids, reason).await?;
    tx.commit().await?;
    Ok(gone)
}
