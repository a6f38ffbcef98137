//! Evidence: a homeserver named the event of an operation, so the operation stands in its room.
//!
//! Evidence beats every verdict. The first to bring it settles the operation, and whatever the room then lacks (the
//! redaction of what was deleted meanwhile, the newest text of what was edited) is enqueued with it.

use sqlx::PgConnection;

use super::{Kind, Operation, enqueue, leave_lane, lock_lane};
use crate::{
    calls::{self, CallError, SignalKind},
    chat::{self, Turn},
    ids::{CallId, ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId},
};

/// That an operation stands in a room.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The operation.
    pub outbox_id: OutboxId,
    /// What it did.
    pub kind: Kind,
    /// What it was about.
    pub subject_id: uuid::Uuid,
    /// The revision that was sent.
    pub revision: Option<i32>,
    /// For a redaction, what it redacted.
    pub target_outbox_id: Option<OutboxId>,
    /// Its event.
    pub event_id: EventId,
    /// The room that has it.
    pub room_id: RoomId,
    /// Who sent it.
    pub sender: String,
}

/// Writes evidence down. False when it was known before.
pub(super) async fn record(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    evidence: &Evidence,
) -> Result<bool, sqlx::Error> {
    let first = sqlx::query!(
        r#"
        insert into sent_events (conversation_id, outbox_id, event_id, kind, subject_id, revision, target_outbox_id,
            room_id, sender, sent_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, outbox_now())
        on conflict do nothing
        "#,
        conversation_id.as_uuid(),
        evidence.outbox_id.as_uuid(),
        evidence.event_id.as_str(),
        evidence.kind.as_str(),
        evidence.subject_id,
        evidence.revision,
        evidence.target_outbox_id.map(OutboxId::as_uuid),
        evidence.room_id.as_str(),
        evidence.sender,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected()
        == 1;
    if first && evidence.kind == Kind::Message {
        sqlx::query!(
            r#"
            with told as (
                update messages set matrix_event_id = $4
                where conversation_id = $1 and message_id = $2 and send_outbox_id = $3 and matrix_event_id is null
                returning conversation_id, message_id
            )
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, 'message_delivery', message_id from told
            "#,
            conversation_id.as_uuid(),
            evidence.subject_id,
            evidence.outbox_id.as_uuid(),
            evidence.event_id.as_str(),
        )
        .execute(&mut *conn)
        .await?;
    }
    if first && evidence.kind == Kind::Call(SignalKind::Invite) {
        sqlx::query!(
            r#"
            with told as (
                update calls set matrix_invite_event_id = $4
                where conversation_id = $1 and call_id = $2 and send_outbox_id = $3 and matrix_invite_event_id is null
                returning conversation_id, call_id
            )
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, 'call_updated', call_id from told
            "#,
            conversation_id.as_uuid(),
            evidence.subject_id,
            evidence.outbox_id.as_uuid(),
            evidence.event_id.as_str(),
        )
        .execute(&mut *conn)
        .await?;
    }
    if first && evidence.kind == Kind::React {
        sqlx::query!(
            r#"
            update message_reactions set matrix_event_id = $3, matrix_room_id = $4
            where conversation_id = $1 and send_outbox_id = $2 and matrix_event_id is null
            "#,
            conversation_id.as_uuid(),
            evidence.outbox_id.as_uuid(),
            evidence.event_id.as_str(),
            evidence.room_id.as_str(),
        )
        .execute(conn)
        .await?;
    }
    Ok(first)
}

/// Takes evidence from whoever brings it outside of a settle: a worker whose lease is gone.
///
/// In a transaction of its own. The operation may be live (also while another worker leases the lane), dead, or given up.
pub async fn late_evidence(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
    evidence: &Evidence,
) -> Result<bool, sqlx::Error> {
    let Some(mut turn) = chat::lock_conversation(conn, conversation_id).await? else { return Ok(false) };
    evidence_in_turn(conn, &mut turn, lane_id, evidence).await
}

/// The same for who has the conversation's turn already: an echo. What it enqueues takes a place of its own.
pub(crate) async fn evidence_in_turn(
    conn: &mut PgConnection,
    turn: &mut Turn,
    lane_id: LaneId,
    evidence: &Evidence,
) -> Result<bool, sqlx::Error> {
    let conversation_id = turn.conversation_id;
    lock_lane(conn, conversation_id, lane_id).await?;
    if !record(conn, conversation_id, evidence).await? {
        return Ok(false);
    }
    let outbox_id = evidence.outbox_id.as_uuid();
    let live = sqlx::query!(
        "delete from outbox where conversation_id = $1 and outbox_id = $2 and lane_id = $3",
        conversation_id.as_uuid(),
        outbox_id,
        lane_id.as_uuid(),
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if live > 0 {
        leave_lane(conn, conversation_id, lane_id, live, turn.at).await?;
        return Ok(true);
    }
    sqlx::query!(
        "delete from dead_letters where conversation_id = $1 and outbox_id = $2",
        conversation_id.as_uuid(),
        outbox_id
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "delete from withdrawn_operations where conversation_id = $1 and outbox_id = $2",
        conversation_id.as_uuid(),
        outbox_id
    )
    .execute(&mut *conn)
    .await?;
    if evidence.kind.carries_text() {
        turn.advance(conn).await?;
        follow_up(conn, turn, lane_id, evidence).await?;
    }
    if evidence.kind == Kind::Call(SignalKind::Invite) {
        match calls::invite_arrived_late(conn, turn, CallId::from(evidence.subject_id)).await {
            Err(CallError::Database(error)) => return Err(error),
            // What ends a call says nothing that would be sealed.
            Err(error) => return Err(sqlx::Error::Protocol(error.to_string())),
            Ok(()) => {}
        }
    }
    if evidence.kind == Kind::React {
        turn.advance(conn).await?;
        redact_if_removed(conn, turn, lane_id, evidence).await?;
    }
    Ok(true)
}

/// Enqueues what the room lacks, now that an operation which was no longer live turned out to stand in it.
async fn follow_up(
    conn: &mut PgConnection,
    turn: &Turn,
    lane_id: LaneId,
    evidence: &Evidence,
) -> Result<(), sqlx::Error> {
    let state = sqlx::query!(
        r#"
        select m.revision, m.deleted_at is not null as "deleted!",
            exists (
                select 1 from outbox o
                where o.conversation_id = $1 and o.subject_id = $2 and o.kind = 'redact' and o.target_outbox_id = $3
            ) or exists (
                select 1 from sent_events s
                where s.conversation_id = $1 and s.subject_id = $2 and s.kind = 'redact' and s.target_outbox_id = $3
            ) as "redacted!",
            exists (
                select 1 from outbox o join lanes l using (conversation_id, lane_id)
                where o.conversation_id = $1 and o.subject_id = $2 and o.kind = 'edit' and o.revision = m.revision
                    and ($4 or (o.seq > l.frozen_through and o.maybe_sent_at is null))
            ) or ($4 and exists (
                select 1 from dead_letters d
                where d.conversation_id = $1 and d.subject_id = $2 and d.kind = 'edit' and d.revision = m.revision
            )) as "newest_follows!"
        from messages m
        where m.conversation_id = $1 and m.message_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        evidence.subject_id,
        evidence.outbox_id.as_uuid(),
        evidence.kind == Kind::Message,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(state) = state else { return Ok(()) };
    let missing = if state.deleted {
        (!state.redacted).then_some((Kind::Redact, None, Some(evidence.outbox_id)))
    } else {
        let outdated = evidence.revision.is_some_and(|sent| sent < state.revision);
        (outdated && !state.newest_follows).then_some((Kind::Edit, Some(state.revision), None))
    };
    let Some((kind, revision, target_outbox_id)) = missing else { return Ok(()) };
    tracing::info!(
        conversation.id = %turn.conversation_id,
        message.id = %MessageId::from(evidence.subject_id),
        outbox.kind = kind.as_str(),
        "late evidence: the room lacks an operation, enqueued"
    );
    let operation = Operation {
        outbox_id: OutboxId::generate(),
        lane_id,
        kind,
        subject_id: evidence.subject_id,
        revision,
        target_outbox_id,
        not_before: None,
        expires_at: None,
    };
    enqueue(conn, turn, &operation).await?;
    Ok(())
}

/// Enqueues the redaction of a reaction that was removed and turned out to stand in its room. Where its message was
/// deleted it is shown no more.
async fn redact_if_removed(
    conn: &mut PgConnection,
    turn: &Turn,
    lane_id: LaneId,
    evidence: &Evidence,
) -> Result<(), sqlx::Error> {
    let lacking = sqlx::query_scalar!(
        r#"
        select r.removed_at is not null and m.deleted_at is null
            and not exists (
                select 1 from outbox o
                where o.conversation_id = $1 and o.subject_id = r.message_id and o.kind = 'redact'
                    and o.target_outbox_id = $2
            ) and not exists (
                select 1 from sent_events s
                where s.conversation_id = $1 and s.subject_id = r.message_id and s.kind = 'redact'
                    and s.target_outbox_id = $2
            ) as "lacking!"
        from message_reactions r
        join messages m on m.conversation_id = r.conversation_id and m.message_id = r.message_id
        where r.conversation_id = $1 and r.send_outbox_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        evidence.outbox_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    if lacking != Some(true) {
        return Ok(());
    }
    tracing::info!(
        conversation.id = %turn.conversation_id,
        message.id = %MessageId::from(evidence.subject_id),
        "late evidence of a reaction that was removed: its redaction is enqueued"
    );
    let operation = Operation {
        outbox_id: OutboxId::generate(),
        lane_id,
        kind: Kind::Redact,
        subject_id: evidence.subject_id,
        revision: None,
        target_outbox_id: Some(evidence.outbox_id),
        not_before: None,
        expires_at: None,
    };
    enqueue(conn, turn, &operation).await?;
    Ok(())
}

/// Takes the news that our own account changed the membership of a user: `present` says which way.
///
/// State operations have no transaction ids, so a removal whose sender gave it up may arrive after the invitation that
/// followed it. If what arrived contradicts the database and nothing that waits will change it anyway, the operation that
/// the database wants is enqueued. It looks before it acts, so one too many costs nothing. True when one was.
///
/// In a transaction of its own.
pub async fn membership_echo(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    user_id: UserId,
    present: bool,
) -> Result<bool, sqlx::Error> {
    let Some(mut turn) = chat::lock_conversation(conn, conversation_id).await? else { return Ok(false) };
    membership_echo_in_turn(conn, &mut turn, user_id, present).await
}

/// The same for who has the conversation's turn already.
pub(crate) async fn membership_echo_in_turn(
    conn: &mut PgConnection,
    turn: &mut Turn,
    user_id: UserId,
    present: bool,
) -> Result<bool, sqlx::Error> {
    let conversation_id = turn.conversation_id;
    lock_lane(conn, conversation_id, LaneId::from(conversation_id)).await?;
    let wanted = chat::is_member(conn, conversation_id, user_id).await?;
    if wanted == present {
        return Ok(false);
    }
    let follows = sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from outbox o join lanes l using (conversation_id, lane_id)
            where o.conversation_id = $1 and o.subject_id = $2 and o.kind in ('invite', 'remove')
                and o.seq > l.frozen_through and o.maybe_sent_at is null
        ) as "follows!"
        "#,
        conversation_id.as_uuid(),
        user_id.as_uuid(),
    )
    .fetch_one(&mut *conn)
    .await?;
    if follows {
        return Ok(false);
    }
    let kind = if wanted { Kind::Invite } else { Kind::Remove };
    turn.advance(conn).await?;
    chat::enqueue_membership(conn, turn, user_id, kind).await?;
    Ok(true)
}
