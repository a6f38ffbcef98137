//! Candidates: each is told to our own clients at once, and to Matrix a few at a time.
//!
//! The first of a device opens a batch, an operation that is due a little later; what comes until a worker takes it goes
//! along. The end of candidates, or anything else that the lane sends, makes it go at once.

use serde_json::{Value, json};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::{
    CallError, MAX_CANDIDATES, MAX_SIGNAL_BYTES, SignalKind, Status,
    carry::{self, Said, Send},
    row::Row,
    signals,
};
use crate::{
    chat::Turn,
    ids::{CallId, ConversationId, LaneId, OutboxId, SignalId, UserId},
    seal::KeyRing,
};

/// How long the caller's candidates are collected while it rings.
const WHILE_RINGING: Duration = Duration::seconds(2);

/// How long candidates are collected once somebody waits for them.
const WHILE_ANSWERED: Duration = Duration::milliseconds(500);

/// Takes candidates of a device. Those that it has named before are left out. False when all were.
pub(super) async fn say(
    conn: &mut PgConnection,
    turn: &mut Turn,
    keys: &KeyRing,
    call: &Row,
    (user_id, party_id): (UserId, &str),
    candidates: Vec<Value>,
    to_matrix: bool,
) -> Result<bool, CallError> {
    let mut known = named(conn, keys, turn.conversation_id, call.call_id, party_id).await?;
    let mut new = Vec::new();
    for candidate in candidates {
        if !known.contains(&candidate) {
            known.push(candidate.clone());
            new.push(candidate);
        }
    }
    if new.is_empty() {
        return Ok(false);
    }
    if known.len() > MAX_CANDIDATES {
        return Err(CallError::TooManyCandidates);
    }
    let last = new.iter().any(|candidate| candidate.get("candidate").and_then(Value::as_str) == Some(""));
    let content = json!({"candidates": new});
    let mut said = Said {
        kind: SignalKind::Candidates,
        party_id: Some(party_id),
        author_id: user_id,
        content: Some((keys, &content)),
        detail: None,
        send: None,
        told: true,
    };
    if !to_matrix {
        carry::put(conn, turn, call, said).await?;
        return Ok(true);
    }
    let lane_id = carry::open_lane(conn, turn.conversation_id, call.call_id).await?;
    let more = content.to_string().len();
    if let Some(outbox_id) = open_batch(conn, turn.conversation_id, lane_id, party_id, more).await? {
        said.send = Some(Send { outbox_id, ..Send::now() });
        turn.advance(conn).await?;
        carry::write(conn, turn, call, &said).await?;
        if last {
            carry::hurry(conn, turn, lane_id).await?;
        }
        return Ok(true);
    }
    let wait = if call.status == Status::Ringing { WHILE_RINGING } else { WHILE_ANSWERED };
    let not_before: Option<OffsetDateTime> = (!last).then(|| turn.at + wait);
    said.send = Some(Send { not_before, ..Send::now() });
    carry::put(conn, turn, call, said).await?;
    Ok(true)
}

/// A batch of the device's candidates that still waits and has room for so many bytes more.
async fn open_batch(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
    party_id: &str,
    more: usize,
) -> Result<Option<OutboxId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select o.outbox_id as "outbox_id: OutboxId"
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where o.conversation_id = $1 and o.lane_id = $2 and o.kind = 'call_candidates'
            and o.seq > l.frozen_through and o.maybe_sent_at is null
            -- What is said after somebody's removal waits for it.
            and not exists (
                select 1 from outbox r
                where r.conversation_id = o.conversation_id and r.lane_id = o.conversation_id
                    and r.kind = 'remove' and r.seq > o.seq
            )
            and exists (
                select 1 from call_signals s
                where s.conversation_id = o.conversation_id and s.send_outbox_id = o.outbox_id and s.party_id = $3
            )
            and $4 + (
                select sum(octet_length(s.payload)) from call_signals s
                where s.conversation_id = o.conversation_id and s.send_outbox_id = o.outbox_id
            ) <= $5
        order by o.seq desc
        limit 1
        "#,
        conversation_id.as_uuid(),
        lane_id.as_uuid(),
        party_id,
        i64::try_from(more).unwrap_or(i64::MAX),
        i64::try_from(MAX_SIGNAL_BYTES).unwrap_or(i64::MAX),
    )
    .fetch_optional(conn)
    .await
}

/// What a device has named so far.
async fn named(
    conn: &mut PgConnection,
    keys: &KeyRing,
    conversation_id: ConversationId,
    call_id: CallId,
    party_id: &str,
) -> Result<Vec<Value>, CallError> {
    let rows = sqlx::query!(
        r#"
        select signal_id as "signal_id: SignalId", payload as "payload!" from call_signals
        where conversation_id = $1 and call_id = $2 and kind = 'candidates' and party_id = $3 and origin = 'nova'
            and payload is not null
        order by seq
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
        party_id,
    )
    .fetch_all(conn)
    .await?;
    let mut named = Vec::new();
    for row in rows {
        let mut content = signals::open(keys, conversation_id, row.signal_id, &row.payload)?;
        if let Some(Value::Array(candidates)) = content.get_mut("candidates").map(Value::take) {
            named.extend(candidates);
        }
    }
    Ok(named)
}
