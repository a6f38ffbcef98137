//! Dead letters of many conversations at once: which of them come back, and how they do.
//!
//! What comes back is the same as with [`requeue_all`](super::requeue_all), conversation by conversation; only the
//! statements are about many. A message takes its edits and the reactions to it along; an edit or a reaction whose
//! message is dead and was not chosen, and an edit that may have been sent and is outdated, do not come back.
//!
//! Which letters a filter chooses is asked as of a snapshot: [`tasks`](crate::tasks) says why.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{DeadFilter, Letter, Refusal, park::bring_back};
use crate::{
    ids::{ConversationId, LaneId, OutboxId, TaskId, UserId},
    tasks::AsOf,
};

/// How many letters a dry run shows.
const SAMPLE: i64 = 20;

/// How many are refused for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RefusedCount {
    /// Why.
    pub reason: Refusal,
    /// The same for people.
    pub reason_in_words: &'static str,
    /// How many.
    pub count: u64,
}

/// What a bulk requeue would do.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) back: u64,
    pub(crate) along: u64,
    pub(crate) refused: Vec<RefusedCount>,
    pub(crate) conversations: u64,
    pub(crate) lanes_waiting: u64,
    pub(crate) first: Vec<Letter>,
}

/// A statement about the dead letters that a filter chooses as of a snapshot, of some conversations or of all.
///
/// `follows`: its message is dead, so it comes back with it or not at all. What was restored from another cluster died in
/// a transaction that this one has not come to yet, and is old.
///
/// The letters come from `$from`, which may name conversations (`$10`).
macro_rules! of_the_chosen {
    ($from:literal, [$($tail:literal),+], $filter:expr, $as_of:expr, $conversations:expr $(, $more:expr)*) => {
        sqlx::query!(
            r#"
            with chosen as (
                select d.conversation_id, d.lane_id, d.seq, d.outbox_id, d.kind, d.subject_id, d.cause, d.errcode,
                    coalesce(m.dead, false) as follows, coalesce(m.newer, false) as superseded
                from "# + $from + r#"
                left join lateral (
                    select d.kind = 'edit' and d.maybe_sent_at is not null and d.revision < m.revision as newer,
                        exists (
                            select 1 from dead_letters p
                            where p.conversation_id = d.conversation_id and p.outbox_id = m.send_outbox_id
                        ) as dead
                    from messages m
                    where d.kind in ('edit', 'react')
                        and m.conversation_id = d.conversation_id and m.message_id = d.subject_id
                    limit 1
                ) m on true
                where ($1::uuid is null or d.conversation_id = $1)
                    and ($2::text is null or d.kind = $2)
                    and ($3::text is null or d.cause = $3)
                    and ($4::text is null or d.errcode = $4)
                    and ($5::uuid is null or d.user_id = $5)
                    and ($6::text is null or d.detail ilike $6)
                    and ($7::timestamptz is null or d.died_at >= $7)
                    and ($8::timestamptz is null or d.died_at < $8)
                    and (
                        pg_visible_in_snapshot(d.died_xid, $9::text::pg_snapshot)
                        or d.died_xid >= pg_snapshot_xmax(pg_current_snapshot())
                    )
                    and ($10::uuid[] is null or d.conversation_id = any($10))
            )
            "# $(+ $tail)+,
            $filter.conversation_id.map(ConversationId::as_uuid),
            $filter.kind,
            $filter.cause,
            $filter.errcode,
            $filter.user_id.map(UserId::as_uuid),
            $filter.pattern(),
            $filter.since,
            $filter.until,
            $as_of.snapshot(),
            $conversations
            $(, $more)*
        )
    };
}

/// The same, with what they take along and what is refused.
macro_rules! of_what_comes_back {
    ($tail:literal, $filter:expr, $as_of:expr $(, $more:expr)*) => {
        of_the_chosen!(
            "dead_letters d",
            [
                r#"
                , heads as (
                    select * from chosen where not follows and not superseded
                ), along as (
                    select e.*
                    from heads h
                    cross join lateral (
                        select e.conversation_id, e.lane_id, e.seq, e.outbox_id, e.kind, e.subject_id, e.cause, e.errcode,
                            coalesce(e.kind = 'edit' and e.maybe_sent_at is not null and e.revision < (
                                select m.revision from messages m
                                where m.conversation_id = e.conversation_id and m.message_id = e.subject_id
                            ), false) as superseded
                        from dead_letters e
                        where h.kind = 'message' and e.kind in ('edit', 'react')
                            and e.conversation_id = h.conversation_id and e.subject_id = h.subject_id
                        offset 0
                    ) e
                ), back as (
                    select conversation_id, lane_id, seq, outbox_id, kind, subject_id, cause, errcode, false as with_message
                    from heads
                    union all
                    select conversation_id, lane_id, seq, outbox_id, kind, subject_id, cause, errcode, true
                    from along where not superseded
                ), refused as (
                    select (select count(*) from chosen where superseded and not follows)
                            + (select count(*) from along where superseded) as superseded,
                        (
                            select count(*) from chosen c
                            where c.follows and not exists (
                                select 1 from heads h
                                where h.kind = 'message' and h.conversation_id = c.conversation_id
                                    and h.subject_id = c.subject_id
                            )
                        ) as parent_dead
                )
                "#,
                $tail
            ],
            $filter,
            $as_of,
            None::<&[Uuid]>
            $(, $more)*
        )
    };
}

