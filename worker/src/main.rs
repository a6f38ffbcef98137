//! The program `worker`: reads its configuration, runs, stops gracefully.

use std::process::ExitCode;

use clap::Parser as _;
use shared::{
    config::programs::{WorkerCli, WorkerSettings},
    failpoint,
    metric::Program,
    telemetry, trace,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use worker::Worker;

#[tokio::main]
async fn main() -> ExitCode {
    let _armed = failpoint::arm();
    let settings = match WorkerCli::parse().check() {
        Ok(settings) => settings,
        Err(problems) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            return ExitCode::from(2);
        }
    };
    telemetry::start_logging(settings.log);
    let tracing = match settings.traces.as_ref().map(|traces| trace::start(traces, "worker")).transpose() {
        Ok(tracing) => tracing,
        Err(error) => {
            tracing::error!(%error, "traces cannot be handed over");
            return ExitCode::FAILURE;
        }
    };
    let ended = run(settings).await;
    if let Some(tracing) = tracing {
        tracing.stop().await;
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "worker failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: WorkerSettings) -> anyhow::Result<()> {
    let metrics = telemetry::start_metrics(Program::Worker)?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("worker stops: no new claims, what is under way is finished or handed back");
        on_signal.cancel();
    });
    Worker::bind(config, metrics).await?.run(stop).await
}
