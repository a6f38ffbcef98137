//! From method and path to the endpoint that is meant.
use hyper::Method;
use percent_encoding::percent_decode_str;

use super::reply::Failure;

/// The endpoints, with what their paths carry (percent-decoded).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Versions,
    Whoami,
    Capabilities,
    MediaConfig,
    TurnServer,
    LoginFlows,
    Login,
    Logout,
    Register,
    AdminNonce,
    AdminRegister,
    AdminDeactivate { user: String },
    AdminOverrideRatelimit { user: String },
    CreateRoom,
    ResolveAlias { alias: String },
    PutAlias { alias: String },
    DeleteAlias { alias: String },
    Join { room_or_alias: String },
    Membership { room: String, action: Action },
    Send { room: String, event_type: String, txn: String },
    Redact { room: String, event: String, txn: String },
    GetState { room: String, event_type: String, state_key: String },
    PutState { room: String, event_type: String, state_key: String },
    AllState { room: String },
    Members { room: String },
    JoinedMembers { room: String },
    JoinedRooms,
    Messages { room: String },
    Event { room: String, event: String },
    Relations { room: String, event: String, rel_type: Option<String>, event_type: Option<String> },
    PutFilter { user: String },
    Sync,
}

/// A membership change under `/rooms/{id}/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Join,
    Invite,
    Leave,
    Kick,
    Ban,
    Unban,
}

impl Action {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Leave => "leave",
            Self::Kick => "kick",
            Self::Ban => "ban",
            Self::Unban => "unban",
        }
    }

    /// The membership that the target has afterwards.
    pub(super) fn membership(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Leave | Self::Kick | Self::Unban => "leave",
            Self::Ban => "ban",
        }
    }
}

/// The kinds of request that faults and the request log tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `PUT /rooms/{id}/send/{type}/{txn}`
    Send,
    /// `PUT /rooms/{id}/redact/{event}/{txn}`
    Redact,
    /// `POST /createRoom`
    CreateRoom,
    /// `POST /rooms/{id}/invite`
    Invite,
    /// `POST /rooms/{id}/kick`
    Kick,
    /// `POST /rooms/{id}/join` and `POST /join/{id or alias}`
    Join,
    /// `POST /rooms/{id}/leave`
    Leave,
    /// `POST /rooms/{id}/ban` and `unban`
    Ban,
    /// `PUT /rooms/{id}/state/…`
    PutState,
    /// `GET /rooms/{id}/state…`
    GetState,
    /// `/directory/room/{alias}`
    Alias,
    /// `GET /sync`
    Sync,
    /// `GET /rooms/{id}/messages`
    Messages,
    /// `GET /rooms/{id}/event/{event}` and relations
    GetEvent,
    /// `GET /rooms/{id}/members`, `joined_members` and `/joined_rooms`
    Members,
    /// `/login`, `/logout`, `/register`, `/account/whoami`
    Account,
    /// All others, known or not.
    Other,
}

