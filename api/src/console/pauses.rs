//! Pauses and holds: what stands still, and its two forms.

use axum::{
    extract::State as Extract,
    response::{IntoResponse as _, Redirect, Response},
};
use shared::{
    operator::Scope,
    outbox::{self, LaneClass, PauseOfClass},
};

use super::{
    confirm::{Confirm, Field},
    fields::query,
    guard::Form,
    html::{self, Markup, Tone},
    lists::{self, FEW},
    repairs,
    sections::Sections,
    session::Session,
    table::Table,
    words,
};
use crate::{
    AppState,
    admin::{
        params::Params,
        pauses::{self, Until},
        scope::Operator,
    },
    problem::ApiError,
};

pub(super) async fn page(Extract(state): AppState, session: Session, mut params: Params) -> Result<Response, ApiError> {
    let note = words::note(&mut params);
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let pauses = outbox::pauses(&mut tx).await?;
    let timed = outbox::paused_lanes(&mut tx, None, None, FEW + 1).await?;
    let held = outbox::held_lanes(&mut tx, None, None, FEW + 1).await?;
    let more = |there: usize, state: &str| {
        let more = i64::try_from(there).is_ok_and(|there| there > FEW);
        more.then(|| query("/console/operations", [("state", state)]))
    };
    let few = usize::try_from(FEW).unwrap_or(usize::MAX);
    let mut page = Sections::new(&session, "pauses", "Pauses and holds").note(note).live();
    if session.operator.may_operate {
        page = page
            .action(html::word_link("/console/pause?scope=all", "Pause everything…"))
            .action(html::word_link("/console/pause?scope=class&class=chat", "Pause chat…"))
            .action(html::word_link("/console/pause?scope=class&class=call", "Pause calls…"))
            .action(html::word_link("/console/resume?scope=held", "Resume all held lanes…"));
    }
    let held_shown = &held[..held.len().min(few)];
    for link in repairs::links_to_all(&session, held_shown) {
        page = page.action(link);
    }
    let paused_shown = &timed[..timed.len().min(few)];
    Ok(page
        .section(pauses_table(&session, &pauses).markup())
        .section(reasons(held_shown, session.operator.may_operate))
        .section(
            lists::held_table("Held lanes: each waits for somebody", &session, held_shown)
                .more(more(held.len(), "held"))
                .markup(),
        )
        .section(
            lists::paused_table("Lanes that are paused until a time", &session, paused_shown)
                .more(more(timed.len(), "paused"))
                .markup(),
        )
        .page())
}

