//! Why an operation is dead and what to do about it, in words: the one place that has them.

use super::Kind;
use crate::calls::SignalKind;

/// What to do about an operation whose message is dead.
pub(super) const PARENT_DEAD_HINT: &str = "requeue the message that it belongs to: this comes back with it";

/// A dead letter's cause, for people. A cause that only a newer release knows stands for itself.
pub fn cause_in_words(cause: &str) -> &str {
    match cause {
        "own_fault" => "it cannot be sent as it is",
        "parent_dead" => "the message that it belongs to did not arrive",
        "gave_up" => "it was tried until its time was up",
        other => other,
    }
}

/// What an operator can do about a dead letter. `noted` is what was known when it died, and the answer where nothing
/// better is known.
pub fn hint<'a>(cause: &str, errcode: Option<&str>, kind: &str, noted: &'a str) -> &'a str {
    let invites = kind == Kind::Invite.as_str();
    let calls = matches!(Kind::parse(kind), Some(Kind::Call(_)));
    match (cause, errcode) {
        ("parent_dead", _) => PARENT_DEAD_HINT,
        (_, Some("M_TOO_LARGE")) if calls => "the call is over or goes on without it: discard this",
        (_, Some("M_TOO_LARGE")) => {
            "have the message shortened: an edit changes what is sent; then requeue it, or discard it"
        }
        (_, Some("M_DUPLICATE_ANNOTATION")) => {
            "the service account has reacted to this message with the same key by other means: discard this"
        }
        (_, Some("M_BAD_JSON" | "M_NOT_JSON")) => {
            "a fault of this program: report it with what `outboxctl show` says; requeue it after an upgrade"
        }
        (_, Some("M_FORBIDDEN")) if invites => {
            "lift the user's ban from the room or give the service account the power to invite, then requeue it; or \
             remove the member"
        }
        (_, Some("M_NOT_FOUND")) if invites => "create the user's account on the homeserver, then requeue it",
        (_, Some("M_NOT_FOUND" | "M_UNRECOGNIZED")) => {
            "look whether MATRIX_HOMESERVER_URL, or a proxy before it, leads to the homeserver, then requeue it"
        }
        (_, Some("M_USER_DEACTIVATED" | "M_INVALID_USERNAME")) if invites => "remove the member, then discard this",
        (_, Some("M_UNSUPPORTED_ROOM_VERSION" | "M_INCOMPATIBLE_ROOM_VERSION")) => {
            "upgrade the homeserver, then requeue it"
        }
        (_, Some("M_INVALID_PARAM" | "M_MISSING_PARAM" | "M_UNKNOWN")) if invites => {
            "look whether the user's account exists on the homeserver, then requeue it; or remove the member"
        }
        _ => noted,
    }
}

/// What discarding a live operation leaves as it is on Matrix: what the operator now has to do by hand, or bear.
pub fn left_undone(kind: &str) -> &'static str {
    match Kind::parse(kind) {
        Some(Kind::Redact) => {
            "a text that was deleted stays readable on Matrix: redact its event there by hand, with an account that may"
        }
        Some(Kind::Remove) => {
            "the member stays in the room and reads what is sent from now on: remove them there by hand, with an account \
             that may"
        }
        Some(Kind::React) => {
            "a reaction that was taken back may stand on Matrix, if it has arrived: its redaction follows"
        }
        Some(Kind::Call(SignalKind::Hangup | SignalKind::Reject)) => {
            "a phone may ring on until its own time is over, and a device may believe that the call goes on"
        }
        Some(Kind::Call(_)) => "the call goes on without it, if it goes on",
        Some(Kind::Invite) => "the member is not invited: remove and add them again to try once more",
        _ => {
            "a text that was deleted may stand on Matrix: its redaction is still to be done, and finds it only if it has \
             arrived"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_says_what_to_do_for_the_kind_of_operation() {
        let noted = "what the worker thought";
        let hint = |cause, errcode, kind| hint(cause, errcode, kind, noted);
        assert!(hint("own_fault", Some("M_TOO_LARGE"), "message").contains("shortened"));
        assert!(hint("own_fault", Some("M_FORBIDDEN"), "invite").contains("ban"));
        assert!(!hint("own_fault", Some("M_FORBIDDEN"), "message").contains("ban"));
        assert!(hint("parent_dead", Some("M_TOO_LARGE"), "edit").contains("requeue the message"));
        assert_eq!(hint("own_fault", Some("M_NEVER_HEARD_OF"), "message"), noted);
        assert_eq!(hint("own_fault", None, "message"), noted);
    }

    #[test]
    fn every_cause_that_the_schema_allows_has_words() {
        let schema = include_str!("../../../migrations/0001_thread.sql");
        let causes = schema.split_once("check (cause in (").and_then(|(_, rest)| rest.split_once(')'));
        let causes: Vec<_> = causes.into_iter().flat_map(|(causes, _)| causes.split(',')).collect();
        assert_eq!(causes.len(), 3);
        for cause in causes {
            let cause = cause.trim().trim_matches('\'');
            assert_ne!(cause_in_words(cause), cause);
        }
    }
}
