//! `GET /ws`: clients are told what happens, as it happens or when they come back.
//!
//! ```text
//!   commit ─NOTIFY, or poll─▶ follow: reads the log ─▶ hub: whom does it concern? ─▶ connection: reads its part, renders, writes
//! ```
//!
//! One task follows the log for the whole process and wakes the connections of those whom new rows concern. Each connection
//! then reads its own part of the log, page by page, as fast as its client takes it. Nothing is kept for a client between
//! the log and the socket, so each cursor comes once, a crash loses no broadcast, and no deleted text is in any buffer.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Query, State as Extract, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::HeaderMap,
    response::Response,
    routing::any,
};
use serde::Deserialize;

use crate::{AppState, MAX_BODY_BYTES, State, auth, problem::ApiError};

mod calls;
mod connection;
pub(crate) mod follow;
mod frames;
pub(crate) mod hub;
mod receive;
mod render;

/// The subprotocol that is answered to clients that offer it. Browsers must be answered one of those they offer.
const PROTOCOL: &str = "matrix-outbox";

/// How much may wait in a connection's own buffer before the socket takes it: a frame, in effect, since each is flushed.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// How long connections may take to say goodbye when the process stops.
pub(crate) const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new().route("/ws", any(connect))
}

#[derive(Debug, Deserialize)]
struct Asked {
    since: Option<String>,
}

async fn connect(
    Extract(state): AppState,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let identity = auth::identify_websocket(&state, &headers)?;
    let upgrade = upgrade.map_err(|why| ApiError::NotAWebSocket(why.body_text()))?;
    let place = state.hub.join(identity.user_id)?;
    let since = asked.since.filter(|since| !since.is_empty());
    let tasks = state.sockets.clone();
    Ok(upgrade
        .protocols([PROTOCOL])
        .max_message_size(MAX_BODY_BYTES)
        .max_frame_size(MAX_BODY_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .on_upgrade(move |socket| tasks.track_future(connection::serve(socket, state, place, identity, since))))
}
