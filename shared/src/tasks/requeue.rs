//! Bulk requeue: dead letters by a filter, as of a snapshot, a few conversations at a time.
//!
//! A dry run counts exactly what would come back, and names the snapshot that it counted in. The task takes the letters
//! that are in that snapshot: one that died later is not taken, be it that its transaction was open when the dry run was
//! made and that it says an earlier time. What left meanwhile, since somebody was quicker, is counted as gone. What users
//! add to one of its messages meanwhile, an edit or a reaction, comes back with it.
//!
//! A step takes the locks of its conversations before the task's row, as every write does that needs several: a
//! transaction that has an id must not wait for a conversation. It waits for none that somebody else has, but for the
//! last ones.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{AsOf, NewTask, Task, TaskKind, TaskStatus, expect, insert, record, record_step};
use crate::{
    audit::Verb,
    chat,
    database::{is_unavailable, plan_as_asked},
    ids::{ConversationId, TaskId},
    outbox::{self, DeadFilter, Letter, MOST_LETTERS, RefusedCount},
};

/// How many letters a step brings back at most, but for a single conversation with more: they take about a seventh of a
/// second on a busy machine.
const LETTERS: i64 = 1_000;

/// How many conversations a step locks at most: each keeps its writers waiting.
const CONVERSATIONS: usize = 50;

/// How many conversations a step looks at, to find some that nobody has locked.
const CANDIDATES: i64 = 200;

/// How long a step waits for a conversation, when somebody has locked all that are left.
const PATIENCE: Duration = Duration::from_millis(500);

/// When a task is due again whose conversations are all locked.
const CONTENDED: Duration = Duration::from_millis(250);

/// When a task is due again whose step took longer than a statement may.
const TOOK_TOO_LONG: Duration = Duration::from_secs(10);

/// What Postgres says when a lock is not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// What Postgres says when a statement took too long.
const QUERY_CANCELED: &str = "57014";

/// How long it may take to judge what a filter chooses, and the memory for each part of that.
const LONGEST: Duration = Duration::from_mins(2);
/// See [`LONGEST`].
const MEMORY: &str = "64MB";

/// How many tasks a step looks at.
const TASKS: i64 = 16;

/// What a bulk requeue would do.
#[derive(Debug, Clone, Serialize)]
pub struct Preview {
    /// As of when this was counted: a requeue with it takes just these.
    pub as_of: AsOf,
    /// How many come back.
    pub back: u64,
    /// How many of them are edits and reactions that come with their message.
    pub along: u64,
    /// What matches and does not come back.
    pub refused: Vec<RefusedCount>,
    /// How many conversations they belong to.
    pub conversations: u64,
    /// How many of their lanes are held or paused: what comes back waits there.
    pub lanes_waiting: u64,
    /// The first of them, in their order.
    pub first: Vec<Letter>,
}

/// Says what [`start_requeue`] would bring back, and changes nothing. In a transaction.
pub async fn preview_requeue(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    as_of: Option<&AsOf>,
) -> Result<Preview, sqlx::Error> {
    take_room(conn).await?;
    let as_of = match as_of {
        Some(as_of) => as_of.clone(),
        None => AsOf::now(conn).await?,
    };
    let judged = outbox::judge(conn, filter, &as_of).await?;
    Ok(Preview {
        as_of,
        back: judged.back,
        along: judged.along,
        refused: judged.refused,
        conversations: judged.conversations,
        lanes_waiting: judged.lanes_waiting,
        first: judged.first,
    })
}

/// Begins to bring back the dead letters that a filter chooses as of a snapshot, at most `rate` in a second. With its row
/// in the trail; each step has one of its own. One of which there is nothing to bring back is done at once.
pub async fn start_requeue(
    conn: &mut PgConnection,
    by: &str,
    filter: &DeadFilter,
    as_of: &AsOf,
    rate: Option<u32>,
    reason: Option<&str>,
) -> Result<Task, sqlx::Error> {
    take_room(conn).await?;
    let task_id = TaskId::generate();
    let rate = rate.map(|rate| i32::try_from(rate).unwrap_or(i32::MAX).max(1));
    let arguments = json!({"filter": given(filter)});
    let new = NewTask {
        task_id,
        kind: TaskKind::Requeue,
        arguments: &arguments,
        as_of: Some(as_of),
        conversation_id: filter.conversation_id,
        rate,
        by,
        reason,
    };
    // What takes long comes before anything is written: who has written keeps clients waiting for what happens.
    let refused = outbox::write_parts(conn, task_id, filter, as_of).await?;
    insert(conn, &new).await?;
    let count: u64 = refused.iter().map(|refused| refused.count).sum();
    sqlx::query!(
        "update operator_tasks set refused = $2, findings = $3 where task_id = $1",
        task_id.as_uuid(),
        i64::try_from(count).unwrap_or(i64::MAX),
        json!(refused),
    )
    .execute(&mut *conn)
    .await?;
    let task = expect(conn, task_id).await?;
    let mut arguments = arguments;
    arguments["as_of"] = json!(as_of);
    arguments["rate"] = json!(rate);
    arguments["expected"] = json!(task.expected);
    record(conn, &task, Verb::Requeue, "filter", filter.conversation_id, arguments, 0).await?;
    Ok(task)
}

