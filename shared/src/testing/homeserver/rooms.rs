//! Rooms: creation, aliases, membership, state.
use serde_json::{Map, Value, json};

use super::auth_rules::{Change, check_form, check_power_levels, may_change_membership, may_send};
use super::handlers::Ask;
use super::reply::{Answer, Failure};
use super::routes::{Action, query_param};
use super::state::{Alias, Draft, Requester, State};

/// Why a room was left half-made.
pub(super) enum Unmade {
    /// The homeserver itself refused.
    Refused(Failure),
    /// A test asked for it to stop after so many events.
    Stopped,
}

impl From<Failure> for Unmade {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

/// The full alias that a request to create a room asks for.
pub(super) fn wanted_alias(state: &State, body: &Value) -> Option<String> {
    body["room_alias_name"].as_str().map(|name| format!("#{name}:{}", state.server_name))
}

/// Makes a room event by event. Not atomic, as with Synapse: the alias is taken first, and a failure on the way leaves
/// alias and room as they are. With `alias_was_free` the request looked at the alias before another one took it.
pub(super) fn create_room(
    state: &mut State,
    requester: &Requester,
    ask: &Ask,
    alias_was_free: bool,
    stop_after: Option<usize>,
) -> Result<Value, Unmade> {
    let body = ask.object()?;
    let alias = wanted_alias(state, &body);
    if let Some(alias) = &alias
        && state.aliases.contains_key(alias)
    {
        return Err(Unmade::Refused(if alias_was_free {
            Failure::new(409, "M_UNKNOWN", format!("Room alias {alias} already exists"))
        } else {
            Failure::new(400, "M_ROOM_IN_USE", "Room alias already taken")
        }));
    }
    let invites: Vec<&str> = body["invite"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if let Some(malformed) = invites.iter().find(|user| !user.starts_with('@') || !user.contains(':')) {
        return Err(Failure::bad(format!("Invalid user_id: {malformed}")).into());
    }
    if let Some(version) = body["room_version"].as_str()
        && version != "12"
    {
        let error = "Your homeserver does not support this room version";
        return Err(Failure::new(400, "M_UNSUPPORTED_ROOM_VERSION", error).into());
    }
    let room = state.new_room();
    if let Some(alias) = &alias {
        let entry = Alias { room: room.clone(), creator: requester.user.clone() };
        state.aliases.insert(alias.clone(), entry);
    }
    let creator = requester.user.as_str();
    let mut left = stop_after.unwrap_or(usize::MAX);
    let mut put = |state: &mut State, event_type: &str, key: &str, content: Value| {
        left = left.checked_sub(1).ok_or(Unmade::Stopped)?;
        state.append(&room, Draft::state(event_type, key, creator, content));
        Ok::<_, Unmade>(())
    };
    put(state, "m.room.create", "", creation_content(&body, &invites))?;
    put(state, "m.room.member", creator, json!({ "membership": "join", "displayname": localpart(creator) }))?;
    let rest = initial_events(&body, alias.as_deref());
    for (event_type, key, content) in &rest {
        let draft = Draft::state(event_type, key, creator, content.clone());
        check_form(state, &room, &draft, ask.body.len())?;
        if event_type == "m.room.power_levels" {
            check_power_levels(state.rooms[&room].current("m.room.create", ""), content)?;
        }
    }
    for (event_type, key, content) in rest {
        put(state, &event_type, &key, content)?;
    }
    for user in invites {
        if !state.is_local(user) {
            return Err(Failure::new(502, "M_UNKNOWN", "Can't connect to any server").into());
        }
        let mut content = invite_content(user);
        if body["is_direct"] == true {
            content["is_direct"] = json!(true);
        }
        let found = &state.rooms[&room];
        if let Change::Due = may_change_membership(found, &room, creator, user, Action::Invite, &content)? {
            put(state, "m.room.member", user, content)?;
        }
    }
    let mut answer = json!({ "room_id": room });
    if let Some(alias) = alias {
        answer["room_alias"] = json!(alias);
    }
    Ok(answer)
}

fn localpart(user: &str) -> &str {
    user.trim_start_matches('@').split(':').next().unwrap_or_default()
}

fn invite_content(user: &str) -> Value {
    json!({ "membership": "invite", "displayname": localpart(user) })
}

fn creation_content(body: &Value, invites: &[&str]) -> Value {
    let mut content = body["creation_content"].as_object().cloned().unwrap_or_default();
    content.insert("room_version".to_owned(), json!("12"));
    if body["preset"] == "trusted_private_chat" && !invites.is_empty() {
        content.insert("additional_creators".to_owned(), json!(invites));
    }
    Value::Object(content)
}

/// What follows the creator's join: type, state key, content, in Synapse's order.
fn initial_events(body: &Value, alias: Option<&str>) -> Vec<(String, String, Value)> {
    let public = body["visibility"] == "public";
    let preset = body["preset"].as_str().unwrap_or(if public { "public_chat" } else { "private_chat" });
    let given: Vec<(String, String, Value)> = body["initial_state"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            (text("type"), text("state_key"), event["content"].clone())
        })
        .collect();
    let is_given = |event_type: &str| given.iter().any(|(given, key, _)| given == event_type && key.is_empty());
    let mut events = Vec::new();
    let mut add = |event_type: &str, content: Value| events.push((event_type.to_owned(), String::new(), content));
    match given.iter().find(|(event_type, ..)| event_type == "m.room.power_levels") {
        Some((_, _, content)) => add("m.room.power_levels", content.clone()),
        None => add("m.room.power_levels", power_levels(preset, &body["power_level_content_override"])),
    }
    if let Some(alias) = alias
        && !is_given("m.room.canonical_alias")
    {
        add("m.room.canonical_alias", json!({ "alias": alias }));
    }
    if !is_given("m.room.join_rules") {
        add("m.room.join_rules", json!({ "join_rule": if preset == "public_chat" { "public" } else { "invite" } }));
    }
    if !is_given("m.room.history_visibility") {
        add("m.room.history_visibility", json!({ "history_visibility": "shared" }));
    }
    if preset != "public_chat" && !is_given("m.room.guest_access") {
        add("m.room.guest_access", json!({ "guest_access": "can_join" }));
    }
    events.extend(given.into_iter().filter(|(event_type, ..)| event_type != "m.room.power_levels"));
    for (key, event_type) in [("name", "m.room.name"), ("topic", "m.room.topic")] {
        if let Some(text) = body.get(key) {
            events.push((event_type.to_owned(), String::new(), json!({ key: text })));
        }
    }
    events
}

fn power_levels(preset: &str, overrides: &Value) -> Value {
    let mut levels = json!({
        "users": {},
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50,
            "m.room.avatar": 50,
            "m.room.tombstone": 150,
            "m.room.server_acl": 100,
            "m.room.encryption": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": 50,
        "historical": 100,
    });
    if preset == "public_chat" {
        levels["events"]["m.call.invite"] = json!(50);
    } else {
        levels["invite"] = json!(0);
    }
    for (key, value) in overrides.as_object().into_iter().flatten() {
        levels[key] = value.clone();
    }
    levels
}

pub(super) fn resolve_alias(state: &State, alias: &str) -> Answer {
    let found = state.aliases.get(alias);
    let found = found.ok_or_else(|| Failure::not_found(format!("Room alias {alias} not found")))?;
    Ok(json!({ "room_id": found.room, "servers": [state.server_name] }))
}

pub(super) fn put_alias(state: &mut State, requester: &Requester, alias: &str, body: &Value) -> Answer {
    let room = body["room_id"].as_str().unwrap_or_default();
    if !state.is_local(alias) {
        return Err(Failure::bad("Room alias must be local"));
    }
    if state.aliases.contains_key(alias) {
        return Err(Failure::new(409, "M_UNKNOWN", format!("Room alias {alias} already exists")));
    }
    if state.room(room).is_none_or(|room| room.membership(&requester.user) != Some("join")) {
        return Err(Failure::forbidden("You must be in the room to create an alias for it"));
    }
    state.aliases.insert(alias.to_owned(), Alias { room: room.to_owned(), creator: requester.user.clone() });
    Ok(json!({}))
}

pub(super) fn delete_alias(state: &mut State, requester: &Requester, alias: &str) -> Answer {
    let found = state.aliases.get(alias).ok_or_else(|| Failure::not_found("Unknown room alias"))?;
    if found.creator != requester.user {
        return Err(Failure::forbidden("You don't have permission to delete the alias."));
    }
    state.aliases.remove(alias);
    Ok(json!({}))
}

/// `POST /join/{id or alias}`
pub(super) fn join(state: &mut State, requester: &Requester, room_or_alias: &str) -> Answer {
    let room = if room_or_alias.starts_with('#') {
        let found = state.aliases.get(room_or_alias);
        found.ok_or_else(|| Failure::not_found(format!("Room alias {room_or_alias} not found")))?.room.clone()
    } else {
        room_or_alias.to_owned()
    };
    change_membership(state, requester, &room, Action::Join, &json!({}))?;
    Ok(json!({ "room_id": room }))
}

/// `POST /rooms/{id}/{join, invite, leave, kick, ban, unban}`
pub(super) fn change_membership(
    state: &mut State,
    requester: &Requester,
    room: &str,
    action: Action,
    body: &Value,
) -> Answer {
    let own = matches!(action, Action::Join | Action::Leave);
    let target = if own {
        requester.user.clone()
    } else {
        let user = body.get("user_id");
        let user = user.ok_or_else(|| Failure::new(400, "M_MISSING_PARAM", "Missing params: ['user_id']"))?;
        let user = user.as_str().unwrap_or_default();
        if !user.starts_with('@') || !user.contains(':') {
            return Err(Failure::new(
                400,
                "M_INVALID_PARAM",
                format!("Expected UserID string to start with '@': {user}"),
            ));
        }
        user.to_owned()
    };
    let mut content = Map::new();
    content.insert("membership".to_owned(), json!(action.membership()));
    if matches!(action, Action::Join | Action::Invite) {
        content.insert("displayname".to_owned(), json!(localpart(&target)));
    }
    if let Some(reason) = body.get("reason") {
        content.insert("reason".to_owned(), reason.clone());
    }
    set_membership(state, requester, room, &target, action, Value::Object(content))?;
    let mut answer = json!({});
    if action == Action::Join {
        answer["room_id"] = json!(room);
    }
    Ok(answer)
}

fn set_membership(
    state: &mut State,
    requester: &Requester,
    room: &str,
    target: &str,
    action: Action,
    content: Value,
) -> Result<Option<String>, Failure> {
    let Some(found) = state.room(room) else {
        return Err(match action {
            Action::Join => Failure::new(
                404,
                "M_UNKNOWN",
                "Can't join remote room because no servers that are in the room have been provided.",
            ),
            Action::Invite | Action::Ban => Failure::forbidden(format!("{} not in room {room}.", requester.user)),
            Action::Leave | Action::Kick | Action::Unban => Failure::new(404, "M_UNKNOWN", "Not a known room"),
        });
    };
    match may_change_membership(found, room, &requester.user, target, action, &content)? {
        Change::Already => Ok(None),
        Change::Due if action == Action::Invite && !state.is_local(target) => {
            Err(Failure::new(502, "M_UNKNOWN", "Can't connect to any server"))
        }
        Change::Due => {
            let event = state.append(room, Draft::state("m.room.member", target, &requester.user, content));
            Ok(Some(event.event_id.clone()))
        }
    }
}

pub(super) fn put_state(
    state: &mut State,
    requester: &Requester,
    room: &str,
    event_type: &str,
    state_key: &str,
    ask: &Ask,
) -> Answer {
    let content = ask.object()?;
    if event_type == "m.room.member" {
        let action = match content["membership"].as_str() {
            Some("join") => Action::Join,
            Some("invite") => Action::Invite,
            Some("leave") => Action::Leave,
            Some("ban") => Action::Ban,
            _ => return Err(Failure::bad("Invalid membership key")),
        };
        let changed = set_membership(state, requester, room, state_key, action, content)?;
        let current = state.room(room).and_then(|room| room.current("m.room.member", state_key));
        let event_id = changed.or_else(|| current.map(|event| event.event_id.clone()));
        return Ok(json!({ "event_id": event_id }));
    }
    let draft = Draft::state(event_type, state_key, &requester.user, content);
    may_send(state, room, &draft)?;
    check_form(state, room, &draft, ask.body.len())?;
    let current = state.room(room).and_then(|room| room.current(event_type, state_key));
    if let Some(same) = current.filter(|event| event.sender == requester.user && event.content == draft.content) {
        return Ok(json!({ "event_id": same.event_id }));
    }
    let event = state.append(room, draft);
    Ok(json!({ "event_id": event.event_id }))
}

pub(super) fn joined_members(state: &State, requester: &Requester, room: &str) -> Answer {
    let found = state.joined_room(room, &requester.user)?;
    let joined: Map<String, Value> = found
        .members()
        .filter(|(_, membership)| *membership == "join")
        .map(|(user, _)| (user.to_owned(), json!({ "display_name": localpart(user) })))
        .collect();
    Ok(json!({ "joined": joined }))
}

pub(super) fn joined_rooms(state: &State, requester: &Requester) -> Value {
    let rooms = state.rooms_of.get(&requester.user).into_iter().flatten();
    let joined: Vec<&String> =
        rooms.filter(|room| state.rooms[*room].membership(&requester.user) == Some("join")).collect();
    json!({ "joined_rooms": joined })
}

/// `membership` and `not_membership` of the query narrow the list.
pub(super) fn members_filter(query: &str) -> impl Fn(&Value) -> bool + use<> {
    let (only, not) = (query_param(query, "membership"), query_param(query, "not_membership"));
    move |content: &Value| {
        let membership = content["membership"].as_str();
        only.as_deref().is_none_or(|only| membership == Some(only))
            && not.as_deref().is_none_or(|not| membership != Some(not))
    }
}
