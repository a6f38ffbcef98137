//! What is said on Matrix in calls, by the same machine.
//!
//! Signals may come in any order, and of calls that are not known: they are kept, and count once the invite is there.

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{
    CallError, EndReason, Move, Next, Origin, SignalKind, Status, carry,
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
    signal_id: SignalId,
    kind: SignalKind,
    party_id: Option<String>,
    author_id: UserId,
    detail: Option<String>,
}

/// Has a signal count. What it cannot change, since it is not possible by now or not for its sender, it does not change.
/// False when it does not count: nobody is to hear of it.
pub(crate) async fn hear(conn: &mut PgConnection, turn: &mut Turn, heard: &Heard<'_>) -> Result<bool, CallError> {
    if heard.kind == SignalKind::Invite {
        return invited(conn, turn, heard).await;
    }
    let step = Step {
        signal_id: heard.signal_id,
        kind: heard.kind,
        party_id: heard.party_id.map(str::to_owned),
        author_id: heard.author_id,
        detail: heard.detail.map(str::to_owned),
    };
    count(conn, turn, heard.call_id, &step).await
}

/// Whom an invite calls. One of our namespace who is nobody is somebody who is not here.
fn invitee(heard: &Heard<'_>) -> Option<UserId> {
    let invitee = heard.invitee.as_ref().filter(|invitee| *invitee != heard.service_user)?;
    let ours = invitee.nova_user(heard.service_user.server());
    Some(ours.and_then(Result::ok).unwrap_or_else(|| invitee.contact_id()))
}

async fn invited(conn: &mut PgConnection, turn: &mut Turn, heard: &Heard<'_>) -> Result<bool, CallError> {
    let conversation_id = turn.conversation_id;
    let invitee_id = match invitee(heard) {
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
        return Ok(false);
    }
    join(conn, turn, heard.call_id, heard.party_id, heard.author_id).await?;
    for step in earlier(conn, conversation_id, heard.call_id, heard.signal_id).await? {
        if count(conn, turn, heard.call_id, &step).await? {
            // It is told after the invite.
            hold_back(conn, conversation_id, step.signal_id).await?;
        }
    }
    let Some(call) = row::load(conn, conversation_id, heard.call_id).await? else { return Ok(true) };
    if call.ring_until <= turn.at {
        if let Ok(Next::Ended(reason)) = call.state().next(Move::TimeOut) {
            end(conn, turn, &call, reason, Ender::Nobody, None).await?;
        }
    } else if call.status == Status::Ringing {
        glare::settle(conn, turn, &call).await?;
    }
    Ok(true)
}

/// A signal is told with the last of its batch.
pub(crate) async fn hold_back(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    signal_id: SignalId,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update call_signals set announced = false where conversation_id = $1 and signal_id = $2",
        conversation_id.as_uuid(),
        signal_id.as_uuid(),
    )
    .execute(conn)
    .await?;
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
        select signal_id as "signal_id: SignalId", kind, party_id, author_id as "author_id: UserId", detail
        from call_signals
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
            let (signal_id, party_id) = (row.signal_id, row.party_id);
            Some(Step { signal_id, kind, party_id, author_id: row.author_id, detail: row.detail })
        })
        .collect())
}

/// What an event says, as the machine has it.
fn made(step: &Step) -> Move<'_> {
    let user = step.author_id;
    let party = step.party_id.as_deref().unwrap_or_default();
    match step.kind {
        // One that is known counts as it did, and an invite is no step of its own.
        SignalKind::Invite | SignalKind::Candidates | SignalKind::SdpStreamMetadataChanged => Move::Tell { user },
        SignalKind::Negotiate => Move::Negotiate { user },
        SignalKind::Answer => Move::Answer { user, party },
        SignalKind::SelectAnswer => Move::Select { user, party: step.detail.as_deref().unwrap_or_default() },
        SignalKind::Reject => Move::Reject { user },
        SignalKind::Hangup => Move::Hangup { user, reason: EndReason::of_hangup(step.detail.as_deref()) },
    }
}

