//! Messages: what people say. Written with their outbox row in one transaction, answered after its commit.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State as Extract,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use shared::{
    chat::{self, Content, Edited, Media, Message, MessageKind, NewMessage, PageRequest, Tally},
    idempotency::{self, Entry},
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId},
    outbox::{self, Deletion, Delivery, Explanation, Kind, Operation},
    trace::TraceParent,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::{
    AppState, State,
    auth::Caller,
    content::Words,
    conversations::ContactBody,
    extract::{IdPath, JsonBody},
    preferences::{IdempotencyKey, IfMatch, Page, Wait},
    problem::ApiError,
    trace::Trace,
    transaction::finish,
};

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/messages", post(create))
        .route("/messages/{id}", get(read).patch(edit).delete(delete))
        .route("/messages/{id}/delivery", get(delivery))
        .route("/conversations/{id}/messages", get(list))
}

/// How soon a request that waits for its delivery looks again; twice as late each time, up to the second.
pub(crate) const LOOK_FIRST_AFTER: Duration = Duration::from_millis(25);
pub(crate) const LOOK_AT_LEAST_EVERY: Duration = Duration::from_millis(250);

/// How many of those who reacted with one key are named.
const NAMED_REACTORS: usize = 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchMessage {
    plaintext: String,
    #[serde(default)]
    formatted: Option<String>,
    #[serde(default)]
    mentions: Vec<UserId>,
    #[serde(default)]
    mentions_room: bool,
}

/// Fields that a client left out are left out of the fingerprint of its key too: a request that was made before there were
/// such fields is still the same.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PostMessage {
    conversation_id: ConversationId,
    plaintext: String,
    #[serde(default)]
    kind: MessageKind,
    #[serde(default)]
    reply_to: Option<MessageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thread_of: Option<MessageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    formatted: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mentions: Vec<UserId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    mentions_room: bool,
    #[serde(default, skip_serializing)]
    media: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    media_id: Option<IgnoredAny>,
}

