//! Pauses, holds, and their end.
//!
//! | what is paused | for good | until a time |
//! |---|---|---|
//! | everything, or a class of lanes | a row of `pauses` | the same, with an end |
//! | a conversation's lanes, or one of them | `hold`, as for a room's fault | `paused_until` |
//!
//! An end is a time that is read, so there is nobody who must resume. Nothing here touches what is on the wire, and
//! nothing costs an attempt.

use std::collections::HashSet;

use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{LaneClass, lock_lane};
use crate::ids::{ConversationId, LaneId};

/// Lanes are counted up to so many: enough to say that it is many.
pub const COUNTED_LANES: i64 = 10_000;

/// How many lanes of a class, or of all, go on when a pause ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct GoingOn {
    /// How many pauses and holds ended.
    pub ended: u64,
    /// How many lanes have something to send and may; [`COUNTED_LANES`] means at least so many.
    pub lanes: i64,
}

/// Holds a lane: nothing of it is sent until it is resumed. What is on the wire is not called back. False when there is
/// no such lane.
pub async fn hold(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    Ok(pause_lanes(conn, conversation_id, Some(lane_id), None, reason).await? == 1)
}

/// Locks the lanes of a conversation and says which are held, and why.
pub async fn holds_of(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
) -> Result<Vec<(LaneId, String)>, sqlx::Error> {
    lock_lanes(conn, conversation_id, None).await?;
    let rows = sqlx::query!(
        r#"
        select lane_id as "lane_id: LaneId", hold as "hold!" from lanes
        where conversation_id = $1 and hold is not null
        order by lane_id <> conversation_id, lane_id
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.lane_id, row.hold)).collect())
}

/// Takes from a hold that says just this what does not hold the lane any more, and ends it when nothing is `left`: a pause
/// until a time stays. False when the lane is not held for it.
pub async fn lift_hold(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
    hold: &str,
    left: Option<&str>,
) -> Result<bool, sqlx::Error> {
    lock_lane(conn, conversation_id, lane_id).await?;
    let lifted = sqlx::query!(
        r#"
        update lanes
        set hold = $4,
            due_at = outbox_due(conversation_id, lane_id, outbox_now(), $4, paused_until)
        where conversation_id = $1 and lane_id = $2 and hold = $3
        "#,
        conversation_id.as_uuid(),
        lane_id.as_uuid(),
        hold,
        left,
    )
    .execute(conn)
    .await?;
    Ok(lifted.rows_affected() == 1)
}

/// Resumes a held or paused lane. False when it is neither.
pub async fn resume(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
) -> Result<bool, sqlx::Error> {
    Ok(resume_lanes(conn, conversation_id, Some(lane_id)).await?.ended == 1)
}

/// Locks the lanes of a conversation, or one of them, in the order of all who lock several. Reads nothing else.
async fn lock_lanes(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: Option<LaneId>,
) -> Result<(), sqlx::Error> {
    if let Some(lane_id) = lane_id {
        return lock_lane(conn, conversation_id, lane_id).await;
    }
    sqlx::query!(
        r#"
        select 1 as locked from lanes
        where conversation_id = $1
        order by lane_id <> conversation_id, lane_id
        for no key update
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_all(conn)
    .await?;
    Ok(())
}

/// Pauses the lanes of a conversation, or one of them, until a time or, without one, until they are resumed. Returns how
/// many lanes there are.
///
/// A lane that was held already stays held, also beyond the time.
pub async fn pause_lanes(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: Option<LaneId>,
    until: Option<OffsetDateTime>,
    reason: &str,
) -> Result<u64, sqlx::Error> {
    lock_lanes(conn, conversation_id, lane_id).await?;
    let paused = if let Some(until) = until {
        sqlx::query!(
            r#"
            update lanes
            set paused_until = $3, pause_reason = $4,
                due_at = outbox_due(conversation_id, lane_id, outbox_now(), hold, $3)
            where conversation_id = $1 and ($2::uuid is null or lane_id = $2)
            "#,
            conversation_id.as_uuid(),
            lane_id.map(LaneId::as_uuid),
            until,
            reason,
        )
        .execute(conn)
        .await?
    } else {
        // Why a worker held it must not be lost: that is still to be mended.
        sqlx::query!(
            r#"
            update lanes
            set hold = case when hold is null then $3 else left($3 || '; held before: ' || hold, 1000) end,
                due_at = null
            where conversation_id = $1 and ($2::uuid is null or lane_id = $2)
            "#,
            conversation_id.as_uuid(),
            lane_id.map(LaneId::as_uuid),
            reason,
        )
        .execute(conn)
        .await?
    };
    Ok(paused.rows_affected())
}

/// Ends holds and pauses of the lanes of a conversation, or of one of them, whoever set them.
pub async fn resume_lanes(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: Option<LaneId>,
) -> Result<GoingOn, sqlx::Error> {
    lock_lanes(conn, conversation_id, lane_id).await?;
    let resumed = sqlx::query_scalar!(
        r#"
        update lanes
        set hold = null, paused_until = null, pause_reason = null,
            due_at = outbox_due(conversation_id, lane_id, outbox_now(), null, null)
        where conversation_id = $1 and ($2::uuid is null or lane_id = $2)
            and (hold is not null or paused_until > outbox_now())
        returning due_at is not null as "goes_on!"
        "#,
        conversation_id.as_uuid(),
        lane_id.map(LaneId::as_uuid),
    )
    .fetch_all(conn)
    .await?;
    Ok(going_on(&resumed))
}

/// What one batch of a pass over all held lanes did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldBatch {
    /// What was resumed.
    pub resumed: GoingOn,
    /// How many lanes somebody had locked just now: they are left as they are.
    pub locked: u64,
    /// Where the next batch begins; none when this was the last one.
    pub next: Option<(ConversationId, LaneId)>,
}

