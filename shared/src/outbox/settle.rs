//! Settling: writing back how the operations of claimed lanes ended, and releasing the lanes.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Blame, ClaimedOperation, Kind, LaneClaim, OperationResult, Outcome, proofs::SentColumns};
use crate::{
    failpoint::{Point, reach},
    ids::{ConversationId, LaneId, OutboxId, WorkerId},
};

/// What a sender did with a batch. Operations that it did not come to are simply not in it.
#[derive(Debug)]
pub struct Settlement {
    /// The right to write back.
    pub claim: LaneClaim,
    /// What became of the operations, in their order.
    pub results: Vec<OperationResult>,
}

/// Which settlements a round could not take, by their place in the list.
#[derive(Debug, Default)]
pub struct Settled {
    /// Their lane is locked by someone else just now: next round.
    pub deferred: Vec<usize>,
    /// Their epoch is gone: only their evidence counts any more.
    pub fenced: Vec<usize>,
    /// How many operations left the outbox for good as delivered or done.
    pub finished: u64,
    /// How many became dead letters.
    pub died: u64,
}

/// A lane that this settle holds.
struct Lane<'a> {
    settlement: &'a Settlement,
    claimed_at: OffsetDateTime,
    gone: i32,
    sent_through: i64,
    hold: Option<String>,
}

/// Settles many lanes. Call it in a transaction of its own.
///
/// Lanes that someone else has locked are left for the next round, so that one slow request never stalls all others.
pub async fn settle(
    conn: &mut PgConnection,
    worker_id: WorkerId,
    settlements: &[Settlement],
) -> Result<Settled, sqlx::Error> {
    let mut settled = Settled::default();
    let (held, now) = lock_lanes(conn, worker_id, settlements, &mut settled).await?;
    if held.is_empty() {
        return Ok(settled);
    }
    reach(Point::SettleLocked);
    let mut lanes: HashMap<(ConversationId, LaneId), Lane<'_>> = held
        .into_iter()
        .map(|(settlement, claimed_at)| {
            let key = (settlement.claim.conversation_id, settlement.claim.lane_id);
            (key, Lane { settlement, claimed_at, gone: 0, sent_through: 0, hold: None })
        })
        .collect();

    let known = known_evidence(conn, &lanes).await?;
    reach(Point::SettleRead);
    finish_delivered(conn, &mut lanes, &known, &mut settled).await?;
    for lane in lanes.values_mut() {
        let settlement = lane.settlement;
        for result in &settlement.results {
            if !result.outcome.lets_the_next_go() && !known.contains(&result.operation.outbox_id) {
                settle_failure(conn, lane, result, now, &mut settled).await?;
                reach(Point::SettleWaited);
            }
        }
    }
    append_attempts(conn, worker_id, now, &lanes).await?;
    reach(Point::SettleAppended);
    release(conn, now, &lanes).await?;
    reach(Point::SettleReleased);
    Ok(settled)
}

