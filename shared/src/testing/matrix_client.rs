//! A thin Matrix client for tests: ordinary accounts, against the fake homeserver and Synapse alike.
//!
//! It retries nothing and hides nothing: an error carries what the homeserver answered.
use std::sync::LazyLock;
use std::time::Duration;

use reqwest::{Client, Method, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::homeserver::{FakeHomeserver, registration_mac};

/// Longer than any long-poll of a test.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How many events [`MatrixClient::timeline`] asks for at once.
const PAGE: usize = 500;

/// How many pages a timeline may have: a token that goes in circles shall not hang a test.
const PAGES: usize = 10_000;

/// A homeserver as tests know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HomeserverAddress {
    /// Base URL without a slash at its end.
    pub url: String,
    /// The domain of its users.
    pub server_name: String,
    /// The shared secret of registration.
    pub registration_secret: String,
}

impl From<&FakeHomeserver> for HomeserverAddress {
    fn from(fake: &FakeHomeserver) -> Self {
        Self {
            url: fake.url(),
            server_name: fake.server_name().to_owned(),
            registration_secret: fake.registration_secret().to_owned(),
        }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// The homeserver answered with an error.
    #[error("{status} {errcode}: {error}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The Matrix error code; empty if the body was no Matrix error.
        errcode: String,
        /// The error's text, or the body if it was no Matrix error.
        error: String,
        /// The whole body, null if it is no JSON.
        body: Value,
    },
    /// There was no answer: nobody knows what the homeserver did.
    #[error("no answer: {0}")]
    Unanswered(#[from] reqwest::Error),
}

impl MatrixError {
    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unanswered(_) => None,
        }
    }

    /// The Matrix error code; empty if there was none.
    pub fn errcode(&self) -> &str {
        match self {
            Self::Refused { errcode, .. } => errcode,
            Self::Unanswered(_) => "",
        }
    }
}

/// What a request to a homeserver comes to.
pub type MatrixResult<T> = Result<T, MatrixError>;

/// A room event as clients get it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct MatrixEvent {
    /// `$…`
    pub event_id: String,
    /// For example `m.room.message`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The full user id.
    pub sender: String,
    /// Present on state events.
    pub state_key: Option<String>,
    /// An empty object after redaction.
    #[serde(default)]
    pub content: Value,
    /// Milliseconds since 1970.
    pub origin_server_ts: u64,
    /// `transaction_id`, `redacted_because`, `m.relations` and others.
    #[serde(default)]
    pub unsigned: Value,
}

impl MatrixEvent {
    /// Was it redacted?
    pub fn is_redacted(&self) -> bool {
        self.unsigned.get("redacted_because").is_some()
    }

    /// The plain text of a message.
    pub fn body(&self) -> Option<&str> {
        self.content["body"].as_str()
    }

    /// The event that it replaces, if it is an edit.
    pub fn replaces(&self) -> Option<&str> {
        let relates_to = &self.content["m.relates_to"];
        (relates_to["rel_type"] == "m.replace").then(|| relates_to["event_id"].as_str()).flatten()
    }

    /// The transaction id with which this very device sent it.
    pub fn transaction_id(&self) -> Option<&str> {
        self.unsigned["transaction_id"].as_str()
    }
}

/// One account on one device.
#[derive(Debug, Clone)]
pub struct MatrixClient {
    home: HomeserverAddress,
    user_id: String,
    device_id: String,
    access_token: String,
    /// Added to each query: how an application service says for whom it asks.
    masquerade: Option<(String, Option<String>)>,
}

/// One for all, since making one reads the system's certificates. It keeps no connection: none outlives the test that it was
/// opened in, and the first request after a restart of the homeserver does not run into one that is closed already.
static HTTP: LazyLock<Client> = LazyLock::new(|| {
    // An error means that a provider is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = Client::builder().timeout(TIMEOUT).no_proxy().pool_max_idle_per_host(0).build();
    client.expect("a client without special options")
});

