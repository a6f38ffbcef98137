//! Lists for operators: what is held or paused, what waits, what is delivered. References only, never a text.
//!
//! Each is one scan of an index, a page at a time, however much there is. Call them in a transaction: they have their
//! statements planned for what is asked, since a plan that serves any filter would read everything for a rare one. What is
//! dead is in `search`.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Cursor, Repair, words};
use crate::{
    database::plan_as_asked,
    ids::{ConversationId, EventId, LaneId, OutboxId, UserId},
};

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
    /// What can be done about that on Matrix, by this program.
    pub repair: Option<Repair>,
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
    let rows = sqlx::query!(
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
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| HeldLane {
            conversation_id: row.conversation_id,
            lane_id: row.lane_id,
            lane_class: row.lane_class,
            repair: words::repair_of_hold(&row.reason),
            reason: row.reason,
            waiting: row.waiting,
            oldest_at: row.oldest_at,
        })
        .collect())
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
        Cursor::new(self.until, self.lane_id.as_uuid())
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
        after.map(Cursor::at),
        after.map(Cursor::id),
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

/// An id tells when it was made by the clock of the machine that made it, and rows by the database's: never so far apart.
const CLOCKS_APART: Duration = Duration::from_hours(24);

/// The first id that could have been made at a time.
pub(super) fn first_id_at(at: OffsetDateTime) -> Uuid {
    let ms = u128::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    Uuid::from_u128(ms << 80)
}

/// Which live operations. Without anything, all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveFilter {
    /// Of this conversation.
    pub conversation_id: Option<ConversationId>,
    /// That do this.
    pub kind: Option<String>,
    /// Of this user: who wrote, reacted, is invited or removed, or speaks in the call.
    pub user_id: Option<UserId>,
    /// Whose last failure had this Matrix error code.
    pub errcode: Option<String>,
    /// That were enqueued then or later.
    pub since: Option<OffsetDateTime>,
    /// That were enqueued before then.
    pub until: Option<OffsetDateTime>,
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
    /// The message, the member or the call.
    pub subject_id: Uuid,
    /// Whose it is.
    pub user_id: Option<UserId>,
    /// How many attempts in a row failed, for whatever reason.
    pub failures: i32,
    /// The Matrix error code of the last failure, if it had one.
    pub last_errcode: Option<String>,
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
///
/// A conversation and an error code lead to what is asked for; a kind and a user are looked for among all that waits, in
/// its order.
pub async fn live_operations(
    conn: &mut PgConnection,
    filter: &LiveFilter,
    after: Option<OutboxId>,
    limit: i64,
) -> Result<Vec<LiveOperation>, sqlx::Error> {
    plan_as_asked(conn).await?;
    sqlx::query_as!(
        LiveOperation,
        r#"
        select o.outbox_id as "outbox_id: OutboxId", o.conversation_id as "conversation_id: ConversationId",
            o.lane_id as "lane_id: LaneId", o.seq, o.kind, o.subject_id,
            outbox_user(o.conversation_id, o.kind, o.subject_id, o.outbox_id) as "user_id: UserId",
            o.failures, o.last_errcode, o.maybe_sent_at is not null as "maybe_sent!",
            not exists (
                select 1 from outbox b
                where b.conversation_id = o.conversation_id and b.lane_id = o.lane_id and b.seq < o.seq
            ) as "first!",
            l.due_at as lane_due_at, l.hold, o.enqueued_at
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where ($1::uuid is null or o.conversation_id = $1)
            and ($2::text is null or o.kind = $2)
            and ($3::uuid is null or outbox_user(o.conversation_id, o.kind, o.subject_id, o.outbox_id) = $3)
            and ($4::text is null or o.last_errcode = $4)
            and ($5::timestamptz is null or o.enqueued_at >= $5)
            and ($6::timestamptz is null or o.enqueued_at < $6)
            and ($7::uuid is null or o.outbox_id >= $7)
            and ($8::uuid is null or o.outbox_id > $8)
        order by o.outbox_id
        limit $9
        "#,
        filter.conversation_id.map(ConversationId::as_uuid),
        filter.kind,
        filter.user_id.map(UserId::as_uuid),
        filter.errcode,
        filter.since,
        filter.until,
        filter.since.map(|since| first_id_at(since - CLOCKS_APART)),
        after.map(OutboxId::as_uuid),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Which delivered operations. Without anything, all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SentFilter {
    /// Of this conversation.
    pub conversation_id: Option<ConversationId>,
    /// That did this.
    pub kind: Option<String>,
    /// Of this user.
    pub user_id: Option<UserId>,
    /// That were made then or later.
    pub since: Option<OffsetDateTime>,
    /// That were made before then.
    pub until: Option<OffsetDateTime>,
}

/// A send that stands in its room.
#[derive(Debug, Clone, Serialize)]
pub struct SentOperation {
    /// The operation.
    pub outbox_id: OutboxId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// What it did.
    pub kind: String,
    /// The message or the call.
    pub subject_id: Uuid,
    /// Whose it is.
    pub user_id: Option<UserId>,
    /// Which revision of the message it carried.
    pub revision: Option<i32>,
    /// Its event.
    pub event_id: EventId,
    /// The room that has it.
    pub room_id: String,
    /// Who sent it there.
    pub sender: String,
    /// When that was written down.
    #[serde(with = "time::serde::rfc3339")]
    pub sent_at: OffsetDateTime,
}

impl SentOperation {
    /// Where the page after this one begins.
    pub fn cursor(&self) -> Cursor {
        Cursor::new(self.sent_at, self.outbox_id.as_uuid())
    }
}

/// How many delivered operations are looked at for a kind or a user: those are no way to them, and delivered ones are kept
/// for ever. About a second's worth.
const MOST_LOOKED_AT: i64 = 100_000;

/// Delivered sends, those that were made last first. A kind or a user is looked for among the next 100,000 that the other
/// wishes leave: narrow the time or name a conversation for what is rarer.
pub async fn sent_operations(
    conn: &mut PgConnection,
    filter: &SentFilter,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Vec<SentOperation>, sqlx::Error> {
    plan_as_asked(conn).await?;
    sqlx::query_as!(
        SentOperation,
        r#"
        select outbox_id as "outbox_id: OutboxId", conversation_id as "conversation_id: ConversationId", kind,
            subject_id, outbox_user(conversation_id, kind, subject_id, outbox_id) as "user_id: UserId", revision,
            event_id as "event_id: EventId", room_id, sender, sent_at
        from (
            select * from sent_events
            where ($1::uuid is null or conversation_id = $1)
                and ($2::uuid is null or outbox_id >= $2)
                and ($3::uuid is null or outbox_id < $3)
                and ($4::uuid is null or outbox_id < $4)
            order by outbox_id desc
            limit $5
        ) looked_at
        where ($6::text is null or kind = $6)
            and ($7::uuid is null or outbox_user(conversation_id, kind, subject_id, outbox_id) = $7)
        order by outbox_id desc
        limit $8
        "#,
        filter.conversation_id.map(ConversationId::as_uuid),
        filter.since.map(first_id_at),
        filter.until.map(first_id_at),
        before.map(Cursor::id),
        if filter.kind.is_none() && filter.user_id.is_none() { limit } else { MOST_LOOKED_AT },
        filter.kind,
        filter.user_id.map(UserId::as_uuid),
        limit,
    )
    .fetch_all(conn)
    .await
}
