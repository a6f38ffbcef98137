//! What was said to set up, change and end calls: rows of `call_signals`, what they say sealed.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{CallError, Origin, Status};
use crate::{
    chat::Turn,
    ids::{CallId, ConversationId, EventId, MessageId, OutboxId, RoomId, SignalId, UserId},
    seal::{KeyRing, Place},
};

/// Which step of a call's signalling: the event's type without its `m.call.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalKind {
    /// Asks somebody to answer.
    Invite,
    /// Ways to reach a party.
    Candidates,
    /// Answers.
    Answer,
    /// Says which answer counts.
    SelectAnswer,
    /// Changes what is sent during a call.
    Negotiate,
    /// Says what the streams are.
    SdpStreamMetadataChanged,
    /// Does not want to answer.
    Reject,
    /// Ends a call.
    Hangup,
}

impl SignalKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Invite,
        Self::Candidates,
        Self::Answer,
        Self::SelectAnswer,
        Self::Negotiate,
        Self::SdpStreamMetadataChanged,
        Self::Reject,
        Self::Hangup,
    ];

    /// As in the database and in the event's type.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invite => "invite",
            Self::Candidates => "candidates",
            Self::Answer => "answer",
            Self::SelectAnswer => "select_answer",
            Self::Negotiate => "negotiate",
            Self::SdpStreamMetadataChanged => "sdp_stream_metadata_changed",
            Self::Reject => "reject",
            Self::Hangup => "hangup",
        }
    }

    /// The step of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether it says nothing but itself, a reason or a party: nothing of it is sealed.
    pub const fn is_bare(self) -> bool {
        matches!(self, Self::SelectAnswer | Self::Reject | Self::Hangup)
    }
}

/// One step of a call's signalling, as an event says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CallSignal {
    /// Which step.
    pub kind: SignalKind,
    /// The call, as events name it.
    pub call_id: String,
    /// The device that says it.
    pub party_id: Option<String>,
    /// For an invite, how long it may ring, in milliseconds.
    pub lifetime_ms: Option<u64>,
    /// The event's content, as JSON.
    pub content: String,
}

/// A signal to be written down.
#[derive(Debug, Clone)]
pub(crate) struct NewSignal<'a> {
    pub(crate) signal_id: SignalId,
    pub(crate) call_id: CallId,
    pub(crate) matrix_call_id: &'a str,
    pub(crate) kind: SignalKind,
    pub(crate) party_id: Option<&'a str>,
    pub(crate) author_id: UserId,
    pub(crate) origin: Origin,
    /// Sealed.
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) detail: Option<&'a str>,
    pub(crate) send_outbox_id: Option<OutboxId>,
    pub(crate) event: Option<(&'a EventId, &'a RoomId)>,
    pub(crate) expires_at: Option<OffsetDateTime>,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) announced: bool,
}

/// Where what a signal says is sealed to.
pub(crate) fn place(conversation_id: ConversationId, signal_id: SignalId) -> Place {
    Place { conversation_id, message_id: MessageId::from(signal_id.as_uuid()), revision: 1 }
}

/// Writes a signal down at the turn's place. False when its event is known.
pub(crate) async fn insert(conn: &mut PgConnection, turn: &Turn, new: &NewSignal<'_>) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        r#"
        insert into call_signals (conversation_id, signal_id, call_id, matrix_call_id, seq, kind, party_id, author_id,
            origin, payload, matrix_event_id, matrix_room_id, expires_at, created_at, send_outbox_id, detail, announced)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
        on conflict (conversation_id, matrix_event_id) where matrix_event_id is not null do nothing
        "#,
        turn.conversation_id.as_uuid(),
        new.signal_id.as_uuid(),
        new.call_id.as_uuid(),
        new.matrix_call_id,
        turn.seq,
        new.kind.as_str(),
        new.party_id,
        new.author_id.as_uuid(),
        new.origin.as_str(),
        new.payload,
        new.event.map(|(event_id, _)| event_id.as_str()),
        new.event.map(|(_, room_id)| room_id.as_str()),
        new.expires_at,
        new.created_at,
        new.send_outbox_id.map(OutboxId::as_uuid),
        new.detail,
        new.announced,
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(inserted > 0)
}

