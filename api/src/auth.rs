//! The caller of a request.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use shared::{
    ids::UserId,
    token::{Identity, TokenError},
};

use crate::{State, problem::ApiError};

/// What a browser puts before its token among the subprotocols of a WebSocket: it cannot set headers there.
const TOKEN_PROTOCOL: &str = "bearer.";

/// The caller of a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) user_id: UserId,
}

impl FromRequestParts<Arc<State>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        identify(state, &parts.headers).map(|identity| Self { user_id: identity.user_id })
    }
}

/// Whom the token of the header speaks for.
pub(crate) fn identify(state: &State, headers: &HeaderMap) -> Result<Identity, ApiError> {
    let token = header_token(headers)?.ok_or_else(|| unauthorized("there is no token"))?;
    state.tokens.identify(token).map_err(refused)
}

fn unauthorized(why: &str) -> ApiError {
    ApiError::Unauthorized(why.to_owned())
}

fn refused(error: TokenError) -> ApiError {
    unauthorized(&error.to_string())
}

/// The token of the header, if there is one.
fn header_token(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(header) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    header
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| Some(token.trim()))
        .ok_or_else(|| unauthorized("the Authorization header is not `Bearer <JWT>`"))
}

/// Who opens a WebSocket: by the header, or by a subprotocol `bearer.<JWT>`.
pub(crate) fn identify_websocket(state: &State, headers: &HeaderMap) -> Result<Identity, ApiError> {
    let token = match header_token(headers)? {
        Some(token) => token,
        None => headers
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(|protocol| protocol.trim().strip_prefix(TOKEN_PROTOCOL))
            .ok_or_else(|| unauthorized("there is no token, neither a header nor a subprotocol `bearer.<JWT>`"))?,
    };
    state.tokens.identify(token).map_err(refused)
}
