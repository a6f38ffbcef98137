//! Discarding: what an operator gives up for good.
//!
//! Dead letters go whenever they are named. Of what is live, only what may have no other way out: the first operation of
//! a lane that is held, where it must not be overtaken (a redaction, a removal, the end of a deleted message) or is of no
//! use any more (an invitation). The hold stays until somebody resumes the lane.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Kind, Refusal, Refused, leave_lane, lock_lane, words};
use crate::{
    chat::{self, Turn},
    ids::{ConversationId, LaneId, OutboxId},
};

/// An operation that was live until it was discarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Discarded {
    /// The operation.
    pub outbox_id: OutboxId,
    /// The lane that it left, which is still held.
    pub lane_id: LaneId,
    /// What it would have done.
    pub kind: String,
    /// The message or the member.
    pub subject_id: Uuid,
    /// For a redaction, the operation whose event it was to redact.
    pub target_outbox_id: Option<OutboxId>,
    /// What stays as it is on Matrix, for people.
    pub left_undone: &'static str,
}

/// What a discard did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discard {
    /// What went.
    pub gone: Vec<OutboxId>,
    /// Those of them that were live.
    pub live: Vec<Discarded>,
    /// What did not go.
    pub refused: Vec<Refused>,
}

/// Discards one operation; see [`discard_all`]. Returns how many went.
pub async fn discard(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<u64, sqlx::Error> {
    Ok(discard_all(conn, conversation_id, &[outbox_id]).await?.gone.len() as u64)
}

/// Discards operations: dead letters, with the edits and reactions that were parked for them, and those live ones that hold their lane
/// and carry no words that anybody wants. What may have brought a text to Matrix is remembered, so that late evidence and
/// a later delete still find it.
pub async fn discard_all(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    ids: &[OutboxId],
) -> Result<Discard, sqlx::Error> {
    let mut discard = Discard::default();
    let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
    if let Some(turn) = chat::lock_conversation(conn, conversation_id).await? {
        for lane_id in lanes_of(conn, conversation_id, &ids).await? {
            lock_lane(conn, conversation_id, lane_id).await?;
        }
        discard.gone = discard_dead(conn, &turn, &ids).await?;
        discard_live(conn, &turn, &ids, &mut discard).await?;
    }
    for id in ids {
        let gone = discard.gone.iter().any(|gone| gone.as_uuid() == id);
        if !gone && discard.refused.iter().all(|refused| refused.id != id) {
            discard.refused.push(Refused::new(id, Refusal::NotDead));
        }
    }
    Ok(discard)
}

/// The lanes of operations, in the order in which lanes are locked. An operation never changes its lane.
async fn lanes_of(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    ids: &[Uuid],
) -> Result<Vec<LaneId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select lane_id as "lane_id!: LaneId"
        from (
            select conversation_id, lane_id from dead_letters where conversation_id = $1 and outbox_id = any($2)
            union
            select conversation_id, lane_id from outbox where conversation_id = $1 and outbox_id = any($2)
        ) lanes
        order by lane_id <> conversation_id, lane_id
        "#,
        conversation_id.as_uuid(),
        ids,
    )
    .fetch_all(conn)
    .await
}

async fn discard_dead(conn: &mut PgConnection, turn: &Turn, ids: &[Uuid]) -> Result<Vec<OutboxId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        with chosen as (
            select outbox_id, kind, subject_id from dead_letters where conversation_id = $1 and outbox_id = any($2)
        ), taken as (
            select outbox_id from chosen
            union
            select e.outbox_id
            from chosen c
            join dead_letters e on e.conversation_id = $1 and e.subject_id = c.subject_id
                and e.kind in ('edit', 'react')
            where c.kind = 'message'
        ), gone as (
            delete from dead_letters d
            using taken t
            where d.conversation_id = $1 and d.outbox_id = t.outbox_id
            returning d.*
        ), remembered as (
            insert into withdrawn_operations (conversation_id, lane_id, outbox_id, kind, subject_id, revision,
                maybe_sent_at, sender, device, reason, withdrawn_at)
            select conversation_id, lane_id, outbox_id, kind, subject_id, revision, maybe_sent_at, sender, device,
                'discarded', $3
            from gone where maybe_sent_at is not null
        ), told as (
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, case kind when 'message' then 'message_delivery' else 'call_updated' end, subject_id
            from gone where kind in ('message', 'call_invite')
        )
        select outbox_id as "outbox_id: OutboxId" from gone order by seq
        "#,
        turn.conversation_id.as_uuid(),
        ids,
        turn.at,
    )
    .fetch_all(conn)
    .await
}

