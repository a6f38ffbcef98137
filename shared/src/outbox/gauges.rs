//! What waits, for dashboards: figures that cost little however much there is, so each is counted up to a bound.

use std::time::Duration;

use sqlx::PgConnection;

use super::{COUNTED_LETTERS, LaneClass, pause::COUNTED_LANES};

/// How long the database may work on them. Under a snapshot that somebody holds open for long, the way to the oldest
/// operation leads over all that was done since.
const PATIENCE: &str = "2s";

/// What waits in the lanes of a class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassGauges {
    /// The class.
    pub class: LaneClass,
    /// Live operations, in up to [`COUNTED_LANES`] lanes that are due and as many that are held.
    pub depth: i64,
    /// How long the oldest of them has waited; zero when there is none.
    pub oldest_age: Duration,
    /// Whether the class itself is paused.
    pub paused: bool,
}

/// What waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Gauges {
    /// Class by class.
    pub classes: Vec<ClassGauges>,
    /// Dead letters, up to [`COUNTED_LETTERS`].
    pub dead_letters: i64,
    /// Lanes that are held, up to [`COUNTED_LANES`].
    pub held_lanes: i64,
    /// Lanes that are paused until a time, up to [`COUNTED_LANES`].
    pub paused_lanes: i64,
    /// Whether everything is paused.
    pub all_paused: bool,
    /// Conversations of which a lane is held, or waits for its next attempt; of up to [`COUNTED_LANES`] lanes of each sort.
    pub blocked_conversations: i64,
}

/// Bounds what the rest of a transaction may cost the database.
pub async fn limit_patience(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("select set_config('statement_timeout', $1, true)", PATIENCE).fetch_one(conn).await?;
    Ok(())
}

/// Reads the figures. In a transaction of its own, which it gives a time limit.
pub async fn gauges(conn: &mut PgConnection) -> Result<Gauges, sqlx::Error> {
    limit_patience(conn).await?;
    let row = sqlx::query!(
        r#"
        select
            (select count(*) from (select 1 from dead_letters limit $1) d) as "dead_letters!",
            (select count(*) from (select 1 from lanes where hold is not null limit $2) h) as "held_lanes!",
            (
                select count(*) from (select 1 from lanes where paused_until > outbox_now() limit $2) p
            ) as "paused_lanes!",
            array(
                select scope from pauses where paused_until is null or paused_until > outbox_now()
            ) as "paused!"
        "#,
        COUNTED_LETTERS,
        COUNTED_LANES,
    )
    .fetch_one(&mut *conn)
    .await?;
    let mut classes = Vec::new();
    for class in LaneClass::ALL {
        classes.push(ClassGauges {
            class,
            depth: depth(conn, class).await?,
            oldest_age: oldest_age(conn, class).await?,
            paused: row.paused.iter().any(|scope| scope == class.as_str()),
        });
    }
    let blocked_conversations = blocked(conn).await?;
    Ok(Gauges {
        classes,
        dead_letters: row.dead_letters,
        held_lanes: row.held_lanes,
        paused_lanes: row.paused_lanes,
        all_paused: row.paused.iter().any(|scope| scope == "all"),
        blocked_conversations,
    })
}

/// A lane that is due later and not paused waits after a failed attempt: nothing else puts one off for longer than a second
/// or two, in which candidates are gathered.
async fn blocked(conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select count(distinct conversation_id) as "blocked!" from (
            (select conversation_id, null::timestamptz as paused_until from lanes where hold is not null limit $1)
            union all
            (
                select conversation_id, paused_until from lanes
                where lane_class = 'call' and due_at > outbox_now()
                order by due_at
                limit $1
            )
            union all
            (
                select conversation_id, paused_until from lanes
                where lane_class = 'chat' and due_at > outbox_now()
                order by due_at
                limit $1
            )
        ) l
        where paused_until is null or paused_until <= outbox_now()
        "#,
        COUNTED_LANES,
    )
    .fetch_one(conn)
    .await
}

/// Operations that may have arrived longer ago than the homeserver is trusted to remember, up to [`COUNTED_LETTERS`].
pub async fn beyond_the_window(conn: &mut PgConnection, dedupe_window: Duration) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select count(*) as "beyond!" from (
            select 1 from outbox where maybe_sent_at < outbox_now() - make_interval(secs => $1) limit $2
        ) o
        "#,
        dedupe_window.as_secs_f64(),
        COUNTED_LETTERS,
    )
    .fetch_one(conn)
    .await
}

async fn depth(conn: &mut PgConnection, class: LaneClass) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select coalesce(sum(open), 0) as "depth!" from (
            (select open from lanes where lane_class = $1 and due_at is not null limit $2)
            union all
            (select open from lanes where lane_class = $1 and hold is not null limit $2)
        ) l
        "#,
        class.as_str(),
        COUNTED_LANES,
    )
    .fetch_one(conn)
    .await
}

/// Operations are found oldest first by their ids, which are UUIDs v7. A conversation's chat has nearly all of them, so
/// the first that is found will do; call lanes are few, and asked one by one.
async fn oldest_age(conn: &mut PgConnection, class: LaneClass) -> Result<Duration, sqlx::Error> {
    let seconds = match class {
        LaneClass::Chat => {
            sqlx::query_scalar!(
                r#"
                select extract(epoch from outbox_now() - enqueued_at)::float8 as "age!" from outbox
                where lane_id = conversation_id
                order by outbox_id
                limit 1
                "#,
            )
            .fetch_optional(conn)
            .await?
        }
        LaneClass::Call => {
            sqlx::query_scalar!(
                r#"
                select extract(epoch from outbox_now() - min(first.enqueued_at))::float8 as age
                from (
                    (select conversation_id, lane_id from lanes
                    where lane_class = 'call' and due_at is not null limit $1)
                    union all
                    (select conversation_id, lane_id from lanes
                    where lane_class = 'call' and hold is not null limit $1)
                ) l
                cross join lateral (
                    select o.enqueued_at from outbox o
                    where o.conversation_id = l.conversation_id and o.lane_id = l.lane_id
                    order by o.seq
                    limit 1
                ) first
                "#,
                COUNTED_LANES,
            )
            .fetch_one(conn)
            .await?
        }
    };
    Ok(Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default())
}
