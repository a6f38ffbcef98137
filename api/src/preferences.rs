//! What clients ask for in headers and queries: idempotency keys, waiting, revisions, pages.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use serde::Deserialize;

use crate::{State, problem::ApiError};

/// The longest time that a request may wait for its delivery.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// The longest key, in bytes.
const MAX_KEY_LEN: usize = 255;

/// How many items a page has when nothing is asked, and at most.
const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 200;

fn header<'a>(parts: &'a Parts, name: &str) -> Result<Option<&'a str>, ApiError> {
    parts
        .headers
        .get(name)
        .map(|value| value.to_str().map_err(|_| ApiError::invalid(name, "must be plain ASCII")))
        .transpose()
}

/// `Idempotency-Key`.
#[derive(Debug)]
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

impl FromRequestParts<Arc<State>> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Self::Rejection> {
        let key = header(parts, "Idempotency-Key")?;
        key.map(|key| Self::check("Idempotency-Key", key)).transpose()?;
        Ok(Self(key.map(str::to_owned)))
    }
}

impl IdempotencyKey {
    /// Refuses what is no key, wherever it was given.
    pub(crate) fn check(field: &str, key: &str) -> Result<(), ApiError> {
        if key.is_empty() || key.len() > MAX_KEY_LEN || !key.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
            return Err(ApiError::invalid(field, format!("must have 1 to {MAX_KEY_LEN} characters of plain ASCII")));
        }
        Ok(())
    }
}

/// `Prefer: wait=<seconds>`: how long to wait for the delivery before answering. Other preferences are ignored, as the
/// header's definition asks.
#[derive(Debug)]
pub(crate) struct Wait(pub(crate) Option<Duration>);

impl FromRequestParts<Arc<State>> for Wait {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Self::Rejection> {
        let wait = header(parts, "Prefer")?
            .unwrap_or_default()
            .split([',', ';'])
            .find_map(|preference| preference.trim().strip_prefix("wait=")?.trim().parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds).min(MAX_WAIT));
        Ok(Self(wait))
    }
}

/// `If-Match: "<revision>"`: the revision that the client has.
#[derive(Debug)]
pub(crate) struct IfMatch(pub(crate) Option<i32>);

impl FromRequestParts<Arc<State>> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Self::Rejection> {
        let Some(tag) = header(parts, "If-Match")?.filter(|tag| *tag != "*") else { return Ok(Self(None)) };
        let revision = tag.trim().trim_start_matches("W/").trim_matches('"').parse();
        revision
            .map(|revision| Self(Some(revision)))
            .map_err(|_| ApiError::invalid("If-Match", "must be the ETag of the message, its revision in quotes"))
    }
}

/// `?limit=` and `?cursor=` of a list.
#[derive(Debug, Deserialize)]
struct RawPage {
    limit: Option<i64>,
    cursor: Option<String>,
}

/// A page of a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) limit: i64,
    pub(crate) cursor: Option<String>,
}

impl Page {
    /// The cursor as what it stands for.
    pub(crate) fn cursor<T: std::str::FromStr>(&self) -> Result<Option<T>, ApiError> {
        self.cursor
            .as_deref()
            .map(|cursor| cursor.parse().map_err(|_| ApiError::invalid("cursor", "must be the next_cursor of a page")))
            .transpose()
    }
}

impl FromRequestParts<Arc<State>> for Page {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        let Query(raw) = Query::<RawPage>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid("query", error.body_text()))?;
        let limit = raw.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::invalid("limit", format!("must be from 1 to {MAX_LIMIT}")));
        }
        Ok(Self { limit, cursor: raw.cursor.filter(|cursor| !cursor.is_empty()) })
    }
}