/// A step of a call's signalling, as it stands in the database.
#[derive(Debug, Clone)]
pub struct StoredSignal {
    /// Its id.
    pub signal_id: SignalId,
    /// The call.
    pub call_id: CallId,
    /// Which step.
    pub kind: SignalKind,
    /// Where it was said.
    pub origin: Origin,
    /// The device that said it.
    pub party_id: Option<String>,
    /// The user or contact who said it.
    pub author_id: UserId,
    /// The event's content; none for what says nothing but itself, and once it was redacted.
    pub content: Option<Value>,
    /// Why, of a hangup; which party, of a `select_answer`.
    pub detail: Option<String>,
    /// Its Matrix event, if it came from there.
    pub event_id: Option<EventId>,
    /// When it was said.
    pub created_at: OffsetDateTime,
    /// Who calls; none when the call itself is not known.
    pub initiator_id: Option<UserId>,
    /// Who is called; none for everybody in the conversation.
    pub invitee_id: Option<UserId>,
    /// When nobody may ring for the call any more.
    pub ring_until: Option<OffsetDateTime>,
    /// Where the call stands now.
    pub status: Option<Status>,
    /// For an invite: nobody may ring for it any more, since its time is over, or the call was answered or ended.
    pub is_over: bool,
}

impl StoredSignal {
    /// Whether it is of any concern to a user: it is their call.
    pub fn is_for(&self, user: UserId) -> bool {
        let Some(initiator) = self.initiator_id else { return false };
        user == initiator || self.invitee_id.is_none_or(|invitee| invitee == user)
    }
}

/// Reads a step of a call's signalling.
pub async fn signal(
    conn: &mut PgConnection,
    keys: &KeyRing,
    conversation_id: ConversationId,
    signal_id: SignalId,
) -> Result<Option<StoredSignal>, CallError> {
    let row = sqlx::query!(
        r#"
        select s.call_id as "call_id: CallId", s.kind, s.origin as "origin: Origin", s.party_id,
            s.author_id as "author_id: UserId", s.payload, s.detail, s.matrix_event_id as "event_id: EventId",
            s.created_at, c.initiator_id as "initiator_id?: UserId", c.invitee_id as "invitee_id?: UserId",
            c.ring_until as "ring_until?", c.status as "status?: Status",
            s.kind = 'invite' and (c.status is distinct from 'ringing' or c.ring_until <= outbox_now()) as "is_over!"
        from call_signals s
        left join calls c on c.conversation_id = s.conversation_id and c.call_id = s.call_id
        where s.conversation_id = $1 and s.signal_id = $2
        "#,
        conversation_id.as_uuid(),
        signal_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let Some(kind) = SignalKind::parse(&row.kind) else { return Ok(None) };
    let content = row.payload.map(|sealed| open(keys, conversation_id, signal_id, &sealed)).transpose()?;
    Ok(Some(StoredSignal {
        signal_id,
        call_id: row.call_id,
        kind,
        origin: row.origin,
        party_id: row.party_id,
        author_id: row.author_id,
        content,
        detail: row.detail,
        event_id: row.event_id,
        created_at: row.created_at,
        initiator_id: row.initiator_id,
        invitee_id: row.invitee_id,
        ring_until: row.ring_until,
        status: row.status,
        is_over: row.is_over,
    }))
}

/// Opens what a signal says.
pub fn open(
    keys: &KeyRing,
    conversation_id: ConversationId,
    signal_id: SignalId,
    sealed: &[u8],
) -> Result<Value, CallError> {
    let text = keys.open(place(conversation_id, signal_id), sealed)?;
    serde_json::from_str(&text).map_err(|_| CallError::Damaged)
}
