//! Reactions: an emoji or a short word in answer to a message. Any member may react; PUT and DELETE are idempotent.

use std::sync::Arc;

use axum::{Router, extract::State as Extract, http::StatusCode, response::Response, routing::put};
use shared::{
    chat::{self, Message, Reacted, Unreacted},
    ids::{MessageId, UserId},
    trace::TraceParent,
};
use sqlx::PgConnection;

use crate::{
    AppState, State, auth::Caller, content::check_key, extract::KeyPath, messages::rendered, problem::ApiError,
    trace::Trace, transaction::finish,
};

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new().route("/messages/{id}/reactions/{key}", put(add).delete(remove))
}

async fn add(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    KeyPath(id, key): KeyPath<MessageId>,
) -> Result<Response, ApiError> {
    check_key(&key)?;
    let mut tx = state.pool.begin().await?;
    let written = write(&mut tx, &state, trace.parent(), caller.user_id, id, &key).await;
    let (reacted, message) = finish(tx, &trace, written).await?;
    let status = match reacted {
        Reacted::Already => StatusCode::OK,
        Reacted::Added { open, .. } => {
            state.committed(open.is_some());
            StatusCode::CREATED
        }
    };
    Ok(rendered(status, message, caller.user_id, None))
}

async fn write(
    tx: &mut PgConnection,
    state: &State,
    trace: Option<TraceParent>,
    reactor: UserId,
    id: MessageId,
    key: &str,
) -> Result<(Reacted, Message), ApiError> {
    let head = chat::find_message(tx, id, reactor).await?;
    let turn = chat::take_turn(tx, head.conversation_id, reactor).await?.traced(trace);
    let reacted = chat::add_reaction(tx, &turn, &state.keys, id, reactor, key, state.matrix_enabled).await?;
    if let Reacted::Added { open: Some(open), .. } = reacted
        && open > state.lane_limit
    {
        return Err(ApiError::LaneFull { limit: state.lane_limit });
    }
    Ok((reacted, chat::message(tx, &state.keys, id, reactor).await?))
}

async fn remove(
    Extract(state): AppState,
    caller: Caller,
    trace: Trace,
    KeyPath(id, key): KeyPath<MessageId>,
) -> Result<StatusCode, ApiError> {
    check_key(&key)?;
    let mut tx = state.pool.begin().await?;
    let head = chat::find_message(&mut tx, id, caller.user_id).await?;
    let mut turn = chat::take_turn(&mut tx, head.conversation_id, caller.user_id).await?.traced(trace.parent());
    let removed = chat::remove_reaction(&mut tx, &mut turn, &state.keys, id, caller.user_id, &key).await?;
    match removed {
        Unreacted::NotThere => tx.rollback().await?,
        Unreacted::Removed { to_send, .. } => {
            trace.commit(tx).await?;
            state.committed(to_send);
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
