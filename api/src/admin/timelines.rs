//! What happened, by time: to one operation, a message or a call, and in a conversation.

use axum::{Json, extract::State as Extract};
use shared::{
    ids::ConversationId,
    outbox::{self, Cursor, Found, Moment, Timeline},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    lists::{DEFAULT_LIMIT, MAX_LIMIT, Page},
    params::Params,
    tasks::known_conversation,
};
use crate::{AppState, extract::IdPath, problem::ApiError};

/// How many operations of a message or a call have their timelines merged: the first.
const MOST_OPERATIONS: usize = 50;

/// What happened to operations, oldest first.
pub(crate) async fn merged(conn: &mut PgConnection, found: &[Found]) -> Result<Vec<Moment>, sqlx::Error> {
    let mut moments: Vec<Moment> = Vec::new();
    for found in found.iter().take(MOST_OPERATIONS) {
        for moment in outbox::operation_timeline(conn, found).await? {
            // What is told of the message is told with each of its operations.
            if !moments.contains(&moment) {
                moments.push(moment);
            }
        }
    }
    moments.sort_by_key(|moment| moment.at);
    Ok(moments)
}

pub(super) async fn operation(
    Extract(state): AppState,
    IdPath(id): IdPath<Uuid>,
) -> Result<Json<Page<Moment>>, ApiError> {
    let mut tx = state.pool.begin().await?;
    let found = outbox::find(&mut tx, id).await?;
    if found.is_empty() {
        return Err(ApiError::NotFound("operation, or message with one"));
    }
    let items = merged(&mut tx, &found).await?;
    Ok(Json(Page { items, next_cursor: None }))
}

pub(super) async fn conversation(
    Extract(state): AppState,
    IdPath(id): IdPath<ConversationId>,
    mut params: Params,
) -> Result<Json<Page<Moment>>, ApiError> {
    let limit = params.limit(DEFAULT_LIMIT, MAX_LIMIT);
    let before: Option<Cursor> = params.cursor();
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    known_conversation(&mut tx, id).await?;
    let Timeline { moments: items, next } = outbox::conversation_timeline(&mut tx, id, before, limit).await?;
    Ok(Json(Page { items, next_cursor: next.map(|cursor| cursor.to_string()) }))
}
