//! Faults as ordinary inputs: which requests, what happens to them, how often.
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::reply::Reply;
use super::routes::{Call, Kind};

/// How long a test waits for a request to arrive before it gives up.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);

/// What a matcher sees of a request.
pub(super) struct Seen<'a> {
    pub(super) kind: Kind,
    pub(super) call: Option<&'a Call>,
    pub(super) user: Option<&'a str>,
    pub(super) body: &'a [u8],
}

#[derive(Debug, Default, Clone)]
struct Matcher {
    kind: Option<Kind>,
    room: Option<String>,
    txn: Option<String>,
    event_type: Option<String>,
    user: Option<String>,
    body: Option<String>,
}

impl Matcher {
    fn matches(&self, seen: &Seen<'_>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
        let call = seen.call;
        self.kind.is_none_or(|kind| kind == seen.kind)
            && is(&self.room, call.and_then(Call::room))
            && is(&self.txn, call.and_then(Call::txn))
            && is(&self.event_type, call.and_then(Call::event_type))
            && is(&self.user, seen.user)
            && self.body.as_ref().is_none_or(|part| contains(seen.body, part.as_bytes()))
    }
}

fn contains(body: &[u8], part: &[u8]) -> bool {
    part.is_empty() || body.windows(part.len()).any(|window| window == part)
}

/// Something that a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    For(Duration),
    Release,
    Ever,
}

#[derive(Debug, Clone)]
struct Refusal {
    status: u16,
    errcode: Option<String>,
    retry_after: Option<Duration>,
    in_body_only: bool,
    html: Option<String>,
}

#[derive(Debug, Default, Clone)]
struct Plan {
    before: Option<Wait>,
    drop_before: bool,
    refusal: Option<Refusal>,
    stop_after: Option<usize>,
    after: Option<Wait>,
    drop_after: bool,
}

impl Plan {
    fn does_nothing(&self) -> bool {
        let waits = self.before.is_some() || self.after.is_some();
        !(waits || self.drop_before || self.drop_after || self.refusal.is_some() || self.stop_after.is_some())
    }
}

/// One installed fault.
#[derive(Debug)]
pub(super) struct Live {
    matcher: Matcher,
    plan: Plan,
    nth: Option<u64>,
    chance: Option<(f64, u64)>,
    limit: Option<u64>,
    matched: AtomicU64,
    hits: watch::Sender<u64>,
    released: CancellationToken,
    removed: AtomicBool,
}

impl Live {
    /// Does this request fall to this fault? Counts it if so.
    fn takes(&self, seen: &Seen<'_>) -> bool {
        if self.removed.load(Ordering::SeqCst) || !self.matcher.matches(seen) {
            return false;
        }
        let number = self.matched.fetch_add(1, Ordering::SeqCst) + 1;
        if self.nth.is_some_and(|nth| nth != number) {
            return false;
        }
        if self.chance.is_some_and(|(chance, seed)| fraction(seed, number) >= chance) {
            return false;
        }
        self.hits.send_if_modified(|hits| {
            let takes = self.limit.is_none_or(|limit| *hits < limit);
            *hits += u64::from(takes);
            takes
        })
    }

    async fn wait(&self, wait: Option<Wait>) {
        match wait {
            None => {}
            Some(Wait::For(delay)) => tokio::time::sleep(delay).await,
            Some(Wait::Release) => self.released.cancelled().await,
            Some(Wait::Ever) => std::future::pending().await,
        }
    }

    pub(super) async fn before(&self) {
        self.wait(self.plan.before).await;
    }

    pub(super) async fn after(&self) {
        self.wait(self.plan.after).await;
    }

    pub(super) fn drops_before(&self) -> bool {
        self.plan.drop_before
    }

    pub(super) fn drops_after(&self) -> bool {
        self.plan.drop_after
    }

    pub(super) fn stop_after(&self) -> Option<usize> {
        self.plan.stop_after
    }

    pub(super) fn refusal(&self) -> Option<Reply> {
        self.plan.refusal.as_ref().map(Refusal::reply)
    }
}

