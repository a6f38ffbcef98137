//! Handing spans to a collector: in batches, beside all that matters. A collector that is away or slow costs spans, never
//! a request.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchSpanProcessor, Sampler, SdkTracerProvider},
};
use tokio::{runtime::Handle, time::timeout};

use super::TRACER;
use crate::{config::TraceConfig, metric};

/// How long a batch may take on its way.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);

/// How long a process that ends waits for its last spans to be taken.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// The longest answer of a collector that is read: it says which spans it did not take.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Traces that are handed over, until the process ends.
#[derive(Debug)]
pub struct Tracing {
    provider: SdkTracerProvider,
}

/// Starts handing spans over. Once in a process, within a runtime that outlives it.
pub fn start(config: &TraceConfig, program: &'static str) -> Result<Tracing, ExporterBuildError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Collector::new())
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(config.endpoint.as_str())
        .with_timeout(EXPORT_WITHIN)
        .build()?;
    // A thread of its own takes what fits into its queue, and what does not is dropped.
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.ratio))))
        .with_resource(Resource::builder().with_service_name(format!("matrix-outbox-{program}")).build())
        .build();
    // A second start in one process (tests) keeps the first.
    let _ = TRACER.set(provider.tracer("matrix-outbox"));
    Ok(Tracing { provider })
}

impl Tracing {
    /// Hands over what is left, if that goes quickly.
    pub async fn stop(self) {
        let flushed = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH_WITHIN)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::debug!("the last spans were not taken in time");
        }
    }
}

/// The way to the collector.
#[derive(Debug)]
struct Collector {
    client: Client<HttpConnector, Full<Bytes>>,
    /// Batches are made on a thread that belongs to no runtime.
    runtime: Handle,
    /// Whether the last batch was not taken: that is said once.
    failing: AtomicBool,
}

impl Collector {
    fn new() -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, runtime: Handle::current(), failing: AtomicBool::new(false) }
    }

    fn report(&self, sent: &Result<Response<Bytes>, HttpError>) {
        let failure = match sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        metric::TRACE_EXPORTS.with([if failure.is_none() { "ok" } else { "failed" }]).increment(1);
        let was_failing = self.failing.swap(failure.is_some(), Ordering::Relaxed);
        match (failure, was_failing) {
            (Some(error), false) => tracing::warn!(error, "the collector does not take traces; they are dropped"),
            (None, true) => tracing::info!("the collector takes traces again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let answer = async move {
            let (head, body) = client.request(request.map(Full::from)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        // The time is the runtime's too: it begins to run there.
        let sending = self.runtime.spawn(async move { timeout(EXPORT_WITHIN, answer).await });
        let sent = match sending.await {
            Ok(Ok(sent)) => sent,
            Ok(Err(late)) => Err(late.into()),
            Err(ended) => Err(ended.into()),
        };
        self.report(&sent);
        sent
    }
}
