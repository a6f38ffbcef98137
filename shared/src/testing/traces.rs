//! A collector of traces: it takes OTLP over HTTP, and remembers.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinHandle};

/// A span, as it was told.
#[derive(Debug, Clone)]
pub struct ToldSpan {
    /// Which program told it.
    pub service: String,
    /// The trace, in hexadecimal.
    pub trace_id: String,
    /// Its id.
    pub span_id: String,
    /// What it is a part of; empty for the first.
    pub parent_id: String,
    /// Its name.
    pub name: String,
    /// What is said of it.
    pub attributes: BTreeMap<String, String>,
    /// In what it failed; none if it did not.
    pub failed: Option<String>,
    /// When it began and ended, in nanoseconds since 1970.
    pub time: (u64, u64),
}

#[derive(Debug, Default)]
struct Told {
    spans: Vec<ToldSpan>,
    raw: Vec<u8>,
}

/// A collector on a port of its own, for as long as it lives.
#[derive(Debug)]
pub struct TraceCollector {
    url: String,
    told: Arc<Mutex<Told>>,
    serving: JoinHandle<()>,
}

impl Drop for TraceCollector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl TraceCollector {
    /// Takes what it is told.
    pub async fn start() -> Self {
        Self::listening(false).await
    }

    /// Takes connections and never answers.
    pub async fn silent() -> Self {
        Self::listening(true).await
    }

    async fn listening(silent: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let told = Arc::new(Mutex::new(Told::default()));
        let remembered = Arc::clone(&told);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let told = Arc::clone(&remembered);
                let service = service_fn(move |request| take(request, Arc::clone(&told), silent));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, told, serving }
    }

    /// What programs need to find it, and to tell it soon.
    pub fn environment(&self) -> [(String, String); 2] {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), self.url.clone()),
            ("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "100".to_owned()),
        ]
    }

    /// All that it was told by now.
    pub fn spans(&self) -> Vec<ToldSpan> {
        self.told.lock().unwrap().spans.clone()
    }

    /// The bytes that it was told, as far as they are text.
    pub fn raw(&self) -> String {
        String::from_utf8_lossy(&self.told.lock().unwrap().raw).into_owned()
    }
}

async fn take(
    request: Request<Incoming>,
    told: Arc<Mutex<Told>>,
    silent: bool,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if silent {
        std::future::pending::<()>().await;
    }
    assert_eq!(request.uri().path(), "/v1/traces");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let export = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    let mut told = told.lock().unwrap();
    told.raw.extend(&body);
    for of_program in export.resource_spans {
        let resource = of_program.resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
        let service = resource.get("service.name").cloned().unwrap_or_default();
        for span in of_program.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let failed = span.status.filter(|status| status.code == 2).map(|status| status.message);
            told.spans.push(ToldSpan {
                service: service.clone(),
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent_id: hex(&span.parent_span_id),
                name: span.name,
                attributes: texts(span.attributes),
                failed,
                time: (span.start_time_unix_nano, span.end_time_unix_nano),
            });
        }
    }
    Ok(Response::new(Full::default()))
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}
