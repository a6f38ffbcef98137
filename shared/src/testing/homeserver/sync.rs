//! `/sync`: what is new since a token, by long-poll.
use serde_json::{Map, Value, json};

use super::events::{client_event, position};
use super::reply::Failure;
use super::routes::query_param;
use super::state::{Requester, Room, State};
use super::view::{Filter, Visibility};

/// How many events of a room a sync shows unless its filter says otherwise.
const DEFAULT_LIMIT: usize = 10;

/// What a sync asks for.
pub(super) struct SyncQuery {
    since: Option<u64>,
    timeline: Filter,
    rooms: Option<Vec<String>>,
    full_state: bool,
    pub(super) timeout_ms: u64,
}

impl SyncQuery {
    pub(super) fn parse(state: &State, query: &str) -> Result<Self, Failure> {
        let invalid = || Failure::new(400, "M_INVALID_PARAM", "Query parameter is invalid");
        let since = match query_param(query, "since") {
            None => None,
            Some(token) => Some(position(&token).ok_or_else(invalid)?),
        };
        let filter = match query_param(query, "filter") {
            None => Value::Null,
            Some(inline) if inline.starts_with('{') => serde_json::from_str(&inline).map_err(|_| invalid())?,
            Some(id) => id.parse::<usize>().ok().and_then(|id| state.filters.get(id)).cloned().ok_or_else(invalid)?,
        };
        let rooms = filter["room"]["rooms"].as_array();
        Ok(Self {
            since,
            timeline: Filter::from_value(&filter["room"]["timeline"]),
            rooms: rooms.map(|rooms| rooms.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            full_state: query_param(query, "full_state").as_deref() == Some("true"),
            timeout_ms: query_param(query, "timeout").and_then(|timeout| timeout.parse().ok()).unwrap_or(0),
        })
    }

    /// An initial sync never waits.
    pub(super) fn may_wait(&self) -> bool {
        self.since.is_some() && !self.full_state
    }
}

/// What a sync answers.
pub(super) struct SyncAnswer {
    pub(super) body: Value,
    pub(super) is_empty: bool,
}

pub(super) fn sync(state: &State, requester: &Requester, query: &SyncQuery) -> SyncAnswer {
    let (mut join, mut invite, mut leave) = (Map::new(), Map::new(), Map::new());
    let rooms = state.rooms_of.get(&requester.user).into_iter().flatten();
    for room_id in rooms.filter(|room| query.rooms.as_ref().is_none_or(|only| only.contains(room))) {
        let room = &state.rooms[room_id];
        let Some(own) = room.current("m.room.member", &requester.user) else { continue };
        let is_new = query.since.is_none_or(|since| own.position > since);
        let view = RoomView { state, requester, query, room, room_id };
        match own.content["membership"].as_str() {
            Some("join") => {
                if let Some(section) = view.joined() {
                    join.insert(room_id.clone(), section);
                }
            }
            Some("invite") if is_new => {
                invite.insert(room_id.clone(), view.invited());
            }
            Some("leave" | "ban") if is_new && query.since.is_some() => {
                if let Some(section) = view.left() {
                    leave.insert(room_id.clone(), section);
                }
            }
            _ => {}
        }
    }
    let is_empty = join.is_empty() && invite.is_empty() && leave.is_empty();
    let next_batch = format!("s{}", *state.position.borrow());
    let body = json!({ "next_batch": next_batch, "rooms": { "join": join, "invite": invite, "leave": leave } });
    SyncAnswer { body, is_empty }
}

struct RoomView<'a> {
    state: &'a State,
    requester: &'a Requester,
    query: &'a SyncQuery,
    room: &'a Room,
    room_id: &'a str,
}

impl RoomView<'_> {
    fn event(&self, index: usize) -> Value {
        let now = self.state.clock.now_ms();
        let mut event = client_event(self.room, self.room_id, index, self.requester, now);
        if let Some(fields) = event.as_object_mut() {
            fields.remove("room_id");
        }
        event
    }

    /// Since when the user has been in: a room that was entered after the token is shown as if there were none.
    fn since(&self) -> Option<u64> {
        let since = self.query.since.filter(|_| !self.query.full_state)?;
        let was_in = self.room.state_changes[..].iter().rev().find_map(|&at| {
            let event = &self.room.timeline[at];
            let own = event.event_type == "m.room.member" && event.state_key.as_deref() == Some(&self.requester.user);
            (own && event.position <= since).then(|| event.content["membership"] == "join")
        });
        was_in.unwrap_or(false).then_some(since)
    }

    fn joined(&self) -> Option<Value> {
        self.section(self.room.timeline.len())
    }

    fn left(&self) -> Option<Value> {
        // Who was only invited and never in has no timeline to see, but learns that the invite is gone.
        self.since()?;
        let end = Visibility::of(self.room, &self.requester.user).last().map_or(0, |last| last + 1);
        self.section(end)
    }

    fn section(&self, end: usize) -> Option<Value> {
        let visibility = Visibility::of(self.room, &self.requester.user);
        let since = self.since();
        let first = since.map_or(0, |since| self.room.count_until(since));
        let limit = self.query.timeline.limit.unwrap_or(DEFAULT_LIMIT);
        let admitted = |at: &usize| visibility.shows(*at) && self.query.timeline.admits(&self.room.timeline[*at]);
        let mut newest: Vec<usize> = (first..end).rev().filter(admitted).take(limit + 1).collect();
        let is_limited = newest.len() > limit;
        newest.truncate(limit);
        newest.reverse();
        let changed = self.room.state_changes.iter().any(|&at| at >= first && at < end);
        if since.is_some() && newest.is_empty() && !changed && !is_limited {
            return None;
        }
        let start = newest.first().copied().unwrap_or(end);
        // State of before the timeline: all of it for who comes anew, else what changed in the gap.
        let before: Vec<Value> = match start.checked_sub(1) {
            None => Vec::new(),
            Some(before) => {
                let state = self.room.state_at(before);
                state.into_iter().filter(|&at| at >= first).map(|at| self.event(at)).collect()
            }
        };
        let prev = self.room.timeline.get(start).map_or(*self.state.position.borrow(), |event| event.position - 1);
        let joined = self.room.members().filter(|(_, membership)| *membership == "join").count();
        Some(json!({
            "timeline": {
                "events": newest.into_iter().map(|at| self.event(at)).collect::<Vec<_>>(),
                "prev_batch": format!("t{prev}"),
                "limited": is_limited || since.is_none() && self.query.since.is_some(),
            },
            "state": { "events": before },
            "ephemeral": { "events": [] },
            "account_data": { "events": [] },
            "summary": { "m.joined_member_count": joined },
            "unread_notifications": { "highlight_count": 0, "notification_count": 0 },
        }))
    }

    fn invited(&self) -> Value {
        let stripped =
            ["m.room.create", "m.room.join_rules", "m.room.canonical_alias", "m.room.name", "m.room.encryption"];
        let about = stripped.iter().filter_map(|event_type| self.room.current(event_type, ""));
        let member = self.room.current("m.room.member", &self.requester.user);
        let events: Vec<Value> = about
            .chain(member)
            .map(|event| {
                json!({
                    "type": event.event_type,
                    "state_key": event.state_key,
                    "sender": event.sender,
                    "content": event.content,
                })
            })
            .collect();
        json!({ "invite_state": { "events": events } })
    }
}
