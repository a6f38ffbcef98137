//! Who works: a row for each worker process, as it last told of itself.

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::ids::WorkerId;

/// How often a worker tells of itself, in seconds.
pub const TELL_EVERY_SECONDS: u64 = 5;

/// A worker that was silent for so many seconds is taken for gone: three rounds, and a slow one.
const FRESH_FOR_SECONDS: f64 = 20.0;

/// How many are shown: more than any installation has.
const MOST: i64 = 200;

/// A worker, as it last told of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerSeen {
    /// The process: a new one at each start.
    pub worker_id: WorkerId,
    /// The machine's name.
    pub host: String,
    /// Its release.
    pub version: String,
    /// When it started, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When it last told of itself, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub seen_at: OffsetDateTime,
    /// `closed` (all is well), `ramping_up`, `open` (nothing is claimed) or `disabled` (Matrix is switched off).
    pub circuit: String,
    /// Whether the homeserver accepts its token.
    pub token_accepted: bool,
    /// Whether it reads what happens on Matrix.
    pub sync_leader: bool,
    /// How many lanes it works on at most.
    pub slots: i32,
    /// How many lanes it works on.
    pub busy: i32,
    /// Operations delivered since it started.
    pub delivered: i64,
    /// Attempts that failed since it started.
    pub failed: i64,
    /// Operations delivered in the last minute.
    pub delivered_per_minute: f64,
}

/// Writes down what a worker tells of itself. Its times are the database's: `seen_at` is now, and `started_at` is when it
/// first told of itself.
pub async fn tell(conn: &mut PgConnection, worker: &WorkerSeen) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into workers (worker_id, host, version, started_at, seen_at, circuit, token_accepted, sync_leader, slots,
            busy, delivered, failed, delivered_per_minute)
        values ($1, $2, $3, outbox_now(), outbox_now(), $4, $5, $6, $7, $8, $9, $10, $11)
        on conflict (worker_id) do update
        set seen_at = excluded.seen_at, circuit = excluded.circuit, token_accepted = excluded.token_accepted,
            sync_leader = excluded.sync_leader, slots = excluded.slots, busy = excluded.busy,
            delivered = excluded.delivered, failed = excluded.failed,
            delivered_per_minute = excluded.delivered_per_minute
        "#,
        worker.worker_id.as_uuid(),
        worker.host,
        worker.version,
        worker.circuit,
        worker.token_accepted,
        worker.sync_leader,
        worker.slots,
        worker.busy,
        worker.delivered,
        worker.failed,
        worker.delivered_per_minute,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The workers that told of themselves lately, those that run longest first.
pub async fn seen(conn: &mut PgConnection) -> Result<Vec<WorkerSeen>, sqlx::Error> {
    sqlx::query_as!(
        WorkerSeen,
        r#"
        select worker_id as "worker_id: WorkerId", host, version, started_at, seen_at, circuit, token_accepted,
            sync_leader, slots, busy, delivered, failed, delivered_per_minute
        from workers
        where seen_at > outbox_now() - $1 * interval '1 second'
        order by started_at, worker_id
        limit $2
        "#,
        FRESH_FOR_SECONDS,
        MOST,
    )
    .fetch_all(conn)
    .await
}

/// Says that a worker has ended: it is shown no more.
pub async fn leave(conn: &mut PgConnection, worker_id: WorkerId) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from workers where worker_id = $1", worker_id.as_uuid()).execute(conn).await?;
    Ok(())
}

/// Forgets workers that were silent for a day.
pub async fn forget(conn: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let gone =
        sqlx::query!("delete from workers where seen_at < outbox_now() - interval '1 day'").execute(conn).await?;
    Ok(gone.rows_affected())
}