/// Resumes the lanes that are held, or those that are held for just this reason, among the `limit` first after a place.
/// Call it again, in another transaction, from the `next` that it returns.
///
/// The place only moves on: a lane that is held again meanwhile, since its fault is not mended, is not met twice. And it
/// waits for no lock, so that nobody waits for the batch's own locks behind a stranger's.
pub async fn resume_held(
    conn: &mut PgConnection,
    because: Option<&str>,
    after: Option<(ConversationId, LaneId)>,
    limit: i64,
) -> Result<HeldBatch, sqlx::Error> {
    let (after_conversation, after_lane) = after.map_or((Uuid::nil(), Uuid::nil()), |(conversation_id, lane_id)| {
        (conversation_id.as_uuid(), lane_id.as_uuid())
    });
    let page = sqlx::query!(
        r#"
        select conversation_id as "conversation_id: ConversationId", lane_id as "lane_id: LaneId" from lanes
        where hold is not null and ($1::text is null or hold = $1)
            and (conversation_id, lane_id) > ($2, $3)
        order by conversation_id, lane_id
        limit $4
        "#,
        because,
        after_conversation,
        after_lane,
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let full = i64::try_from(page.len()).is_ok_and(|found| found >= limit);
    let next = page.last().filter(|_| full).map(|lane| (lane.conversation_id, lane.lane_id));
    let (conversations, lanes) = columns(&page.iter().map(|l| (l.conversation_id, l.lane_id)).collect::<Vec<_>>());
    // Locks and reads nothing else.
    let held = sqlx::query!(
        r#"
        select l.conversation_id as "conversation_id: ConversationId", l.lane_id as "lane_id: LaneId"
        from lanes l
        join unnest($1::uuid[], $2::uuid[]) as c (conversation_id, lane_id)
            on l.conversation_id = c.conversation_id and l.lane_id = c.lane_id
        where l.hold is not null and ($3::text is null or l.hold = $3)
        for no key update of l skip locked
        "#,
        &conversations,
        &lanes,
        because,
    )
    .fetch_all(&mut *conn)
    .await?;
    let held: HashSet<_> = held.into_iter().map(|lane| (lane.conversation_id, lane.lane_id)).collect();
    let missed: Vec<_> =
        page.iter().map(|lane| (lane.conversation_id, lane.lane_id)).filter(|lane| !held.contains(lane)).collect();
    let locked = if missed.is_empty() { 0 } else { still_held(conn, &missed, because).await? };
    let (conversations, lanes) = columns(&held.into_iter().collect::<Vec<_>>());
    let resumed = sqlx::query_scalar!(
        r#"
        update lanes l
        set hold = null,
            due_at = outbox_due(l.conversation_id, l.lane_id, outbox_now(), null, l.paused_until)
        from unnest($1::uuid[], $2::uuid[]) as c (conversation_id, lane_id)
        where l.conversation_id = c.conversation_id and l.lane_id = c.lane_id and l.hold is not null
        returning coalesce(l.due_at <= outbox_now(), false) as "goes_on!"
        "#,
        &conversations,
        &lanes,
    )
    .fetch_all(conn)
    .await?;
    Ok(HeldBatch { resumed: going_on(&resumed), locked: u64::try_from(locked).unwrap_or(0), next })
}

/// How many of these lanes are held, as far as one sees who waits for no lock: whoever was quicker and resumed one is not
/// counted.
async fn still_held(
    conn: &mut PgConnection,
    missed: &[(ConversationId, LaneId)],
    because: Option<&str>,
) -> Result<i64, sqlx::Error> {
    let (conversations, lanes) = columns(missed);
    sqlx::query_scalar!(
        r#"
        select count(*) as "held!"
        from lanes l
        join unnest($1::uuid[], $2::uuid[]) as c (conversation_id, lane_id)
            on l.conversation_id = c.conversation_id and l.lane_id = c.lane_id
        where l.hold is not null and ($3::text is null or l.hold = $3)
        "#,
        &conversations,
        &lanes,
        because,
    )
    .fetch_one(conn)
    .await
}

fn columns(lanes: &[(ConversationId, LaneId)]) -> (Vec<Uuid>, Vec<Uuid>) {
    lanes.iter().map(|(conversation_id, lane_id)| (conversation_id.as_uuid(), lane_id.as_uuid())).unzip()
}

fn going_on(resumed: &[bool]) -> GoingOn {
    let lanes = resumed.iter().filter(|goes_on| **goes_on).count();
    GoingOn { ended: resumed.len() as u64, lanes: i64::try_from(lanes).unwrap_or(i64::MAX) }
}

/// Pauses everything (`class` none) or a class, for good or until a time. Nothing is claimed of it from the next claim
/// on; what is under way is finished.
pub async fn pause(
    executor: impl PgExecutor<'_>,
    class: Option<LaneClass>,
    until: Option<OffsetDateTime>,
    reason: &str,
    by: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into pauses (scope, reason, paused_until, created_by, created_at)
        values ($1, $2, $3, $4, outbox_now())
        on conflict (scope) do update
        set reason = excluded.reason, paused_until = excluded.paused_until, created_by = excluded.created_by,
            created_at = excluded.created_at
        "#,
        class.map_or("all", LaneClass::as_str),
        reason,
        until,
        by,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Ends a pause. False when there was none.
pub async fn unpause(executor: impl PgExecutor<'_>, class: Option<LaneClass>) -> Result<bool, sqlx::Error> {
    let ended = sqlx::query!(
        r#"
        with ended as (
            delete from pauses where scope = $1 returning paused_until
        )
        select exists (
            select 1 from ended where paused_until is null or paused_until > outbox_now()
        ) as "ended!"
        "#,
        class.map_or("all", LaneClass::as_str),
    )
    .fetch_one(executor)
    .await?;
    Ok(ended.ended)
}

/// How many lanes may be claimed now: they have something to send, are due, and no pause covers their class. Counted up
/// to [`COUNTED_LANES`] a class.
pub async fn lanes_due(conn: &mut PgConnection, class: Option<LaneClass>) -> Result<i64, sqlx::Error> {
    let mut lanes = 0;
    for each in LaneClass::ALL {
        if class.is_some_and(|class| class != each) || is_paused(&mut *conn, each).await? {
            continue;
        }
        lanes += sqlx::query_scalar!(
            r#"
            select count(*) as "count!" from (
                select 1 from lanes where lane_class = $1 and due_at <= outbox_now() limit $2
            ) due
            "#,
            each.as_str(),
            COUNTED_LANES,
        )
        .fetch_one(&mut *conn)
        .await?;
    }
    Ok(lanes)
}

/// Whether a class is paused now.
pub(super) async fn is_paused(conn: &mut PgConnection, class: LaneClass) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from pauses
            where scope in ('all', $1) and (paused_until is null or paused_until > outbox_now())
        ) as "paused!"
        "#,
        class.as_str(),
    )
    .fetch_one(conn)
    .await
}