impl MatrixClient {
    /// Registers an account by the shared secret and logs it in on a new device.
    pub async fn register(home: &HomeserverAddress, localpart: &str, password: &str) -> MatrixResult<Self> {
        Self::register_as(home, localpart, password, false).await
    }

    /// Registers a server admin.
    pub async fn register_admin(home: &HomeserverAddress, localpart: &str, password: &str) -> MatrixResult<Self> {
        Self::register_as(home, localpart, password, true).await
    }

    /// Registers an account with a random name.
    pub async fn register_random(home: &HomeserverAddress) -> MatrixResult<Self> {
        Self::register(home, &format!("user-{}", Uuid::new_v4().simple()), "password").await
    }

    async fn register_as(home: &HomeserverAddress, localpart: &str, password: &str, admin: bool) -> MatrixResult<Self> {
        let nobody = Self::with_token(home, "", "", "");
        let path = ["_synapse", "admin", "v1", "register"];
        let nonce = nobody.call_path(Method::GET, &path, &[], None).await?;
        let nonce = nonce["nonce"].as_str().unwrap_or_default();
        let mac = registration_mac(&home.registration_secret, nonce, localpart, password, admin);
        let body = json!({ "nonce": nonce, "username": localpart, "password": password, "admin": admin, "mac": mac });
        let session = nobody.call_path(Method::POST, &path, &[], Some(&body)).await?;
        Ok(Self::from_session(home, &session))
    }

