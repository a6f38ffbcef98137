//! Logs and metrics, set up the same way in every program.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::{MissedTickBehavior, interval};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    config::LogFormat,
    metric::{self, Program},
};

/// How often samples are put into their buckets: whoever is never scraped must not keep them all.
const SORT_EVERY: Duration = Duration::from_secs(5);

/// Starts logging to standard error. `RUST_LOG` chooses what is logged; `info` without it.
pub fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    // A second call in one process (tests) keeps the first subscriber.
    let _ = match format {
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr)).try_init(),
    };
}

/// Installs the process' metrics, all of which stand at zero then; the handle renders them in Prometheus' text format. To
/// be called within a runtime.
pub fn start_metrics(program: Program) -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in metric::ALL.iter().filter(|metric| !metric.buckets.is_empty()) {
        builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), metric.buckets)?;
    }
    let handle = builder.install_recorder()?;
    metric::begin(program);
    let sorting = handle.clone();
    tokio::spawn(async move {
        let mut tick = interval(SORT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            sorting.run_upkeep();
        }
    });
    Ok(handle)
}
