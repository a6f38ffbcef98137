//! The homeserver, as the worker needs it: one method for each thing asked of it, and one type for everything that can
//! come instead of an answer.
//!
//! A [`Failure`] is a fact, not yet a judgement: what it means for an operation is decided in `verdict`.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use ruma::{
    OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomId as RumaRoomId,
    api::{
        OutgoingRequest, SupportedVersions,
        auth_scheme::{AuthScheme, SendAccessToken},
        client::{
            account::whoami,
            alias::{delete_alias, get_alias},
            authenticated_media::get_media_config,
            device::update_device,
            discovery::get_capabilities,
            filter::{Filter as EventFilter, FilterDefinition, RoomEventFilter, RoomFilter},
            membership::{invite_user, join_room_by_id, kick_user, leave_room},
            message::{get_message_events, send_message_event},
            redact::redact_event,
            room::{create_room, get_room_event},
            state::{get_state_event_for_key, get_state_events, send_state_event},
            sync::sync_events,
            voip::get_turn_server_info,
        },
        error::{Error as MatrixError, ErrorBody, ErrorKind, FromHttpResponseError, RetryAfter},
    },
    presence::PresenceState,
    serde::Raw,
};
use ruma_client::{Client, HttpClient};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::value::RawValue;
use shared::{
    config::MatrixConfig,
    ids::{EventId, MatrixUserId, OutboxId, RoomId},
    turn::{Answer, Credentials},
};

use crate::{
    breaker::{Breaker, Signal},
    verdict,
};

/// Error texts of a homeserver are kept up to this many characters: enough to recognise them, too few for content.
const MAX_DETAIL_CHARS: usize = 200;

/// How many events of a room's history are asked for at once.
const EVENTS_A_PAGE: u16 = 100;

/// The types of events that a sync asks for. What is not among them neither costs anything nor counts as a gap.
const SYNCED_TYPES: [&str; 7] = [
    "m.room.message",
    "m.room.redaction",
    "m.reaction",
    "m.room.member",
    "m.room.tombstone",
    "m.call.*",
    "com.nova.outbox.void",
];

/// The types of events that are compared with the database, and a room's first.
const COMPARED_TYPES: [&str; 6] =
    ["m.room.message", "m.room.redaction", "m.reaction", "m.call.*", "com.nova.outbox.void", "m.room.create"];

/// Idle connections kept for the next request.
const MAX_IDLE_CONNECTIONS: usize = 256;

/// What came instead of the answer that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The request never left: nobody listens, the name is unknown, the handshake failed.
    NotSent(String),
    /// The request may have arrived, its answer did not: timeout, cut connection, an answer that makes no sense.
    NoAnswer(String),
    /// The homeserver said no.
    Refused(Refusal),
    /// There is no such request: an id is none, a body is no JSON.
    NotBuilt(String),
}

/// A refusal by the homeserver, or by what stands before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) errcode: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) detail: String,
}

impl Failure {
    /// The Matrix error code, when the answer had one.
    pub(crate) fn errcode(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => refusal.errcode.as_deref(),
            Self::NotSent(_) | Self::NoAnswer(_) | Self::NotBuilt(_) => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(detail) => write!(f, "not sent: {detail}"),
            Self::NoAnswer(detail) => write!(f, "no answer: {detail}"),
            Self::NotBuilt(detail) => write!(f, "not asked: {detail}"),
            Self::Refused(Refusal { status, errcode, detail, .. }) => {
                write!(f, "{status} {}: {detail}", errcode.as_deref().unwrap_or("without a Matrix error code"))
            }
        }
    }
}

impl std::error::Error for Failure {}

/// The HTTP client below ruma's: it keeps what ruma's error types lose, the Retry-After of an answer that is not JSON.
#[derive(Debug, Clone)]
struct Transport(reqwest::Client);