impl Call {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Send { .. } => Kind::Send,
            Self::Redact { .. } => Kind::Redact,
            Self::CreateRoom => Kind::CreateRoom,
            Self::Join { .. } | Self::Membership { action: Action::Join, .. } => Kind::Join,
            Self::Membership { action: Action::Invite, .. } => Kind::Invite,
            Self::Membership { action: Action::Kick, .. } => Kind::Kick,
            Self::Membership { action: Action::Leave, .. } => Kind::Leave,
            Self::Membership { action: Action::Ban | Action::Unban, .. } => Kind::Ban,
            Self::PutState { .. } => Kind::PutState,
            Self::GetState { .. } | Self::AllState { .. } => Kind::GetState,
            Self::ResolveAlias { .. } | Self::PutAlias { .. } | Self::DeleteAlias { .. } => Kind::Alias,
            Self::Sync => Kind::Sync,
            Self::Messages { .. } => Kind::Messages,
            Self::Event { .. } | Self::Relations { .. } => Kind::GetEvent,
            Self::Members { .. } | Self::JoinedMembers { .. } | Self::JoinedRooms => Kind::Members,
            Self::Login | Self::LoginFlows | Self::Logout | Self::Register | Self::Whoami => Kind::Account,
            Self::Versions
            | Self::Capabilities
            | Self::MediaConfig
            | Self::TurnServer
            | Self::AdminNonce
            | Self::AdminRegister
            | Self::AdminDeactivate { .. }
            | Self::AdminOverrideRatelimit { .. }
            | Self::PutFilter { .. } => Kind::Other,
        }
    }

    pub(super) fn room(&self) -> Option<&str> {
        match self {
            Self::Membership { room, .. }
            | Self::Send { room, .. }
            | Self::Redact { room, .. }
            | Self::GetState { room, .. }
            | Self::PutState { room, .. }
            | Self::AllState { room }
            | Self::Members { room }
            | Self::JoinedMembers { room }
            | Self::Messages { room }
            | Self::Event { room, .. }
            | Self::Relations { room, .. } => Some(room),
            Self::Join { room_or_alias } => Some(room_or_alias),
            _ => None,
        }
    }

    pub(super) fn txn(&self) -> Option<&str> {
        match self {
            Self::Send { txn, .. } | Self::Redact { txn, .. } => Some(txn),
            _ => None,
        }
    }

    pub(super) fn event_type(&self) -> Option<&str> {
        match self {
            Self::Send { event_type, .. } | Self::PutState { event_type, .. } | Self::GetState { event_type, .. } => {
                Some(event_type)
            }
            Self::Redact { .. } => Some("m.room.redaction"),
            _ => None,
        }
    }
}

/// The endpoint of a request, or Synapse's answer to paths and methods that it does not know.
pub(super) fn route(method: &Method, path: &str) -> Result<Call, Failure> {
    let decoded: Vec<String> =
        path.split('/').skip(1).map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned()).collect();
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let found = match segments.as_slice() {
        ["_matrix", "client", "versions"] => on(method, [(Method::GET, Call::Versions)]),
        ["_matrix", "client", "v1", "rooms", room, "relations", event, rest @ ..] => {
            relations(method, room, event, rest)
        }
        ["_matrix", "client", "v3" | "r0" | "v1", rest @ ..] => client(method, rest),
        ["_synapse", "admin", "v1", "register"] => {
            on(method, [(Method::GET, Call::AdminNonce), (Method::POST, Call::AdminRegister)])
        }
        ["_synapse", "admin", "v1", "deactivate", user] => {
            on(method, [(Method::POST, Call::AdminDeactivate { user: (*user).to_owned() })])
        }
        ["_synapse", "admin", "v1", "users", user, "override_ratelimit"] => {
            on(method, [(Method::POST, Call::AdminOverrideRatelimit { user: (*user).to_owned() })])
        }
        _ => Found::Nothing,
    };
    match found {
        Found::Call(call) => Ok(call),
        Found::OtherMethod => Err(Failure::new(405, "M_UNRECOGNIZED", "Unrecognized request")),
        Found::Nothing => Err(Failure::new(404, "M_UNRECOGNIZED", "Unrecognized request")),
    }
}

enum Found {
    Call(Call),
    OtherMethod,
    Nothing,
}

fn on<const N: usize>(method: &Method, calls: [(Method, Call); N]) -> Found {
    calls.into_iter().find(|(known, _)| known == method).map_or(Found::OtherMethod, |(_, call)| Found::Call(call))
}

fn relations(method: &Method, room: &str, event: &str, rest: &[&str]) -> Found {
    let call = |rel_type: Option<&&str>, event_type: Option<&&str>| Call::Relations {
        room: room.to_owned(),
        event: event.to_owned(),
        rel_type: rel_type.map(|&name| name.to_owned()),
        event_type: event_type.map(|&name| name.to_owned()),
    };
    if rest.len() > 2 { Found::Nothing } else { on(method, [(Method::GET, call(rest.first(), rest.get(1)))]) }
}

