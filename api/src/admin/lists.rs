//! `GET /admin/outbox`: what is dead, held, paused, delivered, or still to be done; and the dead by what they died of.

use axum::{
    Json,
    extract::State as Extract,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use shared::{
    ids::{ConversationId, LaneId, OutboxId},
    outbox::{self, Counted, Cursor, DeadFilter, DeadGroup, LiveFilter, PauseOfClass, SHORTEST_TEXT, SentFilter},
};
use sqlx::PgConnection;

use super::params::Params;
use crate::{AppState, problem::ApiError};

/// How many items a page has when nothing is asked, and at most.
pub(crate) const DEFAULT_LIMIT: i64 = 50;
pub(crate) const MAX_LIMIT: i64 = 200;

/// What is listed.
pub(crate) const STATES: [&str; 5] = ["dead", "live", "delivered", "held", "paused"];

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
    /// How many dead letters the filter chooses, if that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<Counted>,
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
    let filter = DeadFilter {
        conversation_id: params.id("conversation_id"),
        kind: params.kind("kind"),
        cause: params.cause("cause"),
        errcode: params.text("errcode"),
        user_id: params.id("user_id"),
        text: params.text("text"),
        since: params.time("since"),
        until: params.time("until"),
    };
    if filter.text.as_ref().is_some_and(|text| text.chars().count() < SHORTEST_TEXT) {
        params.problem("text", format!("must have at least {SHORTEST_TEXT} characters"));
    } else if filter.problem().is_some() {
        params.problem("until", "must be after since");
    }
    filter
}

/// Which live operations, as a query says it.
pub(crate) fn live_filter(params: &mut Params) -> LiveFilter {
    LiveFilter {
        conversation_id: params.id("conversation_id"),
        kind: params.kind("kind"),
        user_id: params.id("user_id"),
        errcode: params.text("errcode"),
        since: params.time("since"),
        until: params.time("until"),
    }
}

/// Which delivered operations, as a query says it.
pub(crate) fn sent_filter(params: &mut Params) -> SentFilter {
    SentFilter {
        conversation_id: params.id("conversation_id"),
        kind: params.kind("kind"),
        user_id: params.id("user_id"),
        since: params.time("since"),
        until: params.time("until"),
    }
}

pub(super) async fn list(Extract(state): AppState, mut params: Params) -> Result<Response, ApiError> {
    let which = params.one_of("state", &STATES).unwrap_or("dead");
    let limit = params.limit(DEFAULT_LIMIT, MAX_LIMIT);
    let mut tx = state.pool.begin().await?;
    match which {
        "live" => live(&mut tx, params, limit).await,
        "delivered" => delivered(&mut tx, params, limit).await,
        "held" => held(&mut tx, params, limit).await,
        "paused" => paused(&mut tx, params, limit).await,
        _ => dead(&mut tx, params, limit).await,
    }
}

fn answer<T: Serialize>(state: &'static str, page: Page<T>) -> Response {
    Json(Listed { state, count: None, pauses: None, page }).into_response()
}

async fn dead(conn: &mut PgConnection, mut params: Params, limit: i64) -> Result<Response, ApiError> {
    let (filter, counts) = (dead_filter(&mut params), params.flag("count"));
    let before: Option<Cursor> = params.cursor();
    params.finish()?;
    let letters = outbox::dead_letters(conn, &filter, before, limit + 1).await?;
    let page = Page::of(letters, limit, |letter| letter.cursor().to_string());
    let count = if counts { Some(outbox::count_dead(conn, &filter).await?) } else { None };
    Ok(Json(Listed { state: "dead", count, pauses: None, page }).into_response())
}

async fn live(conn: &mut PgConnection, mut params: Params, limit: i64) -> Result<Response, ApiError> {
    let filter = live_filter(&mut params);
    let after: Option<OutboxId> = params.cursor();
    params.finish()?;
    let operations = outbox::live_operations(conn, &filter, after, limit + 1).await?;
    Ok(answer("live", Page::of(operations, limit, |operation| operation.outbox_id.to_string())))
}

async fn delivered(conn: &mut PgConnection, mut params: Params, limit: i64) -> Result<Response, ApiError> {
    let filter = sent_filter(&mut params);
    let before: Option<Cursor> = params.cursor();
    params.finish()?;
    let operations = outbox::sent_operations(conn, &filter, before, limit + 1).await?;
    Ok(answer("delivered", Page::of(operations, limit, |operation| operation.cursor().to_string())))
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
    Ok(Json(Listed { state: "paused", count: None, pauses, page }).into_response())
}

/// The dead by what they died of, the largest groups first.
pub(super) async fn groups(Extract(state): AppState, mut params: Params) -> Result<Json<Page<DeadGroup>>, ApiError> {
    let limit = params.limit(DEFAULT_LIMIT, MAX_LIMIT);
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let items = outbox::dead_groups(&mut tx, limit).await?;
    Ok(Json(Page { items, next_cursor: None }))
}
