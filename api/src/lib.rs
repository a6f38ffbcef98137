//! The REST and WebSocket API: it writes a message and its outbox row in one transaction, answers after the commit, and
//! never talks to Matrix.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::DefaultBodyLimit, http::StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;
use shared::{
    config::{CallLimits, IceConfig, MatrixVoipConfig, WebSocketConfig, programs::ApiSettings},
    database::{self, Limits},
    seal::KeyRing,
    token::Tokens,
    wake::{Channel, Wake, WakeListener},
};
use sqlx::PgPool;
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};

pub mod admin;
mod auth;
mod calls;
pub mod console;
mod content;
mod conversations;
mod extract;
mod health;
mod messages;
mod preferences;
mod problem;
mod reactions;
mod request_limits;
mod trace;
mod transaction;
mod ws;

use console::session::{FormKey, SIGN_INS_PER_SECOND};
use request_limits::RequestLimits;
use ws::hub::Hub;

/// A request that takes longer is told to come back: its connection may hang on a database that will not answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How many requests may wait for their delivery at once.
const MAX_WAITING: usize = 64;

/// Connections to clients may hold one of so many of the database's: requests come first.
const READING_SHARE: usize = 3;

/// The largest body of any request, and the largest frame of a client. Texts have their own, smaller limit.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What handlers work with.
#[derive(Debug)]
struct State {
    pool: PgPool,
    keys: KeyRing,
    tokens: Tokens,
    matrix_enabled: bool,
    voip: MatrixVoipConfig,
    ice: IceConfig,
    call_limits: CallLimits,
    request_limits: RequestLimits,
    /// Of attempts to sign in at the console, by address.
    sign_ins: RequestLimits<IpAddr>,
    /// Signs the console's forms.
    forms: FormKey,
    lane_limit: i32,
    /// Wakes workers.
    wake: Wake,
    /// Wakes those who tell clients: all API processes, and at once the task of this one.
    tell: Wake,
    look: Arc<Notify>,
    metrics: PrometheusHandle,
    /// Permits of requests that wait for a delivery.
    waiting: Semaphore,
    websocket: WebSocketConfig,
    hub: Arc<Hub>,
    /// Permits of connections that read the event log.
    reading: Semaphore,
    /// The tasks of connections.
    sockets: TaskTracker,
    stop: CancellationToken,
}

impl State {
    /// To be called after each commit that clients are told of. `to_send`: a worker has something to do for it too.
    fn committed(&self, to_send: bool) {
        self.look.notify_one();
        self.tell.committed();
        if to_send {
            self.wake.committed();
        }
    }
}

type AppState = axum::extract::State<Arc<State>>;

/// The API, ready to serve.
#[derive(Debug)]
pub struct App {
    state: Arc<State>,
}

impl App {
    /// Sets up the pool (which connects when first used) and the tasks that wake others and follow the event log, which end
    /// with the token.
    pub fn new(config: ApiSettings, metrics: PrometheusHandle, stop: CancellationToken) -> anyhow::Result<Self> {
        let pool = database::pool(&config.database, "matrix-outbox api", Limits::REQUESTS)?;
        let wake = |channel| {
            if config.api.notify { Wake::start(channel, pool.clone(), stop.clone()) } else { Wake::silent() }
        };
        let (wake, tell) = (wake(Channel::Outbox), wake(Channel::Events));
        let look = Arc::new(Notify::new());
        if config.api.notify {
            WakeListener::start(Channel::Events, pool.clone(), Arc::clone(&look), stop.clone());
        }
        let websocket = config.websocket;
        let hub = Arc::new(Hub::new(websocket.connections, websocket.connections_per_user));
        let following = ws::follow::run(pool.clone(), Arc::clone(&hub), Arc::clone(&look), websocket.poll);
        tokio::spawn(stop.clone().run_until_cancelled_owned(following));
        let connections = usize::try_from(config.database.max_connections).unwrap_or(usize::MAX);
        let state = State {
            pool,
            keys: config.content_keys,
            tokens: Tokens::new(&config.jwt_secret),
            matrix_enabled: config.matrix_enabled,
            voip: config.voip,
            ice: config.ice,
            call_limits: config.call_limits,
            request_limits: RequestLimits::new(config.api.requests_per_second),
            sign_ins: RequestLimits::new(Some(SIGN_INS_PER_SECOND)),
            forms: FormKey::new(&config.jwt_secret)?,
            lane_limit: config.api.lane_limit,
            wake,
            tell,
            look,
            metrics,
            waiting: Semaphore::new(MAX_WAITING),
            websocket,
            hub,
            reading: Semaphore::new((connections / READING_SHARE).max(1)),
            sockets: TaskTracker::new(),
            stop,
        };
        Ok(Self { state: Arc::new(state) })
    }

    /// Answers requests until the token is cancelled, then those that are under way.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
        let (pool, sockets) = (self.state.pool.clone(), self.state.sockets.clone());
        let service = self.router().into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await?;
        sockets.close();
        let _ = timeout(ws::GOODBYE_WITHIN, sockets.wait()).await;
        pool.close().await;
        Ok(())
    }

    fn router(self) -> Router {
        Router::new()
            .merge(conversations::routes())
            .merge(messages::routes())
            .merge(reactions::routes())
            .merge(calls::routes())
            .merge(ws::routes())
            .merge(admin::routes(&self.state))
            .merge(console::routes(&self.state))
            .merge(health::routes())
            .fallback(problem::no_such_route)
            .method_not_allowed_fallback(problem::method_not_allowed)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&self.state), request_limits::limit))
            // The last is outermost: a panic and a timeout become problems, and whatever came of it is counted.
            .layer(CatchPanicLayer::custom(problem::panicked))
            .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_TIMEOUT))
            .layer(axum::middleware::from_fn(problem::render_timeouts))
            .layer(axum::middleware::from_fn(health::measure))
            .with_state(self.state)
    }
}
