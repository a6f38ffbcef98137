//! The connection pool, the migrations and what a database error means.

use std::{str::FromStr as _, time::Duration};

use secrecy::ExposeSecret as _;
use sqlx::{
    PgConnection, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{config::DatabaseConfig, metric};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// How long a request waits for a free connection before it is told to come back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a process' connections are bounded by, so that one stuck transaction never stalls everyone.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a statement may wait for a lock.
    pub lock_timeout: Duration,
    /// How long a transaction may idle before the server ends it.
    pub idle_in_transaction: Duration,
    /// How long a statement may run.
    pub statement_timeout: Duration,
}

impl Limits {
    /// For requests of clients: they are answered in seconds or told to come back.
    pub const REQUESTS: Self = Self {
        lock_timeout: Duration::from_secs(5),
        idle_in_transaction: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(10),
    };
    /// For workers, whose statements touch many lanes at once.
    pub const WORKERS: Self = Self {
        lock_timeout: Duration::from_secs(5),
        idle_in_transaction: Duration::from_secs(10),
        statement_timeout: Duration::from_secs(30),
    };
}

/// Reports how many connections a pool has.
pub fn report_connections(pool: &PgPool) {
    let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
    metric::DATABASE_CONNECTIONS.with(["idle"]).set(f64::from(idle));
    metric::DATABASE_CONNECTIONS.with(["used"]).set(f64::from(pool.size().saturating_sub(idle)));
}

/// How every connection of this product is set up.
///
/// A plan is kept for as long as its connection lives, or until the statistics are renewed. One that was made while the
/// outbox was empty would read the whole of it, lane by lane, when ten thousand operations wait: so none ever reads a
/// whole table where an index leads to the rows. What cannot be avoided then looks dear, which must not start the
/// compiler of expressions.
pub fn connect_options(url: &str, application: &str, limits: Limits) -> Result<PgConnectOptions, sqlx::Error> {
    let ms = |duration: Duration| duration.as_millis().to_string();
    Ok(PgConnectOptions::from_str(url)?.application_name(application).options([
        ("lock_timeout", ms(limits.lock_timeout)),
        ("idle_in_transaction_session_timeout", ms(limits.idle_in_transaction)),
        ("statement_timeout", ms(limits.statement_timeout)),
        ("tcp_user_timeout", "10000".to_owned()),
        ("enable_seqscan", "off".to_owned()),
        ("jit", "off".to_owned()),
    ]))
}

/// Makes a pool. It connects when first used, so a process starts while its database is away.
pub fn pool(config: &DatabaseConfig, application: &str, limits: Limits) -> Result<PgPool, sqlx::Error> {
    let options = connect_options(config.url.expose_secret(), application, limits)?;
    // A ping before each use would cost a round trip each time; a broken connection shows at the first statement, and
    // every caller here can repeat its transaction.
    Ok(PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options))
}

/// Brings the schema up to this release. Safe to run from several places at once.
pub async fn migrate(pool: &PgPool) -> Result<(), sqlx::migrate::MigrateError> {
    MIGRATIONS.run(pool).await
}

/// A number that changes with every change of the migrations.
pub fn schema_fingerprint() -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    for migration in MIGRATIONS.iter() {
        (migration.version, &migration.checksum).hash(&mut hasher);
    }
    hasher.finish()
}

/// True when the database did not answer or could not, so that the same call may succeed later.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // 08 connection, 53 resources, 57 operator intervention (shutdown, timeout), 55P03 lock not available,
        // 40 serialization and deadlock, 25P03 idle in transaction.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) || code == "55P03" || code == "25P03"
        }),
        _ => false,
    }
}

/// Adds the partitions of the attempts' history for today and the days to come.
///
/// A partition cannot be added while the default one holds rows of its day; those days stay where they are.
pub async fn add_attempt_partitions(pool: &PgPool) -> Result<(), sqlx::Error> {
    const DAYS_AHEAD: i64 = 7;
    let now = sqlx::query_scalar!(r#"select outbox_now() as "now!""#).fetch_one(pool).await?.date();
    for ahead in 0..=DAYS_AHEAD {
        let from = now + time::Duration::days(ahead);
        let name = format!("attempts_{:04}{:02}{:02}", from.year(), u8::from(from.month()), from.day());
        let present =
            sqlx::query_scalar!(r#"select to_regclass($1) is not null as "present!""#, name).fetch_one(pool).await?;
        if present {
            continue;
        }
        // DDL takes no parameters; the name and both dates are made of numbers only.
        let until = from + time::Duration::days(1);
        let statement = format!(
            "create table if not exists {name} partition of attempts for values from ('{from} 00:00:00+00') to \
             ('{until} 00:00:00+00')"
        );
        match sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(pool).await {
            Ok(_) => {}
            Err(error) if is_unavailable(&error) => return Err(error),
            Err(error) => tracing::info!(%error, partition = name, "partition not added"),
        }
    }
    Ok(())
}

/// What database this is, in a line for people.
pub async fn describe(pool: &PgPool) -> Result<String, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select current_setting('server_version') as "version!", to_regclass('lanes') is not null as "migrated!",
            (select count(*) from pg_trigger where not tgisinternal) as "triggers!"
        "#
    )
    .fetch_one(pool)
    .await?;
    if !row.migrated {
        return Err(sqlx::Error::Configuration("the schema is missing: run `outboxctl migrate`".into()));
    }
    Ok(format!("PostgreSQL {}, schema present", row.version))
}

/// The time by the database's clock, which leases, due times and pauses go by.
pub async fn now(conn: &mut PgConnection) -> Result<time::OffsetDateTime, sqlx::Error> {
    sqlx::query_scalar!(r#"select outbox_now() as "now!""#).fetch_one(conn).await
}

/// For the rest of a transaction: statements are planned for the parameters that they get. One plan for all of them has
/// to read everything where a filter may or may not be given.
pub(crate) async fn plan_as_asked(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("select set_config('plan_cache_mode', 'force_custom_plan', true)").fetch_one(conn).await?;
    Ok(())
}

/// This machine's clock: for the expiry of tokens and for comparison, never for leases or due times.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
fn machine_time() -> time::OffsetDateTime {
    time::OffsetDateTime::from(std::time::SystemTime::now())
}

/// How far this machine's clock is from the database's, either way, the round trip included.
pub async fn clock_offset(pool: &PgPool) -> Result<Duration, sqlx::Error> {
    let theirs = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(pool).await?;
    Ok((machine_time() - theirs).unsigned_abs())
}

/// Seconds since 1970 by this machine's clock, for the expiry of tokens.
pub fn unix_time() -> i64 {
    machine_time().unix_timestamp()
}
