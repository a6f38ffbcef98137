//! What operators do to operations: bring back, throw away, end, complete.
//!
//! Whoever repeats one of these changes nothing more, so they need no idempotency key.

use axum::{Json, extract::State as Extract};
use serde::{Deserialize, Serialize};
use shared::{
    ids::{ConversationId, EventId, OutboxId},
    operator,
    outbox::{self, Completed, Completion, Discarded, LaneAhead, Letter, Place, Refused, Selection, Wanted},
    reason,
};
use uuid::Uuid;

use super::{params::Params, scope::Operator};
use crate::{
    AppState, State,
    extract::{IdPath, JsonBody, OptionalJsonBody},
    problem::ApiError,
};

/// How many ids one request may name: each conversation of them is a transaction, and a request has seconds.
pub(crate) const MOST_IDS: usize = 500;

/// The longest id that Matrix allows, in bytes.
const LONGEST_EVENT_ID: usize = 255;

/// What came back, or would.
#[derive(Debug, Default, Serialize)]
pub(crate) struct RequeueReport {
    pub(crate) dry_run: bool,
    pub(crate) requeued: usize,
    pub(crate) conversations: Vec<BackIn>,
    pub(crate) refused: Vec<Refused>,
}

/// What came back in one conversation.
#[derive(Debug, Serialize)]
pub(crate) struct BackIn {
    pub(crate) conversation_id: ConversationId,
    pub(crate) lanes: Vec<LaneAhead>,
    pub(crate) operations: Vec<Letter>,
}

/// What went.
#[derive(Debug, Default, Serialize)]
pub(crate) struct DiscardReport {
    pub(crate) discarded: usize,
    pub(crate) conversations: Vec<GoneFrom>,
    pub(crate) refused: Vec<Refused>,
}

/// What went from one conversation.
#[derive(Debug, Serialize)]
pub(crate) struct GoneFrom {
    pub(crate) conversation_id: ConversationId,
    pub(crate) operations: Vec<OutboxId>,
    /// Those of them that were live, and what discarding them leaves undone on Matrix.
    pub(crate) live: Vec<Discarded>,
}

/// Brings dead letters back, or says what would come back.
pub(crate) async fn requeue(
    state: &State,
    by: &str,
    ids: &[Uuid],
    reason: Option<&str>,
    dry_run: bool,
) -> Result<RequeueReport, ApiError> {
    let targets = outbox::resolve(&mut *state.pool.acquire().await?, ids, Wanted::Dead).await?;
    let mut report = RequeueReport { dry_run, refused: targets.refused, ..RequeueReport::default() };
    for (conversation_id, ids) in targets.operations {
        let mut tx = state.pool.begin().await?;
        let selection = Selection::Named(&ids);
        let done = if dry_run {
            outbox::preview_requeue(&mut tx, conversation_id, selection).await?
        } else {
            let done = operator::requeue(&mut tx, by, conversation_id, selection, reason).await?;
            tx.commit().await?;
            state.committed(true);
            done
        };
        report.requeued += done.back.len();
        report.refused.extend(done.refused);
        if !done.back.is_empty() {
            report.conversations.push(BackIn { conversation_id, lanes: done.lanes, operations: done.back });
        }
    }
    Ok(report)
}

/// Throws operations away.
pub(crate) async fn discard(state: &State, by: &str, ids: &[Uuid], reason: &str) -> Result<DiscardReport, ApiError> {
    let targets = outbox::resolve(&mut *state.pool.acquire().await?, ids, Wanted::DeadOrNamed).await?;
    let mut report = DiscardReport { refused: targets.refused, ..DiscardReport::default() };
    for (conversation_id, ids) in targets.operations {
        let mut tx = state.pool.begin().await?;
        let done = operator::discard(&mut tx, by, conversation_id, &ids, reason).await?;
        tx.commit().await?;
        state.committed(true);
        report.discarded += done.gone.len();
        report.refused.extend(done.refused);
        if !done.gone.is_empty() {
            report.conversations.push(GoneFrom { conversation_id, operations: done.gone, live: done.live });
        }
    }
    Ok(report)
}

/// What ended.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ExpireReport {
    pub(crate) expired: usize,
    pub(crate) operations: Vec<OutboxId>,
    pub(crate) refused: Vec<Refused>,
}

/// Ends what still waits, as if its time were over: the operation of an id, or what waits of a message.
pub(crate) async fn expire(state: &State, by: &str, id: Uuid, reason: &str) -> Result<ExpireReport, ApiError> {
    let found = outbox::find(&mut *state.pool.acquire().await?, id).await?;
    let Some(conversation_id) = found.first().map(|found| found.conversation_id) else {
        return Err(ApiError::NotFound("operation, or message with one"));
    };
    let live = found.iter().filter(|found| found.place == Place::Live || found.outbox_id.as_uuid() == id);
    let mut ids: Vec<OutboxId> = live.map(|found| found.outbox_id).collect();
    if ids.is_empty() {
        // Each is refused for its own reason.
        ids = found.iter().map(|found| found.outbox_id).collect();
    }
    let mut tx = state.pool.begin().await?;
    let done = operator::expire(&mut tx, by, conversation_id, &ids, reason).await?;
    tx.commit().await?;
    state.committed(true);
    Ok(ExpireReport { expired: done.gone.len(), operations: done.gone, refused: done.refused })
}

