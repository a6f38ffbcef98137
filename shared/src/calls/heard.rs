//! What is said on Matrix in calls, by the same machine.
//!
//! Signals may come in any order, and of calls that are not known: they are kept, and count once the invite is there.

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{
    CallError, EndReason, Move, Next, Origin, SignalKind, carry,
    ending::{Ender, end},
    glare,
    row::{self, NewRow, Row},
    say,
};
use crate::{
    chat::Turn,
    events::{self, EventKind},
    ids::{CallId, ConversationId, EventId, MatrixUserId, SignalId, UserId},
};

/// A signal of Matrix that was written down just now.
#[derive(Debug)]
pub(crate) struct Heard<'a> {
    pub(crate) signal_id: SignalId,
    pub(crate) call_id: CallId,
    pub(crate) matrix_call_id: &'a str,
    pub(crate) kind: SignalKind,
    pub(crate) party_id: Option<&'a str>,
    pub(crate) author_id: UserId,
    /// Why, of a hangup; which party, of a `select_answer`.
    pub(crate) detail: Option<&'a str>,
    /// Of an invite: whom it calls, as it says.
    pub(crate) invitee: Option<MatrixUserId>,
    pub(crate) service_user: &'a MatrixUserId,
    pub(crate) event_id: &'a EventId,
    pub(crate) sent_at: OffsetDateTime,
    pub(crate) ring_until: Option<OffsetDateTime>,
}

/// One step, as it counts for the machine.
struct Step {
    kind: SignalKind,
    party_id: Option<String>,
    author_id: UserId,
    detail: Option<String>,
}

/// Has a signal count. What it cannot change, since it is not possible by now or not for its sender, it does not change.
pub(crate) async fn hear(conn: &mut PgConnection, turn: &mut Turn, heard: &Heard<'_>) -> Result<(), CallError> {
    if heard.kind == SignalKind::Invite {
        return invited(conn, turn, heard).await;
    }
    let step = Step {
        kind: heard.kind,
        party_id: heard.party_id.map(str::to_owned),
        author_id: heard.author_id,
        detail: heard.detail.map(str::to_owned),
    };
    count(conn, turn, heard.call_id, &step).await
}

async fn invited(conn: &mut PgConnection, turn: &mut Turn, heard: &Heard<'_>) -> Result<(), CallError> {
    let conversation_id = turn.conversation_id;
    let invitee_id = match heard.invitee.as_ref().filter(|invitee| *invitee != heard.service_user) {
        Some(invitee) => match invitee.nova_user(heard.service_user.server()) {
            Some(user) => user.ok(),
            None => Some(invitee.contact_id()),
        },
        None => None,
    };
    let invitee_id = match invitee_id {
        Some(invitee) => Some(invitee),
        None => match say::others(conn, conversation_id, heard.author_id).await?.as_slice() {
            [other] => Some(*other),
            _ => None,
        },
    };
    turn.advance(conn).await?;
    let row = NewRow {
        call_id: heard.call_id,
        matrix_call_id: heard.matrix_call_id,
        origin: Origin::Matrix,
        initiator_id: heard.author_id,
        invitee_id,
        party_id: heard.party_id,
        send_outbox_id: None,
        event_id: Some(heard.event_id.as_str()),
        created_at: heard.sent_at,
        ring_until: heard.ring_until.unwrap_or(heard.sent_at),
    };
    if !row::insert(conn, conversation_id, turn.seq, &row).await? {
        // Somebody else's call, or their own once more: that one counts.
        return Ok(());
    }
    join(conn, turn, heard.call_id, heard.party_id, heard.author_id).await?;
    for step in earlier(conn, conversation_id, heard.call_id, heard.signal_id).await? {
        count(conn, turn, heard.call_id, &step).await?;
    }
    let Some(call) = row::load(conn, conversation_id, heard.call_id).await? else { return Ok(()) };
    if call.ring_until <= turn.at {
        if let Ok(Next::Ended(reason)) = call.state().next(Move::TimeOut) {
            end(conn, turn, &call, reason, Ender::Nobody, None).await?;
        }
        return Ok(());
    }
    if call.state().next(Move::TimeOut) != Ok(Next::Unchanged) {
        glare::settle(conn, turn, &call).await?;
    }
    Ok(())
}

/// A device speaks. False when its name is another user's here.
async fn join(
    conn: &mut PgConnection,
    turn: &Turn,
    call_id: CallId,
    party_id: Option<&str>,
    user_id: UserId,
) -> Result<bool, sqlx::Error> {
    // Devices of before version 1 have no name.
    let Some(party_id) = party_id else { return Ok(true) };
    row::join(conn, turn.conversation_id, call_id, party_id, user_id, Origin::Matrix, turn.at).await
}

