//! One conversation: its lanes, what waits, what is dead, and all that happened, by time.

use axum::{extract::State as Extract, response::Response};
use shared::{
    ids::ConversationId,
    outbox::{self, Cursor, DeadFilter, LiveFilter},
};

use super::{
    fields::query,
    html::{self, Markup, Tone},
    lists::{self, FEW},
    sections::Sections,
    session::Session,
    timeline, words,
};
use crate::{
    AppState,
    admin::{params::Params, tasks::known_conversation},
    extract::IdPath,
    problem::ApiError,
};

/// How many moments a page has.
const MOMENTS: i64 = 100;

pub(super) async fn page(
    Extract(state): AppState,
    session: Session,
    IdPath(id): IdPath<ConversationId>,
    mut params: Params,
) -> Result<Response, ApiError> {
    let note = words::note(&mut params);
    let before: Option<Cursor> = params.cursor();
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    known_conversation(&mut tx, id).await?;
    let held = outbox::held_lanes(&mut tx, Some(id), None, FEW).await?;
    let paused = outbox::paused_lanes(&mut tx, Some(id), None, FEW).await?;
    let live_filter = LiveFilter { conversation_id: Some(id), ..LiveFilter::default() };
    let live = outbox::live_operations(&mut tx, &live_filter, None, FEW).await?;
    let filter = DeadFilter { conversation_id: Some(id), ..DeadFilter::default() };
    let dead = outbox::dead_letters(&mut tx, &filter, None, FEW).await?;
    let happened = outbox::conversation_timeline(&mut tx, id, before, MOMENTS).await?;
    let here = id.to_string();
    let state = match () {
        () if !held.is_empty() => html::chip(Tone::Warn, "held"),
        () if !paused.is_empty() => html::chip(Tone::Warn, "paused"),
        () if !dead.is_empty() => html::chip(Tone::Bad, "has dead letters"),
        () if !live.is_empty() => html::chip(Tone::Busy, "something waits"),
        () => html::chip(Tone::Good, "nothing waits"),
    };
    let mut page = Sections::new(&session, "operations", format!("Conversation {id}"))
        .heading(Markup(format!("{state} Conversation {}", html::whole_id(id))))
        .note(note);
    if before.is_none() {
        page = page.live();
    }
    if session.operator.may_operate {
        let named = |path: &str| query(path, [("scope", "conversation"), ("conversation_id", here.as_str())]);
        let of_this = |path: &str| query(path, [("conversation_id", here.as_str())]);
        page = page.action(html::word_link(&named("/console/pause"), "Pause…"));
        if !held.is_empty() || !paused.is_empty() {
            page = page.action(html::word_link(&named("/console/resume"), "Resume…"));
        }
        if !dead.is_empty() {
            page = page.action(html::word_link(&of_this("/console/requeue"), "Requeue its dead letters…"));
        }
        page = page.action(html::word_link(&of_this("/console/verify"), "Verify…"));
    }
    let older = happened
        .next
        .map(|cursor| query(&format!("/console/conversations/{id}"), [("cursor", cursor.to_string().as_str())]));
    let caption = if before.is_some() { "What happened earlier" } else { "What happened, newest first" };
    let timeline = timeline::table(caption, &happened.moments).more(older);
    if before.is_some() {
        return Ok(page.section(timeline.markup()).page());
    }
    for (there, table) in [
        (!held.is_empty(), lists::held_table("Held lanes", &session, &held)),
        (!paused.is_empty(), lists::paused_table("Paused lanes", &session, &paused)),
        (!live.is_empty(), lists::live_table("Waiting or under way, oldest first", &live)),
        (!dead.is_empty(), lists::dead_table("Dead letters, newest first", &session, &dead)),
    ] {
        if there {
            page = page.section(table.markup());
        }
    }
    Ok(page.section(timeline.markup()).page())
}
