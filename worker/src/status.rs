//! Health and metrics of the worker.

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use shared::database;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until the token is cancelled.
pub(crate) async fn serve(listener: TcpListener, pool: PgPool, metrics: PrometheusHandle, stop: CancellationToken) {
    let connected = pool.clone();
    let scrape = async move || {
        database::report_connections(&connected);
        metrics.render()
    };
    let routes = Router::new()
        .route("/health/live", get(async || Json(json!({"status": "live"}))))
        .route("/health/ready", get(ready))
        .route("/metrics", get(scrape))
        .with_state(pool);
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%error, "health and metrics are no longer served");
    }
}

/// Ready when the database answers. Matrix is no part of it: the worker waits for it by itself.
async fn ready(State(pool): State<PgPool>) -> (StatusCode, Json<Value>) {
    match sqlx::query!("select conversation_id from lanes limit 0").fetch_optional(&pool).await {
        Ok(_) => (StatusCode::OK, Json(json!({"status": "ready"}))),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "database unavailable"})))
        }
    }
}
