//! `GET /admin/audit`: what operators did.

use axum::{Json, extract::State as Extract};
use shared::audit::{self, Entry};

use super::{
    lists::{DEFAULT_LIMIT, MAX_LIMIT, Page},
    params::Params,
};
use crate::{AppState, problem::ApiError};

pub(super) async fn entries(Extract(state): AppState, mut params: Params) -> Result<Json<Page<Entry>>, ApiError> {
    let conversation_id = params.id("conversation_id");
    let (limit, before) = (params.limit(DEFAULT_LIMIT, MAX_LIMIT), params.cursor());
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let entries = audit::entries(&mut tx, conversation_id, before, limit + 1).await?;
    Ok(Json(Page::of(entries, limit, |entry| entry.cursor().to_string())))
}
