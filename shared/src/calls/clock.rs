//! What time does to calls.

use std::time::Duration;

use sqlx::PgPool;

use super::{
    CallError, MAX_CALL, Move, Next,
    ending::{Ender, end},
    row,
};
use crate::{
    chat,
    ids::{CallId, ConversationId},
};

/// Ends calls that nobody answered in time, and those that have gone on for longer than [`MAX_CALL`], and has whoever may
/// still ring or talk stop. Returns how many.
///
/// Call it again while it returns as many as `limit`.
pub async fn time_out(pool: &PgPool, limit: i64) -> Result<u64, sqlx::Error> {
    let overdue = sqlx::query!(
        r#"
        select conversation_id as "conversation_id!: ConversationId", call_id as "call_id!: CallId", rings as "rings!"
        from (
            (
                select conversation_id, call_id, true as rings from calls
                where status = 'ringing' and ring_until <= outbox_now()
                order by ring_until
                limit $1
            ) union all (
                select conversation_id, call_id, false from calls
                where status = 'active' and answered_at < outbox_now() - make_interval(secs => $2)
                order by answered_at
                limit $1
            )
        ) overdue
        limit $1
        "#,
        limit,
        MAX_CALL.as_secs_f64(),
    )
    .fetch_all(pool)
    .await?;
    let mut ended = 0;
    for row in overdue {
        let made = if row.rings { Move::TimeOut } else { Move::Abandon };
        match conclude(pool, row.conversation_id, row.call_id, made).await {
            Ok(now) => ended += u64::from(now),
            // The others have waited for long enough.
            Err(error) => tracing::warn!(call_id = %row.call_id, %error, "a call is not ended; trying again"),
        }
    }
    Ok(ended)
}

async fn conclude(
    pool: &PgPool,
    conversation_id: ConversationId,
    call_id: CallId,
    made: Move<'_>,
) -> Result<bool, CallError> {
    let mut tx = pool.begin().await?;
    let Some(mut turn) = chat::lock_conversation(&mut tx, conversation_id).await? else { return Ok(false) };
    let Some(call) = row::load(&mut tx, conversation_id, call_id).await? else { return Ok(false) };
    // Answered, or ended, while this waited for its turn.
    let Ok(Next::Ended(reason)) = call.state().next(made) else { return Ok(false) };
    end(&mut tx, &mut turn, &call, reason, Ender::Nobody, None).await?;
    tx.commit().await?;
    Ok(true)
}

/// Wipes what was said in calls that have been over for so long: descriptions of sessions and candidates, which nobody
/// needs any more; and their lanes. What happened, and when, stays. Returns how many calls it was.
///
/// Call it again while it returns as many as `limit`.
pub async fn wipe(pool: &PgPool, over_for: Duration, limit: i64) -> Result<u64, sqlx::Error> {
    let wiped = sqlx::query!(
        r#"
        with over as (
            select conversation_id, call_id from calls
            where status = 'ended' and sealed and ended_at < outbox_now() - make_interval(secs => $1)
            order by ended_at
            limit $2
            for no key update skip locked
        ), wiped as (
            update call_signals s set payload = null
            from over
            where s.conversation_id = over.conversation_id and s.call_id = over.call_id and s.payload is not null
        )
, emptied as (
            delete from lanes l
            using over
            where l.conversation_id = over.conversation_id and l.lane_id = over.call_id and l.lane_class = 'call'
                and l.open = 0 and l.owner is null
                and not exists (
                    select 1 from dead_letters d
                    where d.conversation_id = l.conversation_id and d.lane_id = l.lane_id
                )
        )
        update calls c set sealed = false
        from over
        where c.conversation_id = over.conversation_id and c.call_id = over.call_id
        "#,
        over_for.as_secs_f64(),
        limit,
    )
    .execute(pool)
    .await?;
    Ok(wiped.rows_affected())
}