/// What was heard of a call before its invite.
async fn earlier(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
    invite: SignalId,
) -> Result<Vec<Step>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select kind, party_id, author_id as "author_id: UserId", detail from call_signals
        where conversation_id = $1 and call_id = $2 and signal_id <> $3 and origin = 'matrix'
        order by seq
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
        invite.as_uuid(),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let kind = SignalKind::parse(&row.kind)?;
            Some(Step { kind, party_id: row.party_id, author_id: row.author_id, detail: row.detail })
        })
        .collect())
}

async fn count(conn: &mut PgConnection, turn: &mut Turn, call_id: CallId, step: &Step) -> Result<(), CallError> {
    let conversation_id = turn.conversation_id;
    let Some(call) = row::load(conn, conversation_id, call_id).await? else { return Ok(()) };
    let user = step.author_id;
    let party = step.party_id.as_deref().unwrap_or_default();
    let made = match step.kind {
        SignalKind::Invite | SignalKind::Candidates | SignalKind::Negotiate | SignalKind::SdpStreamMetadataChanged => {
            return Ok(());
        }
        SignalKind::Answer => Move::Answer { user, party },
        SignalKind::SelectAnswer => Move::Select { user, party: step.detail.as_deref().unwrap_or_default() },
        SignalKind::Reject => Move::Reject { user },
        SignalKind::Hangup if !speaks_for_the_call(&call, step) => return Ok(()),
        SignalKind::Hangup => Move::Hangup { user, reason: EndReason::of_hangup(step.detail.as_deref()) },
    };
    let Ok(next) = call.state().next(made) else { return Ok(()) };
    if next != Next::Unchanged && !join(conn, turn, call_id, step.party_id.as_deref(), user).await? {
        return Ok(());
    }
    match next {
        Next::Unchanged => Ok(()),
        Next::Answered => {
            row::answered(conn, conversation_id, call_id, Some(user), party, Origin::Matrix, turn.at).await?;
            // A device of before version 1 has no name to select it by.
            if call.origin == Origin::Nova && !party.is_empty() {
                carry::select(conn, turn, &call, party).await?;
            }
            changed(conn, turn, call_id).await
        }
        Next::Reselected => {
            let selected = step.detail.as_deref().unwrap_or_default();
            let known = row::party(conn, conversation_id, call_id, selected).await?;
            let (by, origin) = known.map_or((None, Origin::Matrix), |(user, origin)| (Some(user), origin));
            row::answered(conn, conversation_id, call_id, by, selected, origin, turn.at).await?;
            changed(conn, turn, call_id).await
        }
        Next::Ended(reason) => end(conn, turn, &call, reason, Ender::Matrix(user), None).await,
    }
}

/// Whether the device that hangs up is one of the two that talk: others of the same user have nothing to hang up.
fn speaks_for_the_call(call: &Row, step: &Step) -> bool {
    let Some(party_id) = &step.party_id else { return true };
    let Some(answered) = &call.answered_party_id else { return true };
    step.author_id == call.initiator_id || party_id == answered
}

async fn changed(conn: &mut PgConnection, turn: &Turn, call_id: CallId) -> Result<(), CallError> {
    events::record(conn, turn.conversation_id, EventKind::CallUpdated, call_id.as_uuid()).await?;
    Ok(())
}

/// Tells what was held back until its whole batch was applied, in the order in which it came. Called with the last of a
/// batch.
pub async fn announce(conn: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let told = sqlx::query!(
        r#"
        with told as (
            update call_signals set announced = true where not announced
            returning conversation_id, signal_id, seq
        )
        insert into events (conversation_id, kind, subject_id)
        select conversation_id, 'call_signal', signal_id from told order by conversation_id, seq
        "#,
    )
    .execute(conn)
    .await?;
    Ok(told.rows_affected())
}

/// Whether something of a call is held back: then what follows is too, and comes after it.
pub(crate) async fn is_held_back(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from call_signals where conversation_id = $1 and call_id = $2 and not announced
        ) as "held_back!"
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// What an event says besides: why a hangup is, which party a `select_answer` names, whom an invite calls.
pub(crate) fn detail(kind: SignalKind, content: &Value) -> Option<&str> {
    let field = match kind {
        SignalKind::Hangup => "reason",
        SignalKind::SelectAnswer => "selected_party_id",
        _ => return None,
    };
    content.get(field)?.as_str()
}
