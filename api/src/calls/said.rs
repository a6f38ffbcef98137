//! What clients say in calls, as they send it: over REST and over the WebSocket alike.

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use shared::{
    calls::{self, EndReason, Saying},
    ids::{ConversationId, UserId},
};

use crate::problem::{ApiError, FieldProblem};

/// For how long a call may ring, in milliseconds, and for how long it does where the client does not say.
const RING_MS: std::ops::RangeInclusive<u64> = 30_000..=300_000;
const DEFAULT_RING_MS: u64 = 90_000;

/// The largest description of a session with what its streams are, in bytes of JSON: what it is wrapped in is at most so
/// many bytes more.
const MAX_SESSION_BYTES: usize = calls::MAX_SIGNAL_BYTES - 96;

/// The longest party id, in characters.
const MAX_PARTY_LEN: usize = 255;

/// How many candidates a request may have, and how large one may be, in bytes of JSON.
const MAX_CANDIDATES: usize = 100;
const MAX_CANDIDATE_BYTES: usize = 4 * 1024;

/// The largest integer that Matrix takes, either way.
const MAX_INTEGER: u64 = (1 << 53) - 1;

/// One of the things that can be said in a call. Fields that a client left out are left out of the fingerprint of its key.
pub(crate) trait Said: DeserializeOwned + Serialize + Send + 'static {
    /// What idempotency keys belong to.
    const ROUTE: &'static str;

    /// Refuses what could not be sent as it is.
    fn check(&self) -> Result<(), ApiError>;

    /// The device that says it, and what.
    fn into_saying(self) -> (Option<String>, Saying);
}

/// What the streams of a device are.
type Metadata = Option<Map<String, Value>>;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PostCall {
    pub(super) conversation_id: ConversationId,
    pub(super) sdp_offer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) party_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) invitee: Option<UserId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lifetime_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sdp_stream_metadata: Metadata,
}

impl PostCall {
    pub(super) fn check(&self) -> Result<(), ApiError> {
        check_party("party_id", self.party_id.as_deref())?;
        check_lifetime(self.lifetime_ms)?;
        check_session("sdp_offer", &self.sdp_offer, self.sdp_stream_metadata.as_ref())
    }

    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_millis(self.lifetime_ms.unwrap_or(DEFAULT_RING_MS))
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    #[serde(rename = "sdp_answer")]
    sdp: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    party_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sdp_stream_metadata: Metadata,
}

impl Said for Answer {
    const ROUTE: &'static str = "POST /calls/{id}/answer";

    fn check(&self) -> Result<(), ApiError> {
        check_party("party_id", self.party_id.as_deref())?;
        check_session("sdp_answer", &self.sdp, self.sdp_stream_metadata.as_ref())
    }

