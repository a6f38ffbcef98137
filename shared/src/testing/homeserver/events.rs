//! Sending, redacting and reading events.
use serde_json::{Value, json};

use super::auth_rules::{check_form, may_send};
use super::handlers::Ask;
use super::reply::{Answer, Failure};
use super::rooms::members_filter;
use super::routes::query_param;
use super::state::{Draft, Requester, Room, State, redacted_content};
use super::view::{Filter, Visibility};

const DEFAULT_PAGE: usize = 10;
const LARGEST_PAGE: usize = 1000;
/// What `/relations` lists unless told otherwise.
const RELATIONS_PAGE: usize = 5;

/// `PUT /rooms/{id}/send/{type}/{txn}`
pub(super) fn send(
    state: &mut State,
    requester: &Requester,
    room: &str,
    event_type: &str,
    txn: &str,
    ask: &Ask,
) -> Answer {
    let now = state.clock.now_ms();
    if let Some(event_id) = state.txns.in_ram(requester, &ask.path, now) {
        return Ok(json!({ "event_id": event_id }));
    }
    let content = ask.object()?;
    once(state, requester, room, event_type, content, txn, ask)
}

/// `PUT /rooms/{id}/redact/{event}/{txn}`
pub(super) fn redact(
    state: &mut State,
    requester: &Requester,
    room: &str,
    target: &str,
    txn: &str,
    ask: &Ask,
) -> Answer {
    let now = state.clock.now_ms();
    if let Some(event_id) = state.txns.in_ram(requester, &ask.path, now) {
        return Ok(json!({ "event_id": event_id }));
    }
    let mut content = ask.object()?;
    if state.room(room).is_none() {
        return Err(Failure::not_found(format!("Could not find room {room}")));
    }
    if content.get("redacts").is_some_and(|redacts| redacts != target) {
        let error = "Cannot provide a redacts value incoherent with the event_id of the URL parameter";
        return Err(Failure::new(400, "M_INVALID_PARAM", error));
    }
    content["redacts"] = json!(target);
    once(state, requester, room, "m.room.redaction", content, txn, ask)
}

/// Stores an event unless the requester's device already made one of this transaction id in this room.
fn once(
    state: &mut State,
    requester: &Requester,
    room: &str,
    event_type: &str,
    content: Value,
    txn: &str,
    ask: &Ask,
) -> Answer {
    let now = state.clock.now_ms();
    let known = state.txns.in_rows(requester, room, txn, now);
    let event_id = if let Some(event_id) = known {
        event_id
    } else {
        let origin = requester.device.clone().map(|device| (device, txn.to_owned()));
        let draft = Draft { event_type, state_key: None, sender: &requester.user, content, origin };
        state.joined_room(room, &requester.user)?;
        check_form(state, room, &draft, ask.body.len())?;
        may_send(state, room, &draft)?;
        let event_id = state.append(room, draft).event_id.clone();
        state.txns.remember_row(requester, room, txn, &event_id, now);
        event_id
    };
    state.txns.remember_in_ram(requester, &ask.path, &event_id, now);
    Ok(json!({ "event_id": event_id }))
}

/// An event as clients get it, with what belongs to it bundled.
/// An event whose content has this field is shown as the JSON in it: what no homeserver would let anybody send.
pub const SHOWN_AS: &str = "test.shown_as";

pub(super) fn client_event(room: &Room, room_id: &str, index: usize, requester: &Requester, now_ms: u64) -> Value {
    let mut event = plain_event(room, room_id, index, requester, now_ms);
    let original = &room.timeline[index];
    if let Some(json) = original.content.get(SHOWN_AS).and_then(Value::as_str) {
        return serde_json::from_str(json).unwrap_or_default();
    }
    if room.is_redacted(&original.event_id) || original.state_key.is_some() {
        return event;
    }
    if let Some(edit) = newest_edit(room, index) {
        event["unsigned"]["m.relations"]["m.replace"] = plain_event(room, room_id, edit, requester, now_ms);
    }
    event
}

/// The edit that counts: by the same sender, of the same type, not redacted, the newest. An edit of an edit does not.
fn newest_edit(room: &Room, index: usize) -> Option<usize> {
    let original = &room.timeline[index];
    let relations = room.relations.get(&original.event_id)?;
    if original.content["m.relates_to"]["rel_type"] == "m.replace" {
        return None;
    }
    let counts = |at: usize| {
        let edit = &room.timeline[at];
        edit.content["m.relates_to"]["rel_type"] == "m.replace"
            && edit.sender == original.sender
            && edit.event_type == original.event_type
            && !room.is_redacted(&edit.event_id)
    };
    relations.iter().copied().filter(|&at| counts(at)).max_by_key(|&at| room.timeline[at].origin_server_ts)
}