/// For the rest of a transaction: to judge a million letters is not done in a small corner of memory.
async fn take_room(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    plan_as_asked(conn).await?;
    sqlx::query!("select set_config('work_mem', $1, true)", MEMORY).fetch_one(conn).await?;
    Ok(())
}

/// Lets the statements of a transaction take as long as it takes to judge millions of letters. For programs that wait: a
/// request would be given up before.
pub async fn take_time(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("select set_config('statement_timeout', $1, true)", LONGEST.as_millis().to_string())
        .fetch_one(conn)
        .await?;
    Ok(())
}

/// What of a filter was given.
fn given(filter: &DeadFilter) -> Value {
    let mut given = json!(filter);
    if let Some(fields) = given.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    given
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: no task is due, or others are at it.
    Idle,
    /// So many dead letters of a task came back.
    Back {
        /// Which task.
        task_id: TaskId,
        /// How many.
        letters: u64,
        /// That was the last of them.
        ended: bool,
    },
}

/// Takes a step of a requeue that is due, or of this one, in a transaction of its own. Call it again while it is not
/// idle; after it, wake the workers and those who tell clients.
///
/// Any number of processes may do so: each step is one's. What a process leaves that dies in a step, another one does.
pub async fn step(pool: &PgPool, only: Option<TaskId>) -> Result<Step, sqlx::Error> {
    let due = sqlx::query_scalar!(
        r#"
        select task_id as "task_id: TaskId" from operator_tasks
        where due_at <= outbox_now() and kind = 'requeue' and ($1::uuid is null or task_id = $1)
        order by due_at
        limit $2
        "#,
        only.map(TaskId::as_uuid),
        TASKS,
    )
    .fetch_all(pool)
    .await?;
    for task_id in due {
        let mut tx = pool.begin().await?;
        match step_of(&mut tx, task_id).await {
            Ok(Step::Idle) => tx.rollback().await?,
            Ok(step) => {
                tx.commit().await?;
                return Ok(step);
            }
            Err(error) => {
                drop(tx);
                if has_code(&error, LOCK_NOT_AVAILABLE) {
                    postpone(pool, task_id, CONTENDED, None).await?;
                } else if has_code(&error, QUERY_CANCELED) {
                    // Others are not kept waiting for what takes too long.
                    tracing::warn!(%error, task.id = %task_id, "a step of a requeue took too long; later again");
                    postpone(
                        pool,
                        task_id,
                        TOOK_TOO_LONG,
                        Some("a step takes the database too long; it is tried again"),
                    )
                    .await?;
                } else if let (sqlx::Error::Database(refused), false) = (&error, is_unavailable(&error)) {
                    // It would be refused again and again.
                    let constraint = refused.constraint().map(|name| format!(", {name}")).unwrap_or_default();
                    let code = refused.code().unwrap_or_default();
                    tracing::error!(%error, task.id = %task_id, "a step of a requeue failed");
                    give_up(pool, task_id, &format!("the database refused a step ({code}{constraint})")).await?;
                } else {
                    return Err(error);
                }
            }
        }
    }
    Ok(Step::Idle)
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some(code))
}

/// Puts a task off. `trouble` is why it does not get on, until it does.
async fn postpone(pool: &PgPool, task_id: TaskId, by: Duration, trouble: Option<&str>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update operator_tasks set due_at = outbox_now() + $2 * interval '1 second', error = coalesce($3, error)
        where task_id = $1 and status = 'running' and due_at <= outbox_now()
        "#,
        task_id.as_uuid(),
        by.as_secs_f64(),
        trouble,
    )
    .execute(pool)
    .await?;
    Ok(())
}

async fn give_up(pool: &PgPool, task_id: TaskId, error: &str) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        with failed as (
            update operator_tasks set status = 'failed', error = $2, due_at = null, ended_at = outbox_now()
            where task_id = $1 and status = 'running'
            returning task_id
        )
        delete from operator_task_parts p using failed f where p.task_id = f.task_id
        "#,
        task_id.as_uuid(),
        error,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A conversation of a task, and how much is expected to come back of it.
