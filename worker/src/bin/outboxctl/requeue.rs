//! `outboxctl requeue`.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, OutboxId},
    operator,
    outbox::{self, LaneAhead, Letter, MOST_LETTERS, Refused, Requeue, Selection, Targets, Wanted},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Failed,
    print::{at, clean, count, json, say, table},
    session::{self, Who, parse_reason},
};

const EXAMPLES: &str = "\
A dead letter comes back to its old place: before everything of its lane that was not handed out yet. What was delivered
meanwhile stays ahead of it. A message takes its edits along.

Examples:
  outboxctl requeue <ID>                                            an operation or a message
  outboxctl requeue --conversation <ID> --errcode M_TOO_LARGE --dry-run
  outboxctl requeue --conversation <ID> --reason 'the limit was raised'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RequeueArgs {
    /// Operations, or messages
    #[arg(required_unless_present = "conversation", conflicts_with = "conversation")]
    ids: Vec<Uuid>,
    /// All dead letters of this conversation
    #[arg(long, value_name = "ID")]
    conversation: Option<Uuid>,
    /// Only those of this cause
    #[arg(long, value_parser = ["own_fault", "parent_dead", "gave_up"], requires = "conversation", conflicts_with = "ids")]
    cause: Option<String>,
    /// Only those with this Matrix error code
    #[arg(long, requires = "conversation", conflicts_with = "ids")]
    errcode: Option<String>,
    /// Say what would come back, and change nothing
    #[arg(long)]
    dry_run: bool,
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

/// What came back, or would, as programs read it.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    requeued: usize,
    conversations: Vec<OfConversation>,
    refused: Vec<Refused>,
}

#[derive(Serialize)]
struct OfConversation {
    conversation_id: ConversationId,
    lanes: Vec<LaneAhead>,
    operations: Vec<Letter>,
}

pub(crate) async fn requeue(args: &RequeueArgs) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let mut targets = Targets::default();
    let mut report = Report { dry_run: args.dry_run, requeued: 0, conversations: Vec::new(), refused: Vec::new() };
    let mut failed = None;
    if let Some(conversation) = args.conversation {
        let selection = Selection::Matching { cause: args.cause.as_deref(), errcode: args.errcode.as_deref() };
        report.take(conversation.into(), one(&pool, args, &by, conversation.into(), selection).await?);
    } else {
        targets = outbox::resolve(&mut *pool.acquire().await?, &args.ids, Wanted::Dead).await?;
        for (conversation_id, ids) in &targets.operations {
            // What was done before a failure is told all the same.
            match one(&pool, args, &by, *conversation_id, Selection::Named(ids)).await {
                Ok(done) => report.take(*conversation_id, done),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        report.refused.extend(targets.refused.iter().cloned());
    }
    if report.requeued > 0 && !args.dry_run {
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
    let back = report.conversations.iter().flat_map(|conversation| &conversation.operations);
    let back: Vec<OutboxId> = back.map(|letter| letter.outbox_id).collect();
    if report.requeued > 0 && targets.all_served(&back) { Ok(()) } else { Err(Failed::Reported) }
}

/// The dead letters of one conversation: one act, in one transaction.
async fn one(
    pool: &PgPool,
    args: &RequeueArgs,
    by: &str,
    conversation_id: ConversationId,
    selection: Selection<'_>,
) -> Result<Requeue, sqlx::Error> {
    let mut tx = pool.begin().await?;
    if args.dry_run {
        return outbox::preview_requeue(&mut tx, conversation_id, selection).await;
    }
    let done = operator::requeue(&mut tx, by, conversation_id, selection, args.reason.as_deref()).await?;
    tx.commit().await?;
    Ok(done)
}

impl Report {
    fn take(&mut self, conversation_id: ConversationId, done: Requeue) {
        self.requeued += done.back.len();
        self.refused.extend(done.refused);
        if !done.back.is_empty() {
            let (lanes, operations) = (done.lanes, done.back);
            self.conversations.push(OfConversation { conversation_id, lanes, operations });
        }
    }

    fn in_words(&self) -> String {
        let mut lines = Vec::new();
        for conversation in &self.conversations {
            lines.push(format!("conversation {}", conversation.conversation_id));
            for lane in &conversation.lanes {
                lines.push(describe(lane));
            }
            let rows: Vec<_> = conversation
                .operations
                .iter()
                .map(|letter| {
                    [
                        letter.seq.to_string(),
                        letter.outbox_id.to_string(),
                        clean(&letter.kind),
                        clean(&letter.cause),
                        letter.errcode.as_deref().map_or_else(|| "-".to_owned(), clean),
                    ]
                })
                .collect();
            lines.push(table(["place", "operation", "kind", "cause", "errcode"], &rows));
        }
        for refused in &self.refused {
            lines.push(format!("{} stays: {}", refused.id, refused.in_words));
        }
        let verb = if self.dry_run { "would come back" } else { "came back" };
        lines.push(format!("{} {verb}", count(self.requeued as u64, "operation")));
        if i64::try_from(self.requeued).is_ok_and(|back| back >= MOST_LETTERS) {
            lines.push(format!("no more than {MOST_LETTERS} come back at once: there may be more"));
        }
        lines.join("\n")
    }
}

fn describe(lane: &LaneAhead) -> String {
    let mut text = format!(
        "lane {}: {} come back; {} under way or due before them, {} waiting after them",
        lane.lane_id, lane.back, lane.before, lane.after
    );
    if lane.delivered_meanwhile > 0 {
        let delivered = count(lane.delivered_meanwhile, "later message");
        let _ = write!(text, "; {delivered} delivered meanwhile and stay ahead");
    }
    if let Some(waits) = &lane.waits {
        let until = lane.waits_until.map_or_else(|| "it is resumed".to_owned(), at);
        let _ = write!(text, "; the lane waits until {until} ({})", clean(waits));
    }
    text
}
