//! Messages: what people say. Written with their outbox row in one transaction, answered after its commit.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State as Extract,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use shared::{
    chat::{self, Edited, Message, NewMessage, PageRequest},
    idempotency::{self, Entry},
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId},
    outbox::{self, Deletion, Delivery, Explanation, Kind, Operation},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::{
    AppState, State,
    auth::Caller,
    extract::{IdPath, JsonBody},
    preferences::{IdempotencyKey, IfMatch, Page, Wait},
    problem::{ApiError, FieldProblem},
    transaction::finish,
};

/// The longest text, in bytes as JSON. An edit carries it twice and encryption adds a third, and the event must stay
/// below the 65,536 bytes that Matrix allows.
const MAX_TEXT_BYTES: usize = 20 * 1024;

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/messages", post(create))
        .route("/messages/{id}", get(read).patch(edit).delete(delete))
        .route("/messages/{id}/delivery", get(delivery))
        .route("/conversations/{id}/messages", get(list))
}

/// How soon a request that waits for its delivery looks again; twice as late each time, up to the second.
const LOOK_FIRST_AFTER: Duration = Duration::from_millis(25);
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchMessage {
    plaintext: String,
}

/// What a message is.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum MessageKind {
    #[default]
    Text,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PostMessage {
    conversation_id: ConversationId,
    plaintext: String,
    #[serde(default)]
    kind: MessageKind,
    #[serde(default)]
    reply_to: Option<MessageId>,
}

#[derive(Debug, Serialize)]
pub(crate) struct MessageBody {
    id: MessageId,
    conversation_id: ConversationId,
    seq: i64,
    author_id: UserId,
    plaintext: Option<String>,
    revision: i32,
    reply_to: Option<MessageId>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    edited_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    deleted_at: Option<OffsetDateTime>,
    matrix: MatrixBody,
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

impl From<chat::Message> for MessageBody {
    fn from(message: chat::Message) -> Self {
        Self {
            id: message.message_id,
            conversation_id: message.conversation_id,
            seq: message.seq,
            author_id: message.author_id,
            plaintext: message.text,
            revision: message.revision,
            reply_to: message.reply_to,
            created_at: message.created_at,
            edited_at: message.edited_at,
            deleted_at: message.deleted_at,
            matrix: MatrixBody { delivery: message.delivery, event_id: message.event_id, room_id: message.room_id },
        }
    }
}

impl MessageBody {
    /// How far it has come on its way to Matrix.
    pub(crate) fn into_matrix(self) -> MatrixBody {
        self.matrix
    }
}

/// Refuses a text that could not be sent as it is.
fn check_text(text: &str) -> Result<(), ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid("plaintext", "must not be empty"));
    }
    if text.contains('\0') {
        return Err(ApiError::invalid("plaintext", "must not contain the character NUL"));
    }
    let bytes = serde_json::to_string(text).map_err(|error| ApiError::Internal(error.into()))?.len();
    if bytes > MAX_TEXT_BYTES {
        let reason = format!("must be at most {MAX_TEXT_BYTES} bytes as JSON, but is {bytes}");
        return Err(ApiError::TooLarge(FieldProblem { field: "plaintext".into(), reason }));
    }
    Ok(())
}

/// A message as an answer: with its revision as its entity tag.
fn rendered(status: StatusCode, message: chat::Message, waited: Option<Duration>) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{}\"", message.revision));
    let mut response = (status, Json(MessageBody::from(message))).into_response();
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
) -> Result<chat::Message, ApiError> {
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
    IdempotencyKey(key): IdempotencyKey,
    Wait(wait): Wait,
    JsonBody(new): JsonBody<PostMessage>,
) -> Result<Response, ApiError> {
    let (status, message) = match post_message(&state, caller.user_id, key.as_deref(), &new).await? {
        Written::Before { status, message_id } => {
            (status, read_waiting(&state, message_id, caller.user_id, wait).await?)
        }
        // It is committed, so the answer is 201 whatever becomes of the wait.
        Written::Now(message) if wait.is_some() => {
            let message = read_waiting(&state, message.message_id, caller.user_id, wait).await.unwrap_or(message);
            (StatusCode::CREATED, message)
        }
        Written::Now(message) => (StatusCode::CREATED, message),
    };
    Ok(rendered(status, message, wait))
}