struct Part {
    conversation_id: ConversationId,
    expected: i32,
}

async fn step_of(conn: &mut PgConnection, task_id: TaskId) -> Result<Step, sqlx::Error> {
    sqlx::query!("select set_config('lock_timeout', $1, true)", PATIENCE.as_millis().to_string())
        .fetch_one(&mut *conn)
        .await?;
    plan_as_asked(conn).await?;
    let mine = sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(uuid_hash_extended($1, 1)) as "mine!""#,
        task_id.as_uuid(),
    )
    .fetch_one(&mut *conn)
    .await?;
    let Some(rate) = sqlx::query_scalar!(
        "select rate from operator_tasks where task_id = $1 and due_at <= outbox_now()",
        task_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?
    .filter(|_| mine) else {
        return Ok(Step::Idle);
    };
    let most = rate.map_or(LETTERS, |rate| LETTERS.min(rate.into()));
    let parts = take_turns(conn, task_id, most).await?;
    // Cancelled meanwhile, or failed: nothing more.
    let Some(task) = lock_task(conn, task_id).await? else { return Ok(Step::Idle) };
    let Some((filter, as_of)) = filter_of(&task).zip(task.as_of.as_ref()) else {
        // Written by a newer release, and left to it.
        return Ok(Step::Idle);
    };
    let conversations: Vec<ConversationId> = parts.iter().map(|part| part.conversation_id).collect();
    lock_conversations(conn, &conversations).await?;
    let came = outbox::requeue_of(conn, &filter, as_of, &conversations, MOST_LETTERS).await?;
    let back = came.letters.iter().map(|(_, letters)| letters).sum();
    let mut gone = 0;
    let (mut through, mut begun, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for part in &parts {
        let of_this = came.letters.iter().find(|(conversation_id, _)| *conversation_id == part.conversation_id);
        let missing = i64::from(part.expected) - of_this.map_or(0, |(_, letters)| count(*letters));
        if came.locked.contains(&part.conversation_id) {
            continue;
        }
        if came.more_from.is_some_and(|from| part.conversation_id >= from) {
            begun.push(part.conversation_id.as_uuid());
            left.push(i32::try_from(missing.max(0)).unwrap_or(i32::MAX));
        } else {
            through.push(part.conversation_id.as_uuid());
            gone += missing.max(0);
        }
    }
    let ended = forget_parts(conn, task_id, &through, &begun, &left).await?;
    let moved = !(through.is_empty() && begun.is_empty());
    advance(conn, &task, Moved { back, gone, ended, rests: rests(back, moved, task.rate) }).await?;
    if back > 0 {
        let arguments = json!({"conversations": came.letters.len()});
        record_step(conn, &task, Verb::Requeue, task.conversation_id, arguments, back).await?;
    }
    Ok(Step::Back { task_id, letters: back, ended })
}

fn count(letters: u64) -> i64 {
    i64::try_from(letters).unwrap_or(i64::MAX)
}

fn filter_of(task: &Task) -> Option<DeadFilter> {
    serde_json::from_value(task.arguments.get("filter")?.clone()).ok()
}

/// Takes the turn in the next conversations, as many as make a step, and passes over those that somebody has. When
/// somebody has all of them it waits for the first.
async fn take_turns(conn: &mut PgConnection, task_id: TaskId, most: i64) -> Result<Vec<Part>, sqlx::Error> {
    let parts = sqlx::query_as!(
        Part,
        r#"
        select conversation_id as "conversation_id: ConversationId", expected from operator_task_parts
        where task_id = $1
        order by conversation_id
        limit $2
        "#,
        task_id.as_uuid(),
        CANDIDATES,
    )
    .fetch_all(&mut *conn)
    .await?;
    let first = parts.first().map(|part| part.conversation_id);
    let mut parts = parts.into_iter().peekable();
    let mut taken = Vec::new();
    while parts.peek().is_some() && taken.is_empty() {
        let mut letters = 0;
        let mut window = Vec::new();
        while let Some(part) = parts.next_if(|part| {
            window.is_empty() || (window.len() < CONVERSATIONS && letters + i64::from(part.expected) <= most)
        }) {
            letters += i64::from(part.expected);
            window.push(part);
        }
        let ids: Vec<Uuid> = window.iter().map(|part| part.conversation_id.as_uuid()).collect();
        let ours = sqlx::query_scalar!(
            r#"
            select c.conversation_id as "conversation_id!: ConversationId" from unnest($1::uuid[]) as c (conversation_id)
            where pg_try_advisory_xact_lock(uuid_hash_extended(c.conversation_id, 0))
            "#,
            &ids,
        )
        .fetch_all(&mut *conn)
        .await?;
        taken.extend(window.into_iter().filter(|part| ours.contains(&part.conversation_id)));
    }
    if let (Some(first), true) = (first, taken.is_empty()) {
        chat::line_up(conn, &[first]).await?;
        let expected = sqlx::query_scalar!(
            "select expected from operator_task_parts where task_id = $1 and conversation_id = $2",
            task_id.as_uuid(),
            first.as_uuid(),
        )
        .fetch_optional(conn)
        .await?;
        taken.extend(expected.map(|expected| Part { conversation_id: first, expected }));
    }
    Ok(taken)
}

/// The task, if it still runs, with its row locked.
async fn lock_task(conn: &mut PgConnection, task_id: TaskId) -> Result<Option<Task>, sqlx::Error> {
    sqlx::query!(
        "select 1 as locked from operator_tasks where task_id = $1 and status = 'running' for no key update",
        task_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    let task = super::task(conn, task_id).await?;
    Ok(task.filter(|task| task.status == TaskStatus::Running))
}

/// Locks the rows of conversations whose turn is ours. Reads nothing else.
async fn lock_conversations(conn: &mut PgConnection, conversations: &[ConversationId]) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = conversations.iter().map(|id| id.as_uuid()).collect();
    sqlx::query!(
        r#"
        select 1 as locked from conversations
        where conversation_id = any($1)
        order by conversation_id
        for no key update
        "#,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(())
}

/// What is through is no part of the task any more; of what is begun so much is left. True when no part is left.
async fn forget_parts(
    conn: &mut PgConnection,
    task_id: TaskId,
    through: &[Uuid],
    begun: &[Uuid],
    left: &[i32],
) -> Result<bool, sqlx::Error> {
    sqlx::query!(
        "delete from operator_task_parts where task_id = $1 and conversation_id = any($2)",
        task_id.as_uuid(),
        through,
    )
    .execute(&mut *conn)
    .await?;
    if !begun.is_empty() {
        sqlx::query!(
            r#"
            update operator_task_parts p
            set expected = c.expected
            from unnest($2::uuid[], $3::integer[]) as c (conversation_id, expected)
            where p.task_id = $1 and p.conversation_id = c.conversation_id
            "#,
            task_id.as_uuid(),
            begun,
            left,
        )
        .execute(&mut *conn)
        .await?;
    }
    let more = sqlx::query_scalar!(
        r#"select exists (select 1 from operator_task_parts where task_id = $1) as "more!""#,
        task_id.as_uuid(),
    )
    .fetch_one(conn)
    .await?;
    Ok(!more)
}

/// What a step did, and for how many seconds the task then rests.
struct Moved {
    back: u64,
    gone: i64,
    ended: bool,
    rests: f64,
}

/// With a rate the next step is due when as much time has passed as this one's letters may take. One that found only
/// locked lanes comes back a little later.
fn rests(back: u64, moved: bool, rate: Option<i32>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a step has a few thousand letters")]
    let by_rate = rate.map_or(0.0, |rate| back as f64 / f64::from(rate));
    if moved { by_rate } else { CONTENDED.as_secs_f64() }
}

/// Notes what a step did. What a rate allowed and nobody did is made up for within a second, and not after that.
async fn advance(conn: &mut PgConnection, task: &Task, moved: Moved) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update operator_tasks
        set done = done + $2,
            findings = $3,
            error = null,
            status = case when $4 then 'done' else status end,
            ended_at = case when $4 then outbox_now() end,
            due_at = case
                when $4 then null
                when $5 > 0::float8 then greatest(due_at, outbox_now() - interval '1 second') + $5 * interval '1 second'
                else outbox_now()
            end
        where task_id = $1
        "#,
        task.task_id.as_uuid(),
        count(moved.back),
        with_gone(&task.findings, moved.gone),
        moved.ended,
        moved.rests,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The findings, with so many more that had gone when their turn came.
fn with_gone(findings: &Value, gone: i64) -> Value {
    let mut findings = findings.as_array().cloned().unwrap_or_default();
    if gone > 0 {
        let is_gone = |finding: &&mut Value| finding["reason"] == "gone";
        if let Some(finding) = findings.iter_mut().find(is_gone) {
            finding["count"] = json!(finding["count"].as_i64().unwrap_or(0) + gone);
        } else {
            findings.push(json!({
                "reason": "gone",
                "reason_in_words": "no longer there when its turn came: requeued, discarded, deleted or delivered",
                "count": gone,
            }));
        }
    }
    Value::from(findings)
}
