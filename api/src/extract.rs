//! Extractors whose refusals say which field is wrong and why.

use std::{str::FromStr, sync::Arc};

use axum::{
    body::{Bytes, HttpBody as _},
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;

use crate::{
    MAX_BODY_BYTES, State,
    problem::{ApiError, FieldProblem},
};

/// A JSON body.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<State>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err(ApiError::UnsupportedMediaType);
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
                let reason = format!("must be at most {MAX_BODY_BYTES} bytes");
                ApiError::TooLarge(FieldProblem { field: "body".to_owned(), reason })
            } else {
                ApiError::BadJson("it could not be read to its end".to_owned())
            }
        })?;
        parse(&bytes).map(Self)
    }
}

/// A JSON body in which nothing is required: none at all is an empty one.
#[derive(Debug)]
pub(crate) struct OptionalJsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<State>> for OptionalJsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        let has_body = request.body().size_hint().exact() != Some(0);
        if !has_body && !request.headers().contains_key(header::CONTENT_TYPE) {
            return parse(b"{}").map(Self);
        }
        JsonBody::from_request(request, state).await.map(|JsonBody(body)| Self(body))
    }
}

/// Reads JSON. What is no JSON at all is told apart from a field that is wrong, a lone surrogate in a text included.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| misread(&error))?;
    reader.end().map_err(|error| ApiError::BadJson(error.to_string()))?;
    Ok(value)
}

/// Takes what was read as JSON before for a request.
pub(crate) fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| misread(&error))
}

fn misread(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let field = error.path().to_string();
    let inner = error.inner();
    // "." is the body as a whole; "?" is a key that could not even be read.
    let whole = field == "." || field == "?";
    if whole && !inner.is_data() {
        return ApiError::BadJson(inner.to_string());
    }
    let field = if whole { "body".to_owned() } else { field };
    ApiError::Invalid(vec![FieldProblem { field, reason: inner.to_string() }])
}

/// An id in the path.
#[derive(Debug)]
pub(crate) struct IdPath<T>(pub(crate) T);

impl<T: FromStr> FromRequestParts<Arc<State>> for IdPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid("path", error.to_string()))?;
        parse_id(&text).map(Self)
    }
}

/// Two ids in the path.
#[derive(Debug)]
pub(crate) struct PairPath<A, B>(pub(crate) A, pub(crate) B);

impl<A: FromStr, B: FromStr> FromRequestParts<Arc<State>> for PairPath<A, B> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        let Path((first, second)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid("path", error.to_string()))?;
        Ok(Self(parse_id(&first)?, parse_id(&second)?))
    }
}

/// An id and a text in the path.
#[derive(Debug)]
pub(crate) struct KeyPath<A>(pub(crate) A, pub(crate) String);

impl<A: FromStr> FromRequestParts<Arc<State>> for KeyPath<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        let Path((id, key)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid("path", error.to_string()))?;
        Ok(Self(parse_id(&id)?, key))
    }
}

fn parse_id<T: FromStr>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|_| ApiError::invalid("path", format!("{text:?} is not a UUID")))
}
