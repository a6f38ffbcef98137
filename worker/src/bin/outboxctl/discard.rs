//! `outboxctl discard`.

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, OutboxId},
    operator,
    outbox::{self, Discard, Discarded, Refused, Wanted},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Failed,
    print::{clean, count, json, say},
    session::{self, Who, parse_reason},
};

const EXAMPLES: &str = "\
What is discarded never goes to Matrix; the message itself stays, for readers of the API. What may have been sent all the
same is remembered: if it turns up in the room, it is kept up to date there, and a delete still redacts it.

Of what is live, the first operation of a held lane can be discarded, by its own id, if it is a redaction, a removal, an
invitation, or of a deleted message. MIND WHAT THAT MEANS: after discarding a redaction the deleted text stays readable on
Matrix; after discarding a removal the member stays in the room, and reads on. Mend what holds the lane if it can be
mended. The lane stays held until it is resumed.

Examples:
  outboxctl discard <ID> --reason 'spam'
  outboxctl list --errcode M_BAD_JSON --json | jq -r '.items[].outbox_id' | xargs outboxctl discard --reason 'a fault'
  outboxctl list --state held                          why a lane is held; mostly that names the operation
  outboxctl discard <OPERATION> --reason 'the room is gone, redacted by hand'";

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
    /// Those of them that were live, and what discarding them leaves undone on Matrix.
    live: Vec<Discarded>,
}

pub(crate) async fn discard(args: &DiscardArgs) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let targets = outbox::resolve(&mut *pool.acquire().await?, &args.ids, Wanted::DeadOrNamed).await?;
    let mut report = Report { discarded: 0, conversations: Vec::new(), refused: targets.refused.clone() };
    let (mut gone, mut failed) = (Vec::new(), None);
    for (conversation_id, ids) in &targets.operations {
        let done = match one(&pool, &by, *conversation_id, ids, &args.reason).await {
            Ok(done) => done,
            // What was done before a failure is told all the same.
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        gone.extend_from_slice(&done.gone);
        report.take(*conversation_id, done);
    }
    if report.discarded > 0 {
        shared::wake::wake_now(&pool).await;
    }
    if args.json {
        json(&report)?;
    } else {
        say(&report.in_words());
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    if report.discarded > 0 && targets.all_served(&gone) { Ok(()) } else { Err(Failed::Reported) }
}

/// Operations of one conversation: one act, in one transaction.
async fn one(
    pool: &PgPool,
    by: &str,
    conversation_id: ConversationId,
    ids: &[OutboxId],
    reason: &str,
) -> Result<Discard, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let done = operator::discard(&mut tx, by, conversation_id, ids, reason).await?;
    tx.commit().await?;
    Ok(done)
}

impl Report {
    fn take(&mut self, conversation_id: ConversationId, done: Discard) {
        self.discarded += done.gone.len();
        self.refused.extend(done.refused);
        if !done.gone.is_empty() {
            let (operations, live) = (done.gone, done.live);
            self.conversations.push(OfConversation { conversation_id, operations, live });
        }
    }

    fn in_words(&self) -> String {
        let mut lines = Vec::new();
        for refused in &self.refused {
            lines.push(format!("{} is not discarded: {}", refused.id, refused.in_words));
        }
        for conversation in &self.conversations {
            let conversation_id = conversation.conversation_id;
            for Discarded { outbox_id, lane_id, kind, subject_id, left_undone, .. } in &conversation.live {
                let subject = format!("{} {outbox_id} of {subject_id}", clean(kind));
                lines.push(format!("{subject} was live, and is given up: {left_undone}"));
                let lane = format!("{conversation_id}/{lane_id}");
                lines.push(format!("its lane is still held: outboxctl resume --lane {lane}"));
            }
        }
        lines.push(format!("{} discarded", count(self.discarded as u64, "operation")));
        lines.join("\n")
    }
}
