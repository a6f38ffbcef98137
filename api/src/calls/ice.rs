//! `GET /calls/ice_servers`: by what the devices of a call reach each other.

use axum::{
    Json,
    extract::{Query, State as Extract, rejection::QueryRejection},
    http::header,
    response::{IntoResponse as _, Response},
};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use shared::{
    calls::Status,
    config::{TurnConfig, TurnCredentials},
    database,
    ids::{CallId, UserId},
    turn::{self, Credentials},
};
use time::OffsetDateTime;

use super::read_call;
use crate::{AppState, State, auth::Caller, problem::ApiError};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    call_id: Option<CallId>,
}

/// As `RTCPeerConnection` takes it.
#[derive(Debug, Serialize)]
struct IceServer {
    urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
}

#[derive(Debug, Serialize)]
struct IceServers {
    #[serde(rename = "ice_servers")]
    servers: Vec<IceServer>,
    /// For how long all of them can be used; none for ever.
    ttl_seconds: Option<i64>,
    #[serde(with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

impl IceServer {
    fn open(urls: &[String]) -> Self {
        Self { urls: urls.to_owned(), username: None, credential: None }
    }

    fn guarded(urls: &[String], credentials: &Credentials) -> Self {
        Self {
            urls: urls.to_owned(),
            username: Some(credentials.username.clone()),
            credential: Some(credentials.password.expose_secret().to_owned()),
        }
    }
}

pub(super) async fn servers(
    Extract(state): AppState,
    caller: Caller,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(Asked { call_id }) = asked.map_err(|error| ApiError::invalid("query", error.body_text()))?;
    let body = list(&state, caller.user_id, call_id).await?;
    // Credentials are nobody else's.
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

async fn list(state: &State, user_id: UserId, call_id: Option<CallId>) -> Result<IceServers, ApiError> {
    let mut conn = state.pool.acquire().await?;
    if let Some(call_id) = call_id
        && read_call(&mut conn, call_id, user_id).await?.status == Status::Ended
    {
        return Err(ApiError::CallEnded);
    }
    let now = database::now(&mut conn).await?;
    let mut servers = Vec::new();
    let mut ends = Vec::new();
    if !state.ice.stun_urls.is_empty() {
        servers.push(IceServer::open(&state.ice.stun_urls));
    }
    if let Some(TurnConfig { urls, credentials }) = &state.ice.turn {
        match credentials {
            TurnCredentials::Static { username, password } => {
                let credentials = Credentials { username: username.clone(), password: password.clone() };
                servers.push(IceServer::guarded(urls, &credentials));
            }
            TurnCredentials::Shared { secrets, ttl } => {
                let good_until = now + *ttl;
                ends.push(good_until);
                // While a secret is replaced, servers know the one or the other: browsers try all that they are given.
                servers.extend(
                    secrets.iter().map(|secret| {
                        IceServer::guarded(urls, &turn::credentials(secret, good_until, user_id, call_id))
                    }),
                );
            }
        }
    }
    if state.voip.turn_from_homeserver
        && let Some(found) = turn::of_homeserver(&mut conn, &state.keys).await?
    {
        ends.push(found.expires_at);
        servers.push(IceServer::guarded(&found.uris, &found.credentials));
    }
    let expires_at = ends.into_iter().min();
    let ttl_seconds = expires_at.map(|expires_at| (expires_at - now).whole_seconds());
    Ok(IceServers { servers, ttl_seconds, expires_at })
}
