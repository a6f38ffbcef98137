//! The operators' API: what is stuck, why, and the acts that mend it. References only: no text, key or SDP of anybody.
//!
//! All routes stand in one table, each with the scope that it asks for, so that none can be without.

use std::sync::Arc;

use axum::{
    Router,
    routing::{MethodRouter, get, post},
};

use crate::State;

pub(crate) mod acts;
pub(crate) mod audit;
pub(crate) mod lists;
pub(crate) mod one;
pub(crate) mod params;
pub(crate) mod pauses;
pub(crate) mod scope;
pub(crate) mod tasks;
pub(crate) mod timelines;

pub use scope::Scope;

/// A route of the operators' API.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path, with `{id}` where an id stands.
    pub path: &'static str,
    /// What it asks of a token.
    pub scope: Scope,
    handler: fn() -> MethodRouter<Arc<State>>,
}

const fn read(path: &'static str, handler: fn() -> MethodRouter<Arc<State>>) -> Route {
    Route { method: "GET", path, scope: Scope::Read, handler }
}

const fn act(path: &'static str, handler: fn() -> MethodRouter<Arc<State>>) -> Route {
    Route { method: "POST", path, scope: Scope::Operate, handler }
}

/// All routes of the operators' API.
pub const ROUTES: &[Route] = &[
    read("/admin/outbox", || get(lists::list)),
    read("/admin/outbox/groups", || get(lists::groups)),
    read("/admin/outbox/{id}", || get(one::show)),
    read("/admin/outbox/{id}/timeline", || get(timelines::operation)),
    act("/admin/outbox/requeue", || post(tasks::requeue)),
    act("/admin/outbox/discard", || post(acts::discard_many)),
    act("/admin/outbox/{id}/requeue", || post(acts::requeue_one)),
    act("/admin/outbox/{id}/discard", || post(acts::discard_one)),
    act("/admin/outbox/{id}/expire", || post(acts::expire_one)),
    act("/admin/outbox/{id}/complete", || post(acts::complete_one)),
    read("/admin/tasks", || get(tasks::list)),
    read("/admin/tasks/{id}", || get(tasks::show)),
    act("/admin/tasks/{id}/cancel", || post(tasks::cancel)),
    act("/admin/verify", || post(tasks::verify)),
    act("/admin/repair", || post(tasks::repair_all)),
    read("/admin/conversations/{id}/timeline", || get(timelines::conversation)),
    act("/admin/conversations/{id}/repair", || post(tasks::repair)),
    read("/admin/pauses", || get(pauses::list)),
    act("/admin/pauses", || post(pauses::pause)),
    act("/admin/resume", || post(pauses::resume)),
    read("/admin/audit", || get(audit::entries)),
    read("/admin/stats", || get(audit::stats)),
];

pub(crate) fn routes(state: &Arc<State>) -> Router<Arc<State>> {
    ROUTES.iter().fold(Router::new(), |router, route| {
        let guard = axum::middleware::from_fn_with_state((Arc::clone(state), route.scope), scope::guard);
        router.route(route.path, (route.handler)().route_layer(guard))
    })
}
