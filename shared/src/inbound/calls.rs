//! Call signalling of others: stored in order, sealed, told to whom it concerns, and counted by the call's machine.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Applied, InboundError, Inbox, Incoming, Record, author, refuse, remember};
use crate::{
    calls::{self, CallSignal, Heard, MAX_RING, NewSignal, Origin, SignalKind},
    chat::{self, Turn},
    events::{self, EventKind},
    ids::SignalId,
};

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
    // Who was removed here may still be in the room, until that is done there too.
    let is_ours = event.sender.nova_user(inbox.server()).is_some();
    if is_ours && !chat::is_member(conn, turn.conversation_id, author_id).await? {
        return refuse(conn, turn, event, "not_a_member").await;
    }
    turn.advance(conn).await?;
    let signal_id = SignalId::generate();
    let call_id = calls::call_of(conn, turn.conversation_id, &call.call_id).await?;
    let content: Value = serde_json::from_str(&call.content).unwrap_or_default();
    let sent_at = said_at(event.sent_at_ms, turn.at);
    let ring_until = (call.kind == SignalKind::Invite)
        .then(|| sent_at + call.lifetime_ms.map_or(MAX_RING, Duration::from_millis).min(MAX_RING));
    let held_back = calls::is_held_back(conn, turn.conversation_id, call_id).await?;
    // What a Matrix name may be is not known: what does not fit where it is looked for is not looked for.
    let detail =
        calls::detail(call.kind, &content).filter(|detail| detail.len() <= MAX_DETAIL && !detail.contains('\0'));
    let new = NewSignal {
        signal_id,
        call_id,
        matrix_call_id: &call.call_id,
        kind: call.kind,
        party_id: call.party_id.as_deref(),
        author_id,
        origin: Origin::Matrix,
        payload: Some(inbox.keys.seal(calls::place(turn.conversation_id, signal_id), &call.content)?),
        detail,
        send_outbox_id: None,
        event: Some((&event.event_id, &event.room_id)),
        expires_at: ring_until,
        created_at: sent_at,
        announced: true,
    };
    if !calls::insert_signal(conn, turn, &new).await? {
        return Ok(Applied::Duplicate);
    }
    remember(conn, turn, event, &Record::new("call", signal_id.as_uuid())).await?;
    let heard = Heard {
        signal_id,
        call_id,
        matrix_call_id: &call.call_id,
        kind: call.kind,
        party_id: call.party_id.as_deref(),
        author_id,
        detail,
        invitee: content.get("invitee").and_then(Value::as_str).and_then(|user| user.parse().ok()),
        service_user: inbox.service_user,
        event_id: &event.event_id,
        sent_at,
        ring_until,
    };
    // What does not count is kept, and nobody is told: it may be anybody's.
    if calls::hear(conn, turn, &heard).await? {
        if call.kind == SignalKind::Invite || held_back {
            calls::hold_back(conn, turn.conversation_id, signal_id).await?;
        } else {
            events::record(conn, turn.conversation_id, EventKind::CallSignal, signal_id.as_uuid()).await?;
        }
    }
    Ok(Applied::Changed)
}

/// The longest reason or party id that counts, in bytes.
const MAX_DETAIL: usize = 255;

/// When it was said, by its homeserver; never later than now, since clocks differ.
fn said_at(ms: i64, now: OffsetDateTime) -> OffsetDateTime {
    let said = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap_or(now);
    said.min(now)
}
