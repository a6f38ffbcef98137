//! Bulk work and work on Matrix, as tasks: begun here, done step by step by whoever comes first.
//!
//! What begins a task takes an `Idempotency-Key`: whoever repeats it is answered with the task of the first time.

use axum::{
    Json,
    extract::State as Extract,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    idempotency::{self, Entry},
    ids::{ConversationId, TaskId},
    outbox::{self, Ailment, Counted, DeadFilter, Repair},
    tasks::{self, AsOf, Task},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    acts::{self, checked_reason},
    lists::{DEFAULT_LIMIT, MAX_LIMIT, Page},
    params::Params,
    scope::Operator,
};
use crate::{
    AppState, State,
    extract::{IdPath, JsonBody, OptionalJsonBody},
    preferences::IdempotencyKey,
    problem::ApiError,
    trace::Trace,
    transaction::finish,
};

/// The highest rate that anybody may mean, in operations a second.
pub(crate) const HIGHEST_RATE: u32 = 10_000;

pub(super) async fn list(Extract(state): AppState, mut params: Params) -> Result<Json<Page<Task>>, ApiError> {
    let (limit, before) = (params.limit(DEFAULT_LIMIT, MAX_LIMIT), params.cursor());
    params.finish()?;
    let mut conn = state.pool.acquire().await?;
    let tasks = tasks::tasks(&mut conn, before, limit + 1).await?;
    Ok(Json(Page::of(tasks, limit, |task| task.task_id.to_string())))
}

