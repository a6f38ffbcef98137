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

/// Settles which of two calls counts, if a new one meets another that rings. The call that it lost to, if it did.
pub(super) async fn settle(conn: &mut PgConnection, turn: &mut Turn, new: &Row) -> Result<Option<CallId>, CallError> {
    let rival = row::live(conn, turn.conversation_id).await?.into_iter().find(|call| {
        call.status == Status::Ringing && call.call_id != new.call_id && call.ring_until > turn.at && meet(call, new)
    });
    let Some(rival) = rival else { return Ok(None) };
    let (loser, winner) = if rival.matrix_call_id < new.matrix_call_id { (new, &rival) } else { (&rival, new) };
    if loser.state().next(Move::Lose) == Ok(Next::Ended(EndReason::Glare)) {
        end(conn, turn, loser, EndReason::Glare, Ender::Nobody, Some(winner.call_id)).await?;
    }
    Ok((loser.call_id == new.call_id).then_some(winner.call_id))
}
