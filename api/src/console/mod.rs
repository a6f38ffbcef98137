//! The console: pages for operators, rendered here, that need nothing from elsewhere and no script.
//!
//! All pages stand in one table, each with the scope that it asks for. What an operator may see is what the operators' API
//! shows: references, never a text, key or SDP. Each form carries a token of its session; see [`session`].

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderValue, header},
    response::{Redirect, Response},
    routing::{MethodRouter, get, post},
};

use crate::{State, admin::Scope, problem::ApiError};

mod assets;
mod audit;
mod bulk;
mod confirm;
mod conversation;
mod dead;
mod facts;
mod fields;
mod guard;
mod health;
mod html;
mod lists;
mod operation;
mod overview;
mod pauses;
mod repairs;
mod search;
mod sections;
pub(crate) mod session;
mod shell;
mod table;
mod tasks;
mod timeline;
mod words;

/// A page of the console.
#[derive(Debug)]
pub struct Page {
    /// The method.
    pub method: &'static str,
    /// The path, with `{id}` where an id stands.
    pub path: &'static str,
    /// What it asks of a session; none where anybody may come.
    pub scope: Option<Scope>,
    handler: fn() -> MethodRouter<Arc<State>>,
}

const fn open(method: &'static str, path: &'static str, handler: fn() -> MethodRouter<Arc<State>>) -> Page {
    Page { method, path, scope: None, handler }
}

const fn look(path: &'static str, handler: fn() -> MethodRouter<Arc<State>>) -> Page {
    Page { method: "GET", path, scope: Some(Scope::Read), handler }
}

/// The page that says what an act will do, and the act.
const fn ask(path: &'static str, handler: fn() -> MethodRouter<Arc<State>>) -> Page {
    Page { method: "GET", path, scope: Some(Scope::Operate), handler }
}

const fn act(path: &'static str, handler: fn() -> MethodRouter<Arc<State>>) -> Page {
    Page { method: "POST", path, scope: Some(Scope::Operate), handler }
}

/// All pages of the console.
pub const PAGES: &[Page] = &[
    open("GET", "/console/sign-in", || get(session::form)),
    open("POST", "/console/sign-in", || post(session::sign_in)),
    open("GET", "/console/assets/{name}", || get(assets::asset)),
    open("GET", "/console/", || get(async || Redirect::permanent("/console"))),
    Page { method: "POST", path: "/console/sign-out", scope: Some(Scope::Read), handler: || post(session::sign_out) },
    look("/console", || get(overview::page)),
    look("/console/help", || get(shell::help)),
    look("/console/search", || get(search::search)),
    look("/console/dead", || get(dead::page)),
    look("/console/operations", || get(lists::page)),
    look("/console/operations/{id}", || get(operation::page)),
    ask("/console/operations/{id}/requeue", || get(operation::ask_requeue)),
    act("/console/operations/{id}/requeue", || post(operation::requeue)),
    ask("/console/operations/{id}/discard", || get(operation::ask_discard)),
    act("/console/operations/{id}/discard", || post(operation::discard)),
    ask("/console/operations/{id}/expire", || get(operation::ask_expire)),
    act("/console/operations/{id}/expire", || post(operation::expire)),
    ask("/console/operations/{id}/complete", || get(operation::ask_complete)),
    act("/console/operations/{id}/complete", || post(operation::complete)),
    look("/console/conversations/{id}", || get(conversation::page)),
    ask("/console/conversations/{id}/repair", || get(repairs::ask)),
    act("/console/conversations/{id}/repair", || post(repairs::repair)),
    ask("/console/repair", || get(repairs::ask_all)),
    act("/console/repair", || post(repairs::repair_all)),
    ask("/console/requeue", || get(bulk::ask)),
    act("/console/requeue", || post(bulk::start)),
    look("/console/tasks", || get(tasks::list)),
    look("/console/tasks/{id}", || get(tasks::page)),
    ask("/console/tasks/{id}/cancel", || get(tasks::ask_cancel)),
    act("/console/tasks/{id}/cancel", || post(tasks::cancel)),
    ask("/console/verify", || get(tasks::ask_verify)),
    act("/console/verify", || post(tasks::verify)),
    look("/console/pauses", || get(pauses::page)),
    ask("/console/pause", || get(pauses::ask_pause)),
    act("/console/pause", || post(pauses::pause)),
    ask("/console/resume", || get(pauses::ask_resume)),
    act("/console/resume", || post(pauses::resume)),
    look("/console/audit", || get(audit::page)),
    look("/console/{*rest}", || get(async || ApiError::NotFound("page"))),
];

pub(crate) fn routes(state: &Arc<State>) -> Router<Arc<State>> {
    PAGES
        .iter()
        .fold(Router::new(), |router, page| {
            let handler = (page.handler)();
            let guarded = match page.scope {
                Some(scope) => {
                    handler.route_layer(axum::middleware::from_fn_with_state((Arc::clone(state), scope), guard::guard))
                }
                None => handler.route_layer(axum::middleware::from_fn(guard::open)),
            };
            router.route(page.path, guarded)
        })
        .route_layer(axum::middleware::map_response(with_headers))
}

/// Nothing comes from elsewhere, nothing is inline, nobody frames it, and no page stays in a cache.
const HEADERS: [(header::HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

async fn with_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        // What is named by its content may be kept.
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
