//! What a homeserver's answer, or its silence, means for an operation: the one table of errors.
//!
//! | what came | verdict | the operation | everything else |
//! |---|---|---|---|
//! | an event id | delivered | done | the circuit closes |
//! | nobody listens, the name is unknown | down | waits: nothing was sent | five in a row open the circuit |
//! | timeout, cut connection, an answer that makes no sense, a proxy's 5xx | ambiguous | stays handed, repeated under its transaction id | the same |
//! | 5xx with a Matrix error code | server error | the same; dead after five, if others were delivered between them | the same |
//! | 429, `M_LIMIT_EXCEEDED` | rate limited | waits as long as header, else body, else the default says | a send's limit is the account's: all wait |
//! | 401, 403 for an account that is suspended, a homeserver over its limits | the account's fault | waits | the circuit opens until a probe succeeds |
//! | 403 `M_FORBIDDEN` | the room's fault | the room is repaired, then once more, then its lane is held | nothing |
//! | 400 with a Matrix error code, 413 | its own fault | dead, or its lane is held where nothing may overtake it | nothing |
//! | any other refusal that is not Matrix' own (a gateway's) | not Matrix' | waits; given up after three days, if others were delivered meanwhile | five in a row open the circuit |
//! | a request that cannot be built, any other refusal | unknown | the same | nothing |
//!
//! "Already done" is no row: it shares its code with "not allowed", so who invites, removes or makes a room looks instead
//! (`members`, `room`).
//!
//! Only what may be an operation's own fault counts against it: see [`Blame`].

use std::time::Duration;

use shared::outbox::{Blame, ClaimedOperation, Outcome};

use crate::{
    breaker::Signal,
    homeserver::{Failure, Refusal},
};

/// The longest wait between two attempts.
const MAX_BACKOFF: Duration = Duration::from_mins(5);

/// How long to wait when a rate limit does not say.
const DEFAULT_RATE_LIMIT: Duration = Duration::from_secs(5);

/// The longest that a rate limit may ask for: a nonsensical answer must not park a lane for years.
const MAX_RATE_LIMIT: Duration = Duration::from_hours(1);

/// Added to what a rate limit says: answers round, and a request just before the end costs another round.
const RATE_LIMIT_MARGIN: Duration = Duration::from_millis(50);

/// Server errors after which an operation is dead, if the homeserver took others meanwhile.
const MAX_SERVER_ERRORS: i32 = 5;

/// Faults of ours (panics) after which an operation is dead.
const MAX_ATTEMPTS: i32 = 8;

/// How long an operation is tried that may itself be why it fails.
const BUDGET: Duration = Duration::from_hours(72);

/// What a failure means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing was sent.
    Down,
    /// It may have been accepted.
    Ambiguous,
    /// It may have been accepted; the homeserver itself says that it failed.
    ServerError,
    /// Certainly not accepted; again after this long.
    RateLimited(Duration),
    /// The account's fault.
    Account,
    /// The room's fault.
    Room,
    /// The operation's own fault, with what an operator can do.
    Own(&'static str),
    /// Refused by something that is no homeserver.
    NotMatrix,
    /// Certainly not accepted, nobody knows why.
    Unknown,
}

impl Verdict {
    /// A bounded name for metrics.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Ambiguous => "ambiguous",
            Self::ServerError => "server_error",
            Self::RateLimited(_) => "rate_limited",
            Self::Account => "account",
            Self::Room => "room",
            Self::Own(_) => "own",
            Self::NotMatrix => "not_matrix",
            Self::Unknown => "unknown",
        }
    }

    /// What it tells of the homeserver. `of_account` is true for requests whose rate limit is the account's.
    pub(crate) const fn signal(&self, of_account: bool) -> Signal {
        match self {
            Self::Down | Self::Ambiguous | Self::ServerError | Self::NotMatrix => Signal::Failed,
            Self::RateLimited(wait) if of_account => Signal::RateLimited(*wait),
            Self::Account => Signal::TokenRefused,
            Self::RateLimited(_) | Self::Room | Self::Own(_) | Self::Unknown => Signal::Alive,
        }
    }
}

