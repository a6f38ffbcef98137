//! The program `api`: reads its configuration, starts the server, stops it gracefully.

use std::process::ExitCode;

use api::App;
use clap::Parser as _;
use shared::{
    config::programs::{ApiCli, ApiSettings},
    metric::Program,
    telemetry, trace,
};
use tokio::{net::TcpListener, signal::unix::SignalKind};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match ApiCli::parse().check() {
        Ok(settings) => settings,
        Err(problems) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            return ExitCode::from(2);
        }
    };
    telemetry::start_logging(settings.log);
    let tracing = match settings.traces.as_ref().map(|traces| trace::start(traces, "api")).transpose() {
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
            tracing::error!(error = format!("{error:#}"), "api failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: ApiSettings) -> anyhow::Result<()> {
    let metrics = telemetry::start_metrics(Program::Api)?;
    let listener = TcpListener::bind(config.api.listen).await?;
    tracing::info!(listen = %listener.local_addr()?, matrix.enabled = config.matrix_enabled, "api listens");
    let stop = CancellationToken::new();
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("api stops: no new requests, those under way are answered");
        on_signal.cancel();
    });
    App::new(config, metrics, stop.clone())?.serve(listener, stop).await
}
