//! Who may do what in a room of version 12, with Synapse's statuses and words.
use serde_json::Value;

use super::reply::Failure;
use super::routes::Action;
use super::state::{Draft, Event, Room, State, relation};

/// An event may have this many bytes, with all that servers add to it.
const EVENT_LIMIT: usize = 65_536;

/// What a server adds to a content besides names: ids, hash, signature, references. Measured by bisection on an ordinary
/// message in a room of version 12, with a one-letter signing key; the room's depth adds a digit for every power of ten.
const ENVELOPE: usize = 533;

/// Below this many bytes of request, the event cannot be too large.
const SURELY_SMALL: usize = 32_768;

const MAX_INT: i64 = (1 << 53) - 1;

/// The level of a user; creators are above all levels in version 12.
fn user_level(room: &Room, user: &str) -> i64 {
    let Some(create) = room.current("m.room.create", "") else { return 0 };
    let additional = create.content["additional_creators"].as_array();
    if create.sender == user || additional.is_some_and(|users| users.iter().any(|one| one == user)) {
        return i64::MAX;
    }
    let Some(levels) = levels(room) else { return 0 };
    levels["users"][user].as_i64().or_else(|| levels["users_default"].as_i64()).unwrap_or(0)
}

fn levels(room: &Room) -> Option<&Value> {
    room.current("m.room.power_levels", "").map(|event| &event.content)
}

fn named_level(room: &Room, name: &str, default: i64) -> i64 {
    levels(room).and_then(|levels| levels[name].as_i64()).unwrap_or(default)
}

fn event_level(room: &Room, event_type: &str, is_state: bool) -> i64 {
    let Some(levels) = levels(room) else { return 0 };
    levels["events"][event_type].as_i64().unwrap_or_else(|| {
        if is_state { named_level(room, "state_default", 50) } else { named_level(room, "events_default", 0) }
    })
}

/// May this event, no membership, be sent to this room?
pub(super) fn may_send(state: &State, room_id: &str, draft: &Draft<'_>) -> Result<(), Failure> {
    let room = state.joined_room(room_id, draft.sender)?;
    let level = user_level(room, draft.sender);
    let needed = event_level(room, draft.event_type, draft.state_key.is_some());
    if level < needed {
        return Err(Failure::forbidden(format!(
            "You don't have permission to post that to the room. user_level ({level}) < send_level ({needed})"
        )));
    }
    match draft.event_type {
        "m.room.create" => return Err(Failure::new(400, "M_INVALID_PARAM", "Cannot resend m.room.create event")),
        "m.room.power_levels" => may_set_power_levels(room, draft)?,
        "m.room.redaction" => may_redact(state, room_id, draft)?,
        _ => {}
    }
    Ok(())
}

fn may_redact(state: &State, room_id: &str, draft: &Draft<'_>) -> Result<(), Failure> {
    let Some(target) = draft.content["redacts"].as_str() else { return Ok(()) };
    let room = state.joined_room(room_id, draft.sender)?;
    let found = state.events.get(target);
    if found.is_some_and(|(of_room, _)| of_room != room_id) {
        return Err(Failure::bad("Cannot redact event from a different room"));
    }
    let original = state.event(target);
    if original.is_some_and(|event| event.event_type == "m.room.create") {
        return Err(Failure::forbidden("Redacting create events is not permitted"));
    }
    if user_level(room, draft.sender) >= named_level(room, "redact", 50) {
        return Ok(());
    }
    match original {
        None => Err(Failure::not_found(format!("Could not find event {target}"))),
        Some(event) if event.sender != draft.sender => {
            Err(Failure::forbidden("You don't have permission to redact events"))
        }
        Some(_) => Ok(()),
    }
}

