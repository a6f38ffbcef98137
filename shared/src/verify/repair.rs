//! What mends a finding: a transaction each, in the conversation's turn, with its row in the trail.
//!
//! Each looks once more, under the lane's lock, whether there still is something to mend. So a repair that is done twice
//! mends once.

use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Found, Mend, is_still_so};
use crate::{
    audit::Verb,
    chat::{self, Turn},
    events::{self, EventKind},
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, UserId},
    outbox::{self, Kind, Operation, Selection},
    tasks::{self, Task},
};

/// The transaction id under which a spare event is redacted: always the same, so that it is redacted once.
pub fn transaction_of_spare(outbox_id: OutboxId, event_id: &EventId) -> OutboxId {
    OutboxId::from(Uuid::new_v5(&outbox_id.as_uuid(), event_id.as_str().as_bytes()))
}

/// Mends a finding of a task, as far as the database can, and writes it into the trail. False when there is nothing to
/// mend any more. A spare event is then redacted by whoever talks to the homeserver, after the commit.
///
/// In a transaction of its own. `since` is when the comparison began.
pub async fn repair(
    conn: &mut PgConnection,
    task: &Task,
    found: &Found,
    since: OffsetDateTime,
) -> Result<bool, sqlx::Error> {
    let conversation_id = found.finding.conversation_id;
    let Some(mut turn) = chat::lock_conversation(conn, conversation_id).await? else { return Ok(false) };
    outbox::lock_lane(conn, conversation_id, LaneId::from(conversation_id)).await?;
    if !is_still_so(conn, found, since).await? {
        return Ok(false);
    }
    let done = match &found.mend {
        Mend::Nothing => false,
        Mend::RedactSpare { .. } => true,
        Mend::Resend(outbox_id) => resend(conn, &mut turn, *outbox_id).await?,
        Mend::Adopt(lane_id, evidence) => outbox::evidence_in_turn(conn, &mut turn, *lane_id, evidence).await?,
        Mend::Redact { outbox_id, message_id } => {
            let operation = new(&turn, Kind::Redact, message_id.as_uuid(), None, Some(*outbox_id));
            outbox::enqueue(conn, &turn, &operation).await?;
            true
        }
        Mend::Edit(message_id) => edit(conn, &turn, *message_id).await?,
        Mend::Invite(user_id) => {
            chat::enqueue_membership(conn, &turn, *user_id, Kind::Invite).await?;
            true
        }
        Mend::Remove(user_id) => {
            chat::enqueue_membership(conn, &turn, *user_id, Kind::Remove).await?;
            true
        }
    };
    if done {
        let finding = &found.finding;
        let arguments = json!({
            "found": finding.kind,
            "outbox_id": finding.outbox_id,
            "subject_id": finding.subject_id,
            "event_id": finding.event_id,
        });
        tasks::record_step(conn, task, Verb::Repair, Some(conversation_id), arguments, 1).await?;
    }
    Ok(done)
}

fn new(turn: &Turn, kind: Kind, subject_id: Uuid, revision: Option<i32>, target: Option<OutboxId>) -> Operation {
    Operation {
        outbox_id: OutboxId::generate(),
        lane_id: LaneId::from(turn.conversation_id),
        kind,
        subject_id,
        revision,
        target_outbox_id: target,
        not_before: None,
        expires_at: None,
    }
}

