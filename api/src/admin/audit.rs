//! `GET /admin/audit`: what operators did. `GET /admin/stats`: the overview.

use axum::{Json, extract::State as Extract};
use serde::Serialize;
use shared::{
    audit::{self, AuditFilter, Entry, Verb},
    outbox::{self, Stats},
    tasks::{self, Task},
    workers::{self, WorkerSeen},
};
use sqlx::PgConnection;

use super::{
    lists::{DEFAULT_LIMIT, MAX_LIMIT, Page},
    params::Params,
};
use crate::{AppState, problem::ApiError};

/// How many tasks that run an overview has.
const SHOWN_TASKS: i64 = 10;

/// Which acts, as a query says it.
pub(crate) fn audit_filter(params: &mut Params) -> AuditFilter {
    let must = "must be requeue, discard, expire, complete, pause, resume, verify, repair or cancel";
    AuditFilter {
        conversation_id: params.id("conversation_id"),
        verb: params.parsed::<Verb>("verb", must),
        by: params.text("by"),
        task_id: params.id("task_id"),
        since: params.time("since"),
        until: params.time("until"),
    }
}

pub(super) async fn entries(Extract(state): AppState, mut params: Params) -> Result<Json<Page<Entry>>, ApiError> {
    let filter = audit_filter(&mut params);
    let (limit, before) = (params.limit(DEFAULT_LIMIT, MAX_LIMIT), params.cursor());
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let entries = audit::entries(&mut tx, &filter, before, limit + 1).await?;
    Ok(Json(Page::of(entries, limit, |entry| entry.cursor().to_string())))
}

/// The overview.
#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    #[serde(flatten)]
    pub(crate) stats: Stats,
    /// Operations delivered in the last minute, by all workers.
    pub(crate) delivered_per_minute: f64,
    pub(crate) workers: Vec<WorkerSeen>,
    /// The tasks that run.
    pub(crate) tasks: Vec<Task>,
}

/// Reads the overview. In a transaction of its own.
pub(crate) async fn overview(conn: &mut PgConnection) -> Result<Overview, sqlx::Error> {
    let stats = outbox::stats(&mut *conn).await?;
    let workers = workers::seen(&mut *conn).await?;
    let tasks = tasks::running(conn, SHOWN_TASKS).await?;
    let delivered_per_minute = workers.iter().map(|worker| worker.delivered_per_minute).sum();
    Ok(Overview { stats, delivered_per_minute, workers, tasks })
}

pub(super) async fn stats(Extract(state): AppState, params: Params) -> Result<Json<Overview>, ApiError> {
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    Ok(Json(overview(&mut tx).await?))
}