fn plain_event(room: &Room, room_id: &str, index: usize, requester: &Requester, now_ms: u64) -> Value {
    let event = &room.timeline[index];
    let redaction = room.redactions.get(&event.event_id);
    let content = if redaction.is_some() { redacted_content(event) } else { event.content.clone() };
    let mut unsigned = json!({ "age": now_ms.saturating_sub(event.origin_server_ts) });
    if let Some((device, txn)) = &event.origin
        && event.sender == requester.user
        && requester.device.as_ref() == Some(device)
    {
        unsigned["transaction_id"] = json!(txn);
    }
    if let Some(&redaction) = redaction {
        unsigned["redacted_by"] = json!(room.timeline[redaction].event_id);
        unsigned["redacted_because"] = plain_event(room, room_id, redaction, requester, now_ms);
    }
    let mut json = json!({
        "event_id": event.event_id,
        "type": event.event_type,
        "room_id": room_id,
        "sender": event.sender,
        "content": content,
        "origin_server_ts": event.origin_server_ts,
        "unsigned": unsigned,
    });
    if let Some(state_key) = &event.state_key {
        json["state_key"] = json!(state_key);
    }
    if event.event_type == "m.room.redaction" {
        json["redacts"] = event.content["redacts"].clone();
    }
    json
}

/// The room as far as this user may read it, or the refusal.
fn readable<'a>(state: &'a State, requester: &Requester, room: &str) -> Result<(&'a Room, Visibility), Failure> {
    let found =
        state.room(room).filter(|room| matches!(room.membership(&requester.user), Some("join" | "leave" | "ban")));
    let refusal = || Failure::forbidden(format!("User {} not in room {room}", requester.user));
    let found = found.ok_or_else(refusal)?;
    let visibility = Visibility::of(found, &requester.user);
    if found.membership(&requester.user) != Some("join") && visibility.last().is_none() {
        return Err(refusal());
    }
    Ok((found, visibility))
}

pub(super) fn get_event(state: &State, requester: &Requester, room: &str, event_id: &str) -> Answer {
    let unknown = || Failure::not_found("Event not found.");
    let (found, visibility) = readable(state, requester, room).map_err(|_| unknown())?;
    let (of_room, index) = state.events.get(event_id).ok_or_else(unknown)?;
    if of_room != room || !visibility.shows(*index) {
        return Err(unknown());
    }
    Ok(client_event(found, room, *index, requester, state.clock.now_ms()))
}

pub(super) fn relations(
    state: &State,
    requester: &Requester,
    room: &str,
    event_id: &str,
    rel_type: Option<&str>,
    event_type: Option<&str>,
    query: &str,
) -> Answer {
    let (found, visibility) = readable(state, requester, room)?;
    if state.events.get(event_id).is_none_or(|(of_room, _)| of_room != room) {
        return Err(Failure::not_found(format!("Unknown event '{event_id}'")));
    }
    let limit = page_size(query, RELATIONS_PAGE);
    let forward = query_param(query, "dir").as_deref() == Some("f");
    let from = query_param(query, "from").and_then(|token| position(&token));
    let mut related: Vec<usize> = found.relations.get(event_id).cloned().unwrap_or_default();
    related.retain(|&at| {
        let event = &found.timeline[at];
        visibility.shows(at)
            && !found.is_redacted(&event.event_id)
            && rel_type.is_none_or(|name| event.content["m.relates_to"]["rel_type"] == name)
            && event_type.is_none_or(|name| event.event_type == name)
            && from.is_none_or(|from| if forward { event.position > from } else { event.position <= from })
    });
    if !forward {
        related.reverse();
    }
    let next = related.get(limit).map(|&at| found.timeline[at].position - u64::from(forward));
    let now = state.clock.now_ms();
    let chunk: Vec<Value> =
        related.into_iter().take(limit).map(|at| client_event(found, room, at, requester, now)).collect();
    let mut answer = json!({ "chunk": chunk });
    if let Some(next) = next {
        answer["next_batch"] = json!(format!("t{next}"));
    }
    Ok(answer)
}

