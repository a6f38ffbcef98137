//! What the database says, as a comparison asks it.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{FindingKind, Found, Known, Mend, MessageState, Operation, Place, Stray};
use crate::{
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId},
    outbox::{Evidence, Kind},
};

/// How many rows of evidence are read at once.
pub const SENT_PAGE: i64 = 1_000;

/// The rooms of a conversation, the present one first, then those that it left, newest first.
pub async fn rooms_of(conn: &mut PgConnection, conversation_id: ConversationId) -> Result<Vec<RoomId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select room_id as "room_id!: RoomId"
        from (
            select 1 as rank, matrix_room_id as room_id, created_at as at from matrix_room_mappings
            where conversation_id = $1 and ready_at is not null
            union all
            select 2, matrix_room_id, left_at from left_rooms where conversation_id = $1
        ) rooms
        order by rank, at desc
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// What the database knows of these events and of the operations whose markers they carry.
pub async fn known(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    events: &[EventId],
    markers: &[OutboxId],
) -> Result<Known, sqlx::Error> {
    let events: Vec<String> = events.iter().map(|event_id| event_id.as_str().to_owned()).collect();
    let markers: Vec<Uuid> = markers.iter().map(|outbox_id| outbox_id.as_uuid()).collect();
    let rows = sqlx::query!(
        r#"
        with asked as (
            select outbox_id from unnest($2::uuid[]) as marked (outbox_id)
            union
            select outbox_id from sent_events where conversation_id = $1 and event_id = any($3)
        ), stands as (
            select a.outbox_id,
                case
                    when s.outbox_id is not null then 'sent'
                    when o.outbox_id is not null then 'live'
                    when d.outbox_id is not null then 'dead'
                    else 'withdrawn'
                end as place,
                coalesce(s.kind, o.kind, d.kind, w.kind) as kind,
                coalesce(s.subject_id, o.subject_id, d.subject_id, w.subject_id) as subject_id,
                coalesce(s.revision, o.revision, d.revision, w.revision) as revision,
                coalesce(s.target_outbox_id, o.target_outbox_id, d.target_outbox_id) as target_outbox_id,
                coalesce(o.lane_id, d.lane_id, w.lane_id) as lane_id,
                coalesce(s.sender, d.sender, w.sender) as sender,
                s.event_id, s.lost_at is not null as lost
            from asked a
            left join sent_events s on s.conversation_id = $1 and s.outbox_id = a.outbox_id
            left join outbox o on o.conversation_id = $1 and o.outbox_id = a.outbox_id
            left join dead_letters d on d.conversation_id = $1 and d.outbox_id = a.outbox_id
            left join withdrawn_operations w on w.conversation_id = $1 and w.outbox_id = a.outbox_id
            where coalesce(s.outbox_id, o.outbox_id, d.outbox_id, w.outbox_id) is not null
        )
        select p.outbox_id as "outbox_id!: OutboxId", p.place as "place!", p.kind as "kind!",
            p.subject_id as "subject_id!", p.revision, p.target_outbox_id as "target_outbox_id: OutboxId",
            p.lane_id as "lane_id: LaneId", p.sender, p.event_id as "event_id: EventId", p.lost as "lost!",
            m.seq as "seq?", m.revision as "newest?", m.deleted_at is not null as "deleted!",
            exists (
                select 1 from sent_events l
                where l.conversation_id = $1 and l.subject_id = p.subject_id and l.kind = 'message'
                    and l.lost_at is not null
            ) as "moved!",
            p.kind = 'react' and exists (
                select 1 from message_reactions r
                where r.conversation_id = $1 and r.send_outbox_id = p.outbox_id and r.removed_at is not null
            ) as "removed!",
            exists (
                select 1 from outbox r
                where r.conversation_id = $1 and r.subject_id = p.subject_id and r.kind = 'redact'
                    and r.target_outbox_id = p.outbox_id
            ) as "redaction_follows!"
        from stands p
        left join messages m on m.conversation_id = $1 and m.message_id = p.subject_id
        "#,
        conversation_id.as_uuid(),
        &markers,
        &events,
    )
    .fetch_all(conn)
    .await?;
    Ok(Known::of(rows.into_iter().filter_map(|row| {
        let kind = Kind::parse(&row.kind)?;
        let place = match (row.place.as_str(), row.event_id) {
            ("sent", Some(event_id)) => Place::Sent { event_id, lost: row.lost },
            ("live", _) => Place::Live,
            ("dead", _) => Place::Dead,
            _ => Place::Withdrawn,
        };
        let (deleted, moved) = (row.deleted, row.moved);
        let message = row.seq.zip(row.newest).map(|(seq, revision)| MessageState { seq, revision, deleted, moved });
        Some(Operation {
            outbox_id: row.outbox_id,
            place,
            kind,
            lane_id: row.lane_id.unwrap_or_else(|| lane_of(conversation_id, kind, row.subject_id)),
            subject_id: row.subject_id,
            revision: row.revision,
            target_outbox_id: row.target_outbox_id,
            sender: row.sender,
            message,
            removed: row.removed,
            redaction_follows: row.redaction_follows,
        })
    })))
}

