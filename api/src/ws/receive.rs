//! What clients send.

use axum::http::StatusCode;
use serde_json::{Map, Value};
use shared::ids::UserId;
use tokio::time::timeout;

use super::frames::{Done, Frame};
use crate::{
    REQUEST_TIMEOUT, State,
    calls::{self, CallBody, PostCall, Said},
    extract,
    messages::{self, PostMessage},
    preferences::IdempotencyKey,
    problem::ApiError,
    trace::Trace,
};

/// The longest `request_id`, in bytes.
const MAX_REQUEST_ID_LEN: usize = 255;

/// What clients may ask for.
const REQUESTS: [&str; 9] = [
    "MessageSend",
    "CallInitiate",
    "CallAnswer",
    "CallCandidates",
    "CallSelectAnswer",
    "CallNegotiate",
    "CallMetadata",
    "CallHangup",
    "CallReject",
];

/// Does what a client asks for, and says what came of it.
pub(crate) async fn answer(state: &State, user_id: UserId, text: &str) -> Frame {
    let mut request_id = None;
    match perform(state, user_id, text, &mut request_id).await {
        Ok(frame) => frame,
        Err(error) => Frame::Error { request_id, problem: Box::new(error.into_problem()) },
    }
}

async fn perform(
    state: &State,
    user_id: UserId,
    text: &str,
    request_id: &mut Option<String>,
) -> Result<Frame, ApiError> {
    let mut fields: Map<String, Value> = extract::parse(text.as_bytes())?;
    let id = take(&mut fields, "request_id")?.filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID_LEN);
    let id = id
        .ok_or_else(|| ApiError::invalid("request_id", format!("must be a text of 1 to {MAX_REQUEST_ID_LEN} bytes")))?;
    let request_id = request_id.insert(id).clone();
    state.request_limits.count(user_id)?;
    let name = take(&mut fields, "type")?.unwrap_or_default();
    let key = take(&mut fields, "idempotency_key")?;
    if let Some(key) = &key {
        IdempotencyKey::check("idempotency_key", key)?;
    }
    let trace = Trace::of_frame(REQUESTS.into_iter().find(|known| *known == name).unwrap_or("unknown"));
    let done = timeout(REQUEST_TIMEOUT, request(state, &trace, user_id, &name, key.as_deref(), fields)).await;
    let done = done.unwrap_or_else(|_| Err(ApiError::Unavailable(sqlx::Error::PoolTimedOut)));
    match &done {
        Ok((status, _)) => trace.end(status.as_u16()),
        Err(_) => trace.refuse(),
    }
    let (status, done) = done?;
    Ok(Frame::Ack { request_id, status: status.as_u16(), done })
}

/// Does what the POST of the same meaning does; its body is what is left of the fields.
async fn request(
    state: &State,
    trace: &Trace,
    user_id: UserId,
    name: &str,
    key: Option<&str>,
    fields: Map<String, Value>,
) -> Result<(StatusCode, Done), ApiError> {
    match name {
        "MessageSend" => {
            let new: PostMessage = extract::from_value(Value::Object(fields))?;
            let (status, message) = messages::post_and_read(state, trace, user_id, key, &new).await?;
            Ok((status, Done::Message(Box::new(message))))
        }
        "CallInitiate" => {
            let new: PostCall = extract::from_value(Value::Object(fields))?;
            let done = calls::place(state, trace, user_id, key, new).await?;
            Ok((done.status, Done::Call(Box::new(CallBody::read_by(user_id, *done.call)))))
        }
        "CallAnswer" => say::<calls::Answer>(state, trace, user_id, key, fields).await,
        "CallCandidates" => say::<calls::Candidates>(state, trace, user_id, key, fields).await,
        "CallSelectAnswer" => say::<calls::SelectAnswer>(state, trace, user_id, key, fields).await,
        "CallNegotiate" => say::<calls::Negotiate>(state, trace, user_id, key, fields).await,
        "CallMetadata" => say::<calls::NewMetadata>(state, trace, user_id, key, fields).await,
        "CallHangup" => say::<calls::Hangup>(state, trace, user_id, key, fields).await,
        "CallReject" => say::<calls::Reject>(state, trace, user_id, key, fields).await,
        _ => Err(ApiError::invalid(
            "type",
            "must be MessageSend, CallInitiate, CallAnswer, CallCandidates, CallSelectAnswer, CallNegotiate, \
             CallMetadata, CallHangup or CallReject",
        )),
    }
}

async fn say<T: Said>(
    state: &State,
    trace: &Trace,
    user_id: UserId,
    key: Option<&str>,
    mut fields: Map<String, Value>,
) -> Result<(StatusCode, Done), ApiError> {
    let call_id = take(&mut fields, "call_id")?.and_then(|id| id.parse().ok());
    let call_id = call_id.ok_or_else(|| ApiError::invalid("call_id", "must be the id of a call"))?;
    let said: T = extract::from_value(Value::Object(fields))?;
    let done = calls::say(state, trace, user_id, key, call_id, said).await?;
    Ok((done.status, Done::Call(Box::new(CallBody::read_by(user_id, *done.call)))))
}

/// Takes an optional text out of the fields.
fn take(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ApiError::invalid(name, "must be a text")),
    }
}
