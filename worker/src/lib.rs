//! The worker: it drains the outbox to Matrix and writes event ids back.
//!
//! ```text
//!   coordinator ─claims─▶ backend ─▶ apalis ─▶ deliver ─▶ room, prepare, homeserver, verdict ─▶ coordinator ─settles
//! ```

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use apalis::layers::WorkerBuilderExt as _;
use apalis_core::{
    monitor::Monitor,
    task::data::Data,
    worker::{builder::WorkerBuilder, ext::parallelize::ParallelizeExt as _},
};
use metrics_exporter_prometheus::PrometheusHandle;
use shared::{
    config::{DeliveryConfig, MatrixConfig, programs::WorkerSettings},
    database::{self, Limits},
    ids::WorkerId,
    metric,
    seal::KeyRing,
    wake::{Channel, Wake, WakeListener},
};
use sqlx::PgPool;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

mod backend;
mod breaker;
mod compose;
mod coordinator;
mod deliver;
pub mod doctor;
mod errands;
mod gauges;
mod heartbeat;
mod homeserver;
mod lookup;
mod maintenance;
mod members;
mod prepare;
mod repair;
mod room;
mod signalling;
mod status;
mod sync;
mod tasks;
mod turn;
mod verdict;
mod verify;

use backend::Batches;
use breaker::Breaker;
use coordinator::{Batch, Coordinator, Identity, Pace};
use deliver::Deliverer;
use heartbeat::{Delivering, Tally};
use homeserver::{Failure, Homeserver, Whoami};
use room::Rooms;

/// How long connections may take to say goodbye.
const POOL_CLOSES_WITHIN: Duration = Duration::from_secs(1);

/// How long it may take to say that this worker has ended.
const LEAVES_WITHIN: Duration = Duration::from_secs(1);

/// How long the sync may take to end.
const SYNC_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// How long the worker waits between questions to a homeserver that does not answer at start.
const WHOAMI_PAUSE: Duration = Duration::from_secs(1);

/// The worker, listening for scrapes and ready to run.
#[derive(Debug)]
pub struct Worker {
    config: WorkerSettings,
    pool: PgPool,
    listener: TcpListener,
    metrics: PrometheusHandle,
}

impl Worker {
    /// Sets up the pool (which connects when first used) and the listener of metrics and health.
    pub async fn bind(config: WorkerSettings, metrics: PrometheusHandle) -> anyhow::Result<Self> {
        // The process' TLS provider; a second worker in one process (tests) finds it set.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pool = database::pool(&config.database, "matrix-outbox worker", Limits::WORKERS)?;
        let listener = TcpListener::bind(config.delivery.listen).await.context("cannot listen for metrics")?;
        Ok(Self { config, pool, listener, metrics })
    }

    /// Where metrics and health are served.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Works until the token is cancelled; then finishes or hands back what is under way.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let worker_id = WorkerId::generate();
        tracing::info!(worker.id = %worker_id, listen = %self.address()?, "worker starts");
        let served = CancellationToken::new();
        let status = tokio::spawn(status::serve(self.listener, self.pool.clone(), self.metrics, served.clone()));
        let signals = Signals::start(&self.pool, self.config.delivery.notify, &stop);
        let retention = self.config.delivery.events_retention;
        tokio::spawn(stop.clone().run_until_cancelled_owned(maintenance::run(
            self.pool.clone(),
            retention,
            signals.clone(),
        )));
        let watch = gauges::Watch {
            dedupe_window: self.config.delivery.dedupe_window,
            syncs: self.config.matrix.as_ref().is_some_and(|matrix| matrix.sync.enabled),
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(gauges::run(self.pool.clone(), watch)));
        tokio::spawn(stop.clone().run_until_cancelled_owned(tasks::run(self.pool.clone(), signals.clone())));
        let ended = if let Some(matrix) = self.config.matrix {
            let (delivery, keys) = (self.config.delivery, self.config.content_keys);
            deliver_until(self.pool.clone(), delivery, keys, &matrix, worker_id, signals, stop).await
        } else {
            tracing::info!("Matrix is not enabled: nothing is claimed");
            // There is none to be refused.
            metric::TOKEN_ACCEPTED.set_bool(true);
            stop.run_until_cancelled(heartbeat::run(self.pool.clone(), worker_id, None)).await;
            Ok(())
        };
        let _ = timeout(LEAVES_WITHIN, heartbeat::leave(&self.pool, worker_id)).await;
        served.cancel();
        let _ = status.await;
        // A link that does not answer must not keep the process.
        let _ = timeout(POOL_CLOSES_WITHIN, self.pool.close()).await;
        tracing::info!("worker stopped");
        ended
    }
}