#[derive(Debug)]
enum TransportError {
    Http(reqwest::Error),
    NotMatrix(Refusal),
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(error) => error.fmt(f),
            Self::NotMatrix(refusal) => Failure::Refused(refusal.clone()).fmt(f),
        }
    }
}

impl HttpClient for Transport {
    type RequestBody = BytesMut;
    type ResponseBody = Bytes;
    type Error = TransportError;

    async fn send_http_request(
        &self,
        request: http::Request<BytesMut>,
    ) -> Result<http::Response<Bytes>, TransportError> {
        let request = request.map(BytesMut::freeze).try_into().map_err(TransportError::Http)?;
        let mut answer = self.0.execute(request).await.map_err(TransportError::Http)?;
        let mut response = http::Response::new(Bytes::new());
        *response.status_mut() = answer.status();
        std::mem::swap(response.headers_mut(), answer.headers_mut());
        *response.body_mut() = answer.bytes().await.map_err(TransportError::Http)?;
        let status = response.status();
        if (status.is_client_error() || status.is_server_error()) && !is_matrix_error(response.body()) {
            let retry_after = response
                .headers()
                .get(http::header::RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.trim().parse().ok())
                .map(Duration::from_secs);
            return Err(TransportError::NotMatrix(Refusal {
                status: status.as_u16(),
                errcode: None,
                retry_after,
                detail: "an answer that is not Matrix' (a proxy's page?)".to_owned(),
            }));
        }
        Ok(response)
    }
}

/// Whether a body is an error as Matrix writes them. Gateways before a homeserver write JSON too.
fn is_matrix_error(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Error {
        #[expect(dead_code, reason = "only that it is there counts")]
        errcode: String,
    }
    serde_json::from_slice::<Error>(body).is_ok()
}

fn shortened(text: &str) -> String {
    // Whoever answers may put anything into it, also what a database or a terminal does not take.
    text.chars().filter(|c| !c.is_control()).take(MAX_DETAIL_CHARS).collect()
}

/// What an HTTP error says, without the URL, which carries room and transaction ids.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    shortened(&text)
}

impl From<ruma_client::Error<TransportError, MatrixError>> for Failure {
    fn from(error: ruma_client::Error<TransportError, MatrixError>) -> Self {
        use ruma_client::Error;
        match error {
            Error::Response(TransportError::Http(error)) if error.is_connect() => Self::NotSent(describe(error)),
            Error::Response(TransportError::Http(error)) => Self::NoAnswer(describe(error)),
            Error::Response(TransportError::NotMatrix(refusal)) => Self::Refused(refusal),
            Error::FromHttpResponse(FromHttpResponseError::Server(error)) => Self::Refused(refusal(&error)),
            Error::FromHttpResponse(error) => Self::NoAnswer(shortened(&error.to_string())),
            error => Self::NotBuilt(shortened(&error.to_string())),
        }
    }
}

fn refusal(error: &MatrixError) -> Refusal {
    let status = error.status_code.as_u16();
    match &error.body {
        ErrorBody::Standard(body) => Refusal {
            status,
            errcode: Some(shortened(body.kind.errcode().as_ref())),
            retry_after: match &body.kind {
                ErrorKind::LimitExceeded(data) => data.retry_after.as_ref().and_then(|after| match after {
                    RetryAfter::Delay(delay) => Some(*delay),
                    RetryAfter::DateTime(_) => None,
                }),
                _ => None,
            },
            detail: shortened(&body.message),
        },
        ErrorBody::Json(_) | ErrorBody::NotJson { .. } => {
            Refusal { status, errcode: None, retry_after: None, detail: "without a Matrix error".to_owned() }
        }
    }
}

/// Who a token speaks as.
#[derive(Debug, Clone)]
pub(crate) struct Whoami {
    pub(crate) user_id: String,
    pub(crate) device_id: Option<String>,
}

/// One state event of a room.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct StateEvent {
    pub(crate) r#type: String,
    pub(crate) state_key: String,
    pub(crate) sender: String,
    #[serde(default)]
    pub(crate) event_id: String,
    pub(crate) content: serde_json::Value,
}