/// With the lanes locked by earlier statements.
async fn discard_live(
    conn: &mut PgConnection,
    turn: &Turn,
    ids: &[Uuid],
    discard: &mut Discard,
) -> Result<(), sqlx::Error> {
    let named = sqlx::query!(
        r#"
        select o.outbox_id as "outbox_id: OutboxId", o.lane_id as "lane_id: LaneId", o.kind, o.subject_id,
            o.target_outbox_id as "target_outbox_id: OutboxId", l.hold is not null as "held!",
            coalesce(l.leased_until > outbox_now(), false) as "leased!",
            not exists (
                select 1 from outbox b where b.conversation_id = $1 and b.lane_id = o.lane_id and b.seq < o.seq
            ) as "first!",
            exists (
                select 1 from messages m
                where m.conversation_id = $1 and m.message_id = o.subject_id and m.deleted_at is not null
            ) or (o.kind = 'react' and not exists (
                select 1 from message_reactions r
                where r.conversation_id = $1 and r.send_outbox_id = o.outbox_id and r.removed_at is null
            )) as "deleted!",
            exists (
                select 1 from sent_events s where s.conversation_id = $1 and s.outbox_id = o.outbox_id
            ) as "sent!"
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where o.conversation_id = $1 and o.outbox_id = any($2)
        order by o.lane_id <> o.conversation_id, o.lane_id, o.seq
        "#,
        turn.conversation_id.as_uuid(),
        ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    for live in named {
        // What only a newer release knows is left to that release.
        let kind = Kind::parse(&live.kind);
        let unwanted = kind.is_some_and(|kind| !kind.carries_words() || live.deleted);
        let refusal = match () {
            () if live.sent => Some(Refusal::NotDead),
            () if !live.held => Some(Refusal::NotHeld),
            () if live.leased => Some(Refusal::Leased),
            () if !live.first => Some(Refusal::NotFirst),
            () if !unwanted => Some(Refusal::Wanted),
            () => None,
        };
        if let Some(reason) = refusal {
            discard.refused.push(Refused::new(live.outbox_id.as_uuid(), reason));
            continue;
        }
        let gone = withdraw_live(conn, turn, live.outbox_id).await?;
        leave_lane(conn, turn.conversation_id, live.lane_id, gone, turn.at).await?;
        discard.gone.push(live.outbox_id);
        discard.live.push(Discarded {
            outbox_id: live.outbox_id,
            lane_id: live.lane_id,
            left_undone: words::left_undone(&live.kind),
            kind: live.kind,
            subject_id: live.subject_id,
            target_outbox_id: live.target_outbox_id,
        });
    }
    Ok(())
}

/// Returns how many rows went. What an owner that is gone was handed may have been sent from its claim on, as when its
/// lane is taken over.
async fn withdraw_live(conn: &mut PgConnection, turn: &Turn, outbox_id: OutboxId) -> Result<u64, sqlx::Error> {
    let gone = sqlx::query_scalar!(
        r#"
        with gone as (
            delete from outbox o
            using lanes l
            where o.conversation_id = $1 and o.outbox_id = $2
                and l.conversation_id = o.conversation_id and l.lane_id = o.lane_id and l.hold is not null
            returning o.*, coalesce(
                o.maybe_sent_at,
                case when l.owner is not null and o.seq <= l.frozen_through and o.sender is not null
                    then l.claimed_at end
            ) as perhaps_sent_at
        ), remembered as (
            insert into withdrawn_operations (conversation_id, lane_id, outbox_id, kind, subject_id, revision,
                maybe_sent_at, sender, device, reason, withdrawn_at)
            select conversation_id, lane_id, outbox_id, kind, subject_id, revision, perhaps_sent_at, sender, device,
                'discarded', $3
            from gone
            where perhaps_sent_at is not null and kind in ('message', 'edit', 'react', 'call_invite', 'call_answer')
            on conflict do nothing
        ), told as (
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, case kind when 'message' then 'message_delivery' else 'call_updated' end, subject_id
            from gone where kind in ('message', 'call_invite')
        )
        select count(*) as "gone!" from gone
        "#,
        turn.conversation_id.as_uuid(),
        outbox_id.as_uuid(),
        turn.at,
    )
    .fetch_one(conn)
    .await?;
    Ok(u64::try_from(gone).unwrap_or(0))
}