impl Refusal {
    fn reply(&self) -> Reply {
        if let Some(html) = &self.html {
            return Reply {
                status: self.status,
                content_type: "text/html",
                retry_after_secs: self.retry_after.map(whole_secs),
                body: html.clone().into_bytes().into(),
            };
        }
        let (errcode, error) = match self.status {
            401 => ("M_UNKNOWN_TOKEN", "Invalid access token passed."),
            403 => ("M_FORBIDDEN", "You are not allowed to do that"),
            404 => ("M_NOT_FOUND", "Not found"),
            413 => ("M_TOO_LARGE", "event too large"),
            429 => ("M_LIMIT_EXCEEDED", "Too Many Requests"),
            _ => ("M_UNKNOWN", "Internal server error"),
        };
        let errcode = self.errcode.as_deref().unwrap_or(errcode);
        let mut body = json!({ "errcode": errcode, "error": error });
        if errcode == "M_UNKNOWN_TOKEN" {
            body["soft_logout"] = json!(false);
        }
        if let Some(delay) = self.retry_after {
            body["retry_after_ms"] = json!(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        }
        let retry_after_secs = self.retry_after.filter(|_| !self.in_body_only).map(whole_secs);
        Reply { retry_after_secs, ..Reply::json(self.status, &body) }
    }
}

/// `Retry-After` counts whole seconds, rounded up.
fn whole_secs(delay: Duration) -> u64 {
    delay.as_secs() + u64::from(delay.subsec_nanos() > 0)
}

/// A number in 0..1 that depends on nothing but seed and count (splitmix64).
#[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
fn fraction(seed: u64, number: u64) -> f64 {
    let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// All faults of a homeserver, in the order in which they were installed.
#[derive(Debug, Default)]
pub(super) struct Faults {
    live: RwLock<Vec<Arc<Live>>>,
    count: AtomicUsize,
}

impl Faults {
    /// The first fault that takes this request. Those that do nothing only watch, and take nothing from those behind them.
    pub(super) fn pick(&self, seen: &Seen<'_>) -> Option<Arc<Live>> {
        if self.is_empty() {
            return None;
        }
        let live = self.live.read().unwrap();
        live.iter().find(|fault| fault.takes(seen) && !fault.plan.does_nothing()).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    fn install(&self, fault: Live) -> Fault {
        let fault = Arc::new(fault);
        self.live.write().unwrap().push(Arc::clone(&fault));
        self.count.fetch_add(1, Ordering::SeqCst);
        Fault { live: fault }
    }

    pub(super) fn clear(&self) {
        for fault in self.live.write().unwrap().drain(..) {
            fault.removed.store(true, Ordering::SeqCst);
            fault.released.cancel();
        }
        self.count.store(0, Ordering::SeqCst);
    }
}

/// A fault in the making: narrow it, say what happens, and end with [`once`](Self::once), [`times`](Self::times) or
/// [`always`](Self::always), which install it.
///
/// What happens may be combined: a hold before the event is stored, then a refusal; a delay of the answer, then a cut
/// connection. One that does nothing only watches: its [`Fault`] counts requests. Where several faults fit a request, the one
/// that was installed first takes it.
#[derive(Debug)]
#[must_use = "a fault is installed by `once`, `times` or `always`"]
pub struct FaultBuilder<'hs> {
    faults: &'hs Faults,
    matcher: Matcher,
    plan: Plan,
    nth: Option<u64>,
    chance: Option<(f64, u64)>,
}

impl<'hs> FaultBuilder<'hs> {
    pub(super) fn new(faults: &'hs Faults, kind: Option<Kind>) -> Self {
        let matcher = Matcher { kind, ..Matcher::default() };
        Self { faults, matcher, plan: Plan::default(), nth: None, chance: None }
    }

    /// Only requests about this room (for `/join`, the id or alias that was asked for).
    pub fn room(mut self, room: &str) -> Self {
        self.matcher.room = Some(room.to_owned());
        self
    }

    /// Only requests with this transaction id.
    pub fn txn(mut self, txn: &str) -> Self {
        self.matcher.txn = Some(txn.to_owned());
        self
    }

    /// Only requests about events of this type.
    pub fn event_type(mut self, event_type: &str) -> Self {
        self.matcher.event_type = Some(event_type.to_owned());
        self
    }

    /// Only requests of this user, by the full id.
    pub fn by(mut self, user: &str) -> Self {
        self.matcher.user = Some(user.to_owned());
        self
    }

    /// Only requests whose body contains this text, as it stands in the JSON.
    pub fn body_contains(mut self, part: &str) -> Self {
        self.matcher.body = Some(part.to_owned());
        self
    }

    /// Only the n-th request that matches, counted from 1.
    pub fn nth(mut self, n: u64) -> Self {
        self.nth = Some(n);
        self
    }

    /// Only this share of the requests that match (0.1 = a tenth): which ones depends on the seed and on their number alone.
    pub fn chance(mut self, share: f64, seed: u64) -> Self {
        self.chance = Some((share, seed));
        self
    }

    /// Answers with this status and the error code that is usual with it; nothing is done.
    pub fn fail(mut self, status: u16) -> Self {
        self.plan.refusal = Some(Refusal { status, errcode: None, retry_after: None, in_body_only: false, html: None });
        self
    }

    /// The error code of the refusal. Without [`fail`](Self::fail) before it, the status is 400.
    pub fn errcode(mut self, errcode: &str) -> Self {
        self.refusal().errcode = Some(errcode.to_owned());
        self
    }

    /// What the refusal asks to wait: `retry_after_ms` in the body, and `Retry-After` in whole seconds, rounded up.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.refusal().retry_after = Some(delay);
        self
    }

    /// What the refusal asks to wait stands in its body only, as homeservers wrote it before Matrix 1.10.
    pub fn in_body_only(mut self) -> Self {
        self.refusal().in_body_only = true;
        self
    }

    /// The refusal's body is this page, as a proxy in front of the homeserver makes them.
    pub fn html(mut self, page: &str) -> Self {
        self.refusal().html = Some(page.to_owned());
        self
    }

    fn refusal(&mut self) -> &mut Refusal {
        let none = Refusal { status: 400, errcode: None, retry_after: None, in_body_only: false, html: None };
        self.plan.refusal.get_or_insert(none)
    }

    /// Closes the connection; nothing is done.
    pub fn drop_before(mut self) -> Self {
        self.plan.drop_before = true;
        self
    }

    /// Does what was asked, then closes the connection without an answer.
    pub fn drop_after_accept(mut self) -> Self {
        self.plan.drop_after = true;
        self
    }

    /// Waits before anything is done.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.plan.before = Some(Wait::For(delay));
        self
    }

