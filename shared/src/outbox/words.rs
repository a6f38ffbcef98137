//! Why an operation is dead and what to do about it, in words: the one place that has them.

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::calls::SignalKind;

/// Why a lane is held: the service account is not in the conversation's room, and never was.
pub const HOLD_NEVER_IN_ROOM: &str = "the service account is not in the room: invite it there, then resume the lane";

/// The same, but it was there before.
pub const HOLD_NOT_IN_ROOM: &str =
    "the service account is not in the room any more: invite it there, then resume the lane";

/// The same of the room that replaced the conversation's.
pub const HOLD_NOT_IN_REPLACEMENT: &str =
    "the room was replaced by one that the service account is not in: invite it there, then resume the lane";

/// The end of what a hold says when somebody else's room has the conversation's alias.
pub const HOLD_ALIAS_NOT_OURS: &str = "belongs to a room that is not ours";

/// Why a lane is held: a room that nobody lets us into has the conversation's alias, and nobody lets us free that.
pub const HOLD_ALIAS_SHUT: &str = "the room under the alias is not open to us, nor the alias ours to take: free the alias, \
     then resume the lane";

/// What this program can do on Matrix about what a conversation suffers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// Bring the service account back into the room.
    Rejoin,
    /// Invite members again who could not be invited.
    Reinvite,
    /// Take the room that stands under the conversation's alias.
    AdoptAlias,
}

impl Repair {
    /// Every repair.
    pub const ALL: [Self; 3] = [Self::Rejoin, Self::Reinvite, Self::AdoptAlias];

    /// As in the database and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejoin => "rejoin",
            Self::Reinvite => "reinvite",
            Self::AdoptAlias => "adopt_alias",
        }
    }
}

/// What holds say that a rejoin mends.
const HOLDS_OUTSIDE: [&str; 3] = [HOLD_NEVER_IN_ROOM, HOLD_NOT_IN_ROOM, HOLD_NOT_IN_REPLACEMENT];

/// What the holds say that this repair mends, one of it at least; and what none of them says.
pub(super) const fn said_in_holds(repair: Repair) -> (&'static [&'static str], &'static [&'static str]) {
    match repair {
        Repair::Rejoin => (&HOLDS_OUTSIDE, &[]),
        Repair::AdoptAlias => (&[HOLD_ALIAS_NOT_OURS, HOLD_ALIAS_SHUT], &HOLDS_OUTSIDE),
        Repair::Reinvite => (&[], &[]),
    }
}

/// What a hold tells of, each by itself: a worker adds to what holds a lane, and so does an operator.
pub fn said_in_hold(hold: &str) -> impl Iterator<Item = &str> {
    hold.split("; held before: ").flat_map(|said| said.split("; and: "))
}

/// The repair for what holds a lane, if there is one. A hold may tell of several things: that the service account is
/// outside counts first.
pub fn repair_of_hold(hold: &str) -> Option<Repair> {
    let says_one_of = |words: &[&str]| words.iter().any(|words| hold.contains(words));
    Repair::ALL.into_iter().find(|&repair| {
        let (says, but_not) = said_in_holds(repair);
        says_one_of(says) && !says_one_of(but_not)
    })
}

/// The repair for a dead letter, or for what holds its lane.
pub fn repair(cause: &str, errcode: Option<&str>, kind: &str, hold: Option<&str>) -> Option<Repair> {
    let refused =
        matches!(errcode, Some("M_FORBIDDEN" | "M_NOT_FOUND" | "M_INVALID_PARAM" | "M_MISSING_PARAM" | "M_UNKNOWN"));
    if kind == Kind::Invite.as_str() && matches!(cause, "own_fault" | "gave_up") && refused {
        return Some(Repair::Reinvite);
    }
    hold.and_then(repair_of_hold)
}

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

/// Why an operation was given up although it may have been sent, for people.
pub(super) fn withdrawal_in_words(reason: &str) -> &str {
    match reason {
        "discarded" => "an operator discarded it",
        "deleted" => "its message was deleted",
        "not_found" => "it was looked for and not found",
        other => other,
    }
}

/// What an operator can do about a dead letter. `noted` is what was known when it died, and the answer where nothing
/// better is known.
pub fn hint<'a>(cause: &str, errcode: Option<&str>, kind: &str, noted: &'a str) -> &'a str {
    let invites = kind == Kind::Invite.as_str();
    let of_call = matches!(Kind::parse(kind), Some(Kind::Call(_)));
    match (cause, errcode) {
        ("parent_dead", _) => PARENT_DEAD_HINT,
        (_, Some("M_TOO_LARGE")) if of_call => "discard this: the call goes on without it, or ends by itself",
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
        Some(Kind::Call(SignalKind::Invite)) => {
            "nobody on Matrix is called; should it have arrived all the same, whoever rings there is told of the call's end"
        }
        Some(Kind::Call(SignalKind::Hangup | SignalKind::Reject | SignalKind::SelectAnswer)) => {
            "whoever rings or talks on Matrix is not told that the call is over, or was answered: a phone that rings stops \
             by its own clock, one that talks has to hang up"
        }
        Some(Kind::Call(_)) => "Matrix does not hear it: the devices of the call may not find each other",
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
        assert!(!hint("own_fault", Some("M_TOO_LARGE"), "call_invite").contains("shortened"), "no edit changes a call");
    }

    #[test]
    fn a_hold_has_its_repair_whatever_else_was_said_before_and_after_it() {
        for (reason, repair) in [
            (HOLD_NEVER_IN_ROOM, Some(Repair::Rejoin)),
            (HOLD_NOT_IN_ROOM, Some(Repair::Rejoin)),
            (HOLD_NOT_IN_REPLACEMENT, Some(Repair::Rejoin)),
            ("the alias #nova-conv-1:nova.test belongs to a room that is not ours", Some(Repair::AdoptAlias)),
            (HOLD_ALIAS_SHUT, Some(Repair::AdoptAlias)),
            ("the homeserver forbids it in this room", None),
            ("an operator's wish", None),
        ] {
            assert_eq!(repair_of_hold(reason), repair, "{reason}");
            assert_eq!(repair_of_hold(&format!("snooze; held before: {reason}; and: something")), repair, "{reason}");
        }
    }

    #[test]
    fn only_an_invitation_that_the_homeserver_refused_is_repeated() {
        let repair = |cause, errcode, kind| repair(cause, errcode, kind, None);
        for errcode in ["M_FORBIDDEN", "M_NOT_FOUND", "M_UNKNOWN"] {
            assert_eq!(repair("own_fault", Some(errcode), "invite"), Some(Repair::Reinvite));
            assert_eq!(repair("own_fault", Some(errcode), "message"), None);
        }
        assert_eq!(repair("own_fault", Some("M_USER_DEACTIVATED"), "invite"), None, "there is nobody to invite");
        for repair in Repair::ALL {
            assert_eq!(serde_json::to_value(repair).ok().as_ref().and_then(|v| v.as_str()), Some(repair.as_str()));
        }
    }

    #[test]
    fn what_discarding_something_of_a_call_leaves_undone_is_said_of_a_call() {
        for kind in SignalKind::ALL {
            let words = left_undone(Kind::Call(kind).as_str());
            assert!(words.contains("call") && !words.contains("text"), "{kind:?}: {words}");
        }
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
