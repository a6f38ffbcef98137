//! Health, metrics, and the measuring of requests.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::{MatchedPath, Request, State as Extract},
    middleware::Next,
    response::Response,
    routing::get,
};
use serde_json::{Value, json};
use shared::{database, metric};

use crate::{AppState, State, problem::ApiError, trace};

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics_text))
}

async fn live() -> Json<Value> {
    Json(json!({"status": "live"}))
}

/// Ready when the database answers. Matrix is no part of it: with the homeserver down every request still succeeds.
async fn ready(Extract(state): AppState) -> Result<Json<Value>, ApiError> {
    sqlx::query!("select conversation_id from conversations limit 0").fetch_optional(&state.pool).await?;
    Ok(Json(json!({"status": "ready"})))
}

async fn metrics_text(Extract(state): AppState) -> String {
    database::report_connections(&state.pool);
    state.metrics.render()
}

/// Counts, times and traces requests by route, never by id.
pub(crate) async fn measure(matched: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = matched.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().clone();
    let response = trace::follow(&route, request, next).await;
    metric::HTTP_REQUESTS.with([&route, method.as_str(), response.status().as_str()]).increment(1);
    metric::HTTP_REQUEST_DURATION.with([&route]).record(began.elapsed().as_secs_f64());
    response
}
