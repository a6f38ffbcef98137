//! The overview: what waits, what is stuck, who works. Costs little however much there is.

use serde::Serialize;
use sqlx::PgConnection;

use super::{
    COUNTED_LANES, COUNTED_LETTERS, Counted, DeadGroup, LaneClass, PauseOfClass, dead_groups, gauges::gauges, pauses,
};

/// How many groups of dead letters an overview has: the largest.
const SHOWN_GROUPS: i64 = 10;

/// What waits in the lanes of a class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassStats {
    /// The class.
    #[serde(rename = "lane_class")]
    pub class: LaneClass,
    /// Live operations, in up to [`COUNTED_LANES`] lanes that are due and as many that are held.
    pub depth: i64,
    /// How many seconds the oldest of them has waited; zero when there is none.
    pub oldest_age_seconds: f64,
    /// Whether the class itself is paused.
    pub paused: bool,
}

/// The overview.
#[derive(Debug, Clone, Serialize)]
pub struct Stats {
    /// Class by class.
    pub classes: Vec<ClassStats>,
    /// Dead letters.
    pub dead_letters: Counted,
    /// Lanes that wait for somebody.
    pub held_lanes: Counted,
    /// Lanes that are paused until a time.
    pub paused_lanes: Counted,
    /// The pauses of everything and of classes.
    pub pauses: Vec<PauseOfClass>,
    /// The largest groups of dead letters.
    pub groups: Vec<DeadGroup>,
    /// How many tasks run.
    pub tasks_running: u64,
}

/// Reads the overview. In a transaction of its own, which it gives a time limit.
pub async fn stats(conn: &mut PgConnection) -> Result<Stats, sqlx::Error> {
    let gauges = gauges(&mut *conn).await?;
    let tasks = sqlx::query_scalar!(r#"select count(*) as "running!" from operator_tasks where due_at is not null"#,)
        .fetch_one(&mut *conn)
        .await?;
    // The gauges end at their bounds, and there they mean: or more.
    let counted =
        |bound: i64, counted: i64| Counted { count: u64::try_from(counted).unwrap_or(0), more: counted >= bound };
    Ok(Stats {
        classes: gauges
            .classes
            .iter()
            .map(|class| ClassStats {
                class: class.class,
                depth: class.depth,
                oldest_age_seconds: class.oldest_age.as_secs_f64(),
                paused: class.paused,
            })
            .collect(),
        dead_letters: counted(COUNTED_LETTERS, gauges.dead_letters),
        held_lanes: counted(COUNTED_LANES, gauges.held_lanes),
        paused_lanes: counted(COUNTED_LANES, gauges.paused_lanes),
        pauses: pauses(&mut *conn).await?,
        groups: dead_groups(conn, SHOWN_GROUPS).await?,
        tasks_running: u64::try_from(tasks).unwrap_or(0),
    })
}
