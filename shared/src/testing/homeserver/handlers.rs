//! One request's way through the homeserver: parse, dispatch, answer.
use std::time::Duration;

use serde_json::{Value, json};

use super::Shared;
use super::accounts;
use super::events;
use super::reply::{Answer, Failure, Reply};
use super::rooms::{self, Unmade};
use super::routes::Call;
use super::state::State;
use super::sync::{SyncQuery, sync};

/// What a handler gets to see of a request.
#[derive(Debug)]
pub(super) struct Ask {
    /// As sent, still percent-encoded.
    pub(super) path: String,
    pub(super) query: String,
    pub(super) token: Option<String>,
    pub(super) body: hyper::body::Bytes,
}

impl Ask {
    /// The body as a JSON object, with Synapse's refusals of all else.
    pub(super) fn object(&self) -> Result<Value, Failure> {
        match serde_json::from_slice(&self.body) {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err(Failure::new(400, "M_BAD_JSON", "Content must be a JSON object.")),
            // Synapse reads a lone surrogate, but cannot write it.
            Err(error) if error.to_string().contains("hex escape") => Err(Failure::internal()),
            Err(_) => Err(Failure::new(400, "M_NOT_JSON", "Content not JSON.")),
        }
    }

    /// For endpoints that take an empty body as an empty object.
    pub(super) fn optional_object(&self) -> Result<Value, Failure> {
        if self.body.is_empty() { Ok(json!({})) } else { self.object() }
    }
}

/// What is known of a request when it arrives, before it waits for anything.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// The alias that a new room asks for was free.
    pub(super) alias_was_free: bool,
}

impl Arrival {
    pub(super) fn observe(state: &State, call: &Call, ask: &Ask) -> Self {
        let alias = matches!(call, Call::CreateRoom)
            .then(|| ask.object().ok())
            .flatten()
            .and_then(|body| rooms::wanted_alias(state, &body));
        Self { alias_was_free: alias.is_some_and(|alias| !state.aliases.contains_key(&alias)) }
    }
}

/// Why there is no answer from the handler itself.
pub(super) enum Unanswered {
    /// A room was left half-made, as a fault asked for.
    Stopped,
}

pub(super) async fn answer(
    shared: &Shared,
    call: Call,
    ask: &Ask,
    arrival: &Arrival,
    stop_after: Option<usize>,
) -> Result<Reply, Unanswered> {
    if let Call::Sync = call {
        return Ok(long_poll(shared, ask).await.into());
    }
    let mut state = shared.state.lock().unwrap();
    if let Call::CreateRoom = call {
        let made = accounts::authenticate(&state, ask)
            .map_err(Unmade::from)
            .and_then(|who| rooms::create_room(&mut state, &who, ask, arrival.alias_was_free, stop_after));
        return match made {
            Ok(body) => Ok(Ok(body).into()),
            Err(Unmade::Refused(failure)) => Ok(Err(failure).into()),
            Err(Unmade::Stopped) => Err(Unanswered::Stopped),
        };
    }
    Ok(dispatch(&mut state, &shared.registration_secret, call, ask).into())
}

fn dispatch(state: &mut State, secret: &str, call: Call, ask: &Ask) -> Answer {
    match call {
        Call::Versions => return Ok(versions()),
        Call::LoginFlows => return Ok(json!({ "flows": [{ "type": "m.login.password" }] })),
        Call::Login => return accounts::login(state, ask),
        Call::Register => return accounts::register(state, ask),
        Call::AdminNonce => return Ok(accounts::admin_nonce(state)),
        Call::AdminRegister => return accounts::admin_register(state, secret, &ask.object()?),
        Call::ResolveAlias { alias } => return rooms::resolve_alias(state, &alias),
        _ => {}
    }
    let who = accounts::authenticate(state, ask)?;
    match call {
        Call::Whoami => Ok(accounts::whoami(&who)),
        Call::Capabilities => Ok(capabilities()),
        Call::MediaConfig => Ok(json!({ "m.upload.size": UPLOAD_LIMIT })),
        Call::TurnServer => Ok(accounts::turn_servers(state, &who)),
        Call::Logout => Ok(accounts::logout(state, &who)),
        Call::AdminDeactivate { user } => {
            accounts::require_admin(state, &who)?;
            accounts::deactivate(state, &user)
        }
        Call::AdminOverrideRatelimit { .. } => {
            accounts::require_admin(state, &who)?;
            ask.object()
        }
        Call::PutFilter { .. } => {
            let filter = ask.object()?;
            state.filters.push(filter);
            Ok(json!({ "filter_id": (state.filters.len() - 1).to_string() }))
        }
        Call::PutAlias { alias } => rooms::put_alias(state, &who, &alias, &ask.object()?),
        Call::DeleteAlias { alias } => rooms::delete_alias(state, &who, &alias),
        Call::Join { room_or_alias } => rooms::join(state, &who, &room_or_alias),
        Call::Membership { room, action } => {
            rooms::change_membership(state, &who, &room, action, &ask.optional_object()?)
        }
        Call::Send { room, event_type, txn } => events::send(state, &who, &room, &event_type, &txn, ask),
        Call::Redact { room, event, txn } => events::redact(state, &who, &room, &event, &txn, ask),
        Call::PutState { room, event_type, state_key } => {
            rooms::put_state(state, &who, &room, &event_type, &state_key, ask)
        }
        Call::GetState { room, event_type, state_key } => {
            events::get_state(state, &who, &room, &event_type, &state_key, &ask.query)
        }
        Call::AllState { room } => events::all_state(state, &who, &room),
        Call::Members { room } => events::members(state, &who, &room, &ask.query),
        Call::JoinedMembers { room } => rooms::joined_members(state, &who, &room),
        Call::JoinedRooms => Ok(rooms::joined_rooms(state, &who)),
        Call::Messages { room } => events::messages(state, &who, &room, &ask.query),
        Call::Event { room, event } => events::get_event(state, &who, &room, &event),
        Call::Relations { room, event, rel_type, event_type } => {
            events::relations(state, &who, &room, &event, rel_type.as_deref(), event_type.as_deref(), &ask.query)
        }
        _ => Err(Failure::new(404, "M_UNRECOGNIZED", "Unrecognized request")),
    }
}

/// The largest upload, in bytes.
const UPLOAD_LIMIT: u64 = 50 * 1024 * 1024;

fn capabilities() -> Value {
    json!({ "capabilities": { "m.room_versions": { "default": "12", "available": { "12": "stable" } } } })
}

fn versions() -> Value {
    let versions: Vec<String> = (1..=15).map(|minor| format!("v1.{minor}")).collect();
    json!({ "versions": versions, "unstable_features": {} })
}

async fn long_poll(shared: &Shared, ask: &Ask) -> Answer {
    let (query, mut newest) = {
        let state = shared.state.lock().unwrap();
        accounts::authenticate(&state, ask)?;
        (SyncQuery::parse(&state, &ask.query)?, state.position.subscribe())
    };
    let deadline = tokio::time::Instant::now() + Duration::from_millis(query.timeout_ms);
    loop {
        newest.mark_unchanged();
        let answer = {
            let state = shared.state.lock().unwrap();
            // A token may be revoked while its holder waits.
            let who = accounts::authenticate(&state, ask)?;
            sync(&state, &who, &query)
        };
        if !answer.is_empty || !query.may_wait() {
            return Ok(answer.body);
        }
        match tokio::time::timeout_at(deadline, newest.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(answer.body),
        }
    }
}
