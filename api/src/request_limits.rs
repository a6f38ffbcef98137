//! How many requests one user may make of this process: a bucket of tokens each, as the headers `RateLimit` and
//! `RateLimit-Policy` of the IETF's draft say it (draft-ietf-httpapi-ratelimit-headers).
//!
//! It keeps one user from using up what is there for all. It counts in this process alone, and costs the database nothing.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    extract::{Request, State as Extract},
    http::HeaderValue,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use shared::{ids::UserId, metric};
use tokio::time::Instant;

use crate::{AppState, State, auth, problem::ApiError};

/// A bucket holds what so many seconds allow: a client that opens asks for many things at once.
const WINDOW_SECONDS: u32 = 10;

/// Past so many users, those whose buckets are full are forgotten before another is remembered.
const MAX_BUCKETS: usize = 100_000;

/// The buckets of all who made requests lately: users, or addresses.
pub(crate) struct RequestLimits<K = UserId> {
    per_second: Option<u32>,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K> fmt::Debug for RequestLimits<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestLimits").field("per_second", &self.per_second).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// What is left after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    quota: u32,
    remaining: u64,
    /// Until the next one may be made.
    wait: Duration,
    is_refused: bool,
}

impl RequestLimits {
    /// Counts a request; refused when there were too many. For those that are not made over HTTP.
    pub(crate) fn count(&self, user_id: UserId) -> Result<(), ApiError> {
        match self.take(user_id, Instant::now()) {
            Some(left) if left.is_refused => Err(refusal(left)),
            _ => Ok(()),
        }
    }
}

impl RequestLimits<IpAddr> {
    /// Counts an attempt of an address; when there were too many, how long to wait.
    pub(crate) fn refused(&self, address: IpAddr) -> Option<Duration> {
        self.take(address, Instant::now()).filter(|left| left.is_refused).map(|left| left.wait)
    }
}

impl<K: Copy + Eq + Hash> RequestLimits<K> {
    pub(crate) fn new(per_second: Option<u32>) -> Self {
        Self { per_second, buckets: Mutex::default() }
    }

    fn take(&self, who: K, now: Instant) -> Option<Left> {
        let rate = f64::from(self.per_second?);
        let quota = self.per_second?.saturating_mul(WINDOW_SECONDS);
        let full = f64::from(quota);
        let mut buckets = self.lock();
        let filled =
            |bucket: Bucket| (bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * rate).min(full);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&who) {
            buckets.retain(|_, bucket| filled(*bucket) < full);
            // All of them are at it: whoever comes new is let in, and not counted.
            if buckets.len() >= MAX_BUCKETS {
                return None;
            }
        }
        let bucket = buckets.entry(who).or_insert(Bucket { tokens: full, at: now });
        let tokens = filled(*bucket);
        let is_refused = tokens < 1.0;
        let tokens = if is_refused { tokens } else { tokens - 1.0 };
        *bucket = Bucket { tokens, at: now };
        let wait = Duration::try_from_secs_f64((1.0 - tokens).max(0.0) / rate).unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from none to what a bucket holds")]
        let remaining = tokens.floor() as u64;
        Some(Left { quota, remaining, wait, is_refused })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Bucket>> {
        // A panic leaves the numbers as they were.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(left: Left) -> ApiError {
    metric::API_REQUESTS_LIMITED.increment(1);
    let why = format!("you may make {} requests in {WINDOW_SECONDS} seconds", left.quota);
    ApiError::RateLimited { why, retry_after: left.wait }
}

/// Counts requests of those who can be told apart; what has no usable token is refused for that.
pub(crate) async fn limit(Extract(state): AppState, request: Request, next: Next) -> Response {
    let Some(left) = left(&state, &request) else { return next.run(request).await };
    let mut response = if left.is_refused { refusal(left).into_response() } else { next.run(request).await };
    let reset = left.wait.as_secs() + u64::from(left.wait.subsec_nanos() > 0);
    for (name, value) in [
        ("ratelimit-policy", format!("\"user\";q={};w={WINDOW_SECONDS}", left.quota)),
        ("ratelimit", format!("\"user\";r={};t={reset}", left.remaining)),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn left(state: &Arc<State>, request: &Request) -> Option<Left> {
    state.request_limits.per_second?;
    let identity = auth::identify_websocket(state, request.headers()).ok()?;
    state.request_limits.take(identity.user_id, Instant::now())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_a_windows_requests_and_fills_with_time() {
        let limits = RequestLimits::new(Some(2));
        let (one, other, begin) = (UserId::generate(), UserId::generate(), Instant::now());
        for remaining in (0..20).rev() {
            let left = limits.take(one, begin).unwrap();
            assert_eq!((left.quota, left.remaining, left.is_refused), (20, remaining, false));
        }
        let refused = limits.take(one, begin).unwrap();
        assert_eq!((refused.is_refused, refused.wait), (true, Duration::from_millis(500)));
        assert!(!limits.take(other, begin).unwrap().is_refused);
        assert!(!limits.take(one, begin + Duration::from_millis(500)).unwrap().is_refused);
        assert!(limits.take(one, begin + Duration::from_millis(501)).unwrap().is_refused);
        assert_eq!(limits.take(one, begin + Duration::from_hours(1)).unwrap().remaining, 19);
        assert!(RequestLimits::new(None).take(one, begin).is_none());
    }

    #[test]
    fn no_more_users_are_remembered_than_there_is_room_for() {
        let limits = RequestLimits::new(Some(1));
        let begin = Instant::now();
        for _ in 0..MAX_BUCKETS {
            limits.take(UserId::generate(), begin).unwrap();
        }
        assert!(limits.take(UserId::generate(), begin).is_none());
        assert_eq!(limits.lock().len(), MAX_BUCKETS);
        assert!(limits.take(UserId::generate(), begin + Duration::from_secs(2)).is_some());
        assert_eq!(limits.lock().len(), 1);
    }
}