/// Posts a message and answers as a POST does: for those who do not come by HTTP.
pub(crate) async fn post_and_read(
    state: &State,
    author_id: UserId,
    key: Option<&str>,
    new: &PostMessage,
) -> Result<(StatusCode, MessageBody), ApiError> {
    let (status, message) = match post_message(state, author_id, key, new).await? {
        Written::Before { status, message_id } => (status, read_waiting(state, message_id, author_id, None).await?),
        Written::Now(message) => (StatusCode::CREATED, message),
    };
    Ok((status, message.into()))
}

/// Posts a message, unless its key was answered before: the one way by which messages are written.
async fn post_message(
    state: &State,
    author_id: UserId,
    key: Option<&str>,
    new: &PostMessage,
) -> Result<Written, ApiError> {
    check_text(&new.plaintext)?;
    let mut tx = state.pool.begin().await?;
    let written = write(&mut tx, state, author_id, key, new).await;
    let written = finish(tx, written).await?;
    if let Written::Now(_) = written {
        state.committed(state.matrix_enabled);
    }
    Ok(written)
}

/// A message that a request asked for.
enum Written {
    /// It was written.
    Now(Message),
    /// An earlier request with the same key was answered so.
    Before { status: StatusCode, message_id: MessageId },
}

/// Writes a message and its operation, unless its key was answered before.
async fn write(
    tx: &mut PgConnection,
    state: &State,
    author_id: UserId,
    key: Option<&str>,
    new: &PostMessage,
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
    let turn = chat::take_turn(tx, new.conversation_id, author_id).await?;
    let message = NewMessage { message_id, author_id, text: &new.plaintext, reply_to: new.reply_to, send_outbox_id };
    chat::insert_message(tx, &turn, &state.keys, &message).await?;
    if let Some(outbox_id) = send_outbox_id {
        let operation = Operation {
            outbox_id,
            lane_id: LaneId::from(new.conversation_id),
            kind: Kind::Message,
            subject_id: message_id.as_uuid(),
            revision: Some(1),
            target_outbox_id: None,
            expires_at: None,
            trace: None,
        };
        let open = outbox::enqueue(tx, &turn, &operation).await?;
        if open > state.lane_limit {
            return Err(ApiError::LaneFull { limit: state.lane_limit });
        }
    }
    if let Some(pending) = pending {
        pending.record(tx, StatusCode::CREATED.as_u16(), message_id.as_uuid()).await?;
    }
    Ok(Written::Now(chat::message(tx, &state.keys, message_id, author_id).await?))
}

async fn read(
    Extract(state): AppState,
    caller: Caller,
    Wait(wait): Wait,
    IdPath(id): IdPath<MessageId>,
) -> Result<Response, ApiError> {
    Ok(rendered(StatusCode::OK, read_waiting(&state, id, caller.user_id, wait).await?, wait))
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
    Ok(Json(MessagePage { messages: messages.into_iter().map(MessageBody::from).collect(), next_cursor }))
}

async fn edit(
    Extract(state): AppState,
    caller: Caller,
    IfMatch(expected): IfMatch,
    IdPath(id): IdPath<MessageId>,
    JsonBody(new): JsonBody<PatchMessage>,
) -> Result<Response, ApiError> {
    check_text(&new.plaintext)?;
    let mut tx = state.pool.begin().await?;
    let head = chat::find_message(&mut tx, id, caller.user_id).await?;
    let turn = chat::take_turn(&mut tx, head.conversation_id, caller.user_id).await?;
    let edited = chat::edit_message(&mut tx, &turn, &state.keys, id, caller.user_id, &new.plaintext, expected).await?;
    let written = chat::message(&mut tx, &state.keys, id, caller.user_id).await?;
    match edited {
        Edited::Unchanged => tx.rollback().await?,
        Edited::Changed(to_send) => {
            tx.commit().await?;
            state.committed(to_send);
        }
    }
    Ok(rendered(StatusCode::OK, written, None))
}

async fn delete(
    Extract(state): AppState,
    caller: Caller,
    IdPath(id): IdPath<MessageId>,
) -> Result<Json<DeletedBody>, ApiError> {
    let mut tx = state.pool.begin().await?;
    let head = chat::find_message(&mut tx, id, caller.user_id).await?;
    let mut turn = chat::take_turn(&mut tx, head.conversation_id, caller.user_id).await?;
    let deletion = chat::delete_message(&mut tx, &mut turn, id, caller.user_id).await?;
    let message = chat::message(&mut tx, &state.keys, id, caller.user_id).await?;
    if let Some(deletion) = deletion {
        tx.commit().await?;
        state.committed(deletion == Deletion::Redacting);
    } else {
        tx.rollback().await?;
    }
    Ok(Json(DeletedBody { message: message.into(), deletion }))
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
