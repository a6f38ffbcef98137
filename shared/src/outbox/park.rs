//! Dead letters: back into their lane.
//!
//! A requeue is one transaction's worth under the locks of the conversation and its lanes, like every other write. What comes
//! back stands at its old place, so before everything of its lane that was not handed out, in the original order. What
//! was delivered meanwhile stays ahead.

use std::collections::HashSet;

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Kind, lock_lane};
use crate::{
    chat,
    ids::{ConversationId, LaneId, OutboxId},
};

/// How many dead letters come back in one act. Their conversation is locked meanwhile: 10,000 took 1.2 s on a busy
/// machine (2026-11-22), and no transaction should take longer than a second.
pub const MOST_LETTERS: i64 = 5_000;

/// Which dead letters of a conversation.
#[derive(Debug, Clone, Copy)]
pub enum Selection<'a> {
    /// These.
    Named(&'a [OutboxId]),
    /// All, or those that have these traits.
    Matching {
        /// The cause.
        cause: Option<&'a str>,
        /// The Matrix error code.
        errcode: Option<&'a str>,
    },
}

/// A dead letter that was chosen, or that goes along with one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Letter {
    /// The operation.
    pub outbox_id: OutboxId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// The lane that it left.
    pub lane_id: LaneId,
    /// Its place there.
    pub seq: i64,
    /// What it does.
    pub kind: String,
    /// The message, the member or the call.
    pub subject_id: Uuid,
    /// Why it died.
    pub cause: String,
    /// The Matrix error code.
    pub errcode: Option<String>,
}

/// Why an operation does not come back, or is not discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Nothing is known of it: it never was, or went before it left.
    Unknown,
    /// It is no dead letter: it is live or delivered.
    NotDead,
    /// Its message was deleted: its text is gone.
    Deleted,
    /// It was discarded before.
    Discarded,
    /// It may have been sent, and a newer edit has replaced its text: sending it again would bring the old text back.
    Superseded,
    /// The message that it edits or reacts to is dead: requeue that one, and this comes back with it.
    ParentDead,
    /// It is live, and its lane is not held.
    NotHeld,
    /// It is live, and a worker has its lane.
    Leased,
    /// It is live, and others of its lane come before it.
    NotFirst,
    /// It is live, and carries words that were not deleted.
    Wanted,
    /// It is a message, whose operations are live: what is live is discarded by its own id only.
    Unnamed,
    /// It is delivered.
    Delivered,
    /// It was never handed to a sender.
    NeverSent,
    /// What it does has an event, which has to be named.
    EventMissing,
    /// It changes a membership, which is no event that it could be completed with.
    EventNotWanted,
    /// What was named is no event id.
    NoEventId,
    /// The event is another operation's, or somebody else's.
    EventTaken,
    /// Its conversation has no room.
    NoRoom,
    /// It does not wait: it is under way, or may be there already.
    NotWaiting,
    /// It is a redaction or a removal, which must not be lost unnoticed.
    MustNotBeLost,
}

impl Refusal {
    /// For people.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Unknown => "nothing is known of it: it never was, or was taken back before it left",
            Self::NotDead => "it is not dead: it waits, is under way, or is delivered",
            Self::Deleted => "its message was deleted, and its text is gone",
            Self::Discarded => "it was discarded",
            Self::Superseded => "it may have been sent, and a newer edit has replaced its text",
            Self::ParentDead => "the message that it belongs to is dead: requeue that one, and this comes back with it",
            Self::NotHeld => {
                "it is live, and its lane is not held: only the first operation of a held lane can be discarded, if it is \
                 a redaction, a removal, an invitation, something of a call, or of a deleted message or reaction"
            }
            Self::Leased => {
                "it is live, and a worker has its lane just now: try again when that has finished, or its lease is over"
            }
            Self::NotFirst => "it is live, and not the first of its held lane: what is before it holds the lane",
            Self::Wanted => {
                "it is live, and its message was not deleted: mend what holds the lane, or have the message deleted"
            }
            Self::Unnamed => {
                "it is a message with live operations: `outboxctl show` has their ids; give that of the one which holds \
                 its lane"
            }
            Self::Delivered => "it is delivered",
            Self::NeverSent => "it was never handed to a sender: no event can be its own",
            Self::EventMissing => "it brings about an event: name the one that it became",
            Self::EventNotWanted => "it changes a membership: complete it without an event",
            Self::NoEventId => "that is no event id: it begins with $ and has at most 255 characters",
            Self::EventTaken => "that event is another operation's, or somebody else's",
            Self::NoRoom => "its conversation has no room yet",
            Self::NotWaiting => "it does not wait: it is under way, may be there already, or is dead",
            Self::MustNotBeLost => {
                "it is a redaction, a removal, or the end of a call, and waits: it is not given up so. `discard` gives up \
                 what is the first of a held lane"
            }
        }
    }
}

