//! `outboxctl audit`.

use clap::Args;
use serde::Serialize;
use shared::{
    audit::{self, AuditFilter, Entry, Verb},
    config::DatabaseArgs,
    ids::TaskId,
    outbox::Cursor,
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Failed,
    print::{at, clean, json, say, table},
    session,
    when::{When, parse_when, span},
};

const EXAMPLES: &str = "Examples:
  outboxctl audit                                      what operators did, newest first
  outboxctl audit --by ada --verb requeue --since 24h
  outboxctl audit --task <ID>                          how a task began, each step of it, and its end
  outboxctl audit --conversation <ID> --limit 200 --json
  outboxctl audit --since 2026-01-01T00:00:00Z --export > trail.jsonl";

/// How many acts are read at once for an export.
const EXPORTED_AT_ONCE: u16 = 1_000;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AuditArgs {
    /// Only what was done to this conversation by name
    #[arg(long, value_name = "ID")]
    conversation: Option<Uuid>,
    /// Only what this operator did
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Only acts of this kind: requeue, discard, expire, complete, pause, resume, verify, repair or cancel
    #[arg(long)]
    verb: Option<Verb>,
    /// Only how this task began, its steps and its end
    #[arg(long, value_name = "ID")]
    task: Option<TaskId>,
    /// Only since then: a time such as 2026-01-31T06:00:00Z, or an age such as 2h
    #[arg(long, value_name = "WHEN", value_parser = parse_when)]
    since: Option<When>,
    /// Only before then
    #[arg(long, value_name = "WHEN", value_parser = parse_when)]
    until: Option<When>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Where to go on: the `next_cursor` of the page before
    #[arg(long)]
    cursor: Option<Cursor>,
    /// Print all there are, each as JSON on a line of its own, newest first
    #[arg(long, conflicts_with_all = ["limit", "json"])]
    export: bool,
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
    let pool = session::database(&args.database)?;
    let (since, until) = span(&mut *pool.acquire().await?, args.since, args.until).await?;
    let filter = AuditFilter {
        conversation_id: args.conversation.map(Into::into),
        verb: args.verb,
        by: args.by.clone(),
        task_id: args.task,
        since,
        until,
    };
    if args.export {
        return export(&pool, &filter, args.cursor).await;
    }
    let (items, next) = page(&pool, &filter, args.cursor, args.limit).await?;
    let page = Page { items, next_cursor: next.map(|next| next.to_string()) };
    if args.json {
        return json(&page);
    }
    if page.items.is_empty() {
        say(if filter_is_empty(args) { "nobody did anything yet" } else { "nobody did such a thing" });
        return Ok(());
    }
    let rows: Vec<_> = page
        .items
        .iter()
        .map(|entry| {
            let conversation = entry.conversation_id.map(|id| format!(" {id}")).unwrap_or_default();
            let task = entry.task_id.map(|id| format!(" (task {id})")).unwrap_or_default();
            [
                at(entry.acted_at),
                clean(&entry.acted_by),
                entry.verb.clone(),
                format!("{}{conversation}{task}", entry.scope),
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

fn filter_is_empty(args: &AuditArgs) -> bool {
    args.conversation.is_none()
        && args.by.is_none()
        && args.verb.is_none()
        && args.task.is_none()
        && args.since.is_none()
        && args.until.is_none()
}

/// So many acts, and where to go on.
async fn page(
    pool: &PgPool,
    filter: &AuditFilter,
    before: Option<Cursor>,
    limit: u16,
) -> Result<(Vec<Entry>, Option<Cursor>), sqlx::Error> {
    let mut tx = pool.begin().await?;
    let mut items = audit::entries(&mut tx, filter, before, i64::from(limit) + 1).await?;
    let more = items.len() > usize::from(limit);
    items.truncate(usize::from(limit));
    let next = items.last().filter(|_| more).map(Entry::cursor);
    Ok((items, next))
}

/// Page after page, each read by itself: nobody is kept from anything while somebody reads.
async fn export(pool: &PgPool, filter: &AuditFilter, from: Option<Cursor>) -> Result<(), Failed> {
    let mut before = from;
    loop {
        let (items, next) = page(pool, filter, before, EXPORTED_AT_ONCE).await?;
        for entry in &items {
            say(&serde_json::to_string(entry)?);
        }
        if next.is_none() {
            return Ok(());
        }
        before = next;
    }
}
