//! One operation, or all of a message, as an operator looks at it.

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{AttemptView, Explanation, explain, words};
use crate::ids::{ConversationId, LaneId, MessageId, OutboxId, UserId};

/// How many attempts are shown: the first, and the newest of so many.
const MOST_ATTEMPTS: i64 = 1_000;

/// Where the row of an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Place {
    /// It is delivered.
    Sent,
    /// It is still to be done.
    Live,
    /// It is dead.
    Dead,
    /// It was given up although it may have been sent.
    Withdrawn,
}

/// An operation that an id led to.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// The operation.
    pub outbox_id: OutboxId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// What it does.
    pub kind: String,
    /// The message or the member.
    pub subject_id: Uuid,
    /// Where it stands.
    pub place: Place,
}

/// The operations that an id leads to, oldest first: the one of that id, or all of the message or call of that id.
pub async fn find(conn: &mut PgConnection, id: Uuid) -> Result<Vec<Found>, sqlx::Error> {
    let conversation_id = sqlx::query_scalar!(
        r#"
        select conversation_id as "conversation_id!" from messages where message_id = $1
        union all
        select conversation_id from calls where call_id = $1
        limit 1
        "#,
        id,
    )
    .fetch_optional(&mut *conn);
    let mut found = if let Some(conversation_id) = conversation_id.await? {
        sqlx::query_as!(
            Found,
            r#"
            select outbox_id as "outbox_id!: OutboxId", conversation_id as "conversation_id!: ConversationId",
                kind as "kind!", subject_id as "subject_id!", place as "place!: Place"
            from (
                select 1 as rank, 'sent' as place, conversation_id, outbox_id, kind, subject_id from sent_events
                where conversation_id = $1 and subject_id = $2
                union all
                select 2, 'live', conversation_id, outbox_id, kind, subject_id from outbox
                where conversation_id = $1 and subject_id = $2
                union all
                select 3, 'dead', conversation_id, outbox_id, kind, subject_id from dead_letters
                where conversation_id = $1 and subject_id = $2
                union all
                select 4, 'withdrawn', conversation_id, outbox_id, kind, subject_id from withdrawn_operations
                where conversation_id = $1 and subject_id = $2
            ) everywhere
            order by outbox_id, rank
            "#,
            conversation_id,
            id,
        )
        .fetch_all(conn)
        .await?
    } else {
        sqlx::query_as!(
            Found,
            r#"
            select outbox_id as "outbox_id!: OutboxId", conversation_id as "conversation_id!: ConversationId",
                kind as "kind!", subject_id as "subject_id!", place as "place!: Place"
            from (
                select 1 as rank, 'sent' as place, conversation_id, outbox_id, kind, subject_id from sent_events
                where outbox_id = $1
                union all
                select 2, 'live', conversation_id, outbox_id, kind, subject_id from outbox where outbox_id = $1
                union all
                select 3, 'dead', conversation_id, outbox_id, kind, subject_id from dead_letters where outbox_id = $1
                union all
                select 4, 'withdrawn', conversation_id, outbox_id, kind, subject_id from withdrawn_operations
                where outbox_id = $1
            ) everywhere
            order by outbox_id, rank
            "#,
            id,
        )
        .fetch_all(conn)
        .await?
    };
    // Evidence comes first: what is delivered is that, whatever else is said of it.
    found.dedup_by_key(|found| found.outbox_id);
    Ok(found)
}

/// What an operator may know of a message: everything but its text.
#[derive(Debug, Clone, Serialize)]
pub struct MessageFacts {
    /// The message.
    pub message_id: MessageId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// Its place in the conversation.
    pub seq: i64,
    /// Who wrote it.
    pub author_id: UserId,
    /// Its newest revision.
    pub revision: i32,
    /// True when it was never meant for Matrix.
    pub disabled: bool,
    /// When it was written.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was edited last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub edited_at: Option<OffsetDateTime>,
    /// When it was deleted.
    #[serde(with = "time::serde::rfc3339::option")]
    pub deleted_at: Option<OffsetDateTime>,
}

/// A message by its id. None when there is none.
pub async fn message_facts(conn: &mut PgConnection, id: Uuid) -> Result<Option<MessageFacts>, sqlx::Error> {
    sqlx::query_as!(
        MessageFacts,
        r#"
        select message_id as "message_id: MessageId", conversation_id as "conversation_id: ConversationId", seq,
            author_id as "author_id: UserId", revision, send_outbox_id is null as "disabled!", created_at, edited_at,
            deleted_at
        from messages
        where message_id = $1
        "#,
        id,
    )
    .fetch_optional(conn)
    .await
}

/// How an operation died.
#[derive(Debug, Clone, Serialize)]
pub struct Death {
    /// Why.
    pub cause: String,
    /// The same in words.
    pub cause_in_words: String,
    /// The Matrix error code of the last attempt.
    pub errcode: Option<String>,
    /// What to do about it.
    pub hint: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub died_at: OffsetDateTime,
}

