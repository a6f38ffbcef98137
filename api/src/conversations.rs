//! Conversations: who talks to whom.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State as Extract,
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use shared::{
    chat,
    ids::{ConversationId, RoomId, UserId},
};
use time::OffsetDateTime;

use crate::{
    AppState, State,
    auth::Caller,
    extract::{IdPath, JsonBody},
    problem::{ApiError, FieldProblem},
};

/// The most members that a conversation is created with: its room is created and invited to in one request.
const MAX_MEMBERS: usize = 500;

/// The longest name, in characters.
const MAX_NAME_CHARS: usize = 200;

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new().route("/conversations", post(create)).route("/conversations/{id}", get(read))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewConversation {
    members: Vec<UserId>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Debug, Serialize)]
struct ConversationBody {
    id: ConversationId,
    name: Option<String>,
    created_by: UserId,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    members: Vec<UserId>,
    matrix: MatrixBody,
}

#[derive(Debug, Serialize)]
struct MatrixBody {
    room_id: Option<RoomId>,
}

impl From<chat::Conversation> for ConversationBody {
    fn from(conversation: chat::Conversation) -> Self {
        Self {
            id: conversation.conversation_id,
            name: conversation.name,
            created_by: conversation.created_by,
            created_at: conversation.created_at,
            members: conversation.members,
            matrix: MatrixBody { room_id: conversation.room_id },
        }
    }
}

fn check(new: &NewConversation) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    if new.members.is_empty() {
        errors.push(FieldProblem { field: "members".into(), reason: "must name at least one user".into() });
    }
    if new.members.len() > MAX_MEMBERS {
        errors.push(FieldProblem { field: "members".into(), reason: format!("must name at most {MAX_MEMBERS} users") });
    }
    if let Some(name) = &new.name {
        if name.trim().is_empty() || name.chars().count() > MAX_NAME_CHARS {
            errors.push(FieldProblem {
                field: "name".into(),
                reason: format!("must have 1 to {MAX_NAME_CHARS} characters, or be left out"),
            });
        }
        if name.contains('\0') {
            errors.push(FieldProblem { field: "name".into(), reason: "must not contain the character NUL".into() });
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::Invalid(errors)) }
}

async fn create(
    Extract(state): AppState,
    caller: Caller,
    JsonBody(new): JsonBody<NewConversation>,
) -> Result<(StatusCode, Json<ConversationBody>), ApiError> {
    check(&new)?;
    let id = ConversationId::generate();
    let mut tx = state.pool.begin().await?;
    chat::create_conversation(&mut tx, id, new.name.as_deref(), caller.user_id, &new.members).await?;
    let created = chat::conversation(&mut tx, id, caller.user_id).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(created.into())))
}

async fn read(
    Extract(state): AppState,
    caller: Caller,
    IdPath(id): IdPath<ConversationId>,
) -> Result<Json<ConversationBody>, ApiError> {
    let mut conn = state.pool.acquire().await?;
    Ok(Json(chat::conversation(&mut conn, id, caller.user_id).await?.into()))
}
