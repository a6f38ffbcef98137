//! Tasks: what operators ask for that is too much for one transaction, or needs the homeserver.
//!
//! A task is a row with its progress; what is left of it are its parts, a row for each conversation. It is done step by
//! step by whichever process comes first: a step of a requeue is one transaction under the task's row lock, a step of
//! what asks the homeserver holds a lease instead, since no lock is held across a request. What a process leaves that
//! ends in between, the next one does: a part's row goes with the transaction that did it.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    audit::{self, Act, Verb},
    ids::{ConversationId, TaskId, WorkerId},
    outbox::{self, Ailment, Repair},
    verify::FindingKind,
};

mod as_of;
mod requeue;

pub use as_of::{AsOf, NoAsOf};
pub use requeue::{Preview, Step, preview_requeue, start_requeue, step, take_time};

/// How many findings a task keeps: more than anybody reads, and a row that stays small. What is more is only counted.
pub const MOST_FINDINGS: i32 = 1_000;

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum TaskKind {
    /// Brings dead letters back that a filter chose.
    Requeue,
    /// Compares conversations with their rooms.
    Verify,
    /// Mends conversations on Matrix.
    Repair,
}

impl TaskKind {
    /// As in the database and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requeue => "requeue",
            Self::Verify => "verify",
            Self::Repair => "repair",
        }
    }
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum TaskStatus {
    /// There is something left to do.
    Running,
    /// It is through.
    Done,
    /// An operator ended it before it was through.
    Cancelled,
    /// It could not be done.
    Failed,
}

impl TaskStatus {
    /// As in the database and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// A task.
#[derive(Debug, Clone, Serialize)]
pub struct Task {
    /// Its id.
    pub task_id: TaskId,
    /// What it does.
    pub kind: TaskKind,
    /// What was asked for: the filter, or which repair.
    pub arguments: Value,
    /// For a requeue: whose dead letters it takes, as the dry run named it.
    pub as_of: Option<AsOf>,
    /// The conversation, where it is about one.
    pub conversation_id: Option<ConversationId>,
    /// How many operations a second at most.
    pub rate: Option<i32>,
    /// Who asked for it.
    pub created_by: String,
    /// Why.
    pub reason: Option<String>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// How far it is.
    pub status: TaskStatus,
    /// How much there was to do when it began: operations of a requeue, conversations else.
    pub expected: i64,
    /// How much is done.
    pub done: i64,
    /// How much could not be done.
    pub refused: i64,
    /// What was found or could not be done: a list, of [`MOST_FINDINGS`] at most.
    pub findings: Value,
    /// Of a comparison: how much was found of each kind, also of what [`MOST_FINDINGS`] leaves out. Of others empty.
    pub counts: Value,
    /// Why it failed; while it runs, why it does not get on.
    pub error: Option<String>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Who cancelled it.
    pub ended_by: Option<String>,
}

impl Task {
    /// How much was found of each kind.
    pub fn counted(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.counts.clone()).unwrap_or_default()
    }
}