    fn into_saying(self) -> (Option<String>, Saying) {
        let sdp_stream_metadata = self.sdp_stream_metadata.map(Value::Object);
        (self.party_id, Saying::Answer { sdp: self.sdp, sdp_stream_metadata })
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Candidates {
    candidates: Vec<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    party_id: Option<String>,
}

impl Said for Candidates {
    const ROUTE: &'static str = "POST /calls/{id}/candidates";

    fn check(&self) -> Result<(), ApiError> {
        check_party("party_id", self.party_id.as_deref())?;
        if self.candidates.is_empty() || self.candidates.len() > MAX_CANDIDATES {
            return Err(ApiError::invalid("candidates", format!("must be 1 to {MAX_CANDIDATES}")));
        }
        self.candidates.iter().enumerate().try_for_each(|(n, candidate)| check_candidate(n, candidate))
    }

    fn into_saying(self) -> (Option<String>, Saying) {
        (self.party_id, Saying::Candidates(self.candidates.into_iter().map(Value::Object).collect()))
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SelectAnswer {
    selected_party_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    party_id: Option<String>,
}

impl Said for SelectAnswer {
    const ROUTE: &'static str = "POST /calls/{id}/select_answer";

    fn check(&self) -> Result<(), ApiError> {
        check_party("party_id", self.party_id.as_deref())?;
        check_party("selected_party_id", Some(&self.selected_party_id))
    }

    fn into_saying(self) -> (Option<String>, Saying) {
        (self.party_id, Saying::SelectAnswer { party_id: self.selected_party_id })
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Negotiate {
    description: Description,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    party_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lifetime_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sdp_stream_metadata: Metadata,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Description {
    r#type: DescriptionType,
    sdp: String,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum DescriptionType {
    Offer,
    Answer,
}

impl Said for Negotiate {
    const ROUTE: &'static str = "POST /calls/{id}/negotiate";

    fn check(&self) -> Result<(), ApiError> {
        check_party("party_id", self.party_id.as_deref())?;
        if self.lifetime_ms.is_some_and(|lifetime| lifetime == 0 || lifetime > *RING_MS.end()) {
            return Err(ApiError::invalid("lifetime_ms", format!("must be from 1 to {}", RING_MS.end())));
        }
        check_session("description.sdp", &self.description.sdp, self.sdp_stream_metadata.as_ref())
    }

    fn into_saying(self) -> (Option<String>, Saying) {
        let Description { r#type, sdp } = self.description;
        let saying = Saying::Negotiate {
            description: serde_json::json!({"type": r#type, "sdp": sdp}),
            lifetime_ms: self.lifetime_ms,
            sdp_stream_metadata: self.sdp_stream_metadata.map(Value::Object),
        };
        (self.party_id, saying)
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewMetadata {
    sdp_stream_metadata: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    party_id: Option<String>,
}

impl Said for NewMetadata {
    const ROUTE: &'static str = "POST /calls/{id}/metadata";

    fn check(&self) -> Result<(), ApiError> {
        check_party("party_id", self.party_id.as_deref())?;
        check_metadata(Some(&self.sdp_stream_metadata), 0)
    }

    fn into_saying(self) -> (Option<String>, Saying) {
        (self.party_id, Saying::Metadata { sdp_stream_metadata: Value::Object(self.sdp_stream_metadata) })
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hangup {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    party_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<EndReason>,
}

impl Said for Hangup {
    const ROUTE: &'static str = "POST /calls/{id}/hangup";

    fn check(&self) -> Result<(), ApiError> {
        check_party("party_id", self.party_id.as_deref())?;
        if self.reason.is_some_and(|reason| !reason.is_of_a_hangup()) {
            return Err(ApiError::invalid("reason", "is none for which one hangs up"));
        }
        Ok(())
    }

    fn into_saying(self) -> (Option<String>, Saying) {
        (self.party_id, Saying::Hangup { reason: self.reason.unwrap_or(EndReason::UserHangup) })
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    party_id: Option<String>,
}

impl Said for Reject {
    const ROUTE: &'static str = "POST /calls/{id}/reject";

    fn check(&self) -> Result<(), ApiError> {
        check_party("party_id", self.party_id.as_deref())
    }

    fn into_saying(self) -> (Option<String>, Saying) {
        (self.party_id, Saying::Reject)
    }
}

fn check_party(field: &str, party: Option<&str>) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-');
    let fits = party.is_none_or(|party| (1..=MAX_PARTY_LEN).contains(&party.len()) && party.chars().all(plain));
    if fits {
        return Ok(());
    }
    Err(ApiError::invalid(field, format!("must have 1 to {MAX_PARTY_LEN} characters: letters, digits, . _ ~ -")))
}

fn check_lifetime(lifetime_ms: Option<u64>) -> Result<(), ApiError> {
    if lifetime_ms.is_none_or(|lifetime| RING_MS.contains(&lifetime)) {
        return Ok(());
    }
    Err(ApiError::invalid("lifetime_ms", format!("must be from {} to {}", RING_MS.start(), RING_MS.end())))
}

/// What a device offers or answers: SDP, which is not understood here, and what its streams are.
fn check_session(field: &str, sdp: &str, metadata: Option<&Map<String, Value>>) -> Result<(), ApiError> {
    if sdp.is_empty() {
        return Err(ApiError::invalid(field, "must not be empty"));
    }
    if sdp.contains('\0') {
        return Err(ApiError::invalid(field, "must not contain the character NUL"));
    }
    let bytes = json_len(&sdp)?;
    if bytes > MAX_SESSION_BYTES {
        return Err(too_large(field, MAX_SESSION_BYTES, "as a JSON string"));
    }
    check_metadata(metadata, bytes)
}

fn check_metadata(metadata: Option<&Map<String, Value>>, beside: usize) -> Result<(), ApiError> {
    let Some(metadata) = metadata else { return Ok(()) };
    let field = "sdp_stream_metadata";
    check_object(field, metadata)?;
    if json_len(metadata)? + beside > MAX_SESSION_BYTES {
        return Err(too_large(field, MAX_SESSION_BYTES, "as JSON, together with the SDP"));
    }
    Ok(())
}

/// Fields that browsers know are as browsers have them; others pass.
fn check_candidate(n: usize, candidate: &Map<String, Value>) -> Result<(), ApiError> {
    let wrong = |name: &str, reason: &str| Err(ApiError::invalid(&format!("candidates[{n}].{name}"), reason));
    if !candidate.get("candidate").is_some_and(Value::is_string) {
        return wrong("candidate", "must be a text; an empty one says that there are no more");
    }
    for name in ["sdpMid", "usernameFragment"] {
        if !candidate.get(name).is_none_or(|value| value.is_string() || value.is_null()) {
            return wrong(name, "must be a text or null");
        }
    }
    let index = candidate.get("sdpMLineIndex").filter(|value| !value.is_null());
    if index.is_some_and(|value| value.as_u64().is_none_or(|index| index > u16::MAX.into())) {
        return wrong("sdpMLineIndex", "must be a whole number from 0 to 65535, or null");
    }
    let field = format!("candidates[{n}]");
    check_object(&field, candidate)?;
    if json_len(candidate)? > MAX_CANDIDATE_BYTES {
        return Err(too_large(&field, MAX_CANDIDATE_BYTES, "as JSON"));
    }
    Ok(())
}

/// Refuses what a homeserver would refuse in an event.
fn check_object(field: &str, object: &Map<String, Value>) -> Result<(), ApiError> {
    object.iter().try_for_each(|(name, value)| {
        if name.contains('\0') {
            return Err(ApiError::invalid(field, "must not contain the character NUL"));
        }
        check_value(field, value)
    })
}

fn check_value(field: &str, value: &Value) -> Result<(), ApiError> {
    match value {
        Value::Number(number) => {
            let fits = number.as_i64().is_some_and(|number| number.unsigned_abs() <= MAX_INTEGER);
            if fits { Ok(()) } else { Err(ApiError::invalid(field, "must have no numbers but integers below 2^53")) }
        }
        Value::String(text) if text.contains('\0') => {
            Err(ApiError::invalid(field, "must not contain the character NUL"))
        }
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
        Value::Array(values) => values.iter().try_for_each(|value| check_value(field, value)),
        Value::Object(object) => check_object(field, object),
    }
}

fn json_len(value: &impl Serialize) -> Result<usize, ApiError> {
    serde_json::to_vec(value).map(|json| json.len()).map_err(|error| ApiError::Internal(error.into()))
}

fn too_large(field: &str, limit: usize, how: &str) -> ApiError {
    ApiError::TooLarge(FieldProblem { field: field.to_owned(), reason: format!("must be at most {limit} bytes {how}") })
}
