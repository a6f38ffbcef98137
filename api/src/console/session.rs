//! Sessions: a token that somebody pastes becomes a cookie, and stands nowhere else.
//!
//! There is nothing to remember: the cookie is the token, and each request checks it. Its forms carry an HMAC of it, under
//! a key that is derived from the secret of the tokens, so that nobody else can have a form sent in its name.

use std::{fmt::Write as _, net::SocketAddr, sync::Arc};

use askama::Template;
use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, State as Extract},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Redirect, Response},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;
use shared::{database::unix_time, token::Identity};
use url::form_urlencoded;

use super::{assets, shell};
use crate::{
    AppState, MAX_BODY_BYTES, State,
    admin::{Scope, params::Params, scope::Operator},
    problem::ApiError,
};

/// The cookie's name.
const COOKIE: &str = "outbox_console";

/// The hidden field of each form.
pub(super) const FORM_FIELD: &str = "csrf";

/// A browser keeps no cookie that is much larger than this.
const LONGEST_TOKEN: usize = 3_500;

/// How many attempts to sign in an address may make in a second on average; ten times as many at once.
pub(crate) const SIGN_INS_PER_SECOND: u32 = 1;

/// What signs the forms of sessions.
#[derive(Clone)]
pub(crate) struct FormKey(Hmac<Sha256>);

impl std::fmt::Debug for FormKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FormKey").finish_non_exhaustive()
    }
}

