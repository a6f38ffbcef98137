//! Lists for operators: what is dead, what is held or paused, what waits. References only, never a text.
//!
//! Each is one scan of an index, a page at a time, however much there is. Call them in a transaction: they have their
//! statements planned for what is asked, since a plan that serves any filter would read everything for a rare one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::words;
use crate::{
    database::plan_as_asked,
    ids::{ConversationId, LaneId, OutboxId, UserId},
};

/// Where the next page begins: after this time and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    at: OffsetDateTime,
    id: Uuid,
}

impl Cursor {
    /// After this time and id.
    pub(crate) const fn new(at: OffsetDateTime, id: Uuid) -> Self {
        Self { at, id }
    }

    pub(crate) const fn at(self) -> OffsetDateTime {
        self.at
    }

    pub(crate) const fn id(self) -> Uuid {
        self.id
    }
}

/// Why a text is no cursor.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("is no cursor of an earlier page")]
pub struct NoCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at.unix_timestamp_nanos() / 1000, self.id.simple())
    }
}

impl FromStr for Cursor {
    type Err = NoCursor;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (at, id) = text.split_once('.').ok_or(NoCursor)?;
        let micros: i64 = at.parse().map_err(|_| NoCursor)?;
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(|_| NoCursor)?;
        Ok(Self { at, id: id.parse().map_err(|_| NoCursor)? })
    }
}

/// Which dead letters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadFilter {
    /// Of this conversation.
    pub conversation_id: Option<ConversationId>,
    /// That do this.
    pub kind: Option<String>,
    /// That died of this cause.
    pub cause: Option<String>,
    /// That the homeserver refused with this code.
    pub errcode: Option<String>,
    /// Whose they are.
    pub user_id: Option<UserId>,
    /// Whose detail has this in it, in whatever case.
    pub text: Option<String>,
    /// That did not die before.
    #[serde(with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// That died before.
    #[serde(with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// The operation.
    pub outbox_id: OutboxId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// The lane that it left.
    pub lane_id: LaneId,
    /// Its place there.
    pub seq: i64,
    /// What it does.
    pub kind: String,
    /// The message or the member.
    pub subject_id: Uuid,
    /// Which revision of the message it carries.
    pub revision: Option<i32>,
    /// How many attempts failed by its own fault.
    pub attempts: i32,
    /// True when it may stand in the room all the same.
    pub maybe_sent: bool,
    /// Why it died.
    pub cause: String,
    /// The same in words.
    #[serde(rename = "cause_in_words")]
    pub words: String,
    /// The Matrix error code of the last attempt.
    pub errcode: Option<String>,
    /// What to do about it.
    pub hint: String,
    /// When it was enqueued.
    #[serde(with = "time::serde::rfc3339")]
    pub enqueued_at: OffsetDateTime,
    /// When it died.
    #[serde(with = "time::serde::rfc3339")]
    pub died_at: OffsetDateTime,
}

impl DeadLetter {
    /// Where the page after this one begins.
    pub fn cursor(&self) -> Cursor {
        Cursor { at: self.died_at, id: self.outbox_id.as_uuid() }
    }
}

/// Dead letters, newest first.
pub async fn dead_letters(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Vec<DeadLetter>, sqlx::Error> {
    plan_as_asked(conn).await?;
    let rows = sqlx::query!(
        r#"
        select outbox_id as "outbox_id: OutboxId", conversation_id as "conversation_id: ConversationId",
            lane_id as "lane_id: LaneId", seq, kind, subject_id, revision, attempts,
            maybe_sent_at is not null as "maybe_sent!", cause, errcode, hint, enqueued_at, died_at
        from dead_letters
        where ($1::uuid is null or conversation_id = $1)
            and ($2::text is null or kind = $2)
            and ($3::text is null or cause = $3)
            and ($4::text is null or errcode = $4)
            and ($5::timestamptz is null or (died_at, outbox_id) < ($5, $6))
        order by died_at desc, outbox_id desc
        limit $7
        "#,
        filter.conversation_id.map(ConversationId::as_uuid),
        filter.kind,
        filter.cause,
        filter.errcode,
        before.map(|cursor| cursor.at),
        before.map(|cursor| cursor.id),
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| DeadLetter {
            outbox_id: row.outbox_id,
            conversation_id: row.conversation_id,
            lane_id: row.lane_id,
            seq: row.seq,
            subject_id: row.subject_id,
            revision: row.revision,
            attempts: row.attempts,
            maybe_sent: row.maybe_sent,
            words: words::cause_in_words(&row.cause).to_owned(),
            hint: words::hint(&row.cause, row.errcode.as_deref(), &row.kind, &row.hint).to_owned(),
            kind: row.kind,
            cause: row.cause,
            errcode: row.errcode,
            enqueued_at: row.enqueued_at,
            died_at: row.died_at,
        })
        .collect())
}

/// A lane that waits for somebody.
#[derive(Debug, Clone, Serialize)]
pub struct HeldLane {
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// The lane.
    pub lane_id: LaneId,
    /// Its class.
    pub lane_class: String,
    /// Why.
    pub reason: String,
    /// How many operations wait in it.
    pub waiting: i32,
    /// When the first of them was enqueued.
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest_at: Option<OffsetDateTime>,
}

