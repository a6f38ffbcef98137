//! How far an operation has come, and why it waits, in the words of clients and operators.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::words;
use crate::ids::{ConversationId, EventId, OutboxId};

/// How far a message has come on its way to Matrix.
///
/// There is no column that says so: where the row of its operation stands says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Delivery {
    /// It waits; an edit or a delete still changes what is sent.
    Pending,
    /// It was handed to a sender; how that ended is not known yet.
    Delivering,
    /// It stands in the room.
    Delivered,
    /// It will not be tried again by itself.
    Dead,
    /// It was deleted before it was sent.
    Cancelled,
    /// It was no longer worth sending.
    Expired,
    /// It was never meant for Matrix.
    Disabled,
}

/// One try of an operation.
#[derive(Debug, Clone, Serialize)]
pub struct AttemptView {
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// How it ended.
    pub outcome: String,
    /// The homeserver's status, when it answered.
    pub http_status: Option<i32>,
    /// The Matrix error code, when it gave one.
    pub errcode: Option<String>,
    /// What went wrong, for operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How long it took.
    pub duration_ms: i32,
}

/// Where an operation stands and what it waits for.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// How far it has come.
    pub state: Delivery,
    /// Its event, once known.
    pub event_id: Option<EventId>,
    /// What it waits for, in words; none when it waits for nothing.
    pub waiting_for: Option<String>,
    /// When it goes at the earliest; none when that depends on somebody.
    #[serde(with = "time::serde::rfc3339::option")]
    pub due_at: Option<OffsetDateTime>,
    /// How many operations of its lane go before it.
    pub ahead: i64,
    /// Its tries, oldest first; the last fifty.
    pub attempts: Vec<AttemptView>,
}

impl Explanation {
    /// For members: without the words about an attempt, which may name hosts of the operator's.
    #[must_use]
    pub fn for_members(mut self) -> Self {
        for attempt in &mut self.attempts {
            attempt.detail = None;
        }
        self
    }

    /// Of what was never meant for Matrix.
    pub const fn disabled() -> Self {
        Self {
            state: Delivery::Disabled,
            event_id: None,
            waiting_for: None,
            due_at: None,
            ahead: 0,
            attempts: Vec::new(),
        }
    }
}

/// Says where an operation stands and why it waits.
pub async fn explain(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<Explanation, sqlx::Error> {
    let mut attempts = sqlx::query_as!(
        AttemptView,
        r#"
        select attempted_at as at, outcome, http_status, errcode, detail, duration_ms
        from attempts
        where conversation_id = $1 and outbox_id = $2
        order by attempted_at desc
        limit 50
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_all(&mut *conn)
    .await?;
    attempts.reverse();
    let row = sqlx::query!(
        r#"
        select s.event_id as "event_id?: EventId", d.cause as "cause?", d.errcode as "errcode?", d.hint as "hint?",
            o.due_at as "due_at?", o.seq > l.frozen_through and o.maybe_sent_at is null as "waits", l.hold,
            d.kind as "dead_kind?",
            case when l.paused_until > outbox_now() then l.paused_until end as lane_paused_until, l.pause_reason,
            l.leased_until > outbox_now() as "leased", p.reason as "paused?", p.paused_until as "paused_until?",
            head.outbox_id as "head_id?: OutboxId", head.kind as "head_kind?", head.failures as "head_failures?",
            head.due_at as "head_due_at?", head.due_at > outbox_now() as "head_waits?",
            (
                select count(*) from outbox b
                where b.conversation_id = o.conversation_id and b.lane_id = o.lane_id and b.seq < o.seq
            ) as "ahead!"
        from (select $1::uuid as conversation_id, $2::uuid as outbox_id) q
        left join sent_events s using (conversation_id, outbox_id)
        left join dead_letters d using (conversation_id, outbox_id)
        left join outbox o using (conversation_id, outbox_id)
        left join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        left join lateral (
            select reason, paused_until from pauses
            where scope in ('all', l.lane_class) and (paused_until is null or paused_until > outbox_now())
            order by scope
            limit 1
        ) p on o.outbox_id is not null
        left join lateral (
            select h.outbox_id, h.kind, h.failures, h.due_at from outbox h
            where h.conversation_id = o.conversation_id and h.lane_id = o.lane_id
            order by h.seq
            limit 1
        ) head on true
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_one(conn)
    .await?;

    let state = match () {
        () if row.event_id.is_some() => Delivery::Delivered,
        () if row.cause.is_some() => Delivery::Dead,
        () if row.due_at.is_none() => Delivery::Cancelled,
        () if row.waits == Some(true) => Delivery::Pending,
        () => Delivery::Delivering,
    };
    let first = row.head_id == Some(outbox_id);
    let (waiting_for, due_at) = match state {
        Delivery::Dead => {
            let errcode = row.errcode.as_ref().map(|errcode| format!(" ({errcode})")).unwrap_or_default();
            let cause = row.cause.unwrap_or_default();
            let noted = row.hint.unwrap_or_default();
            let hint =
                words::hint(&cause, row.errcode.as_deref(), row.dead_kind.as_deref().unwrap_or_default(), &noted);
            (Some(format!("an operator: {}{errcode}; {hint}", words::cause_in_words(&cause))), None)
        }
        Delivery::Pending | Delivery::Delivering => match (row.hold, row.paused) {
            (Some(hold), _) => (Some(format!("an operator: its lane is held ({hold})")), None),
            (None, Some(reason)) => (Some(format!("the end of a pause ({reason})")), row.paused_until),
            (None, None) if row.leased == Some(true) && first => {
                (Some("the homeserver's answer".to_owned()), row.due_at)
            }
            (None, None) if row.lane_paused_until.is_some() => {
                let reason = row.pause_reason.unwrap_or_default();
                (Some(format!("the end of a pause of its lane ({reason})")), row.lane_paused_until)
            }
            (None, None) if !first => {
                let kind = row.head_kind.unwrap_or_default();
                let again = if row.head_waits == Some(true) { ", which waits after a failed attempt" } else { "" };
                let words = format!("{} before it in its lane; first is a {kind}{again}", row.ahead);
                (Some(words), row.head_due_at)
            }
            (None, None) if row.head_failures.unwrap_or(0) > 0 => {
                (Some(format!("its next attempt, after {} that failed", row.head_failures.unwrap_or(0))), row.due_at)
            }
            (None, None) => (Some("a worker".to_owned()), row.due_at),
        },
        _ => (None, None),
    };
    Ok(Explanation { state, event_id: row.event_id, waiting_for, due_at, ahead: row.ahead, attempts })
}
