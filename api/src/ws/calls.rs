//! Call events that came from Matrix, by the names that clients know.

use serde::Serialize;
use serde_json::Value;
use shared::{
    calls::{SignalKind, StoredSignal},
    ids::{CallId, EventId, UserId},
};

/// A step of a call's signalling.
#[derive(Debug, Serialize)]
#[serde(tag = "type")]
#[expect(clippy::enum_variant_names, reason = "the names that clients know")]
pub(crate) enum CallFrame {
    CallInviteViaMatrix {
        call_id: CallId,
        initiator_id: UserId,
        sdp_offer: String,
        matrix_event_id: Option<EventId>,
        party_id: Option<String>,
    },
    CallAnswerViaMatrix {
        call_id: CallId,
        participant_id: UserId,
        sdp_answer: String,
        matrix_event_id: Option<EventId>,
    },
    CallCandidatesViaMatrix {
        call_id: CallId,
        participant_id: UserId,
        candidates: Vec<Candidate>,
    },
    CallHangupViaMatrix {
        call_id: CallId,
        participant_id: UserId,
        reason: Option<String>,
        matrix_event_id: Option<EventId>,
    },
    CallRejectViaMatrix {
        call_id: CallId,
        participant_id: UserId,
        matrix_event_id: Option<EventId>,
    },
    /// What else there is: which answer counts, a renegotiation, what the streams are.
    CallSignalViaMatrix {
        call_id: CallId,
        participant_id: UserId,
        kind: SignalKind,
        content: Value,
        matrix_event_id: Option<EventId>,
    },
}

/// A way to reach a party, as browsers take it.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "as browsers name it")]
pub(crate) struct Candidate {
    candidate: String,
    #[serde(rename = "sdpMid")]
    sdp_mid: Option<String>,
    #[serde(rename = "sdpMLineIndex")]
    sdp_m_line_index: Option<u64>,
}

impl CallFrame {
    /// Renders what came. None for what is not told any more: an invite that nobody may ring for, or what was redacted.
    pub(crate) fn of(signal: StoredSignal) -> Option<Self> {
        // A phone never rings late.
        if signal.is_over {
            return None;
        }
        let StoredSignal { call_id, kind, party_id, author_id: participant_id, content, event_id, .. } = signal;
        let matrix_event_id = event_id;
        let text = |path: &str| content.as_ref()?.pointer(path)?.as_str().map(str::to_owned);
        Some(match kind {
            SignalKind::Invite => Self::CallInviteViaMatrix {
                call_id,
                initiator_id: participant_id,
                sdp_offer: text("/offer/sdp")?,
                matrix_event_id,
                party_id,
            },
            SignalKind::Answer => {
                Self::CallAnswerViaMatrix { call_id, participant_id, sdp_answer: text("/answer/sdp")?, matrix_event_id }
            }
            SignalKind::Candidates => {
                let candidates = content.as_ref()?.get("candidates")?.as_array()?.iter().filter_map(candidate);
                Self::CallCandidatesViaMatrix { call_id, participant_id, candidates: candidates.collect() }
            }
            // Whatever became of its content, the call is over.
            SignalKind::Hangup => {
                Self::CallHangupViaMatrix { call_id, participant_id, reason: text("/reason"), matrix_event_id }
            }
            SignalKind::Reject => Self::CallRejectViaMatrix { call_id, participant_id, matrix_event_id },
            SignalKind::SelectAnswer | SignalKind::Negotiate | SignalKind::SdpStreamMetadataChanged => {
                Self::CallSignalViaMatrix { call_id, participant_id, kind, content: content?, matrix_event_id }
            }
        })
    }

    /// Its type, as in metrics.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::CallInviteViaMatrix { .. } => "CallInviteViaMatrix",
            Self::CallAnswerViaMatrix { .. } => "CallAnswerViaMatrix",
            Self::CallCandidatesViaMatrix { .. } => "CallCandidatesViaMatrix",
            Self::CallHangupViaMatrix { .. } => "CallHangupViaMatrix",
            Self::CallRejectViaMatrix { .. } => "CallRejectViaMatrix",
            Self::CallSignalViaMatrix { .. } => "CallSignalViaMatrix",
        }
    }
}

/// The last candidate is an empty text, and may have nothing else.
fn candidate(candidate: &Value) -> Option<Candidate> {
    Some(Candidate {
        candidate: candidate.get("candidate")?.as_str()?.to_owned(),
        sdp_mid: candidate.get("sdpMid").and_then(Value::as_str).map(str::to_owned),
        sdp_m_line_index: candidate.get("sdpMLineIndex").and_then(Value::as_u64),
    })
}