fn may_set_power_levels(room: &Room, draft: &Draft<'_>) -> Result<(), Failure> {
    check_power_levels(room.current("m.room.create", ""), &draft.content)?;
    let own = user_level(room, draft.sender);
    let Some(current) = levels(room) else { return Ok(()) };
    let too_big = |old: &Value, new: &Value| {
        old != new && [old, new].into_iter().any(|level| level.as_i64().is_some_and(|level| level > own))
    };
    let named = ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"];
    let mut refused = named.iter().any(|&name| too_big(&current[name], &draft.content[name]));
    for map in ["users", "events"] {
        let keys = [&current[map], &draft.content[map]].into_iter().filter_map(Value::as_object).flat_map(|m| m.keys());
        refused |= keys.into_iter().any(|key| too_big(&current[map][key], &draft.content[map][key]));
    }
    if refused {
        return Err(Failure::forbidden("You don't have permission to add ops level greater than your own"));
    }
    Ok(())
}

/// The form of a power level content, and that no creator stands in it.
pub(super) fn check_power_levels(create: Option<&std::sync::Arc<Event>>, content: &Value) -> Result<(), Failure> {
    let Some(create) = create else { return Ok(()) };
    if content["users"].get(&create.sender).is_some() {
        return Err(Failure::bad(format!("Creator user {} must not appear in content.users", create.sender)));
    }
    Ok(())
}

/// What a membership change comes to.
pub(super) enum Change {
    /// Nothing: it is so already.
    Already,
    /// An event is due.
    Due,
}

/// May the requester change the target's membership? The order of the questions is Synapse's: it decides which of several
/// errors is answered.
pub(super) fn may_change_membership(
    room: &Room,
    room_id: &str,
    requester: &str,
    target: &str,
    action: Action,
    content: &Value,
) -> Result<Change, Failure> {
    let old = room.current("m.room.member", target);
    let old_membership = old.and_then(|event| event.content["membership"].as_str());
    if let Some(membership) = old_membership {
        if action == Action::Unban && membership != "ban" {
            let error = format!("Cannot unban user who was not banned (membership={membership})");
            return Err(Failure::new(403, "M_BAD_STATE", error));
        }
        if membership == "ban" && !matches!(action, Action::Ban | Action::Unban | Action::Leave) {
            let error = format!("Cannot {} user who was banned", action.name());
            return Err(Failure::new(403, "M_BAD_STATE", error));
        }
    }
    if action == Action::Kick && !matches!(old_membership, Some("join" | "invite" | "knock")) {
        return Err(Failure::forbidden("The target user is not in the room"));
    }
    if old.is_some_and(|old| old.sender == requester && old.content == *content) {
        return Ok(Change::Already);
    }
    let own = room.membership(requester);
    if action == Action::Join {
        let public = room.current("m.room.join_rules", "").is_some_and(|event| event.content["join_rule"] == "public");
        return match own {
            Some("ban") => Err(Failure::forbidden("You are banned from this room")),
            Some("join" | "invite") => Ok(Change::Due),
            _ if public => Ok(Change::Due),
            _ => Err(Failure::forbidden("You are not invited to this room.")),
        };
    }
    let rejects = own == Some("invite") && action == Action::Leave && requester == target;
    if rejects {
        return Ok(Change::Due);
    }
    if own != Some("join") {
        return Err(Failure::forbidden(format!("{requester} not in room {room_id}.")));
    }
    let (level, target_level) = (user_level(room, requester), user_level(room, target));
    let allowed = match action {
        Action::Invite => {
            if old_membership == Some("join") {
                return Err(Failure::forbidden(format!("{target} is already in the room.")));
            }
            level >= named_level(room, "invite", 0)
        }
        Action::Ban => level >= named_level(room, "ban", 50) && level > target_level,
        Action::Unban => level >= named_level(room, "ban", 50),
        Action::Kick | Action::Leave if requester != target => {
            level >= named_level(room, "kick", 50) && level > target_level
        }
        Action::Kick | Action::Leave | Action::Join => true,
    };
    if allowed {
        return Ok(Change::Due);
    }
    Err(Failure::forbidden(match action {
        Action::Invite => "You don't have permission to invite users".to_owned(),
        Action::Ban => "You don't have permission to ban".to_owned(),
        Action::Unban => format!("You cannot unban user {target}."),
        _ => format!("You cannot kick user {target}."),
    }))
}

