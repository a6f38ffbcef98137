//! The circuit breaker: how many lanes may be at the homeserver at once, from what its answers say of it.
//!
//! ```text
//!            failures in a row, or a token that is refused
//!   closed ─────────────────────────────────────────────────▶ open: nothing is claimed,
//!     ▲                                                        one probe a second
//!     │  each answer doubles what                                     │ it answers
//!     │  may be under way             a failure                       ▼
//!     └────────────────────────── ramp, from one ◀────────────────────┘
//! ```
//!
//! A homeserver that is down fails nobody's attempts, but for the few that found it out. One that limits the rate is left
//! alone for as long as it asks, and then ramped up as after an outage: its limit is the account's, so every lane would
//! only find the same.
//!
//! The state is this process' own. Each worker finds out for itself and probes for itself; one with another token is not
//! stopped by a token that was refused.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use shared::metric;
use tokio::{
    sync::Notify,
    time::{sleep, sleep_until},
};

/// So many failures in a row, with no answer between them, open the circuit.
const FAILURES_IN_A_ROW: u32 = 5;

/// The longest that a rate limit keeps everything waiting: a nonsensical answer must not stop a worker for years.
const MAX_REST: Duration = Duration::from_mins(5);

/// What one request told of the homeserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It answered, if only to refuse.
    Alive,
    /// It is away, or fails by itself.
    Failed,
    /// It no longer knows our token.
    TokenRefused,
    /// It wants the account to wait.
    RateLimited(Duration),
}

/// Why the circuit is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The homeserver is away, or fails by itself.
    Down,
    /// It does not accept our token.
    Account,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Account => "account",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circuit {
    /// All slots may be used, less after each failure.
    Closed { failures: u32 },
    /// So many lanes may be under way.
    Ramp { lanes: usize },
    /// None may.
    Open(Reason),
}

#[derive(Debug)]
struct State {
    circuit: Circuit,
    /// Nothing is asked of the homeserver until then, since it said so.
    rest_until: Option<Instant>,
    /// How long it has rested by now, less the whole seconds that are counted.
    rested: Duration,
    /// When an operation was last delivered.
    delivered_at: Option<Instant>,
}

/// The circuit of one process.
#[derive(Debug)]
pub(crate) struct Breaker {
    slots: usize,
    state: Mutex<State>,
    changed: Notify,
}