/// Each reason why lanes are held, with the way to let all of those go on.
fn reasons(held: &[outbox::HeldLane], may_operate: bool) -> Markup {
    let mut reasons: Vec<&str> = held.iter().map(|lane| lane.reason.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    if reasons.len() < 2 && held.len() < 2 || !may_operate {
        return html::nothing();
    }
    let mut table = Table::new("held-reasons", "Why lanes are held", &["Why", ""]);
    for reason in reasons {
        let resume = query("/console/resume", [("scope", "held"), ("because", reason)]);
        table.row(reason, vec![html::text(reason), html::word_link(&resume, "Resume all of these…")]);
    }
    table.markup()
}

pub(super) fn pauses_table(session: &Session, pauses: &[PauseOfClass]) -> Table {
    let heads = &["Paused", "Until", "Since", "By", "Why", ""];
    let mut table = Table::new("pauses", "Pauses of everything and of classes", heads).or("Nothing is paused.");
    for pause in pauses {
        let scope = if pause.scope == "all" { "everything" } else { pause.scope.as_str() };
        let resume = match pause.scope.as_str() {
            "all" => query("/console/resume", [("scope", "all")]),
            class => query("/console/resume", [("scope", "class"), ("class", class)]),
        };
        table.row(
            &pause.scope,
            vec![
                html::chip(Tone::Warn, scope),
                html::at_or(pause.until, "somebody resumes it"),
                html::at(pause.paused_at),
                html::id(&pause.paused_by),
                html::text(&pause.reason),
                if session.operator.may_operate { html::word_link(&resume, "Resume…") } else { html::nothing() },
            ],
        );
    }
    table
}

/// What is paused or resumed, as a form names it. None is what was held.
fn scope_of(params: &mut Params) -> Result<Option<Scope>, ApiError> {
    let named = params.one_of("scope", &["all", "class", "conversation", "lane", "held"]);
    let class = params.one_of("class", &["call", "chat"]);
    let (conversation_id, lane_id) = (params.id("conversation_id"), params.id("lane_id"));
    let class = class.map(|class| if class == "call" { LaneClass::Call } else { LaneClass::Chat });
    let missing = |field: &str| ApiError::invalid(field, "is needed");
    Ok(match named {
        Some("all") => Some(Scope::All),
        Some("class") => Some(Scope::Class(class.ok_or_else(|| missing("class"))?)),
        Some("conversation") => Some(Scope::Conversation(conversation_id.ok_or_else(|| missing("conversation_id"))?)),
        Some("lane") => Some(Scope::Lane(
            conversation_id.ok_or_else(|| missing("conversation_id"))?,
            lane_id.ok_or_else(|| missing("lane_id"))?,
        )),
        Some("held") => None,
        _ => return Err(missing("scope")),
    })
}

fn in_words(scope: Scope) -> String {
    match scope {
        Scope::All => "everything".to_owned(),
        Scope::Class(LaneClass::Call) => "all calls".to_owned(),
        Scope::Class(LaneClass::Chat) => "all chat".to_owned(),
        Scope::Conversation(id) => format!("conversation {id}"),
        Scope::Lane(conversation_id, lane_id) if lane_id == conversation_id.into() => {
            format!("the chat of conversation {conversation_id}")
        }
        Scope::Lane(conversation_id, lane_id) => format!("the call {lane_id} of conversation {conversation_id}"),
    }
}

/// The hidden fields that name a scope.
fn named(mut page: Confirm, scope: Scope) -> Confirm {
    page = match scope {
        Scope::All => page.with("scope", "all"),
        Scope::Class(class) => page.with("scope", "class").with("class", class.as_str()),
        Scope::Conversation(id) => page.with("scope", "conversation").with("conversation_id", id),
        Scope::Lane(id, lane) => page.with("scope", "lane").with("conversation_id", id).with("lane_id", lane),
    };
    page.back_to(page_of(scope))
}

/// Where a scope is shown.
fn page_of(scope: Scope) -> String {
    match scope {
        Scope::All | Scope::Class(_) => "/console/pauses".to_owned(),
        Scope::Conversation(id) | Scope::Lane(id, _) => format!("/console/conversations/{id}"),
    }
}

pub(super) async fn ask_pause(session: Session, mut params: Params) -> Result<Response, ApiError> {
    let scope = scope_of(&mut params)?.ok_or_else(|| ApiError::invalid("scope", "cannot be paused"))?;
    params.finish()?;
    let what = in_words(scope);
    let page = Confirm::new(&session, "pauses", format!("Pause {what}"))
        .says(format!(
            "Nothing of {what} is sent to Matrix any more. What is on the wire is finished; no attempt is used up."
        ))
        .says("Clients notice nothing: what they write is accepted and queues up, in order.")
        .says("A pause with an end ends by itself. One without goes on until somebody resumes it.")
        .sends("/console/pause", "Pause")
        .asks(Field::text("for", "For how long", "30m or 2h; empty: until somebody resumes it"))
        .asks(Field::text("until", "Or until when (UTC)", "2026-01-31T06:00"))
        .must_say_why();
    Ok(named(page, scope).page())
}

pub(super) async fn pause(
    Extract(state): AppState,
    operator: Operator,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let scope = scope_of(&mut params)?.ok_or_else(|| ApiError::invalid("scope", "cannot be paused"))?;
    let (duration, time) = (params.duration("for"), params.time("until"));
    if duration.is_some() && time.is_some() {
        params.problem("until", "does not go with a duration: give one of them");
    }
    let reason = params.reason("reason", true);
    params.finish()?;
    let until = duration.map(Until::For).or(time.map(Until::Time)).unwrap_or(Until::Resumed);
    pauses::pause_scope(&state, &operator.name(), scope, until, &reason.unwrap_or_default()).await?;
    Ok(Redirect::to(&query(&page_of(scope), [("done", "paused")])).into_response())
}

pub(super) async fn ask_resume(session: Session, mut params: Params) -> Result<Response, ApiError> {
    let scope = scope_of(&mut params)?;
    let because = params.raw("because");
    params.finish()?;
    let again = "If what they were held for is not mended, they are held again.";
    let page = match (scope, because) {
        (Some(scope), _) => {
            let what = in_words(scope);
            let page = Confirm::new(&session, "pauses", format!("Resume {what}"))
                .says(format!("Pauses and holds of {what} end, whoever set them. What waits is sent in its order."))
                .says("If the room still does not take our messages, the lane is held again.");
            named(page, scope)
        }
        (None, Some(because)) => Confirm::new(&session, "pauses", "Resume lanes held for one reason")
            .says(format!("Every lane that is held for “{because}” goes on. {again}"))
            .with("scope", "held")
            .with("because", because)
            .back_to("/console/pauses"),
        (None, None) => Confirm::new(&session, "pauses", "Resume all held lanes")
            .says(format!("Every lane that is held, for whatever reason, goes on. {again}"))
            .with("scope", "held")
            .back_to("/console/pauses"),
    };
    Ok(page.sends("/console/resume", "Resume").page())
}

pub(super) async fn resume(
    Extract(state): AppState,
    operator: Operator,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let scope = scope_of(&mut params)?;
    let because = params.raw("because");
    let reason = params.reason("reason", false);
    params.finish()?;
    let (by, reason) = (operator.name(), reason.as_deref());
    let (ended, complete) = if let Some(scope) = scope {
        (pauses::resume_scope(&state, &by, scope, reason).await?.ended, true)
    } else {
        let done = pauses::resume_held(&state, &by, because.as_deref(), reason).await?;
        (done.resumed.ended, done.complete)
    };
    let done = match (ended, complete) {
        (0, true) => "nothing_resumed",
        (_, true) => "resumed",
        (_, false) => "more_held",
    };
    let to = scope.map_or_else(|| "/console/pauses".to_owned(), page_of);
    Ok(Redirect::to(&query(&to, [("done", done), ("n", &ended.to_string())])).into_response())
}