impl PostMessage {
    /// What it says; refused if it could not be sent as it is.
    fn content(&self) -> Result<Content, ApiError> {
        for (field, media) in [("media", &self.media), ("media_id", &self.media_id)] {
            if media.is_some() {
                return Err(ApiError::invalid(field, "media cannot be sent yet, only received"));
            }
        }
        if self.kind.has_media() {
            return Err(ApiError::invalid("kind", "must be text, notice or emote: media cannot be sent yet"));
        }
        let words = Words {
            plaintext: &self.plaintext,
            formatted: self.formatted.as_deref(),
            mentions: &self.mentions,
            mentions_room: self.mentions_room,
        };
        words.content()
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct MessageBody {
    id: MessageId,
    conversation_id: ConversationId,
    seq: i64,
    author_id: UserId,
    /// Who that is, when it is no user of ours.
    external: Option<ContactBody>,
    kind: MessageKind,
    plaintext: Option<String>,
    formatted: Option<String>,
    mentions: Vec<UserId>,
    mentions_room: bool,
    media: Option<Media>,
    revision: i32,
    reply_to: Option<MessageId>,
    thread_of: Option<MessageId>,
    reactions: Vec<ReactionBody>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    edited_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    deleted_at: Option<OffsetDateTime>,
    matrix: MatrixBody,
}

/// Who reacted with one key.
#[derive(Debug, Serialize)]
pub(crate) struct ReactionBody {
    key: String,
    count: usize,
    user_ids: Vec<UserId>,
    mine: bool,
}

impl ReactionBody {
    /// As one of the members reads it.
    pub(crate) fn read_by(reader: UserId, tally: Tally) -> Self {
        Self {
            key: tally.key,
            count: tally.reactors.len(),
            mine: tally.reactors.contains(&reader),
            user_ids: tally.reactors.into_iter().take(NAMED_REACTORS).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct MessagePage {
    messages: Vec<MessageBody>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct DeletedBody {
    #[serde(flatten)]
    message: MessageBody,
    /// What the delete did on the way to Matrix; null when the message was deleted before.
    deletion: Option<Deletion>,
}

#[derive(Debug, Serialize)]
pub(crate) struct MatrixBody {
    delivery: Option<Delivery>,
    event_id: Option<EventId>,
    room_id: Option<RoomId>,
}

impl MessageBody {
    /// A message as one of the members reads it.
    pub(crate) fn read_by(reader: UserId, message: Message) -> Self {
        let matrix = MatrixBody::of(&message);
        let content = message.content.unwrap_or_default();
        let reactions = message.reactions.into_iter().map(|tally| ReactionBody::read_by(reader, tally));
        Self {
            id: message.message_id,
            conversation_id: message.conversation_id,
            seq: message.seq,
            author_id: message.author_id,
            external: message.contact.map(ContactBody::from),
            kind: message.kind,
            plaintext: message.deleted_at.is_none().then_some(content.text),
            formatted: content.formatted,
            mentions: content.mentions.users,
            mentions_room: content.mentions.room,
            media: content.media,
            revision: message.revision,
            reply_to: message.reply_to,
            thread_of: message.thread_of,
            reactions: reactions.collect(),
            created_at: message.created_at,
            edited_at: message.edited_at,
            deleted_at: message.deleted_at,
            matrix,
        }
    }
}

impl MatrixBody {
    /// How far a message has come on its way to Matrix.
    pub(crate) fn of(message: &Message) -> Self {
        Self { delivery: message.delivery, event_id: message.event_id.clone(), room_id: message.room_id.clone() }
    }
}

/// A message as an answer: with its revision as its entity tag.
pub(crate) fn rendered(status: StatusCode, message: Message, reader: UserId, waited: Option<Duration>) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{}\"", message.revision));
    let mut response = (status, Json(MessageBody::read_by(reader, message))).into_response();
    if let Ok(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    if let Some(waited) = waited
        && let Ok(applied) = HeaderValue::from_str(&format!("wait={}", waited.as_secs()))
    {
        response.headers_mut().insert("preference-applied", applied);
    }
    response
}

/// Reads a message, waiting for its delivery to end if that is asked.
async fn read_waiting(
    state: &State,
    message_id: MessageId,
    reader: UserId,
    wait: Option<Duration>,
) -> Result<Message, ApiError> {
    let until = wait.map(|wait| Instant::now() + wait);
    // Beyond so many, a request is answered at once: waiting must not use up the database.
    let waiting = state.waiting.try_acquire().ok();
    let mut pause = LOOK_FIRST_AFTER;
    loop {
        let message = {
            let mut conn = state.pool.acquire().await?;
            chat::message(&mut conn, &state.keys, message_id, reader).await?
        };
        let under_way = matches!(message.delivery, Some(Delivery::Pending | Delivery::Delivering));
        if !under_way || waiting.is_none() || until.is_none_or(|until| Instant::now() >= until) {
            return Ok(message);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_AT_LEAST_EVERY);
    }
}

async fn create(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    IdempotencyKey(key): IdempotencyKey,
    Wait(wait): Wait,
    JsonBody(new): JsonBody<PostMessage>,
) -> Result<Response, ApiError> {
    let (status, message) = match post_message(&state, &trace, caller.user_id, key.as_deref(), &new).await? {
        Written::Before { status, message_id } => {
            (status, read_waiting(&state, message_id, caller.user_id, wait).await?)
        }
        // It is committed, so the answer is 201 whatever becomes of the wait.
        Written::Now(message) if wait.is_some() => {
            let message = read_waiting(&state, message.message_id, caller.user_id, wait).await.unwrap_or(*message);
            (StatusCode::CREATED, message)
        }
        Written::Now(message) => (StatusCode::CREATED, *message),
    };
    Ok(rendered(status, message, caller.user_id, wait))
}

/// Posts a message and answers as a POST does: for those who do not come by HTTP.
pub(crate) async fn post_and_read(
    state: &State,
    trace: &Trace,
    author_id: UserId,
    key: Option<&str>,
    new: &PostMessage,
) -> Result<(StatusCode, MessageBody), ApiError> {
    let (status, message) = match post_message(state, trace, author_id, key, new).await? {
        Written::Before { status, message_id } => (status, read_waiting(state, message_id, author_id, None).await?),
        Written::Now(message) => (StatusCode::CREATED, *message),
    };
    Ok((status, MessageBody::read_by(author_id, message)))
}

/// Posts a message, unless its key was answered before: the one way by which messages are written.
async fn post_message(
    state: &State,
    trace: &Trace,
    author_id: UserId,
    key: Option<&str>,
    new: &PostMessage,
) -> Result<Written, ApiError> {
    let content = new.content()?;
    let mut tx = state.pool.begin().await?;
    let written = write(&mut tx, state, trace.parent(), author_id, key, new, &content).await;
    let written = finish(tx, trace, written).await?;
    if let Written::Now(_) = written {
        state.committed(state.matrix_enabled);
    }
    Ok(written)
}

/// A message that a request asked for.
enum Written {
    /// It was written.
    Now(Box<Message>),
    /// An earlier request with the same key was answered so.
    Before { status: StatusCode, message_id: MessageId },
}

/// Writes a message and its operation, unless its key was answered before.
async fn write(
    tx: &mut PgConnection,
    state: &State,
    trace: Option<TraceParent>,
    author_id: UserId,
    key: Option<&str>,
    new: &PostMessage,
    content: &Content,
) -> Result<Written, ApiError> {
    let mut pending = None;
    if let Some(key) = key {
        let request = serde_json::to_vec(new).map_err(|error| ApiError::Internal(error.into()))?;
        match idempotency::enter(tx, &state.keys, author_id, "POST /messages", key, &request).await? {
            Entry::New(entered) => pending = Some(entered),
            Entry::Done { status, resource_id } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
                return Ok(Written::Before { status, message_id: MessageId::from(resource_id) });
            }
        }
    }
    let message_id = MessageId::generate();
    let send_outbox_id = state.matrix_enabled.then(OutboxId::generate);
    let turn = chat::take_turn(tx, new.conversation_id, author_id).await?.traced(trace);
    let message = NewMessage {
        message_id,
        author_id,
        kind: new.kind,
        content,
        reply_to: new.reply_to,
        thread_of: new.thread_of,
        send_outbox_id,
    };
    chat::insert_message(tx, &turn, &state.keys, &message).await?;
    if let Some(outbox_id) = send_outbox_id {
        let operation = Operation {
            outbox_id,
            lane_id: LaneId::from(new.conversation_id),
            kind: Kind::Message,
            subject_id: message_id.as_uuid(),
            revision: Some(1),
            target_outbox_id: None,
            not_before: None,
            expires_at: None,
        };
        let open = outbox::enqueue(tx, &turn, &operation).await?;
        if open > state.lane_limit {
            return Err(ApiError::LaneFull { limit: state.lane_limit });
        }
    }
    if let Some(pending) = pending {
        pending.record(tx, StatusCode::CREATED.as_u16(), message_id.as_uuid()).await?;
    }
    Ok(Written::Now(Box::new(chat::message(tx, &state.keys, message_id, author_id).await?)))
}

async fn read(
    Extract(state): AppState,
    caller: Caller,
    Wait(wait): Wait,
    IdPath(id): IdPath<MessageId>,
) -> Result<Response, ApiError> {
    let message = read_waiting(&state, id, caller.user_id, wait).await?;
    Ok(rendered(StatusCode::OK, message, caller.user_id, wait))
}

async fn list(
    Extract(state): AppState,
    caller: Caller,
    IdPath(id): IdPath<ConversationId>,
    page: Page,
) -> Result<Json<MessagePage>, ApiError> {
    let before = page.cursor::<i64>()?;
    let mut conn = state.pool.acquire().await?;
    // One more than asked tells whether another page follows.
    let request = PageRequest { before, limit: page.limit + 1 };
    let mut messages = chat::messages(&mut conn, &state.keys, id, caller.user_id, request).await?;
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let more = messages.len() > limit;
    messages.truncate(limit);
    let next_cursor = messages.last().filter(|_| more).map(|message| message.seq.to_string());
    let messages = messages.into_iter().map(|message| MessageBody::read_by(caller.user_id, message)).collect();
    Ok(Json(MessagePage { messages, next_cursor }))
}

async fn edit(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    IfMatch(expected): IfMatch,
    IdPath(id): IdPath<MessageId>,
    JsonBody(new): JsonBody<PatchMessage>,
) -> Result<Response, ApiError> {
    let words = Words {
        plaintext: &new.plaintext,
        formatted: new.formatted.as_deref(),
        mentions: &new.mentions,
        mentions_room: new.mentions_room,
    };
    let content = words.content()?;
    let mut tx = state.pool.begin().await?;
    let head = chat::find_message(&mut tx, id, caller.user_id).await?;
    let turn = chat::take_turn(&mut tx, head.conversation_id, caller.user_id).await?.traced(trace.parent());
    let edited = chat::edit_message(&mut tx, &turn, &state.keys, id, caller.user_id, &content, expected).await?;
    let written = chat::message(&mut tx, &state.keys, id, caller.user_id).await?;
    match edited {
        Edited::Unchanged => tx.rollback().await?,
        Edited::Changed(to_send) => {
            trace.commit(tx).await?;
            state.committed(to_send);
        }
    }
    Ok(rendered(StatusCode::OK, written, caller.user_id, None))
}

async fn delete(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    IdPath(id): IdPath<MessageId>,
) -> Result<Json<DeletedBody>, ApiError> {
    let mut tx = state.pool.begin().await?;
    let head = chat::find_message(&mut tx, id, caller.user_id).await?;
    let mut turn = chat::take_turn(&mut tx, head.conversation_id, caller.user_id).await?.traced(trace.parent());
    let deletion = chat::delete_message(&mut tx, &mut turn, id, caller.user_id).await?;
    let message = chat::message(&mut tx, &state.keys, id, caller.user_id).await?;
    if let Some(deletion) = deletion {
        trace.commit(tx).await?;
        state.committed(deletion == Deletion::Redacting);
    } else {
        tx.rollback().await?;
    }
    Ok(Json(DeletedBody { message: MessageBody::read_by(caller.user_id, message), deletion }))
}

#[derive(Debug, Serialize)]
struct DeliveryBody {
    message_id: MessageId,
    #[serde(flatten)]
    explanation: Explanation,
}

async fn delivery(
    Extract(state): AppState,
    caller: Caller,
    IdPath(id): IdPath<MessageId>,
) -> Result<Json<DeliveryBody>, ApiError> {
    let mut conn = state.pool.acquire().await?;
    let head = chat::find_message(&mut conn, id, caller.user_id).await?;
    let explanation = match head.send_outbox_id {
        Some(outbox_id) => outbox::explain(&mut conn, head.conversation_id, outbox_id).await?.for_members(),
        None => Explanation::disabled(),
    };
    Ok(Json(DeliveryBody { message_id: id, explanation }))
}