impl FormKey {
    /// From the secret that signs tokens, and telling nothing of it.
    pub(crate) fn new(secret: &SecretString) -> anyhow::Result<Self> {
        let mut derived = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())?;
        derived.update(b"matrix-outbox console forms");
        Ok(Self(Hmac::new_from_slice(&derived.finalize().into_bytes())?))
    }

    fn sign(&self, token: &str) -> String {
        let mac = self.0.clone().chain_update(token.as_bytes()).finalize().into_bytes();
        mac.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// In constant time.
    fn is_of(&self, token: &str, given: &str) -> bool {
        let bytes: Option<Vec<u8>> = (0..given.len() / 2)
            .map(|n| given.get(2 * n..2 * n + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .collect();
        let signs = |bytes: Vec<u8>| self.0.clone().chain_update(token.as_bytes()).verify_slice(&bytes).is_ok();
        given.len().is_multiple_of(2) && bytes.is_some_and(signs)
    }
}

/// Who looks at a page.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) operator: Operator,
    /// What its forms carry.
    pub(super) form_token: String,
    /// When it ends, in seconds since 1970.
    pub(super) good_until: i64,
    token: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("operator", &self.operator).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn of(state: &State, headers: &HeaderMap, operator: Operator, good_until: i64) -> Self {
        let token = cookie(headers).unwrap_or_default().to_owned();
        Self { operator, form_token: state.forms.sign(&token), good_until, token }
    }

    /// Whether a form is of this session.
    pub(super) fn sent(&self, state: &State, form: &[u8]) -> bool {
        let given = form_urlencoded::parse(form).find(|(name, _)| name == FORM_FIELD);
        given.is_some_and(|(_, given)| state.forms.is_of(&self.token, &given))
    }
}

impl FromRequestParts<Arc<State>> for Session {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Self::Rejection> {
        // The guard puts it here.
        parts.extensions.get().cloned().ok_or_else(|| ApiError::Unauthorized("there is no session".to_owned()))
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// Whom the cookie speaks for.
pub(super) fn identity(state: &State, headers: &HeaderMap) -> Option<Identity> {
    state.tokens.identify(cookie(headers)?).ok()
}

/// Whether the browser came by https, as the proxy says that ends it.
fn by_https(headers: &HeaderMap) -> bool {
    let says = |name: &str, what: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.to_ascii_lowercase().contains(what))
    };
    says("x-forwarded-proto", "https") || says("forwarded", "proto=https")
}

fn set_cookie(headers: &HeaderMap, token: &str, seconds: i64) -> Option<HeaderValue> {
    let secure = if by_https(headers) { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={token}; Path=/console; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&cookie).ok()
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignIn {
    css: String,
    next: String,
    fault: Option<&'static str>,
}

fn answer(status: StatusCode, next: &str, fault: Option<&'static str>) -> Response {
    shell::html(status, &SignIn { css: assets::css(), next: next.to_owned(), fault })
}

pub(super) async fn form(mut params: Params) -> Response {
    let next = params.raw("next").unwrap_or_default();
    answer(StatusCode::OK, ours(&next), None)
}

/// Where to go after signing in: to a page of ours and nowhere else.
fn ours(next: &str) -> &str {
    let ours = next == "/console" || next.starts_with("/console/") || next.starts_with("/console?");
    let plain = next.chars().all(|c| c.is_ascii_graphic() && c != '\\');
    if ours && plain { next } else { "/console" }
}

/// Why nobody is signed in: nothing in it tells what is wrong with the token.
const NOT_ACCEPTED: &str = "This token is not accepted. It may have expired, or be of another installation.";
const NOT_ALLOWED: &str =
    "This token may not look at the outbox: its scope has neither outbox:read nor outbox:operate.";
const TOO_OFTEN: &str = "Too many attempts. Wait a moment, then try again.";

pub(super) async fn sign_in(Extract(state): AppState, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, MAX_BODY_BYTES).await;
    let bytes = bytes.map_err(|_| ApiError::invalid("form", "is too large"))?;
    let mut params = Params::parse(&bytes);
    let next = params.raw("next").unwrap_or_default();
    let next = ours(&next);
    let address = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
    if let Some(wait) = address.and_then(|address| state.sign_ins.refused(address)) {
        let mut response = answer(StatusCode::TOO_MANY_REQUESTS, next, Some(TOO_OFTEN));
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        return Ok(response);
    }
    let token = params.raw("token").unwrap_or_default();
    let token = token.strip_prefix("Bearer ").unwrap_or(&token).trim();
    let identity = Some(token).filter(|token| token.len() <= LONGEST_TOKEN);
    let Some(identity) = identity.and_then(|token| state.tokens.identify(token).ok()) else {
        return Ok(answer(StatusCode::UNAUTHORIZED, next, Some(NOT_ACCEPTED)));
    };
    if Operator::of(&identity, Scope::Read).is_err() {
        return Ok(answer(StatusCode::FORBIDDEN, next, Some(NOT_ALLOWED)));
    }
    let seconds = (identity.good_until - unix_time()).max(0);
    let mut response = Redirect::to(next).into_response();
    if let Some(cookie) = set_cookie(&parts.headers, token, seconds) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

pub(super) async fn sign_out(headers: HeaderMap) -> Response {
    let mut response = Redirect::to("/console/sign-in").into_response();
    if let Some(cookie) = set_cookie(&headers, "", 0) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_of_one_session_only() {
        let key = FormKey::new(&SecretString::from("a secret that is long enough for HS256")).unwrap();
        let signed = key.sign("one");
        assert!(key.is_of("one", &signed));
        assert!(!key.is_of("other", &signed));
        for wrong in ["", "zz", "0", &signed[..signed.len() - 2], &format!("{signed}00"), "ä"] {
            assert!(!key.is_of("one", wrong), "{wrong}");
        }
        let other = FormKey::new(&SecretString::from("another secret, long enough for HS256")).unwrap();
        assert!(!other.is_of("one", &signed));
    }

    #[test]
    fn after_signing_in_nobody_is_sent_elsewhere() {
        for there in ["/console", "/console/audit?by=x", "/console?done=x"] {
            assert_eq!(ours(there), there);
        }
        for elsewhere in ["", "//evil", "/consoles", "https://evil/console/", "/console/\\evil", "/console/\r\nx", "/"]
        {
            assert_eq!(ours(elsewhere), "/console", "{elsewhere}");
        }
    }
}
