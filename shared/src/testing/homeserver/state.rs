//! What the homeserver remembers: accounts, sessions, aliases, and rooms as lists of events.
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::Appservice;
use super::reply::Failure;
use super::txn::Transactions;

/// Wall clock plus what tests added to it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    offset: Duration,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "a homeserver has a clock of its own")]
    pub(super) fn now_ms(self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + self.offset;
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.offset += by;
    }
}

#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) password: String,
    pub(super) admin: bool,
    pub(super) deactivated: bool,
    pub(super) devices: BTreeSet<String>,
}

/// The TURN servers that it names.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) uris: Vec<String>,
    pub(super) secret: String,
    pub(super) lifetime: Duration,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Requester {
    pub(super) user: String,
    /// Absent for an application service that names none.
    pub(super) device: Option<String>,
    /// The application service whose token it is.
    pub(super) appservice: Option<String>,
    pub(super) token: String,
}

#[derive(Debug)]
pub(super) struct Alias {
    pub(super) room: String,
    pub(super) creator: String,
}

/// An event as stored: never changed, redaction happens when it is read.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the names that the fields have on the wire")]
pub(super) struct Event {
    pub(super) event_id: String,
    pub(super) event_type: String,
    pub(super) state_key: Option<String>,
    pub(super) sender: String,
    pub(super) content: Value,
    pub(super) origin_server_ts: u64,
    /// Place in the one stream of all rooms' events.
    pub(super) position: u64,
    /// Device and transaction id of the request that made it.
    pub(super) origin: Option<(String, String)>,
}

/// An event before it has an id.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) event_type: &'a str,
    pub(super) state_key: Option<&'a str>,
    pub(super) sender: &'a str,
    pub(super) content: Value,
    pub(super) origin: Option<(String, String)>,
}

impl<'a> Draft<'a> {
    pub(super) fn state(event_type: &'a str, state_key: &'a str, sender: &'a str, content: Value) -> Self {
        Self { event_type, state_key: Some(state_key), sender, content, origin: None }
    }
}

#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) timeline: Vec<Arc<Event>>,
    /// Index into the timeline of what is current.
    state: BTreeMap<String, BTreeMap<String, usize>>,
    /// Indices of all state events.
    pub(super) state_changes: Vec<usize>,
    /// Redacted event's id → index of the redaction that took effect.
    pub(super) redactions: HashMap<String, usize>,
    /// Parent's event id → indices of the events that relate to it.
    pub(super) relations: HashMap<String, Vec<usize>>,
}

impl Room {
    pub(super) fn current(&self, event_type: &str, state_key: &str) -> Option<&Arc<Event>> {
        self.state.get(event_type)?.get(state_key).map(|&index| &self.timeline[index])
    }

    pub(super) fn current_state(&self) -> impl Iterator<Item = usize> + '_ {
        self.state.values().flat_map(|of_type| of_type.values().copied())
    }

    /// The state as it was just after the event at `index`.
    pub(super) fn state_at(&self, index: usize) -> Vec<usize> {
        let mut state = BTreeMap::new();
        for &change in self.state_changes.iter().take_while(|&&change| change <= index) {
            let event = &self.timeline[change];
            state.insert((event.event_type.as_str(), event.state_key.as_deref()), change);
        }
        state.into_values().collect()
    }

    pub(super) fn membership(&self, user: &str) -> Option<&str> {
        self.current("m.room.member", user)?.content["membership"].as_str()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        self.state.get("m.room.member").into_iter().flatten().map(|(user, &index)| {
            (user.as_str(), self.timeline[index].content["membership"].as_str().unwrap_or("leave"))
        })
    }

    pub(super) fn is_redacted(&self, event_id: &str) -> bool {
        self.redactions.contains_key(event_id)
    }

    /// How many events stand at or before a place in the stream.
    pub(super) fn count_until(&self, position: u64) -> usize {
        self.timeline.partition_point(|event| event.position <= position)
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) server_name: String,
    pub(super) clock: Clock,
    pub(super) accounts: HashMap<String, Account>,
    /// By access token: user and device.
    pub(super) sessions: HashMap<String, (String, String)>,
    pub(super) appservices: Vec<Appservice>,
    pub(super) nonces: HashSet<String>,
    pub(super) filters: Vec<Value>,
    pub(super) aliases: HashMap<String, Alias>,
    pub(super) rooms: HashMap<String, Room>,
    /// In order of creation.
    pub(super) room_order: Vec<String>,
    /// Rooms in which a user has any membership.
    pub(super) rooms_of: HashMap<String, BTreeSet<String>>,
    /// Event id → room and index.
    pub(super) events: HashMap<String, (String, usize)>,
    pub(super) txns: Transactions,
    pub(super) turn: Option<Turn>,
    /// Place of the newest event in the stream; what a long-poll waits for.
    pub(super) position: watch::Sender<u64>,
}

