//! The claim: how many pages it reads with ten thousand and with a million rows of each kind.

use std::time::Duration;

use shared::{
    ids::WorkerId,
    outbox::{self, ClaimRequest, LaneClass},
};
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;

use crate::{
    database::Database,
    figures::{Figure, Table, number},
    load::{self, LANES, OPERATIONS, Spread},
    statements::{self, Explained, LOCKING, READING, Statements},
};

/// The goal: a claim reads at most so many times the pages when there is a hundred times as much.
const GOAL: f64 = 1.5;

/// After this many executions Postgres has decided whether a statement keeps one plan.
const UNTIL_PLANNED: usize = 6;

/// What a claim of 32 lanes × 16 operations reads.
#[derive(Debug, Clone, Copy)]
struct Pages {
    locking: Explained,
    reading: Explained,
    whole: Option<f64>,
}

impl Pages {
    fn sum(&self) -> f64 {
        self.locking.pages + self.reading.pages
    }
}

/// A claim as the worker asks for it.
pub(crate) fn request(lanes: usize, bookmark: Option<OffsetDateTime>) -> ClaimRequest {
    ClaimRequest {
        worker_id: WorkerId::generate(),
        sender: "@bench:nova.test".to_owned(),
        device: "BENCH".to_owned(),
        class: LaneClass::Chat,
        lanes: u16::try_from(lanes).unwrap_or(u16::MAX),
        operations: OPERATIONS as u16,
        lease: Duration::from_secs(30),
        dedupe_window: Duration::from_hours(20),
        bookmark,
    }
}

/// The arguments of the locking statement.
pub(crate) fn locking_arguments(lanes: usize, bookmark: Option<OffsetDateTime>) -> String {
    let bookmark = bookmark.map_or("null".to_owned(), |at| format!("'{at}'"));
    format!("'{}', {bookmark}, {lanes}", LaneClass::Chat.as_str())
}

/// Claims again and again until the statements have their plans, then asks for what they read. Claims nothing.
async fn pages(database: &Database) -> Pages {
    database.settle_down().await;
    let mut conn = database.connect().await;
    let request = request(LANES, None);
    let (mut conversations, mut lanes) = (Vec::new(), Vec::new());
    for _ in 0..UNTIL_PLANNED {
        let mut tx = conn.begin().await.unwrap();
        let claim = outbox::claim(&mut tx, &request).await.unwrap();
        tx.rollback().await.unwrap();
        conversations = claim.batches.iter().map(|batch| batch.claim.conversation_id.to_string()).collect();
        lanes = claim.batches.iter().map(|batch| batch.claim.lane_id.to_string()).collect();
    }
    let locking = {
        let mut tx = conn.begin().await.unwrap();
        let explained = statements::explain(&mut tx, LOCKING, &locking_arguments(LANES, None)).await;
        tx.rollback().await.unwrap();
        explained
    };
    let arguments =
        format!("'{{{}}}', '{{{}}}', {OPERATIONS}, outbox_now(), false", conversations.join(","), lanes.join(","));
    let reading = statements::explain(&mut conn, READING, &arguments).await;
    let whole = whole(database, &mut conn, &request).await;
    conn.close().await.unwrap();
    Pages { locking, reading, whole }
}

/// The pages of all statements of a claim, writes included.
async fn whole(database: &Database, conn: &mut PgConnection, request: &ClaimRequest) -> Option<f64> {
    let counts = Statements::count(&database.pool).await?;
    let mut tx = conn.begin().await.unwrap();
    outbox::claim(&mut tx, request).await.unwrap();
    tx.rollback().await.unwrap();
    Some(counts.like("%").await.pages)
}

pub(crate) async fn measure(quick: bool) -> Vec<Figure> {
    let (few, many, lanes) = if quick { (2_000, 20_000, 1_000) } else { (10_000, 1_000_000, 100_000) };
    let (a_few, a_lot) = (number(few as f64), number(many as f64));
    let mut table = Table::new(
        "Claim: pages read for 32 lanes × 16 operations",
        &["rows", "locks lanes", "reads operations", "sum", "ratio", "whole claim", "operations", "ms"],
    );
    let mut worst: f64 = 0.0;
    let (mut least, mut most) = (f64::MAX, f64::MIN);
    let mut line = |name: String, pages: Pages, beside: Option<Pages>| {
        let ratio = beside.map(|beside| pages.sum() / beside.sum());
        worst = worst.max(ratio.unwrap_or(0.0));
        least = least.min(pages.sum());
        most = most.max(pages.sum());
        table.row(vec![
            name,
            number(pages.locking.pages),
            number(pages.reading.pages),
            number(pages.sum()),
            ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            pages.whole.map_or("–".to_owned(), number),
            number(pages.reading.rows),
            format!("{:.1}", pages.locking.ms + pages.reading.ms),
        ]);
    };

    // All kinds on top of each other in one database, as in life.
    let database = Database::create(2).await;
    load::waiting(&database, few, Spread::Lanes(1_000)).await;
    let waiting = pages(&database).await;
    line(format!("{a_few} waiting, 1,000 lanes at most"), waiting, None);
    load::held(&database, few).await;
    line(format!("+ {a_few} held lanes"), pages(&database).await, Some(waiting));
    load::dead(&database, 0, few).await;
    let dead = pages(&database).await;
    line(format!("+ {a_few} dead"), dead, None);
    load::done(&database, 0, few).await;
    let done = pages(&database).await;
    line(format!("+ {a_few} done"), done, None);
    load::dead(&database, few, many).await;
    line(format!("+ {a_lot} dead"), pages(&database).await, Some(done));
    load::done(&database, few, many).await;
    line(format!("+ {a_lot} done"), pages(&database).await, Some(done));
    database.remove().await;

    for (rows, spread, name, beside) in [
        (many, Spread::Lanes(1_000), format!("{a_lot} waiting, 1,000 lanes"), Some(waiting)),
        (many, Spread::Lanes(lanes), format!("{a_lot} waiting, {} lanes", number(lanes as f64)), Some(waiting)),
    ] {
        line(name, alone(rows, spread).await, beside);
    }
    let hot = alone(few, Spread::Hot).await;
    line(format!("{a_few} waiting, one hot conversation"), hot, None);
    line(format!("{a_lot} waiting, one hot conversation"), alone(many, Spread::Hot).await, Some(hot));
    table.print();
    vec![
        Figure::new(
            format!("pages of a claim, {a_lot} rows beside {a_few}: worst of all kinds"),
            format!("{} at most", number(most)),
            format!("{} at least", number(least)),
            worst,
        )
        .at_most(GOAL),
    ]
}

/// In a database of its own.
async fn alone(rows: usize, spread: Spread) -> Pages {
    let database = Database::create(2).await;
    load::waiting(&database, rows, spread).await;
    let pages = pages(&database).await;
    database.remove().await;
    pages
}
