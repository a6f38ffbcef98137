//! What time does: operations that are no longer worth sending end. And what an operator does who says that it is over.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{Kind, Refusal, Refused, leave_lane, lock_lane};
use crate::{
    calls::SignalKind,
    chat,
    ids::{ConversationId, LaneId, OutboxId},
};

/// What expired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    /// Operations.
    pub operations: u64,
    /// Invites to calls among them.
    pub invites: u64,
}

/// Ends what is no longer worth sending and still waits; also while everything is paused. Returns how many, and how many of them were
/// invites to calls.
///
/// Call it again while it returns as many as `limit`.
pub async fn expire(pool: &PgPool, limit: i64) -> Result<Expired, sqlx::Error> {
    let overdue = sqlx::query!(
        r#"
        select o.conversation_id as "conversation_id: ConversationId", o.lane_id as "lane_id: LaneId",
            o.outbox_id as "outbox_id: OutboxId"
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where o.expires_at <= outbox_now() and o.seq > l.frozen_through and o.maybe_sent_at is null
        order by o.expires_at
        limit $1
        "#,
        limit,
    )
    .fetch_all(pool)
    .await?;
    let mut expired = Expired::default();
    for row in overdue {
        let mut tx = pool.begin().await?;
        lock_lane(&mut tx, row.conversation_id, row.lane_id).await?;
        // Handed meanwhile: the sender knows its deadline too.
        let gone = sqlx::query!(
            r#"
            with gone as (
                delete from outbox o
                using lanes l
                where o.conversation_id = $1 and o.outbox_id = $2
                    and l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
                    and o.seq > l.frozen_through and o.maybe_sent_at is null
                returning o.conversation_id, o.kind, o.subject_id
            ), told as (
                insert into events (conversation_id, kind, subject_id)
                select conversation_id, case kind when 'message' then 'message_delivery' else 'call_updated' end,
                    subject_id
                from gone where kind in ('message', 'call_invite')
            )
            select outbox_now() as "now!", kind = 'call_invite' as "invite!" from gone
            "#,
            row.conversation_id.as_uuid(),
            row.outbox_id.as_uuid(),
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(gone) = gone {
            leave_lane(&mut tx, row.conversation_id, row.lane_id, 1, gone.now).await?;
            expired.operations += 1;
            expired.invites += u64::from(gone.invite);
        }
        tx.commit().await?;
    }
    Ok(expired)
}

/// What an expiry by hand did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expire {
    /// What ended, with the edits of a message and the reactions to it that waited too.
    pub gone: Vec<OutboxId>,
    /// What did not.
    pub refused: Vec<Refused>,
}

/// Ends operations of a conversation that still wait, as if their time were over. A redaction or a removal is not ended:
/// later words would reach whom they must not.
pub async fn expire_all(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    ids: &[OutboxId],
) -> Result<Expire, sqlx::Error> {
    let mut expire = Expire::default();
    let named: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
    let Some(turn) = chat::lock_conversation(conn, conversation_id).await? else {
        expire.refused = named.into_iter().map(|id| Refused::new(id, Refusal::Unknown)).collect();
        return Ok(expire);
    };
    let lanes = sqlx::query_scalar!(
        r#"
        select lane_id as "lane_id!: LaneId"
        from (select distinct conversation_id, lane_id from outbox where conversation_id = $1 and outbox_id = any($2)) l
        order by lane_id <> conversation_id, lane_id
        "#,
        conversation_id.as_uuid(),
        &named,
    )
    .fetch_all(&mut *conn)
    .await?;
    for lane_id in &lanes {
        lock_lane(conn, conversation_id, *lane_id).await?;
    }
    let known = sqlx::query!(
        r#"
        select o.outbox_id as "outbox_id!: OutboxId", o.kind as "kind!",
            o.seq > l.frozen_through and o.maybe_sent_at is null as "waits!",
            exists (
                select 1 from sent_events s where s.conversation_id = $1 and s.outbox_id = o.outbox_id
            ) as "sent!"
        from outbox o
        join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        where o.conversation_id = $1 and o.outbox_id = any($2)
        union all
        select outbox_id, kind, false, false from dead_letters where conversation_id = $1 and outbox_id = any($2)
        union all
        select outbox_id, kind, false, true from sent_events where conversation_id = $1 and outbox_id = any($2)
        "#,
        conversation_id.as_uuid(),
        &named,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut ending = Vec::new();
    for id in &named {
        let mut standing = known.iter().filter(|known| known.outbox_id.as_uuid() == *id).peekable();
        let kind = standing.peek().map(|known| Kind::parse(&known.kind));
        let (mut sent, mut waits) = (false, false);
        for known in standing {
            sent |= known.sent;
            waits |= known.waits;
        }
        let refusal = match kind {
            None => Some(Refusal::Unknown),
            Some(_) if sent => Some(Refusal::Delivered),
            Some(_) if !waits => Some(Refusal::NotWaiting),
            // What only a newer release knows is left to that release.
            Some(kind) if kind.is_none_or(must_not_be_lost) => Some(Refusal::MustNotBeLost),
            Some(_) => None,
        };
        match refusal {
            Some(reason) => expire.refused.push(Refused::new(*id, reason)),
            None => ending.push(*id),
        }
    }
    for lane_id in lanes {
        let gone = end_waiting(conn, conversation_id, lane_id, &ending).await?;
        leave_lane(conn, conversation_id, lane_id, gone.len() as u64, turn.at).await?;
        expire.gone.extend(gone);
    }
    Ok(expire)
}

/// What brings words or a ring to an end: without it a deleted text is read, a member reads on, or a phone rings on.
const fn must_not_be_lost(kind: Kind) -> bool {
    kind.holds_its_lane()
        || matches!(kind, Kind::Call(SignalKind::Hangup | SignalKind::Reject | SignalKind::SelectAnswer))
}

/// Of a locked lane what waits of these goes, and of a message's edits and reactions what waits too: without it they would
/// only find that it is not there.
async fn end_waiting(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
    ids: &[Uuid],
) -> Result<Vec<OutboxId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        with gone as (
            delete from outbox o
            using lanes l
            where o.conversation_id = $1 and o.lane_id = $2
                and l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
                and o.seq > l.frozen_through and o.maybe_sent_at is null
                and (
                    o.outbox_id = any($3)
                    or (o.kind in ('edit', 'react') and o.subject_id in (
                        select m.subject_id from outbox m
                        where m.conversation_id = $1 and m.outbox_id = any($3) and m.kind = 'message'
                    ))
                )
            returning o.conversation_id, o.outbox_id, o.seq, o.kind, o.subject_id
        ), told as (
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, case kind when 'message' then 'message_delivery' else 'call_updated' end, subject_id
            from gone where kind in ('message', 'call_invite')
        )
        select outbox_id as "outbox_id: OutboxId" from gone order by seq
        "#,
        conversation_id.as_uuid(),
        lane_id.as_uuid(),
        ids,
    )
    .fetch_all(conn)
    .await
}
