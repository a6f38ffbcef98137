//! Where moments come from. Each source is one scan of an index: so many rows before a time, and with them all of the
//! last one's time, since only all of them have an order that stays.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Moment, MomentKind,
    merge::{Rank, Source, Spot, made_at},
    words,
};
use crate::{
    ids::{ConversationId, EventId, OutboxId, UserId},
    outbox::Cursor,
};

/// What is asked of every source.
#[derive(Clone, Copy)]
struct Wish {
    conversation_id: Uuid,
    after: Spot,
    /// One more than is wanted tells whether there is more.
    rows: i64,
}

type Entry = (Spot, Option<Moment>);

impl Wish {
    /// Of a source that is read by time.
    fn by_time(&self, entries: Vec<Entry>) -> Source {
        let older = entries.iter().filter(|(spot, _)| spot.at < self.after.at).count();
        Source::new(entries, self.after, i64::try_from(older).unwrap_or(i64::MAX) >= self.rows)
    }

    /// Of a source that is read by its ids.
    fn by_id(&self, entries: Vec<Entry>) -> Source {
        let more = i64::try_from(entries.len()).unwrap_or(i64::MAX) >= self.rows;
        Source::new(entries, self.after, more)
    }
}

/// What every source has next.
pub(super) async fn read(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    before: Option<Cursor>,
    wanted: usize,
) -> Result<Vec<Source>, sqlx::Error> {
    let rows = i64::try_from(wanted).unwrap_or(i64::MAX - 1) + 1;
    let wish = Wish { conversation_id: conversation_id.as_uuid(), after: Spot::after(before), rows };
    Ok(vec![
        written(conn, wish).await?,
        changed(conn, wish, MomentKind::Edited).await?,
        changed(conn, wish, MomentKind::Deleted).await?,
        enqueued(conn, wish).await?,
        attempts(conn, wish).await?,
        died(conn, wish).await?,
        withdrawn(conn, wish).await?,
        received(conn, wish).await?,
        placed(conn, wish).await?,
        ended(conn, wish).await?,
        acts(conn, wish).await?,
    ])
}

async fn written(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select message_id, seq, author_id as "author_id: UserId", origin = 'nova' as "ours!", kind,
            send_outbox_id as "send_outbox_id: OutboxId", send_outbox_id is null as "disabled!"
        from messages
        where conversation_id = $1 and message_id < $2
        order by message_id desc
        limit $3
        "#,
        wish.conversation_id,
        wish.after.ids_below(Rank::Written),
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let spot = Spot::new(made_at(row.message_id), Rank::Written, row.message_id);
        // What came from Matrix is told when it was received.
        let moment = row.ours.then(|| {
            let matrix = if row.disabled { ", never meant for Matrix" } else { "" };
            Moment {
                outbox_id: row.send_outbox_id,
                subject_id: Some(row.message_id),
                by: Some(row.author_id.to_string()),
                ..Moment::new(spot.at, MomentKind::Written, format!("{} written, place {}{matrix}", row.kind, row.seq))
            }
        });
        (spot, moment)
    });
    Ok(wish.by_id(entries.collect()))
}

struct Changed {
    message_id: Uuid,
    seq: i64,
    author_id: UserId,
    ours: bool,
    revision: i32,
    at: OffsetDateTime,
}

