//! What operators did.

use axum::{extract::State as Extract, response::Response};
use shared::audit::{self, Entry};

use super::{
    fields::Filters,
    html::{self, Markup, Tone},
    lists,
    sections::Sections,
    session::Session,
    table::Table,
};
use crate::{
    AppState,
    admin::{audit::audit_filter, lists::Page, params::Params},
    problem::ApiError,
};

/// How many rows a page has.
const ROWS: i64 = 50;

/// What operators do, as a choice.
const VERBS: &[(&str, &str)] = &[
    ("", "anything"),
    ("requeue", "requeue"),
    ("discard", "discard"),
    ("expire", "expire"),
    ("complete", "complete"),
    ("pause", "pause"),
    ("resume", "resume"),
    ("verify", "verify"),
    ("repair", "repair"),
    ("cancel", "cancel"),
];

pub(super) async fn page(Extract(state): AppState, session: Session, mut params: Params) -> Result<Response, ApiError> {
    let filters = Filters::new("/console/audit", params.given())
        .choice("verb", "What", VERBS)
        .text("by", "Who", "a user's id, or a login name")
        .text("conversation_id", "Conversation", "its id")
        .text("task_id", "Task", "its id")
        .text("since", "Since (UTC)", "2026-01-31T06:00")
        .text("until", "Until (UTC)", "2026-01-31T07:00");
    let filter = audit_filter(&mut params);
    let before = params.cursor();
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let entries = audit::entries(&mut tx, &filter, before, ROWS + 1).await?;
    let page = Page::of(entries, ROWS, |entry| entry.cursor().to_string());
    let table = table("What operators did, newest first", &page.items)
        .more(page.next_cursor.map(|cursor| filters.next(&cursor)));
    Ok(Sections::new(&session, "audit", "Audit trail").section(filters.markup()).section(table.markup()).page())
}

pub(super) fn table(caption: &str, entries: &[Entry]) -> Table {
    let heads = &["When", "Who", "What", "On", "Changed", "Why", "Asked for"];
    let mut table = Table::new("audit", caption, heads).or("Nobody did anything.");
    for entry in entries {
        table.row(
            entry.audit_id,
            vec![
                html::at(entry.acted_at),
                html::id(&entry.acted_by),
                html::chip(Tone::Quiet, &entry.verb),
                on(entry),
                html::text(entry.affected),
                html::or_dash(entry.reason.as_ref()),
                html::long_code(shortened(&entry.arguments.to_string())),
            ],
        );
    }
    table
}

/// Acts may name many operations.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 160;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn on(entry: &Entry) -> Markup {
    let scope = html::text(&entry.scope);
    let task = entry.task_id.map(|id| html::link(&format!("/console/tasks/{id}"), &html::id(id)));
    match (entry.conversation_id, task) {
        (Some(id), Some(task)) => Markup(format!("conversation {}, task {task}", lists::conversation_link(id))),
        (None, Some(task)) => Markup(format!("{scope} {task}")),
        (Some(id), None) if entry.scope == "conversation" => {
            Markup(format!("{scope} {}", lists::conversation_link(id)))
        }
        (Some(id), None) => Markup(format!("{scope} of {}", lists::conversation_link(id))),
        (None, None) => scope,
    }
}