/// Locks the lanes that still carry the settlements' epochs and have not been released since: the answer to a commit may
/// be lost, and the settle repeated. Reads nothing else: what follows must see everything that
/// was committed by whoever held these lanes before.
async fn lock_lanes<'a>(
    conn: &mut PgConnection,
    worker_id: WorkerId,
    settlements: &'a [Settlement],
    settled: &mut Settled,
) -> Result<(Vec<(&'a Settlement, OffsetDateTime)>, OffsetDateTime), sqlx::Error> {
    let conversations: Vec<Uuid> = settlements.iter().map(|s| s.claim.conversation_id.as_uuid()).collect();
    let lane_ids: Vec<Uuid> = settlements.iter().map(|s| s.claim.lane_id.as_uuid()).collect();
    let epochs: Vec<i64> = settlements.iter().map(|s| s.claim.epoch).collect();
    let locked = sqlx::query!(
        r#"
        select l.conversation_id as "conversation_id: ConversationId", l.lane_id as "lane_id: LaneId", l.epoch,
            coalesce(l.claimed_at, outbox_now()) as "claimed_at!", outbox_now() as "now!"
        from lanes l
        join unnest($1::uuid[], $2::uuid[], $3::bigint[]) as c (conversation_id, lane_id, epoch)
            on l.conversation_id = c.conversation_id and l.lane_id = c.lane_id and l.epoch = c.epoch
        where l.owner = $4
        order by l.conversation_id, l.lane_id
        for no key update of l skip locked
        "#,
        &conversations,
        &lane_ids,
        &epochs,
        worker_id.as_uuid(),
    )
    .fetch_all(&mut *conn)
    .await?;
    let now = locked.first().map_or(OffsetDateTime::UNIX_EPOCH, |lane| lane.now);
    let locked: HashMap<_, _> =
        locked.into_iter().map(|lane| ((lane.conversation_id, lane.lane_id, lane.epoch), lane.claimed_at)).collect();
    let missing: Vec<usize> = (0..settlements.len())
        .filter(|n| {
            let claim = &settlements[*n].claim;
            !locked.contains_key(&(claim.conversation_id, claim.lane_id, claim.epoch))
        })
        .collect();
    if !missing.is_empty() {
        let current: HashMap<(ConversationId, LaneId), i64> = sqlx::query!(
            r#"
            select l.conversation_id as "conversation_id: ConversationId", l.lane_id as "lane_id: LaneId",
                l.epoch
            from lanes l
            join unnest($1::uuid[], $2::uuid[]) as c (conversation_id, lane_id)
                on l.conversation_id = c.conversation_id and l.lane_id = c.lane_id
            where l.owner = $3
            "#,
            &conversations,
            &lane_ids,
            worker_id.as_uuid(),
        )
        .fetch_all(conn)
        .await?
        .into_iter()
        .map(|lane| ((lane.conversation_id, lane.lane_id), lane.epoch))
        .collect();
        for n in missing {
            let claim = &settlements[n].claim;
            match current.get(&(claim.conversation_id, claim.lane_id)) {
                Some(epoch) if *epoch == claim.epoch => settled.deferred.push(n),
                _ => settled.fenced.push(n),
            }
        }
    }
    let held = settlements
        .iter()
        .filter_map(|s| {
            let claimed_at = locked.get(&(s.claim.conversation_id, s.claim.lane_id, s.claim.epoch))?;
            Some((s, *claimed_at))
        })
        .collect();
    Ok((held, now))
}

/// Of the operations that failed, those that nevertheless stand in their room: evidence beats every verdict.
async fn known_evidence(
    conn: &mut PgConnection,
    lanes: &HashMap<(ConversationId, LaneId), Lane<'_>>,
) -> Result<HashSet<OutboxId>, sqlx::Error> {
    let (mut conversations, mut ids) = (Vec::new(), Vec::new());
    for lane in lanes.values() {
        for result in lane.settlement.results.iter().filter(|result| !result.outcome.lets_the_next_go()) {
            conversations.push(lane.settlement.claim.conversation_id.as_uuid());
            ids.push(result.operation.outbox_id.as_uuid());
        }
    }
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = sqlx::query_scalar!(
        r#"
        select s.outbox_id as "outbox_id: OutboxId"
        from unnest($1::uuid[], $2::uuid[]) as c (conversation_id, outbox_id)
        join sent_events s on s.conversation_id = c.conversation_id and s.outbox_id = c.outbox_id
        "#,
        &conversations,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Moves what is delivered out of the outbox: evidence in, event ids onto messages, rows out.
async fn finish_delivered(
    conn: &mut PgConnection,
    lanes: &mut HashMap<(ConversationId, LaneId), Lane<'_>>,
    known: &HashSet<OutboxId>,
    settled: &mut Settled,
) -> Result<(), sqlx::Error> {
    let mut sent = SentColumns::default();
    let mut found = Vec::new();
    let (mut conversations, mut lane_ids, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
    for lane in lanes.values_mut() {
        let claim = lane.settlement.claim;
        for result in &lane.settlement.results {
            found.extend(result.found.iter().map(|evidence| evidence.outbox_id.as_uuid()));
            for evidence in result.found.iter().cloned().chain(result.evidence()) {
                sent.push(claim.conversation_id, evidence);
            }
            let is_known = known.contains(&result.operation.outbox_id);
            if result.outcome.lets_the_next_go() || is_known {
                lane.sent_through = lane.sent_through.max(result.operation.seq);
                conversations.push(claim.conversation_id.as_uuid());
                lane_ids.push(claim.lane_id.as_uuid());
                seqs.push(result.operation.seq);
            }
        }
    }
    sent.insert(conn).await?;
    if !found.is_empty() {
        let conversations: Vec<Uuid> = lanes.keys().map(|(conversation_id, _)| conversation_id.as_uuid()).collect();
        sqlx::query!(
            "delete from withdrawn_operations where conversation_id = any($1) and outbox_id = any($2)",
            &conversations,
            &found,
        )
        .execute(&mut *conn)
        .await?;
    }
    if seqs.is_empty() {
        return Ok(());
    }
    // An echo may have taken some of them already: the lane loses as many as really go.
    let deleted = sqlx::query!(
        r#"
        delete from outbox o
        using unnest($1::uuid[], $2::uuid[], $3::bigint[]) as c (conversation_id, lane_id, seq)
        where o.conversation_id = c.conversation_id and o.lane_id = c.lane_id and o.seq = c.seq
        returning o.conversation_id as "conversation_id: ConversationId", o.lane_id as "lane_id: LaneId"
        "#,
        &conversations,
        &lane_ids,
        &seqs,
    )
    .fetch_all(conn)
    .await?;
    reach(Point::SettleDeleted);
    for row in deleted {
        if let Some(lane) = lanes.get_mut(&(row.conversation_id, row.lane_id)) {
            lane.gone += 1;
            settled.finished += 1;
        }
    }
    Ok(())
}

/// Writes back one operation that was not delivered. Failures are few, so they go one by one.
async fn settle_failure(
    conn: &mut PgConnection,
    lane: &mut Lane<'_>,
    result: &OperationResult,
    now: OffsetDateTime,
    settled: &mut Settled,
) -> Result<(), sqlx::Error> {
    let claim = lane.settlement.claim;
    let operation = &result.operation;
    match &result.outcome {
        Outcome::Delivered { .. } | Outcome::Done => {}
        Outcome::Refused { retry_in, blame } => wait(conn, claim, result, now, *retry_in, None, *blame).await?,
        Outcome::Ambiguous { retry_in, blame } => {
            // Not when it is settled, which may be a day later if the database was away: the homeserver forgets
            // meanwhile. The claim came before the attempt.
            wait(conn, claim, result, now, *retry_in, Some(lane.claimed_at), *blame).await?;
        }
        Outcome::RoomFault { reason } => lane.hold = Some(reason.clone()),
        Outcome::OwnFault { hint } | Outcome::GaveUp { hint }
            if operation.kind.holds_its_lane() || closes(operation) =>
        {
            let errcode = result.attempt.as_ref().and_then(|attempt| attempt.errcode.as_deref());
            let errcode = errcode.map(|errcode| format!(" ({errcode})")).unwrap_or_default();
            let (kind, id) = (operation.kind.as_str(), operation.outbox_id);
            lane.hold = Some(format!("{kind} {id} was refused for good{errcode}: {hint}"));
        }
        Outcome::OwnFault { .. } | Outcome::GaveUp { .. } | Outcome::ParentDead => {
            lane.gone += bury(conn, claim, result, now, settled).await?;
        }
        Outcome::Expired | Outcome::NotThere => lane.gone += withdraw(conn, claim, operation, now).await?,
    }
    Ok(())
}

fn closes(operation: &ClaimedOperation) -> bool {
    matches!(operation.mode, super::Mode::Close { .. })
}

/// The operation stays live and is due later.
///
/// The budget of what may be its own fault starts anew after a failure that was not, and after a pause: it is time in which
/// it was tried.
async fn wait(
    conn: &mut PgConnection,
    claim: LaneClaim,
    result: &OperationResult,
    now: OffsetDateTime,
    retry_in: Duration,
    maybe_sent_at: Option<OffsetDateTime>,
    blame: Blame,
) -> Result<(), sqlx::Error> {
    let operation = &result.operation;
    sqlx::query!(
        r#"
        update outbox
        set due_at = $4,
            maybe_sent_at = case when $10 then $5 else coalesce(maybe_sent_at, $5) end,
            sender = case when $10 then $11 else sender end,
            device = case when $10 then $12 else device end,
            attempts = attempts + $6,
            failures = failures + $7,
            first_failed_at = case
                when $8 and last_failed_at > $9::timestamptz - interval '30 minutes' then coalesce(first_failed_at, $9)
                when $8 then $9
                when $7 = 1 then null
                else first_failed_at
            end,
            last_failed_at = $9,
            last_errcode = $13
        where conversation_id = $1 and lane_id = $2 and seq = $3
        "#,
        claim.conversation_id.as_uuid(),
        claim.lane_id.as_uuid(),
        operation.seq,
        now + retry_in,
        maybe_sent_at,
        i32::from(blame == Blame::Own),
        i32::from(blame != Blame::Nobody),
        matches!(blame, Blame::Suspect | Blame::Own),
        now,
        result.anew && maybe_sent_at.is_some(),
        operation.sender,
        operation.device,
        result.attempt.as_ref().and_then(|attempt| attempt.errcode.as_deref()),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The operation will never be accepted: out of the lane it goes, with the edits of its message and the reactions to it
/// if it was the message. What was deleted meanwhile leaves no dead letter, since its words are gone. Returns how many left the lane.
async fn bury(
    conn: &mut PgConnection,
    claim: LaneClaim,
    result: &OperationResult,
    now: OffsetDateTime,
    settled: &mut Settled,
) -> Result<i32, sqlx::Error> {
    let operation = &result.operation;
    let deleted = operation.kind.carries_words()
        && sqlx::query_scalar!(
            r#"
            select m.deleted_at is not null or ($4 and not exists (
                select 1 from message_reactions r
                where r.conversation_id = $1 and r.send_outbox_id = $3 and r.removed_at is null
            )) as "deleted!"
            from messages m
            where m.conversation_id = $1 and m.message_id = $2
            "#,
            claim.conversation_id.as_uuid(),
            operation.subject_id,
            operation.outbox_id.as_uuid(),
            operation.kind == Kind::React,
        )
        .fetch_optional(&mut *conn)
        .await?
        .unwrap_or(false);
    if deleted {
        return withdraw(conn, claim, operation, now).await;
    }
    let (cause, hint) = match &result.outcome {
        Outcome::OwnFault { hint } => ("own_fault", *hint),
        Outcome::GaveUp { hint } => ("gave_up", *hint),
        _ => ("parent_dead", super::PARENT_DEAD_HINT),
    };
    let attempt = result.attempt.as_ref();
    let errcode = attempt.and_then(|attempt| attempt.errcode.as_deref());
    let detail = attempt.and_then(|attempt| attempt.detail.as_deref());
    let with_others = operation.kind == Kind::Message;
    let moved = sqlx::query!(
        r#"
        with gone as (
            delete from outbox
            where conversation_id = $1 and lane_id = $2
                and seq = any (array(
                    select seq from outbox
                    where conversation_id = $1 and subject_id = $5 and kind in ('edit', 'react') and $4
                    union all
                    select $3
                ))
            returning *
        ), told as (
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, case kind when 'message' then 'message_delivery' else 'call_updated' end, subject_id
            from gone where kind in ('message', 'call_invite')
        )
        insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision,
            target_outbox_id, enqueued_at, expires_at, attempts, maybe_sent_at, sender, device, trace, cause, errcode,
            hint, died_at, user_id, detail)
        select conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, target_outbox_id, enqueued_at,
            expires_at, attempts + (seq = $3)::integer, maybe_sent_at, sender, device, trace,
            case when seq = $3 then $6 else 'parent_dead' end,
            case when seq = $3 then $7 end,
            case when seq = $3 then $8 else $9 end,
            $10,
            outbox_user(conversation_id, kind, subject_id, outbox_id),
            case when seq = $3 then $11 end
        from gone
        "#,
        claim.conversation_id.as_uuid(),
        claim.lane_id.as_uuid(),
        operation.seq,
        with_others,
        operation.subject_id,
        cause,
        errcode,
        hint,
        super::PARENT_DEAD_HINT,
        now,
        detail,
    )
    .execute(conn)
    .await?
    .rows_affected();
    settled.died += moved;
    Ok(i32::try_from(moved).unwrap_or(i32::MAX))
}

/// The operation leaves without having arrived, as far as anyone knows. If it may have been sent, that is remembered, so
/// that late evidence still brings its redaction. A redaction whose target was found meanwhile stays.
async fn withdraw(
    conn: &mut PgConnection,
    claim: LaneClaim,
    operation: &ClaimedOperation,
    now: OffsetDateTime,
) -> Result<i32, sqlx::Error> {
    let target = operation.target.as_ref().map(|target| target.outbox_id.as_uuid());
    let gone = sqlx::query!(
        r#"
        with gone as (
            delete from outbox o
            where o.conversation_id = $1 and o.lane_id = $2 and o.seq = $3
                and not exists (
                    select 1 from sent_events s where s.conversation_id = $1 and s.outbox_id = $4
                )
            returning *
        ), remembered as (
            insert into withdrawn_operations (conversation_id, lane_id, outbox_id, kind, subject_id, revision,
                maybe_sent_at, sender, device, reason, withdrawn_at)
            select conversation_id, lane_id, outbox_id, kind, subject_id, revision, maybe_sent_at, sender, device,
                'not_found', $5
            from gone
            where maybe_sent_at is not null and kind in ('message', 'edit', 'react', 'call_invite', 'call_answer')
            on conflict do nothing
        ), told as (
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, case kind when 'message' then 'message_delivery' else 'call_updated' end, subject_id
            from gone where kind in ('message', 'call_invite')
        )
        select count(*) as "gone!" from gone
        "#,
        claim.conversation_id.as_uuid(),
        claim.lane_id.as_uuid(),
        operation.seq,
        target,
        now,
    )
    .fetch_one(conn)
    .await?
    .gone;
    Ok(i32::try_from(gone).unwrap_or(0))
}

async fn append_attempts(
    conn: &mut PgConnection,
    worker_id: WorkerId,
    now: OffsetDateTime,
    lanes: &HashMap<(ConversationId, LaneId), Lane<'_>>,
) -> Result<(), sqlx::Error> {
    let (mut conversations, mut ids, mut began, mut outcomes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut statuses, mut errcodes, mut details, mut durations) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for lane in lanes.values() {
        for result in &lane.settlement.results {
            let Some(attempt) = &result.attempt else { continue };
            conversations.push(lane.settlement.claim.conversation_id.as_uuid());
            ids.push(result.operation.outbox_id.as_uuid());
            began.push(now - attempt.age());
            outcomes.push(result.outcome.as_str().to_owned());
            statuses.push(attempt.http_status);
            errcodes.push(attempt.errcode.clone());
            details.push(attempt.detail.clone());
            durations.push(i32::try_from(attempt.took.as_millis()).unwrap_or(i32::MAX));
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        insert into attempts (conversation_id, outbox_id, attempted_at, worker_id, outcome, http_status, errcode,
            detail, duration_ms)
        select c.conversation_id, c.outbox_id, c.attempted_at, $9, c.outcome, c.http_status, c.errcode, c.detail,
            c.duration_ms
        from unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::integer[], $6::text[], $7::text[],
            $8::integer[]) as c (conversation_id, outbox_id, attempted_at, outcome, http_status, errcode, detail,
            duration_ms)
        "#,
        &conversations,
        &ids,
        &began,
        &outcomes,
        &statuses as &[Option<i32>],
        &errcodes as &[Option<String>],
        &details as &[Option<String>],
        &durations,
        worker_id.as_uuid(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Releases the lanes: what is left of them is due with its first operation, and frozen up to the last that was or may
/// have been sent.
async fn release(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    lanes: &HashMap<(ConversationId, LaneId), Lane<'_>>,
) -> Result<(), sqlx::Error> {
    let (mut conversations, mut ids, mut epochs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gone, mut sent_through, mut holds) = (Vec::new(), Vec::new(), Vec::new());
    for lane in lanes.values() {
        conversations.push(lane.settlement.claim.conversation_id.as_uuid());
        ids.push(lane.settlement.claim.lane_id.as_uuid());
        epochs.push(lane.settlement.claim.epoch);
        gone.push(lane.gone);
        sent_through.push(lane.sent_through);
        holds.push(lane.hold.clone());
    }
    let released = sqlx::query!(
        r#"
        update lanes l
        set open = l.open - c.gone,
            owner = null,
            leased_until = null,
            claimed_at = null,
            hold = case
                when c.hold is null or l.hold is null then coalesce(c.hold, l.hold)
                else left(l.hold || '; and: ' || c.hold, 1000)
            end,
            due_at = outbox_due(l.conversation_id, l.lane_id, $7, coalesce(c.hold, l.hold), l.paused_until),
            frozen_through = least(l.frozen_through, greatest(c.sent_through, coalesce((
                select max(o.seq) from outbox o
                where o.conversation_id = l.conversation_id and o.lane_id = l.lane_id
                    and o.seq <= l.frozen_through and o.maybe_sent_at is not null
            ), 0)))
        from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::integer[], $5::bigint[], $6::text[])
            as c (conversation_id, lane_id, epoch, gone, sent_through, hold)
        where l.conversation_id = c.conversation_id and l.lane_id = c.lane_id and l.epoch = c.epoch
        "#,
        &conversations,
        &ids,
        &epochs,
        &gone,
        &sent_through,
        &holds as &[Option<String>],
        now,
    )
    .execute(conn)
    .await?
    .rows_affected();
    debug_assert_eq!(released, lanes.len() as u64, "every lane that was locked is released");
    Ok(())
}