    /// Logs in by password on a device of this name, which may exist already.
    pub async fn login(
        home: &HomeserverAddress,
        localpart: &str,
        password: &str,
        device_id: &str,
    ) -> MatrixResult<Self> {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": localpart },
            "password": password,
            "device_id": device_id,
        });
        let session = Self::with_token(home, "", "", "").call(Method::POST, &["login"], &[], Some(&body)).await?;
        Ok(Self::from_session(home, &session))
    }

    fn from_session(home: &HomeserverAddress, session: &Value) -> Self {
        let text = |key: &str| session[key].as_str().unwrap_or_default().to_owned();
        Self::with_token(home, &text("user_id"), &text("device_id"), &text("access_token"))
    }

    /// A client for a session that exists.
    pub fn with_token(home: &HomeserverAddress, user_id: &str, device_id: &str, access_token: &str) -> Self {
        Self {
            home: home.clone(),
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
            access_token: access_token.to_owned(),
            masquerade: None,
        }
    }

    /// The same token, speaking for another user and device: for an application service's token.
    #[must_use]
    pub fn speaking_for(&self, user_id: &str, device_id: Option<&str>) -> Self {
        let masquerade = Some((user_id.to_owned(), device_id.map(str::to_owned)));
        Self {
            user_id: user_id.to_owned(),
            device_id: device_id.unwrap_or_default().to_owned(),
            masquerade,
            ..self.clone()
        }
    }

    /// The full user id.
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    /// The device of this session.
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// The token of this session.
    pub fn access_token(&self) -> &str {
        &self.access_token
    }

    /// Where it asks.
    pub fn home(&self) -> &HomeserverAddress {
        &self.home
    }

    /// A request below `/_matrix/client/v3`; the segments are percent-encoded here.
    pub async fn call(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> MatrixResult<Value> {
        let path: Vec<&str> = ["_matrix", "client", "v3"].iter().chain(segments).copied().collect();
        self.call_path(method, &path, query, body).await
    }

    /// A request to any path of the homeserver.
    pub async fn call_path(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> MatrixResult<Value> {
        let body = body.map(|body| serde_json::to_vec(body).expect("a JSON value can be written"));
        self.call_raw(method, segments, query, body).await
    }

    /// A request whose body need not be JSON.
    pub async fn call_raw(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> MatrixResult<Value> {
        let mut url = Url::parse(&self.home.url).expect("the base URL of a homeserver");
        url.path_segments_mut().expect("an http URL has a path").extend(segments);
        if !query.is_empty() || self.masquerade.is_some() {
            let mut pairs = url.query_pairs_mut();
            pairs.extend_pairs(query);
            if let Some((user, device)) = &self.masquerade {
                pairs.append_pair("user_id", user);
                if let Some(device) = device {
                    pairs.append_pair("device_id", device);
                }
            }
        }
        let mut request = HTTP.request(method, url);
        if !self.access_token.is_empty() {
            request = request.bearer_auth(&self.access_token);
        }
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let bytes = response.bytes().await?;
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(body);
        }
        let text = |key: &str| body[key].as_str().map(str::to_owned);
        Err(MatrixError::Refused {
            status: status.as_u16(),
            errcode: text("errcode").unwrap_or_default(),
            error: text("error").unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned()),
            body,
        })
    }

    /// `GET /account/whoami`
    pub async fn whoami(&self) -> MatrixResult<Value> {
        self.call(Method::GET, &["account", "whoami"], &[], None).await
    }

    /// Ends the session and deletes its device.
    pub async fn logout(&self) -> MatrixResult<()> {
        self.call(Method::POST, &["logout"], &[], Some(&json!({}))).await.map(drop)
    }

    /// `POST /createRoom`; returns the room id.
    pub async fn create_room(&self, body: &Value) -> MatrixResult<String> {
        let answer = self.call(Method::POST, &["createRoom"], &[], Some(body)).await?;
        Ok(answer["room_id"].as_str().unwrap_or_default().to_owned())
    }

    /// The room that an alias points to.
    pub async fn resolve_alias(&self, alias: &str) -> MatrixResult<String> {
        let answer = self.call(Method::GET, &["directory", "room", alias], &[], None).await?;
        Ok(answer["room_id"].as_str().unwrap_or_default().to_owned())
    }

    /// Points an alias to a room.
    pub async fn put_alias(&self, alias: &str, room: &str) -> MatrixResult<()> {
        let body = json!({ "room_id": room });
        self.call(Method::PUT, &["directory", "room", alias], &[], Some(&body)).await.map(drop)
    }

    /// Joins a room by id or alias.
    pub async fn join(&self, room_or_alias: &str) -> MatrixResult<()> {
        self.call(Method::POST, &["join", room_or_alias], &[], Some(&json!({}))).await.map(drop)
    }

    /// Leaves a room, or rejects an invite.
    pub async fn leave(&self, room: &str) -> MatrixResult<()> {
        self.call(Method::POST, &["rooms", room, "leave"], &[], Some(&json!({}))).await.map(drop)
    }

    /// Invites a user.
    pub async fn invite(&self, room: &str, user: &str) -> MatrixResult<()> {
        self.act_on(room, "invite", user).await
    }

    /// Kicks a user.
    pub async fn kick(&self, room: &str, user: &str) -> MatrixResult<()> {
        self.act_on(room, "kick", user).await
    }

    /// Bans a user.
    pub async fn ban(&self, room: &str, user: &str) -> MatrixResult<()> {
        self.act_on(room, "ban", user).await
    }

    /// Lifts a ban.
    pub async fn unban(&self, room: &str, user: &str) -> MatrixResult<()> {
        self.act_on(room, "unban", user).await
    }

    async fn act_on(&self, room: &str, action: &str, user: &str) -> MatrixResult<()> {
        let body = json!({ "user_id": user });
        self.call(Method::POST, &["rooms", room, action], &[], Some(&body)).await.map(drop)
    }

    /// Sends an event; returns its id.
    pub async fn send(&self, room: &str, event_type: &str, txn: &str, content: &Value) -> MatrixResult<String> {
        let path = ["rooms", room, "send", event_type, txn];
        self.call(Method::PUT, &path, &[], Some(content)).await.map(|answer| event_id(&answer))
    }

    /// Sends a text message with a transaction id of its own.
    pub async fn say(&self, room: &str, text: &str) -> MatrixResult<String> {
        let txn = Uuid::new_v4().to_string();
        self.send(room, "m.room.message", &txn, &json!({ "msgtype": "m.text", "body": text })).await
    }

    /// Redacts an event; returns the redaction's id. The content may carry a `reason` and more.
    pub async fn redact(&self, room: &str, event: &str, txn: &str, content: &Value) -> MatrixResult<String> {
        let path = ["rooms", room, "redact", event, txn];
        self.call(Method::PUT, &path, &[], Some(content)).await.map(|answer| event_id(&answer))
    }

    /// Sets a state event; returns its id.
    pub async fn put_state(&self, room: &str, event_type: &str, key: &str, content: &Value) -> MatrixResult<String> {
        let path = ["rooms", room, "state", event_type, key];
        self.call(Method::PUT, &path, &[], Some(content)).await.map(|answer| event_id(&answer))
    }

    /// The content of a state event.
    pub async fn state(&self, room: &str, event_type: &str, key: &str) -> MatrixResult<Value> {
        self.call(Method::GET, &["rooms", room, "state", event_type, key], &[], None).await
    }

    /// All state events of a room.
    pub async fn all_state(&self, room: &str) -> MatrixResult<Vec<MatrixEvent>> {
        let answer = self.call(Method::GET, &["rooms", room, "state"], &[], None).await?;
        Ok(parse(answer))
    }

    /// Who has which membership: user id and `join`, `invite`, `leave` or `ban`.
    pub async fn members(&self, room: &str) -> MatrixResult<Vec<(String, String)>> {
        let answer = self.call(Method::GET, &["rooms", room, "members"], &[], None).await?;
        let members = parse(answer["chunk"].clone()).into_iter().filter_map(|event| {
            let membership = event.content["membership"].as_str()?.to_owned();
            Some((event.state_key?, membership))
        });
        Ok(members.collect())
    }

    /// The rooms that this account has joined.
    pub async fn joined_rooms(&self) -> MatrixResult<Vec<String>> {
        let answer = self.call(Method::GET, &["joined_rooms"], &[], None).await?;
        Ok(answer["joined_rooms"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect())
    }

    /// One event, with its newest edit in `unsigned`.
    pub async fn event(&self, room: &str, event: &str) -> MatrixResult<MatrixEvent> {
        let answer = self.call(Method::GET, &["rooms", room, "event", event], &[], None).await?;
        Ok(serde_json::from_value(answer).expect("a room event"))
    }

    /// The events that relate to one, newest first.
    pub async fn relations(&self, room: &str, event: &str, rel_type: &str) -> MatrixResult<Vec<MatrixEvent>> {
        let path = ["_matrix", "client", "v1", "rooms", room, "relations", event, rel_type];
        let answer = self.call_path(Method::GET, &path, &[("limit", "100")], None).await?;
        Ok(parse(answer["chunk"].clone()))
    }

    /// All events of a room that this account may see, oldest first, read page by page.
    pub async fn timeline(&self, room: &str) -> MatrixResult<Vec<MatrixEvent>> {
        let (limit, mut from) = (PAGE.to_string(), None::<String>);
        let mut events = Vec::new();
        for _ in 0..PAGES {
            let mut query = vec![("dir", "b"), ("limit", limit.as_str())];
            query.extend(from.as_deref().map(|from| ("from", from)));
            let page = self.call(Method::GET, &["rooms", room, "messages"], &query, None).await?;
            let chunk = parse(page["chunk"].clone());
            let is_last = chunk.is_empty();
            events.extend(chunk);
            from = page["end"].as_str().map(str::to_owned);
            if is_last || from.is_none() {
                break;
            }
        }
        events.reverse();
        Ok(events)
    }

    /// `GET /sync`; the filter is JSON.
    pub async fn sync(&self, since: Option<&str>, timeout: Duration, filter: Option<&Value>) -> MatrixResult<Value> {
        let timeout = timeout.as_millis().to_string();
        let filter = filter.map(Value::to_string);
        let mut query = vec![("timeout", timeout.as_str())];
        query.extend(since.map(|since| ("since", since)));
        query.extend(filter.as_deref().map(|filter| ("filter", filter)));
        self.call(Method::GET, &["sync"], &query, None).await
    }
}

fn event_id(answer: &Value) -> String {
    answer["event_id"].as_str().unwrap_or_default().to_owned()
}

fn parse(events: Value) -> Vec<MatrixEvent> {
    serde_json::from_value(events).expect("a list of room events")
}
