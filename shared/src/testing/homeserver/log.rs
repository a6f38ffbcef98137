//! The log of requests, for tests that ask how often and in what order.
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Instant;

use super::handlers::Ask;
use super::routes::{Call, Kind};

/// How many requests are kept: more than a test makes. Counters go on counting.
const KEPT: usize = 100_000;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// When it arrived, by the homeserver's clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// When it had arrived in whole, by this process' own clock: for what is measured.
    pub arrived: Instant,
    /// The HTTP method.
    pub method: String,
    /// The path as it was sent, percent-encoded, without the query.
    pub path: String,
    /// What it asked for.
    pub kind: Kind,
    /// The room that it is about, if its path says so.
    pub room: Option<String>,
    /// The transaction id of a send or redaction.
    pub txn: Option<String>,
    /// The type of the event that it is about, if its path says so.
    pub event_type: Option<String>,
    /// Who asked, if the token was valid.
    pub user: Option<String>,
    /// What was answered; nothing yet, or nothing ever, if absent.
    pub status: Option<u16>,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: VecDeque<LoggedRequest>,
    /// How many were dropped from the front.
    dropped: u64,
    counts: HashMap<Kind, u64>,
}

/// A request's place in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry(u64);

impl Log {
    pub(super) fn begin(
        &self,
        at_ms: u64,
        method: &hyper::Method,
        ask: &Ask,
        kind: Kind,
        call: Option<&Call>,
        user: Option<String>,
    ) -> Entry {
        let request = LoggedRequest {
            at_ms,
            arrived: Instant::now(),
            method: method.to_string(),
            path: ask.path.clone(),
            kind,
            room: call.and_then(Call::room).map(str::to_owned),
            txn: call.and_then(Call::txn).map(str::to_owned),
            event_type: call.and_then(Call::event_type).map(str::to_owned),
            user,
            status: None,
        };
        let mut inner = self.inner.lock().unwrap();
        *inner.counts.entry(kind).or_default() += 1;
        if inner.requests.len() == KEPT {
            inner.requests.pop_front();
            inner.dropped += 1;
        }
        inner.requests.push_back(request);
        Entry(inner.dropped + inner.requests.len() as u64 - 1)
    }

    pub(super) fn end(&self, entry: Entry, status: u16) {
        let mut inner = self.inner.lock().unwrap();
        let index = entry.0.checked_sub(inner.dropped).and_then(|index| usize::try_from(index).ok());
        if let Some(request) = index.and_then(|index| inner.requests.get_mut(index)) {
            request.status = Some(status);
        }
    }

    pub(super) fn requests(&self) -> Vec<LoggedRequest> {
        self.inner.lock().unwrap().requests.iter().cloned().collect()
    }

    pub(super) fn count(&self, kind: Kind) -> u64 {
        self.inner.lock().unwrap().counts.get(&kind).copied().unwrap_or(0)
    }
}
