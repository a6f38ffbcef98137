//! What happened to one operation.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Found, Moment, MomentKind,
    merge::made_at,
    sources::{act_in_words, attempt_in_words, death_in_words, withdrawal_in_words},
};
use crate::ids::{EventId, UserId};

/// How many attempts are told of: the newest.
const MOST_ATTEMPTS: i64 = 1_000;

/// How many acts of operators are told of: the newest.
const MOST_ACTS: i64 = 200;

/// What happened to an operation, oldest first: at most its newest 1,000 attempts, and 200 acts of operators that name
/// it, or that were done to its lane or its conversation while it was there.
pub async fn operation_timeline(conn: &mut PgConnection, found: &Found) -> Result<Vec<Moment>, sqlx::Error> {
    let (conversation_id, outbox_id) = (found.conversation_id.as_uuid(), found.outbox_id.as_uuid());
    let mut moments = ends(conn, found).await?;
    let attempts = sqlx::query!(
        r#"
        select attempted_at as at, outcome, http_status, errcode, detail, duration_ms
        from attempts
        where conversation_id = $1 and outbox_id = $2
        order by attempted_at desc
        limit $3
        "#,
        conversation_id,
        outbox_id,
        MOST_ATTEMPTS,
    )
    .fetch_all(&mut *conn)
    .await?;
    moments.extend(attempts.into_iter().rev().map(|row| Moment {
        http_status: row.http_status,
        errcode: row.errcode,
        duration_ms: Some(row.duration_ms),
        ..Moment::new(row.at, MomentKind::Attempt, attempt_in_words(&row.outcome, row.detail.as_deref()))
    }));
    moments.extend(acts(conn, conversation_id, outbox_id).await?);
    for moment in &mut moments {
        moment.outbox_id = Some(found.outbox_id);
        moment.subject_id = Some(found.subject_id);
        moment.operation_kind = Some(found.kind.clone());
    }
    // Of one time, they stay in the order in which they are told of above.
    moments.sort_by_key(|moment| (moment.at, moment.kind == MomentKind::Died || moment.kind == MomentKind::Delivered));
    Ok(moments)
}

/// How it began, and how it ended if it did.
async fn ends(conn: &mut PgConnection, found: &Found) -> Result<Vec<Moment>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select coalesce(o.enqueued_at, d.enqueued_at) as enqueued_at,
            outbox_user($1, $3, $4, $2) as "user_id: UserId",
            s.sent_at as "sent_at?", s.event_id as "event_id?: EventId", d.died_at as "died_at?", d.cause as "cause?",
            d.errcode, w.withdrawn_at as "withdrawn_at?", w.reason as "withdrawal?"
        from (select $1::uuid as conversation_id, $2::uuid as outbox_id) q
        left join outbox o using (conversation_id, outbox_id)
        left join dead_letters d using (conversation_id, outbox_id)
        left join sent_events s using (conversation_id, outbox_id)
        left join withdrawn_operations w using (conversation_id, outbox_id)
        "#,
        found.conversation_id.as_uuid(),
        found.outbox_id.as_uuid(),
        found.kind,
        found.subject_id,
    )
    .fetch_one(conn)
    .await?;
    // Of what is delivered only the id tells when it was made.
    let enqueued_at = row.enqueued_at.unwrap_or_else(|| made_at(found.outbox_id.as_uuid()));
    let mut moments = vec![Moment {
        by: row.user_id.map(|user_id| user_id.to_string()),
        ..Moment::new(enqueued_at, MomentKind::Enqueued, format!("{} enqueued", found.kind))
    }];
    if let Some(at) = row.sent_at {
        let event_id = row.event_id;
        moments.push(Moment { event_id, ..Moment::new(at, MomentKind::Delivered, "delivered") });
    }
    if let Some((at, cause)) = row.died_at.zip(row.cause) {
        moments.push(Moment { errcode: row.errcode, ..Moment::new(at, MomentKind::Died, death_in_words(&cause)) });
    }
    if let Some((at, reason)) = row.withdrawn_at.zip(row.withdrawal) {
        moments.push(Moment::new(at, MomentKind::Withdrawn, withdrawal_in_words(&reason)));
    }
    Ok(moments)
}

/// What operators did that concerned it.
async fn acts(conn: &mut PgConnection, conversation_id: Uuid, outbox_id: Uuid) -> Result<Vec<Moment>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select l.acted_at as at, l.acted_by, l.verb, l.scope, l.affected, l.reason
        from audit_log l
        cross join lateral (
            select
                coalesce(
                    (select o.enqueued_at from outbox o where o.conversation_id = $1 and o.outbox_id = $2),
                    (select d.enqueued_at from dead_letters d where d.conversation_id = $1 and d.outbox_id = $2),
                    $3
                ) as since,
                (select s.sent_at from sent_events s where s.conversation_id = $1 and s.outbox_id = $2) as until,
                coalesce(
                    (select o.lane_id from outbox o where o.conversation_id = $1 and o.outbox_id = $2),
                    (select d.lane_id from dead_letters d where d.conversation_id = $1 and d.outbox_id = $2)
                ) as lane_id
        ) of
        where l.conversation_id = $1
            and (
                jsonb_exists(l.arguments -> 'outbox_ids', $2::uuid::text)
                or l.arguments ->> 'outbox_id' = $2::uuid::text
                or (
                    (l.scope = 'conversation' or (l.scope = 'lane' and l.arguments ->> 'lane_id' = of.lane_id::text))
                    and l.acted_at >= of.since and l.acted_at <= coalesce(of.until, 'infinity')
                )
            )
        order by l.acted_at desc, l.audit_id desc
        limit $4
        "#,
        conversation_id,
        outbox_id,
        made_at(outbox_id),
        MOST_ACTS,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .rev()
        .map(|row| Moment {
            by: Some(row.acted_by),
            reason: row.reason,
            ..Moment::new(row.at, MomentKind::Act, act_in_words(&row.verb, &row.scope, row.affected))
        })
        .collect())
}
