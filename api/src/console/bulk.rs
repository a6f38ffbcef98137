//! Requeue by a filter: a dry run that counts, then just those as a task.

use axum::{
    extract::State as Extract,
    response::{IntoResponse as _, Redirect, Response},
};
use shared::tasks::{self as shared_tasks, AsOf, Preview};

use super::{
    confirm::{Confirm, Field},
    facts::Facts,
    fields::query,
    guard::Form,
    html::{self, Markup},
    lists,
    session::Session,
    table::Table,
};
use crate::{
    AppState,
    admin::{
        lists::dead_filter,
        params::Params,
        scope::Operator,
        tasks::{self, Work},
    },
    problem::ApiError,
};

/// The fields of a filter.
const FILTERS: [&str; 8] = ["conversation_id", "kind", "cause", "errcode", "user_id", "text", "since", "until"];

pub(super) async fn ask(Extract(state): AppState, session: Session, mut params: Params) -> Result<Response, ApiError> {
    let given = params.given();
    // The list of the same filters has these too.
    params.raw("state");
    params.raw("cursor");
    let filter = dead_filter(&mut params);
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let preview = shared_tasks::preview_requeue(&mut tx, &filter, None).await?;
    let pairs: Vec<(&'static str, &str)> =
        FILTERS.into_iter().filter_map(|name| Some((name, given.get(name)?.as_str()))).collect();
    let back = query("/console/operations", pairs.iter().copied());
    let what = if filter.is_empty() { "All dead letters" } else { "The dead letters that the filter chooses" };
    let mut page = Confirm::new(&session, "dead", "Requeue by filter")
        .says(format!(
            "{what} come back to their places: {} in {}. Just these, as of this page; what dies from now on is not taken.",
            html::count(preview.back, "operation"),
            html::count(preview.conversations, "conversation"),
        ))
        .says("Within each lane their order is kept. What was delivered meanwhile stays ahead.")
        .shows(counts(&preview))
        .shows(first(&preview))
        .sends("/console/requeue", "Start")
        .with("as_of", preview.as_of.as_str())
        .asks(Field::text("rate", "At most so many a second", "empty: as fast as it goes"))
        .back_to(back);
    if preview.lanes_waiting > 0 {
        page = page.warns(format!(
            "Held or paused of their lanes: {}. What comes back there waits until it is resumed.",
            html::grouped(preview.lanes_waiting)
        ));
    }
    for (name, value) in pairs {
        page = page.with(name, value);
    }
    Ok(page.page())
}

fn counts(preview: &Preview) -> Markup {
    let mut facts = Facts::new("preview", "Dry run");
    facts.add("Come back", html::text(html::grouped(preview.back)));
    facts.add(
        "Along",
        html::text(format!("{} of them are edits and reactions of such a message", html::grouped(preview.along))),
    );
    facts.add("Conversations", html::text(html::grouped(preview.conversations)));
    facts.add("As of", html::at(preview.as_of.at()));
    for refused in &preview.refused {
        facts.add("Stay", html::text(format!("{}: {}", html::grouped(refused.count), refused.reason_in_words)));
    }
    facts.markup()
}

fn first(preview: &Preview) -> Markup {
    let mut table = Table::new("first", "The first of them", &["Operation", "Kind", "Place", "Code"]);
    for letter in &preview.first {
        table.row(
            letter.outbox_id,
            vec![
                lists::operation_link(letter.outbox_id),
                html::text(&letter.kind),
                html::text(letter.seq),
                html::code_or_dash(letter.errcode.as_ref()),
            ],
        );
    }
    if preview.first.is_empty() { html::nothing() } else { table.markup() }
}

pub(super) async fn start(
    Extract(state): AppState,
    operator: Operator,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let filter = dead_filter(&mut params);
    let as_of: Option<AsOf> = params.raw("as_of").and_then(|as_of| as_of.parse().ok());
    if as_of.is_none() {
        params.problem("as_of", "is needed: open the dry run again");
    }
    let rate = params.parsed("rate", "must be a number of operations a second");
    let reason = params.reason("reason", false);
    params.finish()?;
    let work = Work::Requeue { filter: &filter, as_of: as_of.as_ref(), rate };
    let task = tasks::begin(&state, &operator, work, reason.as_deref()).await?;
    Ok(Redirect::to(&format!("/console/tasks/{}?done=started", task.task_id)).into_response())
}
