//! Conversations: who talks to whom.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State as Extract,
    http::StatusCode,
    routing::{get, post, put},
};
use serde::{Deserialize, Serialize};
use shared::{
    chat::{self, Membership},
    idempotency::{self, Entry},
    ids::{ConversationId, RoomId, UserId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    AppState, State,
    auth::Caller,
    extract::{IdPath, JsonBody, PairPath},
    preferences::{IdempotencyKey, Page},
    problem::{ApiError, FieldProblem},
    trace::Trace,
    transaction::finish,
};

/// The most members that a conversation is created with: its room is created and invited to in one request.
const MAX_MEMBERS: usize = 500;

/// The longest name, in characters.
const MAX_NAME_CHARS: usize = 200;

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/conversations", post(create).get(list))
        .route("/conversations/{id}", get(read))
        .route("/conversations/{id}/members/{user_id}", put(add).delete(remove))
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct NewConversation {
    members: Vec<UserId>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ConversationBody {
    id: ConversationId,
    name: Option<String>,
    created_by: UserId,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    members: Vec<UserId>,
    /// Who else is in its Matrix room.
    external: Vec<ContactBody>,
    matrix: MatrixBody,
}

/// Somebody on Matrix who is no user of ours.
#[derive(Debug, Serialize)]
pub(crate) struct ContactBody {
    id: UserId,
    matrix_user_id: String,
    display_name: Option<String>,
}

impl From<chat::Contact> for ContactBody {
    fn from(contact: chat::Contact) -> Self {
        Self { id: contact.contact_id, matrix_user_id: contact.matrix_user_id, display_name: contact.display_name }
    }
}

#[derive(Debug, Serialize)]
struct MatrixBody {
    room_id: Option<RoomId>,
    /// Members whom the homeserver would not have invited.
    not_invited: Vec<UserId>,
}

#[derive(Debug, Serialize)]
struct ConversationPage {
    conversations: Vec<ConversationBody>,
    next_cursor: Option<ConversationId>,
}

impl From<chat::Conversation> for ConversationBody {
    fn from(conversation: chat::Conversation) -> Self {
        Self {
            id: conversation.conversation_id,
            name: conversation.name,
            created_by: conversation.created_by,
            created_at: conversation.created_at,
            external: conversation.contacts.into_iter().map(ContactBody::from).collect(),
            members: conversation.members,
            matrix: MatrixBody { room_id: conversation.room_id, not_invited: conversation.not_invited },
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
    trace: Trace,
    IdempotencyKey(key): IdempotencyKey,
    JsonBody(new): JsonBody<NewConversation>,
) -> Result<(StatusCode, Json<ConversationBody>), ApiError> {
    check(&new)?;
    let mut tx = state.pool.begin().await?;
    let written = write(&mut tx, &state, caller.user_id, key.as_deref(), &new).await;
    let (status, conversation) = finish(tx, &trace, written).await?;
    state.committed(false);
    Ok((status, Json(conversation)))
}

/// Writes a conversation, unless its key was answered before. Returns what to answer.
async fn write(
    tx: &mut PgConnection,
    state: &State,
    creator: UserId,
    key: Option<&str>,
    new: &NewConversation,
) -> Result<(StatusCode, ConversationBody), ApiError> {
    let mut pending = None;
    if let Some(key) = key {
        let request = serde_json::to_vec(new).map_err(|error| ApiError::Internal(error.into()))?;
        match idempotency::enter(tx, &state.keys, creator, "POST /conversations", key, &request).await? {
            Entry::New(entered) => pending = Some(entered),
            Entry::Done { status, resource_id } => {
                let known = chat::conversation(tx, ConversationId::from(resource_id), creator).await?;
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
                return Ok((status, known.into()));
            }
        }
    }
    let id = ConversationId::generate();
    chat::create_conversation(tx, id, new.name.as_deref(), creator, &new.members).await?;
    if let Some(pending) = pending {
        pending.record(tx, StatusCode::CREATED.as_u16(), id.as_uuid()).await?;
    }
    Ok((StatusCode::CREATED, chat::conversation(tx, id, creator).await?.into()))
}

async fn list(Extract(state): AppState, caller: Caller, page: Page) -> Result<Json<ConversationPage>, ApiError> {
    let before = page.cursor::<ConversationId>()?;
    let mut conn = state.pool.acquire().await?;
    // One more than asked tells whether another page follows.
    let mut found = chat::conversations(&mut conn, caller.user_id, before, page.limit + 1).await?;
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|conversation| conversation.conversation_id);
    Ok(Json(ConversationPage { conversations: found.into_iter().map(ConversationBody::from).collect(), next_cursor }))
}

async fn read(
    Extract(state): AppState,
    caller: Caller,
    IdPath(id): IdPath<ConversationId>,
) -> Result<Json<ConversationBody>, ApiError> {
    let mut conn = state.pool.acquire().await?;
    Ok(Json(chat::conversation(&mut conn, id, caller.user_id).await?.into()))
}

/// Adds a member; any member may. Adding one who is there changes nothing.
async fn add(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    PairPath(id, user_id): PairPath<ConversationId, UserId>,
) -> Result<Json<ConversationBody>, ApiError> {
    let mut tx = state.pool.begin().await?;
    let turn = chat::take_turn(&mut tx, id, caller.user_id).await?.traced(trace.parent());
    let change = chat::add_member(&mut tx, &turn, user_id).await?;
    let conversation = chat::conversation(&mut tx, id, caller.user_id).await?;
    trace.commit(tx).await?;
    if let Membership::Changed(to_do) = change {
        state.committed(to_do);
    }
    Ok(Json(conversation.into()))
}

/// Removes a member; any member may, and so one leaves.
async fn remove(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    PairPath(id, user_id): PairPath<ConversationId, UserId>,
) -> Result<StatusCode, ApiError> {
    let mut tx = state.pool.begin().await?;
    let mut turn = chat::take_turn(&mut tx, id, caller.user_id).await?.traced(trace.parent());
    match chat::remove_member(&mut tx, &mut turn, user_id).await? {
        Membership::Unchanged => return Err(ApiError::NotFound("member")),
        Membership::Changed(to_do) => {
            trace.commit(tx).await?;
            state.committed(to_do);
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