/// An operation that does not come back, or is not discarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// What was asked for: an operation, or a message.
    pub id: Uuid,
    /// Why not.
    pub reason: Refusal,
    /// The same for people.
    #[serde(rename = "reason_in_words")]
    pub in_words: &'static str,
}

impl Refused {
    /// That this does not come back, or is not discarded, for this reason.
    pub const fn new(id: Uuid, reason: Refusal) -> Self {
        Self { id, reason, in_words: reason.in_words() }
    }
}

/// A lane to which dead letters come back, as it stands before that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneAhead {
    /// The lane.
    pub lane_id: LaneId,
    /// How many come back to it.
    pub back: u64,
    /// Live operations that stay before them: of an earlier place, under way, or perhaps there already.
    pub before: i64,
    /// Live operations that come after them.
    pub after: i64,
    /// Messages that were written after the first of them and are delivered already: they stay ahead. Counted up to
    /// 1,000.
    pub delivered_meanwhile: i64,
    /// Why the lane waits: it is held or paused.
    pub waits: Option<String>,
    /// Until when, if that is known.
    #[serde(with = "time::serde::rfc3339::option")]
    pub waits_until: Option<OffsetDateTime>,
}

/// What a requeue does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Requeue {
    /// What comes back, in the order in which it is sent within each lane.
    pub back: Vec<Letter>,
    /// What does not.
    pub refused: Vec<Refused>,
    /// The lanes that they come back to.
    pub lanes: Vec<LaneAhead>,
}

/// What became of a wish to requeue one dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeued {
    /// So many operations are live again: the dead letter, and the edits and reactions that were parked with it.
    Back(u64),
    /// There is no such dead letter.
    NotDead,
    /// It may have been sent, and a newer edit has replaced its text: sending it again would bring the old text back.
    Superseded,
    /// The message that it edits or reacts to is dead: requeue that one, and this comes back with it.
    ParentDead,
}

/// Brings one dead letter back to its place; see [`requeue_all`].
pub async fn requeue(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
) -> Result<Requeued, sqlx::Error> {
    let done = requeue_all(conn, conversation_id, Selection::Named(&[outbox_id])).await?;
    let refused = done.refused.iter().find(|refused| refused.id == outbox_id.as_uuid());
    Ok(match refused.map(|refused| refused.reason) {
        None => Requeued::Back(done.back.len() as u64),
        Some(Refusal::Superseded) => Requeued::Superseded,
        Some(Refusal::ParentDead) => Requeued::ParentDead,
        Some(_) => Requeued::NotDead,
    })
}

/// Brings dead letters back to their places: before everything of their lane that was not yet handed out.
///
/// A message takes its parked edits along, and the reactions to it. An edit that was never sent takes the message's newest text. Of more than
/// [`MOST_LETTERS`] the first come.
pub async fn requeue_all(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    selection: Selection<'_>,
) -> Result<Requeue, sqlx::Error> {
    let Some(turn) = chat::lock_conversation(conn, conversation_id).await? else {
        return Ok(Requeue { back: Vec::new(), refused: unknown(selection, &[]), lanes: Vec::new() });
    };
    for lane_id in lanes_of(conn, conversation_id, selection).await? {
        lock_lane(conn, conversation_id, lane_id).await?;
    }
    let requeue = preview_requeue(conn, conversation_id, selection).await?;
    let back: Vec<Uuid> = requeue.back.iter().map(|letter| letter.outbox_id.as_uuid()).collect();
    let conversations = vec![conversation_id.as_uuid(); back.len()];
    bring_back(conn, turn.at, &conversations, &back).await?;
    Ok(requeue)
}