/// A task, by its id.
pub async fn task(conn: &mut PgConnection, task_id: TaskId) -> Result<Option<Task>, sqlx::Error> {
    sqlx::query_as!(
        Task,
        r#"
        select task_id as "task_id: TaskId", kind as "kind: TaskKind", arguments, as_of as "as_of: AsOf",
            conversation_id as "conversation_id: ConversationId", rate, created_by, reason, created_at,
            status as "status: TaskStatus", expected, done, refused, findings, counts, error, ended_at, ended_by
        from operator_tasks
        where task_id = $1
        "#,
        task_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Tasks, newest first, those before one or from the newest. Their ids are UUIDs v7.
pub async fn tasks(conn: &mut PgConnection, before: Option<TaskId>, limit: i64) -> Result<Vec<Task>, sqlx::Error> {
    sqlx::query_as!(
        Task,
        r#"
        select task_id as "task_id: TaskId", kind as "kind: TaskKind", arguments, as_of as "as_of: AsOf",
            conversation_id as "conversation_id: ConversationId", rate, created_by, reason, created_at,
            status as "status: TaskStatus", expected, done, refused, findings, counts, error, ended_at, ended_by
        from operator_tasks
        where $1::uuid is null or task_id < $1
        order by task_id desc
        limit $2
        "#,
        before.map(TaskId::as_uuid),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// The tasks that have something left to do, oldest first.
pub async fn running(conn: &mut PgConnection, limit: i64) -> Result<Vec<Task>, sqlx::Error> {
    sqlx::query_as!(
        Task,
        r#"
        select task_id as "task_id: TaskId", kind as "kind: TaskKind", arguments, as_of as "as_of: AsOf",
            conversation_id as "conversation_id: ConversationId", rate, created_by, reason, created_at,
            status as "status: TaskStatus", expected, done, refused, findings, counts, error, ended_at, ended_by
        from operator_tasks
        where due_at is not null
        order by task_id
        limit $1
        "#,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// A task as it begins.
struct NewTask<'a> {
    task_id: TaskId,
    kind: TaskKind,
    arguments: &'a Value,
    as_of: Option<&'a AsOf>,
    conversation_id: Option<ConversationId>,
    rate: Option<i32>,
    by: &'a str,
    reason: Option<&'a str>,
}

/// Writes a task; its parts and what there is to do come after it.
async fn insert(conn: &mut PgConnection, new: &NewTask<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into operator_tasks (task_id, kind, arguments, as_of, conversation_id, rate, created_by, reason,
            created_at, status, due_at, expected, done, refused, findings)
        values ($1, $2, $3, $4, $5, $6, $7, $8, outbox_now(), 'running', outbox_now(), 0, 0, 0, '[]')
        "#,
        new.task_id.as_uuid(),
        new.kind.as_str(),
        new.arguments,
        new.as_of.map(AsOf::as_str),
        new.conversation_id.map(ConversationId::as_uuid),
        new.rate,
        new.by,
        new.reason,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes how much there is to do; what has nothing to do is done. Returns the task as it stands.
async fn expect(conn: &mut PgConnection, task_id: TaskId) -> Result<Task, sqlx::Error> {
    sqlx::query_as!(
        Task,
        r#"
        with parts as (
            select coalesce(sum(expected), 0)::bigint as expected, count(*) as conversations
            from operator_task_parts where task_id = $1
        )
        update operator_tasks t
        set expected = p.expected,
            status = case when p.conversations = 0 then 'done' else 'running' end,
            due_at = case when p.conversations > 0 then t.due_at end,
            ended_at = case when p.conversations = 0 then outbox_now() end
        from parts p
        where t.task_id = $1
        returning t.task_id as "task_id: TaskId", t.kind as "kind: TaskKind", t.arguments, t.as_of as "as_of: AsOf",
            t.conversation_id as "conversation_id: ConversationId", t.rate, t.created_by, t.reason, t.created_at,
            t.status as "status: TaskStatus", t.expected, t.done, t.refused, t.findings, t.counts, t.error, t.ended_at, t.ended_by
        "#,
        task_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Begins to compare a conversation, or all that have a room, with what stands on Matrix. With its row in the trail.
pub async fn start_verify(
    conn: &mut PgConnection,
    by: &str,
    conversation_id: Option<ConversationId>,
    repair: bool,
    reason: Option<&str>,
) -> Result<Task, sqlx::Error> {
    let (task_id, arguments) = (TaskId::generate(), json!({"repair": repair}));
    let new = NewTask {
        task_id,
        kind: TaskKind::Verify,
        arguments: &arguments,
        as_of: None,
        conversation_id,
        rate: None,
        by,
        reason,
    };
    insert(conn, &new).await?;
    sqlx::query!(
        r#"
        insert into operator_task_parts (task_id, conversation_id, expected)
        select $1, conversation_id, 1 from matrix_room_mappings
        where ready_at is not null and ($2::uuid is null or conversation_id = $2)
        "#,
        task_id.as_uuid(),
        conversation_id.map(ConversationId::as_uuid),
    )
    .execute(&mut *conn)
    .await?;
    let task = expect(conn, task_id).await?;
    record(conn, &task, Verb::Verify, scope(conversation_id), conversation_id, arguments, 0).await?;
    Ok(task)
}

/// Begins to mend a conversation on Matrix. With its row in the trail.
pub async fn start_repair(
    conn: &mut PgConnection,
    by: &str,
    conversation_id: ConversationId,
    repair: Repair,
    reason: Option<&str>,
) -> Result<Task, sqlx::Error> {
    let arguments = Ailment { repair, errcode: None }.arguments();
    begin_repair(conn, by, Some(conversation_id), arguments, &[conversation_id], reason).await
}

/// Begins to mend every conversation that suffers from this now. One that cannot be mended keeps the others from nothing.
/// With its row in the trail. In a transaction.
pub async fn start_repairs(
    conn: &mut PgConnection,
    by: &str,
    of: Ailment<'_>,
    reason: Option<&str>,
) -> Result<Task, sqlx::Error> {
    let ailing = outbox::ailing(conn, of).await?;
    begin_repair(conn, by, None, of.arguments(), &ailing, reason).await
}

async fn begin_repair(
    conn: &mut PgConnection,
    by: &str,
    conversation_id: Option<ConversationId>,
    arguments: Value,
    conversations: &[ConversationId],
    reason: Option<&str>,
) -> Result<Task, sqlx::Error> {
    let task_id = TaskId::generate();
    let new = NewTask {
        task_id,
        kind: TaskKind::Repair,
        arguments: &arguments,
        as_of: None,
        conversation_id,
        rate: None,
        by,
        reason,
    };
    insert(conn, &new).await?;
    let conversations: Vec<Uuid> = conversations.iter().map(|id| id.as_uuid()).collect();
    sqlx::query!(
        "insert into operator_task_parts (task_id, conversation_id, expected) select $1, unnest($2::uuid[]), 1",
        task_id.as_uuid(),
        &conversations,
    )
    .execute(&mut *conn)
    .await?;
    let task = expect(conn, task_id).await?;
    let mut asked = arguments;
    asked["expected"] = json!(task.expected);
    record(conn, &task, Verb::Repair, scope(conversation_id), conversation_id, asked, 0).await?;
    Ok(task)
}

const fn scope(conversation_id: Option<ConversationId>) -> &'static str {
    if conversation_id.is_some() { "conversation" } else { "all" }
}

async fn record(
    conn: &mut PgConnection,
    task: &Task,
    verb: Verb,
    scope: &'static str,
    conversation_id: Option<ConversationId>,
    arguments: Value,
    affected: u64,
) -> Result<(), sqlx::Error> {
    let act = Act {
        by: &task.created_by,
        verb,
        scope,
        conversation_id,
        arguments,
        affected,
        reason: task.reason.as_deref(),
        task_id: Some(task.task_id),
    };
    audit::append(conn, &act).await
}

/// Writes into the trail what a step of a task changed, in the transaction that changed it: as an act of who asked for
/// the task.
pub async fn record_step(
    conn: &mut PgConnection,
    task: &Task,
    verb: Verb,
    conversation_id: Option<ConversationId>,
    arguments: Value,
    affected: u64,
) -> Result<(), sqlx::Error> {
    record(conn, task, verb, "task", conversation_id, arguments, affected).await
}

/// Ends a task before it is through: what is done stays, what is left is not begun. False when it has ended already, or
/// never was. With its row in the trail.
pub async fn cancel(
    conn: &mut PgConnection,
    by: &str,
    task_id: TaskId,
    reason: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let ended = sqlx::query!(
        r#"
        update operator_tasks
        set status = 'cancelled', due_at = null, owner = null, leased_until = null, error = null,
            ended_at = outbox_now(), ended_by = $2
        where task_id = $1 and status = 'running'
        returning conversation_id as "conversation_id: ConversationId", kind, done
        "#,
        task_id.as_uuid(),
        by,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(ended) = ended else { return Ok(false) };
    forget_parts(conn, task_id).await?;
    let act = Act {
        by,
        verb: Verb::Cancel,
        scope: "task",
        conversation_id: ended.conversation_id,
        arguments: json!({"kind": ended.kind, "done": ended.done}),
        affected: 1,
        reason,
        task_id: Some(task_id),
    };
    audit::append(conn, &act).await?;
    Ok(true)
}

async fn forget_parts(conn: &mut PgConnection, task_id: TaskId) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from operator_task_parts where task_id = $1", task_id.as_uuid()).execute(conn).await?;
    Ok(())
}

/// Takes a task that asks the homeserver, for so long: one that is due and that nobody else works on. In a transaction of
/// its own.
pub async fn lease(
    conn: &mut PgConnection,
    owner: WorkerId,
    kinds: &[TaskKind],
    lasts: Duration,
) -> Result<Option<Task>, sqlx::Error> {
    let kinds: Vec<String> = kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
    sqlx::query_as!(
        Task,
        r#"
        update operator_tasks
        set owner = $1, leased_until = outbox_now() + $3 * interval '1 second'
        where task_id = (
            select task_id from operator_tasks
            where due_at <= outbox_now() and kind = any($2) and coalesce(leased_until <= outbox_now(), true)
            order by due_at
            limit 1
            for no key update skip locked
        )
        returning task_id as "task_id: TaskId", kind as "kind: TaskKind", arguments, as_of as "as_of: AsOf",
            conversation_id as "conversation_id: ConversationId", rate, created_by, reason, created_at,
            status as "status: TaskStatus", expected, done, refused, findings, counts, error, ended_at, ended_by
        "#,
        owner.as_uuid(),
        &kinds,
        lasts.as_secs_f64(),
    )
    .fetch_optional(conn)
    .await
}

/// Works on a leased task for so much longer. False when it is no longer ours: it was cancelled, or taken over.
pub async fn renew(
    conn: &mut PgConnection,
    owner: WorkerId,
    task_id: TaskId,
    lasts: Duration,
) -> Result<bool, sqlx::Error> {
    let renewed = sqlx::query!(
        r#"
        update operator_tasks
        set leased_until = outbox_now() + $3 * interval '1 second'
        where task_id = $1 and owner = $2 and leased_until > outbox_now()
        "#,
        task_id.as_uuid(),
        owner.as_uuid(),
        lasts.as_secs_f64(),
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(renewed == 1)
}

/// Gives a leased task back, to be gone on with after a while by whoever comes first. `trouble` is why it does not get on,
/// until it does: for people, and never content.
pub async fn hand_back(
    conn: &mut PgConnection,
    owner: WorkerId,
    task_id: TaskId,
    due_in: Duration,
    trouble: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update operator_tasks
        set owner = null, leased_until = null, due_at = outbox_now() + $3 * interval '1 second', error = $4
        where task_id = $1 and owner = $2 and status = 'running'
        "#,
        task_id.as_uuid(),
        owner.as_uuid(),
        due_in.as_secs_f64(),
        trouble,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Gives a leased task back, to be gone on with when others that are due have had their turn.
pub async fn give_way(conn: &mut PgConnection, owner: WorkerId, task_id: TaskId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update operator_tasks
        set owner = null, leased_until = null, due_at = outbox_now()
        where task_id = $1 and owner = $2 and status = 'running'
        "#,
        task_id.as_uuid(),
        owner.as_uuid(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The next conversations of a task, in the order of their ids.
pub async fn parts(conn: &mut PgConnection, task_id: TaskId, limit: i64) -> Result<Vec<ConversationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select conversation_id as "conversation_id: ConversationId" from operator_task_parts
        where task_id = $1
        order by conversation_id
        limit $2
        "#,
        task_id.as_uuid(),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// What a step did.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// How much more is done.
    pub done: u64,
    /// How much more could not be done.
    pub refused: u64,
    /// What was found, each a value of its own.
    pub findings: Vec<Value>,
    /// How much was found of each kind.
    pub counts: BTreeMap<FindingKind, u64>,
}

/// Notes what a step of a leased task did, and that its conversation is through. False, and nothing is noted, when the
/// task is no longer ours.
pub async fn note(
    conn: &mut PgConnection,
    owner: WorkerId,
    task_id: TaskId,
    part: Option<ConversationId>,
    progress: &Progress,
) -> Result<bool, sqlx::Error> {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let noted = sqlx::query!(
        r#"
        update operator_tasks
        set done = done + $3,
            refused = refused + $4,
            error = null,
            -- A row that is not written again is the cheapest: most conversations have nothing to find.
            findings = case
                when jsonb_array_length($5) = 0 or jsonb_array_length(findings) >= $6 then findings
                else (
                    select jsonb_agg(f.finding order by f.n)
                    from jsonb_array_elements(findings || $5) with ordinality as f (finding, n)
                    where f.n <= $6
                )
            end,
            counts = case
                when $7::jsonb = '{}' then counts
                else (
                    select jsonb_object_agg(sums.kind, sums.n)
                    from (
                        select kind, sum(n::bigint) as n
                        from (
                            select * from jsonb_each_text(counts)
                            union all
                            select * from jsonb_each_text($7)
                        ) each (kind, n)
                        group by kind
                    ) sums
                )
            end
        where task_id = $1 and owner = $2 and leased_until > outbox_now()
        "#,
        task_id.as_uuid(),
        owner.as_uuid(),
        count(progress.done),
        count(progress.refused),
        Value::from(progress.findings.clone()),
        MOST_FINDINGS,
        json!(progress.counts),
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if noted == 0 {
        return Ok(false);
    }
    if let Some(part) = part {
        sqlx::query!(
            "delete from operator_task_parts where task_id = $1 and conversation_id = $2",
            task_id.as_uuid(),
            part.as_uuid(),
        )
        .execute(conn)
        .await?;
    }
    Ok(true)
}

/// Ends a leased task that is through. False when it is no longer ours.
pub async fn finish(conn: &mut PgConnection, owner: WorkerId, task_id: TaskId) -> Result<bool, sqlx::Error> {
    end(conn, owner, task_id, TaskStatus::Done, None).await
}

/// Ends a leased task that cannot be done, and says why: for people, and never content. False when it is no longer ours.
pub async fn fail(conn: &mut PgConnection, owner: WorkerId, task_id: TaskId, error: &str) -> Result<bool, sqlx::Error> {
    end(conn, owner, task_id, TaskStatus::Failed, Some(error)).await
}

async fn end(
    conn: &mut PgConnection,
    owner: WorkerId,
    task_id: TaskId,
    status: TaskStatus,
    error: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let ended = sqlx::query!(
        r#"
        update operator_tasks
        set status = $3, error = $4, due_at = null, owner = null, leased_until = null, ended_at = outbox_now()
        where task_id = $1 and owner = $2 and leased_until > outbox_now()
        "#,
        task_id.as_uuid(),
        owner.as_uuid(),
        status.as_str(),
        error,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if ended == 1 {
        forget_parts(conn, task_id).await?;
    }
    Ok(ended == 1)
}