fn refusals(parent_dead: i64, superseded: i64) -> Vec<RefusedCount> {
    [(Refusal::ParentDead, parent_dead), (Refusal::Superseded, superseded)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| RefusedCount { reason, reason_in_words: reason.in_words(), count: number(count) })
        .collect()
}

fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// Counts what would come back of the letters that a filter chooses, and what not. Reads only.
pub(crate) async fn judge(conn: &mut PgConnection, filter: &DeadFilter, as_of: &AsOf) -> Result<Judged, sqlx::Error> {
    let rows = of_what_comes_back!(
        r#"
        , totals as (
            select count(*) as back, count(*) filter (where with_message) as along from back
        ), first as (
            select * from back
            order by conversation_id, lane_id <> conversation_id, lane_id, seq
            limit $11
        )
        select t.back as "back!", t.along as "along!", r.superseded as "superseded!", r.parent_dead as "parent_dead!",
            (select count(*) from (select distinct conversation_id from back) c) as "conversations!",
            (
                select count(*) from (select distinct conversation_id, lane_id from back) b
                where (
                    select l.hold is not null or coalesce(l.paused_until > outbox_now(), false) from lanes l
                    where l.conversation_id = b.conversation_id and l.lane_id = b.lane_id
                )
            ) as "lanes_waiting!",
            f.conversation_id as "conversation_id?: ConversationId", f.lane_id as "lane_id?: LaneId", f.seq as "seq?",
            f.outbox_id as "outbox_id?: OutboxId", f.kind as "kind?", f.subject_id as "subject_id?",
            f.cause as "cause?", f.errcode as "errcode?"
        from totals t
        cross join refused r
        left join first f on true
        order by f.conversation_id, f.lane_id <> f.conversation_id, f.lane_id, f.seq
        "#,
        filter,
        as_of,
        SAMPLE
    )
    .fetch_all(conn)
    .await?;
    let mut judged =
        Judged { back: 0, along: 0, refused: Vec::new(), conversations: 0, lanes_waiting: 0, first: Vec::new() };
    if let Some(row) = rows.first() {
        judged.back = number(row.back);
        judged.along = number(row.along);
        judged.refused = refusals(row.parent_dead, row.superseded);
        judged.conversations = number(row.conversations);
        judged.lanes_waiting = number(row.lanes_waiting);
    }
    judged.first = rows
        .into_iter()
        .filter_map(|row| {
            Some(Letter {
                outbox_id: row.outbox_id?,
                conversation_id: row.conversation_id?,
                lane_id: row.lane_id?,
                seq: row.seq?,
                kind: row.kind?,
                subject_id: row.subject_id?,
                cause: row.cause?,
                errcode: row.errcode,
            })
        })
        .collect();
    Ok(judged)
}

/// Writes the conversations down to which something comes back, as the parts of a task. Returns what does not.
pub(crate) async fn write_parts(
    conn: &mut PgConnection,
    task_id: TaskId,
    filter: &DeadFilter,
    as_of: &AsOf,
) -> Result<Vec<RefusedCount>, sqlx::Error> {
    let refused = of_what_comes_back!(
        r#"
        , parts as (
            insert into operator_task_parts (task_id, conversation_id, expected)
            select $11, conversation_id, count(*) from back group by conversation_id
        )
        select superseded as "superseded!", parent_dead as "parent_dead!" from refused
        "#,
        filter,
        as_of,
        task_id.as_uuid()
    )
    .fetch_one(conn)
    .await?;
    Ok(refusals(refused.parent_dead, refused.superseded))
}

/// What came back of some conversations.
#[derive(Debug, Clone, Default)]
pub(crate) struct CameBack {
    /// How many, by conversation.
    pub(crate) letters: Vec<(ConversationId, u64)>,
    /// From this conversation on there may be more: the limit was reached.
    pub(crate) more_from: Option<ConversationId>,
    /// Conversations of which somebody has a lane locked just now: nothing of them came back.
    pub(crate) locked: Vec<ConversationId>,
}