/// One event of a room's history.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct HistoryEvent {
    pub(crate) r#type: String,
    pub(crate) event_id: String,
    pub(crate) sender: String,
    pub(crate) origin_server_ts: i64,
    #[serde(default)]
    pub(crate) content: serde_json::Value,
    #[serde(default)]
    pub(crate) unsigned: serde_json::Value,
    /// Up to room version 10 a redaction names its target here.
    #[serde(default)]
    pub(crate) redacts: Option<String>,
}

/// A page of a room's history.
#[derive(Debug)]
pub(crate) struct EventPage {
    pub(crate) events: Vec<HistoryEvent>,
    pub(crate) next: Option<String>,
}

/// A room to be created.
#[derive(Debug, Clone)]
pub(crate) struct NewRoom {
    pub(crate) alias_localpart: String,
    pub(crate) name: Option<String>,
    /// Type and content of state events with an empty state key.
    pub(crate) state: Vec<(&'static str, serde_json::Value)>,
}

/// Whose rate limit a request draws on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limited {
    /// The account's: a limit met by one is met by all.
    Account,
    /// Perhaps a room's or an invited user's alone.
    Apart,
}

/// The homeserver, spoken to as the service account. Each of its answers is told to the circuit breaker.
#[derive(Debug, Clone)]
pub(crate) struct Homeserver {
    client: Client<Transport>,
    /// For requests that the homeserver holds until there is news.
    listener: Client<Transport>,
    service_user: MatrixUserId,
    breaker: Arc<Breaker>,
}

fn invalid(what: &str) -> Failure {
    Failure::NotBuilt(format!("{what} is not a valid Matrix id"))
}

fn room(room_id: &RoomId) -> Result<OwnedRoomId, Failure> {
    RumaRoomId::parse(room_id.as_str()).map_err(|_| invalid("the room id"))
}

fn user(user_id: &MatrixUserId) -> Result<OwnedUserId, Failure> {
    OwnedUserId::try_from(user_id.as_str()).map_err(|_| invalid("the user id"))
}

/// What a sync asks of a room's timeline.
fn synced(limit: u32) -> RoomEventFilter {
    let mut filter = RoomEventFilter::default();
    filter.types = Some(SYNCED_TYPES.iter().map(|&name| name.to_owned()).collect());
    filter.limit = Some(limit.into());
    filter
}

fn event(event_id: &OwnedEventId) -> EventId {
    EventId::from(event_id.to_string())
}

/// A client of ruma's over a connection pool of its own.
async fn client(config: &MatrixConfig, timeout: Duration, connect: Duration) -> anyhow::Result<Client<Transport>> {
    let http = reqwest::Client::builder()
        .timeout(timeout)
        .connect_timeout(connect)
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("matrix-outbox/", env!("CARGO_PKG_VERSION")))
        .build()?;
    // Said here, not asked: the paths used have been stable since 1.1.
    let versions = SupportedVersions::from_parts(&["v1.1".to_owned(), "v1.11".to_owned()], &BTreeMap::default());
    let client = Client::builder()
        .homeserver_url(config.homeserver_url.as_str().trim_end_matches('/').to_owned())
        .access_token(Some(config.access_token.expose_secret().to_owned()))
        .supported_matrix_versions(versions)
        .http_client(Transport(http))
        .await
        .map_err(Failure::from)?;
    Ok(client)
}

/// A sync may be held for as long as it asks to be; then the answer is due as any other's.
async fn client_that_waits(config: &MatrixConfig, timeout: Duration) -> anyhow::Result<Client<Transport>> {
    client(config, config.sync.hold + timeout, timeout).await
}

