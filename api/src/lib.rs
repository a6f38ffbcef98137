//! The REST API: it writes a message and its outbox row in one transaction, answers after the commit, and never talks to
//! Matrix.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::DefaultBodyLimit, http::StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;
use shared::{
    config::programs::ApiSettings,
    database::{self, Limits},
    outbox::Wake,
    seal::KeyRing,
    token::Tokens,
};
use sqlx::PgPool;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};

mod auth;
mod content;
mod conversations;
mod extract;
mod health;
mod messages;
mod preferences;
mod problem;
mod reactions;
mod transaction;

/// A request that takes longer is told to come back: its connection may hang on a database that will not answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How many requests may wait for their delivery at once.
const MAX_WAITING: usize = 64;

/// The largest body of any request. Texts have their own, smaller limit.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What handlers work with.
#[derive(Debug)]
struct State {
    pool: PgPool,
    keys: KeyRing,
    tokens: Tokens,
    matrix_enabled: bool,
    lane_limit: i32,
    wake: Wake,
    metrics: PrometheusHandle,
    /// Permits of requests that wait for a delivery.
    waiting: Semaphore,
}

type AppState = axum::extract::State<Arc<State>>;

/// The API, ready to serve.
#[derive(Debug)]
pub struct App {
    state: Arc<State>,
}

impl App {
    /// Sets up the pool (which connects when first used) and the task that wakes workers, which ends with the token.
    pub fn new(config: ApiSettings, metrics: PrometheusHandle, stop: CancellationToken) -> anyhow::Result<Self> {
        let pool = database::pool(&config.database, "matrix-outbox api", Limits::REQUESTS)?;
        let wake = if config.api.notify { Wake::start(pool.clone(), stop) } else { Wake::silent() };
        let state = State {
            pool,
            keys: config.content_keys,
            tokens: Tokens::new(&config.jwt_secret),
            matrix_enabled: config.matrix_enabled,
            lane_limit: config.api.lane_limit,
            wake,
            metrics,
            waiting: Semaphore::new(MAX_WAITING),
        };
        Ok(Self { state: Arc::new(state) })
    }

    /// Answers requests until the token is cancelled, then those that are under way.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
        let pool = self.state.pool.clone();
        axum::serve(listener, self.router()).with_graceful_shutdown(stop.cancelled_owned()).await?;
        pool.close().await;
        Ok(())
    }

    fn router(self) -> Router {
        Router::new()
            .merge(conversations::routes())
            .merge(messages::routes())
            .merge(reactions::routes())
            .merge(health::routes())
            .fallback(problem::no_such_route)
            .method_not_allowed_fallback(problem::method_not_allowed)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            // The last is outermost: a panic and a timeout become problems, and whatever came of it is counted.
            .layer(CatchPanicLayer::custom(problem::panicked))
            .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_TIMEOUT))
            .layer(axum::middleware::from_fn(problem::render_timeouts))
            .layer(axum::middleware::from_fn(health::measure))
            .with_state(self.state)
    }
}
