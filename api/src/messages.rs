//! Messages: what people say. Written with their outbox row in one transaction, answered after its commit.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State as Extract,
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use shared::{
    chat::{self, NewMessage},
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId},
    outbox::{self, Delivery, Kind, Operation},
};
use time::OffsetDateTime;

use crate::{
    AppState, State,
    auth::Caller,
    extract::{IdPath, JsonBody},
    problem::{ApiError, FieldProblem},
};

/// The longest text, in bytes as JSON. An edit carries it twice and encryption adds a third, and the event must stay
/// below the 65,536 bytes that Matrix allows.
const MAX_TEXT_BYTES: usize = 20 * 1024;

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new().route("/messages", post(create)).route("/messages/{id}", get(read))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PostMessage {
    conversation_id: ConversationId,
    plaintext: String,
    #[serde(default)]
    reply_to: Option<MessageId>,
}

#[derive(Debug, Serialize)]
struct MessageBody {
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
struct MatrixBody {
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

async fn create(
    Extract(state): AppState,
    caller: Caller,
    JsonBody(new): JsonBody<PostMessage>,
) -> Result<(StatusCode, Json<MessageBody>), ApiError> {
    check_text(&new.plaintext)?;
    let message_id = MessageId::generate();
    let send_outbox_id = state.matrix_enabled.then(OutboxId::generate);

    let mut tx = state.pool.begin().await?;
    let turn = chat::take_turn(&mut tx, new.conversation_id, caller.user_id).await?;
    let message = NewMessage {
        message_id,
        author_id: caller.user_id,
        text: &new.plaintext,
        reply_to: new.reply_to,
        send_outbox_id,
    };
    chat::insert_message(&mut tx, &turn, &state.keys, &message).await?;
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
        let open = outbox::enqueue(&mut tx, &turn, &operation).await?;
        if open > state.lane_limit {
            return Err(ApiError::LaneFull { limit: state.lane_limit });
        }
    }
    let written = chat::message(&mut tx, &state.keys, message_id, caller.user_id).await?;
    tx.commit().await?;
    if send_outbox_id.is_some() {
        state.wake.committed();
    }
    Ok((StatusCode::CREATED, Json(written.into())))
}

async fn read(
    Extract(state): AppState,
    caller: Caller,
    IdPath(id): IdPath<MessageId>,
) -> Result<Json<MessageBody>, ApiError> {
    let mut conn = state.pool.acquire().await?;
    Ok(Json(chat::message(&mut conn, &state.keys, id, caller.user_id).await?.into()))
}
