//! `GET /admin/outbox`: what is dead, held, paused, or still to be done.

use axum::{Json, extract::State as Extract, response::{IntoResponse as _, Response}};
use serde::Serialize;
use shared::{
    ids::{ConversationId, LaneId, OutboxId},
    outbox::{self, Cursor, DeadFilter, PauseOfClass},
};
use sqlx::PgConnection;

use super::params::Params;
use crate::{AppState, problem::ApiError};

/// How many items a page has when nothing is asked, and at most.
pub(crate) const DEFAULT_LIMIT: i64 = 50;
pub(crate) const MAX_LIMIT: i64 = 200;

const STATES: [&str; 4] = ["dead", "live", "held", "paused"];

/// A page of a list.
#[derive(Debug, Serialize)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// From one item more than asked for, which tells whether another page follows.
    pub(crate) fn of(mut items: Vec<T>, limit: i64, cursor: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(cursor);
        Self { items, next_cursor }
    }
}

/// A page, and of what.
#[derive(Debug, Serialize)]
struct Listed<T> {
    state: &'static str,
    /// Pauses of everything and of classes; only with `state=paused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pauses: Option<Vec<PauseOfClass>>,
    #[serde(flatten)]
    page: Page<T>,
}

/// A lane as a cursor: after it, in the order of conversations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneCursor(pub(crate) ConversationId, pub(crate) LaneId);

impl std::str::FromStr for LaneCursor {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (conversation_id, lane_id) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self(conversation_id.parse()?, lane_id.parse()?))
    }
}

impl std::fmt::Display for LaneCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

/// Which dead letters, as a query says it.
pub(crate) fn dead_filter(params: &mut Params) -> DeadFilter {
    DeadFilter {
        conversation_id: params.id("conversation_id"),
        kind: params.kind("kind"),
        cause: params.cause("cause"),
        errcode: params.text("errcode"),
    }
}

pub(super) async fn list(Extract(state): AppState, mut params: Params) -> Result<Response, ApiError> {
    let which = params.one_of("state", &STATES).unwrap_or("dead");
    let limit = params.limit(DEFAULT_LIMIT, MAX_LIMIT);
    let mut tx = state.pool.begin().await?;
    match which {
        "live" => live(&mut tx, params, limit).await,
        "held" => held(&mut tx, params, limit).await,
        "paused" => paused(&mut tx, params, limit).await,
        _ => dead(&mut tx, params, limit).await,
    }
}

fn answer<T: Serialize>(state: &'static str, page: Page<T>) -> Response {
    Json(Listed { state, pauses: None, page }).into_response()
}

async fn dead(conn: &mut PgConnection, mut params: Params, limit: i64) -> Result<Response, ApiError> {
    let filter = dead_filter(&mut params);
    let before: Option<Cursor> = params.cursor();
    params.finish()?;
    let letters = outbox::dead_letters(conn, &filter, before, limit + 1).await?;
    Ok(answer("dead", Page::of(letters, limit, |letter| letter.cursor().to_string())))
}

async fn live(conn: &mut PgConnection, mut params: Params, limit: i64) -> Result<Response, ApiError> {
    let (conversation_id, kind) = (params.id("conversation_id"), params.kind("kind"));
    let after: Option<OutboxId> = params.cursor();
    params.finish()?;
    let operations = outbox::live_operations(conn, conversation_id, kind.as_deref(), after, limit + 1).await?;
    Ok(answer("live", Page::of(operations, limit, |operation| operation.outbox_id.to_string())))
}

async fn held(conn: &mut PgConnection, mut params: Params, limit: i64) -> Result<Response, ApiError> {
    let conversation_id = params.id("conversation_id");
    let after: Option<LaneCursor> = params.cursor();
    params.finish()?;
    let after = after.map(|LaneCursor(conversation_id, lane_id)| (conversation_id, lane_id));
    let lanes = outbox::held_lanes(conn, conversation_id, after, limit + 1).await?;
    Ok(answer("held", Page::of(lanes, limit, |lane| LaneCursor(lane.conversation_id, lane.lane_id).to_string())))
}

async fn paused(conn: &mut PgConnection, mut params: Params, limit: i64) -> Result<Response, ApiError> {
    let conversation_id = params.id("conversation_id");
    let after: Option<Cursor> = params.cursor();
    params.finish()?;
    let lanes = outbox::paused_lanes(conn, conversation_id, after, limit + 1).await?;
    let page = Page::of(lanes, limit, |lane| lane.cursor().to_string());
    let pauses = Some(outbox::pauses(conn).await?);
    Ok(Json(Listed { state: "paused", pauses, page }).into_response())
}
