//! The span of a request: what is done for it is a part of it, here and in the worker.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{FromRequestParts, Request},
    http::{HeaderMap, request::Parts},
    middleware::Next,
    response::Response,
};
use shared::{
    metric,
    trace::{Span, TraceParent},
};
use sqlx::{Postgres, Transaction};

use crate::State;

/// What is asked for every few seconds by whoever watches. Nobody looks at its traces.
const UNTRACED: [&str; 3] = ["/health/live", "/health/ready", "/metrics"];

/// The span of a request, or of a frame of a WebSocket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace(Span);

impl FromRequestParts<Arc<State>> for Trace {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

impl Trace {
    /// Of a frame that a client sent.
    pub(crate) fn of_frame(name: &'static str) -> Self {
        Self(Span::of_request(None, name))
    }

    /// What operations go on from.
    pub(crate) fn parent(&self) -> Option<TraceParent> {
        self.0.parent_of_others()
    }

    /// Commits, which is a part of the request.
    pub(crate) async fn commit(&self, tx: Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        let span = self.0.child("commit");
        let committed = tx.commit().await;
        if committed.is_err() {
            span.failed("the database did not commit");
        }
        span.end();
        committed
    }

    /// Ends with a refusal.
    pub(crate) fn refuse(&self) {
        self.0.failed("it was refused");
        self.0.end();
    }

    /// Ends with its answer.
    pub(crate) fn end(&self, status: u16) {
        self.0.set("http.response.status_code", i64::from(status));
        if status >= 500 {
            self.0.failed("it could not be answered");
        }
        self.0.end();
    }
}

/// Goes on in the trace that a request says it is a part of, or begins one.
pub(crate) async fn follow(route: &str, mut request: Request, next: Next) -> Response {
    if UNTRACED.contains(&route) {
        return next.run(request).await;
    }
    let method = metric::METHODS.of(request.method().as_str());
    let span = Span::of_request(parent(request.headers()).as_ref(), format!("{method} {route}"));
    span.set("http.request.method", method);
    span.set("http.route", route.to_owned());
    let trace = Trace(span);
    request.extensions_mut().insert(trace.clone());
    let response = next.run(request).await;
    trace.end(response.status().as_u16());
    response
}

fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    headers.get("traceparent")?.to_str().ok()?.parse().ok()
}
