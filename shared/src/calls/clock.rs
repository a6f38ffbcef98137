//! What time does to calls.

use std::time::Duration;

use sqlx::PgPool;

use super::{
    CallError, Move, Next,
    ending::{Ender, end},
    row,
};
use crate::{
    chat,
    ids::{CallId, ConversationId},
};

/// Ends calls that nobody answered in time, and has whoever may still ring for them stop. Returns how many.
///
/// Call it again while it returns as many as `limit`.
pub async fn time_out(pool: &PgPool, limit: i64) -> Result<u64, CallError> {
    let overdue = sqlx::query!(
        r#"
        select conversation_id as "conversation_id: ConversationId", call_id as "call_id: CallId" from calls
        where status = 'ringing' and ring_until <= outbox_now()
        order by ring_until
        limit $1
        "#,
        limit,
    )
    .fetch_all(pool)
    .await?;
    let mut ended = 0;
    for row in overdue {
        let mut tx = pool.begin().await?;
        let Some(mut turn) = chat::lock_conversation(&mut tx, row.conversation_id).await? else { continue };
        let Some(call) = row::load(&mut tx, row.conversation_id, row.call_id).await? else { continue };
        // Answered, or ended, while this waited for its turn.
        if let Ok(Next::Ended(reason)) = call.state().next(Move::TimeOut) {
            end(&mut tx, &mut turn, &call, reason, Ender::Nobody, None).await?;
            tx.commit().await?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// Wipes what was said in calls that have been over for so long: descriptions of sessions and candidates, which nobody
/// needs any more. What happened, and when, stays. Returns how many calls it was.
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
