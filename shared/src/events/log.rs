//! Reading the log.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{EventKind, Position};
use crate::ids::{ConversationId, UserId};

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub position: Position,
    /// The conversation whose members are told.
    pub conversation_id: ConversationId,
    /// What happened. None for what only a newer release knows.
    pub kind: Option<EventKind>,
    /// To what.
    pub subject_id: Uuid,
}

/// What is new in the log, of all conversations.
#[derive(Debug)]
pub struct Tail {
    /// The rows, in order.
    pub entries: Vec<Entry>,
    /// What was read with them.
    pub through: Position,
    /// Whether there is more already.
    pub more: bool,
    /// Whether rows that followed the position are gone.
    pub lost: bool,
    /// How long the oldest row has waited that is committed and cannot be read yet, since an older transaction is open.
    pub lag: Option<Duration>,
}

/// Reads what follows a position, of all conversations.
pub async fn tail(conn: &mut PgConnection, after: Position, limit: i64) -> Result<Tail, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        with horizon as materialized (
            select pg_snapshot_xmin(pg_current_snapshot()) as xmin, xid as floor_xid, event_id as floor_event_id
            from event_log_floor
        )
        select h.xmin::text as "xmin!", (h.floor_xid, h.floor_event_id) > ($1::text::xid8, $2) as "lost!",
            e.xid::text as xid, e.event_id as "event_id?",
            e.conversation_id as "conversation_id?: ConversationId", e.kind as "kind?", e.subject_id as "subject_id?",
            (
                select extract(epoch from outbox_now() - w.created_at)::float8 from events w
                where w.xid >= h.xmin
                order by w.xid, w.event_id
                limit 1
            ) as lag
        from horizon h
        left join lateral (
            select * from events e
            where (e.xid, e.event_id) > ($1::text::xid8, $2) and e.xid < h.xmin
            order by e.xid, e.event_id
            limit $3
        ) e on true
        order by e.xid, e.event_id
        "#,
        after.xid_text(),
        after.event_id,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let newest = rows.first().map_or(after, |row| Position::before(number(&row.xmin)));
    let lost = rows.first().is_some_and(|row| row.lost);
    let lag = rows.first().and_then(|row| row.lag).map(seconds);
    let entries: Vec<Entry> = rows
        .into_iter()
        .filter_map(|row| entry(row.xid, row.event_id, row.conversation_id, row.kind, row.subject_id))
        .collect();
    let more = i64::try_from(entries.len()).unwrap_or(i64::MAX) >= limit;
    let through = entries.last().filter(|_| more).map_or(newest, |last| last.position);
    Ok(Tail { entries, through, more, lost, lag })
}

/// The columns of a left join: all there, or none.
fn entry(
    xid: Option<String>,
    event_id: Option<i64>,
    conversation_id: Option<ConversationId>,
    kind: Option<String>,
    subject_id: Option<Uuid>,
) -> Option<Entry> {
    Some(Entry {
        position: Position { xid: number(&xid?), event_id: event_id? },
        conversation_id: conversation_id?,
        kind: EventKind::parse(&kind?),
        subject_id: subject_id?,
    })
}

/// A transaction id as the database writes it.
fn number(xid: &str) -> u64 {
    xid.parse().unwrap_or_default()
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// The end of what can be read now.
pub async fn newest(conn: &mut PgConnection) -> Result<Position, sqlx::Error> {
    let xmin = sqlx::query_scalar!(r#"select pg_snapshot_xmin(pg_current_snapshot())::text as "xmin!""#)
        .fetch_one(conn)
        .await?;
    Ok(Position::before(number(&xmin)))
}

/// How long the oldest row has waited that is committed and cannot be read yet; zero when all can be.
pub async fn lag(conn: &mut PgConnection) -> Result<Duration, sqlx::Error> {
    let lag = sqlx::query_scalar!(
        r#"
        select extract(epoch from outbox_now() - created_at)::float8 as "lag!" from events
        where xid >= pg_snapshot_xmin(pg_current_snapshot())
        order by xid, event_id
        limit 1
        "#,
    )
    .fetch_optional(conn)
    .await?;
    Ok(lag.map(seconds).unwrap_or_default())
}

/// Who belongs to these conversations.
pub async fn members_of(
    conn: &mut PgConnection,
    conversations: &[ConversationId],
) -> Result<Vec<(ConversationId, UserId)>, sqlx::Error> {
    let conversations: Vec<Uuid> = conversations.iter().map(|id| id.as_uuid()).collect();
    let rows = sqlx::query!(
        r#"
        select conversation_id as "conversation_id: ConversationId", user_id as "user_id: UserId"
        from conversation_members
        where conversation_id = any($1) and removed_seq is null
        "#,
        &conversations,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.conversation_id, row.user_id)).collect())
}