impl Homeserver {
    /// Sets up the client; nothing is asked of the homeserver yet, so that a worker starts while it is away.
    pub(crate) async fn new(config: &MatrixConfig, timeout: Duration, breaker: Arc<Breaker>) -> anyhow::Result<Self> {
        let client = client(config, timeout, timeout).await?;
        let listener = client_that_waits(config, timeout).await?;
        Ok(Self { client, listener, service_user: config.service_user.clone(), breaker })
    }

    /// The account that it speaks as.
    pub(crate) fn service_user(&self) -> &MatrixUserId {
        &self.service_user
    }

    async fn ask<R>(&self, request: R) -> Result<R::IncomingResponse, Failure>
    where
        R: OutgoingRequest<EndpointError = MatrixError>,
        for<'a> R::Authentication: AuthScheme<Input<'a> = SendAccessToken<'a>>,
        R::PathBuilder: ruma_client::SupportedPathBuilder,
    {
        self.heard(self.client.send_request(request).await, Limited::Apart)
    }

    /// An answer, or what came instead; the breaker learns of it either way.
    fn heard<T>(
        &self,
        answer: Result<T, ruma_client::Error<TransportError, MatrixError>>,
        limited: Limited,
    ) -> Result<T, Failure> {
        let answer = answer.map_err(Failure::from);
        match &answer {
            Ok(_) => self.breaker.note(Signal::Alive),
            Err(Failure::NotBuilt(_)) => {}
            Err(failure) => self.breaker.note(verdict::judge(failure).signal(limited == Limited::Account)),
        }
        answer
    }

    /// Who the token speaks as.
    pub(crate) async fn whoami(&self) -> Result<Whoami, Failure> {
        let answer = self.ask(whoami::v3::Request::new()).await?;
        Ok(Whoami { user_id: answer.user_id.to_string(), device_id: answer.device_id.map(|device| device.to_string()) })
    }

    /// Gives our device the name under which it shows in lists of sessions.
    pub(crate) async fn name_device(&self, device_id: &str, name: &str) -> Result<(), Failure> {
        let mut request = update_device::v3::Request::new(device_id.into());
        request.display_name = Some(name.to_owned());
        self.ask(request).await.map(|_| ())
    }

    /// The room version that new rooms get.
    pub(crate) async fn default_room_version(&self) -> Result<String, Failure> {
        let answer = self.ask(get_capabilities::v3::Request::new()).await?;
        Ok(answer.capabilities.room_versions.default.to_string())
    }

    /// The largest file that it takes, in bytes.
    pub(crate) async fn upload_limit(&self) -> Result<u64, Failure> {
        let answer = self.ask(get_media_config::v1::Request::new()).await?;
        Ok(answer.upload_size.into())
    }

    /// Its TURN servers, with credentials for them.
    pub(crate) async fn turn_servers(&self) -> Result<Answer, Failure> {
        let answer = match self.client.send_request(get_turn_server_info::v3::Request::new()).await {
            // It answers with nothing at all when it has none.
            Err(ruma_client::Error::FromHttpResponse(FromHttpResponseError::Deserialization(_))) => Ok(None),
            answer => answer.map(Some),
        };
        let Some(answer) = self.heard(answer, Limited::Apart)? else { return Ok(Answer::default()) };
        let good = !answer.uris.is_empty() && !answer.ttl.is_zero();
        let credentials =
            good.then(|| Credentials { username: answer.username, password: SecretString::from(answer.password) });
        Ok(Answer { uris: answer.uris, credentials, ttl: answer.ttl })
    }

    /// Sends an event under a transaction id.
    pub(crate) async fn send(
        &self,
        room_id: &RoomId,
        event_type: &str,
        outbox_id: OutboxId,
        content: &RawValue,
    ) -> Result<EventId, Failure> {
        let request = send_message_event::v3::Request::new_raw(
            room(room_id)?,
            outbox_id.to_string().into(),
            event_type.into(),
            Raw::from_json(content.to_owned()),
        );
        let answer = self.heard(self.client.send_request(request).await, Limited::Account)?;
        Ok(event(&answer.event_id))
    }