fn client(method: &Method, segments: &[&str]) -> Found {
    let own = |text: &&str| (*text).to_owned();
    match segments {
        ["account", "whoami"] => on(method, [(Method::GET, Call::Whoami)]),
        ["media", "config"] => on(method, [(Method::GET, Call::MediaConfig)]),
        ["voip", "turnServer"] => on(method, [(Method::GET, Call::TurnServer)]),
        ["capabilities"] => on(method, [(Method::GET, Call::Capabilities)]),
        ["login"] => on(method, [(Method::GET, Call::LoginFlows), (Method::POST, Call::Login)]),
        ["logout"] => on(method, [(Method::POST, Call::Logout)]),
        ["register"] => on(method, [(Method::POST, Call::Register)]),
        ["createRoom"] => on(method, [(Method::POST, Call::CreateRoom)]),
        ["directory", "room", alias] => on(
            method,
            [
                (Method::GET, Call::ResolveAlias { alias: own(alias) }),
                (Method::PUT, Call::PutAlias { alias: own(alias) }),
                (Method::DELETE, Call::DeleteAlias { alias: own(alias) }),
            ],
        ),
        ["join", target] => on(method, [(Method::POST, Call::Join { room_or_alias: own(target) })]),
        ["joined_rooms"] => on(method, [(Method::GET, Call::JoinedRooms)]),
        ["sync"] => on(method, [(Method::GET, Call::Sync)]),
        ["user", user, "filter"] => on(method, [(Method::POST, Call::PutFilter { user: own(user) })]),
        ["rooms", room, rest @ ..] => in_room(method, room, rest),
        _ => Found::Nothing,
    }
}

fn in_room(method: &Method, room: &str, segments: &[&str]) -> Found {
    let own = |text: &str| text.to_owned();
    let room = own(room);
    match segments {
        ["send", event_type, txn] => {
            on(method, [(Method::PUT, Call::Send { room, event_type: own(event_type), txn: own(txn) })])
        }
        ["redact", event, txn] => on(method, [(Method::PUT, Call::Redact { room, event: own(event), txn: own(txn) })]),
        ["state"] => on(method, [(Method::GET, Call::AllState { room })]),
        ["state", event_type, rest @ ..] if rest.len() < 2 => {
            let (event_type, state_key) = (own(event_type), own(rest.first().copied().unwrap_or_default()));
            on(
                method,
                [
                    (
                        Method::GET,
                        Call::GetState {
                            room: room.clone(),
                            event_type: event_type.clone(),
                            state_key: state_key.clone(),
                        },
                    ),
                    (Method::PUT, Call::PutState { room, event_type, state_key }),
                ],
            )
        }
        ["members"] => on(method, [(Method::GET, Call::Members { room })]),
        ["joined_members"] => on(method, [(Method::GET, Call::JoinedMembers { room })]),
        ["messages"] => on(method, [(Method::GET, Call::Messages { room })]),
        ["event", event] => on(method, [(Method::GET, Call::Event { room, event: own(event) })]),
        [action] => {
            let action = match *action {
                "join" => Action::Join,
                "invite" => Action::Invite,
                "leave" => Action::Leave,
                "kick" => Action::Kick,
                "ban" => Action::Ban,
                "unban" => Action::Unban,
                _ => return Found::Nothing,
            };
            on(method, [(Method::POST, Call::Membership { room, action })])
        }
        _ => Found::Nothing,
    }
}

/// A query parameter, decoded.
pub(super) fn query_param(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_segment_is_decoded_after_the_split() {
        let call = route(&Method::PUT, "/_matrix/client/v3/rooms/%21a/send/m.room.message/a%2Fb%20%C3%A9");
        let Ok(Call::Send { room, txn, .. }) = call else { panic!("{call:?}") };
        assert_eq!((room.as_str(), txn.as_str()), ("!a", "a/b é"));
    }

    #[test]
    fn unknown_paths_are_404_and_unknown_methods_405() {
        assert_eq!(route(&Method::GET, "/_matrix/client/v3/nonsense").map_err(|f| f.status), Err(404));
        assert_eq!(route(&Method::DELETE, "/_matrix/client/v3/createRoom").map_err(|f| f.status), Err(405));
    }
}
