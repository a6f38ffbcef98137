//! Lists: what is dead, held, paused, or still to be done, with filters, page by page.

use askama::Template;
use axum::{extract::State as Extract, response::Response};
use shared::{
    ids::{ConversationId, OutboxId},
    outbox::{self, Cursor, DeadFilter, DeadLetter, HeldLane, LiveOperation, PausedLane},
};
use sqlx::PgConnection;

use super::{
    fields::{CAUSES, Filters, KINDS, query},
    html::{self, Markup, Tone},
    session::Session,
    shell::{self, Shell},
    table::Table,
};
use crate::{
    AppState,
    admin::{
        lists::{LaneCursor, Page, dead_filter},
        params::Params,
    },
    problem::ApiError,
};

/// How many rows a page has.
const ROWS: i64 = 50;

/// How many of each list stand on a page that has several.
pub(super) const FEW: i64 = 10;

const STATES: [&str; 4] = ["dead", "live", "held", "paused"];

#[derive(Template)]
#[template(path = "list.html")]
struct ListPage {
    shell: Shell,
    filters: Markup,
    list: Markup,
    /// Leads to what can be done with all that the filters choose.
    actions: Vec<Markup>,
}

pub(super) async fn page(
    Extract(state): AppState,
    session: Session,
    mut params: Params,
) -> Result<Response, ApiError> {
    let mut given = params.given();
    let which = params.one_of("state", &STATES).unwrap_or("dead");
    given.insert("state".to_owned(), which.to_owned());
    let filters = Filters::new("/console/operations", given)
        .choice(
            "state",
            "State",
            &[("dead", "dead"), ("live", "waiting or under way"), ("held", "held lanes"), ("paused", "paused lanes")],
        )
        .choice("kind", "Kind", KINDS)
        .choice("cause", "Cause", CAUSES)
        .text("errcode", "Error code", "M_FORBIDDEN")
        .text("conversation_id", "Conversation", "its id");
    let mut tx = state.pool.begin().await?;
    let list = match which {
        "live" => live(&mut tx, params, &filters).await?,
        "held" => held(&mut tx, params, &filters).await?,
        "paused" => paused(&mut tx, params, &filters).await?,
        _ => dead(&mut tx, params, &filters).await?,
    };
    let shell = Shell::new(&session, if which == "dead" { "dead" } else { "operations" }, "Operations");
    Ok(shell::page(&ListPage { shell, filters: filters.markup(), list: list.markup(), actions: Vec::new() }))
}

async fn dead(conn: &mut PgConnection, mut params: Params, filters: &Filters) -> Result<Table, ApiError> {
    let filter = dead_filter(&mut params);
    let before: Option<Cursor> = params.cursor();
    params.finish()?;
    let letters = outbox::dead_letters(conn, &filter, before, ROWS + 1).await?;
    let page = Page::of(letters, ROWS, |letter| letter.cursor().to_string());
    Ok(dead_table("Dead letters, newest first", &page.items).more(page.next_cursor.map(|cursor| filters.next(&cursor))))
}

/// The newest dead letters, as part of a page.
pub(super) async fn newest_dead(conn: &mut PgConnection) -> Result<Markup, ApiError> {
    let letters = outbox::dead_letters(conn, &DeadFilter::default(), None, FEW).await?;
    Ok(dead_table("The newest dead letters", &letters).markup())
}

pub(super) fn operation_link(id: OutboxId) -> Markup {
    html::link(&format!("/console/operations/{id}"), &html::id(id))
}

pub(super) fn conversation_link(id: ConversationId) -> Markup {
    html::link(&format!("/console/conversations/{id}"), &html::id(id))
}

pub(super) fn dead_table(caption: &str, letters: &[DeadLetter]) -> Table {
    let heads = &["Operation", "Kind", "Died", "Why", "Code", "What to do", "Conversation"];
    let mut table = Table::new("dead", caption, heads).or("No dead letters.");
    for letter in letters {
        table.row(
            letter.outbox_id,
            vec![
                operation_link(letter.outbox_id),
                html::text(&letter.kind),
                html::at(letter.died_at),
                html::text(&letter.words),
                html::code_or_dash(letter.errcode.as_ref()),
                html::text(&letter.hint),
                conversation_link(letter.conversation_id),
            ],
        );
    }
    table
}

