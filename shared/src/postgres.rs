//! What the database server says of itself, for those on call: whether something keeps it from clearing up.
//!
//! All of it may be read by anybody. Of other users' sessions PostgreSQL then says what they hold, and not since when: what
//! has not moved since the last look is as old as that, at least.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

/// The tables that fill and empty with every operation.
pub const TABLES: [&str; 3] = ["lanes", "messages", "outbox"];

/// A table, by the server's own estimates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHealth {
    /// Its name.
    pub table: String,
    /// Rows.
    pub live: i64,
    /// Rows that are gone and still take their place.
    pub dead: i64,
    /// What it takes on disk, with its indexes.
    pub bytes: i64,
}

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// What holds the horizon: rows that went after it cannot be cleared away.
    pub horizon: Option<Holder>,
    /// Its busiest tables.
    pub tables: Vec<TableHealth>,
    /// How full the queue of NOTIFY is, 0 to 1.
    pub notification_queue: f64,
    /// Connections, of anybody, to any database.
    pub connections: i64,
    /// How many it allows.
    pub connections_max: i64,
}

/// Who holds the horizon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The oldest transaction that somebody may still need to see as it was.
    pub xid: String,
    /// For how long, where that may be known: by the server's own clock, as its transactions are.
    pub held_for: Option<Duration>,
}

/// Reads it. None of it is a count.
pub async fn health(conn: &mut PgConnection) -> Result<Health, sqlx::Error> {
    // Vacuum's own snapshot holds nothing back, nor does what other databases do.
    let holder = sqlx::query!(
        r#"
        select xid::text as "xid!", extract(epoch from outbox_now() - since)::float8 as held_for from (
            select unnest(array[a.backend_xmin, a.backend_xid]) as xid, a.xact_start as since
            from pg_stat_activity a
            where a.pid <> pg_backend_pid()
                and (a.datid is null or a.datname = current_database())
                and not exists (select 1 from pg_stat_progress_vacuum v where v.pid = a.pid)
            union all
            select xmin, null from pg_replication_slots
            union all
            select transaction, prepared from pg_prepared_xacts where database = current_database()
        ) held
        where xid is not null
        order by age(xid) desc, since
        limit 1
        "#,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let tables = sqlx::query_as!(
        TableHealth,
        r#"
        select t.name as "table!", coalesce(pg_stat_get_live_tuples(c.oid), 0) as "live!",
            coalesce(pg_stat_get_dead_tuples(c.oid), 0) as "dead!", coalesce(pg_total_relation_size(c.oid), 0) as "bytes!"
        from unnest($1::text[]) as t (name)
        cross join lateral (select to_regclass(t.name)::oid as oid) c
        "#,
        &TABLES as &[&str],
    )
    .fetch_all(&mut *conn)
    .await?;
    let server = sqlx::query!(
        r#"
        select pg_notification_queue_usage() as "queue!",
            (select count(*) from pg_stat_activity where datid is not null) as "connections!",
            current_setting('max_connections')::bigint as "connections_max!"
        "#,
    )
    .fetch_one(conn)
    .await?;
    let held_for = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    Ok(Health {
        horizon: holder.map(|holder| Holder { xid: holder.xid, held_for: holder.held_for.map(held_for) }),
        tables,
        notification_queue: server.queue,
        connections: server.connections,
        connections_max: server.connections_max,
    })
}

/// For how long the horizon has stood, as far as it was watched.
#[derive(Debug, Default)]
pub struct Horizon {
    seen: Option<(String, Instant)>,
}

impl Horizon {
    /// Its age as of this look.
    pub fn age(&mut self, holder: Option<&Holder>) -> Duration {
        let Some(holder) = holder else {
            self.seen = None;
            return Duration::ZERO;
        };
        let since = match &self.seen {
            Some((xid, since)) if *xid == holder.xid => *since,
            _ => Instant::now(),
        };
        self.seen = Some((holder.xid.clone(), since));
        holder.held_for.unwrap_or_else(|| since.elapsed())
    }
}
