//! What a handler answers: a JSON body, or a Matrix error.
use hyper::body::Bytes;
use serde_json::{Value, json};

/// What every handler returns.
pub(super) type Answer = Result<Value, Failure>;

/// A Matrix error: status, `errcode` and text.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) errcode: String,
    pub(super) error: String,
    /// For `M_UNKNOWN_TOKEN`, which says besides that the session is gone for good.
    pub(super) extra: Option<(&'static str, Value)>,
}

impl Failure {
    pub(super) fn new(status: u16, errcode: &str, error: impl Into<String>) -> Self {
        Self { status, errcode: errcode.to_owned(), error: error.into(), extra: None }
    }

    pub(super) fn forbidden(error: impl Into<String>) -> Self {
        Self::new(403, "M_FORBIDDEN", error)
    }

    /// Synapse's plain `SynapseError(400, …)`, which carries no code of its own.
    pub(super) fn bad(error: impl Into<String>) -> Self {
        Self::new(400, "M_UNKNOWN", error)
    }

    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self::new(404, "M_NOT_FOUND", error)
    }

    pub(super) fn internal() -> Self {
        Self::new(500, "M_UNKNOWN", "Internal server error")
    }

    pub(super) fn unknown_token() -> Self {
        let mut failure = Self::new(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.");
        failure.extra = Some(("soft_logout", json!(false)));
        failure
    }
}

/// An answer in its final form, as it goes over the wire.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) retry_after_secs: Option<u64>,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            content_type: "application/json",
            retry_after_secs: None,
            body: serde_json::to_vec(body).expect("a JSON value can be written").into(),
        }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        match answer {
            Ok(body) => Self::json(200, &body),
            Err(failure) => {
                let mut body = json!({ "errcode": failure.errcode, "error": failure.error });
                if let Some((key, value)) = failure.extra {
                    body[key] = value;
                }
                Self::json(failure.status, &body)
            }
        }
    }
}
