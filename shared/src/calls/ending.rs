//! How calls end, and what Matrix hears of it.

use std::time::Duration;

use sqlx::PgConnection;

use super::{
    CallError, EndReason, Move, Next, Origin, SignalKind,
    carry::{self, Said, Send},
    row::{self, Row},
    say::new_party,
};
use crate::{
    chat::Turn,
    events::{self, EventKind},
    ids::{CallId, OutboxId, UserId},
    metric,
};

/// Who ends a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ender<'a> {
    /// One of us, by which device if it is known.
    Nova(UserId, Option<&'a str>),
    /// Somebody on Matrix, where it is known already.
    Matrix(UserId),
    /// Nobody: time, a rival, or that somebody left.
    Nobody,
}

/// Ends a call: what still waits is taken back, and whoever on Matrix may ring, or talk, hears of it.
pub(super) async fn end(
    conn: &mut PgConnection,
    turn: &mut Turn,
    call: &Row,
    reason: EndReason,
    ender: Ender<'_>,
    replaced_by: Option<CallId>,
) -> Result<(), CallError> {
    let by = match ender {
        Ender::Nova(user_id, _) | Ender::Matrix(user_id) => Some(user_id),
        Ender::Nobody => None,
    };
    row::ended(conn, turn.conversation_id, call.call_id, reason, by, replaced_by, turn.at).await?;
    if let Some(took) = call.answered_at.and_then(|answered_at| Duration::try_from(turn.at - answered_at).ok()) {
        metric::VOIP_CALL_DURATION.record(took.as_secs_f64());
    }
    let never_left = carry::take_back(conn, turn, call.call_id).await?;
    if never_left && reason == EndReason::InviteTimeout {
        metric::VOIP_INVITE_FAILED.with(["expired"]).increment(1);
    }
    let closing = closing(conn, turn, call, reason, ender, replaced_by).await?;
    // What our own clients see is what was done here; what goes to Matrix may be another word for it.
    let word = match ender {
        Ender::Nova(..) if reason == EndReason::Rejected => Some(SignalKind::Reject),
        Ender::Nova(..) => Some(SignalKind::Hangup),
        Ender::Matrix(_) | Ender::Nobody => None,
    };
    if let (Ender::Nova(user_id, party_id), Some(kind)) = (ender, word.filter(|word| Some(*word) != closing)) {
        let detail = (kind == SignalKind::Hangup).then(|| reason.on_matrix());
        let said = Said { kind, party_id, author_id: user_id, content: None, detail, send: None, told: true };
        carry::put(conn, turn, call, said).await?;
    }
    if let Some(kind) = closing {
        close(conn, turn, call, kind, reason, ender, word == Some(kind)).await?;
    }
    events::record(conn, turn.conversation_id, EventKind::CallUpdated, call.call_id.as_uuid()).await?;
    Ok(())
}

/// What ends the call on Matrix; none where nobody there rings or talks.
async fn closing(
    conn: &mut PgConnection,
    turn: &Turn,
    call: &Row,
    reason: EndReason,
    ender: Ender<'_>,
    replaced_by: Option<CallId>,
) -> Result<Option<SignalKind>, CallError> {
    // Where it was said, it is known; but who calls by us, and ends it with an account of their own, is not who rings.
    let own = call.origin == Origin::Nova && matches!(ender, Ender::Matrix(user) if user == call.initiator_id);
    if matches!(ender, Ender::Matrix(_)) && !own {
        return Ok(None);
    }
    if call.origin == Origin::Nova {
        let rings = carry::may_ring_there(conn, turn.conversation_id, call).await?;
        return Ok(rings.then_some(SignalKind::Hangup));
    }
    // Two on Matrix who call each other settle it themselves: only one of us who calls too has something to say.
    if let Some(winner) = replaced_by {
        let winner = row::load(conn, turn.conversation_id, winner).await?;
        return Ok(winner.is_some_and(|winner| winner.origin == Origin::Nova).then_some(SignalKind::Reject));
    }
    // The caller's own device stops by its own clock, and nobody speaks for one who left.
    if reason == EndReason::InviteTimeout || call.answered_origin == Some(Origin::Matrix) {
        return Ok(None);
    }
    if reason == EndReason::Left && call.answered_origin.is_none() {
        return Ok(None);
    }
    let answer = sqlx::query_scalar!(
        r#"
        select send_outbox_id as "send_outbox_id!: OutboxId" from call_signals
        where conversation_id = $1 and call_id = $2 and kind = 'answer' and send_outbox_id is not null
        limit 1
        "#,
        turn.conversation_id.as_uuid(),
        call.call_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    Ok(Some(match answer {
        Some(answer) if carry::may_stand(conn, turn.conversation_id, answer).await? => SignalKind::Hangup,
        _ => SignalKind::Reject,
    }))
}

async fn close(
    conn: &mut PgConnection,
    turn: &mut Turn,
    call: &Row,
    kind: SignalKind,
    reason: EndReason,
    ender: Ender<'_>,
    told: bool,
) -> Result<(), CallError> {
    // On Matrix the call has two devices, and whoever ends it here speaks as ours.
    let spoken_by = match (call.origin, ender) {
        (Origin::Nova, _) => call.matrix_party_id.clone(),
        (Origin::Matrix, Ender::Nova(_, Some(party_id))) if call.answered_party_id.is_none() => {
            Some(party_id.to_owned())
        }
        (Origin::Matrix, _) => call.answered_party_id.clone(),
    };
    let author_id = match ender {
        Ender::Nova(user_id, _) => user_id,
        _ if call.origin == Origin::Nova => call.initiator_id,
        _ => call.answered_by.or(call.invitee_id).unwrap_or(call.initiator_id),
    };
    let party_id = spoken_by.unwrap_or_else(new_party);
    let said = Said {
        kind,
        party_id: Some(&party_id),
        author_id,
        content: None,
        detail: (kind == SignalKind::Hangup).then(|| reason.on_matrix()),
        send: Some(Send::now()),
        told,
    };
    carry::put(conn, turn, call, said).await?;
    Ok(())
}

/// Somebody does not belong to the conversation any more: that ends the calls in which they are one of the two. To be
/// called before their removal takes its place: they are still to hear of it.
pub(crate) async fn leave(conn: &mut PgConnection, turn: &mut Turn, user_id: UserId) -> Result<(), sqlx::Error> {
    let mut ended = false;
    for call in row::live(conn, turn.conversation_id).await? {
        if let Ok(Next::Ended(reason)) = call.state().next(Move::Leave { user: user_id }) {
            match end(conn, turn, &call, reason, Ender::Nobody, None).await {
                Ok(()) => ended = true,
                Err(CallError::Database(error)) => return Err(error),
                // What ends a call says nothing that would be sealed.
                Err(error) => return Err(sqlx::Error::Protocol(error.to_string())),
            }
        }
    }
    if ended {
        turn.advance(conn).await?;
    }
    Ok(())
}