impl State {
    pub(super) fn new(server_name: &str, appservices: Vec<Appservice>) -> Self {
        let mut state = Self {
            server_name: server_name.to_owned(),
            clock: Clock::default(),
            accounts: HashMap::new(),
            sessions: HashMap::new(),
            appservices: Vec::new(),
            nonces: HashSet::new(),
            filters: Vec::new(),
            aliases: HashMap::new(),
            rooms: HashMap::new(),
            room_order: Vec::new(),
            rooms_of: HashMap::new(),
            events: HashMap::new(),
            txns: Transactions::default(),
            turn: None,
            position: watch::Sender::new(0),
        };
        for appservice in appservices {
            let user = state.user_id(&appservice.sender_localpart);
            state.accounts.insert(user, Account::default());
            state.appservices.push(appservice);
        }
        state
    }

    pub(super) fn user_id(&self, localpart: &str) -> String {
        format!("@{localpart}:{}", self.server_name)
    }

    pub(super) fn is_local(&self, id: &str) -> bool {
        id.split_once(':').is_some_and(|(_, domain)| domain == self.server_name)
    }

    pub(super) fn room(&self, room: &str) -> Option<&Room> {
        self.rooms.get(room)
    }

    pub(super) fn new_room(&mut self) -> String {
        // The shape of room version 12: no server name, as long as a hash.
        let room = format!("!{}{}", Uuid::new_v4().simple(), &Uuid::new_v4().simple().to_string()[..11]);
        self.rooms.insert(room.clone(), Room::default());
        self.room_order.push(room.clone());
        room
    }

    /// Stores an event whose permission was checked.
    pub(super) fn append(&mut self, room_id: &str, draft: Draft<'_>) -> Arc<Event> {
        let position = *self.position.borrow() + 1;
        let now = self.clock.now_ms();
        let room = self.rooms.get_mut(room_id).expect("events are only appended to rooms that exist");
        let index = room.timeline.len();
        let parent = relation(&draft.content).map(|(_, parent)| parent.to_owned());
        let siblings = parent.as_ref().map(|parent| room.relations.entry(parent.clone()).or_default());
        // The newest edit is chosen by time: two edits in one millisecond, which Synapse is too slow for, would be decided
        // by their random ids.
        let newest = siblings.as_deref().and_then(|indices| indices.last()).map(|&at| &room.timeline[at]);
        let origin_server_ts = newest.map_or(now, |sibling| now.max(sibling.origin_server_ts + 1));
        let event = Arc::new(Event {
            event_id: format!("${}{}", Uuid::new_v4().simple(), &Uuid::new_v4().simple().to_string()[..11]),
            event_type: draft.event_type.to_owned(),
            state_key: draft.state_key.map(str::to_owned),
            sender: draft.sender.to_owned(),
            content: draft.content,
            origin_server_ts,
            position,
            origin: draft.origin,
        });
        if let Some(siblings) = siblings {
            siblings.push(index);
        }
        if let Some(state_key) = draft.state_key {
            room.state.entry(draft.event_type.to_owned()).or_default().insert(state_key.to_owned(), index);
            room.state_changes.push(index);
            if draft.event_type == "m.room.member" {
                self.rooms_of.entry(state_key.to_owned()).or_default().insert(room_id.to_owned());
            }
        } else if draft.event_type == "m.room.redaction"
            && let Some(target) = event.content["redacts"].as_str()
            && self.events.get(target).is_some_and(|(of_room, _)| of_room == room_id)
        {
            room.redactions.entry(target.to_owned()).or_insert(index);
        }
        room.timeline.push(Arc::clone(&event));
        self.events.insert(event.event_id.clone(), (room_id.to_owned(), index));
        self.position.send_replace(position);
        event
    }

    pub(super) fn event(&self, event_id: &str) -> Option<&Arc<Event>> {
        let (room, index) = self.events.get(event_id)?;
        self.rooms.get(room)?.timeline.get(*index)
    }

    /// Fails unless the user is joined to the room, in Synapse's words.
    pub(super) fn joined_room(&self, room: &str, user: &str) -> Result<&Room, Failure> {
        self.room(room)
            .filter(|found| found.membership(user) == Some("join"))
            .ok_or_else(|| Failure::forbidden(format!("User {user} not in room {room}")))
    }
}

/// Relation type and parent of an event's content.
pub(super) fn relation(content: &Value) -> Option<(&str, &str)> {
    let relates_to = content.get("m.relates_to")?;
    Some((relates_to.get("rel_type")?.as_str()?, relates_to.get("event_id")?.as_str()?))
}

/// What redaction leaves of a content, by the rules of room versions 11 and later.
pub(super) fn redacted_content(event: &Event) -> Value {
    let kept: &[&str] = match event.event_type.as_str() {
        "m.room.create" => return event.content.clone(),
        "m.room.member" => &["membership", "join_authorised_via_users_server"],
        "m.room.join_rules" => &["join_rule", "allow"],
        "m.room.power_levels" => {
            &["ban", "events", "events_default", "invite", "kick", "redact", "state_default", "users", "users_default"]
        }
        "m.room.history_visibility" => &["history_visibility"],
        "m.room.redaction" => &["redacts"],
        _ => &[],
    };
    let mut content = json!({});
    for &key in kept {
        if let Some(value) = event.content.get(key) {
            content[key] = value.clone();
        }
    }
    content
}
