//! Who may see a page, and which forms are ours.

use std::sync::Arc;

use axum::{
    body::{Bytes, to_bytes},
    extract::{FromRequestParts, Request, State as Extract},
    http::{HeaderMap, Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Redirect, Response},
};
use url::form_urlencoded;

use super::{
    session::{self, Session},
    shell,
};
use crate::{
    MAX_BODY_BYTES, State,
    admin::{Scope, params::Params, scope::Operator},
    problem::{ApiError, Problem},
};

/// A form that was sent, as its handler reads it. The guard has checked that it is ours.
#[derive(Debug, Clone)]
struct Sent(Bytes);

/// The fields of a form.
#[derive(Debug)]
pub(super) struct Form(pub(super) Params);

impl FromRequestParts<Arc<State>> for Form {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Self::Rejection> {
        let sent: Option<&Sent> = parts.extensions.get();
        let mut params = Params::parse(sent.map(|sent| &*sent.0).unwrap_or_default());
        params.raw(session::FORM_FIELD);
        Ok(Self(params))
    }
}

/// Lets pass who has a session with the scope of a page; whoever has none is asked to sign in.
pub(super) async fn guard(
    Extract((state, scope)): Extract<(Arc<State>, Scope)>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(identity) = session::identity(&state, request.headers()) else {
        return sign_in_first(&request);
    };
    let signed_in = Operator::of(&identity, Scope::Read);
    let Ok(operator) = signed_in else { return shell::bare_fault(&ApiError::MissingScope(Scope::Read).into_problem()) };
    let session = Session::of(&state, request.headers(), operator.clone(), identity.good_until);
    if let Err(refused) = Operator::of(&identity, scope) {
        return shell::fault(&session, &refused.into_problem());
    }
    if request.method() == Method::POST {
        let (parts, body) = request.into_parts();
        let Ok(bytes) = to_bytes(body, MAX_BODY_BYTES).await else {
            return shell::fault(&session, &ApiError::invalid("form", "is too large").into_problem());
        };
        if !is_ours(&parts.headers) || !session.sent(&state, &bytes) {
            return shell::fault(&session, &ApiError::ForeignForm.into_problem());
        }
        request = Request::from_parts(parts, axum::body::Body::empty());
        request.extensions_mut().insert(Sent(bytes));
    }
    request.extensions_mut().insert(operator);
    request.extensions_mut().insert(session.clone());
    let response = next.run(request).await;
    match response.extensions().get::<Problem>() {
        Some(problem) => shell::fault(&session, problem),
        None => response,
    }
}

/// For pages that anybody may see.
pub(super) async fn open(request: Request, next: Next) -> Response {
    let ours = request.method() != Method::POST || is_ours(request.headers());
    let response = if ours { next.run(request).await } else { ApiError::ForeignForm.into_response() };
    match response.extensions().get::<Problem>() {
        Some(problem) => shell::bare_fault(problem),
        None => response,
    }
}

fn sign_in_first(request: &Request) -> Response {
    let asked = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    if request.method() != Method::GET {
        return Redirect::to("/console/sign-in").into_response();
    }
    // Whoever follows a link from elsewhere is sent without the cookie: the same link from a page of ours brings it.
    if request.headers().get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        return shell::once_more(&asked);
    }
    let next: String = form_urlencoded::Serializer::new(String::new()).append_pair("next", &asked).finish();
    Redirect::to(&format!("/console/sign-in?{next}")).into_response()
}

/// False for a form that another site had sent. Browsers say so of what comes by https; of what comes otherwise they name
/// the origin: of our pages they do, since those ask for it (`referrer-policy`), and who hides it is somebody else.
fn is_ours(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site") {
        return site == "same-origin" || site == "none";
    }
    let Some(origin) = text(header::ORIGIN.as_str()) else { return true };
    let origin = origin.split_once("://").map_or(origin, |(_, host)| host);
    [text(header::HOST.as_str()), text("x-forwarded-host")].into_iter().flatten().any(|host| host == origin)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_form_that_another_site_sends_is_not_ours() {
        let ours = |headers: &[(&str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
            is_ours(&map)
        };
        assert!(ours(&[("sec-fetch-site", "same-origin")]));
        assert!(ours(&[("host", "ops:8080"), ("origin", "http://ops:8080")]));
        assert!(ours(&[("host", "inner"), ("x-forwarded-host", "ops.example"), ("origin", "https://ops.example")]));
        assert!(!ours(&[("host", "ops:8080"), ("origin", "null")]));
        assert!(!ours(&[("sec-fetch-site", "cross-site")]));
        assert!(!ours(&[("sec-fetch-site", "same-site"), ("host", "ops"), ("origin", "https://ops")]));
        assert!(!ours(&[("host", "ops:8080"), ("origin", "http://evil")]));
    }
}