fn lane_of(conversation_id: ConversationId, kind: Kind, subject_id: Uuid) -> LaneId {
    match kind {
        Kind::Call(_) => LaneId::from(subject_id),
        _ => LaneId::from(conversation_id),
    }
}

/// A row of evidence.
#[derive(Debug, Clone)]
pub struct SentRow {
    /// The operation.
    pub outbox_id: OutboxId,
    /// Its event.
    pub event_id: EventId,
    /// What it did.
    pub kind: String,
    /// What it was about.
    pub subject_id: Uuid,
    /// The room that has it.
    pub room_id: RoomId,
    /// When the evidence was written.
    pub sent_at: OffsetDateTime,
}

/// Evidence from before a time whose event has to stand in its room: of messages that are not deleted, of edits that
/// carry the newest text, of reactions that were not taken back, and of calls. After one operation, or from the first;
/// or of one operation only.
pub async fn sent_before(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    before: OffsetDateTime,
    after: Option<OutboxId>,
    only: Option<OutboxId>,
) -> Result<Vec<SentRow>, sqlx::Error> {
    sqlx::query_as!(
        SentRow,
        r#"
        select s.outbox_id as "outbox_id: OutboxId", s.event_id as "event_id: EventId", s.kind, s.subject_id,
            s.room_id as "room_id: RoomId", s.sent_at
        from sent_events s
        left join messages m on m.conversation_id = s.conversation_id and m.message_id = s.subject_id
        where s.conversation_id = $1 and s.lost_at is null and s.sent_at < $2
            and ($3::uuid is null or s.outbox_id > $3)
            and ($4::uuid is null or s.outbox_id = $4)
            and case
                when s.kind like 'call\_%' then true
                when m.deleted_at is not null then false
                when s.kind = 'message' then m.send_outbox_id = s.outbox_id
                when s.kind = 'edit' then s.revision = m.revision and not exists (
                    select 1 from sent_events n
                    where n.conversation_id = $1 and n.subject_id = s.subject_id and n.kind in ('message', 'edit')
                        and n.revision = s.revision and n.lost_at is null and n.outbox_id > s.outbox_id
                )
                when s.kind = 'react' then exists (
                    select 1 from message_reactions r
                    where r.conversation_id = $1 and r.send_outbox_id = s.outbox_id and r.removed_at is null
                )
                else false
            end
        order by s.outbox_id
        limit $5
        "#,
        conversation_id.as_uuid(),
        before,
        after.map(OutboxId::as_uuid),
        only.map(OutboxId::as_uuid),
        SENT_PAGE,
    )
    .fetch_all(conn)
    .await
}

/// Where a user stands in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether they belong to it.
    pub belongs: bool,
    /// The sequence number of their last coming or going.
    pub since: i64,
    /// A change of it is under way, or an invitation is dead: that is known.
    pub spoken_for: bool,
}

