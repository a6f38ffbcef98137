//! What goes to Matrix: a call's lane, what waits in it, and what may stand in the room.

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{
    CallError, MAX_SIGNAL_BYTES, NewSignal, Origin, SignalKind, Status, place,
    row::{self, Row},
    signals,
};
use crate::{
    chat::Turn,
    events::{self, EventKind},
    ids::{CallId, ConversationId, LaneId, OutboxId, SignalId, UserId},
    outbox::{self, Kind, Operation},
    seal::KeyRing,
};

/// Something that one of us says in a call, or that we say for them.
#[derive(Debug)]
pub(super) struct Said<'a> {
    pub(super) kind: SignalKind,
    pub(super) party_id: Option<&'a str>,
    pub(super) author_id: UserId,
    /// What it says, for what is not bare.
    pub(super) content: Option<(&'a KeyRing, &'a Value)>,
    pub(super) detail: Option<&'a str>,
    /// The operation that takes it to Matrix; none when it does not concern anybody there.
    pub(super) send: Option<Send>,
    /// Whether our own clients are told of it.
    pub(super) told: bool,
}

/// How something goes to Matrix.
#[derive(Debug)]
pub(super) struct Send {
    pub(super) outbox_id: OutboxId,
    /// Not sooner than this.
    pub(super) not_before: Option<OffsetDateTime>,
    /// Not later than this.
    pub(super) expires_at: Option<OffsetDateTime>,
}

impl Send {
    pub(super) fn now() -> Self {
        Self { outbox_id: OutboxId::generate(), not_before: None, expires_at: None }
    }
}

/// Writes down what was said, and enqueues it if it goes to Matrix. Takes a place of its own.
pub(super) async fn put(
    conn: &mut PgConnection,
    turn: &mut Turn,
    call: &Row,
    said: Said<'_>,
) -> Result<SignalId, CallError> {
    turn.advance(conn).await?;
    let signal_id = write(conn, turn, call, &said).await?;
    if let Some(send) = said.send {
        let lane_id = open_lane(conn, turn.conversation_id, call.call_id).await?;
        hurry(conn, turn, lane_id).await?;
        let operation = Operation {
            outbox_id: send.outbox_id,
            lane_id,
            kind: Kind::Call(said.kind),
            subject_id: call.call_id.as_uuid(),
            revision: None,
            target_outbox_id: None,
            not_before: send.not_before,
            expires_at: send.expires_at,
        };
        outbox::enqueue(conn, turn, &operation).await?;
    }
    Ok(signal_id)
}

/// Writes down what was said at the turn's place.
pub(super) async fn write(
    conn: &mut PgConnection,
    turn: &Turn,
    call: &Row,
    said: &Said<'_>,
) -> Result<SignalId, CallError> {
    let signal_id = SignalId::generate();
    let payload = match said.content {
        Some((keys, content)) => {
            let text = content.to_string();
            if text.len() > MAX_SIGNAL_BYTES {
                return Err(CallError::TooLarge);
            }
            Some(keys.seal(place(turn.conversation_id, signal_id), &text)?)
        }
        None => None,
    };
    let new = NewSignal {
        signal_id,
        call_id: call.call_id,
        matrix_call_id: &call.matrix_call_id,
        kind: said.kind,
        party_id: said.party_id,
        author_id: said.author_id,
        origin: Origin::Nova,
        payload,
        detail: said.detail,
        send_outbox_id: said.send.as_ref().map(|send| send.outbox_id),
        event: None,
        expires_at: (said.kind == SignalKind::Invite).then_some(call.ring_until),
        created_at: turn.at,
        announced: true,
    };
    signals::insert(conn, turn, &new).await?;
    if said.told {
        events::record(conn, turn.conversation_id, EventKind::CallSignal, signal_id.as_uuid()).await?;
    }
    Ok(signal_id)
}

/// The lane of a call, locked; made when there is none. It waits for what its conversation waits for: whatever holds back
/// words holds back calls.
pub(super) async fn open_lane(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
) -> Result<LaneId, sqlx::Error> {
    let (chat, lane_id) = (LaneId::from(conversation_id), LaneId::from(call_id));
    // Whoever pauses the conversation has this lock too: either they find the new lane, or it is made paused.
    outbox::lock_lane(conn, conversation_id, chat).await?;
    sqlx::query!(
        r#"
        insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, epoch, hold, paused_until,
            pause_reason)
        select conversation_id, $3, 'call', 0, 0, 0, hold, paused_until, pause_reason
        from lanes
        where conversation_id = $1 and lane_id = $2
        on conflict do nothing
        "#,
        conversation_id.as_uuid(),
        chat.as_uuid(),
        lane_id.as_uuid(),
    )
    .execute(&mut *conn)
    .await?;
    outbox::lock_lane(conn, conversation_id, lane_id).await?;
    Ok(lane_id)
}

