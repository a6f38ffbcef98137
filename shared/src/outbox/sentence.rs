//! Why an operation waits, in a sentence: for operators with all there is to know, for members without what is not theirs.

use std::fmt::Write as _;

use time::{OffsetDateTime, UtcOffset, macros::format_description};

use super::{Repair, words};
use crate::ids::{ConversationId, EventId, LaneId, OutboxId};

/// What an operation waits for, or how it ended.
#[derive(Debug)]
pub(super) enum Why {
    /// It stands in the room.
    Delivered { event_id: EventId, at: Option<OffsetDateTime> },
    /// It is not tried again by itself.
    Dead { cause: String, errcode: Option<String>, hint: String, at: Option<OffsetDateTime>, repair: Option<Repair> },
    /// It was given up although it may have been sent.
    Withdrawn { reason: String, at: Option<OffsetDateTime> },
    /// It went before it left.
    Cancelled,
    /// Its lane waits for somebody.
    Held { hold: String, repair: Option<Repair> },
    /// Everything, or its class, is paused.
    ClassPaused { scope: String, reason: String, until: Option<OffsetDateTime> },
    /// Its lane is paused until a time.
    LanePaused { reason: String, until: OffsetDateTime },
    /// A worker has it.
    UnderWay { attempt: i64 },
    /// Another goes first.
    Behind(Head),
    /// Its last attempt failed.
    BacksOff { attempt: i64, errcode: Option<String>, until: OffsetDateTime },
    /// It is not to go before a time.
    NotBefore { at: OffsetDateTime },
    /// Nothing: a worker takes it next.
    Worker,
}

/// The first of a lane, which others wait for.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) outbox_id: OutboxId,
    pub(super) kind: String,
    /// How many attempts it had.
    pub(super) attempts: i64,
    pub(super) errcode: Option<String>,
    /// When it goes, if that is later.
    pub(super) until: Option<OffsetDateTime>,
    pub(super) under_way: bool,
}

/// Where the operation stands.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) conversation_id: ConversationId,
    pub(super) lane_id: Option<LaneId>,
    pub(super) waited: Option<i64>,
    pub(super) ahead: i64,
    pub(super) behind: i64,
    pub(super) now: OffsetDateTime,
}

