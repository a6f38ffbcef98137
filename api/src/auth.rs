//! The caller of a request.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};
use shared::ids::UserId;

use crate::{State, problem::ApiError};

/// The caller of a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) user_id: UserId,
}

impl FromRequestParts<Arc<State>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        let unauthorized = |why: &str| ApiError::Unauthorized(why.to_owned());
        let header = parts.headers.get(header::AUTHORIZATION).ok_or_else(|| unauthorized("there is no token"))?;
        let token = header
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| unauthorized("the Authorization header is not `Bearer <JWT>`"))?;
        let identity = state.tokens.identify(token).map_err(|error| unauthorized(&error.to_string()))?;
        Ok(Self { user_id: identity.user_id })
    }
}