pub(super) async fn show(Extract(state): AppState, IdPath(id): IdPath<TaskId>) -> Result<Json<Task>, ApiError> {
    let mut conn = state.pool.acquire().await?;
    tasks::task(&mut conn, id).await?.map(Json).ok_or(ApiError::NotFound("task"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MayReason {
    #[serde(default)]
    reason: Option<String>,
}

/// Ends a task before it is through. False when it had ended already.
pub(crate) async fn cancel_task(
    state: &State,
    by: &str,
    id: TaskId,
    reason: Option<&str>,
) -> Result<(bool, Task), ApiError> {
    let mut tx = state.pool.begin().await?;
    let cancelled = tasks::cancel(&mut tx, by, id, reason).await?;
    let task = tasks::task(&mut tx, id).await?.ok_or(ApiError::NotFound("task"))?;
    tx.commit().await?;
    Ok((cancelled, task))
}

pub(super) async fn cancel(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<TaskId>,
    OptionalJsonBody(body): OptionalJsonBody<MayReason>,
) -> Result<Json<Task>, ApiError> {
    let reason = checked_reason(body.reason.as_deref())?;
    let (_, task) = cancel_task(&state, &operator.name(), id, reason).await?;
    Ok(Json(task))
}

/// Work that is done as a task.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work<'a> {
    /// Brings back what a filter chooses, as of its dry run; without one, as of now.
    Requeue { filter: &'a DeadFilter, as_of: Option<&'a AsOf>, rate: Option<u32> },
    /// Compares a conversation, or all, with what stands on Matrix.
    Verify { conversation_id: Option<ConversationId>, repair: bool },
    /// Mends a conversation on Matrix.
    Repair { conversation_id: ConversationId, repair: Repair },
    /// Mends all that suffer from this.
    RepairAll { of: Ailment<'a> },
}

impl Work<'_> {
    const fn route(self) -> &'static str {
        match self {
            Self::Requeue { .. } => "POST /admin/outbox/requeue",
            Self::Verify { .. } => "POST /admin/verify",
            Self::Repair { .. } => "POST /admin/conversations/{id}/repair",
            Self::RepairAll { .. } => "POST /admin/repair",
        }
    }

    async fn start(self, conn: &mut PgConnection, by: &str, reason: Option<&str>) -> Result<Task, ApiError> {
        Ok(match self {
            Self::Requeue { filter, as_of, rate } => {
                checked_filter(filter)?;
                let rate = checked_rate(rate)?;
                let as_of = match as_of {
                    Some(as_of) => as_of.clone(),
                    None => AsOf::now(conn).await?,
                };
                tasks::start_requeue(conn, by, filter, &as_of, rate, reason).await?
            }
            Self::Verify { conversation_id, repair } => {
                if let Some(id) = conversation_id {
                    known_conversation(conn, id).await?;
                }
                tasks::start_verify(conn, by, conversation_id, repair, reason).await?
            }
            Self::Repair { conversation_id, repair } => {
                known_conversation(conn, conversation_id).await?;
                tasks::start_repair(conn, by, conversation_id, repair, reason).await?
            }
            Self::RepairAll { of } => {
                checked_ailment(of)?;
                tasks::start_repairs(conn, by, of, reason).await?
            }
        })
    }
}

/// Begins a task.
pub(crate) async fn begin(
    state: &State,
    operator: &Operator,
    work: Work<'_>,
    reason: Option<&str>,
) -> Result<Task, ApiError> {
    begin_under(state, operator, work, reason, None).await
}

/// Begins a task, unless its key began it before. A key comes with what was asked for, as it was understood.
async fn begin_under(
    state: &State,
    operator: &Operator,
    work: Work<'_>,
    reason: Option<&str>,
    key: Option<(&str, Value)>,
) -> Result<Task, ApiError> {
    let mut tx = state.pool.begin().await?;
    let begun = begin_in(&mut tx, state, operator, work, reason, key).await;
    let task = finish(tx, &Trace::default(), begun).await?;
    state.committed(true);
    Ok(task)
}

async fn begin_in(
    conn: &mut PgConnection,
    state: &State,
    operator: &Operator,
    work: Work<'_>,
    reason: Option<&str>,
    key: Option<(&str, Value)>,
) -> Result<Task, ApiError> {
    let mut pending = None;
    if let Some((key, asked)) = key {
        let asked = serde_json::to_vec(&asked).map_err(|error| ApiError::Internal(error.into()))?;
        match idempotency::enter(conn, &state.keys, operator.user_id, work.route(), key, &asked).await? {
            Entry::New(entered) => pending = Some(entered),
            Entry::Done { resource_id, .. } => {
                return tasks::task(conn, resource_id.into()).await?.ok_or(ApiError::NotFound("task"));
            }
        }
    }
    let task = work.start(conn, &operator.name(), reason).await?;
    if let Some(pending) = pending {
        pending.record(conn, StatusCode::ACCEPTED.as_u16(), task.task_id.as_uuid()).await?;
    }
    Ok(task)
}

/// That a task was begun, and where it is.
fn accepted(task: &Task) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(task)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/admin/tasks/{}", task.task_id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequeueMany {
    #[serde(default)]
    ids: Option<Vec<Uuid>>,
    #[serde(default)]
    filter: Option<DeadFilter>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    as_of: Option<AsOf>,
    #[serde(default)]
    rate: Option<u32>,
    #[serde(default)]
    reason: Option<String>,
}

/// Refuses a filter that makes no sense, by its field.
pub(crate) fn checked_filter(filter: &DeadFilter) -> Result<(), ApiError> {
    filter.problem().map_or(Ok(()), |problem| Err(by_field(problem)))
}

/// Refuses an ailment that makes no sense, by its field.
pub(crate) fn checked_ailment(of: Ailment<'_>) -> Result<(), ApiError> {
    of.problem().map_or(Ok(()), |problem| Err(by_field(problem)))
}

/// Of a problem that names its field first.
fn by_field(problem: &str) -> ApiError {
    let (field, reason) = problem.split_once(": ").unwrap_or(("filter", problem));
    ApiError::invalid(field, reason)
}

/// Refuses a rate that nobody means.
pub(crate) fn checked_rate(rate: Option<u32>) -> Result<Option<u32>, ApiError> {
    if rate.is_some_and(|rate| !(1..=HIGHEST_RATE).contains(&rate)) {
        return Err(ApiError::invalid("rate", format!("must be from 1 to {HIGHEST_RATE} operations a second")));
    }
    Ok(rate)
}

