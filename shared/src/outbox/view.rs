//! How far an operation has come, and why it waits, in the words of clients and operators.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{
    Repair,
    sentence::{Head, Standing, Why},
    words,
};
use crate::ids::{ConversationId, EventId, LaneId, OutboxId};

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

/// How it is said that a lane is held.
const HELD: &str = "an operator: its lane is held";

/// Attempts are counted up to so many.
const COUNTED_ATTEMPTS: i64 = 1_000;

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
    /// How many seconds it has waited since it was enqueued; none when it waits no more.
    pub waited: Option<i64>,
    /// All of this in a sentence: what it waits for, when it goes, and what is to be done.
    pub sentence: String,
    /// What can be done on Matrix about what it suffers from, by this program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
    /// The sentence for members.
    #[serde(skip)]
    plain: String,
    /// Its tries, oldest first; the last fifty.
    pub attempts: Vec<AttemptView>,
}

impl Explanation {
    /// For members: without what is for operators, such as the words about an attempt or a hold, which may name hosts,
    /// rooms and the operations of others.
    #[must_use]
    pub fn for_members(mut self) -> Self {
        for attempt in &mut self.attempts {
            attempt.detail = None;
        }
        if self.waiting_for.as_deref().is_some_and(|words| words.starts_with(HELD)) {
            self.waiting_for = Some(HELD.to_owned());
        }
        self.repair = None;
        self.sentence = std::mem::take(&mut self.plain);
        self
    }

    /// Of what was never meant for Matrix.
    pub fn disabled() -> Self {
        Self {
            state: Delivery::Disabled,
            event_id: None,
            waiting_for: None,
            due_at: None,
            ahead: 0,
            waited: None,
            sentence: "it was never meant for Matrix, which was switched off".to_owned(),
            repair: None,
            plain: String::new(),
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
    let row = look(conn, conversation_id, outbox_id).await?;
    let state = row.state();
    let live = matches!(state, Delivery::Pending | Delivery::Delivering);
    let standing = Standing {
        conversation_id,
        lane_id: row.lane_id,
        waited: row.waited.filter(|_| live),
        ahead: row.ahead,
        behind: row.behind,
        now: row.now,
    };
    let why = match state {
        Delivery::Dead => row.why_dead(),
        Delivery::Pending | Delivery::Delivering => row.why_it_waits(outbox_id),
        _ => row.why_over(),
    };
    let (waiting_for, due_at) = row.waiting_for(&why);
    Ok(Explanation {
        state,
        waiting_for,
        due_at,
        ahead: row.ahead,
        waited: standing.waited,
        sentence: why.for_operators(&standing),
        repair: why.repair(),
        plain: why.for_members(&standing),
        attempts,
        event_id: row.event_id,
    })
}

/// An operation and what is around it, wherever it stands.
struct Row {
    event_id: Option<EventId>,
    sent_at: Option<OffsetDateTime>,
    cause: Option<String>,
    errcode: Option<String>,
    hint: Option<String>,
    dead_kind: Option<String>,
    died_at: Option<OffsetDateTime>,
    withdrawal: Option<String>,
    withdrawn_at: Option<OffsetDateTime>,
    due_at: Option<OffsetDateTime>,
    waits: Option<bool>,
    lane_id: Option<LaneId>,
    hold: Option<String>,
    lane_paused_until: Option<OffsetDateTime>,
    pause_reason: Option<String>,
    leased: Option<bool>,
    paused: Option<String>,
    paused_until: Option<OffsetDateTime>,
    paused_scope: Option<String>,
    head_id: Option<OutboxId>,
    head_kind: Option<String>,
    head_failures: Option<i32>,
    head_errcode: Option<String>,
    head_due_at: Option<OffsetDateTime>,
    head_waits: Option<bool>,
    head_attempts: i64,
    ahead: i64,
    behind: i64,
    waited: Option<i64>,
    now: OffsetDateTime,
}

async fn look(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<Row, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        select s.event_id as "event_id?: EventId", s.sent_at as "sent_at?", d.cause as "cause?",
            d.errcode as "errcode?", d.hint as "hint?", d.kind as "dead_kind?", d.died_at as "died_at?",
            w.reason as "withdrawal?", w.withdrawn_at as "withdrawn_at?",
            o.due_at as "due_at?", o.seq > l.frozen_through and o.maybe_sent_at is null as waits,
            o.lane_id as "lane_id?: LaneId", l.hold as "hold?",
            case when l.paused_until > outbox_now() then l.paused_until end as lane_paused_until,
            l.pause_reason as "pause_reason?", l.leased_until > outbox_now() as leased, p.reason as "paused?",
            p.paused_until as "paused_until?", p.scope as "paused_scope?",
            head.outbox_id as "head_id?: OutboxId", head.kind as "head_kind?", head.failures as "head_failures?",
            head.last_errcode as "head_errcode?", head.due_at as "head_due_at?",
            head.due_at > outbox_now() as head_waits,
            (
                select count(*) from (
                    select 1 from attempts a
                    where a.conversation_id = o.conversation_id and a.outbox_id = head.outbox_id
                    limit $3
                ) tried
            ) as "head_attempts!",
            (
                select count(*) from outbox b
                where b.conversation_id = o.conversation_id and b.lane_id = o.lane_id and b.seq < o.seq
            ) as "ahead!",
            (
                select count(*) from outbox b
                where b.conversation_id = o.conversation_id and b.lane_id = o.lane_id and b.seq > o.seq
            ) as "behind!",
            extract(epoch from outbox_now() - o.enqueued_at)::bigint as waited, outbox_now() as "now!"
        from (select $1::uuid as conversation_id, $2::uuid as outbox_id) q
        left join sent_events s using (conversation_id, outbox_id)
        left join dead_letters d using (conversation_id, outbox_id)
        left join withdrawn_operations w using (conversation_id, outbox_id)
        left join outbox o using (conversation_id, outbox_id)
        left join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        left join lateral (
            select scope, reason, paused_until from pauses
            where scope in ('all', l.lane_class) and (paused_until is null or paused_until > outbox_now())
            order by scope
            limit 1
        ) p on o.outbox_id is not null
        left join lateral (
            select h.outbox_id, h.kind, h.failures, h.due_at, h.last_errcode from outbox h
            where h.conversation_id = o.conversation_id and h.lane_id = o.lane_id
            order by h.seq
            limit 1
        ) head on true
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
        COUNTED_ATTEMPTS,
    )
    .fetch_one(conn)
    .await
}

impl Row {
    fn state(&self) -> Delivery {
        match () {
            () if self.event_id.is_some() => Delivery::Delivered,
            () if self.cause.is_some() => Delivery::Dead,
            () if self.due_at.is_none() => Delivery::Cancelled,
            () if self.waits == Some(true) => Delivery::Pending,
            () => Delivery::Delivering,
        }
    }

