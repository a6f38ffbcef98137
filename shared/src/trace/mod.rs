//! Traces: from a request to the API, over its commit and the wait in the queue, to the request to the homeserver, under
//! one id, through all retries. OpenTelemetry, and off unless there is a collector to hand them to.
//!
//! What an operation goes on with is its `trace`, a W3C traceparent, which stands in its row and stays with it when it is
//! dead and comes back. It is written only for what is sampled, so that everything else costs nothing.
//!
//! A span has the names and attributes that its caller gives it, and no others: ids of operations, kinds, outcomes,
//! statuses. Never a text, a token, an address, or what a homeserver or a client said in its own words.

use std::{borrow::Cow, fmt, str::FromStr, sync::OnceLock};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        Tracer as _,
    },
};
use opentelemetry_sdk::trace::SdkTracer;
use time::OffsetDateTime;

mod export;

pub use export::{Tracing, start};

/// What spans are made by; none while traces are off.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// A span of another process that spans go on from: a W3C traceparent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent(String);

impl TraceParent {
    /// As in a header and in the database.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn context(&self) -> Option<SpanContext> {
        let mut parts = self.0.split('-').skip(1);
        let trace_id = TraceId::from_hex(parts.next()?).ok()?;
        let span_id = SpanId::from_hex(parts.next()?).ok()?;
        let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?) & TraceFlags::SAMPLED;
        Some(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()))
    }
}

/// It is no traceparent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct NotATraceParent;

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    /// Of a version that is newer than ours, what every version has.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut part = |len: usize| {
            let part = parts.next().filter(|part| part.len() == len).ok_or(NotATraceParent)?;
            let is_hex = part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            if is_hex { Ok(part) } else { Err(NotATraceParent) }
        };
        let (version, trace_id, span_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
        if version == "ff" || (version == "00" && parts.next().is_some()) || is_zero(trace_id) || is_zero(span_id) {
            return Err(NotATraceParent);
        }
        Ok(Self(format!("00-{trace_id}-{span_id}-{flags}")))
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of a trace: it ends when it is told to, or with its last clone. While traces are off it costs nothing, and passes
/// on what it goes on from.
#[derive(Debug, Clone, Default)]
pub struct Span(Context);

impl Span {
    /// A request of somebody else's, which may be a part of their trace.
    pub fn of_request(parent: Option<&TraceParent>, name: impl Into<Cow<'static, str>>) -> Self {
        Self::begin(&remote(parent), SpanBuilder::from_name(name).with_kind(SpanKind::Server))
    }

    /// Work that goes on in the trace of whoever asked for it. Without one there is nothing to go on from, and no span.
    pub fn of_work(parent: Option<&TraceParent>, name: &'static str) -> Self {
        match parent {
            Some(_) => Self::begin(&remote(parent), SpanBuilder::from_name(name).with_kind(SpanKind::Consumer)),
            None => Self::default(),
        }
    }

    /// Time that has passed, in the trace of whoever asked for what waited.
    pub fn of_wait(parent: Option<&TraceParent>, name: &'static str, from: OffsetDateTime, until: OffsetDateTime) {
        if parent.is_some() {
            let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Consumer).with_start_time(from);
            Self::begin(&remote(parent), builder).0.span().end_with_timestamp(until.into());
        }
    }

    /// A part of this one.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Self {
        self.part(name, SpanKind::Internal)
    }

    /// A request of ours that is a part of this one.
    #[must_use]
    pub fn request(&self, name: &'static str) -> Self {
        self.part(name, SpanKind::Client)
    }

    fn part(&self, name: &'static str, kind: SpanKind) -> Self {
        // Nothing is a part of nothing: a trace begins with a request.
        if self.0.span().span_context().is_valid() {
            Self::begin(&self.0, SpanBuilder::from_name(name).with_kind(kind))
        } else {
            Self::default()
        }
    }

    fn begin(parent: &Context, builder: SpanBuilder) -> Self {
        match TRACER.get() {
            Some(tracer) => Self(parent.with_span(tracer.build_with_context(builder, parent))),
            None => Self(parent.clone()),
        }
    }

    /// Says something of it. Never content, never anybody's own words.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        let span = self.0.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Says that it failed, in a word of ours.
    pub fn failed(&self, why: &'static str) {
        self.0.span().set_status(Status::error(why));
    }

    /// Ends it without an outcome of its own: so far it came, in a word of ours.
    pub fn unfinished(&self, how: &'static str) {
        self.set("outcome", how);
        self.failed(how);
        self.end();
    }

    /// Ends it.
    pub fn end(&self) {
        self.0.span().end();
    }

    /// What other processes go on from; none when nobody looks at this trace.
    pub fn parent_of_others(&self) -> Option<TraceParent> {
        let span = self.0.span();
        let context = span.span_context();
        let watched = context.is_valid() && context.is_sampled();
        watched.then(|| TraceParent(format!("00-{}-{}-01", context.trace_id(), context.span_id())))
    }
}

fn remote(parent: Option<&TraceParent>) -> Context {
    match parent.and_then(TraceParent::context) {
        Some(context) => Context::new().with_remote_span_context(context),
        None => Context::new(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_taken_as_the_standard_has_it_and_nothing_else_is() {
        assert_eq!(PARENT.parse::<TraceParent>().unwrap().as_str(), PARENT);
        let newer = PARENT.replacen("00", "cc", 1) + "-what-is-new";
        assert_eq!(newer.parse::<TraceParent>().unwrap().as_str(), PARENT);
        for wrong in [
            "",
            "00",
            "hello",
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &format!("{PARENT}-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
            "00-0af7651916cd43dd8448eb211c80319ä-b7ad6b7169203331-01",
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(NotATraceParent), "{wrong}");
        }
    }

    #[test]
    fn while_traces_are_off_what_comes_in_is_passed_on_and_nothing_begins() {
        assert_eq!(Span::of_request(None, "GET /").parent_of_others(), None);
        let parent: TraceParent = PARENT.parse().unwrap();
        let span = Span::of_request(Some(&parent), "POST /messages");
        assert_eq!(span.child("commit").parent_of_others(), Some(parent));
        let unwatched = PARENT.replace("-01", "-00").parse().unwrap();
        assert_eq!(Span::of_request(Some(&unwatched), "POST /messages").parent_of_others(), None);
    }
}