async fn live(conn: &mut PgConnection, mut params: Params, filters: &Filters) -> Result<Table, ApiError> {
    let (conversation_id, kind) = (params.id("conversation_id"), params.kind("kind"));
    let after: Option<OutboxId> = params.cursor();
    params.finish()?;
    let operations = outbox::live_operations(conn, conversation_id, kind.as_deref(), after, ROWS + 1).await?;
    let page = Page::of(operations, ROWS, |operation| operation.outbox_id.to_string());
    let caption = "Waiting or under way, oldest first";
    Ok(live_table(caption, &page.items).more(page.next_cursor.map(|cursor| filters.next(&cursor))))
}

pub(super) fn live_table(caption: &str, operations: &[LiveOperation]) -> Table {
    let heads = &["Operation", "Kind", "Enqueued", "Failures", "Waits for", "Conversation"];
    let mut table = Table::new("live", caption, heads).or("Nothing waits.");
    for operation in operations {
        let waits = match (&operation.hold, operation.lane_due_at) {
            (Some(hold), _) => format!("somebody: its lane is held ({hold})"),
            (None, _) if !operation.first => "what is before it in its lane".to_owned(),
            (None, Some(due)) => format!("a worker, from {}", html::second(due)),
            (None, None) => "a worker".to_owned(),
        };
        table.row(
            operation.outbox_id,
            vec![
                operation_link(operation.outbox_id),
                html::text(&operation.kind),
                html::at(operation.enqueued_at),
                html::text(operation.failures),
                html::text(waits),
                conversation_link(operation.conversation_id),
            ],
        );
    }
    table
}

async fn held(conn: &mut PgConnection, mut params: Params, filters: &Filters) -> Result<Table, ApiError> {
    let conversation_id = params.id("conversation_id");
    let after: Option<LaneCursor> = params.cursor();
    params.finish()?;
    let after = after.map(|LaneCursor(conversation_id, lane_id)| (conversation_id, lane_id));
    let lanes = outbox::held_lanes(conn, conversation_id, after, ROWS + 1).await?;
    let page = Page::of(lanes, ROWS, |lane| LaneCursor(lane.conversation_id, lane.lane_id).to_string());
    Ok(held_table("Held lanes", &page.items).more(page.next_cursor.map(|cursor| filters.next(&cursor))))
}

/// Held lanes, each with the way to let it go on.
pub(super) fn held_table(caption: &str, lanes: &[HeldLane]) -> Table {
    let heads = &["Conversation", "Lane", "Waiting", "Oldest", "Why", ""];
    let mut table = Table::new("held", caption, heads).or("No lane is held.");
    for lane in lanes {
        let (conversation_id, lane_id) = (lane.conversation_id.to_string(), lane.lane_id.to_string());
        let resume = query(
            "/console/resume",
            [("scope", "lane"), ("conversation_id", &conversation_id), ("lane_id", &lane_id)],
        );
        table.row(
            format!("{conversation_id}/{lane_id}"),
            vec![
                conversation_link(lane.conversation_id),
                lane_name(&lane.lane_class),
                html::text(lane.waiting),
                html::at_or(lane.oldest_at, "–"),
                html::text(&lane.reason),
                html::word_link(&resume, "Resume…"),
            ],
        );
    }
    table
}

fn lane_name(class: &str) -> Markup {
    html::chip(Tone::Quiet, class)
}

async fn paused(conn: &mut PgConnection, mut params: Params, filters: &Filters) -> Result<Table, ApiError> {
    let conversation_id = params.id("conversation_id");
    let after: Option<Cursor> = params.cursor();
    params.finish()?;
    let lanes = outbox::paused_lanes(conn, conversation_id, after, ROWS + 1).await?;
    let page = Page::of(lanes, ROWS, |lane| lane.cursor().to_string());
    let caption = "Lanes that are paused until a time";
    Ok(paused_table(caption, &page.items).more(page.next_cursor.map(|cursor| filters.next(&cursor))))
}

pub(super) fn paused_table(caption: &str, lanes: &[PausedLane]) -> Table {
    let heads = &["Conversation", "Lane", "Waiting", "Until", "Why", ""];
    let mut table = Table::new("paused", caption, heads).or("No lane is paused until a time.");
    for lane in lanes {
        let (conversation_id, lane_id) = (lane.conversation_id.to_string(), lane.lane_id.to_string());
        let resume = query(
            "/console/resume",
            [("scope", "lane"), ("conversation_id", &conversation_id), ("lane_id", &lane_id)],
        );
        table.row(
            format!("{conversation_id}/{lane_id}"),
            vec![
                conversation_link(lane.conversation_id),
                lane_name(&lane.lane_class),
                html::text(lane.waiting),
                html::at(lane.until),
                html::text(&lane.reason),
                html::word_link(&resume, "Resume…"),
            ],
        );
    }
    table
}