    fn why_dead(&self) -> Why {
        let cause = self.cause.clone().unwrap_or_default();
        let errcode = self.errcode.clone();
        let kind = self.dead_kind.as_deref().unwrap_or_default();
        let hint = words::hint(&cause, errcode.as_deref(), kind, self.hint.as_deref().unwrap_or_default()).to_owned();
        let repair = words::repair(&cause, errcode.as_deref(), kind, None);
        Why::Dead { cause, errcode, hint, at: self.died_at, repair }
    }

    fn why_over(&self) -> Why {
        match (self.event_id.clone(), self.withdrawal.clone()) {
            (Some(event_id), _) => Why::Delivered { event_id, at: self.sent_at },
            (None, Some(reason)) => Why::Withdrawn { reason, at: self.withdrawn_at },
            (None, None) => Why::Cancelled,
        }
    }

    fn why_it_waits(&self, outbox_id: OutboxId) -> Why {
        if let Some(hold) = self.hold.clone() {
            return Why::Held { repair: words::repair_of_hold(&hold), hold };
        }
        if let Some(reason) = self.paused.clone() {
            let scope = self.paused_scope.clone().unwrap_or_default();
            return Why::ClassPaused { scope, reason, until: self.paused_until };
        }
        let leased = self.leased == Some(true);
        let others = self.head_id.filter(|head| *head != outbox_id);
        if leased && others.is_none() {
            return Why::UnderWay { attempt: self.head_attempts + 1 };
        }
        if let Some(until) = self.lane_paused_until {
            return Why::LanePaused { reason: self.pause_reason.clone().unwrap_or_default(), until };
        }
        let until = self.head_due_at.filter(|_| self.head_waits == Some(true));
        let (attempts, errcode) = (self.head_attempts, self.head_errcode.clone());
        match (others, until) {
            (Some(head), until) => Why::Behind(Head {
                outbox_id: head,
                kind: self.head_kind.clone().unwrap_or_default(),
                attempts,
                errcode,
                until,
                under_way: leased,
            }),
            (None, Some(until)) if attempts > 0 => Why::BacksOff { attempt: attempts, errcode, until },
            (None, Some(at)) => Why::NotBefore { at },
            (None, None) => Why::Worker,
        }
    }

    /// What it waits for, and until when, in a few words.
    fn waiting_for(&self, why: &Why) -> (Option<String>, Option<OffsetDateTime>) {
        let failures = self.head_failures.unwrap_or(0);
        let (words, due_at) = match why {
            Why::Dead { cause, errcode, hint, .. } => {
                let errcode = errcode.as_ref().map(|errcode| format!(" ({errcode})")).unwrap_or_default();
                (format!("an operator: {}{errcode}; {hint}", words::cause_in_words(cause)), None)
            }
            Why::Held { hold, .. } => (format!("{HELD} ({hold})"), None),
            Why::ClassPaused { reason, until, .. } => (format!("the end of a pause ({reason})"), *until),
            Why::UnderWay { .. } => ("the homeserver's answer".to_owned(), self.due_at),
            Why::LanePaused { reason, until } => (format!("the end of a pause of its lane ({reason})"), Some(*until)),
            Why::Behind(head) => {
                let again = if head.until.is_some() { ", which waits after a failed attempt" } else { "" };
                (format!("{} before it in its lane; first is a {}{again}", self.ahead, head.kind), self.head_due_at)
            }
            Why::BacksOff { .. } | Why::NotBefore { .. } | Why::Worker if failures > 0 => {
                (format!("its next attempt, after {failures} that failed"), self.due_at)
            }
            Why::BacksOff { .. } | Why::NotBefore { .. } | Why::Worker => ("a worker".to_owned(), self.due_at),
            Why::Delivered { .. } | Why::Withdrawn { .. } | Why::Cancelled => return (None, None),
        };
        (Some(words), due_at)
    }
}
