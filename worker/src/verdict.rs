//! What a homeserver's answer, or its silence, means for an operation: the one table of errors.
//!
//! | what came | verdict |
//! |---|---|
//! | nobody listens, the name is unknown | down: nothing was sent |
//! | timeout, cut connection, an answer that makes no sense, 5xx | ambiguous: it may have been accepted |
//! | 429, `M_LIMIT_EXCEEDED` | rate limited, for as long as the answer says |
//! | 401 | the account's fault: no operation of it can go |
//! | 403 `M_FORBIDDEN` | the room's fault: nothing more of its lane can go |
//! | 400 with a Matrix error code, 413 | its own fault: it will never be taken |
//! | anything else | unknown: tried again, and counted |
//!
//! Only a verdict of "its own fault" or "unknown" burns an operation's attempts.

use std::time::Duration;

use shared::outbox::Outcome;

use crate::homeserver::{Failure, Refusal};

/// The longest wait between two attempts.
const MAX_BACKOFF: Duration = Duration::from_mins(5);

/// How long to wait when a rate limit does not say.
const DEFAULT_RATE_LIMIT: Duration = Duration::from_secs(5);

/// Added to what a rate limit says: answers round, and a request just before the end costs another round.
const RATE_LIMIT_MARGIN: Duration = Duration::from_millis(50);

/// How long an account's fault waits before it is tried again: someone has to mend it.
const ACCOUNT_BACKOFF: Duration = Duration::from_secs(30);

/// Attempts of its own fault after which an operation is dead.
const MAX_ATTEMPTS: i32 = 8;

/// What a failure means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing was sent.
    Down,
    /// It may have been accepted.
    Ambiguous,
    /// Certainly not accepted; again after this long.
    RateLimited(Duration),
    /// The account's fault.
    Account,
    /// The room's fault.
    Room,
    /// The operation's own fault, with what an operator can do.
    Own(&'static str),
    /// Certainly not accepted, nobody knows why.
    Unknown,
}

impl Verdict {
    /// A bounded name for metrics.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Ambiguous => "ambiguous",
            Self::RateLimited(_) => "rate_limited",
            Self::Account => "account",
            Self::Room => "room",
            Self::Own(_) => "own",
            Self::Unknown => "unknown",
        }
    }
}

/// The table.
pub(crate) fn judge(failure: &Failure) -> Verdict {
    match failure {
        Failure::NotSent(_) => Verdict::Down,
        Failure::NoAnswer(_) => Verdict::Ambiguous,
        Failure::Refused(refusal) => judge_refusal(refusal),
    }
}

fn judge_refusal(refusal: &Refusal) -> Verdict {
    match (refusal.status, refusal.errcode.as_deref()) {
        (429, _) | (_, Some("M_LIMIT_EXCEEDED")) => {
            Verdict::RateLimited(refusal.retry_after.unwrap_or(DEFAULT_RATE_LIMIT) + RATE_LIMIT_MARGIN)
        }
        (500..=599, _) => Verdict::Ambiguous,
        (401, _) => Verdict::Account,
        (403, Some("M_FORBIDDEN")) => Verdict::Room,
        (413, _) | (_, Some("M_TOO_LARGE")) => {
            Verdict::Own("the event is larger than the homeserver takes: shorten the message, then requeue it")
        }
        (400, Some("M_BAD_JSON" | "M_NOT_JSON")) => {
            Verdict::Own("the homeserver cannot read the event: this is a fault of this program, please report it")
        }
        (400, Some(_)) => Verdict::Own("the homeserver refuses the event as it is: see the error code"),
        _ => Verdict::Unknown,
    }
}

/// How long to wait after so many failures in a row. `jitter` is from 0 to 1.
pub(crate) fn backoff(base: Duration, failures: i32, jitter: f64) -> Duration {
    let doublings = u32::try_from(failures).unwrap_or(0).min(16);
    let full = base.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    full.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// What follows for an operation that has failed `failures` times in a row, `attempts` of them by its own fault.
pub(crate) fn outcome(verdict: &Verdict, base: Duration, failures: i32, attempts: i32, jitter: f64) -> Outcome {
    let retry_in = backoff(base, failures, jitter);
    match verdict {
        Verdict::Down => Outcome::Refused { retry_in, own_fault: false },
        Verdict::Ambiguous => Outcome::Ambiguous { retry_in },
        Verdict::RateLimited(wait) => Outcome::Refused { retry_in: *wait, own_fault: false },
        Verdict::Account => Outcome::Refused { retry_in: ACCOUNT_BACKOFF, own_fault: false },
        Verdict::Room => Outcome::RoomFault { reason: "the homeserver forbids it in this room".to_owned() },
        Verdict::Own(hint) => Outcome::OwnFault { hint },
        Verdict::Unknown if attempts + 1 >= MAX_ATTEMPTS => {
            Outcome::OwnFault { hint: "the homeserver refused it again and again: see the attempts" }
        }
        Verdict::Unknown => Outcome::Refused { retry_in, own_fault: true },
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
        for status in [500, 502, 503, 504, 520, 524] {
            assert_eq!(judge(&refused(status, None)), Verdict::Ambiguous, "{status}");
            assert_eq!(judge(&refused(status, Some("M_UNKNOWN"))), Verdict::Ambiguous, "{status}");
        }
        assert_eq!(judge(&refused(401, Some("M_UNKNOWN_TOKEN"))), Verdict::Account);
        assert_eq!(judge(&refused(403, Some("M_FORBIDDEN"))), Verdict::Room);
        assert!(own(&refused(413, Some("M_TOO_LARGE"))));
        assert!(own(&refused(400, Some("M_BAD_JSON"))));
        assert!(own(&refused(400, Some("M_UNKNOWN"))));
        assert_eq!(judge(&refused(404, Some("M_UNRECOGNIZED"))), Verdict::Unknown);
        assert_eq!(judge(&refused(403, None)), Verdict::Unknown);
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
        for failures in [0, 7, 8, 100_000] {
            for verdict in [Verdict::Down, Verdict::Ambiguous, Verdict::RateLimited(base), Verdict::Account] {
                let outcome = outcome(&verdict, base, failures, 7, 0.5);
                assert!(
                    matches!(outcome, Outcome::Refused { own_fault: false, .. } | Outcome::Ambiguous { .. }),
                    "{verdict:?} after {failures} failures: {outcome:?}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_refusal_burns_attempts_and_then_dies() {
        let base = Duration::from_secs(1);
        let after = |attempts| outcome(&Verdict::Unknown, base, attempts, attempts, 0.5);
        assert!(matches!(after(6), Outcome::Refused { own_fault: true, .. }));
        assert!(matches!(after(7), Outcome::OwnFault { .. }));
    }
}