/// Sends again what an operation brought to its room and is missing there. The row of the evidence stays, as what was; the
/// message or the reaction points to the new operation.
async fn resend(conn: &mut PgConnection, turn: &mut Turn, outbox_id: OutboxId) -> Result<bool, sqlx::Error> {
    let lost = sqlx::query!(
        r#"
        update sent_events set lost_at = $3
        where conversation_id = $1 and outbox_id = $2 and lost_at is null
        returning kind, subject_id as "message_id: MessageId"
        "#,
        turn.conversation_id.as_uuid(),
        outbox_id.as_uuid(),
        turn.at,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(lost) = lost else { return Ok(false) };
    match Kind::parse(&lost.kind) {
        Some(Kind::Message) => resend_message(conn, turn, outbox_id, lost.message_id).await,
        Some(Kind::Edit) => edit(conn, turn, lost.message_id).await,
        Some(Kind::React) => resend_reaction(conn, turn, outbox_id, lost.message_id).await,
        _ => Ok(false),
    }
}

async fn resend_message(
    conn: &mut PgConnection,
    turn: &mut Turn,
    outbox_id: OutboxId,
    message_id: MessageId,
) -> Result<bool, sqlx::Error> {
    let conversation_id = turn.conversation_id;
    let mut operation = new(turn, Kind::Message, message_id.as_uuid(), None, None);
    operation.revision = sqlx::query_scalar!(
        r#"
        update messages set send_outbox_id = $4, matrix_event_id = null
        where conversation_id = $1 and message_id = $2 and send_outbox_id = $3 and deleted_at is null
        returning revision
        "#,
        conversation_id.as_uuid(),
        message_id.as_uuid(),
        outbox_id.as_uuid(),
        operation.outbox_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    if operation.revision.is_none() {
        return Ok(false);
    }
    events::record(conn, conversation_id, EventKind::MessageDelivery, message_id.as_uuid()).await?;
    outbox::enqueue(conn, turn, &operation).await?;
    // What reacts to it stands beside an event that is gone.
    let reactions = sqlx::query_scalar!(
        r#"
        select r.send_outbox_id as "outbox_id!: OutboxId"
        from message_reactions r
        join sent_events s on s.conversation_id = r.conversation_id and s.outbox_id = r.send_outbox_id
        where r.conversation_id = $1 and r.message_id = $2 and r.removed_at is null
        order by r.reaction_id
        "#,
        conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_all(&mut *conn)
    .await?;
    for reaction in reactions {
        turn.advance(conn).await?;
        resend_reaction(conn, turn, reaction, message_id).await?;
    }
    Ok(true)
}

async fn resend_reaction(
    conn: &mut PgConnection,
    turn: &Turn,
    outbox_id: OutboxId,
    message_id: MessageId,
) -> Result<bool, sqlx::Error> {
    let operation = new(turn, Kind::React, message_id.as_uuid(), None, None);
    let moved = sqlx::query!(
        r#"
        update message_reactions set send_outbox_id = $3, matrix_event_id = null, matrix_room_id = null
        where conversation_id = $1 and send_outbox_id = $2 and removed_at is null
        "#,
        turn.conversation_id.as_uuid(),
        outbox_id.as_uuid(),
        operation.outbox_id.as_uuid(),
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if moved == 1 {
        outbox::enqueue(conn, turn, &operation).await?;
    }
    Ok(moved == 1)
}

/// Enqueues a message's newest text as an edit.
async fn edit(conn: &mut PgConnection, turn: &Turn, message_id: MessageId) -> Result<bool, sqlx::Error> {
    let revision = sqlx::query_scalar!(
        "select revision from messages where conversation_id = $1 and message_id = $2 and deleted_at is null",
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(revision) = revision else { return Ok(false) };
    outbox::enqueue(conn, turn, &new(turn, Kind::Edit, message_id.as_uuid(), Some(revision), None)).await?;
    Ok(true)
}

/// What inviting again did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reinvited {
    /// Dead invitations that came back.
    pub back: usize,
    /// Members who get a new one.
    pub invited: usize,
}

/// Brings the dead invitations of a conversation's members back, with a code those that died of it, and invites those of
/// `absent` who belong to it and for whom nothing is under way. In a transaction of its own, with its row in the trail.
pub async fn reinvite(
    conn: &mut PgConnection,
    task: &Task,
    conversation_id: ConversationId,
    errcode: Option<&str>,
    absent: &[UserId],
) -> Result<Reinvited, sqlx::Error> {
    // Before what is dead is read, which nobody then changes.
    if chat::lock_conversation(conn, conversation_id).await?.is_none() {
        return Ok(Reinvited::default());
    }
    let dead = sqlx::query_scalar!(
        r#"
        select d.outbox_id as "outbox_id: OutboxId" from dead_letters d
        join conversation_members m on m.conversation_id = d.conversation_id and m.user_id = d.subject_id
            and m.removed_seq is null
        where d.conversation_id = $1 and d.kind = 'invite' and ($3::text is null or d.errcode = $3)
        order by d.seq
        limit $2
        "#,
        conversation_id.as_uuid(),
        outbox::MOST_LETTERS,
        errcode,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut done = Reinvited::default();
    if !dead.is_empty() {
        done.back = outbox::requeue_all(conn, conversation_id, Selection::Named(&dead)).await?.back.len();
    }
    for user_id in absent {
        if super::standing(conn, conversation_id, *user_id).await?.is_to_be_invited() {
            let Some(turn) = chat::lock_conversation(conn, conversation_id).await? else { break };
            outbox::lock_lane(conn, conversation_id, LaneId::from(conversation_id)).await?;
            chat::enqueue_membership(conn, &turn, *user_id, Kind::Invite).await?;
            done.invited += 1;
        }
    }
    let affected = done.back + done.invited;
    if affected > 0 {
        let arguments = json!({"repair": "reinvite", "requeued": done.back, "invited": done.invited});
        tasks::record_step(conn, task, Verb::Repair, Some(conversation_id), arguments, affected as u64).await?;
    }
    Ok(done)
}

impl super::Standing {
    const fn is_to_be_invited(self) -> bool {
        self.belongs && !self.spoken_for
    }
}