/// What Synapse asks of any new event's form.
pub(super) fn check_form(state: &State, room_id: &str, draft: &Draft<'_>, body_len: usize) -> Result<(), Failure> {
    canonical(&draft.content)?;
    let string = |key: &str| match draft.content.get(key) {
        None => Err(Failure::bad(format!("'{key}' not in content"))),
        Some(Value::String(_)) => Ok(()),
        Some(_) => Err(Failure::bad(format!("'{key}' not a string type"))),
    };
    match draft.event_type {
        "m.room.message" => {
            string("body")?;
            string("msgtype")?;
        }
        "m.room.name" => string("name")?,
        "m.room.topic" => string("topic")?,
        _ => {}
    }
    let state_only = ["m.room.name", "m.room.topic", "m.room.member", "m.room.tombstone"];
    if draft.state_key.is_none() && state_only.contains(&draft.event_type) {
        return Err(Failure::bad(format!("'{}' must be state events", draft.event_type)));
    }
    if let Some((_, parent)) = relation(&draft.content) {
        match state.events.get(parent) {
            None => return Err(Failure::bad("Can't send relation to unknown event")),
            Some((room, _)) if room != room_id => return Err(Failure::bad("Relations must be in the same room")),
            Some(_) => may_relate(&state.rooms[room_id], draft, parent)?,
        }
    }
    if body_len > SURELY_SMALL {
        let content = serde_json::to_vec(&draft.content).map_or(0, |json| json.len());
        let state_key = draft.state_key.map_or(0, |key| key.len() + r#""state_key":"","#.len());
        let names = draft.event_type.len() + draft.sender.len() + state.server_name.len() + state_key;
        if content + names + ENVELOPE > EVENT_LIMIT {
            return Err(Failure::new(413, "M_TOO_LARGE", "event too large"));
        }
    }
    Ok(())
}

/// An account annotates an event with a key once, and no thread begins at what relates to something itself.
fn may_relate(room: &Room, draft: &Draft<'_>, parent: &str) -> Result<(), Failure> {
    let relates_to = &draft.content["m.relates_to"];
    let siblings = room.relations.get(parent).map(Vec::as_slice).unwrap_or_default();
    match relates_to["rel_type"].as_str() {
        Some("m.annotation") => {
            let Some(key) = relates_to["key"].as_str() else { return Err(Failure::bad("Missing aggregation key")) };
            let is_same = |event: &Event| {
                event.sender == draft.sender
                    && event.event_type == draft.event_type
                    && event.content["m.relates_to"]["rel_type"] == "m.annotation"
                    && event.content["m.relates_to"]["key"] == key
                    && !room.is_redacted(&event.event_id)
            };
            if siblings.iter().any(|&at| is_same(&room.timeline[at])) {
                return Err(Failure::new(400, "M_DUPLICATE_ANNOTATION", "Can't send same reaction twice"));
            }
        }
        Some("m.thread") => {
            let original = room.timeline.iter().find(|event| event.event_id == parent);
            if original.is_some_and(|event| relation(&event.content).is_some() && !room.is_redacted(parent)) {
                return Err(Failure::bad("Cannot start threads from an event with a relation"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Canonical JSON has no floats, and no integers beyond 2^53 - 1.
fn canonical(value: &Value) -> Result<(), Failure> {
    let bad = |error: &str| Err(Failure::new(400, "M_BAD_JSON", error));
    match value {
        Value::Number(number) if number.is_f64() => bad("Bad JSON value: float"),
        Value::Number(number) => match number.as_i64() {
            Some(integer) if (-MAX_INT..=MAX_INT).contains(&integer) => Ok(()),
            _ => bad("JSON integer out of range"),
        },
        Value::Array(values) => values.iter().try_for_each(canonical),
        Value::Object(values) => values.values().try_for_each(canonical),
        _ => Ok(()),
    }
}
