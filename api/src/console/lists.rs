//! Lists: what is dead, held, paused, or still to be done, with filters, page by page.

use askama::Template;
use axum::{extract::State as Extract, response::Response};
use shared::{
    ids::{ConversationId, OutboxId},
    outbox::{
        self, Counted, Cursor, DeadFilter, DeadLetter, HeldLane, LiveOperation, PausedLane, SentOperation,
        repair_of_hold,
    },
};
use sqlx::PgConnection;

use super::{
    fields::{CAUSES, Filters, KINDS, query},
    html::{self, Markup, Tone},
    repairs,
    session::Session,
    shell::{self, Shell},
    table::Table,
};
use crate::{
    AppState,
    admin::{
        lists::{LaneCursor, Page, STATES, dead_filter, live_filter, sent_filter},
        params::Params,
    },
    problem::ApiError,
};

/// How many rows a page has.
const ROWS: i64 = 50;

/// How many of each list stand on a page that has several.
pub(super) const FEW: i64 = 10;

#[derive(Template)]
#[template(path = "list.html")]
struct ListPage {
    shell: Shell,
    filters: Markup,
    list: Markup,
    /// How many the filters choose.
    count: Option<String>,
    /// Leads to what can be done with all that the filters choose.
    actions: Vec<Markup>,
}

pub(super) async fn page(Extract(state): AppState, session: Session, mut params: Params) -> Result<Response, ApiError> {
    let mut given = params.given();
    let which = params.one_of("state", &STATES).unwrap_or("dead");
    given.insert("state".to_owned(), which.to_owned());
    let filters = Filters::new("/console/operations", given)
        .choice(
            "state",
            "State",
            &[
                ("dead", "dead"),
                ("live", "waiting or under way"),
                ("delivered", "delivered"),
                ("held", "held lanes"),
                ("paused", "paused lanes"),
            ],
        )
        .choice("kind", "Kind", KINDS)
        .choice("cause", "Cause", CAUSES)
        .text("errcode", "Error code", "M_FORBIDDEN")
        .text("conversation_id", "Conversation", "its id")
        .text("user_id", "User", "its id")
        .text("text", "Error says", "part of the text")
        .text("since", "Since (UTC)", "2026-01-31T06:00")
        .text("until", "Until (UTC)", "2026-01-31T07:00");
    let mut actions = Vec::new();
    let mut count = None;
    let mut tx = state.pool.begin().await?;
    let list = match which {
        "live" => live(&mut tx, params, &filters).await?,
        "delivered" => delivered(&mut tx, params, &filters).await?,
        "held" => {
            let (table, repairs) = held(&mut tx, params, &filters, &session).await?;
            actions.extend(repairs);
            table
        }
        "paused" => paused(&mut tx, params, &filters, &session).await?,
        _ => {
            let (table, chosen) = dead(&mut tx, params, &filters, &session).await?;
            if session.operator.may_operate && chosen.count > 0 {
                actions.push(html::word_link(&filters.elsewhere("/console/requeue"), "Requeue all of these…"));
            }
            count = Some(format!("{chosen} dead letters"));
            table
        }
    };
    let shell = Shell::new(&session, if which == "dead" { "dead" } else { "operations" }, "Operations");
    Ok(shell::page(&ListPage { shell, filters: filters.markup(), list: list.markup(), count, actions }))
}

async fn dead(
    conn: &mut PgConnection,
    mut params: Params,
    filters: &Filters,
    session: &Session,
) -> Result<(Table, Counted), ApiError> {
    let filter = dead_filter(&mut params);
    let before: Option<Cursor> = params.cursor();
    params.finish()?;
    let letters = outbox::dead_letters(conn, &filter, before, ROWS + 1).await?;
    let page = Page::of(letters, ROWS, |letter| letter.cursor().to_string());
    let count = outbox::count_dead(conn, &filter).await?;
    let more = page.next_cursor.map(|cursor| filters.next(&cursor));
    Ok((dead_table("Dead letters, newest first", session, &page.items).more(more), count))
}

/// The newest dead letters, as part of a page.
pub(super) async fn newest_dead(conn: &mut PgConnection, session: &Session) -> Result<Markup, ApiError> {
    let letters = outbox::dead_letters(conn, &DeadFilter::default(), None, FEW).await?;
    Ok(dead_table("The newest dead letters", session, &letters).markup())
}

pub(super) fn operation_link(id: OutboxId) -> Markup {
    html::link(&format!("/console/operations/{id}"), &html::id(id))
}

pub(super) fn conversation_link(id: ConversationId) -> Markup {
    html::link(&format!("/console/conversations/{id}"), &html::id(id))
}

pub(super) fn dead_table(caption: &str, session: &Session, letters: &[DeadLetter]) -> Table {
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
                what_to_do(session, letter),
                conversation_link(letter.conversation_id),
            ],
        );
    }
    table
}

fn what_to_do(session: &Session, letter: &DeadLetter) -> Markup {
    let hint = html::text(&letter.hint);
    match letter.repair {
        Some(repair) => {
            let button = repairs::button(session, letter.conversation_id, repair, &letter.words);
            Markup(format!("{hint} {button}"))
        }
        None => hint,
    }
}

async fn live(conn: &mut PgConnection, mut params: Params, filters: &Filters) -> Result<Table, ApiError> {
    let filter = live_filter(&mut params);
    let after: Option<OutboxId> = params.cursor();
    params.finish()?;
    let operations = outbox::live_operations(conn, &filter, after, ROWS + 1).await?;
    let page = Page::of(operations, ROWS, |operation| operation.outbox_id.to_string());
    let caption = "Waiting or under way, oldest first";
    Ok(live_table(caption, &page.items).more(page.next_cursor.map(|cursor| filters.next(&cursor))))
}