/// Edits and deletes, each message's last.
async fn changed(conn: &mut PgConnection, wish: Wish, kind: MomentKind) -> Result<Source, sqlx::Error> {
    let edited = kind == MomentKind::Edited;
    let rank = if edited { Rank::Edited } else { Rank::Deleted };
    let rows = if edited {
        sqlx::query_as!(
            Changed,
            r#"
            select message_id as "message_id!", seq as "seq!", author_id as "author_id!: UserId",
                origin = 'nova' as "ours!", revision as "revision!", edited_at as "at!"
            from (
                (
                    select * from messages where conversation_id = $1 and edited_at < $2
                    order by edited_at desc
                    fetch first $3 rows with ties
                )
                union all
                (select * from messages where conversation_id = $1 and edited_at = $2)
            ) m
            "#,
            wish.conversation_id,
            wish.after.at,
            wish.rows,
        )
        .fetch_all(conn)
        .await?
    } else {
        sqlx::query_as!(
            Changed,
            r#"
            select message_id as "message_id!", seq as "seq!", author_id as "author_id!: UserId",
                origin = 'nova' as "ours!", revision as "revision!", deleted_at as "at!"
            from (
                (
                    select * from messages where conversation_id = $1 and deleted_at < $2
                    order by deleted_at desc
                    fetch first $3 rows with ties
                )
                union all
                (select * from messages where conversation_id = $1 and deleted_at = $2)
            ) m
            "#,
            wish.conversation_id,
            wish.after.at,
            wish.rows,
        )
        .fetch_all(conn)
        .await?
    };
    let entries = rows.into_iter().map(|row| {
        let spot = Spot::new(row.at, rank, row.message_id);
        let text = if edited {
            format!("message of place {} edited: revision {}", row.seq, row.revision)
        } else {
            format!("message of place {} deleted", row.seq)
        };
        // An edit of what came from Matrix is told when it was received. Who deleted is not written down.
        let moment = (!edited || row.ours).then(|| Moment {
            subject_id: Some(row.message_id),
            by: edited.then(|| row.author_id.to_string()),
            ..Moment::new(row.at, kind, text)
        });
        (spot, moment)
    });
    Ok(wish.by_time(entries.collect()))
}

async fn enqueued(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select distinct on (outbox_id) outbox_id as "outbox_id!: OutboxId", kind as "kind!", subject_id as "subject_id!",
            outbox_user($1, kind, subject_id, outbox_id) as "user_id: UserId"
        from (
            (
                select outbox_id, kind, subject_id from outbox where conversation_id = $1 and outbox_id < $2
                order by outbox_id desc
                limit $3
            )
            union all
            (
                select outbox_id, kind, subject_id from dead_letters where conversation_id = $1 and outbox_id < $2
                order by outbox_id desc
                limit $3
            )
            union all
            (
                select outbox_id, kind, subject_id from sent_events where conversation_id = $1 and outbox_id < $2
                order by outbox_id desc
                limit $3
            )
            union all
            (
                select outbox_id, kind, subject_id from withdrawn_operations
                where conversation_id = $1 and outbox_id < $2
                order by outbox_id desc
                limit $3
            )
        ) everywhere
        order by outbox_id desc
        limit $3
        "#,
        wish.conversation_id,
        wish.after.ids_below(Rank::Enqueued),
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let id = row.outbox_id.as_uuid();
        let spot = Spot::new(made_at(id), Rank::Enqueued, id);
        // A message's own operation is told of with the message.
        let moment = (row.kind != "message").then(|| Moment {
            outbox_id: Some(row.outbox_id),
            subject_id: Some(row.subject_id),
            by: row.user_id.map(|user_id| user_id.to_string()),
            operation_kind: Some(row.kind.clone()),
            ..Moment::new(spot.at, MomentKind::Enqueued, format!("{} enqueued", row.kind))
        });
        (spot, moment)
    });
    Ok(wish.by_id(entries.collect()))
}