/// Dead letters, each named by its conversation and its id, are live again, at their places. Under the locks of their
/// conversations and lanes. Returns how many came back.
pub(crate) async fn bring_back(
    conn: &mut PgConnection,
    at: OffsetDateTime,
    conversations: &[Uuid],
    ids: &[Uuid],
) -> Result<u64, sqlx::Error> {
    let entered = sqlx::query!(
        r#"
        with back as (
            delete from dead_letters d
            using unnest($1::uuid[], $2::uuid[]) as c (conversation_id, outbox_id)
            where d.conversation_id = c.conversation_id and d.outbox_id = c.outbox_id
            returning d.*
        ), told as (
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, case kind when 'message' then 'message_delivery' else 'call_updated' end, subject_id
            from back where kind in ('message', 'call_invite')
        ), entered as (
            insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, target_outbox_id,
                enqueued_at, due_at, expires_at, attempts, failures, last_failed_at, maybe_sent_at, sender, device,
                trace)
            select b.conversation_id, b.lane_id, b.seq, b.outbox_id, b.kind, b.subject_id,
                case when b.kind = 'edit' and b.maybe_sent_at is null then (
                    select m.revision from messages m
                    where m.conversation_id = b.conversation_id and m.message_id = b.subject_id
                ) else b.revision end,
                b.target_outbox_id, b.enqueued_at, $3, b.expires_at, 0, 0, b.died_at, b.maybe_sent_at, b.sender,
                b.device, b.trace
            from back b
        )
        select conversation_id, lane_id, count(*)::integer as "back!" from back group by conversation_id, lane_id
        "#,
        conversations,
        ids,
        at,
    )
    .fetch_all(&mut *conn)
    .await?;
    let conversations: Vec<Uuid> = entered.iter().map(|lane| lane.conversation_id).collect();
    let lanes: Vec<Uuid> = entered.iter().map(|lane| lane.lane_id).collect();
    let back: Vec<i32> = entered.iter().map(|lane| lane.back).collect();
    sqlx::query!(
        r#"
        update lanes l
        set open = l.open + c.back,
            due_at = outbox_due(l.conversation_id, l.lane_id, $4, l.hold, l.paused_until)
        from unnest($1::uuid[], $2::uuid[], $3::integer[]) as c (conversation_id, lane_id, back)
        where l.conversation_id = c.conversation_id and l.lane_id = c.lane_id
        "#,
        &conversations,
        &lanes,
        &back,
        at,
    )
    .execute(conn)
    .await?;
    Ok(back.iter().map(|back| u64::try_from(*back).unwrap_or(0)).sum())
}

/// Says what [`requeue_all`] would do, and changes nothing.
pub async fn preview_requeue(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    selection: Selection<'_>,
) -> Result<Requeue, sqlx::Error> {
    let chosen = choose(conn, conversation_id, selection).await?;
    let coming: HashSet<OutboxId> = chosen
        .iter()
        .filter(|chosen| chosen.letter.kind == Kind::Message.as_str())
        .map(|chosen| chosen.letter.outbox_id)
        .collect();
    let mut requeue = Requeue { back: Vec::new(), refused: Vec::new(), lanes: Vec::new() };
    for Chosen { letter, parent, superseded } in chosen {
        let refusal = match parent {
            Some(parent) if !coming.contains(&parent) => Some(Refusal::ParentDead),
            _ if superseded => Some(Refusal::Superseded),
            _ => None,
        };
        match refusal {
            Some(reason) => requeue.refused.push(Refused::new(letter.outbox_id.as_uuid(), reason)),
            None => requeue.back.push(letter),
        }
    }
    let seen: Vec<Uuid> = requeue.refused.iter().map(|refused| refused.id).collect();
    let seen: Vec<Uuid> = requeue.back.iter().map(|letter| letter.outbox_id.as_uuid()).chain(seen).collect();
    requeue.refused.extend(unknown(selection, &seen));
    for lane in requeue.back.chunk_by(|one, next| one.lane_id == next.lane_id) {
        requeue.lanes.push(lane_ahead(conn, conversation_id, &lane[0], lane.len() as u64).await?);
    }
    Ok(requeue)
}

/// What was named and is no dead letter.
fn unknown(selection: Selection<'_>, seen: &[Uuid]) -> Vec<Refused> {
    let Selection::Named(ids) = selection else { return Vec::new() };
    let ids = ids.iter().map(|id| id.as_uuid()).filter(|id| !seen.contains(id));
    ids.map(|id| Refused::new(id, Refusal::NotDead)).collect()
}

struct Chosen {
    letter: Letter,
    /// The dead message that it edits or reacts to.
    parent: Option<OutboxId>,
    /// It is an edit that may have been sent, and carries an older text.
    superseded: bool,
}