    /// Redacts an event under a transaction id, with our marker in the redaction's content.
    pub(crate) async fn redact(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
        outbox_id: OutboxId,
        content: &RawValue,
    ) -> Result<EventId, Failure> {
        let event_id = OwnedEventId::try_from(event_id.as_str()).map_err(|_| invalid("the event id"))?;
        let request = redact_event::v3::Request::new(room(room_id)?, event_id, outbox_id.to_string().into());
        let answer = self
            .client
            .send_customized_request(request, |request| {
                *request.body_mut() = BytesMut::from(content.get());
                Ok(())
            })
            .await;
        Ok(event(&self.heard(answer, Limited::Account)?.event_id))
    }

    /// The membership of a user in a room: `invite`, `join`, `leave`, …; none for one who never had any.
    pub(crate) async fn membership(&self, room_id: &RoomId, member: &MatrixUserId) -> Result<Option<String>, Failure> {
        let request = get_state_event_for_key::v3::Request::new(
            room(room_id)?,
            "m.room.member".into(),
            member.as_str().to_owned(),
        );
        match self.ask(request).await {
            Ok(answer) => {
                let content: serde_json::Value =
                    serde_json::from_str(answer.event_or_content.get()).unwrap_or_default();
                Ok(content["membership"].as_str().map(str::to_owned))
            }
            Err(Failure::Refused(refusal)) if refusal.errcode.as_deref() == Some("M_NOT_FOUND") => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The room that a room's tombstone points to, if it has one and we may read it.
    pub(crate) async fn tombstone(&self, room_id: &RoomId) -> Result<Option<RoomId>, Failure> {
        let request =
            get_state_event_for_key::v3::Request::new(room(room_id)?, "m.room.tombstone".into(), String::new());
        match self.ask(request).await {
            Ok(answer) => {
                let content: serde_json::Value =
                    serde_json::from_str(answer.event_or_content.get()).unwrap_or_default();
                let next = content["replacement_room"].as_str().filter(|room_id| !room_id.is_empty());
                Ok(next.map(|room_id| RoomId::from(room_id.to_owned())))
            }
            // Not there; or we are not, which the send finds out.
            Err(Failure::Refused(Refusal { status: 403 | 404, errcode: Some(_), .. })) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Removes a user from a room, or takes back an invitation.
    pub(crate) async fn kick(&self, room_id: &RoomId, member: &MatrixUserId) -> Result<(), Failure> {
        self.ask(kick_user::v3::Request::new(room(room_id)?, user(member)?)).await.map(|_| ())
    }

    /// A page of what a user sent into a room, newest first.
    pub(crate) async fn events_before(
        &self,
        room_id: &RoomId,
        sender: &str,
        from: Option<&str>,
    ) -> Result<EventPage, Failure> {
        let mut request = get_message_events::v3::Request::backward(room(room_id)?);
        request.from = from.map(str::to_owned);
        request.limit = EVENTS_A_PAGE.into();
        let mut filter = RoomEventFilter::default();
        filter.senders = Some(vec![OwnedUserId::try_from(sender).map_err(|_| invalid("the sender"))?]);
        request.filter = filter;
        let answer = self.ask(request).await?;
        let events = answer.chunk.iter().filter_map(|event| serde_json::from_str(event.json().get()).ok()).collect();
        Ok(EventPage { events, next: answer.end })
    }

    /// A page of what is compared of a room, by whomever, newest first.
    pub(crate) async fn compared_before(&self, room_id: &RoomId, from: Option<&str>) -> Result<EventPage, Failure> {
        let mut request = get_message_events::v3::Request::backward(room(room_id)?);
        request.from = from.map(str::to_owned);
        request.limit = EVENTS_A_PAGE.into();
        let mut filter = RoomEventFilter::default();
        filter.types = Some(COMPARED_TYPES.iter().map(|&name| name.to_owned()).collect());
        request.filter = filter;
        let answer = self.ask(request).await?;
        let events = answer.chunk.iter().filter_map(|event| serde_json::from_str(event.json().get()).ok()).collect();
        Ok(EventPage { events, next: answer.end })
    }

    /// One event of a room; none when it is not there, or not to be seen by us.
    pub(crate) async fn event(&self, room_id: &RoomId, event_id: &EventId) -> Result<Option<HistoryEvent>, Failure> {
        let event_id = OwnedEventId::try_from(event_id.as_str()).map_err(|_| invalid("the event id"))?;
        match self.ask(get_room_event::v3::Request::new(room(room_id)?, event_id)).await {
            Ok(answer) => serde_json::from_str(answer.event.json().get())
                .map(Some)
                .map_err(|_| Failure::NoAnswer("an event that makes no sense".to_owned())),
            Err(Failure::Refused(refusal)) if refusal.errcode.as_deref() == Some("M_NOT_FOUND") => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// What is new for the account since a token, or all there is without one. The homeserver holds the request for up to
    /// `hold` while there is nothing.
    ///
    /// The breaker does not hear of it: a sync that fails is tried again in its own time, and says nothing of sends.
    pub(crate) async fn sync(
        &self,
        since: Option<&str>,
        limit: u32,
        hold: Duration,
    ) -> Result<sync_events::v3::Response, Failure> {
        let mut filter = FilterDefinition::default();
        filter.presence = EventFilter::ignore_all();
        filter.account_data = EventFilter::ignore_all();
        let mut rooms = RoomFilter::default();
        rooms.account_data = RoomEventFilter::ignore_all();
        rooms.ephemeral = RoomEventFilter::ignore_all();
        rooms.state = RoomEventFilter::ignore_all();
        rooms.timeline = synced(limit);
        filter.room = rooms;
        let mut request = sync_events::v3::Request::new();
        request.filter = Some(sync_events::v3::Filter::FilterDefinition(filter));
        request.since = since.map(str::to_owned);
        request.timeout = Some(hold);
        request.set_presence = PresenceState::Offline;
        self.listener.send_request(request).await.map_err(Failure::from)
    }

    /// A page of what happened in a room, oldest first: from a token of a sync, or from the room's beginning, up to another
    /// token. Returns where the next page begins, if there is one.
    pub(crate) async fn events_after(
        &self,
        room_id: &RoomId,
        from: Option<&str>,
        to: &str,
    ) -> Result<(Vec<String>, Option<String>), Failure> {
        let mut request = get_message_events::v3::Request::forward(room(room_id)?);
        request.from = from.map(str::to_owned);
        request.to = Some(to.to_owned());
        request.limit = EVENTS_A_PAGE.into();
        request.filter = synced(u32::from(EVENTS_A_PAGE));
        let answer = self.ask(request).await?;
        let events = answer.chunk.iter().map(|event| event.json().get().to_owned()).collect();
        Ok((events, answer.end))
    }

    /// The conversation that a room is marked for, if our own account made both and we may look. Asks for no more than
    /// that: a room of nobody's may have a large state.
    pub(crate) async fn marked_conversation(&self, room_id: &RoomId, marker: &str) -> Result<Option<String>, Failure> {
        let Some(mark) = self.own_state(room_id, marker).await? else { return Ok(None) };
        let created = self.own_state(room_id, "m.room.create").await?;
        Ok(created.and_then(|_| mark["conversation_id"].as_str().map(str::to_owned)))
    }

    /// The content of a state event with an empty key, if our own account set it and we may look.
    async fn own_state(&self, room_id: &RoomId, event_type: &str) -> Result<Option<serde_json::Value>, Failure> {
        let mut request = get_state_event_for_key::v3::Request::new(room(room_id)?, event_type.into(), String::new());
        request.format = get_state_event_for_key::v3::StateEventFormat::Event;
        match self.ask(request).await {
            Ok(answer) => {
                let event: serde_json::Value = serde_json::from_str(answer.event_or_content.get()).unwrap_or_default();
                Ok((event["sender"] == self.service_user.as_str()).then(|| event["content"].clone()))
            }
            Err(Failure::Refused(Refusal { status: 403 | 404, errcode: Some(_), .. })) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Leaves a room, or turns its invitation down.
    pub(crate) async fn leave(&self, room_id: &RoomId) -> Result<(), Failure> {
        self.ask(leave_room::v3::Request::new(room(room_id)?)).await.map(|_| ())
    }

    /// Creates a room.
    pub(crate) async fn create_room(&self, new: &NewRoom) -> Result<RoomId, Failure> {
        let mut request = create_room::v3::Request::new();
        request.preset = Some(create_room::v3::RoomPreset::PrivateChat);
        request.room_alias_name = Some(new.alias_localpart.clone());
        request.name.clone_from(&new.name);
        request.initial_state = new
            .state
            .iter()
            .map(|(event_type, content)| {
                let event = serde_json::json!({"type": event_type, "state_key": "", "content": content});
                serde_json::value::to_raw_value(&event).map(Raw::from_json)
            })
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::NotBuilt(error.to_string()))?;
        Ok(RoomId::from(self.ask(request).await?.room_id.to_string()))
    }

    /// The room of an alias, if it has one.
    pub(crate) async fn resolve_alias(&self, alias: &str) -> Result<Option<RoomId>, Failure> {
        let alias = OwnedRoomAliasId::try_from(alias).map_err(|_| invalid("the room alias"))?;
        match self.heard(self.client.send_request(get_alias::v3::Request::new(alias)).await, Limited::Apart) {
            Ok(answer) => Ok(Some(RoomId::from(answer.room_id.to_string()))),
            Err(Failure::Refused(refusal)) if refusal.errcode.as_deref() == Some("M_NOT_FOUND") => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Takes an alias from its room. Only whoever made the alias, or rules the room, may.
    pub(crate) async fn delete_alias(&self, alias: &str) -> Result<(), Failure> {
        let alias = OwnedRoomAliasId::try_from(alias).map_err(|_| invalid("the room alias"))?;
        self.ask(delete_alias::v3::Request::new(alias)).await.map(|_| ())
    }

    /// The whole state of a room that the service account is in.
    pub(crate) async fn state(&self, room_id: &RoomId) -> Result<Vec<StateEvent>, Failure> {
        let answer = self.ask(get_state_events::v3::Request::new(room(room_id)?)).await?;
        Ok(answer.room_state.iter().filter_map(|event| serde_json::from_str(event.json().get()).ok()).collect())
    }

    /// Sets a state event with an empty state key.
    pub(crate) async fn set_state(
        &self,
        room_id: &RoomId,
        event_type: &str,
        content: &serde_json::Value,
    ) -> Result<(), Failure> {
        let content = serde_json::value::to_raw_value(content).map_err(|error| Failure::NotBuilt(error.to_string()))?;
        let request = send_state_event::v3::Request::new_raw(
            room(room_id)?,
            event_type.into(),
            String::new(),
            Raw::from_json(content),
        );
        self.heard(self.client.send_request(request).await, Limited::Account).map(|_| ())
    }

    /// Joins a room.
    pub(crate) async fn join(&self, room_id: &RoomId) -> Result<(), Failure> {
        self.ask(join_room_by_id::v3::Request::new(room(room_id)?)).await.map(|_| ())
    }

    /// Invites a user.
    pub(crate) async fn invite(&self, room_id: &RoomId, invitee: &MatrixUserId) -> Result<(), Failure> {
        let recipient =
            invite_user::v3::InvitationRecipient::UserId(invite_user::v3::InviteUserId::new(user(invitee)?));
        self.ask(invite_user::v3::Request::new(room(room_id)?, recipient)).await.map(|_| ())
    }
}