/// Brings back what a filter chooses of some conversations, at most so many beside what messages take along. Under the
/// conversations' locks. Waits for no lane: a settle that hangs must not keep all of them.
pub(crate) async fn requeue_of(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    as_of: &AsOf,
    conversations: &[ConversationId],
    limit: i64,
) -> Result<CameBack, sqlx::Error> {
    #[expect(clippy::struct_field_names, reason = "they are the columns")]
    struct Head {
        conversation_id: ConversationId,
        lane_id: LaneId,
        outbox_id: OutboxId,
        message_id: Option<Uuid>,
    }
    let wanted: Vec<Uuid> = conversations.iter().map(|id| id.as_uuid()).collect();
    // Of a message that is dead nothing dies but under its conversation's lock, so this may be read before the lanes are
    // locked: which lanes is not known earlier.
    let heads = of_the_chosen!(
        // Through the conversations, which are few, and no other index: one that leads to the letters of all others would
        // be read in whole for each step.
        "unnest($10::uuid[]) as c (conversation_id)
        cross join lateral (
            select * from dead_letters of_one where of_one.conversation_id = c.conversation_id offset 0
        ) d",
        [r#"
        select conversation_id as "conversation_id: ConversationId", lane_id as "lane_id: LaneId",
            outbox_id as "outbox_id: OutboxId", kind, subject_id
        from chosen
        where not follows and not superseded
        order by conversation_id, lane_id <> conversation_id, lane_id, seq
        limit $11
        "#],
        filter,
        as_of,
        Some(wanted.as_slice()),
        limit
    )
    .fetch_all(&mut *conn)
    .await?;
    let full = i64::try_from(heads.len()).is_ok_and(|found| found >= limit);
    let mut came =
        CameBack { more_from: heads.last().filter(|_| full).map(|head| head.conversation_id), ..CameBack::default() };
    let mut heads: Vec<Head> = heads
        .into_iter()
        .map(|head| Head {
            conversation_id: head.conversation_id,
            lane_id: head.lane_id,
            outbox_id: head.outbox_id,
            message_id: (head.kind == super::Kind::Message.as_str()).then_some(head.subject_id),
        })
        .collect();
    let mut lanes: Vec<(ConversationId, LaneId)> =
        heads.iter().map(|head| (head.conversation_id, head.lane_id)).collect();
    lanes.dedup();
    came.locked = lock_lanes(conn, &lanes).await?;
    heads.retain(|head| !came.locked.contains(&head.conversation_id));
    let now = crate::database::now(conn).await?;

    let (of_messages, messages): (Vec<Uuid>, Vec<Uuid>) =
        heads.iter().filter_map(|head| Some((head.conversation_id.as_uuid(), head.message_id?))).unzip();
    let along = sqlx::query!(
        r#"
        select e.conversation_id as "conversation_id!: ConversationId", e.outbox_id as "outbox_id!: OutboxId"
        from unnest($1::uuid[], $2::uuid[]) as h (conversation_id, message_id)
        cross join lateral (
            select e.conversation_id, e.outbox_id
            from dead_letters e
            where e.conversation_id = h.conversation_id and e.subject_id = h.message_id and e.kind in ('edit', 'react')
                and not coalesce(e.kind = 'edit' and e.maybe_sent_at is not null and e.revision < (
                    select m.revision from messages m
                    where m.conversation_id = e.conversation_id and m.message_id = e.subject_id
                ), false)
            offset 0
        ) e
        "#,
        &of_messages,
        &messages,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut letters: Vec<(ConversationId, OutboxId)> = heads
        .iter()
        .map(|head| (head.conversation_id, head.outbox_id))
        .chain(along.iter().map(|along| (along.conversation_id, along.outbox_id)))
        .collect();
    letters.sort_unstable();
    let (of, ids): (Vec<Uuid>, Vec<Uuid>) =
        letters.iter().map(|(conversation_id, outbox_id)| (conversation_id.as_uuid(), outbox_id.as_uuid())).unzip();
    let back = bring_back(conn, now, &of, &ids).await?;
    debug_assert_eq!(back, letters.len() as u64, "under the locks nothing that was read goes");
    came.letters = letters.chunk_by(|one, next| one.0 == next.0).map(|of| (of[0].0, of.len() as u64)).collect();
    Ok(came)
}

/// Locks the lanes that nobody else has locked, in the order of all who lock several, and reads nothing else. Returns the
/// conversations of those that somebody has.
async fn lock_lanes(
    conn: &mut PgConnection,
    lanes: &[(ConversationId, LaneId)],
) -> Result<Vec<ConversationId>, sqlx::Error> {
    let (conversations, ids): (Vec<Uuid>, Vec<Uuid>) =
        lanes.iter().map(|(conversation_id, lane_id)| (conversation_id.as_uuid(), lane_id.as_uuid())).unzip();
    let locked = sqlx::query!(
        r#"
        select l.conversation_id as "conversation_id: ConversationId", l.lane_id as "lane_id: LaneId"
        from lanes l
        join unnest($1::uuid[], $2::uuid[]) as c (conversation_id, lane_id)
            on l.conversation_id = c.conversation_id and l.lane_id = c.lane_id
        order by l.conversation_id, l.lane_id <> l.conversation_id, l.lane_id
        for no key update of l skip locked
        "#,
        &conversations,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    let ours: std::collections::HashSet<_> =
        locked.into_iter().map(|lane| (lane.conversation_id, lane.lane_id)).collect();
    let mut missing: Vec<ConversationId> =
        lanes.iter().filter(|lane| !ours.contains(lane)).map(|(conversation_id, _)| *conversation_id).collect();
    missing.dedup();
    Ok(missing)
}
