//! Logs and metrics, set up the same way in every program.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::LogFormat;

/// Upper bounds of every duration histogram, in seconds: from one fast database round trip to a long outage.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

/// Upper bounds of how long calls last, in seconds: from a few words to a whole day.
const CALL_SECONDS: &[f64] = &[5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 86_400.0];

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

/// Installs the process' metrics; the handle renders them in Prometheus' text format.
pub fn start_metrics() -> Result<PrometheusHandle, BuildError> {
    let calls = Matcher::Full("matrix_voip_call_duration_seconds".to_owned());
    PrometheusBuilder::new().set_buckets(SECONDS)?.set_buckets_for_metric(calls, CALL_SECONDS)?.install_recorder()
}
