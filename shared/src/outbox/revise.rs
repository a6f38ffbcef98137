//! Edits, deletes and reactions: what becomes of the operations of a message when its author changes their mind.
//!
//! The table goes by the state of *each operation* of the message, not by its first:
//!
//! | an operation of the message is | edit | delete |
//! |---|---|---|
//! | waiting | the message's own: carries the new text, its waiting edits go. An edit: carries the new text | goes: cancelled |
//! | handed or delivered | an edit follows (a waiting one carries it, others go); dead edits that were never sent go | a redaction follows |
//! | dead, certainly not sent | carries the new text; its dead edits go | goes |
//! | dead, perhaps sent | a dead edit carries the new text, for the requeue | goes; a redaction follows |
//! | given up, perhaps sent | nothing | a redaction follows |
//! | never enqueued | nothing | nothing |
//!
//! And of a reaction, whose operation goes by its own state and by that of the message's:
//!
//! | it is | reacting, when the message's own operation is | taking the reaction back, when the reaction's is |
//! |---|---|---|
//! | waiting | an operation follows | goes, as if it had never been |
//! | handed or delivered | an operation follows | a redaction follows |
//! | dead, certainly not sent | a dead letter beside the message's | goes |
//! | dead, perhaps sent | a dead letter beside the message's | goes; a redaction follows |
//! | given up, perhaps sent | nothing | a redaction follows |
//! | never enqueued | nothing; an operation if the message came from Matrix | nothing |
//!
//! With the message waiting and dead reactions to it go; those that left are shown with it or not at all.
//!
//! Waiting means: after the lane's `frozen_through`, and never perhaps sent. Both sides, this one and the claim, hold the
//! lane's row lock when they ask.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Kind, Operation, enqueue};
use crate::{
    chat::Turn,
    ids::{LaneId, MessageId, OutboxId, UserId},
    trace::TraceParent,
};

/// What a delete did on the way to Matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deletion {
    /// Nothing of the message left, and nothing will.
    Cancelled,
    /// Something of it left or may have: redactions follow.
    Redacting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// Handed out and live, or delivered.
    HandedOrSent,
    Dead {
        maybe_sent: bool,
    },
    Withdrawn,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    outbox_id: OutboxId,
    kind: Kind,
    state: State,
}

/// Locks the lane and says where each operation stands that carries words of the message or of a reaction to it, oldest first: their ids are
/// UUIDs v7. Two statements: the second
/// sees what whoever held the lane before has committed.
async fn operations(
    conn: &mut PgConnection,
    turn: &Turn,
    lane_id: LaneId,
    message_id: MessageId,
) -> Result<Vec<Known>, sqlx::Error> {
    super::lock_lane(conn, turn.conversation_id, lane_id).await?;
    let rows = sqlx::query!(
        r#"
        select o.outbox_id as "outbox_id!: OutboxId", o.kind as "kind!", 'outbox' as "place!",
            o.maybe_sent_at is not null as "maybe_sent!", o.seq > l.frozen_through as "thawed!"
        from outbox o join lanes l using (conversation_id, lane_id)
        where o.conversation_id = $1 and o.subject_id = $2
            and not exists (
                select 1 from sent_events s where s.conversation_id = $1 and s.outbox_id = o.outbox_id
            )
        union all
        select outbox_id, kind, 'sent_events', true, false
        from sent_events where conversation_id = $1 and subject_id = $2
        union all
        select outbox_id, kind, 'dead_letters', maybe_sent_at is not null, false
        from dead_letters where conversation_id = $1 and subject_id = $2
        union all
        select outbox_id, kind, 'withdrawn_operations', true, false
        from withdrawn_operations where conversation_id = $1 and subject_id = $2
        order by 1
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let kind = Kind::parse(&row.kind).filter(|kind| kind.carries_words())?;
            let state = match row.place.as_str() {
                "outbox" if row.thawed && !row.maybe_sent => State::Waiting,
                "outbox" | "sent_events" => State::HandedOrSent,
                "dead_letters" => State::Dead { maybe_sent: row.maybe_sent },
                _ => State::Withdrawn,
            };
            Some(Known { outbox_id: row.outbox_id, kind, state })
        })
        .collect())
}