/// Whom to tell what, within the process and beyond it.
#[derive(Debug, Clone)]
struct Signals {
    /// There is something to claim.
    look: Arc<Notify>,
    /// Something was committed that clients are told of.
    tell: Wake,
}

impl Signals {
    fn start(pool: &PgPool, notify: bool, stop: &CancellationToken) -> Self {
        let tell = if notify { Wake::start(Channel::Events, pool.clone(), stop.clone()) } else { Wake::silent() };
        Self { look: Arc::new(Notify::new()), tell }
    }
}

async fn deliver_until(
    pool: PgPool,
    config: DeliveryConfig,
    keys: KeyRing,
    matrix: &MatrixConfig,
    worker_id: WorkerId,
    signals: Signals,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let breaker = Arc::new(Breaker::new(config.slots));
    let homeserver = Homeserver::new(matrix, config.http_timeout, Arc::clone(&breaker)).await?;
    let Some(device) = stop.run_until_cancelled(identify(&homeserver, matrix)).await.transpose()? else {
        return Ok(());
    };
    if !device.is_empty()
        && let Err(failure) = homeserver.name_device(&device, &matrix.device_name).await
    {
        tracing::debug!(error = %failure, "the device keeps its name");
    }
    tracing::info!(
        homeserver = %matrix.homeserver_url,
        sender = %matrix.service_user,
        "Matrix client initialized"
    );
    let asked = stop.clone();
    let Signals { look, tell } = signals;
    WakeListener::start(Channel::Outbox, pool.clone(), Arc::clone(&look), stop.clone());
    let pace = Arc::new(Pace::default());
    let tally = Arc::new(Tally::default());
    let rooms = Arc::new(Rooms::new(pool.clone(), homeserver.clone()));
    let syncing = matrix.sync.enabled.then(|| {
        let sync = sync::Sync {
            pool: pool.clone(),
            keys: keys.clone(),
            homeserver: homeserver.clone(),
            rooms: Arc::clone(&rooms),
            config: matrix.sync.clone(),
            calls: matrix.voip.enabled,
            worker_id,
            tell: tell.clone(),
            look: Arc::clone(&look),
            tally: Arc::clone(&tally),
        };
        tokio::spawn(sync::run(sync, stop.clone()))
    });
    if matrix.voip.turn_from_homeserver {
        let refreshing = turn::run(pool.clone(), keys.clone(), homeserver.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(refreshing));
    }
    let errands = errands::Errands::new(worker_id, pool.clone(), homeserver.clone(), Arc::clone(&rooms));
    tokio::spawn(stop.clone().run_until_cancelled_owned(errands.run()));
    let deliverer = Arc::new(Deliverer {
        keys,
        rooms,
        homeserver,
        pace: Arc::clone(&pace),
        breaker: Arc::clone(&breaker),
        http_timeout: config.http_timeout,
        backoff: config.backoff,
        lookup_delay: config.lookup_delay,
    });
    let identity = Identity { worker_id, sender: matrix.service_user.to_string(), device };
    let (batches, receiver) = mpsc::channel(config.slots);
    let probing = probe(Arc::clone(&breaker), config.probe, Arc::clone(&look), deliverer.homeserver.clone());
    let probing = tokio::spawn(stop.clone().run_until_cancelled_owned(probing));
    let (slots, told) = (config.slots, stop.clone());
    let coordinator = Coordinator::new(pool.clone(), config, identity, pace, Arc::clone(&breaker), look, stop);
    let coordinator = Arc::new(coordinator.telling(tell).counting(Arc::clone(&tally)));
    let delivering = Delivering { breaker, coordinator: Arc::clone(&coordinator), tally, slots };
    tokio::spawn(told.run_until_cancelled_owned(heartbeat::run(pool, worker_id, Some(delivering))));
    let monitor = monitor(&Batches::new(receiver), &deliverer);
    let coordinating = tokio::spawn(coordinator.run(batches));
    // Ends when the coordinator has closed the channel; a stop that took too long leaves sends to their leases.
    tokio::select! {
        ended = monitor.run() => ended.context("the apalis monitor failed")?,
        ended = coordinating => ended.context("the coordinator failed")?,
        // Without it an open circuit would never close.
        ended = supervised(probing, &asked) => ended?,
    }
    if let Some(syncing) = syncing {
        // It gives the lead away, so that another worker need not wait for it.
        let _ = timeout(SYNC_ENDS_WITHIN, syncing).await;
    }
    // A supervisor starts the process again when it ends before it was told to.
    anyhow::ensure!(asked.is_cancelled(), "delivery ended by itself: see the log");
    Ok(())
}