fn page_size(query: &str, default: usize) -> usize {
    query_param(query, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(default).min(LARGEST_PAGE)
}

/// The place in the stream that a token of `/sync` or `/messages` names: behind that many events.
pub(super) fn position(token: &str) -> Option<u64> {
    token.strip_prefix(['s', 't'])?.parse().ok()
}

pub(super) fn messages(state: &State, requester: &Requester, room: &str, query: &str) -> Answer {
    let (found, visibility) = readable(state, requester, room)?;
    let token = |name: &str| match query_param(query, name) {
        None => Ok(None),
        Some(token) => position(&token)
            .map(Some)
            .ok_or_else(|| Failure::new(400, "M_INVALID_PARAM", format!("Query parameter '{name}' is invalid"))),
    };
    let (from, to) = (token("from")?, token("to")?);
    let filter = query_param(query, "filter").map(|json| Filter::parse(&json)).transpose()?.unwrap_or_default();
    let limit = page_size(query, DEFAULT_PAGE);
    let (length, now) = (found.timeline.len(), state.clock.now_ms());
    let end_of = |token: Option<u64>, default: usize| token.map_or(default, |token| found.count_until(token));
    let forward = match query_param(query, "dir").as_deref() {
        Some("f") => true,
        Some("b") | None => false,
        Some(_) => return Err(Failure::new(400, "M_INVALID_PARAM", "Query parameter 'dir' is invalid")),
    };
    let shown = |&index: &usize| visibility.shows(index) && filter.admits(&found.timeline[index]);
    let picked: Vec<usize> = if forward {
        (end_of(from, 0)..end_of(to, length)).filter(shown).take(limit).collect()
    } else {
        (end_of(to, 0)..end_of(from, length)).rev().filter(shown).take(limit).collect()
    };
    let start = from.unwrap_or(if forward { 0 } else { *state.position.borrow() });
    let mut answer = json!({
        "start": format!("t{start}"),
        "chunk": picked.iter().map(|&at| client_event(found, room, at, requester, now)).collect::<Vec<_>>(),
    });
    // There is an end token as long as there was something to show: the last page is an empty one.
    if let Some(&last) = picked.last() {
        let position = found.timeline[last].position;
        answer["end"] = json!(format!("t{}", if forward { position } else { position - 1 }));
    }
    Ok(answer)
}

/// Indices of the state that this user may see: the current one, or that of the moment of leaving.
fn visible_state(state: &State, requester: &Requester, room: &str) -> Result<Vec<usize>, Failure> {
    let (found, visibility) = readable(state, requester, room)?;
    if found.membership(&requester.user) == Some("join") {
        return Ok(found.current_state().collect());
    }
    Ok(found.state_at(visibility.last().unwrap_or_default()))
}

pub(super) fn all_state(state: &State, requester: &Requester, room: &str) -> Answer {
    let now = state.clock.now_ms();
    let indices = visible_state(state, requester, room)?;
    let found = &state.rooms[room];
    Ok(indices.into_iter().map(|at| client_event(found, room, at, requester, now)).collect())
}

pub(super) fn get_state(
    state: &State,
    requester: &Requester,
    room: &str,
    event_type: &str,
    state_key: &str,
    query: &str,
) -> Answer {
    let indices = visible_state(state, requester, room)?;
    let found = &state.rooms[room];
    let is_wanted = |at: &usize| {
        let event = &found.timeline[*at];
        event.event_type == event_type && event.state_key.as_deref() == Some(state_key)
    };
    let index = indices.into_iter().find(is_wanted).ok_or_else(|| Failure::not_found("Event not found."))?;
    let event = client_event(found, room, index, requester, state.clock.now_ms());
    Ok(if query_param(query, "format").as_deref() == Some("event") { event } else { event["content"].clone() })
}

pub(super) fn members(state: &State, requester: &Requester, room: &str, query: &str) -> Answer {
    let now = state.clock.now_ms();
    let admits = members_filter(query);
    let indices = visible_state(state, requester, room)?;
    let found = &state.rooms[room];
    let chunk: Vec<Value> = indices
        .into_iter()
        .filter(|&at| found.timeline[at].event_type == "m.room.member" && admits(&found.timeline[at].content))
        .map(|at| client_event(found, room, at, requester, now))
        .collect();
    Ok(json!({ "chunk": chunk }))
}