pub(super) async fn requeue(
    Extract(state): AppState,
    operator: Operator,
    IdempotencyKey(key): IdempotencyKey,
    JsonBody(body): JsonBody<RequeueMany>,
) -> Result<Response, ApiError> {
    let reason = checked_reason(body.reason.as_deref())?;
    match (&body.ids, &body.filter) {
        (Some(ids), None) => {
            if body.as_of.is_some() || body.rate.is_some() {
                let field = if body.as_of.is_some() { "as_of" } else { "rate" };
                return Err(ApiError::invalid(field, "goes with a filter only"));
            }
            acts::checked_ids(ids)?;
            let report = acts::requeue(&state, &operator.name(), ids, reason, body.dry_run).await?;
            Ok(Json(report).into_response())
        }
        (None, Some(filter)) => {
            if body.dry_run {
                checked_filter(filter)?;
                let mut tx = state.pool.begin().await?;
                let preview = tasks::preview_requeue(&mut tx, filter, body.as_of.as_ref()).await?;
                return Ok(Json(preview).into_response());
            }
            let work = Work::Requeue { filter, as_of: body.as_of.as_ref(), rate: body.rate };
            let key = key.as_deref().map(|key| (key, json!(body)));
            Ok(accepted(&begin_under(&state, &operator, work, reason, key).await?))
        }
        _ => Err(ApiError::invalid("filter", "give either a filter, which may be empty, or ids")),
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVerify {
    #[serde(default)]
    conversation_id: Option<ConversationId>,
    #[serde(default)]
    repair: bool,
    #[serde(default)]
    reason: Option<String>,
}

/// Refuses a conversation that there is not.
pub(crate) async fn known_conversation(conn: &mut PgConnection, id: ConversationId) -> Result<(), ApiError> {
    if outbox::is_conversation(conn, id).await? { Ok(()) } else { Err(ApiError::NotFound("conversation")) }
}

pub(super) async fn verify(
    Extract(state): AppState,
    operator: Operator,
    IdempotencyKey(key): IdempotencyKey,
    OptionalJsonBody(body): OptionalJsonBody<NewVerify>,
) -> Result<Response, ApiError> {
    let reason = checked_reason(body.reason.as_deref())?;
    let work = Work::Verify { conversation_id: body.conversation_id, repair: body.repair };
    let key = key.as_deref().map(|key| (key, json!(body)));
    Ok(accepted(&begin_under(&state, &operator, work, reason, key).await?))
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRepair {
    repair: Repair,
    reason: String,
}

pub(super) async fn repair(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<ConversationId>,
    IdempotencyKey(key): IdempotencyKey,
    JsonBody(body): JsonBody<NewRepair>,
) -> Result<Response, ApiError> {
    let reason = acts::required_reason(&body.reason)?;
    let work = Work::Repair { conversation_id: id, repair: body.repair };
    let key = key.as_deref().map(|key| (key, json!({"conversation_id": id, "body": body})));
    Ok(accepted(&begin_under(&state, &operator, work, Some(reason), key).await?))
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRepairs {
    repair: Repair,
    #[serde(default)]
    errcode: Option<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    reason: Option<String>,
}

/// How many conversations a repair of all would be of.
#[derive(Debug, Serialize)]
struct Repairs {
    conversations: Counted,
}

/// How many conversations suffer from something.
pub(crate) async fn count_ailing(state: &State, of: Ailment<'_>) -> Result<Counted, ApiError> {
    checked_ailment(of)?;
    let mut tx = state.pool.begin().await?;
    Ok(outbox::count_ailing(&mut tx, of).await?)
}

pub(super) async fn repair_all(
    Extract(state): AppState,
    operator: Operator,
    IdempotencyKey(key): IdempotencyKey,
    JsonBody(body): JsonBody<NewRepairs>,
) -> Result<Response, ApiError> {
    let of = Ailment { repair: body.repair, errcode: body.errcode.as_deref() };
    if body.dry_run {
        checked_reason(body.reason.as_deref())?;
        return Ok(Json(Repairs { conversations: count_ailing(&state, of).await? }).into_response());
    }
    let reason = acts::required_reason(body.reason.as_deref().unwrap_or_default())?;
    let key = key.as_deref().map(|key| (key, json!(body)));
    Ok(accepted(&begin_under(&state, &operator, Work::RepairAll { of }, Some(reason), key).await?))
}