/// What waits in a locked lane only for more of its kind goes at once: something comes after it.
pub(super) async fn hurry(conn: &mut PgConnection, turn: &Turn, lane_id: LaneId) -> Result<(), sqlx::Error> {
    let hurried = sqlx::query!(
        r#"
        update outbox o set due_at = $3
        from lanes l
        where o.conversation_id = $1 and o.lane_id = $2
            and l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
            and o.kind = 'call_candidates' and o.due_at > $3 and o.failures = 0
            and o.seq > l.frozen_through and o.maybe_sent_at is null
        "#,
        turn.conversation_id.as_uuid(),
        lane_id.as_uuid(),
        turn.at,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if hurried == 0 {
        return Ok(());
    }
    sqlx::query!(
        r#"
        update lanes set due_at = outbox_due(conversation_id, lane_id, $3, hold, paused_until)
        where conversation_id = $1 and lane_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        lane_id.as_uuid(),
        turn.at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes back what still waits in a call's lane. What was handed to a sender stays. True when the invite was among it.
pub(super) async fn take_back(conn: &mut PgConnection, turn: &Turn, call_id: CallId) -> Result<bool, sqlx::Error> {
    let (conversation_id, lane_id) = (turn.conversation_id, LaneId::from(call_id));
    // As all who lock several lanes: what ends the call may have to be enqueued next.
    outbox::lock_lane(conn, conversation_id, LaneId::from(conversation_id)).await?;
    outbox::lock_lane(conn, conversation_id, lane_id).await?;
    let gone = sqlx::query_scalar!(
        r#"
        delete from outbox o
        using lanes l
        where o.conversation_id = $1 and o.lane_id = $2
            and l.conversation_id = o.conversation_id and l.lane_id = o.lane_id and l.lane_class = 'call'
            and o.seq > l.frozen_through and o.maybe_sent_at is null
        returning o.kind = 'call_invite' as "invite!"
        "#,
        conversation_id.as_uuid(),
        lane_id.as_uuid(),
    )
    .fetch_all(&mut *conn)
    .await?;
    outbox::leave_lane(conn, conversation_id, lane_id, gone.len() as u64, turn.at).await?;
    Ok(gone.contains(&true))
}

/// Whether an operation stands in the room, or may: it is there, was handed to a sender, or ended with nobody knowing.
pub(super) async fn may_stand(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (select 1 from sent_events where conversation_id = $1 and outbox_id = $2)
            or exists (select 1 from outbox where conversation_id = $1 and outbox_id = $2)
            or exists (
                select 1 from dead_letters
                where conversation_id = $1 and outbox_id = $2 and maybe_sent_at is not null
            )
            or exists (select 1 from withdrawn_operations where conversation_id = $1 and outbox_id = $2)
            as "may_stand!"
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Whether somebody on Matrix may have heard a call that was placed here. To be asked once what waits was taken back.
pub(super) async fn may_ring_there(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call: &Row,
) -> Result<bool, sqlx::Error> {
    match call.send_outbox_id {
        Some(outbox_id) if call.origin == Origin::Nova => may_stand(conn, conversation_id, outbox_id).await,
        _ => Ok(false),
    }
}

/// Tells Matrix whose answer counts: the others stop ringing.
pub(super) async fn select(
    conn: &mut PgConnection,
    turn: &mut Turn,
    call: &Row,
    party_id: &str,
) -> Result<(), CallError> {
    let said = Said {
        kind: SignalKind::SelectAnswer,
        party_id: call.matrix_party_id.as_deref(),
        author_id: call.initiator_id,
        content: None,
        detail: Some(party_id),
        send: Some(Send::now()),
        told: false,
    };
    put(conn, turn, call, said).await?;
    Ok(())
}

/// An invite that was given up turned out to stand in the room: what ends its ringing follows, if nothing did.
pub(crate) async fn invite_arrived_late(
    conn: &mut PgConnection,
    turn: &mut Turn,
    call_id: CallId,
) -> Result<(), CallError> {
    let Some(call) = row::load(conn, turn.conversation_id, call_id).await? else { return Ok(()) };
    let followed = sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from outbox
            where conversation_id = $1 and lane_id = $2 and kind in ('call_hangup', 'call_select_answer')
        ) or exists (
            select 1 from sent_events
            where conversation_id = $1 and subject_id = $2 and kind in ('call_hangup', 'call_select_answer')
        ) as "followed!"
        "#,
        turn.conversation_id.as_uuid(),
        call_id.as_uuid(),
    )
    .fetch_one(&mut *conn)
    .await?;
    match (call.status, &call.answered_party_id) {
        _ if followed => Ok(()),
        (Status::Ended, _) => {
            let said = Said {
                kind: SignalKind::Hangup,
                party_id: call.matrix_party_id.as_deref(),
                author_id: call.initiator_id,
                content: None,
                detail: Some("invite_timeout"),
                send: Some(Send::now()),
                told: false,
            };
            put(conn, turn, &call, said).await?;
            Ok(())
        }
        (Status::Active, Some(party_id)) => select(conn, turn, &call, party_id).await,
        _ => Ok(()),
    }
}
