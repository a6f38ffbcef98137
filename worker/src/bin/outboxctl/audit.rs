//! `outboxctl audit`.

use clap::Args;
use serde::Serialize;
use shared::{
    audit::{self, AuditFilter, Entry},
    config::DatabaseArgs,
};
use uuid::Uuid;

use crate::{
    Failed,
    print::{at, clean, json, say, table},
    session,
};

const EXAMPLES: &str = "Examples:
  outboxctl audit                                      what operators did, newest first
  outboxctl audit --conversation <ID> --limit 200 --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AuditArgs {
    /// Only what was done to this conversation by name
    #[arg(long, value_name = "ID")]
    conversation: Option<Uuid>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Where to go on: the `next_cursor` of the page before
    #[arg(long)]
    cursor: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// A page, as programs read it.
#[derive(Serialize)]
struct Page {
    items: Vec<Entry>,
    next_cursor: Option<String>,
}

pub(crate) async fn audit(args: &AuditArgs) -> Result<(), Failed> {
    let before = args.cursor.as_deref().map(str::parse).transpose();
    let before = before.map_err(|error| Failed::Usage(format!("--cursor: {error}")))?;
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    let conversation_id = args.conversation.map(Into::into);
    let mut items = audit::entries(
        &mut tx,
        &AuditFilter { conversation_id, ..AuditFilter::default() },
        before,
        i64::from(args.limit) + 1,
    )
    .await?;
    let more = items.len() > usize::from(args.limit);
    items.truncate(usize::from(args.limit));
    let next_cursor = items.last().filter(|_| more).map(|entry| entry.cursor().to_string());
    let page = Page { items, next_cursor };
    if args.json {
        return json(&page);
    }
    if page.items.is_empty() {
        say("nobody did anything yet");
        return Ok(());
    }
    let rows: Vec<_> = page
        .items
        .iter()
        .map(|entry| {
            let conversation = entry.conversation_id.map(|id| format!(" {id}")).unwrap_or_default();
            [
                at(entry.acted_at),
                clean(&entry.acted_by),
                entry.verb.clone(),
                format!("{}{conversation}", entry.scope),
                entry.affected.to_string(),
                clean(entry.reason.as_deref().unwrap_or("-")),
            ]
        })
        .collect();
    say(&table(["at", "who", "verb", "on", "count", "why"], &rows));
    if let Some(cursor) = &page.next_cursor {
        say(&format!("There is more: --cursor {cursor}"));
    }
    Ok(())
}