/// A part of the log, for one user.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// What follows this.
    pub after: Position,
    /// Up to this; to the end without it.
    pub through: Option<Position>,
    /// Only of these conversations; of all that the user belongs to without it.
    pub conversations: Option<&'a [Uuid]>,
}

/// What a user is to be told, in order.
#[derive(Debug)]
pub struct Page {
    /// The rows.
    pub entries: Vec<Entry>,
    /// What was read with them, of the conversations that were asked for.
    pub through: Position,
    /// Whether there may be more in the span.
    pub more: bool,
}

/// A position from which nobody can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The log begins later: what followed the position is gone.
    TooOld,
    /// The log ends earlier: the position is of a database that was another's, or was restored.
    FromTheFuture,
}

/// Reads what follows a position, of the conversations that a user belongs to at this moment; and that the user was removed
/// from one.
pub async fn page(
    conn: &mut PgConnection,
    user_id: UserId,
    span: Span<'_>,
    limit: i64,
) -> Result<Result<Page, Lost>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        with horizon as materialized (
            select pg_snapshot_xmin(pg_current_snapshot()) as xmin, xid as floor_xid, event_id as floor_event_id
            from event_log_floor
        ), mine as materialized (
            select conversation_id from conversation_members
            where user_id = $1 and removed_seq is null and ($6::uuid[] is null or conversation_id = any($6))
        )
        select h.xmin::text as "xmin!", h.floor_xid::text as "floor_xid!", h.floor_event_id as "floor_event_id!",
            e.xid::text as xid, e.event_id as "event_id?", e.conversation_id as "conversation_id?: ConversationId",
            e.kind as "kind?", e.subject_id as "subject_id?"
        from horizon h
        left join lateral (
            (
                select e.xid, e.event_id, e.conversation_id, e.kind, e.subject_id
                from mine m
                cross join lateral (
                    select * from events e
                    where e.conversation_id = m.conversation_id
                        and (e.xid, e.event_id) > ($2::text::xid8, $3)
                        and (e.xid, e.event_id) <= (coalesce($4::text::xid8, h.xmin), coalesce($5::bigint, 0))
                        and e.xid < h.xmin
                    order by e.xid, e.event_id
                    limit $7
                ) e
            )
            union
            (
                select e.xid, e.event_id, e.conversation_id, e.kind, e.subject_id
                from events e
                where e.kind = 'member_removed' and e.subject_id = $1
                    and (e.xid, e.event_id) > ($2::text::xid8, $3)
                    and (e.xid, e.event_id) <= (coalesce($4::text::xid8, h.xmin), coalesce($5::bigint, 0))
                    and e.xid < h.xmin
                order by e.xid, e.event_id
                limit $7
            )
            order by 1, 2
            limit $7
        ) e on true
        order by e.xid, e.event_id
        "#,
        user_id.as_uuid(),
        span.after.xid_text(),
        span.after.event_id,
        span.through.map(Position::xid_text),
        span.through.map(|through| through.event_id),
        span.conversations,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let Some(first) = rows.first() else { return Err(sqlx::Error::RowNotFound) };
    let newest = Position::before(number(&first.xmin));
    let floor = Position { xid: number(&first.floor_xid), event_id: first.floor_event_id };
    if span.after > newest {
        return Ok(Err(Lost::FromTheFuture));
    }
    // A floor beyond the end is of the database that this one was restored from.
    if span.after < floor && floor <= newest {
        return Ok(Err(Lost::TooOld));
    }
    let entries: Vec<Entry> = rows
        .into_iter()
        .filter_map(|row| entry(row.xid, row.event_id, row.conversation_id, row.kind, row.subject_id))
        .collect();
    let more = i64::try_from(entries.len()).unwrap_or(i64::MAX) >= limit;
    let end = span.through.map_or(newest, |through| through.min(newest)).max(span.after);
    let through = entries.last().filter(|_| more).map_or(end, |last| last.position);
    Ok(Ok(Page { entries, through, more }))
}