/// What an edit of a message changes: called when the new revision is written, under the conversation's lock.
///
/// True when something is enqueued or changed that a worker may send.
pub async fn edit(
    conn: &mut PgConnection,
    turn: &Turn,
    message_id: MessageId,
    send_outbox_id: OutboxId,
    revision: i32,
) -> Result<bool, sqlx::Error> {
    let lane_id = LaneId::from(turn.conversation_id);
    let known = operations(conn, turn, lane_id, message_id).await?;
    let edits = |state: State| {
        let of_state = move |known: &&Known| known.kind == Kind::Edit && known.state == state;
        known.iter().filter(of_state).map(|known| known.outbox_id.as_uuid()).collect::<Vec<Uuid>>()
    };
    let Some(send) = known.iter().find(|known| known.outbox_id == send_outbox_id) else { return Ok(false) };
    match send.state {
        State::Waiting => {
            carry(conn, turn, send_outbox_id.as_uuid(), revision).await?;
            remove_waiting(conn, turn, lane_id, &edits(State::Waiting)).await?;
            Ok(true)
        }
        State::HandedOrSent => {
            bury_for_good(conn, turn, &edits(State::Dead { maybe_sent: false })).await?;
            if let Some((first, others)) = edits(State::Waiting).split_first() {
                // Several wait when one was handed and refused meanwhile. The newest text stands in one of them only, and
                // none that is older may leave after it.
                carry(conn, turn, *first, revision).await?;
                remove_waiting(conn, turn, lane_id, others).await?;
            } else {
                let operation = Operation {
                    outbox_id: OutboxId::generate(),
                    lane_id,
                    kind: Kind::Edit,
                    subject_id: message_id.as_uuid(),
                    revision: Some(revision),
                    target_outbox_id: None,
                    not_before: None,
                    expires_at: None,
                };
                enqueue(conn, turn, &operation).await?;
            }
            Ok(true)
        }
        State::Dead { maybe_sent: false } => {
            carry_dead(conn, turn, send_outbox_id.as_uuid(), revision).await?;
            bury_for_good(conn, turn, &edits(State::Dead { maybe_sent: false })).await?;
            Ok(false)
        }
        State::Dead { maybe_sent: true } => {
            if let Some(parked) = edits(State::Dead { maybe_sent: false }).first() {
                carry_dead(conn, turn, *parked, revision).await?;
            } else {
                let operation = Operation {
                    outbox_id: OutboxId::generate(),
                    lane_id,
                    kind: Kind::Edit,
                    subject_id: message_id.as_uuid(),
                    revision: Some(revision),
                    target_outbox_id: None,
                    not_before: None,
                    expires_at: None,
                };
                park(conn, turn, &operation, None).await?;
            }
            Ok(false)
        }
        State::Withdrawn => Ok(false),
    }
}

/// What a delete of a message changes: called when its texts are wiped, under the conversation's lock. `redacted` is the
/// operation whose event somebody else has redacted already.
pub async fn delete(
    conn: &mut PgConnection,
    turn: &mut Turn,
    message_id: MessageId,
    redacted: Option<OutboxId>,
) -> Result<Deletion, sqlx::Error> {
    let lane_id = LaneId::from(turn.conversation_id);
    let known = operations(conn, turn, lane_id, message_id).await?;
    let waiting: Vec<Uuid> =
        known.iter().filter(|known| known.state == State::Waiting).map(|known| known.outbox_id.as_uuid()).collect();
    remove_waiting(conn, turn, lane_id, &waiting).await?;
    let mut deletion = Deletion::Cancelled;
    for operation in known {
        if let State::Dead { .. } = operation.state {
            withdraw_dead(conn, turn, operation.outbox_id).await?;
        }
        // What has reacted to the message keeps its event: it is shown with the message or not at all.
        let gone = matches!(operation.state, State::Waiting | State::Dead { maybe_sent: false });
        if gone || !operation.kind.carries_text() || redacted == Some(operation.outbox_id) {
            continue;
        }
        if deletion == Deletion::Redacting {
            turn.advance(conn).await?;
        }
        deletion = Deletion::Redacting;
        enqueue(conn, turn, &redaction(message_id, lane_id, operation.outbox_id)).await?;
    }
    Ok(deletion)
}

