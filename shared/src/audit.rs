//! The trail of what operators did: a row for each act, written in the act's own transaction, never changed.

use std::str::FromStr;

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    database::plan_as_asked,
    ids::{ConversationId, TaskId},
    outbox::Cursor,
};

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Brings dead letters back.
    Requeue,
    /// Gives operations up for good.
    Discard,
    /// Ends what waits, as if its time were over.
    Expire,
    /// Says that an operation stands in its room, or is done.
    Complete,
    /// Stops sending.
    Pause,
    /// Lets go on.
    Resume,
    /// Compares with the room.
    Verify,
    /// Mends on Matrix.
    Repair,
    /// Ends a task before it is through.
    Cancel,
}

impl Verb {
    /// As in the database and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requeue => "requeue",
            Self::Discard => "discard",
            Self::Expire => "expire",
            Self::Complete => "complete",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Verify => "verify",
            Self::Repair => "repair",
            Self::Cancel => "cancel",
        }
    }

    const ALL: [Self; 9] = [
        Self::Requeue,
        Self::Discard,
        Self::Expire,
        Self::Complete,
        Self::Pause,
        Self::Resume,
        Self::Verify,
        Self::Repair,
        Self::Cancel,
    ];
}

/// Why a text is no verb of the trail.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("is none of: requeue, discard, expire, complete, pause, resume, verify, repair, cancel")]
pub struct NoVerb;

impl FromStr for Verb {
    type Err = NoVerb;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or(NoVerb)
    }
}

/// An act, as it is written down.
#[derive(Debug, Clone)]
pub(crate) struct Act<'a> {
    pub(crate) by: &'a str,
    pub(crate) verb: Verb,
    pub(crate) scope: &'static str,
    pub(crate) conversation_id: Option<ConversationId>,
    pub(crate) arguments: Value,
    pub(crate) affected: u64,
    pub(crate) reason: Option<&'a str>,
    pub(crate) task_id: Option<TaskId>,
}

/// Writes an act down, in its transaction.
pub(crate) async fn append(conn: &mut PgConnection, act: &Act<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into audit_log (audit_id, acted_at, acted_by, verb, scope, conversation_id, arguments, affected, reason,
            task_id)
        values ($1, outbox_now(), $2, $3, $4, $5, $6, $7, $8, $9)
        "#,
        Uuid::now_v7(),
        act.by,
        act.verb.as_str(),
        act.scope,
        act.conversation_id.map(ConversationId::as_uuid),
        act.arguments,
        i64::try_from(act.affected).unwrap_or(i64::MAX),
        act.reason,
        act.task_id.map(TaskId::as_uuid),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// An act of the past.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its id.
    pub audit_id: Uuid,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub acted_at: OffsetDateTime,
    /// Who.
    pub acted_by: String,
    /// What they did; see [`Verb`].
    pub verb: String,
    /// `operations`, `all`, `class`, `conversation`, `lane`, `held`, `filter` or `task`.
    pub scope: String,
    /// The conversation that it acted on, if it was one.
    pub conversation_id: Option<ConversationId>,
    /// What was asked for.
    pub arguments: Value,
    /// How many operations or lanes it changed.
    pub affected: i64,
    /// Why.
    pub reason: Option<String>,
    /// The task that it began, ended or was a step of.
    pub task_id: Option<TaskId>,
}

impl Entry {
    /// Where the page after this one begins.
    pub fn cursor(&self) -> Cursor {
        Cursor::new(self.acted_at, self.audit_id)
    }
}

/// Which acts.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// On this conversation.
    pub conversation_id: Option<ConversationId>,
    /// Of this kind.
    pub verb: Option<Verb>,
    /// Of this operator.
    pub by: Option<String>,
    /// That began, ended or were a step of this task.
    pub task_id: Option<TaskId>,
    /// Not before.
    pub since: Option<OffsetDateTime>,
    /// Before.
    pub until: Option<OffsetDateTime>,
}

/// The trail, newest first: all of it, or what a filter leaves. In a transaction.
pub async fn entries(
    conn: &mut PgConnection,
    filter: &AuditFilter,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Vec<Entry>, sqlx::Error> {
    plan_as_asked(conn).await?;
    sqlx::query_as!(
        Entry,
        r#"
        select audit_id, acted_at, acted_by, verb, scope, conversation_id as "conversation_id: ConversationId",
            arguments, affected, reason, task_id as "task_id: TaskId"
        from audit_log
        where ($1::uuid is null or conversation_id = $1)
            and ($2::timestamptz is null or (acted_at, audit_id) < ($2, $3))
            and ($5::text is null or verb = $5)
            and ($6::text is null or acted_by = $6)
            and ($7::uuid is null or task_id = $7)
            and ($8::timestamptz is null or acted_at >= $8)
            and ($9::timestamptz is null or acted_at < $9)
        order by acted_at desc, audit_id desc
        limit $4
        "#,
        filter.conversation_id.map(ConversationId::as_uuid),
        before.map(Cursor::at),
        before.map(Cursor::id),
        limit,
        filter.verb.map(Verb::as_str),
        filter.by,
        filter.task_id.map(TaskId::as_uuid),
        filter.since,
        filter.until,
    )
    .fetch_all(conn)
    .await
}

/// How many operations were requeued and discarded since a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requeued.
    pub requeued: u64,
    /// Discarded.
    pub discarded: u64,
}

/// Sums up the acts since a time. Summed anew each time: acts that commit late are missed by nobody.
pub async fn totals_since(conn: &mut PgConnection, since: OffsetDateTime) -> Result<Totals, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select coalesce(sum(affected) filter (where verb = 'requeue'), 0)::bigint as "requeued!",
            coalesce(sum(affected) filter (where verb = 'discard'), 0)::bigint as "discarded!"
        from audit_log
        where acted_at >= $1
        "#,
        since,
    )
    .fetch_one(conn)
    .await?;
    Ok(Totals {
        requeued: u64::try_from(row.requeued).unwrap_or(0),
        discarded: u64::try_from(row.discarded).unwrap_or(0),
    })
}
