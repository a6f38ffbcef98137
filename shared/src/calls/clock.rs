//! What time does to calls.

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
