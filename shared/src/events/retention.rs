//! The log's beginning.

use std::time::Duration;

use sqlx::PgPool;

/// Forgets what is older than this, and moves the log's floor with it. Returns how many rows went; call it again while that
/// is as many as `limit`.
///
/// Rows of a transaction that this server has not had yet came with a restored database, whose ids were ahead. They go at
/// once: in time they would be told as news.
pub async fn forget(pool: &PgPool, older_than: Duration, limit: i64) -> Result<u64, sqlx::Error> {
    let mut tx = pool.begin().await?;
    // One does it; the others have nothing to wait for.
    let floor = sqlx::query!(
        r#"
        select xid >= pg_snapshot_xmax(pg_current_snapshot()) as "ahead!" from event_log_floor
        for no key update skip locked
        "#,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(floor) = floor else { return Ok(0) };
    let ahead = sqlx::query!(
        r#"
        delete from events
        where (xid, event_id) in (
            select xid, event_id from events
            where xid >= pg_snapshot_xmax(pg_current_snapshot())
            order by xid desc, event_id desc
            limit $1
        )
        "#,
        limit,
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if floor.ahead {
        sqlx::query!(
            r#"
            update event_log_floor
            set xid = pg_snapshot_xmin(pg_current_snapshot()), event_id = 0, moved_at = outbox_now()
            "#,
        )
        .execute(&mut *tx)
        .await?;
    }
    let gone = sqlx::query_scalar!(
        r#"
        with oldest as materialized (
            select e.xid, e.event_id, e.created_at
            from event_log_floor f
            cross join lateral (
                select * from events e
                where (e.xid, e.event_id) > (f.xid, f.event_id) and e.xid < pg_snapshot_xmin(pg_current_snapshot())
                order by e.xid, e.event_id
                limit $2
            ) e
        ), last as (
            select xid, event_id from oldest
            where created_at < outbox_now() - make_interval(secs => $1)
            order by xid desc, event_id desc
            limit 1
        ), gone as (
            delete from events e
            using oldest o, last
            where e.xid = o.xid and e.event_id = o.event_id and (o.xid, o.event_id) <= (last.xid, last.event_id)
            returning 1
        ), moved as (
            update event_log_floor f
            set xid = last.xid, event_id = last.event_id, moved_at = outbox_now()
            from last
        )
        select count(*) as "gone!" from gone
        "#,
        older_than.as_secs_f64(),
        limit,
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(u64::try_from(gone).unwrap_or(0).max(ahead))
}