/// The table.
pub(crate) fn judge(failure: &Failure) -> Verdict {
    match failure {
        Failure::NotSent(_) => Verdict::Down,
        Failure::NoAnswer(_) => Verdict::Ambiguous,
        Failure::Refused(refusal) => judge_refusal(refusal),
        Failure::NotBuilt(_) => Verdict::Unknown,
    }
}

fn judge_refusal(refusal: &Refusal) -> Verdict {
    match (refusal.status, refusal.errcode.as_deref()) {
        (429, _) | (_, Some("M_LIMIT_EXCEEDED")) => Verdict::RateLimited(
            refusal.retry_after.unwrap_or(DEFAULT_RATE_LIMIT).min(MAX_RATE_LIMIT) + RATE_LIMIT_MARGIN,
        ),
        (500..=599, Some(_)) => Verdict::ServerError,
        (500..=599, None) => Verdict::Ambiguous,
        (401, _)
        | (
            403,
            Some(
                "M_USER_SUSPENDED"
                | "M_USER_LOCKED"
                | "M_USER_DEACTIVATED"
                | "M_CONSENT_NOT_GIVEN"
                | "M_RESOURCE_LIMIT_EXCEEDED",
            ),
        ) => Verdict::Account,
        (403, Some("M_FORBIDDEN")) => Verdict::Room,
        (413, _) | (_, Some("M_TOO_LARGE")) => {
            Verdict::Own("the event is larger than the homeserver takes: shorten the message, then requeue it")
        }
        (400, Some("M_BAD_JSON" | "M_NOT_JSON")) => {
            Verdict::Own("the homeserver cannot read the event: this is a fault of this program, please report it")
        }
        (400, Some(_)) => Verdict::Own("the homeserver refuses the event as it is: see the error code"),
        (_, None) => Verdict::NotMatrix,
        _ => Verdict::Unknown,
    }
}

/// How long to wait after so many failures in a row. `jitter` is from 0 to 1.
pub(crate) fn backoff(base: Duration, failures: i32, jitter: f64) -> Duration {
    let doublings = u32::try_from(failures).unwrap_or(0).min(16);
    let full = base.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    full.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// What happened to an operation before.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct History {
    /// Attempts in a row that failed for any reason but a rate limit.
    pub(crate) failures: i32,
    /// Those that were its own fault.
    pub(crate) attempts: i32,
    /// How long ago it first failed in a way that may be its own fault.
    pub(crate) suspected_for: Option<Duration>,
    /// Others were delivered since it last failed, so the homeserver is well.
    pub(crate) others_delivered: bool,
}

impl History {
    /// Of an operation as it was handed out, while nothing is known of others.
    pub(crate) fn of(operation: &ClaimedOperation) -> Self {
        let ClaimedOperation { failures, attempts, suspected_for, .. } = *operation;
        Self { failures, attempts, suspected_for, others_delivered: false }
    }
}

