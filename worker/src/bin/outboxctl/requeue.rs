//! `outboxctl requeue`.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, OutboxId},
    operator,
    outbox::{self, LaneAhead, Letter, MOST_LETTERS, Refused, Requeue, Selection, Targets, Wanted},
    tasks::AsOf,
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Failed, bulk,
    filter::FilterArgs,
    print::{at, clean, count, json, say, table},
    session::{self, Who, parse_reason},
};

const EXAMPLES: &str = "\
A dead letter comes back to its old place: before everything of its lane that was not handed out yet. What was delivered
meanwhile stays ahead of it. A message takes its edits along.

Of many conversations, or by time, it takes two commands: the first looks what would come back, and names the moment as of
which it looked; the second brings exactly that back, step by step, in order, at most so many a second. Ctrl-C leaves it to
the workers; see `outboxctl tasks`.

Examples:
  outboxctl requeue <ID>                                            an operation or a message
  outboxctl requeue --conversation <ID> --errcode M_TOO_LARGE --dry-run
  outboxctl requeue --conversation <ID> --reason 'the limit was raised'
  outboxctl requeue --errcode M_UNKNOWN --since 2h --dry-run        prints the command that does it
  outboxctl requeue --errcode M_UNKNOWN --since <TIME> --as-of <AS-OF> --rate 200 --reason 'the homeserver is back'
  outboxctl requeue --all --dry-run

Exit codes: 0 something came back for each id, or by the filter; 1 nothing did, something was refused, or it was
interrupted; 2 wrong use";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that somebody types")]
pub(crate) struct RequeueArgs {
    /// Operations, or messages
    #[arg(conflicts_with_all = ["FilterArgs", "all", "as_of", "rate", "detach"])]
    ids: Vec<Uuid>,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// All dead letters there are
    #[arg(long, conflicts_with = "FilterArgs")]
    all: bool,
    /// Say what would come back, and change nothing
    #[arg(long, conflicts_with = "detach")]
    pub(crate) dry_run: bool,
    /// Exactly what a dry run with the same filter found: what it printed
    #[arg(long, value_name = "AS-OF")]
    pub(crate) as_of: Option<AsOf>,
    /// How many a second at most
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: Option<u32>,
    /// Begin, and leave it to the workers
    #[arg(long)]
    pub(crate) detach: bool,
    /// Why, for the trail
    #[arg(long, value_parser = parse_reason)]
    pub(crate) reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) who: Who,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
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

impl RequeueArgs {
    /// One conversation's, in one transaction: what needs no task.
    fn is_of_one_conversation(&self) -> bool {
        let as_task = self.as_of.is_some() || self.rate.is_some() || self.detach;
        self.filter.conversation.is_some() && self.filter.is_at_most_of_a_conversation() && !as_task
    }
}

pub(crate) async fn requeue(args: &RequeueArgs) -> Result<(), Failed> {
    if args.ids.is_empty() {
        if args.filter.is_empty() && !args.all {
            return Err(Failed::Usage("say what: ids, --conversation, another filter, or --all".to_owned()));
        }
        if !args.is_of_one_conversation() {
            return bulk::requeue(args).await;
        }
    }
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let mut targets = Targets::default();
    let mut report = Report { dry_run: args.dry_run, requeued: 0, conversations: Vec::new(), refused: Vec::new() };
    let mut failed = None;
    if let Some(conversation) = args.filter.conversation {
        let selection =
            Selection::Matching { cause: args.filter.cause.as_deref(), errcode: args.filter.errcode.as_deref() };
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
            lines.push(format!("no more than {MOST_LETTERS} come back at once: there may be more, for which --dry-run --rate 1000 makes a task"));
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