/// `41 s`, `5 min 3 s`, `2 h 5 min`, `3 d 4 h`.
pub(super) fn span(seconds: i64) -> String {
    let s = seconds.max(0);
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// A time of day, UTC; with its day, if that is another.
fn clock(at: OffsetDateTime, now: OffsetDateTime) -> String {
    let (at, now) = (at.to_offset(UtcOffset::UTC), now.to_offset(UtcOffset::UTC));
    let time = at.format(format_description!("[hour]:[minute]:[second]")).unwrap_or_default();
    if at.date() == now.date() { time } else { format!("{} {time}", at.date()) }
}

impl Standing {
    fn clock(&self, at: OffsetDateTime) -> String {
        clock(at, self.now)
    }

    fn waiting(&self) -> String {
        format!("waiting {}", span(self.waited.unwrap_or(0)))
    }

    /// What comes after it.
    fn tail(&self) -> String {
        if self.behind > 0 { format!("; {} behind it", self.behind) } else { String::new() }
    }

    fn lane(&self) -> String {
        let lane_id = self.lane_id.map_or_else(|| "-".to_owned(), |lane_id| lane_id.to_string());
        format!("{}/{lane_id}", self.conversation_id)
    }

    /// When it has its turn, once what is first has gone.
    fn turn(&self) -> String {
        match self.ahead {
            ..=1 => "then it goes".to_owned(),
            ahead => format!("then {} more, then it goes", ahead - 1),
        }
    }
}

impl Why {
    /// What can be done about it on Matrix, by this program.
    pub(super) const fn repair(&self) -> Option<Repair> {
        match self {
            Self::Dead { repair, .. } | Self::Held { repair, .. } => *repair,
            _ => None,
        }
    }

    /// All there is to know, and what to do.
    pub(super) fn for_operators(&self, standing: &Standing) -> String {
        let (waiting, tail) = (standing.waiting(), standing.tail());
        match self {
            Self::Delivered { event_id, at } => {
                let at = at.map(|at| format!(" at {}", standing.clock(at))).unwrap_or_default();
                format!("delivered{at} as {event_id}")
            }
            Self::Dead { cause, errcode, hint, at, repair } => {
                let at = at.map(|at| format!(" since {}", standing.clock(at))).unwrap_or_default();
                let errcode = errcode.as_ref().map(|errcode| format!(" ({errcode})")).unwrap_or_default();
                let repair = repair.map(|repair| format!("; repair: {}", repair.as_str())).unwrap_or_default();
                format!("dead{at}: {}{errcode}; {hint}{repair}", words::cause_in_words(cause))
            }
            Self::Withdrawn { reason, at } => {
                let at = at.map(|at| format!(" at {}", standing.clock(at))).unwrap_or_default();
                format!("given up{at}, although it may stand in the room: {}", words::withdrawal_in_words(reason))
            }
            Self::Cancelled => CANCELLED.to_owned(),
            Self::Held { hold, repair } => {
                let repair = repair.map(|repair| format!("repair: {}, ", repair.as_str())).unwrap_or_default();
                let lane = standing.lane();
                format!(
                    "{waiting}: its lane is held ({hold}); {repair}mend it, then `outboxctl resume --lane {lane}`{tail}"
                )
            }
            Self::ClassPaused { scope, reason, until } => {
                let what = paused_scope(scope);
                let end = until.map_or_else(
                    || "until somebody resumes it".to_owned(),
                    |until| format!("until {}", standing.clock(until)),
                );
                format!("{waiting}: {what} paused {end} ({reason}){tail}")
            }
            Self::LanePaused { reason, until } => {
                format!("{waiting}: its lane is paused until {} ({reason}){tail}", standing.clock(*until))
            }
            Self::UnderWay { attempt } => {
                format!("under way for {}: attempt {attempt} is at the homeserver{tail}", standing.span())
            }
            Self::Behind(head) => {
                let lane_id = standing.lane_id.map_or_else(|| "-".to_owned(), |lane_id| lane_id.to_string());
                let (kind, id) = (&head.kind, head.outbox_id);
                let how = head.in_words(standing);
                format!("{waiting}: lane {lane_id} is behind {kind} {id} ({how}); {}{tail}", standing.turn())
            }
            Self::BacksOff { attempt, errcode, until } => {
                let failed = errcode.as_ref().map_or_else(String::new, |errcode| format!(" with {errcode}"));
                let until = standing.clock(*until);
                format!("{waiting}: attempt {attempt} failed{failed}; it is tried again at {until}{tail}")
            }
            Self::NotBefore { at } => format!("{waiting}: it goes at {}, not before{tail}", standing.clock(*at)),
            Self::Worker => format!("{waiting}: a worker takes it next{tail}"),
        }
    }

    /// The same without what is not a member's to know: others' operations, rooms and hosts, and what operators say.
    pub(super) fn for_members(&self, standing: &Standing) -> String {
        let waiting = standing.waiting();
        match self {
            Self::Dead { cause, errcode, .. } => {
                let errcode = errcode.as_ref().map(|errcode| format!(" ({errcode})")).unwrap_or_default();
                format!("dead: {}{errcode}; an operator has to look at it", words::cause_in_words(cause))
            }
            Self::Withdrawn { reason, .. } => {
                format!("given up, although it may stand in the room: {}", words::withdrawal_in_words(reason))
            }
            Self::Held { .. } => format!("{waiting}: its lane is held; an operator has to look at it"),
            Self::ClassPaused { until, .. } => {
                let end = until.map(|until| format!(" until {}", standing.clock(until))).unwrap_or_default();
                format!("{waiting}: sending is paused{end}")
            }
            Self::LanePaused { until, .. } => format!("{waiting}: sending is paused until {}", standing.clock(*until)),
            Self::Behind(head) => {
                let until = head.until.map(|until| format!(" until {}", standing.clock(until))).unwrap_or_default();
                let before = if standing.ahead == 1 { "is" } else { "are" };
                format!("{waiting}: {} {before} before it{until}; {}", standing.ahead, standing.turn())
            }
            Self::UnderWay { .. } => format!("under way for {}: it is at the homeserver", standing.span()),
            Self::BacksOff { errcode, until, .. } => {
                let failed = errcode.as_ref().map_or_else(String::new, |errcode| format!(" with {errcode}"));
                format!("{waiting}: an attempt failed{failed}; it is tried again at {}", standing.clock(*until))
            }
            Self::NotBefore { at } => format!("{waiting}: it goes at {}, not before", standing.clock(*at)),
            Self::Worker => format!("{waiting}: it goes next"),
            Self::Delivered { .. } | Self::Cancelled => self.for_operators(standing),
        }
    }
}

impl Standing {
    fn span(&self) -> String {
        span(self.waited.unwrap_or(0))
    }
}

impl Head {
    fn in_words(&self, standing: &Standing) -> String {
        if self.under_way {
            return format!("attempt {} is at the homeserver", self.attempts + 1);
        }
        let mut words = match self.attempts {
            0 => "not tried yet".to_owned(),
            attempts => format!("attempt {attempts}"),
        };
        if let Some(errcode) = &self.errcode {
            let _ = write!(words, ", {errcode}");
        }
        if let Some(until) = self.until {
            let _ = write!(words, " until {}", standing.clock(until));
        }
        words
    }
}

const CANCELLED: &str = "cancelled: it went before it left, and nothing of it is on Matrix";

fn paused_scope(scope: &str) -> &str {
    match scope {
        "all" => "everything is",
        "call" => "calls are",
        "chat" => "chats are",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    fn standing(ahead: i64, behind: i64) -> Standing {
        let conversation_id = ConversationId::from(Uuid::nil());
        Standing {
            conversation_id,
            lane_id: Some(LaneId::from(conversation_id)),
            waited: Some(41),
            ahead,
            behind,
            now: datetime!(2026-11-30 12:00:00 UTC),
        }
    }

    #[test]
    fn what_waits_behind_another_is_told_which_why_until_when_and_what_comes_then() {
        let head = Head {
            outbox_id: OutboxId::from(Uuid::max()),
            kind: "message".to_owned(),
            attempts: 3,
            errcode: Some("M_LIMIT_EXCEEDED".to_owned()),
            until: Some(datetime!(2026-11-30 12:03:10 UTC)),
            under_way: false,
        };
        let (nil, max) = (Uuid::nil(), Uuid::max());
        let why = Why::Behind(head);
        assert_eq!(
            why.for_operators(&standing(1, 12)),
            format!(
                "waiting 41 s: lane {nil} is behind message {max} (attempt 3, M_LIMIT_EXCEEDED until 12:03:10); then it \
                 goes; 12 behind it"
            )
        );
        assert!(why.for_operators(&standing(4, 0)).ends_with("; then 3 more, then it goes"));
        let plain = why.for_members(&standing(1, 12));
        assert_eq!(plain, "waiting 41 s: 1 is before it until 12:03:10; then it goes");
    }

    #[test]
    fn a_hold_is_told_with_what_to_do_to_operators_and_without_its_words_to_members() {
        let hold = "the alias #nova-conv-1:secret.host belongs to a room that is not ours".to_owned();
        let why = Why::Held { hold, repair: Some(Repair::AdoptAlias) };
        let words = why.for_operators(&standing(0, 2));
        for part in ["its lane is held (the alias", "repair: adopt_alias", "outboxctl resume --lane", "2 behind it"] {
            assert!(words.contains(part), "{words}");
        }
        assert!(!why.for_members(&standing(0, 2)).contains("secret.host"));
    }

    #[test]
    fn a_span_has_two_units_at_most_and_another_day_is_named() {
        let spans = [5, 65, 3_600, 90_061].map(span);
        assert_eq!(spans, ["5 s", "1 min 5 s", "1 h 0 min", "1 d 1 h"]);
        let now = datetime!(2026-11-30 12:00:00 UTC);
        assert_eq!(clock(datetime!(2026-12-01 01:02:03 UTC), now), "2026-12-01 01:02:03");
    }
}
