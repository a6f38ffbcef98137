//! Completing by hand: an operator knows better than we do that an operation is done.
//!
//! What brings about an event is completed with that event, and the event is evidence like any other: it settles the
//! operation wherever it stands, and what the room then lacks (the redaction of what was deleted, the newest text of what
//! was edited) is enqueued. A change of membership has no event that would prove anything: it leaves its lane, or the dead
//! letters, as if it had been found done.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Evidence, Kind, Refusal, Refused, evidence_in_turn, leave_lane, lock_lane};
use crate::{
    chat::{self, Turn},
    ids::{ConversationId, EventId, LaneId, OutboxId, RoomId},
};

/// The longest event id that Matrix knows.
const LONGEST_EVENT_ID: usize = 255;

/// An operation that was completed by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Completed {
    /// The operation.
    pub outbox_id: OutboxId,
    /// What it did.
    pub kind: String,
    /// The message, the member or the call.
    pub subject_id: Uuid,
    /// Its event.
    pub event_id: Option<EventId>,
    /// How many edits of its message and reactions to it are dead and may be requeued now.
    pub parked: u64,
}

/// What came of the wish to complete an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// It is done.
    Completed(Completed),
    /// It is as it was.
    Refused(Refused),
}

/// An operation, wherever it stands.
struct Standing {
    lane_id: LaneId,
    kind: String,
    subject_id: Uuid,
    revision: Option<i32>,
    target_outbox_id: Option<OutboxId>,
    sender: Option<String>,
    live: bool,
    /// A worker has its lane, and was handed this.
    under_way: bool,
    /// It was handed to nobody, and nothing holds its lane.
    waits_freely: bool,
}

/// Completes an operation by hand: with the event that it became, or without one if it changes a membership.
///
/// Refused is what is delivered, what a worker tries just now, what was never handed to anybody (no event can be its
/// own), and an event that is another operation's or somebody else's. A lane that is held stays held.
pub async fn complete(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
    event_id: Option<&EventId>,
) -> Result<Completion, sqlx::Error> {
    let refused = |reason| Ok(Completion::Refused(Refused::new(outbox_id.as_uuid(), reason)));
    let Some(mut turn) = chat::lock_conversation(conn, conversation_id).await? else {
        return refused(Refusal::Unknown);
    };
    let Some(lane_id) = lane_of(conn, conversation_id, outbox_id).await? else {
        let sent = is_sent(conn, conversation_id, outbox_id).await?;
        return refused(if sent { Refusal::Delivered } else { Refusal::Unknown });
    };
    lock_lane(conn, conversation_id, lane_id).await?;
    if is_sent(conn, conversation_id, outbox_id).await? {
        return refused(Refusal::Delivered);
    }
    let Some(standing) = standing(conn, conversation_id, outbox_id).await? else { return refused(Refusal::Unknown) };
    let Some(kind) = Kind::parse(&standing.kind) else {
        // What only a newer release knows is left to that release.
        return refused(Refusal::Unknown);
    };
    if standing.under_way {
        return refused(Refusal::Leased);
    }
    if kind.is_state() {
        if event_id.is_some() {
            return refused(Refusal::EventNotWanted);
        }
        // By a slip of the hand later words would reach who should be out.
        if kind == Kind::Remove && standing.waits_freely {
            return refused(Refusal::MustNotBeLost);
        }
        leave(conn, &turn, outbox_id, &standing).await?;
    } else {
        let Some(event_id) = event_id else { return refused(Refusal::EventMissing) };
        if !is_event_id(event_id) {
            return refused(Refusal::NoEventId);
        }
        if is_taken(conn, conversation_id, event_id).await? {
            return refused(Refusal::EventTaken);
        }
        let Some(sender) = standing.sender.clone() else { return refused(Refusal::NeverSent) };
        let Some(room_id) = room_of(conn, conversation_id).await? else { return refused(Refusal::NoRoom) };
        let evidence = Evidence {
            outbox_id,
            kind,
            subject_id: standing.subject_id,
            revision: standing.revision,
            target_outbox_id: standing.target_outbox_id,
            event_id: event_id.clone(),
            room_id,
            sender,
        };
        evidence_in_turn(conn, &mut turn, standing.lane_id, &evidence).await?;
    }
    let parked = if kind == Kind::Message { parked(conn, conversation_id, standing.subject_id).await? } else { 0 };
    Ok(Completion::Completed(Completed {
        outbox_id,
        kind: standing.kind,
        subject_id: standing.subject_id,
        event_id: event_id.cloned(),
        parked,
    }))
}

