//! How far reading what happens on Matrix has come, for dashboards.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;

/// Events that are kept are counted up to so many.
const COUNTED_EVENTS: i64 = 10_000;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboxGauges {
    /// How long ago it had read all there was.
    pub age: Duration,
    /// Events whose target has not come, up to ten thousand.
    pub awaits_target: i64,
    /// Events that make no sense, up to ten thousand.
    pub poison: i64,
}

/// Reads the figures. Where nothing was ever read, it is as old as `since`.
pub async fn gauges(conn: &mut PgConnection, since: OffsetDateTime) -> Result<InboxGauges, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select extract(epoch from outbox_now() - coalesce((select max(synced_at) from sync_state), $2))::float8 as "age!",
            (
                select count(*) from (select 1 from sync_parked where cause = 'awaits_target' limit $1) p
            ) as "awaits_target!",
            (select count(*) from (select 1 from sync_parked where cause = 'poison' limit $1) p) as "poison!"
        "#,
        COUNTED_EVENTS,
        since,
    )
    .fetch_one(conn)
    .await?;
    let age = Duration::try_from_secs_f64(row.age).unwrap_or_default();
    Ok(InboxGauges { age, awaits_target: row.awaits_target, poison: row.poison })
}
