//! Calls as clients are shown them.

use serde::Serialize;
use serde_json::Value;
use shared::{
    calls::{Call, EndReason, Named, Origin, Session, Status},
    ids::{CallId, ConversationId, EventId, RoomId, UserId},
    outbox::Delivery,
};
use time::OffsetDateTime;

use crate::conversations::ContactBody;

#[derive(Debug, Serialize)]
pub(crate) struct CallBody {
    id: CallId,
    conversation_id: ConversationId,
    status: Status,
    reason: Option<EndReason>,
    direction: Direction,
    missed: bool,
    origin: Origin,
    initiator_id: UserId,
    /// Who that is, when it is no user of ours.
    external: Option<ContactBody>,
    invitee_id: Option<UserId>,
    answered_by: Option<AnswererBody>,
    /// The reader's own device in the call.
    party_id: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    ring_until: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    answered_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
    ended_by: Option<UserId>,
    replaced_by: Option<CallId>,
    matrix: MatrixBody,
}

/// For the reader.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Outgoing,
    Incoming,
}

#[derive(Debug, Serialize)]
struct AnswererBody {
    user_id: Option<UserId>,
    party_id: String,
}

#[derive(Debug, Serialize)]
struct MatrixBody {
    delivery: Option<Delivery>,
    event_id: Option<EventId>,
    party_id: Option<String>,
    room_id: Option<RoomId>,
}

impl CallBody {
    /// A call as one who takes part in it reads it.
    pub(crate) fn read_by(reader: UserId, call: Call) -> Self {
        Self {
            id: call.call_id,
            conversation_id: call.conversation_id,
            status: call.status,
            reason: call.reason,
            direction: if call.initiator_id == reader { Direction::Outgoing } else { Direction::Incoming },
            missed: call.missed,
            origin: call.origin,
            initiator_id: call.initiator_id,
            external: call.external.map(ContactBody::from),
            invitee_id: call.invitee_id,
            answered_by: call
                .answered_by
                .map(|answerer| AnswererBody { user_id: answerer.user_id, party_id: answerer.party_id }),
            party_id: call.party_id,
            created_at: call.created_at,
            ring_until: call.ring_until,
            answered_at: call.answered_at,
            ended_at: call.ended_at,
            ended_by: call.ended_by,
            replaced_by: call.replaced_by,
            matrix: MatrixBody {
                delivery: call.delivery,
                event_id: call.event_id,
                party_id: call.matrix_party_id,
                room_id: call.room_id,
            },
        }
    }
}

/// A call with what a client that comes late needs to join; all null once it is over.
#[derive(Debug, Serialize)]
pub(crate) struct JoinableBody {
    #[serde(flatten)]
    call: CallBody,
    sdp_offer: Option<String>,
    sdp_offer_stream_metadata: Option<Value>,
    sdp_answer: Option<String>,
    sdp_answer_stream_metadata: Option<Value>,
    /// What the two devices have named so far; empty once the call is over.
    candidates: Vec<NamedBody>,
}

/// Ways to reach a device.
#[derive(Debug, Serialize)]
struct NamedBody {
    participant_id: UserId,
    party_id: Option<String>,
    candidates: Vec<Value>,
}

impl From<Named> for NamedBody {
    fn from(named: Named) -> Self {
        Self { participant_id: named.user_id, party_id: named.party_id, candidates: named.candidates }
    }
}

impl JoinableBody {
    pub(crate) fn read_by(reader: UserId, call: Call, session: Session) -> Self {
        let (sdp_offer, sdp_offer_stream_metadata) = session.offer.unzip();
        let (sdp_answer, sdp_answer_stream_metadata) = session.answer.unzip();
        Self {
            call: CallBody::read_by(reader, call),
            sdp_offer,
            sdp_offer_stream_metadata: sdp_offer_stream_metadata.flatten(),
            sdp_answer,
            sdp_answer_stream_metadata: sdp_answer_stream_metadata.flatten(),
            candidates: session.candidates.into_iter().map(NamedBody::from).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct CallPage {
    pub(super) calls: Vec<CallBody>,
    pub(super) next_cursor: Option<CallId>,
}
