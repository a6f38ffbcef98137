//! `outboxctl timeline`, and moments as people read them.

use clap::Args;
use shared::{
    config::DatabaseArgs,
    outbox::{self, Cursor, Moment},
};
use uuid::Uuid;

use crate::{
    Failed,
    print::{at, clean, json, or_dash, say, table},
    session,
};

const EXAMPLES: &str = "\
What was written, edited and deleted, what was enqueued, each attempt and how it ended, what came from Matrix, calls, and
what operators did; newest first. Never a text.

Examples:
  outboxctl timeline --conversation <ID>
  outboxctl timeline --conversation <ID> --limit 500 --json | jq '.moments[] | select(.kind == \"act\")'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TimelineArgs {
    /// What happened in this conversation
    #[arg(long, value_name = "ID")]
    conversation: Uuid,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Where to go on: the `next_cursor` of the page before
    #[arg(long)]
    cursor: Option<Cursor>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(crate) async fn timeline(args: &TimelineArgs) -> Result<(), Failed> {
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    let conversation_id = args.conversation.into();
    let page = outbox::conversation_timeline(&mut tx, conversation_id, args.cursor, i64::from(args.limit)).await?;
    if args.json {
        return json(&page);
    }
    if page.moments.is_empty() && page.next.is_none() {
        say("nothing happened there");
        return Ok(());
    }
    let rows: Vec<_> = page
        .moments
        .iter()
        .map(|moment| {
            let id = moment.outbox_id.map(|id| id.to_string()).or(moment.subject_id.map(|id| id.to_string()));
            [at(moment.at), in_words(moment), or_dash(moment.by.as_deref()), id.unwrap_or_else(|| "-".to_owned())]
        })
        .collect();
    say(&table(["at", "what", "who", "operation"], &rows));
    if let Some(cursor) = page.next {
        say(&format!("There is more: --cursor {cursor}"));
    }
    Ok(())
}

/// What happened to one operation, as a table.
pub(crate) fn of_operation(moments: &[Moment]) -> String {
    let rows: Vec<_> = moments
        .iter()
        .map(|moment| {
            let took = moment.duration_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
            [at(moment.at), in_words(moment), took, or_dash(moment.by.as_deref())]
        })
        .collect();
    table(["at", "what", "took", "who"], &rows)
}

fn in_words(moment: &Moment) -> String {
    let mut words = clean(&moment.words);
    let kind = moment.operation_kind.as_deref().filter(|kind| !words.contains(kind));
    if let Some(kind) = kind {
        words = format!("{}: {words}", clean(kind));
    }
    let status = moment.http_status.map(|status| status.to_string());
    let answer: Vec<String> = [status, moment.errcode.clone()].into_iter().flatten().collect();
    if !answer.is_empty() {
        words = format!("{words} ({})", clean(&answer.join(" ")));
    }
    if let Some(event_id) = &moment.event_id {
        words = format!("{words} {}", clean(event_id.as_str()));
    }
    match &moment.reason {
        Some(reason) => format!("{words}: {}", clean(reason)),
        None => words,
    }
}