/// What follows for an operation.
pub(crate) fn outcome(verdict: &Verdict, base: Duration, history: &History, jitter: f64) -> Outcome {
    let retry_in = backoff(base, history.failures, jitter);
    let over_budget = history.suspected_for.is_some_and(|suspected| suspected >= BUDGET);
    match verdict {
        Verdict::Down => Outcome::Refused { retry_in, blame: Blame::Passing },
        Verdict::ServerError if history.others_delivered && history.attempts + 1 >= MAX_SERVER_ERRORS => {
            Outcome::OwnFault {
                hint: "the homeserver fails on it, but not on others: look into the homeserver's log, then requeue it",
            }
        }
        Verdict::ServerError if history.others_delivered => Outcome::Ambiguous { retry_in, blame: Blame::Own },
        Verdict::Ambiguous if history.others_delivered && over_budget => Outcome::GaveUp {
            hint: "for three days it got no answer, although others did: look into the homeserver's log, then requeue it",
        },
        Verdict::Ambiguous if history.others_delivered => Outcome::Ambiguous { retry_in, blame: Blame::Suspect },
        Verdict::Ambiguous | Verdict::ServerError => Outcome::Ambiguous { retry_in, blame: Blame::Passing },
        Verdict::RateLimited(wait) => Outcome::Refused { retry_in: *wait, blame: Blame::Nobody },
        // The circuit is open from now on: whoever claims it next speaks with a token that is accepted.
        Verdict::Account => Outcome::Refused { retry_in: base, blame: Blame::Nobody },
        Verdict::Room => Outcome::RoomFault { reason: "the homeserver forbids it in this room".to_owned() },
        Verdict::Own(hint) => Outcome::OwnFault { hint },
        Verdict::Unknown | Verdict::NotMatrix if !history.others_delivered => {
            Outcome::Refused { retry_in, blame: Blame::Passing }
        }
        Verdict::Unknown | Verdict::NotMatrix if over_budget => Outcome::GaveUp {
            hint: "for three days it was refused, and others were not: see the attempts, then requeue it",
        },
        Verdict::Unknown | Verdict::NotMatrix => Outcome::Refused { retry_in, blame: Blame::Suspect },
    }
}

