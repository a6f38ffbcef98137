//! Call signalling of others: stored in order, sealed, and told to the members.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Applied, InboundError, Inbox, Incoming, Record, author, refuse, remember};
use crate::{
    chat::Turn,
    events::{self, EventKind},
    ids::{CallId, ConversationId, EventId, MessageId, SignalId, UserId},
    seal::{KeyRing, Place},
};

/// The longest that an invite may ring: what claims more rings for as long.
const MAX_RING: Duration = Duration::from_mins(5);

/// Which step of a call's signalling: the event's type without its `m.call.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    const ALL: [Self; 8] = [
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

pub(super) async fn call(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
    call: &CallSignal,
) -> Result<Applied, InboundError> {
    let Some(author_id) = author(conn, turn, inbox, event).await? else {
        return refuse(conn, turn, event, "user_format").await;
    };
    turn.advance(conn).await?;
    let signal_id = SignalId::generate();
    let place = place(turn.conversation_id, signal_id);
    let rings_for = (call.kind == SignalKind::Invite)
        .then(|| call.lifetime_ms.map_or(MAX_RING, Duration::from_millis).min(MAX_RING).as_secs_f64());
    let inserted = sqlx::query!(
        r#"
        insert into call_signals (conversation_id, signal_id, call_id, matrix_call_id, seq, kind, party_id, author_id,
            origin, payload, matrix_event_id, matrix_room_id, expires_at, created_at)
        select $1, $2, $3, $4, $5, $6, $7, $8, 'matrix', $9, $10, $11, said.at + make_interval(secs => $12), said.at
        from (select least(to_timestamp($13::bigint / 1000.0), $14::timestamptz) as at) said
        on conflict (conversation_id, matrix_event_id) where matrix_event_id is not null do nothing
        "#,
        turn.conversation_id.as_uuid(),
        signal_id.as_uuid(),
        CallId::of_matrix(turn.conversation_id, &call.call_id).as_uuid(),
        call.call_id,
        turn.seq,
        call.kind.as_str(),
        call.party_id,
        author_id.as_uuid(),
        inbox.keys.seal(place, &call.content)?,
        event.event_id.as_str(),
        event.room_id.as_str(),
        rings_for,
        event.sent_at_ms,
        turn.at,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if inserted == 0 {
        return Ok(Applied::Duplicate);
    }
    remember(conn, turn, event, &Record::new("call", signal_id.as_uuid())).await?;
    events::record(conn, turn.conversation_id, EventKind::CallSignal, signal_id.as_uuid()).await?;
    Ok(Applied::Changed)
}

fn place(conversation_id: ConversationId, signal_id: SignalId) -> Place {
    Place { conversation_id, message_id: MessageId::from(signal_id.as_uuid()), revision: 1 }
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
    /// The device that said it.
    pub party_id: Option<String>,
    /// The user or contact who said it.
    pub author_id: UserId,
    /// The event's content; none once it was redacted.
    pub content: Option<serde_json::Value>,
    /// Its Matrix event.
    pub event_id: Option<EventId>,
    /// When it was said.
    pub created_at: OffsetDateTime,
    /// For an invite: nobody may ring for it any more, since its time is over, or the call was answered or ended.
    pub is_over: bool,
}

/// Reads a step of a call's signalling.
pub async fn signal(
    conn: &mut PgConnection,
    keys: &KeyRing,
    conversation_id: ConversationId,
    signal_id: SignalId,
) -> Result<Option<StoredSignal>, InboundError> {
    let row = sqlx::query!(
        r#"
        select s.call_id as "call_id: CallId", s.kind, s.party_id, s.author_id as "author_id: UserId", s.payload,
            s.matrix_event_id as "event_id: EventId", s.created_at,
            s.kind = 'invite' and (s.expires_at <= outbox_now() or exists (
                select 1 from call_signals later
                where later.conversation_id = $1 and later.call_id = s.call_id
                    and later.kind in ('answer', 'select_answer', 'reject', 'hangup')
            )) as "is_over!"
        from call_signals s
        where s.conversation_id = $1 and s.signal_id = $2
        "#,
        conversation_id.as_uuid(),
        signal_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let Some(kind) = SignalKind::parse(&row.kind) else { return Ok(None) };
    let content = match row.payload {
        Some(sealed) => {
            let text = keys.open(place(conversation_id, signal_id), &sealed)?;
            Some(serde_json::from_str(&text).map_err(|_| InboundError::Parked)?)
        }
        None => None,
    };
    Ok(Some(StoredSignal {
        signal_id,
        call_id: row.call_id,
        kind,
        party_id: row.party_id,
        author_id: row.author_id,
        content,
        event_id: row.event_id,
        created_at: row.created_at,
        is_over: row.is_over,
    }))
}