async fn count(conn: &mut PgConnection, turn: &mut Turn, call_id: CallId, step: &Step) -> Result<bool, CallError> {
    let conversation_id = turn.conversation_id;
    let Some(call) = row::load(conn, conversation_id, call_id).await? else { return Ok(false) };
    let is_of_the_two = !matches!(step.kind, SignalKind::Answer | SignalKind::Reject);
    if is_of_the_two && !speaks_for_the_call(&call, step) {
        return Ok(false);
    }
    let Ok(next) = call.state().next(made(step)) else { return Ok(false) };
    let (user, party) = (step.author_id, step.party_id.as_deref().unwrap_or_default());
    if next != Next::Unchanged && !join(conn, turn, call_id, step.party_id.as_deref(), user).await? {
        return Ok(false);
    }
    match next {
        Next::Unchanged if step.kind == SignalKind::Answer => {
            // The caller chose this device before its answer was here.
            if call.answered_by.is_some() || !join(conn, turn, call_id, step.party_id.as_deref(), user).await? {
                return Ok(false);
            }
            row::answered(conn, conversation_id, call_id, Some(user), party, Origin::Matrix, turn.at).await?;
            changed(conn, turn, call_id).await?;
        }
        Next::Unchanged => {}
        Next::Answered => {
            row::answered(conn, conversation_id, call_id, Some(user), party, Origin::Matrix, turn.at).await?;
            // A device of before version 1 has no name to select it by.
            if call.origin == Origin::Nova && !party.is_empty() {
                carry::select(conn, turn, &call, party).await?;
            }
            tell_what_it_named(conn, turn, call_id, step).await?;
            changed(conn, turn, call_id).await?;
        }
        Next::Reselected => {
            let selected = step.detail.as_deref().unwrap_or_default();
            let known = match row::party(conn, conversation_id, call_id, selected).await? {
                Some(known) => Some(known),
                None => answerer(conn, conversation_id, call_id, selected).await?,
            };
            let (by, origin) = known.map_or((None, Origin::Matrix), |(user, origin)| (Some(user), origin));
            row::answered(conn, conversation_id, call_id, by, selected, origin, turn.at).await?;
            changed(conn, turn, call_id).await?;
        }
        Next::Ended(reason) => end(conn, turn, &call, reason, Ender::Matrix(user), None).await?,
    }
    Ok(true)
}

/// A device that answers may have named candidates before: nobody was told, since nobody knew that it would count.
async fn tell_what_it_named(
    conn: &mut PgConnection,
    turn: &Turn,
    call_id: CallId,
    step: &Step,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into events (conversation_id, kind, subject_id)
        select conversation_id, 'call_signal', signal_id from call_signals
        where conversation_id = $1 and call_id = $2 and kind = 'candidates' and origin = 'matrix' and announced
            and author_id = $3 and coalesce(party_id, '') = coalesce($4, '')
        order by seq
        "#,
        turn.conversation_id.as_uuid(),
        call_id.as_uuid(),
        step.author_id.as_uuid(),
        step.party_id,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Who answered by a device whose answer did not count when it came.
async fn answerer(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
    party_id: &str,
) -> Result<Option<(UserId, Origin)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select author_id as "author_id: UserId", origin as "origin: Origin" from call_signals
        where conversation_id = $1 and call_id = $2 and kind = 'answer' and party_id = $3
        order by seq desc
        limit 1
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
        party_id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.author_id, row.origin)))
}

/// Whether it is said by a device of one of the two that talk: others of the same user have no say.
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
            returning conversation_id, signal_id, seq, kind
        )
        insert into events (conversation_id, kind, subject_id)
        select conversation_id, 'call_signal', signal_id from told order by conversation_id, kind <> 'invite', seq
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

/// The call that an event names: one that was placed here, by its id, or one of Matrix.
pub(crate) async fn call_of(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    matrix_call_id: &str,
) -> Result<CallId, sqlx::Error> {
    let ours = sqlx::query_scalar!(
        r#"
        select call_id as "call_id: CallId" from calls
        where conversation_id = $1 and call_id = $2 and origin = 'nova'
        "#,
        conversation_id.as_uuid(),
        uuid::Uuid::try_parse(matrix_call_id).unwrap_or_default(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(ours.unwrap_or_else(|| CallId::of_matrix(conversation_id, matrix_call_id)))
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
