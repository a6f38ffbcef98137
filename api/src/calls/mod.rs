//! Calls: placed, answered, changed and ended by our own clients. What they mean is decided in [`shared::calls`]; each is
//! written in one transaction with what goes to Matrix, and answered after its commit.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State as Extract, rejection::QueryRejection},
    http::{HeaderValue, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::{
    call_limits::{self, Callee},
    calls::{self, Call, CallsRequest, NewCall},
    chat,
    idempotency::{self, Entry, Pending},
    ids::{CallId, ConversationId, UserId},
    outbox::Delivery,
    trace::TraceParent,
};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use crate::{
    AppState, State,
    auth::Caller,
    extract::{IdPath, JsonBody, OptionalJsonBody},
    messages::{LOOK_AT_LEAST_EVERY, LOOK_FIRST_AFTER},
    preferences::{IdempotencyKey, Page, Wait},
    problem::ApiError,
    trace::Trace,
    transaction::finish,
};

mod body;
mod ice;
mod said;

use body::{CallPage, JoinableBody};

pub(crate) use body::CallBody;
pub(crate) use said::{Answer, Candidates, Hangup, Negotiate, NewMetadata, PostCall, Reject, Said, SelectAnswer};

const INITIATE: &str = "POST /calls/initiate";

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/calls", get(list))
        .route("/calls/initiate", post(initiate))
        .route("/calls/ice_servers", get(ice::servers))
        .route("/calls/{id}", get(read))
        .route("/calls/{id}/answer", post(speak::<Answer>))
        .route("/calls/{id}/candidates", post(speak::<Candidates>))
        .route("/calls/{id}/select_answer", post(speak::<SelectAnswer>))
        .route("/calls/{id}/negotiate", post(speak::<Negotiate>))
        .route("/calls/{id}/metadata", post(speak::<NewMetadata>))
        .route("/calls/{id}/hangup", post(speak::<Hangup>))
        .route("/calls/{id}/reject", post(speak::<Reject>))
}

/// What came of a request.
pub(crate) struct Done {
    pub(crate) status: StatusCode,
    pub(crate) call: Box<Call>,
    /// It was done now, not by an earlier request with the same key.
    now: bool,
}

/// A call, for one who takes part in it.
async fn read_call(conn: &mut PgConnection, call_id: CallId, reader: UserId) -> Result<Call, ApiError> {
    let conversation_id = conversation_of(conn, call_id).await?;
    let call = calls::call(conn, conversation_id, call_id, reader).await?;
    if takes_part(&call, reader) { Ok(call) } else { Err(ApiError::NotInCall) }
}

/// Whether somebody calls or is called.
pub(crate) fn takes_part(call: &Call, user_id: UserId) -> bool {
    call.initiator_id == user_id || call.invitee_id.is_none_or(|invitee_id| invitee_id == user_id)
}

async fn conversation_of(conn: &mut PgConnection, call_id: CallId) -> Result<ConversationId, ApiError> {
    calls::conversation_of_call(conn, call_id).await?.ok_or(ApiError::NotFound("call"))
}

/// Places a call, unless its key was answered before: the one way by which clients place calls.
pub(crate) async fn place(
    state: &State,
    trace: &Trace,
    initiator_id: UserId,
    key: Option<&str>,
    new: PostCall,
) -> Result<Done, ApiError> {
    new.check()?;
    let mut tx = state.pool.begin().await?;
    let placed = write_call(&mut tx, state, trace.parent(), initiator_id, key, new).await;
    let placed = finish(tx, trace, placed).await?;
    if placed.now {
        state.committed(state.voip.enabled);
    }
    Ok(placed)
}