/// The dead letters of a selection with the edits of its messages and the reactions to them, in the order of their lanes and places.
async fn choose(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    selection: Selection<'_>,
) -> Result<Vec<Chosen>, sqlx::Error> {
    let (ids, cause, errcode) = parameters(selection);
    let rows = sqlx::query!(
        r#"
        with chosen as (
            select outbox_id, kind, subject_id from dead_letters
            where conversation_id = $1
                and ($2::uuid[] is null or outbox_id = any($2))
                and ($3::text is null or cause = $3)
                and ($4::text is null or errcode = $4)
            order by lane_id, seq
            limit $5
        ), taken as (
            select outbox_id from chosen
            union
            select e.outbox_id
            from chosen c
            join dead_letters e on e.conversation_id = $1 and e.subject_id = c.subject_id
                and e.kind in ('edit', 'react')
            where c.kind = 'message'
        )
        select d.outbox_id as "outbox_id: OutboxId", d.lane_id as "lane_id: LaneId", d.seq, d.kind, d.subject_id,
            d.cause, d.errcode, p.outbox_id as "parent?: OutboxId",
            coalesce(d.kind = 'edit' and d.maybe_sent_at is not null and d.revision < m.revision, false)
                as "superseded!"
        from taken t
        join dead_letters d on d.conversation_id = $1 and d.outbox_id = t.outbox_id
        left join messages m on m.conversation_id = $1 and m.message_id = d.subject_id
            and d.kind in ('edit', 'react')
        left join dead_letters p on p.conversation_id = $1 and p.outbox_id = m.send_outbox_id
        order by d.lane_id <> d.conversation_id, d.lane_id, d.seq
        "#,
        conversation_id.as_uuid(),
        ids.as_deref(),
        cause,
        errcode,
        MOST_LETTERS,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Chosen {
            letter: Letter {
                outbox_id: row.outbox_id,
                conversation_id,
                lane_id: row.lane_id,
                seq: row.seq,
                kind: row.kind,
                subject_id: row.subject_id,
                cause: row.cause,
                errcode: row.errcode,
            },
            parent: row.parent,
            superseded: row.superseded,
        })
        .collect())
}

fn parameters(selection: Selection<'_>) -> (Option<Vec<Uuid>>, Option<&str>, Option<&str>) {
    match selection {
        Selection::Named(ids) => (Some(ids.iter().map(|id| id.as_uuid()).collect()), None, None),
        Selection::Matching { cause, errcode } => (None, cause, errcode),
    }
}

/// The lanes that hold something of a selection, in the order in which lanes are locked.
async fn lanes_of(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    selection: Selection<'_>,
) -> Result<Vec<LaneId>, sqlx::Error> {
    let (ids, cause, errcode) = parameters(selection);
    sqlx::query_scalar!(
        r#"
        select lane_id as "lane_id: LaneId" from dead_letters
        where conversation_id = $1
            and ($2::uuid[] is null or outbox_id = any($2))
            and ($3::text is null or cause = $3)
            and ($4::text is null or errcode = $4)
        group by lane_id
        order by bool_or(lane_id <> conversation_id), lane_id
        "#,
        conversation_id.as_uuid(),
        ids.as_deref(),
        cause,
        errcode,
    )
    .fetch_all(conn)
    .await
}

async fn lane_ahead(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    first: &Letter,
    back: u64,
) -> Result<LaneAhead, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select coalesce(l.hold, case when l.paused_until > outbox_now() then l.pause_reason end) as waits,
            case when l.hold is null and l.paused_until > outbox_now() then l.paused_until end as waits_until,
            live.before as "before!", live.after as "after!",
            (
                select count(*) from (
                    select 1 from messages m
                    join sent_events s on s.conversation_id = $1 and s.outbox_id = m.send_outbox_id
                    where m.conversation_id = $1 and m.seq > $3 and l.lane_id = l.conversation_id
                    limit 1000
                ) delivered
            ) as "delivered_meanwhile!"
        from lanes l
        cross join lateral (
            select count(*) filter (where ahead) as before, count(*) filter (where not ahead) as after
            from (
                select o.seq < $3 or o.maybe_sent_at is not null
                    or (o.seq <= l.frozen_through and coalesce(l.leased_until > outbox_now(), false)) as ahead
                from outbox o
                where o.conversation_id = $1 and o.lane_id = $2
            ) o
        ) live
        where l.conversation_id = $1 and l.lane_id = $2
        "#,
        conversation_id.as_uuid(),
        first.lane_id.as_uuid(),
        first.seq,
    )
    .fetch_one(conn)
    .await?;
    Ok(LaneAhead {
        lane_id: first.lane_id,
        back,
        before: row.before,
        after: row.after,
        delivered_meanwhile: row.delivered_meanwhile,
        waits: row.waits,
        waits_until: row.waits_until,
    })
}