impl Breaker {
    /// Closed, with this many lanes at most.
    pub(crate) fn new(slots: usize) -> Self {
        metric::CIRCUIT_STATE.set(0.0);
        metric::TOKEN_ACCEPTED.set_bool(true);
        Self { slots, state: Mutex::new(State::new()), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lanes may be under way now.
    pub(crate) fn allowance(&self) -> usize {
        self.lock().allowance(self.slots, Instant::now())
    }

    /// Whether another request may be made for a lane that is under way already.
    pub(crate) fn lets_go_on(&self) -> bool {
        self.allowance() > 0
    }

    /// Whether an operation was delivered within this time: the homeserver is well, so what failed since is not its fault.
    pub(crate) fn delivered_within(&self, time: Duration) -> bool {
        self.lock().delivered_at.is_some_and(|at| at.elapsed() < time)
    }

    /// What the circuit is, in a word, and whether the homeserver accepts our token.
    pub(crate) fn told(&self) -> (&'static str, bool) {
        let state = self.lock();
        let circuit = match state.circuit {
            Circuit::Closed { .. } if !state.rests(Instant::now()) => "closed",
            Circuit::Closed { .. } | Circuit::Ramp { .. } => "ramping_up",
            Circuit::Open(_) => "open",
        };
        (circuit, state.circuit != Circuit::Open(Reason::Account))
    }

    /// Takes note of a delivery.
    pub(crate) fn delivered(&self) {
        self.lock().delivered_at = Some(Instant::now());
    }

    /// Takes note of what a request told.
    pub(crate) fn note(&self, signal: Signal) {
        self.change(|state, slots, now| state.note(signal, slots, now));
    }

    fn change(&self, change: impl FnOnce(&mut State, usize, Instant)) {
        let (before, after, rested) = {
            let mut state = self.lock();
            let (before, resting) = (state.circuit, state.rest_until);
            change(&mut state, self.slots, Instant::now());
            (before, state.circuit, (resting != state.rest_until).then(|| state.whole_seconds_rested()))
        };
        if let Some(seconds) = rested {
            metric::RATE_LIMITED.increment(seconds);
        }
        if before != after {
            report(before, after);
        }
        if before != after || rested.is_some() {
            self.changed.notify_one();
        }
    }

    /// Probes while the circuit is open, and says when more lanes may be claimed. `probe` asks the homeserver who we are:
    /// true when it knows. Runs for ever.
    pub(crate) async fn run<P>(&self, every: Duration, look: Arc<Notify>, probe: impl Fn() -> P)
    where
        P: Future<Output = bool>,
    {
        loop {
            let (circuit, rest_until) = {
                let state = self.lock();
                (state.circuit, state.rest_until.filter(|until| *until > Instant::now()))
            };
            match (circuit, rest_until) {
                (Circuit::Open(_), _) => {
                    sleep(every).await;
                    let well = probe().await;
                    metric::CIRCUIT_PROBES.with([if well { "ok" } else { "failed" }]).increment(1);
                    if well {
                        self.change(|state, _, _| state.probed());
                    }
                }
                (_, Some(until)) => tokio::select! {
                    () = sleep_until(until.into()) => {}
                    () = self.changed.notified() => {}
                },
                (_, None) => self.changed.notified().await,
            }
            look.notify_one();
        }
    }
}

impl State {
    const fn new() -> Self {
        Self { circuit: Circuit::Closed { failures: 0 }, rest_until: None, rested: Duration::ZERO, delivered_at: None }
    }

    fn rests(&self, now: Instant) -> bool {
        self.rest_until.is_some_and(|until| until > now)
    }

    fn whole_seconds_rested(&mut self) -> u64 {
        let seconds = self.rested.as_secs();
        self.rested -= Duration::from_secs(seconds);
        seconds
    }

    fn allowance(&self, slots: usize, now: Instant) -> usize {
        if self.rests(now) {
            return 0;
        }
        match self.circuit {
            Circuit::Closed { .. } => slots,
            Circuit::Ramp { lanes } => lanes.min(slots),
            Circuit::Open(_) => 0,
        }
    }

    fn note(&mut self, signal: Signal, slots: usize, now: Instant) {
        self.circuit = match (signal, self.circuit) {
            // Some requests need no token; only a probe tells that ours is accepted again.
            (_, Circuit::Open(Reason::Account)) => self.circuit,
            (Signal::TokenRefused, _) => Circuit::Open(Reason::Account),
            (Signal::Alive, Circuit::Closed { .. }) => Circuit::Closed { failures: 0 },
            // What was under way when it was asked to rest says nothing of what it takes afterwards.
            (Signal::Alive, Circuit::Ramp { .. }) if self.rests(now) => self.circuit,
            (Signal::Alive, Circuit::Ramp { lanes }) if lanes * 2 >= slots => Circuit::Closed { failures: 0 },
            (Signal::Alive, Circuit::Ramp { lanes }) => Circuit::Ramp { lanes: lanes * 2 },
            (Signal::Failed, Circuit::Closed { failures }) if failures + 1 < FAILURES_IN_A_ROW => {
                Circuit::Closed { failures: failures + 1 }
            }
            (Signal::Failed, _) => Circuit::Open(Reason::Down),
            (Signal::Alive, Circuit::Open(Reason::Down)) | (Signal::RateLimited(_), _) => Circuit::Ramp { lanes: 1 },
        };
        if let Signal::RateLimited(wait) = signal {
            let from = self.rest_until.map_or(now, |until| until.max(now));
            let until = from.max(now + wait.min(MAX_REST));
            self.rested += until - from;
            self.rest_until = Some(until);
        }
    }

    fn probed(&mut self) {
        if let Circuit::Open(_) = self.circuit {
            self.circuit = Circuit::Ramp { lanes: 1 };
        }
    }
}

/// One line and one count for each time that it opens or closes.
fn report(before: Circuit, after: Circuit) {
    let state = match after {
        Circuit::Closed { .. } => 0.0,
        Circuit::Ramp { .. } => 1.0,
        Circuit::Open(_) => 2.0,
    };
    metric::CIRCUIT_STATE.set(state);
    let accepted = after != Circuit::Open(Reason::Account);
    metric::TOKEN_ACCEPTED.set_bool(accepted);
    match (before, after) {
        (_, Circuit::Open(reason)) => {
            metric::CIRCUIT_OPENED.with([reason.as_str()]).increment(1);
            match reason {
                Reason::Down => tracing::warn!("the homeserver is down: nothing is claimed until it answers"),
                Reason::Account => tracing::error!(
                    "the homeserver does not accept our token: nothing is sent until it does; give the worker another"
                ),
            }
        }
        (Circuit::Open(_), _) => tracing::info!("the homeserver answers again"),
        (Circuit::Ramp { .. }, Circuit::Closed { .. }) => tracing::debug!("the circuit is closed"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: usize = 8;

    fn after(signals: &[Signal]) -> (State, Instant) {
        let now = Instant::now();
        let mut state = State::new();
        for signal in signals {
            state.note(*signal, SLOTS, now);
        }
        (state, now)
    }

    fn allowed(signals: &[Signal]) -> usize {
        let (state, now) = after(signals);
        state.allowance(SLOTS, now)
    }

    use Signal::{Alive, Failed, RateLimited, TokenRefused};

    #[test]
    fn failures_in_a_row_open_it_and_an_answer_between_them_does_not() {
        assert_eq!(allowed(&[Failed; 4]), SLOTS);
        assert_eq!(allowed(&[Failed; 5]), 0);
        assert_eq!(allowed(&[Failed, Failed, Failed, Failed, Alive, Failed, Failed, Failed, Failed]), SLOTS);
    }

    #[test]
    fn one_lane_goes_first_when_it_answers_again_and_each_answer_doubles_them() {
        let (mut state, now) = after(&[Failed; 5]);
        state.probed();
        let mut allowed = Vec::new();
        for _ in 0..4 {
            allowed.push(state.allowance(SLOTS, now));
            state.note(Alive, SLOTS, now);
        }
        assert_eq!(allowed, [1, 2, 4, SLOTS]);
        assert_eq!(state.circuit, Circuit::Closed { failures: 0 });
    }

    #[test]
    fn a_failure_on_the_ramp_opens_it_again() {
        let (mut state, now) = after(&[Failed; 5]);
        state.probed();
        state.note(Failed, SLOTS, now);
        assert_eq!(state.allowance(SLOTS, now), 0);
    }

    #[test]
    fn a_refused_token_opens_it_at_once_and_only_a_probe_closes_it() {
        assert_eq!(allowed(&[TokenRefused]), 0);
        assert_eq!(allowed(&[TokenRefused, Alive, RateLimited(Duration::ZERO), Failed]), 0);
        let (mut state, now) = after(&[TokenRefused]);
        state.probed();
        assert_eq!(state.allowance(SLOTS, now), 1);
    }

    #[test]
    fn a_rate_limit_rests_as_long_as_it_says_and_then_one_lane_goes_first() {
        let (mut state, now) =
            after(&[RateLimited(Duration::from_secs(4)), RateLimited(Duration::from_secs(2)), Alive]);
        assert_eq!(state.allowance(SLOTS, now), 0);
        assert_eq!(state.allowance(SLOTS, now + Duration::from_millis(3_999)), 0);
        assert_eq!(state.allowance(SLOTS, now + Duration::from_secs(4)), 1);
        assert_eq!(state.whole_seconds_rested(), 4);
        let (state, now) = after(&[RateLimited(Duration::from_hours(9))]);
        assert_eq!(state.allowance(SLOTS, now + MAX_REST), 1);
    }
}
