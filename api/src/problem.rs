//! Errors as clients see them: RFC 9457 `application/problem+json` with a stable `code`, all made in one table.

use std::{any::Any, collections::BTreeSet, time::Duration};

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use shared::{
    call_limits::{LimitError, Role},
    calls::{self, CallError},
    chat::{self, ChatError},
    database,
    idempotency::IdempotencyError,
    metric,
    outbox::Refused,
    seal::SealError,
    turn::TurnError,
};
use uuid::Uuid;

use crate::admin::Scope;

/// How long a client should wait before it repeats a request that met an absent database, in seconds.
const RETRY_AFTER_SECONDS: u64 = 2;

/// What is wrong with one field of a request.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FieldProblem {
    pub(crate) field: String,
    pub(crate) reason: String,
}

/// Everything that a request can be refused with.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// No usable token.
    Unauthorized(String),
    /// A token without what an operator's route asks for.
    MissingScope(Scope),
    /// A form of the console that was not of its session.
    ForeignForm,
    /// An operator's act that would change nothing, with the reasons.
    Refused(Vec<Refused>),
    /// What was asked for does not exist.
    NotFound(&'static str),
    /// The caller may not.
    NotAMember,
    /// Only the author may.
    NotTheAuthor,
    /// The message is deleted.
    Deleted,
    /// The message has another revision by now.
    AnotherRevision(i32),
    /// The message has as many reactions as it takes.
    TooManyReactions,
    /// The call is between others.
    NotInCall,
    /// The call is over.
    CallEnded,
    /// Another device's answer counts.
    AnsweredElsewhere,
    /// Not in the call's present state.
    IllegalCallState,
    /// The device's name is another user's in this call.
    PartyTaken,
    /// The device has named as many candidates as are taken.
    TooManyCandidates,
    /// There were as many as are allowed in this time.
    RateLimited {
        why: String,
        retry_after: Duration,
    },
    /// Made on Matrix by the user's own account there.
    MadeOnMatrix,
    /// An idempotency key that cannot be used now, or not for this.
    KeyInFlight(String),
    KeyOfAnotherRequest(String),
    /// No JSON at all.
    BadJson(String),
    /// Fields that are wrong.
    Invalid(Vec<FieldProblem>),
    /// A field, or the whole body, that is too large.
    TooLarge(FieldProblem),
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// More is waiting in the conversation than is accepted.
    LaneFull {
        limit: i32,
    },
    /// The user has as many connections as one may have.
    TooManyConnections {
        limit: usize,
    },
    /// This process has as many connections as it takes.
    Full,
    /// Not the handshake of a WebSocket.
    NotAWebSocket(String),
    /// The database is away.
    Unavailable(sqlx::Error),
    /// A fault of ours.
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

impl ApiError {
    pub(crate) fn invalid(field: &str, reason: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldProblem { field: field.to_owned(), reason: reason.into() }])
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        if database::is_unavailable(&error) { Self::Unavailable(error) } else { Self::Internal(error.into()) }
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        match error {
            ChatError::NoSuchConversation => Self::NotFound("conversation"),
            ChatError::NoSuchMessage => Self::NotFound("message"),
            ChatError::NotAMember => Self::NotAMember,
            ChatError::NotTheAuthor => Self::NotTheAuthor,
            ChatError::Deleted => Self::Deleted,
            ChatError::AnotherRevision(revision) => Self::AnotherRevision(revision),
            ChatError::NoSuchReplyTarget => Self::invalid("reply_to", error.to_string()),
            ChatError::NoSuchThread => Self::invalid("thread_of", error.to_string()),
            ChatError::TooManyReactions => Self::TooManyReactions,
            ChatError::MadeOnMatrix => Self::MadeOnMatrix,
            ChatError::Seal(error) => error.into(),
            ChatError::Database(error) => error.into(),
        }
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NoSuchCall => Self::NotFound("call"),
            CallError::NotAMember => Self::NotAMember,
            CallError::NotInCall => Self::NotInCall,
            CallError::Ended => Self::CallEnded,
            CallError::AnsweredElsewhere => Self::AnsweredElsewhere,
            CallError::IllegalState => Self::IllegalCallState,
            CallError::PartyTaken => Self::PartyTaken,
            CallError::NoSuchParty => Self::invalid("party_id", error.to_string()),
            CallError::NoSuchInvitee => Self::invalid("invitee", error.to_string()),
            CallError::TooManyCandidates => Self::TooManyCandidates,
            CallError::TooLarge => {
                let reason = format!("must be at most {} bytes in an event", calls::MAX_SIGNAL_BYTES);
                Self::TooLarge(FieldProblem { field: "body".to_owned(), reason })
            }
            CallError::Damaged => Self::Internal(error.into()),
            CallError::Seal(error) => error.into(),
            CallError::Database(error) => error.into(),
        }
    }
}