/// Completes one operation by hand: with the event that it became, or without one if it changes a membership.
pub(crate) async fn complete(
    state: &State,
    by: &str,
    id: Uuid,
    event_id: Option<&EventId>,
    reason: &str,
) -> Result<Completed, ApiError> {
    let found = outbox::find(&mut *state.pool.acquire().await?, id).await?;
    let Some(found) = found.iter().find(|found| found.outbox_id.as_uuid() == id) else {
        return Err(ApiError::NotFound("operation"));
    };
    let mut tx = state.pool.begin().await?;
    let done = operator::complete(&mut tx, by, found.conversation_id, found.outbox_id, event_id, reason).await?;
    match done {
        Completion::Completed(completed) => {
            tx.commit().await?;
            state.committed(true);
            Ok(completed)
        }
        Completion::Refused(refused) => {
            tx.rollback().await?;
            Err(ApiError::Refused(vec![refused]))
        }
    }
}

/// An event's id, if a text looks like one.
pub(crate) fn checked_event_id(text: &str) -> Result<EventId, ApiError> {
    let plain = text.len() <= LONGEST_EVENT_ID && text.chars().all(|c| c.is_ascii_graphic());
    if text.starts_with('$') && text.len() > 1 && plain {
        return Ok(EventId::from(text.to_owned()));
    }
    Err(ApiError::invalid("event_id", "must be the id of an event, which begins with $"))
}

/// A refusal of the only thing that was asked for.
pub(crate) fn refusal(refused: Vec<Refused>) -> ApiError {
    if refused.iter().any(|refused| refused.reason == outbox::Refusal::Unknown) {
        return ApiError::NotFound("operation or message");
    }
    ApiError::Refused(refused)
}

/// Why, as a body says it.
pub(crate) fn checked_reason(reason: Option<&str>) -> Result<Option<&str>, ApiError> {
    reason.map(|text| reason::parse(text).map_err(|error| ApiError::invalid("reason", error.to_string()))).transpose()
}

/// Why, where it must be said.
pub(crate) fn required_reason(reason: &str) -> Result<&str, ApiError> {
    reason::parse(reason).map_err(|error| ApiError::invalid("reason", error.to_string()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MayReason {
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MustReason {
    reason: String,
}

pub(super) async fn requeue_one(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<Uuid>,
    mut params: Params,
    OptionalJsonBody(body): OptionalJsonBody<MayReason>,
) -> Result<Json<RequeueReport>, ApiError> {
    let dry_run = params.flag("dry_run");
    params.finish()?;
    let reason = checked_reason(body.reason.as_deref())?;
    let report = requeue(&state, &operator.name(), &[id], reason, dry_run).await?;
    if report.requeued == 0 { Err(refusal(report.refused)) } else { Ok(Json(report)) }
}

pub(super) async fn discard_one(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<Uuid>,
    JsonBody(body): JsonBody<MustReason>,
) -> Result<Json<DiscardReport>, ApiError> {
    let report = discard(&state, &operator.name(), &[id], required_reason(&body.reason)?).await?;
    if report.discarded == 0 { Err(refusal(report.refused)) } else { Ok(Json(report)) }
}

pub(super) async fn expire_one(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<Uuid>,
    JsonBody(body): JsonBody<MustReason>,
) -> Result<Json<ExpireReport>, ApiError> {
    let report = expire(&state, &operator.name(), id, required_reason(&body.reason)?).await?;
    if report.expired == 0 { Err(refusal(report.refused)) } else { Ok(Json(report)) }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Complete {
    #[serde(default)]
    event_id: Option<String>,
    reason: String,
}

pub(super) async fn complete_one(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<Uuid>,
    JsonBody(body): JsonBody<Complete>,
) -> Result<Json<Completed>, ApiError> {
    let reason = required_reason(&body.reason)?;
    let event_id = body.event_id.as_deref().map(checked_event_id).transpose()?;
    complete(&state, &operator.name(), id, event_id.as_ref(), reason).await.map(Json)
}

/// Refuses too many ids, and none.
pub(super) fn checked_ids(ids: &[Uuid]) -> Result<(), ApiError> {
    if ids.is_empty() || ids.len() > MOST_IDS {
        return Err(ApiError::invalid("ids", format!("must be from 1 to {MOST_IDS} ids")));
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiscardMany {
    ids: Vec<Uuid>,
    reason: String,
}

pub(super) async fn discard_many(
    Extract(state): AppState,
    operator: Operator,
    JsonBody(body): JsonBody<DiscardMany>,
) -> Result<Json<DiscardReport>, ApiError> {
    checked_ids(&body.ids)?;
    discard(&state, &operator.name(), &body.ids, required_reason(&body.reason)?).await.map(Json)
}