/// Where a user stands in a conversation.
pub async fn standing(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    user_id: UserId,
) -> Result<Standing, sqlx::Error> {
    sqlx::query_as!(
        Standing,
        r#"
        select coalesce(bool_or(removed_seq is null), false) as "belongs!",
            coalesce(max(greatest(added_seq, removed_seq)), 0) as "since!",
            exists (
                select 1 from outbox
                where conversation_id = $1 and subject_id = $2 and kind in ('invite', 'remove')
            ) or exists (
                select 1 from dead_letters
                where conversation_id = $1 and subject_id = $2 and kind = 'invite'
            ) as "spoken_for!"
        from conversation_members
        where conversation_id = $1 and user_id = $2
        "#,
        conversation_id.as_uuid(),
        user_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Whose event a stray is: by the row of its operation, or by what it says of itself, if that is known here.
pub async fn identify(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    stray: &Stray,
) -> Result<Option<(LaneId, Evidence)>, sqlx::Error> {
    let event = &stray.event;
    let evidence = |kind, subject_id, revision, target_outbox_id| Evidence {
        outbox_id: stray.outbox_id,
        kind,
        subject_id,
        revision,
        target_outbox_id,
        event_id: event.event_id.clone(),
        room_id: stray.room_id.clone(),
        sender: event.sender.clone(),
    };
    if let Some(known) = &stray.operation {
        let evidence = evidence(known.kind, known.subject_id, known.revision, known.target_outbox_id);
        return Ok(Some((known.lane_id, evidence)));
    }
    let row = sqlx::query!(
        r#"
        select kind as "kind!", subject_id as "subject_id!", revision, target_outbox_id as "target_outbox_id: OutboxId"
        from (
            select 1 as rank, case when send_outbox_id = $2 then 'message' else 'edit' end as kind,
                message_id as subject_id, coalesce($4, 1) as revision, null::uuid as target_outbox_id
            from messages
            where conversation_id = $1 and message_id = $3 and origin = 'nova' and (send_outbox_id = $2) <> $5
                and coalesce($4, 1) <= revision
            union all
            select 2, 'react', message_id, null, null from message_reactions
            where conversation_id = $1 and reaction_id = $6 and send_outbox_id = $2
            union all
            select 3, 'call_' || kind, call_id, null, null from call_signals
            where conversation_id = $1 and send_outbox_id = $2
            union all
            select 4, 'redact', subject_id, null, outbox_id from sent_events
            where conversation_id = $1 and event_id = $7
        ) candidates
        order by rank
        limit 1
        "#,
        conversation_id.as_uuid(),
        stray.outbox_id.as_uuid(),
        event.message_id.map(MessageId::as_uuid),
        event.revision,
        event.replaces,
        event.reaction_id.map(crate::ids::ReactionId::as_uuid),
        event.redacts.as_ref().map(EventId::as_str),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.and_then(|row| {
        let kind = Kind::parse(&row.kind)?;
        let evidence = evidence(kind, row.subject_id, row.revision, row.target_outbox_id);
        Some((lane_of(conversation_id, kind, row.subject_id), evidence))
    }))
}

/// Whether a finding is still one, as the database has it now: asked once more before it is told, and under the lane's
/// lock before it is repaired. `since` is when the comparison began.
pub async fn is_still_so(conn: &mut PgConnection, found: &Found, since: OffsetDateTime) -> Result<bool, sqlx::Error> {
    let conversation_id = found.finding.conversation_id;
    match (&found.mend, found.finding.outbox_id) {
        (Mend::Resend(outbox_id), _) => {
            let sent = sent_before(conn, conversation_id, since, None, Some(*outbox_id)).await?;
            Ok(sent.iter().any(|sent| Some(&sent.event_id) == found.finding.event_id.as_ref())
                && !newest_follows(conn, conversation_id, *outbox_id).await?
                && !others_wait_for(conn, conversation_id, *outbox_id).await?)
        }
        (Mend::Adopt(_, evidence), _) => is_unsent(conn, conversation_id, evidence.outbox_id).await,
        (Mend::Nothing, Some(outbox_id)) if found.finding.kind == FindingKind::Unknown => {
            is_unsent(conn, conversation_id, outbox_id).await
        }
        (Mend::Redact { outbox_id, .. }, _) => {
            let known = known(conn, conversation_id, &[], &[*outbox_id]).await?;
            Ok(known.operation(*outbox_id).is_some_and(|operation| {
                let deleted = operation.message.is_some_and(|message| message.deleted);
                let unwanted = if operation.kind.carries_text() { deleted } else { operation.removed && !deleted };
                unwanted && !operation.redaction_follows
            }))
        }
        (Mend::Edit(message_id), _) => nothing_brings(conn, conversation_id, *message_id, since).await,
        (Mend::Invite(user_id) | Mend::Remove(user_id), _) => {
            let standing = standing(conn, conversation_id, *user_id).await?;
            Ok(!standing.spoken_for && standing.belongs == matches!(found.mend, Mend::Invite(_)))
        }
        // Which of several events counts may have been decided otherwise meanwhile.
        (Mend::RedactSpare { outbox_id, event_id, .. }, _) => {
            let known = known(conn, conversation_id, &[], &[*outbox_id]).await?;
            Ok(known.operation(*outbox_id).is_none_or(|operation| match &operation.place {
                Place::Sent { event_id: counts, lost } => *lost || counts != event_id,
                Place::Live | Place::Dead | Place::Withdrawn => true,
            }))
        }
        (Mend::Nothing, _) => Ok(true),
    }
}

async fn is_unsent(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<bool, sqlx::Error> {
    let known = known(conn, conversation_id, &[], &[outbox_id]).await?;
    Ok(known.operation(outbox_id).is_none_or(|known| matches!(known.place, Place::Dead | Place::Withdrawn)))
}

/// Whether edits of a message, or reactions to it, are still to be done. They go by its event: sent again behind them, it
/// would leave them without.
async fn others_wait_for(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from sent_events s
            join outbox o on o.conversation_id = s.conversation_id and o.subject_id = s.subject_id
                and o.kind in ('edit', 'react')
            where s.conversation_id = $1 and s.outbox_id = $2 and s.kind = 'message'
        ) as "waits!"
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Whether what an operation said is on its way in another one: its message's newest text, or its reaction.
async fn newest_follows(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from sent_events s
            join messages m on m.conversation_id = s.conversation_id and m.message_id = s.subject_id
            join outbox o on o.conversation_id = s.conversation_id and o.subject_id = s.subject_id
                and o.kind in ('message', 'edit') and o.revision = m.revision
            where s.conversation_id = $1 and s.outbox_id = $2 and s.kind = 'edit'
        ) as "follows!"
        "#,
        conversation_id.as_uuid(),
        outbox_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Whether nothing brings a message's newest text to its room, nor has since a time. What is dead is known to be.
async fn nothing_brings(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    message_id: MessageId,
    since: OffsetDateTime,
) -> Result<bool, sqlx::Error> {
    let lacking = sqlx::query_scalar!(
        r#"
        select m.deleted_at is null
            and not exists (
                select 1 from outbox o
                where o.conversation_id = $1 and o.subject_id = $2 and o.kind in ('message', 'edit')
                    and o.revision = m.revision
            ) and not exists (
                select 1 from dead_letters d
                where d.conversation_id = $1 and d.subject_id = $2 and d.kind in ('message', 'edit')
                    and d.revision = m.revision
            ) and not exists (
                select 1 from sent_events s
                where s.conversation_id = $1 and s.subject_id = $2 and s.kind in ('message', 'edit')
                    and s.revision = m.revision and s.sent_at >= $3
            ) as "lacking!"
        from messages m
        where m.conversation_id = $1 and m.message_id = $2
        "#,
        conversation_id.as_uuid(),
        message_id.as_uuid(),
        since,
    )
    .fetch_optional(conn)
    .await?;
    Ok(lacking == Some(true))
}

/// Whether an event of the conversation's rooms came with the sync.
pub async fn is_received(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    event_id: &EventId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (select 1 from received_events where conversation_id = $1 and event_id = $2) as "received!"
        "#,
        conversation_id.as_uuid(),
        event_id.as_str(),
    )
    .fetch_one(conn)
    .await
}