/// What was enqueued for a reaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Nothing: the message never was and never will be on Matrix, or another operation stands for the reaction.
    Nothing,
    /// An operation that waits as a dead letter, with the message's.
    Parked(OutboxId),
    /// An operation; and how many live ones the lane has now.
    Enqueued(OutboxId, i32),
}

impl Sending {
    /// The operation.
    pub const fn outbox_id(self) -> Option<OutboxId> {
        match self {
            Self::Nothing => None,
            Self::Parked(outbox_id) | Self::Enqueued(outbox_id, _) => Some(outbox_id),
        }
    }

    /// How many live operations the lane has now, if there is one more.
    pub const fn open(self) -> Option<i32> {
        match self {
            Self::Nothing | Self::Parked(_) => None,
            Self::Enqueued(_, open) => Some(open),
        }
    }
}

/// Enqueues the operation of a reaction to a message, unless one of those that stand for the same key still does: under
/// the conversation's lock.
pub async fn react(
    conn: &mut PgConnection,
    turn: &Turn,
    message_id: MessageId,
    reactor_id: UserId,
    standing: &[OutboxId],
) -> Result<Sending, sqlx::Error> {
    let lane_id = LaneId::from(turn.conversation_id);
    let known = operations(conn, turn, lane_id, message_id).await?;
    let stands = |known: &Known| standing.contains(&known.outbox_id) && known.state != State::Withdrawn;
    if known.iter().any(stands) {
        return Ok(Sending::Nothing);
    }
    let message = sqlx::query!(
        r#"
        select origin = 'matrix' as "from_matrix!", send_outbox_id as "send_outbox_id: OutboxId"
        from messages where conversation_id = $1 and message_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_one(&mut *conn)
    .await?;
    let send = known.iter().find(|known| Some(known.outbox_id) == message.send_outbox_id);
    let state = send.map(|send| send.state);
    let outbox_id = OutboxId::generate();
    let operation = Operation {
        outbox_id,
        lane_id,
        kind: Kind::React,
        subject_id: message_id.as_uuid(),
        revision: None,
        target_outbox_id: None,
        not_before: None,
        expires_at: None,
    };
    match state {
        Some(State::Waiting | State::HandedOrSent) => {
            Ok(Sending::Enqueued(outbox_id, enqueue(conn, turn, &operation).await?))
        }
        None if message.from_matrix => Ok(Sending::Enqueued(outbox_id, enqueue(conn, turn, &operation).await?)),
        Some(State::Dead { .. }) => {
            park(conn, turn, &operation, Some(reactor_id)).await?;
            Ok(Sending::Parked(outbox_id))
        }
        Some(State::Withdrawn) | None => Ok(Sending::Nothing),
    }
}

/// What taking a reaction back changes: called when its key is wiped, under the conversation's lock. True when its
/// redaction was enqueued.
pub async fn unreact(
    conn: &mut PgConnection,
    turn: &Turn,
    message_id: MessageId,
    outbox_id: OutboxId,
) -> Result<bool, sqlx::Error> {
    let lane_id = LaneId::from(turn.conversation_id);
    let known = operations(conn, turn, lane_id, message_id).await?;
    let Some(reaction) = known.iter().find(|known| known.outbox_id == outbox_id) else { return Ok(false) };
    match reaction.state {
        State::Waiting => {
            remove_waiting(conn, turn, lane_id, &[outbox_id.as_uuid()]).await?;
            return Ok(false);
        }
        State::Dead { maybe_sent } => {
            withdraw_dead(conn, turn, outbox_id).await?;
            if !maybe_sent {
                return Ok(false);
            }
        }
        State::HandedOrSent | State::Withdrawn => {}
    }
    enqueue(conn, turn, &redaction(message_id, lane_id, outbox_id)).await?;
    Ok(true)
}

/// The redaction of what an operation brought about.
fn redaction(message_id: MessageId, lane_id: LaneId, target: OutboxId) -> Operation {
    Operation {
        outbox_id: OutboxId::generate(),
        lane_id,
        kind: Kind::Redact,
        subject_id: message_id.as_uuid(),
        revision: None,
        target_outbox_id: Some(target),
        not_before: None,
        expires_at: None,
    }
}

/// A live operation carries another revision.
async fn carry(conn: &mut PgConnection, turn: &Turn, outbox_id: Uuid, revision: i32) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update outbox set revision = $3 where conversation_id = $1 and outbox_id = $2",
        turn.conversation_id.as_uuid(),
        outbox_id,
        revision,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A dead letter carries another revision.
async fn carry_dead(conn: &mut PgConnection, turn: &Turn, outbox_id: Uuid, revision: i32) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update dead_letters set revision = $3 where conversation_id = $1 and outbox_id = $2",
        turn.conversation_id.as_uuid(),
        outbox_id,
        revision,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Waiting operations go, as if they had never been.
async fn remove_waiting(
    conn: &mut PgConnection,
    turn: &Turn,
    lane_id: LaneId,
    waiting: &[Uuid],
) -> Result<(), sqlx::Error> {
    if waiting.is_empty() {
        return Ok(());
    }
    let gone = sqlx::query!(
        "delete from outbox where conversation_id = $1 and outbox_id = any($2)",
        turn.conversation_id.as_uuid(),
        waiting,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    super::leave_lane(conn, turn.conversation_id, lane_id, gone, turn.at).await
}

/// Dead letters that were never sent go for good.
async fn bury_for_good(conn: &mut PgConnection, turn: &Turn, dead: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "delete from dead_letters where conversation_id = $1 and outbox_id = any($2)",
        turn.conversation_id.as_uuid(),
        dead,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A dead letter of a deleted message goes; if it may have been sent, it is remembered as whose, so that its transaction
/// can be closed.
async fn withdraw_dead(conn: &mut PgConnection, turn: &Turn, outbox_id: OutboxId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        with gone as (
            delete from dead_letters where conversation_id = $1 and outbox_id = $2 returning *
        )
        insert into withdrawn_operations (conversation_id, lane_id, outbox_id, kind, subject_id, revision,
            maybe_sent_at, sender, device, reason, withdrawn_at)
        select conversation_id, lane_id, outbox_id, kind, subject_id, revision, maybe_sent_at, sender, device,
            'deleted', $3
        from gone where maybe_sent_at is not null
        "#,
        turn.conversation_id.as_uuid(),
        outbox_id.as_uuid(),
        turn.at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// An operation of a message that is dead waits with it for the requeue. Whose it is may not be written down yet.
async fn park(
    conn: &mut PgConnection,
    turn: &Turn,
    operation: &Operation,
    user_id: Option<UserId>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
            attempts, trace, cause, hint, died_at, user_id)
        values ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, 'parent_dead', $10, $8,
            coalesce($11, outbox_user($1, $5, $6, $4)))
        "#,
        turn.conversation_id.as_uuid(),
        operation.lane_id.as_uuid(),
        turn.seq,
        operation.outbox_id.as_uuid(),
        operation.kind.as_str(),
        operation.subject_id,
        operation.revision,
        turn.at,
        turn.trace.as_ref().map(TraceParent::as_str),
        super::PARENT_DEAD_HINT,
        user_id.map(UserId::as_uuid),
    )
    .execute(conn)
    .await?;
    Ok(())
}