async fn write_call(
    tx: &mut PgConnection,
    state: &State,
    trace: Option<TraceParent>,
    initiator_id: UserId,
    key: Option<&str>,
    new: PostCall,
) -> Result<Done, ApiError> {
    let pending = match enter(tx, state, initiator_id, INITIATE, key, &new).await? {
        Entered::Before(status, call_id) => return again(tx, status, call_id, initiator_id).await,
        Entered::Now(pending) => pending,
    };
    let conversation_id = new.conversation_id;
    let mut turn = chat::take_turn(tx, conversation_id, initiator_id).await?.traced(trace);
    let call_id = CallId::generate();
    let lifetime = new.lifetime();
    let call = NewCall {
        call_id,
        initiator_id,
        party_id: new.party_id,
        invitee_id: new.invitee,
        lifetime,
        sdp: new.sdp_offer,
        sdp_stream_metadata: new.sdp_stream_metadata.map(Value::Object),
        on_matrix: state.voip.enabled,
    };
    calls::initiate(tx, &mut turn, &state.keys, &call).await?;
    let placed = calls::call(tx, conversation_id, call_id, initiator_id).await?;
    let callee = placed.invitee_id.map_or(Callee::All(conversation_id), Callee::One);
    call_limits::count(tx, state.call_limits, initiator_id, callee).await?;
    if let Some(pending) = pending {
        pending.record(tx, StatusCode::CREATED.as_u16(), call_id.as_uuid()).await?;
    }
    Ok(Done { status: StatusCode::CREATED, call: Box::new(placed), now: true })
}

/// Says something in a call, unless its key was answered before: the one way by which clients do.
pub(crate) async fn say<T: Said>(
    state: &State,
    trace: &Trace,
    user_id: UserId,
    key: Option<&str>,
    call_id: CallId,
    said: T,
) -> Result<Done, ApiError> {
    said.check()?;
    let mut tx = state.pool.begin().await?;
    let done = write_said(&mut tx, state, trace.parent(), user_id, key, call_id, said).await;
    let done = finish(tx, trace, done).await?;
    if done.now {
        state.committed(state.matrix_enabled);
    }
    Ok(done)
}

/// What a key's fingerprint is made of.
#[derive(Serialize)]
struct InCall<'a, T> {
    call_id: CallId,
    said: &'a T,
}

async fn write_said<T: Said>(
    tx: &mut PgConnection,
    state: &State,
    trace: Option<TraceParent>,
    user_id: UserId,
    key: Option<&str>,
    call_id: CallId,
    said: T,
) -> Result<Done, ApiError> {
    let request = InCall { call_id, said: &said };
    let pending = match enter(tx, state, user_id, T::ROUTE, key, &request).await? {
        Entered::Before(status, call_id) => return again(tx, status, call_id, user_id).await,
        Entered::Now(pending) => pending,
    };
    let conversation_id = conversation_of(tx, call_id).await?;
    let mut turn = chat::take_turn(tx, conversation_id, user_id).await?.traced(trace);
    let (party_id, saying) = said.into_saying();
    calls::say(tx, &mut turn, &state.keys, call_id, user_id, party_id.as_deref(), saying).await?;
    if let Some(pending) = pending {
        pending.record(tx, StatusCode::OK.as_u16(), call_id.as_uuid()).await?;
    }
    let call = Box::new(calls::call(tx, conversation_id, call_id, user_id).await?);
    Ok(Done { status: StatusCode::OK, call, now: true })
}

/// Whether a request was answered before.
enum Entered {
    Now(Option<Pending>),
    Before(StatusCode, CallId),
}

async fn enter(
    tx: &mut PgConnection,
    state: &State,
    user_id: UserId,
    route: &'static str,
    key: Option<&str>,
    request: &impl Serialize,
) -> Result<Entered, ApiError> {
    let Some(key) = key else { return Ok(Entered::Now(None)) };
    let request = serde_json::to_vec(request).map_err(|error| ApiError::Internal(error.into()))?;
    Ok(match idempotency::enter(tx, &state.keys, user_id, route, key, &request).await? {
        Entry::New(pending) => Entered::Now(Some(pending)),
        Entry::Done { status, resource_id } => {
            Entered::Before(StatusCode::from_u16(status).unwrap_or(StatusCode::OK), CallId::from(resource_id))
        }
    })
}

async fn again(tx: &mut PgConnection, status: StatusCode, call_id: CallId, reader: UserId) -> Result<Done, ApiError> {
    let call = Box::new(read_call(tx, call_id, reader).await?);
    Ok(Done { status, call, now: false })
}