async fn attempts(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select outbox_id as "outbox_id!: OutboxId", attempted_at as "at!", worker_id as "worker_id!",
            outcome as "outcome!", http_status, errcode, detail, duration_ms as "duration_ms!",
            coalesce(
                (select o.kind from outbox o where o.conversation_id = $1 and o.outbox_id = a.outbox_id),
                (select s.kind from sent_events s where s.conversation_id = $1 and s.outbox_id = a.outbox_id),
                (select d.kind from dead_letters d where d.conversation_id = $1 and d.outbox_id = a.outbox_id),
                (select w.kind from withdrawn_operations w where w.conversation_id = $1 and w.outbox_id = a.outbox_id)
            ) as kind,
            (
                select s.event_id from sent_events s
                where s.conversation_id = $1 and s.outbox_id = a.outbox_id and a.outcome = 'delivered'
            ) as "event_id: EventId"
        from (
            (
                select * from attempts where conversation_id = $1 and attempted_at < $2
                order by attempted_at desc
                fetch first $3 rows with ties
            )
            union all
            (select * from attempts where conversation_id = $1 and attempted_at = $2)
        ) a
        "#,
        wish.conversation_id,
        wish.after.at,
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let name = format!("{} {} {} {}", row.outbox_id, row.worker_id, row.outcome, row.duration_ms);
        let spot = Spot::named(row.at, Rank::Attempt, &name);
        let delivered = row.outcome == "delivered";
        let moment = Moment {
            outbox_id: Some(row.outbox_id),
            operation_kind: row.kind,
            http_status: row.http_status,
            errcode: row.errcode,
            duration_ms: Some(row.duration_ms),
            event_id: row.event_id,
            ..Moment::new(
                row.at,
                if delivered { MomentKind::Delivered } else { MomentKind::Attempt },
                attempt_in_words(&row.outcome, row.detail.as_deref()),
            )
        };
        (spot, Some(moment))
    });
    Ok(wish.by_time(entries.collect()))
}

/// How an attempt ended.
pub(super) fn attempt_in_words(outcome: &str, detail: Option<&str>) -> String {
    let ended = match outcome {
        "delivered" => "delivered",
        "done" => "done",
        "refused" => "refused, to be tried again",
        "ambiguous" => "nobody knows how it ended; to be tried again",
        "room_fault" => "the room does not take it: the lane is held",
        "own_fault" => "refused for good",
        "gave_up" => "given up",
        "parent_dead" => "not sent: the message that it belongs to did not arrive",
        "expired" => "not sent: too late",
        "not_there" => "not sent: it was deleted meanwhile",
        other => other,
    };
    detail.map_or_else(|| ended.to_owned(), |detail| format!("{ended}: {detail}"))
}

async fn died(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select outbox_id as "outbox_id!: OutboxId", kind as "kind!", subject_id as "subject_id!", cause as "cause!",
            errcode, died_at as "at!", user_id as "user_id: UserId"
        from (
            (
                select * from dead_letters where conversation_id = $1 and died_at < $2
                order by died_at desc
                fetch first $3 rows with ties
            )
            union all
            (select * from dead_letters where conversation_id = $1 and died_at = $2)
        ) d
        "#,
        wish.conversation_id,
        wish.after.at,
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let moment = Moment {
            outbox_id: Some(row.outbox_id),
            subject_id: Some(row.subject_id),
            by: row.user_id.map(|user_id| user_id.to_string()),
            operation_kind: Some(row.kind),
            errcode: row.errcode,
            ..Moment::new(row.at, MomentKind::Died, death_in_words(&row.cause))
        };
        (Spot::new(row.at, Rank::Died, row.outbox_id.as_uuid()), Some(moment))
    });
    Ok(wish.by_time(entries.collect()))
}

/// That something died, and why.
pub(super) fn death_in_words(cause: &str) -> String {
    format!("died: {}", words::cause_in_words(cause))
}

async fn withdrawn(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select outbox_id as "outbox_id!: OutboxId", kind as "kind!", subject_id as "subject_id!", reason as "reason!",
            withdrawn_at as "at!"
        from (
            (
                select * from withdrawn_operations where conversation_id = $1 and withdrawn_at < $2
                order by withdrawn_at desc
                fetch first $3 rows with ties
            )
            union all
            (select * from withdrawn_operations where conversation_id = $1 and withdrawn_at = $2)
        ) w
        "#,
        wish.conversation_id,
        wish.after.at,
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let moment = Moment {
            outbox_id: Some(row.outbox_id),
            subject_id: Some(row.subject_id),
            operation_kind: Some(row.kind),
            ..Moment::new(row.at, MomentKind::Withdrawn, withdrawal_in_words(&row.reason))
        };
        (Spot::new(row.at, Rank::Withdrawn, row.outbox_id.as_uuid()), Some(moment))
    });
    Ok(wish.by_time(entries.collect()))
}

/// That something was given up, and why.
pub(super) fn withdrawal_in_words(reason: &str) -> String {
    format!("given up, although it may stand in the room: {}", words::withdrawal_in_words(reason))
}

