//! One conversation: its lanes, what waits, what is dead, and what operators did.

use axum::{extract::State as Extract, response::Response};
use shared::{
    audit,
    ids::ConversationId,
    outbox::{self, DeadFilter},
};

use super::{
    audit as trail,
    fields::query,
    html::{self, Markup},
    lists::{self, FEW},
    sections::Sections,
    session::Session,
    words,
};
use crate::{AppState, admin::params::Params, extract::IdPath, problem::ApiError};

pub(super) async fn page(
    Extract(state): AppState,
    session: Session,
    IdPath(id): IdPath<ConversationId>,
    mut params: Params,
) -> Result<Response, ApiError> {
    let note = words::note(&mut params);
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    if !outbox::is_conversation(&mut tx, id).await? {
        return Err(ApiError::NotFound("conversation"));
    }
    let held = outbox::held_lanes(&mut tx, Some(id), None, FEW).await?;
    let paused = outbox::paused_lanes(&mut tx, Some(id), None, FEW).await?;
    let live = outbox::live_operations(&mut tx, Some(id), None, None, FEW).await?;
    let filter = DeadFilter { conversation_id: Some(id), ..DeadFilter::default() };
    let dead = outbox::dead_letters(&mut tx, &filter, None, FEW).await?;
    let acts = audit::entries(&mut tx, Some(id), None, FEW).await?;
    let mut page = Sections::new(&session, "operations", format!("Conversation {id}"))
        .heading(Markup(format!("Conversation {}", html::whole_id(id).0)))
        .note(note)
        .live();
    if session.operator.may_operate {
        let named = |path: &str| query(path, [("scope", "conversation"), ("conversation_id", &id.to_string())]);
        page = page.action(html::word_link(&named("/console/pause"), "Pause…"));
        if !held.is_empty() || !paused.is_empty() {
            page = page.action(html::word_link(&named("/console/resume"), "Resume…"));
        }
    }
    Ok(page
        .section(lists::held_table("Held lanes", &held).markup())
        .section(lists::paused_table("Paused lanes", &paused).markup())
        .section(lists::live_table("Waiting or under way, oldest first", &live).markup())
        .section(lists::dead_table("Dead letters, newest first", &dead).markup())
        .section(trail::table("What operators did here", &acts).markup())
        .page())
}