/// Reads a call, waiting until the delivery of its invite has ended if that is asked.
async fn read_waiting(
    state: &State,
    call_id: CallId,
    reader: UserId,
    wait: Option<Duration>,
) -> Result<Call, ApiError> {
    let until = wait.map(|wait| Instant::now() + wait);
    let waiting = state.waiting.try_acquire().ok();
    let mut pause = LOOK_FIRST_AFTER;
    loop {
        let call = {
            let mut conn = state.pool.acquire().await?;
            read_call(&mut conn, call_id, reader).await?
        };
        let under_way = matches!(call.delivery, Some(Delivery::Pending | Delivery::Delivering));
        if !under_way || waiting.is_none() || until.is_none_or(|until| Instant::now() >= until) {
            return Ok(call);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_AT_LEAST_EVERY);
    }
}

fn rendered(status: StatusCode, body: impl Serialize, waited: Option<Duration>) -> Response {
    let mut response = (status, Json(body)).into_response();
    if let Some(waited) = waited
        && let Ok(applied) = HeaderValue::from_str(&format!("wait={}", waited.as_secs()))
    {
        response.headers_mut().insert("preference-applied", applied);
    }
    response
}

async fn initiate(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    IdempotencyKey(key): IdempotencyKey,
    Wait(wait): Wait,
    JsonBody(new): JsonBody<PostCall>,
) -> Result<Response, ApiError> {
    let Done { status, call, .. } = place(&state, &trace, caller.user_id, key.as_deref(), new).await?;
    let call = match wait {
        // It is committed, so that is the answer whatever becomes of the wait.
        Some(_) => read_waiting(&state, call.call_id, caller.user_id, wait).await.unwrap_or(*call),
        None => *call,
    };
    Ok(rendered(status, CallBody::read_by(caller.user_id, call), wait))
}

async fn speak<T: Said>(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    IdempotencyKey(key): IdempotencyKey,
    IdPath(call_id): IdPath<CallId>,
    OptionalJsonBody(said): OptionalJsonBody<T>,
) -> Result<Response, ApiError> {
    let Done { status, call, .. } = say(&state, &trace, caller.user_id, key.as_deref(), call_id, said).await?;
    Ok(rendered(status, CallBody::read_by(caller.user_id, *call), None))
}

async fn read(
    Extract(state): AppState,
    caller: Caller,
    Wait(wait): Wait,
    IdPath(call_id): IdPath<CallId>,
) -> Result<Response, ApiError> {
    let call = read_waiting(&state, call_id, caller.user_id, wait).await?;
    let mut conn = state.pool.acquire().await?;
    let session = calls::session(&mut conn, &state.keys, &call).await?;
    Ok(rendered(StatusCode::OK, JoinableBody::read_by(caller.user_id, call, session), wait))
}

/// What a list is narrowed by, beside the page.
#[derive(Debug, Deserialize)]
struct Narrowed {
    conversation_id: Option<ConversationId>,
    #[serde(default)]
    missed: bool,
}

async fn list(
    Extract(state): AppState,
    caller: Caller,
    page: Page,
    narrowed: Result<Query<Narrowed>, QueryRejection>,
) -> Result<Json<CallPage>, ApiError> {
    let Query(Narrowed { conversation_id, missed }) =
        narrowed.map_err(|error| ApiError::invalid("query", error.body_text()))?;
    let before = page.cursor::<CallId>()?;
    let mut conn = state.pool.acquire().await?;
    if let Some(conversation_id) = conversation_id {
        chat::conversation(&mut conn, conversation_id, caller.user_id).await?;
    }
    // One more than asked tells whether another page follows.
    let request = CallsRequest { conversation_id, missed, before, limit: page.limit + 1 };
    let mut calls = calls::calls(&mut conn, caller.user_id, &request).await?;
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let more = calls.len() > limit;
    calls.truncate(limit);
    let next_cursor = calls.last().filter(|_| more).map(|call| call.call_id);
    let calls = calls.into_iter().map(|call| CallBody::read_by(caller.user_id, call)).collect();
    Ok(Json(CallPage { calls, next_cursor }))
}
