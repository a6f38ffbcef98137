//! What clients send.

use serde_json::{Map, Value};
use shared::ids::UserId;
use tokio::time::timeout;

use super::frames::Frame;
use crate::{
    REQUEST_TIMEOUT, State, extract,
    messages::{self, PostMessage},
    preferences::IdempotencyKey,
    problem::ApiError,
};

/// The longest `request_id`, in bytes.
const MAX_REQUEST_ID_LEN: usize = 255;

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
    if take(&mut fields, "type")?.as_deref() != Some("MessageSend") {
        return Err(ApiError::invalid("type", "must be MessageSend"));
    }
    let key = take(&mut fields, "idempotency_key")?;
    if let Some(key) = &key {
        IdempotencyKey::check("idempotency_key", key)?;
    }
    // What is left is the body of a POST.
    let new: PostMessage = extract::from_value(Value::Object(fields))?;
    let posted = timeout(REQUEST_TIMEOUT, messages::post_and_read(state, user_id, key.as_deref(), &new)).await;
    let (status, message) = posted.map_err(|_| ApiError::Unavailable(sqlx::Error::PoolTimedOut))??;
    Ok(Frame::Ack { request_id, status: status.as_u16(), message: Box::new(message) })
}

/// Takes an optional text out of the fields.
fn take(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ApiError::invalid(name, "must be a text")),
    }
}
