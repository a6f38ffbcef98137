//! What a user sees of a room: history visibility and filters.
use serde_json::Value;

use super::reply::Failure;
use super::state::{Event, Room};

/// Which events of a timeline a user may see.
#[derive(Debug)]
pub(super) struct Visibility {
    /// From which index on it is so; ascending.
    spans: Vec<(usize, bool)>,
    length: usize,
}

impl Visibility {
    pub(super) fn of(room: &Room, user: &str) -> Self {
        let mut setting = "shared";
        let mut membership = None;
        let mut spans: Vec<(usize, bool)> = Vec::new();
        let joined_now = room.membership(user) == Some("join");
        // With `shared`, who was in once and is out now sees all up to leaving.
        let last_in = room
            .state_changes
            .iter()
            .rposition(|&at| room.timeline[at].state_key.as_deref() == Some(user) && is_member(&room.timeline[at]))
            .map(|found| room.state_changes[found]);
        let was_in = room.state_changes.iter().any(|&at| {
            let event = &room.timeline[at];
            is_member(event) && event.state_key.as_deref() == Some(user) && event.content["membership"] == "join"
        });
        for &at in &room.state_changes {
            let event = &room.timeline[at];
            let own = is_member(event) && event.state_key.as_deref() == Some(user);
            let before = membership;
            if own {
                membership = event.content["membership"].as_str();
            } else if event.event_type == "m.room.history_visibility" {
                setting = event.content["history_visibility"].as_str().unwrap_or("shared");
            } else if !spans.is_empty() {
                continue;
            }
            let sees = |membership: Option<&str>| match setting {
                "world_readable" => true,
                "shared" => joined_now || (was_in && last_in.is_some_and(|last| at < last)),
                "invited" => matches!(membership, Some("invite" | "join")),
                _ => membership == Some("join"),
            };
            // Who is put out still sees the event that did it.
            if own && was_in && !sees(membership) && matches!(before, Some("join" | "invite")) {
                spans.push((at, true));
                spans.push((at + 1, false));
            } else {
                spans.push((at, sees(membership)));
            }
        }
        Self { spans, length: room.timeline.len() }
    }

    pub(super) fn shows(&self, index: usize) -> bool {
        let span = self.spans.partition_point(|&(from, _)| from <= index);
        index < self.length && span > 0 && self.spans[span - 1].1
    }

    /// The last event that the user may see.
    pub(super) fn last(&self) -> Option<usize> {
        let at = self.spans.iter().rposition(|&(_, shown)| shown)?;
        self.spans.get(at + 1).map_or(self.length, |&(next, _)| next).checked_sub(1)
    }
}

fn is_member(event: &Event) -> bool {
    event.event_type == "m.room.member"
}

/// The part of a room event filter that this homeserver knows: types, senders, limit.
#[derive(Debug, Default, Clone)]
pub(super) struct Filter {
    pub(super) limit: Option<usize>,
    types: Option<Vec<String>>,
    not_types: Vec<String>,
    senders: Option<Vec<String>>,
    not_senders: Vec<String>,
}

impl Filter {
    pub(super) fn parse(json: &str) -> Result<Self, Failure> {
        let invalid = |_| Failure::new(400, "M_NOT_JSON", "Invalid filter JSON");
        Ok(Self::from_value(&serde_json::from_str(json).map_err(invalid)?))
    }

    pub(super) fn from_value(value: &Value) -> Self {
        let list = |key: &str| {
            let texts = value[key].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned);
            Some(texts.collect::<Vec<_>>())
        };
        Self {
            limit: value["limit"].as_u64().and_then(|limit| usize::try_from(limit).ok()),
            types: list("types"),
            not_types: list("not_types").unwrap_or_default(),
            senders: list("senders"),
            not_senders: list("not_senders").unwrap_or_default(),
        }
    }

    pub(super) fn admits(&self, event: &Event) -> bool {
        let is_type = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => event.event_type.starts_with(prefix),
            None => *pattern == event.event_type,
        };
        self.types.as_ref().is_none_or(|types| types.iter().any(is_type))
            && !self.not_types.iter().any(is_type)
            && self.senders.as_ref().is_none_or(|senders| senders.contains(&event.sender))
            && !self.not_senders.contains(&event.sender)
    }
}