/// How an operation was given up.
#[derive(Debug, Clone, Serialize)]
pub struct Withdrawal {
    /// `discarded` by an operator, `deleted` with its message, `not_found` when it was looked for.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub withdrawn_at: OffsetDateTime,
}

/// One operation, with all that is known of it.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// What it is.
    #[serde(flatten)]
    pub found: Found,
    /// Its lane and its place there; null once it is delivered.
    pub lane_id: Option<LaneId>,
    /// Its place in the lane.
    pub seq: Option<i64>,
    /// Which revision of the message it carries.
    pub revision: Option<i32>,
    /// Since when it may stand in the room without anybody knowing.
    #[serde(with = "time::serde::rfc3339::option")]
    pub maybe_sent_at: Option<OffsetDateTime>,
    /// How many live operations of its lane come after it.
    pub behind: i64,
    /// How it died, if it did.
    pub dead: Option<Death>,
    /// How it was given up, if it was.
    pub withdrawn: Option<Withdrawal>,
    /// The first attempt that failed.
    pub first_error: Option<AttemptView>,
    /// The last attempt that failed.
    pub last_error: Option<AttemptView>,
    /// How many attempts there were.
    pub attempts_total: i64,
    /// How far it has come, what it waits for, and its attempts.
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// Everything about an operation that was found.
pub async fn show(conn: &mut PgConnection, found: Found) -> Result<Shown, sqlx::Error> {
    let (conversation_id, outbox_id) = (found.conversation_id.as_uuid(), found.outbox_id.as_uuid());
    let mut explanation = explain(conn, found.conversation_id, found.outbox_id).await?;
    let mut attempts = sqlx::query_as!(
        AttemptView,
        r#"
        select attempted_at as at, outcome, http_status, errcode, detail, duration_ms
        from attempts
        where conversation_id = $1 and outbox_id = $2
        order by attempted_at desc
        limit $3
        "#,
        conversation_id,
        outbox_id,
        MOST_ATTEMPTS,
    )
    .fetch_all(&mut *conn)
    .await?;
    attempts.reverse();
    let first_error = sqlx::query_as!(
        AttemptView,
        r#"
        select attempted_at as at, outcome, http_status, errcode, detail, duration_ms
        from attempts
        where conversation_id = $1 and outbox_id = $2 and outcome not in ('delivered', 'done')
        order by attempted_at
        limit 1
        "#,
        conversation_id,
        outbox_id,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let row = sqlx::query!(
        r#"
        select coalesce(o.lane_id, d.lane_id, w.lane_id) as "lane_id: LaneId", coalesce(o.seq, d.seq) as seq,
            coalesce(o.revision, d.revision, w.revision, s.revision) as revision,
            coalesce(o.maybe_sent_at, d.maybe_sent_at, w.maybe_sent_at) as maybe_sent_at,
            d.cause as "cause?", d.errcode, d.hint as "hint?", d.died_at as "died_at?",
            w.reason as "withdrawal?", w.withdrawn_at as "withdrawn_at?",
            (
                select count(*) from outbox b
                where b.conversation_id = $1 and b.lane_id = coalesce(o.lane_id, d.lane_id)
                    and b.seq > coalesce(o.seq, d.seq)
            ) as "behind!",
            (select count(*) from attempts a where a.conversation_id = $1 and a.outbox_id = $2) as "attempts!"
        from (select $1::uuid as conversation_id, $2::uuid as outbox_id) q
        left join outbox o using (conversation_id, outbox_id)
        left join dead_letters d using (conversation_id, outbox_id)
        left join withdrawn_operations w using (conversation_id, outbox_id)
        left join sent_events s using (conversation_id, outbox_id)
        "#,
        conversation_id,
        outbox_id,
    )
    .fetch_one(conn)
    .await?;
    let dead = row.cause.zip(row.died_at).map(|(cause, died_at)| Death {
        cause_in_words: words::cause_in_words(&cause).to_owned(),
        hint: words::hint(&cause, row.errcode.as_deref(), &found.kind, row.hint.as_deref().unwrap_or_default())
            .to_owned(),
        cause,
        errcode: row.errcode,
        died_at,
    });
    let withdrawn =
        row.withdrawal.zip(row.withdrawn_at).map(|(reason, withdrawn_at)| Withdrawal { reason, withdrawn_at });
    let failed = |attempt: &&AttemptView| !matches!(attempt.outcome.as_str(), "delivered" | "done");
    let last_error = attempts.iter().rev().find(failed).cloned();
    explanation.attempts = attempts;
    Ok(Shown {
        lane_id: row.lane_id,
        seq: row.seq,
        revision: row.revision,
        maybe_sent_at: row.maybe_sent_at,
        behind: row.behind,
        dead,
        withdrawn,
        first_error,
        last_error,
        attempts_total: row.attempts,
        explanation,
        found,
    })
}
