//! What is said in calls, by the names that clients know: what our own clients say, and what comes from Matrix.

use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    calls::{Origin, SignalKind, StoredSignal},
    ids::{CallId, EventId, UserId},
};
use time::OffsetDateTime;

/// A step of a call's signalling.
#[derive(Debug, Serialize)]
#[serde(tag = "type")]
#[expect(clippy::enum_variant_names, reason = "the names that clients know")]
pub(crate) enum CallFrame {
    CallInvite(Invite),
    CallAnswer(Answer),
    CallCandidates(Candidates),
    CallHangup(Hangup),
    CallReject(Reject),
    /// What else there is: which answer counts, a renegotiation, what the streams are.
    CallSignal(Signal),
    CallInviteViaMatrix(Heard<Invite>),
    CallAnswerViaMatrix(Heard<Answer>),
    CallCandidatesViaMatrix(Heard<Candidates>),
    CallHangupViaMatrix(Heard<Hangup>),
    CallRejectViaMatrix(Heard<Reject>),
    CallSignalViaMatrix(Heard<Signal>),
}

/// What came from Matrix, with its event.
#[derive(Debug, Serialize)]
pub(crate) struct Heard<T> {
    #[serde(flatten)]
    said: T,
    matrix_event_id: Option<EventId>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Invite {
    call_id: CallId,
    initiator_id: UserId,
    party_id: Option<String>,
    invitee_id: Option<UserId>,
    sdp_offer: String,
    sdp_stream_metadata: Option<Value>,
    #[serde(with = "time::serde::rfc3339::option")]
    ring_until: Option<OffsetDateTime>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    call_id: CallId,
    participant_id: UserId,
    party_id: Option<String>,
    #[serde(rename = "sdp_answer")]
    sdp: String,
    sdp_stream_metadata: Option<Value>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Candidates {
    call_id: CallId,
    participant_id: UserId,
    party_id: Option<String>,
    /// As they were said. The last is an empty text, and may have nothing else.
    #[serde(rename = "candidates")]
    said: Vec<Value>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Hangup {
    call_id: CallId,
    participant_id: UserId,
    party_id: Option<String>,
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names that clients know")]
pub(crate) struct Reject {
    call_id: CallId,
    participant_id: UserId,
    party_id: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Signal {
    call_id: CallId,
    participant_id: UserId,
    party_id: Option<String>,
    kind: SignalKind,
    content: Value,
}

impl CallFrame {
    /// Renders what was said. None for what is not told any more: an invite that nobody may ring for, or what was redacted.
    pub(crate) fn of(signal: StoredSignal) -> Option<Self> {
        // A phone never rings late.
        if signal.is_over {
            return None;
        }
        let here = signal.origin == Origin::Nova;
        let StoredSignal { call_id, kind, party_id, author_id: participant_id, content, detail, event_id, .. } = signal;
        let text = |path: &str| content.as_ref()?.pointer(path)?.as_str().map(str::to_owned);
        let metadata = || content.as_ref()?.get("sdp_stream_metadata").cloned();
        let matrix_event_id = event_id;
        Some(match kind {
            SignalKind::Invite => {
                let said = Invite {
                    call_id,
                    initiator_id: participant_id,
                    party_id,
                    invitee_id: signal.invitee_id,
                    sdp_offer: text("/offer/sdp")?,
                    sdp_stream_metadata: metadata(),
                    ring_until: signal.ring_until,
                };
                if here { Self::CallInvite(said) } else { Self::CallInviteViaMatrix(Heard { said, matrix_event_id }) }
            }
            SignalKind::Answer => {
                let sdp = text("/answer/sdp")?;
                let said = Answer { call_id, participant_id, party_id, sdp, sdp_stream_metadata: metadata() };
                if here { Self::CallAnswer(said) } else { Self::CallAnswerViaMatrix(Heard { said, matrix_event_id }) }
            }
            SignalKind::Candidates => {
                let candidates = content.as_ref()?.get("candidates")?.as_array()?.iter();
                let candidates = candidates.filter(|candidate| candidate["candidate"].is_string()).cloned();
                let candidates = if here { candidates.collect() } else { candidates.map(with_nulls).collect() };
                let said = Candidates { call_id, participant_id, party_id, said: candidates };
                if here {
                    Self::CallCandidates(said)
                } else {
                    Self::CallCandidatesViaMatrix(Heard { said, matrix_event_id })
                }
            }
            // Whatever became of its content, the call is over.
            SignalKind::Hangup => {
                let said = Hangup { call_id, participant_id, party_id, reason: detail };
                if here { Self::CallHangup(said) } else { Self::CallHangupViaMatrix(Heard { said, matrix_event_id }) }
            }
            SignalKind::Reject => {
                let said = Reject { call_id, participant_id, party_id };
                if here { Self::CallReject(said) } else { Self::CallRejectViaMatrix(Heard { said, matrix_event_id }) }
            }
            SignalKind::SelectAnswer | SignalKind::Negotiate | SignalKind::SdpStreamMetadataChanged => {
                let content = match kind {
                    SignalKind::SelectAnswer => json!({"selected_party_id": detail?}),
                    _ => content?,
                };
                let said = Signal { call_id, participant_id, party_id, kind, content };
                if here { Self::CallSignal(said) } else { Self::CallSignalViaMatrix(Heard { said, matrix_event_id }) }
            }
        })
    }

    /// Its type, as in metrics.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::CallInvite(_) => "CallInvite",
            Self::CallAnswer(_) => "CallAnswer",
            Self::CallCandidates(_) => "CallCandidates",
            Self::CallHangup(_) => "CallHangup",
            Self::CallReject(_) => "CallReject",
            Self::CallSignal(_) => "CallSignal",
            Self::CallInviteViaMatrix(_) => "CallInviteViaMatrix",
            Self::CallAnswerViaMatrix(_) => "CallAnswerViaMatrix",
            Self::CallCandidatesViaMatrix(_) => "CallCandidatesViaMatrix",
            Self::CallHangupViaMatrix(_) => "CallHangupViaMatrix",
            Self::CallRejectViaMatrix(_) => "CallRejectViaMatrix",
            Self::CallSignalViaMatrix(_) => "CallSignalViaMatrix",
        }
    }
}

/// What came from Matrix always has the fields that clients know.
fn with_nulls(mut candidate: Value) -> Value {
    if let Some(fields) = candidate.as_object_mut() {
        for name in ["sdpMid", "sdpMLineIndex"] {
            fields.entry(name).or_insert(Value::Null);
        }
    }
    candidate
}
