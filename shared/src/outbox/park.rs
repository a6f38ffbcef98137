//! What operators do: dead letters back into their lane or out of the world, lanes held and resumed, everything paused.
//! And what time does: operations that expire.
//!
//! Each is one transaction's worth under the locks of the conversation and its lane, like every other write.

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::{Kind, LaneClass, leave_lane, lock_lane};
use crate::{
    chat::{self, Turn},
    ids::{ConversationId, LaneId, OutboxId},
};

/// What became of a wish to requeue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeued {
    /// So many operations are live again: the dead letter, and the edits that were parked with it.
    Back(u64),
    /// There is no such dead letter.
    NotDead,
    /// It may have been sent, and a newer edit has replaced its text: sending it again would bring the old text back.
    Superseded,
    /// The message that it edits is dead: requeue that one, and this comes back with it.
    ParentDead,
}

/// Brings a dead letter back to its place: before everything of its lane that was not yet handed out.
///
/// A message takes its parked edits along. An edit that was never sent takes the message's newest text.
pub async fn requeue(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<Requeued, sqlx::Error> {
    let Some((turn, lane_id)) = lock_dead(conn, conversation_id, outbox_id).await? else {
        return Ok(Requeued::NotDead);
    };
    let Some(letter) = sqlx::query!(
        r#"
        select d.kind, d.subject_id, d.maybe_sent_at is not null as "maybe_sent!",
            coalesce(d.revision < m.revision, false) as "superseded!",
            exists (
                select 1 from dead_letters p
                where p.conversation_id = d.conversation_id and p.outbox_id = m.send_outbox_id
            ) as "parent_dead!"
        from dead_letters d
        left join messages m on m.conversation_id = d.conversation_id and m.message_id = d.subject_id
        where d.conversation_id = $1 and d.outbox_id = $2
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?
    else {
        return Ok(Requeued::NotDead);
    };
    let is_edit = letter.kind == Kind::Edit.as_str();
    if is_edit && letter.parent_dead {
        return Ok(Requeued::ParentDead);
    }
    if is_edit && letter.maybe_sent && letter.superseded {
        return Ok(Requeued::Superseded);
    }
    let back = sqlx::query!(
        r#"
        with back as (
            delete from dead_letters d
            using messages m
            where d.conversation_id = $1
                and m.conversation_id = d.conversation_id and m.message_id = d.subject_id
                and d.kind in ('message', 'edit')
                and (d.outbox_id = $2 or ($3 and d.kind = 'edit' and d.subject_id = $4
                    and (d.maybe_sent_at is null or d.revision = m.revision)))
            returning d.*, m.revision as newest
        ), other as (
            delete from dead_letters d
            where d.conversation_id = $1 and d.outbox_id = $2 and d.kind not in ('message', 'edit')
            returning d.*
        )
        insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, target_outbox_id,
            enqueued_at, due_at, expires_at, attempts, failures, maybe_sent_at, sender, device, trace)
        select conversation_id, lane_id, seq, outbox_id, kind, subject_id,
            case when kind = 'edit' and maybe_sent_at is null then newest else revision end,
            target_outbox_id, enqueued_at, $5::timestamptz, expires_at, 0, 0, maybe_sent_at, sender, device, trace
        from back
        union all
        select conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, target_outbox_id, enqueued_at,
            $5::timestamptz, expires_at, 0, 0, maybe_sent_at, sender, device, trace
        from other
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
        letter.kind == Kind::Message.as_str(),
        letter.subject_id,
        turn.at,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    enter_lane(conn, &turn, lane_id, back).await?;
    Ok(Requeued::Back(back))
}

/// Throws a dead letter away, with the edits that were parked for it. What may have been sent is remembered, so that
/// late evidence and a later delete still find it. Returns how many went; 0 when there is no such dead letter.
pub async fn discard(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<u64, sqlx::Error> {
    let Some((turn, _)) = lock_dead(conn, conversation_id, outbox_id).await? else { return Ok(0) };
    let gone = sqlx::query_scalar!(
        r#"
        with chosen as (
            select kind, subject_id from dead_letters where conversation_id = $1 and outbox_id = $2
        ), gone as (
            delete from dead_letters d
            using chosen c
            where d.conversation_id = $1
                and (d.outbox_id = $2 or (c.kind = 'message' and d.kind = 'edit' and d.subject_id = c.subject_id))
            returning d.*
        ), remembered as (
            insert into withdrawn_operations (conversation_id, lane_id, outbox_id, kind, subject_id, revision,
                maybe_sent_at, sender, device, reason, withdrawn_at)
            select conversation_id, lane_id, outbox_id, kind, subject_id, revision, maybe_sent_at, sender, device,
                'discarded', $3
            from gone where maybe_sent_at is not null
        )
        select count(*) as "gone!" from gone
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
        turn.at,
    )
    .fetch_one(conn)
    .await?;
    Ok(u64::try_from(gone).unwrap_or(0))
}

/// Locks the conversation and the lane of a dead letter, in this order. None when there is no such dead letter.
async fn lock_dead(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<Option<(Turn, LaneId)>, sqlx::Error> {
    let Some(turn) = chat::lock_conversation(conn, conversation_id).await? else { return Ok(None) };
    let lane_id = sqlx::query_scalar!(
        r#"select lane_id as "lane_id: LaneId" from dead_letters where conversation_id = $1 and outbox_id = $2"#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(lane_id) = lane_id else { return Ok(None) };
    lock_lane(conn, conversation_id, lane_id).await?;
    Ok(Some((turn, lane_id)))
}

async fn enter_lane(conn: &mut PgConnection, turn: &Turn, lane_id: LaneId, back: u64) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update lanes
        set open = open + $3,
            due_at = case when hold is null then outbox_due(conversation_id, lane_id, $4) end
        where conversation_id = $1 and lane_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        lane_id.as_uuid(),
        i32::try_from(back).unwrap_or(i32::MAX),
        turn.at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Holds a lane: nothing of it is sent until it is resumed. What is on the wire is not called back. False when there is
/// no such lane.
pub async fn hold(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let held = sqlx::query!(
        "update lanes set hold = $3, due_at = null where conversation_id = $1 and lane_id = $2",
        conversation_id.as_uuid(),
        lane_id.as_uuid(),
        reason,
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(held == 1)
}

/// Resumes a held lane. False when it is not held.
pub async fn resume(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
) -> Result<bool, sqlx::Error> {
    lock_lane(conn, conversation_id, lane_id).await?;
    let resumed = sqlx::query!(
        r#"
        update lanes
        set hold = null, due_at = outbox_due(conversation_id, lane_id, outbox_now())
        where conversation_id = $1 and lane_id = $2 and hold is not null
        "#,
        conversation_id.as_uuid(),
        lane_id.as_uuid(),
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(resumed == 1)
}

/// Pauses everything (`class` none) or a class, for good or until a time. Nothing is claimed of it from the next claim
/// on; what is under way is finished.
pub async fn pause(
    pool: &PgPool,
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
    .execute(pool)
    .await?;
    Ok(())
}

/// Ends a pause. False when there was none.
pub async fn unpause(pool: &PgPool, class: Option<LaneClass>) -> Result<bool, sqlx::Error> {
    let ended = sqlx::query!("delete from pauses where scope = $1", class.map_or("all", LaneClass::as_str))
        .execute(pool)
        .await?
        .rows_affected();
    Ok(ended == 1)
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

/// Ends what is no longer worth sending and still waits; also while everything is paused. Returns how many.
///
/// Call it again while it returns as many as `limit`.
pub async fn expire(pool: &PgPool, limit: i64) -> Result<u64, sqlx::Error> {
    let overdue = sqlx::query!(
        r#"
        select o.conversation_id as "conversation_id: ConversationId", o.lane_id as "lane_id: LaneId",
            o.outbox_id as "outbox_id: OutboxId"
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where o.expires_at <= outbox_now() and o.seq > l.frozen_through and o.maybe_sent_at is null
        order by o.expires_at
        limit $1
        "#,
        limit,
    )
    .fetch_all(pool)
    .await?;
    let mut expired = 0;
    for row in overdue {
        let mut tx = pool.begin().await?;
        lock_lane(&mut tx, row.conversation_id, row.lane_id).await?;
        // Handed meanwhile: the sender knows its deadline too.
        let gone = sqlx::query!(
            r#"
            delete from outbox o
            using lanes l
            where o.conversation_id = $1 and o.outbox_id = $2
                and l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
                and o.seq > l.frozen_through and o.maybe_sent_at is null
            returning outbox_now() as "now!"
            "#,
            row.conversation_id.as_uuid(),
            row.outbox_id.as_uuid(),
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(gone) = gone {
            leave_lane(&mut tx, row.conversation_id, row.lane_id, 1, gone.now).await?;
            expired += 1;
        }
        tx.commit().await?;
    }
    Ok(expired)
}
