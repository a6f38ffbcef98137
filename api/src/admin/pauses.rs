//! Pauses and holds: what stands still, stopping, and letting go on.

use std::time::Duration;

use axum::{Json, extract::State as Extract, http::StatusCode};
use serde::{Deserialize, Serialize};
use shared::{
    database,
    ids::{ConversationId, LaneId},
    operator::{self, Scope},
    outbox::{self, Cursor, GoingOn, LaneClass, PauseOfClass, PausedLane},
};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    acts::{checked_reason, required_reason},
    lists::{DEFAULT_LIMIT, MAX_LIMIT, Page},
    params::{self, Params},
    scope::Operator,
};
use crate::{AppState, State, extract::JsonBody, problem::ApiError};

/// How long a request goes on resuming held lanes, batch by batch: it is to be answered before it is told to come back.
const RESUME_WITHIN: Duration = Duration::from_secs(8);

#[derive(Debug, Serialize)]
pub(super) struct Pauses {
    /// Of everything and of classes.
    pauses: Vec<PauseOfClass>,
    /// Lanes that are paused until a time.
    lanes: Page<PausedLane>,
}

pub(super) async fn list(Extract(state): AppState, mut params: Params) -> Result<Json<Pauses>, ApiError> {
    let limit = params.limit(DEFAULT_LIMIT, MAX_LIMIT);
    let after: Option<Cursor> = params.cursor();
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let pauses = outbox::pauses(&mut tx).await?;
    let lanes = outbox::paused_lanes(&mut tx, None, after, limit + 1).await?;
    Ok(Json(Pauses { pauses, lanes: Page::of(lanes, limit, |lane| lane.cursor().to_string()) }))
}

/// What is paused or resumed, as a body says it and an answer repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ScopeName {
    All,
    Class,
    Conversation,
    Lane,
    Held,
}

/// What is paused or resumed, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Named {
    scope: ScopeName,
    class: Option<LaneClass>,
    conversation_id: Option<ConversationId>,
    lane_id: Option<LaneId>,
}

/// The scope that fields name, without any that does not belong to it. None is what was held.
fn scope_of(named: &Named) -> Result<Option<Scope>, ApiError> {
    let needed = |field: &str| ApiError::invalid(field, "is needed for this scope");
    let scope = match named.scope {
        ScopeName::All => Some(Scope::All),
        ScopeName::Class => Some(Scope::Class(named.class.ok_or_else(|| needed("class"))?)),
        ScopeName::Conversation => {
            Some(Scope::Conversation(named.conversation_id.ok_or_else(|| needed("conversation_id"))?))
        }
        ScopeName::Lane => Some(Scope::Lane(
            named.conversation_id.ok_or_else(|| needed("conversation_id"))?,
            named.lane_id.ok_or_else(|| needed("lane_id"))?,
        )),
        ScopeName::Held => None,
    };
    let unfit = |field: &str| Err(ApiError::invalid(field, "does not belong to this scope"));
    if named.class.is_some() && named.scope != ScopeName::Class {
        return unfit("class");
    }
    if named.conversation_id.is_some() && !matches!(named.scope, ScopeName::Conversation | ScopeName::Lane) {
        return unfit("conversation_id");
    }
    if named.lane_id.is_some() && named.scope != ScopeName::Lane {
        return unfit("lane_id");
    }
    Ok(scope)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPause {
    scope: ScopeName,
    #[serde(default)]
    class: Option<LaneClass>,
    #[serde(default)]
    conversation_id: Option<ConversationId>,
    #[serde(default)]
    lane_id: Option<LaneId>,
    #[serde(default, with = "time::serde::rfc3339::option")]
    until: Option<OffsetDateTime>,
    #[serde(default, rename = "for")]
    for_: Option<String>,
    reason: String,
}

/// What was paused.
#[derive(Debug, Serialize)]
pub(super) struct PausedBody {
    #[serde(flatten)]
    paused: Named,
    #[serde(with = "time::serde::rfc3339::option")]
    until: Option<OffsetDateTime>,
    /// How many lanes are paused by name.
    lanes: Option<u64>,
}

/// When a pause ends: at a time, after so long, or not by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    Time(OffsetDateTime),
    For(Duration),
    Resumed,
}

/// What a pause did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paused {
    pub(crate) until: Option<OffsetDateTime>,
    pub(crate) affected: u64,
}

/// Pauses something.
pub(crate) async fn pause_scope(
    state: &State,
    by: &str,
    scope: Scope,
    until: Until,
    reason: &str,
) -> Result<Paused, ApiError> {
    let mut tx = state.pool.begin().await?;
    let now = database::now(&mut tx).await?;
    let until = match until {
        Until::Time(until) if until <= now => {
            return Err(ApiError::invalid("until", "is past, by the database's clock"));
        }
        Until::Time(until) => Some(until),
        Until::For(duration) => Some(now + duration),
        Until::Resumed => None,
    };
    let affected = operator::pause(&mut tx, by, scope, until, reason).await?;
    if affected == 0 {
        return Err(ApiError::NotFound(if matches!(scope, Scope::Lane(..)) { "lane" } else { "conversation" }));
    }
    tx.commit().await?;
    state.committed(true);
    Ok(Paused { until, affected })
}