pub(super) fn live_table(caption: &str, operations: &[LiveOperation]) -> Table {
    let heads = &["Operation", "Kind", "Enqueued", "Failures", "Last code", "Waits for", "Conversation"];
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
                html::code_or_dash(operation.last_errcode.as_ref()),
                html::text(waits),
                conversation_link(operation.conversation_id),
            ],
        );
    }
    table
}

async fn delivered(conn: &mut PgConnection, mut params: Params, filters: &Filters) -> Result<Table, ApiError> {
    let filter = sent_filter(&mut params);
    let before: Option<Cursor> = params.cursor();
    params.finish()?;
    let operations = outbox::sent_operations(conn, &filter, before, ROWS + 1).await?;
    let page = Page::of(operations, ROWS, |operation| operation.cursor().to_string());
    let more = page.next_cursor.map(|cursor| filters.next(&cursor));
    Ok(delivered_table(&page.items).more(more))
}

fn delivered_table(operations: &[SentOperation]) -> Table {
    let heads = &["Operation", "Kind", "Delivered", "User", "Event", "Conversation"];
    let mut table = Table::new("delivered", "Delivered, newest first", heads).or("Nothing was delivered.");
    for operation in operations {
        table.row(
            operation.outbox_id,
            vec![
                operation_link(operation.outbox_id),
                html::text(&operation.kind),
                html::at(operation.sent_at),
                operation.user_id.map_or_else(html::dash, html::id),
                html::id(&operation.event_id),
                conversation_link(operation.conversation_id),
            ],
        );
    }
    table
}

async fn held(
    conn: &mut PgConnection,
    mut params: Params,
    filters: &Filters,
    session: &Session,
) -> Result<(Table, Vec<Markup>), ApiError> {
    let conversation_id = params.id("conversation_id");
    let after: Option<LaneCursor> = params.cursor();
    params.finish()?;
    let after = after.map(|LaneCursor(conversation_id, lane_id)| (conversation_id, lane_id));
    let lanes = outbox::held_lanes(conn, conversation_id, after, ROWS + 1).await?;
    let page = Page::of(lanes, ROWS, |lane| LaneCursor(lane.conversation_id, lane.lane_id).to_string());
    let table = held_table("Held lanes", session, &page.items);
    let of_all = repairs::links_to_all(session, &page.items);
    Ok((table.more(page.next_cursor.map(|cursor| filters.next(&cursor))), of_all))
}

/// Held lanes, each with the way to let it go on.
pub(super) fn held_table(caption: &str, session: &Session, lanes: &[HeldLane]) -> Table {
    let heads = &["Conversation", "Lane", "Waiting", "Oldest", "Why", ""];
    let mut table = Table::new("held", caption, heads).or("No lane is held.");
    for lane in lanes {
        let (conversation_id, lane_id) = (lane.conversation_id.to_string(), lane.lane_id.to_string());
        let resume =
            query("/console/resume", [("scope", "lane"), ("conversation_id", &conversation_id), ("lane_id", &lane_id)]);
        table.row(
            format!("{conversation_id}/{lane_id}"),
            vec![
                conversation_link(lane.conversation_id),
                lane_name(&lane.lane_class),
                html::text(lane.waiting),
                html::at_or(lane.oldest_at, "–"),
                html::text(&lane.reason),
                held_actions(session, lane, &resume),
            ],
        );
    }
    table
}

fn held_actions(session: &Session, lane: &HeldLane, resume: &str) -> Markup {
    if !session.operator.may_operate {
        return html::nothing();
    }
    let repair = repair_of_hold(&lane.reason)
        .map_or_else(html::nothing, |repair| repairs::button(session, lane.conversation_id, repair, &lane.reason));
    Markup(format!("{} {repair}", html::word_link(resume, "Resume…")))
}

fn lane_name(class: &str) -> Markup {
    html::chip(Tone::Quiet, class)
}

async fn paused(
    conn: &mut PgConnection,
    mut params: Params,
    filters: &Filters,
    session: &Session,
) -> Result<Table, ApiError> {
    let conversation_id = params.id("conversation_id");
    let after: Option<Cursor> = params.cursor();
    params.finish()?;
    let lanes = outbox::paused_lanes(conn, conversation_id, after, ROWS + 1).await?;
    let page = Page::of(lanes, ROWS, |lane| lane.cursor().to_string());
    let caption = "Lanes that are paused until a time";
    Ok(paused_table(caption, session, &page.items).more(page.next_cursor.map(|cursor| filters.next(&cursor))))
}

pub(super) fn paused_table(caption: &str, session: &Session, lanes: &[PausedLane]) -> Table {
    let heads = &["Conversation", "Lane", "Waiting", "Until", "Why", ""];
    let mut table = Table::new("paused", caption, heads).or("No lane is paused until a time.");
    for lane in lanes {
        let (conversation_id, lane_id) = (lane.conversation_id.to_string(), lane.lane_id.to_string());
        let resume =
            query("/console/resume", [("scope", "lane"), ("conversation_id", &conversation_id), ("lane_id", &lane_id)]);
        table.row(
            format!("{conversation_id}/{lane_id}"),
            vec![
                conversation_link(lane.conversation_id),
                lane_name(&lane.lane_class),
                html::text(lane.waiting),
                html::at(lane.until),
                html::text(&lane.reason),
                if session.operator.may_operate { html::word_link(&resume, "Resume…") } else { html::nothing() },
            ],
        );
    }
    table
}
