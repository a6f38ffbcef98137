//! Glare: two call each other at once. The call with the lesser id counts, so that everybody who sees both comes to the
//! same end, in whichever order they come.

use sqlx::PgConnection;

use super::{
    CallError, EndReason, Move, Next, Status,
    ending::{Ender, end},
    row::{self, Row},
};
use crate::{chat::Turn, ids::CallId};

/// Whether two calls are of the same two people, in opposite directions.
fn meet(one: &Row, other: &Row) -> bool {
    let calls = |from: &Row, to: &Row| from.invitee_id.is_none_or(|invitee| invitee == to.initiator_id);
    one.initiator_id != other.initiator_id && calls(one, other) && calls(other, one)
}

/// Settles which calls count, if a new one meets others that ring. The call that it lost to, if it did.
pub(super) async fn settle(conn: &mut PgConnection, turn: &mut Turn, new: &Row) -> Result<Option<CallId>, CallError> {
    let rings = |call: &Row| call.status == Status::Ringing && call.ring_until > turn.at;
    let mut rivals = row::live(conn, turn.conversation_id).await?;
    rivals.retain(|call| rings(call) && call.call_id != new.call_id && meet(call, new));
    let winner = rivals.iter().find(|rival| rival.matrix_call_id < new.matrix_call_id).map(|rival| rival.call_id);
    let losers = if winner.is_some() { std::slice::from_ref(new) } else { &rivals };
    for loser in losers {
        if loser.state().next(Move::Lose) == Ok(Next::Ended(EndReason::Glare)) {
            let winner = winner.unwrap_or(new.call_id);
            end(conn, turn, loser, EndReason::Glare, Ender::Nobody, Some(winner)).await?;
        }
    }
    Ok(winner)
}