/// What follows when an attempt was broken off: by a fault of ours, or because the process stops. Nobody knows how far its
/// request got.
pub(crate) fn broken_off(stopping: bool, base: Duration, history: &History) -> Outcome {
    let retry_in = backoff(base, history.failures, 0.5);
    if stopping {
        Outcome::Ambiguous { retry_in, blame: Blame::Nobody }
    } else if history.attempts + 1 >= MAX_ATTEMPTS {
        Outcome::OwnFault { hint: "this program failed on it again and again: please report what its log says" }
    } else {
        Outcome::Ambiguous { retry_in, blame: Blame::Own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, errcode: Option<&str>) -> Failure {
        Failure::Refused(Refusal {
            status,
            errcode: errcode.map(str::to_owned),
            retry_after: None,
            detail: String::new(),
        })
    }

    #[test]
    fn every_answer_has_one_verdict() {
        let own = |failure: &Failure| matches!(judge(failure), Verdict::Own(_));
        assert_eq!(judge(&Failure::NotSent(String::new())), Verdict::Down);
        assert_eq!(judge(&Failure::NoAnswer(String::new())), Verdict::Ambiguous);
        assert_eq!(judge(&Failure::NotBuilt(String::new())), Verdict::Unknown);
        for status in [500, 502, 503, 504, 520, 524] {
            assert_eq!(judge(&refused(status, None)), Verdict::Ambiguous, "{status}");
            assert_eq!(judge(&refused(status, Some("M_UNKNOWN"))), Verdict::ServerError, "{status}");
        }
        assert_eq!(judge(&refused(401, Some("M_UNKNOWN_TOKEN"))), Verdict::Account);
        assert_eq!(judge(&refused(403, Some("M_FORBIDDEN"))), Verdict::Room);
        assert!(own(&refused(413, Some("M_TOO_LARGE"))));
        assert!(own(&refused(400, Some("M_BAD_JSON"))));
        assert!(own(&refused(400, Some("M_UNKNOWN"))));
        assert_eq!(judge(&refused(404, Some("M_UNRECOGNIZED"))), Verdict::Unknown);
        assert_eq!(judge(&refused(403, None)), Verdict::NotMatrix);
        assert_eq!(judge(&refused(404, None)), Verdict::NotMatrix);
        for errcode in ["M_USER_SUSPENDED", "M_RESOURCE_LIMIT_EXCEEDED"] {
            assert_eq!(judge(&refused(403, Some(errcode))), Verdict::Account);
        }
    }

    #[test]
    fn a_rate_limit_waits_as_long_as_it_says() {
        let mut failure = refused(429, Some("M_LIMIT_EXCEEDED"));
        assert_eq!(judge(&failure), Verdict::RateLimited(DEFAULT_RATE_LIMIT + RATE_LIMIT_MARGIN));
        if let Failure::Refused(refusal) = &mut failure {
            refusal.retry_after = Some(Duration::from_secs(4));
        }
        assert_eq!(judge(&failure), Verdict::RateLimited(Duration::from_millis(4050)));
    }

    #[test]
    fn waits_double_up_to_a_bound_and_never_burn_an_attempt_for_an_outage() {
        let base = Duration::from_secs(1);
        let waits: Vec<_> = (0..4).map(|failures| backoff(base, failures, 0.5).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8]);
        assert_eq!(backoff(base, 1000, 0.5), MAX_BACKOFF);
        let verdicts =
            [Verdict::Down, Verdict::Ambiguous, Verdict::ServerError, Verdict::RateLimited(base), Verdict::Account];
        for failures in [0, 7, 8, 100_000] {
            for verdict in &verdicts {
                let history = History { failures, attempts: 7, suspected_for: Some(BUDGET), others_delivered: false };
                let outcome = outcome(verdict, base, &history, 0.5);
                let harmless = matches!(
                    outcome,
                    Outcome::Refused { blame: Blame::Nobody | Blame::Passing, .. }
                        | Outcome::Ambiguous { blame: Blame::Passing, .. }
                );
                assert!(harmless, "{verdict:?} after {failures} failures: {outcome:?}");
            }
        }
    }

    fn after(verdict: &Verdict, history: History) -> Outcome {
        outcome(verdict, Duration::from_secs(1), &history, 0.5)
    }

    #[test]
    fn an_unknown_refusal_is_given_up_after_its_budget_of_time_and_not_before() {
        for verdict in [Verdict::Unknown, Verdict::NotMatrix] {
            let tried = |suspected_for, others_delivered| {
                after(&verdict, History { attempts: 100, suspected_for, others_delivered, ..History::default() })
            };
            assert!(matches!(tried(None, true), Outcome::Refused { blame: Blame::Suspect, .. }));
            let nearly = BUDGET.checked_sub(Duration::from_secs(1));
            assert!(matches!(tried(nearly, true), Outcome::Refused { blame: Blame::Suspect, .. }));
            assert!(matches!(tried(Some(BUDGET), true), Outcome::GaveUp { .. }));
            // Nothing else gets through either: it is not its fault.
            assert!(matches!(tried(Some(BUDGET), false), Outcome::Refused { blame: Blame::Passing, .. }));
        }
    }

    #[test]
    fn a_server_error_is_its_own_fault_the_fifth_time_if_others_were_delivered_in_between() {
        let tried = |attempts, others_delivered| {
            after(&Verdict::ServerError, History { attempts, others_delivered, ..History::default() })
        };
        assert!(matches!(tried(3, true), Outcome::Ambiguous { blame: Blame::Own, .. }));
        assert!(matches!(tried(4, true), Outcome::OwnFault { .. }));
        assert!(matches!(tried(4, false), Outcome::Ambiguous { blame: Blame::Passing, .. }));
    }

    #[test]
    fn silence_is_given_up_after_its_budget_only_while_others_are_delivered() {
        let tried = |others_delivered, suspected_for| {
            after(&Verdict::Ambiguous, History { suspected_for, others_delivered, ..History::default() })
        };
        assert!(matches!(tried(true, None), Outcome::Ambiguous { blame: Blame::Suspect, .. }));
        assert!(matches!(tried(false, Some(BUDGET)), Outcome::Ambiguous { blame: Blame::Passing, .. }));
        assert!(matches!(tried(true, Some(BUDGET)), Outcome::GaveUp { .. }));
    }

    #[test]
    fn a_fault_of_ours_burns_attempts_until_it_is_dead_and_a_stop_burns_none() {
        let broken = |stopping, attempts| {
            broken_off(stopping, Duration::from_secs(1), &History { attempts, ..History::default() })
        };
        assert!(matches!(broken(false, 6), Outcome::Ambiguous { blame: Blame::Own, .. }));
        assert!(matches!(broken(false, 7), Outcome::OwnFault { .. }));
        assert!(matches!(broken(true, 100), Outcome::Ambiguous { blame: Blame::Nobody, .. }));
    }
}