async fn received(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select event_id as "event_id!: EventId", kind as "kind!", subject_id, sender as "sender!", received_at as "at!"
        from (
            (
                select * from received_events where conversation_id = $1 and received_at < $2
                order by received_at desc
                fetch first $3 rows with ties
            )
            union all
            (select * from received_events where conversation_id = $1 and received_at = $2)
        ) r
        "#,
        wish.conversation_id,
        wish.after.at,
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let spot = Spot::named(row.at, Rank::Received, row.event_id.as_str());
        let text = match row.kind.as_str() {
            "void" => "an event came from Matrix that does not count".to_owned(),
            "call" => "a call's event came from Matrix".to_owned(),
            "member" => "a change of membership came from Matrix".to_owned(),
            kind => format!("{kind} came from Matrix"),
        };
        let moment = Moment {
            subject_id: row.subject_id,
            by: Some(row.sender),
            event_id: Some(row.event_id),
            ..Moment::new(row.at, MomentKind::Received, text)
        };
        (spot, Some(moment))
    });
    Ok(wish.by_time(entries.collect()))
}

async fn placed(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select call_id as "call_id!", origin as "origin!", initiator_id as "initiator_id!: UserId",
            send_outbox_id as "send_outbox_id: OutboxId", created_at as "at!"
        from (
            (
                select * from calls where conversation_id = $1 and created_at < $2
                order by created_at desc
                fetch first $3 rows with ties
            )
            union all
            (select * from calls where conversation_id = $1 and created_at = $2)
        ) c
        "#,
        wish.conversation_id,
        wish.after.at,
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let from = if row.origin == "matrix" { " on Matrix" } else { "" };
        let moment = Moment {
            outbox_id: row.send_outbox_id,
            subject_id: Some(row.call_id),
            by: Some(row.initiator_id.to_string()),
            ..Moment::new(row.at, MomentKind::CallPlaced, format!("call placed{from}"))
        };
        (Spot::new(row.at, Rank::CallPlaced, row.call_id), Some(moment))
    });
    Ok(wish.by_time(entries.collect()))
}

async fn ended(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select call_id as "call_id!", reason as "reason!", answered_at is not null as "answered!",
            ended_by as "ended_by: UserId", ended_at as "at!"
        from (
            (
                select * from calls where conversation_id = $1 and ended_at < $2
                order by ended_at desc
                fetch first $3 rows with ties
            )
            union all
            (select * from calls where conversation_id = $1 and ended_at = $2)
        ) c
        "#,
        wish.conversation_id,
        wish.after.at,
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let answered = if row.answered { "" } else { ", never answered" };
        let moment = Moment {
            subject_id: Some(row.call_id),
            by: row.ended_by.map(|user_id| user_id.to_string()),
            ..Moment::new(row.at, MomentKind::CallEnded, format!("call ended ({}){answered}", row.reason))
        };
        (Spot::new(row.at, Rank::CallEnded, row.call_id), Some(moment))
    });
    Ok(wish.by_time(entries.collect()))
}

async fn acts(conn: &mut PgConnection, wish: Wish) -> Result<Source, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select audit_id as "audit_id!", acted_at as "at!", acted_by as "by!", verb as "verb!", scope as "scope!",
            affected as "affected!", reason
        from (
            (
                select * from audit_log where conversation_id = $1 and acted_at < $2
                order by acted_at desc
                fetch first $3 rows with ties
            )
            union all
            (select * from audit_log where conversation_id = $1 and acted_at = $2)
        ) l
        "#,
        wish.conversation_id,
        wish.after.at,
        wish.rows,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let moment = Moment {
            by: Some(row.by),
            reason: row.reason,
            ..Moment::new(row.at, MomentKind::Act, act_in_words(&row.verb, &row.scope, row.affected))
        };
        (Spot::new(row.at, Rank::Act, row.audit_id), Some(moment))
    });
    Ok(wish.by_time(entries.collect()))
}

/// What an operator did.
pub(super) fn act_in_words(verb: &str, scope: &str, affected: i64) -> String {
    format!("{verb} ({scope}): {affected}")
}