fn is_event_id(event_id: &EventId) -> bool {
    let text = event_id.as_str();
    let rest = text.strip_prefix('$').unwrap_or_default();
    !rest.is_empty() && text.len() <= LONGEST_EVENT_ID && rest.bytes().all(|byte| byte.is_ascii_graphic())
}

/// An operation never changes its lane.
async fn lane_of(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<Option<LaneId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select lane_id as "lane_id!: LaneId" from (
            select lane_id from outbox where conversation_id = $1 and outbox_id = $2
            union
            select lane_id from dead_letters where conversation_id = $1 and outbox_id = $2
            union
            select lane_id from withdrawn_operations where conversation_id = $1 and outbox_id = $2
        ) known
        limit 1
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Under the lane's lock.
async fn standing(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<Option<Standing>, sqlx::Error> {
    sqlx::query_as!(
        Standing,
        r#"
        select o.lane_id as "lane_id!: LaneId", o.kind as "kind!", o.subject_id as "subject_id!", o.revision,
            o.target_outbox_id as "target_outbox_id: OutboxId", o.sender, true as "live!",
            o.seq <= l.frozen_through and coalesce(l.leased_until > outbox_now(), false) as "under_way!",
            o.sender is null and l.hold is null as "waits_freely!"
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where o.conversation_id = $1 and o.outbox_id = $2
        union all
        select lane_id, kind, subject_id, revision, target_outbox_id, sender, false, false, false
        from dead_letters where conversation_id = $1 and outbox_id = $2
        union all
        select lane_id, kind, subject_id, revision, null, sender, false, false, false
        from withdrawn_operations where conversation_id = $1 and outbox_id = $2
        limit 1
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

async fn is_sent(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from sent_events where conversation_id = $1 and outbox_id = $2) as "sent!""#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Whether an event is known already as what another operation became, or as somebody else's.
async fn is_taken(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    event_id: &EventId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (select 1 from sent_events where conversation_id = $1 and event_id = $2)
            or exists (select 1 from received_events where conversation_id = $1 and event_id = $2)
            or exists (select 1 from sync_parked where conversation_id = $1 and event_id = $2)
            or exists (select 1 from messages where conversation_id = $1 and matrix_event_id = $2) as "taken!"
        "#,
        conversation_id.as_uuid(),
        event_id.as_str(),
    )
    .fetch_one(conn)
    .await
}

async fn room_of(conn: &mut PgConnection, conversation_id: ConversationId) -> Result<Option<RoomId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select matrix_room_id as "room_id: RoomId" from matrix_room_mappings where conversation_id = $1"#,
        conversation_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// A change of membership is done, wherever it stands.
async fn leave(
    conn: &mut PgConnection,
    turn: &Turn,
    outbox_id: OutboxId,
    standing: &Standing,
) -> Result<(), sqlx::Error> {
    let conversation_id = turn.conversation_id;
    sqlx::query!(
        "delete from dead_letters where conversation_id = $1 and outbox_id = $2",
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .execute(&mut *conn)
    .await?;
    if !standing.live {
        return Ok(());
    }
    let gone = sqlx::query!(
        "delete from outbox where conversation_id = $1 and lane_id = $2 and outbox_id = $3",
        conversation_id.as_uuid(),
        standing.lane_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    leave_lane(conn, conversation_id, standing.lane_id, gone, turn.at).await
}

async fn parked(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    message_id: Uuid,
) -> Result<u64, sqlx::Error> {
    let parked = sqlx::query_scalar!(
        r#"
        select count(*) as "parked!" from dead_letters
        where conversation_id = $1 and subject_id = $2 and kind in ('edit', 'react')
        "#,
        conversation_id.as_uuid(),
        message_id,
    )
    .fetch_one(conn)
    .await?;
    Ok(u64::try_from(parked).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_begins_with_a_dollar_and_is_short_and_plain() {
        let is = |text: &str| is_event_id(&EventId::from(text.to_owned()));
        assert!(is("$abc-_d") && is("$abc:nova.test"));
        for text in ["", "$", "abc", "!room:nova.test", "$a b", "$a\n", "$ä"] {
            assert!(!is(text), "{text:?}");
        }
        assert!(is(&format!("${}", "a".repeat(254))) && !is(&format!("${}", "a".repeat(255))));
    }
}