impl From<LimitError> for ApiError {
    fn from(error: LimitError) -> Self {
        match error {
            LimitError::Reached { role, limit, retry_after } => {
                metric::CALLS_LIMITED.with([role.as_str()]).increment(1);
                let why = match role {
                    Role::Caller => format!("you may place {limit} calls in a minute"),
                    Role::Callee => format!("whom you call may be rung for {limit} calls in a minute"),
                };
                Self::RateLimited { why, retry_after }
            }
            LimitError::Database(error) => error.into(),
        }
    }
}

impl From<TurnError> for ApiError {
    fn from(error: TurnError) -> Self {
        match error {
            TurnError::Seal(error) => error.into(),
            TurnError::Database(error) => error.into(),
        }
    }
}

impl From<IdempotencyError> for ApiError {
    fn from(error: IdempotencyError) -> Self {
        match error {
            IdempotencyError::InFlight => Self::KeyInFlight(error.to_string()),
            IdempotencyError::AnotherRequest => Self::KeyOfAnotherRequest(error.to_string()),
            IdempotencyError::Seal(error) => error.into(),
            IdempotencyError::Database(error) => error.into(),
        }
    }
}

impl From<SealError> for ApiError {
    fn from(error: SealError) -> Self {
        Self::Internal(error.into())
    }
}

/// The body of every error.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Problem {
    r#type: String,
    pub(crate) title: &'static str,
    pub(crate) status: u16,
    code: &'static str,
    pub(crate) detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<FieldProblem>,
    /// What an operator's act did not touch, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<Refused>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_id: Option<Uuid>,
    /// Where the time is known: when to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            r#type: format!("urn:matrix-outbox:problem:{code}"),
            title,
            status: status.as_u16(),
            code,
            detail: detail.into(),
            errors: Vec::new(),
            refused: Vec::new(),
            error_id: None,
            retry_after_seconds: None,
        }
    }

    fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after_seconds = Some(retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0));
        self
    }

    fn with_errors(mut self, errors: Vec<FieldProblem>) -> Self {
        self.errors = errors;
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after_seconds.unwrap_or(RETRY_AFTER_SECONDS);
        // The console shows it as a page.
        let problem = self.clone();
        let mut response = (status, Json(self)).into_response();
        response.extensions_mut().insert(problem);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.into_problem().into_response()
    }
}