/// Asks the homeserver who we are, while the circuit is open.
async fn probe(breaker: Arc<Breaker>, every: Duration, look: Arc<Notify>, homeserver: Homeserver) {
    let ask = || {
        let homeserver = homeserver.clone();
        async move { homeserver.whoami().await.is_ok() }
    };
    breaker.run(every, look, ask).await;
}

/// Ends when a task ends that should not have; never when it was told to.
async fn supervised<T>(task: tokio::task::JoinHandle<T>, told: &CancellationToken) -> anyhow::Result<()> {
    task.await.context("a task of the worker failed")?;
    if told.is_cancelled() {
        std::future::pending::<()>().await;
    }
    bail!("a task of the worker ended by itself")
}

/// The apalis runtime around delivery: each batch is a task of its own, and a panic ends that batch only.
fn monitor(batches: &Batches, deliverer: &Arc<Deliverer>) -> Monitor {
    let (batches, deliverer) = (batches.clone(), Arc::clone(deliverer));
    Monitor::new()
        .register(move |restarts| {
            if restarts > 0 {
                tracing::warn!(restarts, "the apalis worker restarts");
            }
            WorkerBuilder::new("delivery")
                .backend(batches.clone())
                .data(Arc::clone(&deliverer))
                .catch_panic()
                .parallelize(tokio::spawn)
                .build(deliver)
        })
        .should_restart(|_, error| {
            tracing::error!(%error, "the apalis worker ended");
            true
        })
}

async fn deliver(batch: Batch, deliverer: Data<Arc<Deliverer>>) {
    deliverer.deliver(batch).await;
}

/// Asks the homeserver who the token speaks as, and refuses what could double messages. While the homeserver is away it
/// is asked again.
///
/// Returns the device; empty when there is none and that was allowed.
async fn identify(homeserver: &Homeserver, matrix: &MatrixConfig) -> anyhow::Result<String> {
    loop {
        match homeserver.whoami().await {
            Ok(whoami) => return check_identity(&whoami, matrix),
            Err(failure @ Failure::Refused(homeserver::Refusal { status: 401 | 403, errcode: Some(_), .. })) => {
                bail!("the homeserver does not accept MATRIX_ACCESS_TOKEN: {failure}")
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "homeserver does not say who we are yet; asking again");
                sleep(WHOAMI_PAUSE).await;
            }
        }
    }
}

fn check_identity(whoami: &Whoami, matrix: &MatrixConfig) -> anyhow::Result<String> {
    if whoami.user_id != matrix.service_user.as_str() {
        bail!("MATRIX_ACCESS_TOKEN belongs to {}, but MATRIX_SERVICE_USER is {}", whoami.user_id, matrix.service_user);
    }
    match (&whoami.device_id, &matrix.device_id) {
        (Some(device), Some(wanted)) if device != wanted => {
            bail!("MATRIX_ACCESS_TOKEN belongs to the device {device}, but MATRIX_DEVICE_ID is {wanted}")
        }
        (Some(device), _) => Ok(device.clone()),
        (None, _) if matrix.allow_token_without_device => {
            tracing::warn!(
                "Matrix session restored without a device: after a restart of the homeserver a retry may double a message"
            );
            Ok(String::new())
        }
        (None, _) => bail!(
            "MATRIX_ACCESS_TOKEN has no device, so the homeserver would not remember what was sent across its own \
             restart, and retries could double messages. Log in with a device_id, or set \
             MATRIX_ALLOW_TOKEN_WITHOUT_DEVICE=true to run all the same"
        ),
    }
}