pub(super) async fn pause(
    Extract(state): AppState,
    operator: Operator,
    JsonBody(body): JsonBody<NewPause>,
) -> Result<(StatusCode, Json<PausedBody>), ApiError> {
    let named =
        Named { scope: body.scope, class: body.class, conversation_id: body.conversation_id, lane_id: body.lane_id };
    let Some(scope) = scope_of(&named)? else {
        return Err(ApiError::invalid("scope", "must be all, class, conversation or lane"));
    };
    let reason = required_reason(&body.reason)?;
    let until = match (body.until, body.for_) {
        (Some(_), Some(_)) => return Err(ApiError::invalid("for", "does not go with until")),
        (Some(until), None) => Until::Time(until),
        (None, Some(text)) => Until::For(params::parse_duration(&text).map_err(|must| ApiError::invalid("for", must))?),
        (None, None) => Until::Resumed,
    };
    let Paused { until, affected } = pause_scope(&state, &operator.name(), scope, until, reason).await?;
    let lanes = matches!(scope, Scope::Conversation(_) | Scope::Lane(..)).then_some(affected);
    Ok((StatusCode::OK, Json(PausedBody { paused: named, until, lanes })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewResume {
    scope: ScopeName,
    #[serde(default)]
    class: Option<LaneClass>,
    #[serde(default)]
    conversation_id: Option<ConversationId>,
    #[serde(default)]
    lane_id: Option<LaneId>,
    /// With `held`: only what is held for exactly this reason.
    #[serde(default)]
    because: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

/// What was resumed.
#[derive(Debug, Serialize)]
pub(super) struct ResumedBody {
    #[serde(flatten)]
    resumed: Named,
    /// How many pauses and holds ended.
    ended: u64,
    /// How many lanes have something to send and may.
    lanes_going_on: i64,
    /// Held lanes that somebody had locked, so that they were left; only of `held`.
    #[serde(skip_serializing_if = "Option::is_none")]
    locked: Option<u64>,
    /// False when there were more held lanes than a request has time for: repeat it.
    #[serde(skip_serializing_if = "Option::is_none")]
    complete: Option<bool>,
    still_paused: Vec<PauseOfClass>,
}

/// What became of a wish to resume all that was held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldResumed {
    pub(crate) resumed: GoingOn,
    pub(crate) locked: u64,
    pub(crate) complete: bool,
}

/// Resumes something.
pub(crate) async fn resume_scope(
    state: &State,
    by: &str,
    scope: Scope,
    reason: Option<&str>,
) -> Result<GoingOn, ApiError> {
    let mut tx = state.pool.begin().await?;
    let resumed = operator::resume(&mut tx, by, scope, reason).await?;
    tx.commit().await?;
    state.committed(true);
    Ok(resumed)
}

/// One pass over the lanes that are held, in batches, each an act of its own. A lane that is held again meanwhile is not
/// resumed again: its fault is not mended.
pub(crate) async fn resume_held(
    state: &State,
    by: &str,
    because: Option<&str>,
    reason: Option<&str>,
) -> Result<HeldResumed, ApiError> {
    let begun = Instant::now();
    let mut done = HeldResumed { resumed: GoingOn { ended: 0, lanes: 0 }, locked: 0, complete: true };
    let mut after = None;
    loop {
        let mut tx = state.pool.begin().await?;
        let batch = operator::resume_held(&mut tx, by, because, after, reason).await?;
        tx.commit().await?;
        state.committed(true);
        done.resumed.ended += batch.resumed.ended;
        done.resumed.lanes += batch.resumed.lanes;
        done.locked += batch.locked;
        after = batch.next;
        if after.is_none() {
            return Ok(done);
        }
        if begun.elapsed() > RESUME_WITHIN {
            return Ok(HeldResumed { complete: false, ..done });
        }
    }
}

pub(super) async fn resume(
    Extract(state): AppState,
    operator: Operator,
    JsonBody(body): JsonBody<NewResume>,
) -> Result<Json<ResumedBody>, ApiError> {
    let named =
        Named { scope: body.scope, class: body.class, conversation_id: body.conversation_id, lane_id: body.lane_id };
    let scope = scope_of(&named)?;
    if body.because.is_some() && scope.is_some() {
        return Err(ApiError::invalid("because", "goes with the scope held only"));
    }
    let reason = checked_reason(body.reason.as_deref())?;
    let by = operator.name();
    let (resumed, locked, complete) = if let Some(scope) = scope {
        (resume_scope(&state, &by, scope, reason).await?, None, None)
    } else {
        let done = resume_held(&state, &by, body.because.as_deref(), reason).await?;
        (done.resumed, Some(done.locked), Some(done.complete))
    };
    let still_paused = outbox::pauses(&mut *state.pool.acquire().await?).await?;
    let GoingOn { ended, lanes: lanes_going_on } = resumed;
    Ok(Json(ResumedBody { resumed: named, ended, lanes_going_on, locked, complete, still_paused }))
}