    /// Does what was asked, then waits before it answers.
    pub fn delay_answer(mut self, delay: Duration) -> Self {
        self.plan.after = Some(Wait::For(delay));
        self
    }

    /// Waits for [`Fault::release`] before anything is done.
    pub fn hold(mut self) -> Self {
        self.plan.before = Some(Wait::Release);
        self
    }

    /// Does what was asked, then waits for [`Fault::release`] before it answers.
    pub fn hold_answer(mut self) -> Self {
        self.plan.after = Some(Wait::Release);
        self
    }

    /// Does nothing and never answers.
    pub fn hang(mut self) -> Self {
        self.plan.before = Some(Wait::Ever);
        self
    }

    /// Does what was asked and never answers.
    pub fn hang_after_accept(mut self) -> Self {
        self.plan.after = Some(Wait::Ever);
        self
    }

    /// For `createRoom`: stops after so many events and leaves the room half-made. The answer is the refusal that was given
    /// besides, else a 500.
    pub fn stop_after(mut self, events: usize) -> Self {
        self.plan.stop_after = Some(events);
        self
    }

    /// Installs it for the next request that matches.
    pub fn once(self) -> Fault {
        self.install(Some(1))
    }

    /// Installs it for the next `n` requests that match.
    pub fn times(self, n: u64) -> Fault {
        self.install(Some(n))
    }

    /// Installs it until it is removed.
    pub fn always(self) -> Fault {
        self.install(None)
    }

    fn install(self, limit: Option<u64>) -> Fault {
        self.faults.install(Live {
            matcher: self.matcher,
            plan: self.plan,
            nth: self.nth,
            chance: self.chance,
            limit,
            matched: AtomicU64::new(0),
            hits: watch::Sender::new(0),
            released: CancellationToken::new(),
            removed: AtomicBool::new(false),
        })
    }
}

/// An installed fault. Dropping this handle leaves it in place.
#[derive(Debug, Clone)]
pub struct Fault {
    live: Arc<Live>,
}

impl Fault {
    /// Waits until a request has fallen to it; panics after 30 s.
    pub async fn arrived(&self) {
        self.arrived_times(1).await;
    }

    /// Waits until `n` requests have fallen to it; panics after 30 s.
    pub async fn arrived_times(&self, n: u64) {
        let mut hits = self.live.hits.subscribe();
        let waited = tokio::time::timeout(ARRIVAL_LIMIT, hits.wait_for(|hits| *hits >= n)).await;
        assert!(waited.is_ok(), "{} of {n} requests arrived within {ARRIVAL_LIMIT:?}: {:?}", self.hits(), self.live);
    }

    /// How many requests have fallen to it.
    pub fn hits(&self) -> u64 {
        *self.live.hits.borrow()
    }

    /// Lets go what is held, and holds nothing any more.
    pub fn release(&self) {
        self.live.released.cancel();
    }

    /// No request falls to it any more; what it holds stays held.
    pub fn remove(&self) {
        self.live.removed.store(true, Ordering::SeqCst);
    }
}