impl ApiError {
    /// The one table from errors to what clients see. A fault of ours is logged here.
    #[expect(clippy::too_many_lines, reason = "one table")]
    pub(crate) fn into_problem(self) -> Problem {
        match self {
            Self::Unauthorized(why) => Problem::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "No usable token",
                format!("{why}; send `Authorization: Bearer <JWT>` with `sub` (a user's UUID) and `exp`"),
            ),
            Self::MissingScope(scope) => Problem::new(
                StatusCode::FORBIDDEN,
                "missing_scope",
                "The token may not do this",
                format!("this takes a token whose `scope` has `{}`", scope.as_str()),
            ),
            Self::ForeignForm => Problem::new(
                StatusCode::FORBIDDEN,
                "foreign_form",
                "This form is not of your session",
                "nothing was changed; you may have signed in anew since the page was opened: open it again",
            ),
            Self::Refused(refused) => {
                let reasons: BTreeSet<_> = refused.iter().map(|refused| refused.in_words).collect();
                let detail = reasons.into_iter().collect::<Vec<_>>().join("; ");
                let mut problem = Problem::new(StatusCode::CONFLICT, "refused", "Nothing was changed", detail);
                problem.refused = refused;
                problem
            }
            Self::NotFound(what) => {
                Problem::new(StatusCode::NOT_FOUND, "not_found", "Not found", format!("there is no such {what}"))
            }
            Self::NotAMember => Problem::new(
                StatusCode::FORBIDDEN,
                "not_a_member",
                "Not a member",
                "you are not a member of this conversation",
            ),
            Self::NotTheAuthor => Problem::new(
                StatusCode::FORBIDDEN,
                "not_the_author",
                "Not the author",
                "only the author of a message may edit or delete it",
            ),
            Self::Deleted => Problem::new(
                StatusCode::CONFLICT,
                "message_deleted",
                "The message is deleted",
                "a deleted message can neither be edited nor reacted to",
            ),
            Self::TooManyReactions => Problem::new(
                StatusCode::CONFLICT,
                "too_many_reactions",
                "Too many reactions",
                format!(
                    "a message takes {} reactions, {} of them by one user",
                    chat::MAX_REACTIONS,
                    chat::MAX_REACTIONS_OF_ONE
                ),
            ),
            Self::MadeOnMatrix => Problem::new(
                StatusCode::CONFLICT,
                "made_on_matrix",
                "Made on Matrix",
                "your account on Matrix made it; it can only be changed or removed with that account",
            ),
            Self::NotInCall => {
                Problem::new(StatusCode::FORBIDDEN, "not_in_call", "Not in the call", "the call is between others")
            }
            Self::CallEnded => Problem::new(StatusCode::CONFLICT, "call_ended", "The call is over", "the call is over"),
            Self::AnsweredElsewhere => Problem::new(
                StatusCode::CONFLICT,
                "answered_elsewhere",
                "Answered elsewhere",
                "another device answered the call",
            ),
            Self::IllegalCallState => Problem::new(
                StatusCode::CONFLICT,
                "illegal_call_state",
                "Not now",
                "this is not possible in the call's present state, or not for this side of it",
            ),
            Self::PartyTaken => Problem::new(
                StatusCode::CONFLICT,
                "party_taken",
                "The party id is taken",
                "another user has this party id in this call; choose another",
            ),
            Self::TooManyCandidates => Problem::new(
                StatusCode::CONFLICT,
                "too_many_candidates",
                "Too many candidates",
                format!("a device may name {} candidates in a call", calls::MAX_CANDIDATES),
            ),
            Self::RateLimited { why, retry_after } => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "Too many requests", why)
                    .with_retry_after(retry_after)
            }
            Self::AnotherRevision(revision) => Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "another_revision",
                "The message was edited meanwhile",
                format!("the message has revision {revision} by now; read it again"),
            ),
            Self::KeyInFlight(why) => {
                Problem::new(StatusCode::CONFLICT, "idempotency_key_in_flight", "Request under way", why)
            }
            Self::KeyOfAnotherRequest(why) => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", "Key of another request", why)
            }
            Self::BadJson(why) => Problem::new(
                StatusCode::BAD_REQUEST,
                "bad_json",
                "Not JSON",
                format!("the body is not valid JSON: {why}"),
            ),
            Self::Invalid(errors) => {
                let detail = errors
                    .iter()
                    .map(|error| format!("{}: {}", error.field, error.reason))
                    .collect::<Vec<_>>()
                    .join("; ");
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "Invalid request", detail).with_errors(errors)
            }
            Self::TooLarge(error) => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "Too large",
                format!("{}: {}", error.field, error.reason),
            )
            .with_errors(vec![error]),
            Self::UnsupportedMediaType => Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "Not JSON",
                "send the body with `Content-Type: application/json`",
            ),
            Self::LaneFull { limit } => Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "lane_full",
                "Too much is waiting",
                format!("{limit} operations of this conversation are waiting for Matrix; try again later"),
            ),
            Self::TooManyConnections { limit } => Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_connections",
                "Too many connections",
                format!("you have {limit} connections here already; close one first"),
            ),
            Self::Full => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "at_capacity",
                "At capacity",
                "this process takes no more connections; try again, it may lead to another",
            ),
            Self::NotAWebSocket(why) => {
                Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", "Not a WebSocket", why)
            }
            Self::Unavailable(error) => {
                tracing::warn!(%error, "database unavailable");
                unavailable()
            }
            Self::Internal(error) => internal(&*error),
        }
    }
}

fn unavailable() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "unavailable",
        "Temporarily unavailable",
        "the database did not answer in time; nothing is known to be written, try again",
    )
}

fn internal(error: &dyn std::error::Error) -> Problem {
    let error_id = Uuid::new_v4();
    tracing::error!(error.id = %error_id, %error, "request failed");
    let mut problem = Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "Internal error",
        "a fault of ours; its cause is in the log under error_id",
    );
    problem.error_id = Some(error_id);
    problem
}

/// An unknown path.
pub(crate) async fn no_such_route() -> ApiError {
    ApiError::NotFound("path")
}

/// A known path asked in a way that it does not know.
pub(crate) async fn method_not_allowed() -> Response {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "Method not allowed",
        "this path exists, but not with this method; see the header Allow",
    )
    .into_response()
}

/// The timeout layer answers without a body; clients get a problem like all others.
pub(crate) async fn render_timeouts(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let bare =
        response.status() == StatusCode::SERVICE_UNAVAILABLE && !response.headers().contains_key(header::CONTENT_TYPE);
    if bare { unavailable().into_response() } else { response }
}

/// A handler that panicked: logged under an id, and no neighbour notices.
#[expect(clippy::needless_pass_by_value, reason = "the layer gives it by value")]
pub(crate) fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response {
    let what = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text");
    metric::API_PANICS.increment(1);
    internal(&std::io::Error::other(what.to_owned())).into_response()
}