/// Lanes that are held, in the order of their conversations, after a lane or from the first.
pub async fn held_lanes(
    conn: &mut PgConnection,
    conversation_id: Option<ConversationId>,
    after: Option<(ConversationId, LaneId)>,
    limit: i64,
) -> Result<Vec<HeldLane>, sqlx::Error> {
    plan_as_asked(conn).await?;
    sqlx::query_as!(
        HeldLane,
        r#"
        select l.conversation_id as "conversation_id: ConversationId", l.lane_id as "lane_id: LaneId", l.lane_class,
            l.hold as "reason!", l.open as waiting, first.enqueued_at as "oldest_at?"
        from lanes l
        left join lateral (
            select o.enqueued_at from outbox o
            where o.conversation_id = l.conversation_id and o.lane_id = l.lane_id
            order by o.seq
            limit 1
        ) first on true
        where l.hold is not null
            and ($1::uuid is null or l.conversation_id = $1)
            and ($2::uuid is null or (l.conversation_id, l.lane_id) > ($2, $3))
        order by l.conversation_id, l.lane_id
        limit $4
        "#,
        conversation_id.map(ConversationId::as_uuid),
        after.map(|(conversation_id, _)| conversation_id.as_uuid()),
        after.map(|(_, lane_id)| lane_id.as_uuid()),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// A lane that is paused until a time.
#[derive(Debug, Clone, Serialize)]
pub struct PausedLane {
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// The lane.
    pub lane_id: LaneId,
    /// Its class.
    pub lane_class: String,
    /// Why.
    pub reason: String,
    /// Until when.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// How many operations wait in it.
    pub waiting: i32,
}

impl PausedLane {
    /// Where the page after this one begins.
    pub fn cursor(&self) -> Cursor {
        Cursor { at: self.until, id: self.lane_id.as_uuid() }
    }
}

/// Lanes that are paused until a time, those that go on soonest first.
pub async fn paused_lanes(
    conn: &mut PgConnection,
    conversation_id: Option<ConversationId>,
    after: Option<Cursor>,
    limit: i64,
) -> Result<Vec<PausedLane>, sqlx::Error> {
    plan_as_asked(conn).await?;
    sqlx::query_as!(
        PausedLane,
        r#"
        select conversation_id as "conversation_id: ConversationId", lane_id as "lane_id: LaneId", lane_class,
            pause_reason as "reason!", paused_until as "until!", open as waiting
        from lanes
        where paused_until > outbox_now()
            and ($1::uuid is null or conversation_id = $1)
            and ($2::timestamptz is null or (paused_until, lane_id) > ($2, $3))
        order by paused_until, lane_id
        limit $4
        "#,
        conversation_id.map(ConversationId::as_uuid),
        after.map(|cursor| cursor.at),
        after.map(|cursor| cursor.id),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// A pause of everything or of a class.
#[derive(Debug, Clone, Serialize)]
pub struct PauseOfClass {
    /// `all`, `call` or `chat`.
    pub scope: String,
    /// Why.
    pub reason: String,
    /// Until when; null until somebody resumes.
    #[serde(with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
    /// Who paused.
    pub paused_by: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub paused_at: OffsetDateTime,
}

/// The pauses of everything and of classes that last.
pub async fn pauses(conn: &mut PgConnection) -> Result<Vec<PauseOfClass>, sqlx::Error> {
    sqlx::query_as!(
        PauseOfClass,
        r#"
        select scope, reason, paused_until as until, created_by as paused_by, created_at as paused_at
        from pauses
        where paused_until is null or paused_until > outbox_now()
        order by scope
        "#,
    )
    .fetch_all(conn)
    .await
}

/// An operation that is still to be done.
#[derive(Debug, Clone, Serialize)]
pub struct LiveOperation {
    /// The operation.
    pub outbox_id: OutboxId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// Its lane.
    pub lane_id: LaneId,
    /// Its place there.
    pub seq: i64,
    /// What it does.
    pub kind: String,
    /// The message or the member.
    pub subject_id: Uuid,
    /// How many attempts in a row failed, for whatever reason.
    pub failures: i32,
    /// True when it may stand in the room already.
    pub maybe_sent: bool,
    /// True when it is the first of its lane.
    pub first: bool,
    /// When its lane may go on; null when it is held.
    #[serde(with = "time::serde::rfc3339::option")]
    pub lane_due_at: Option<OffsetDateTime>,
    /// Why its lane is held.
    pub hold: Option<String>,
    /// When it was enqueued.
    #[serde(with = "time::serde::rfc3339")]
    pub enqueued_at: OffsetDateTime,
}

/// Live operations, oldest first, after one or from the first. Their ids are UUIDs v7, so those made later sort later.
pub async fn live_operations(
    conn: &mut PgConnection,
    conversation_id: Option<ConversationId>,
    kind: Option<&str>,
    after: Option<OutboxId>,
    limit: i64,
) -> Result<Vec<LiveOperation>, sqlx::Error> {
    plan_as_asked(conn).await?;
    sqlx::query_as!(
        LiveOperation,
        r#"
        select o.outbox_id as "outbox_id: OutboxId", o.conversation_id as "conversation_id: ConversationId",
            o.lane_id as "lane_id: LaneId", o.seq, o.kind, o.subject_id, o.failures,
            o.maybe_sent_at is not null as "maybe_sent!",
            not exists (
                select 1 from outbox b
                where b.conversation_id = o.conversation_id and b.lane_id = o.lane_id and b.seq < o.seq
            ) as "first!",
            l.due_at as lane_due_at, l.hold, o.enqueued_at
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where ($1::uuid is null or o.conversation_id = $1)
            and ($2::text is null or o.kind = $2)
            and ($3::uuid is null or o.outbox_id > $3)
        order by o.outbox_id
        limit $4
        "#,
        conversation_id.map(ConversationId::as_uuid),
        kind,
        after.map(OutboxId::as_uuid),
        limit,
    )
    .fetch_all(conn)
    .await
}
