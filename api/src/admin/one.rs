//! `GET /admin/outbox/{id}`: one operation, or all of a message or a call.

use axum::{Json, extract::State as Extract};
use serde::Serialize;
use shared::outbox::{self, MessageFacts, Shown};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{AppState, extract::IdPath, problem::ApiError};

/// What is known of an id.
#[derive(Debug, Serialize)]
pub(crate) struct Known {
    pub(crate) id: Uuid,
    /// The message that it is, or that its operations are about.
    pub(crate) message: Option<MessageFacts>,
    pub(crate) operations: Vec<Shown>,
}

pub(super) async fn show(Extract(state): AppState, IdPath(id): IdPath<Uuid>) -> Result<Json<Known>, ApiError> {
    let mut tx = state.pool.begin().await?;
    known(&mut tx, id).await?.map(Json).ok_or(ApiError::NotFound("operation or message"))
}

/// What is known of an id; none when that is nothing.
pub(crate) async fn known(conn: &mut PgConnection, id: Uuid) -> Result<Option<Known>, sqlx::Error> {
    let found = outbox::find(conn, id).await?;
    // What an operation is about may be a message; a member is none.
    let subject = found.first().map_or(id, |found| found.subject_id);
    let message = outbox::message_facts(conn, subject).await?;
    if found.is_empty() && message.is_none() {
        return Ok(None);
    }
    let mut operations = Vec::with_capacity(found.len());
    for found in found {
        operations.push(outbox::show(conn, found).await?);
    }
    Ok(Some(Known { id, message, operations }))
}
