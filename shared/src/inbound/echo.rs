//! Echoes: what our own account sent comes back, and is evidence.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Applied, InboundError, Inbox, Incoming, Membership, What, people};
use crate::{
    chat::Turn,
    ids::{ConversationId, EventId, LaneId, OutboxId},
    outbox::{self, Evidence, Kind},
};

/// An operation, wherever its row stands.
struct Known {
    lane_id: LaneId,
    kind: Kind,
    subject_id: Uuid,
    revision: Option<i32>,
    target_outbox_id: Option<OutboxId>,
    sender: Option<String>,
}

pub(super) async fn echo(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
) -> Result<Applied, InboundError> {
    if let What::Member { user, membership, now, .. } = &event.what {
        if !people::is_present_room(conn, turn.conversation_id, &event.room_id).await? {
            return Ok(Applied::Unchanged);
        }
        return membership_echo(conn, turn, inbox, user, *membership, now.as_ref()).await;
    }
    let conversation_id = turn.conversation_id;
    if is_evidence(conn, conversation_id, &event.event_id).await? {
        return Ok(Applied::Echo(false));
    }
    // By the marker, or, once somebody has redacted the content, by the transaction id: they are the same.
    let transaction = event.transaction_id.as_deref().and_then(|id| id.parse().ok());
    let Some(outbox_id) = event.marker.or(transaction) else { return Ok(Applied::Unmatched) };
    let Some(known) = operation(conn, conversation_id, outbox_id).await? else {
        // A settle needs no turn: it may have come between the two looks.
        let settled = is_evidence(conn, conversation_id, &event.event_id).await?;
        return Ok(if settled { Applied::Echo(false) } else { Applied::Unmatched });
    };
    if known.sender.is_some_and(|sender| sender != event.sender.as_str()) {
        return Ok(Applied::Unmatched);
    }
    let evidence = Evidence {
        outbox_id,
        kind: known.kind,
        subject_id: known.subject_id,
        revision: known.revision,
        target_outbox_id: known.target_outbox_id,
        event_id: event.event_id.clone(),
        room_id: event.room_id.clone(),
        sender: event.sender.as_str().to_owned(),
    };
    Ok(Applied::Echo(outbox::evidence_in_turn(conn, turn, known.lane_id, &evidence).await?))
}

async fn is_evidence(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    event_id: &EventId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from sent_events where conversation_id = $1 and event_id = $2) as "known!""#,
        conversation_id.as_uuid(),
        event_id.as_str(),
    )
    .fetch_one(conn)
    .await
}

/// An operation by its id. One that was taken back before it left has no row, and no event either.
async fn operation(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<Option<Known>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select lane_id as "lane_id!: LaneId", kind as "kind!", subject_id as "subject_id!", revision,
            target_outbox_id as "target_outbox_id: OutboxId", sender
        from outbox where conversation_id = $1 and outbox_id = $2
        union all
        select lane_id, kind, subject_id, revision, target_outbox_id, sender
        from dead_letters where conversation_id = $1 and outbox_id = $2
        union all
        select lane_id, kind, subject_id, revision, null, sender
        from withdrawn_operations where conversation_id = $1 and outbox_id = $2
        limit 1
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.and_then(|row| {
        Some(Known {
            lane_id: row.lane_id,
            kind: Kind::parse(&row.kind)?,
            subject_id: row.subject_id,
            revision: row.revision,
            target_outbox_id: row.target_outbox_id,
            sender: row.sender,
        })
    }))
}

/// Our account invited or removed somebody. If the room has moved on since, a later echo tells.
async fn membership_echo(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    user: &crate::ids::MatrixUserId,
    membership: Membership,
    now: Option<&super::Asked>,
) -> Result<Applied, InboundError> {
    let Some(Ok(user_id)) = user.nova_user(inbox.server()) else { return Ok(Applied::Unchanged) };
    let present = now.map_or(membership.is_present(), |now| now.membership.is_some_and(Membership::is_present));
    if present != membership.is_present() {
        return Ok(Applied::Unchanged);
    }
    let enqueued = outbox::membership_echo_in_turn(conn, turn, user_id, present).await?;
    Ok(if enqueued { Applied::Changed } else { Applied::Unchanged })
}
