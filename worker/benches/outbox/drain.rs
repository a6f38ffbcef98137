//! Drain: what one worker delivers in a second of what waits, beside what the homeserver could take.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    chat::{Chat, Mix},
    database::Database,
    figures::{Figure, Table, number, rate},
    home::Home,
    statements::{LOCKING, READING, Statements},
};

/// The worker's default: lanes that it sends for at once.
const SLOTS: usize = 128;

const CONVERSATIONS: usize = 200;

/// One drain.
#[derive(Debug)]
struct Case {
    name: &'static str,
    operations: usize,
    mix: Mix,
    latency: Duration,
}

/// What came of it.
#[derive(Debug)]
struct Drained {
    rate: f64,
    limit: f64,
    statements: Option<f64>,
    rows_a_claim: Option<f64>,
    lanes_a_claim: Option<f64>,
    empty_claims: Option<f64>,
}

pub(crate) async fn measure(quick: bool) -> Vec<Figure> {
    let at_once = Duration::ZERO;
    let slow = Duration::from_millis(5);
    let size = |full: usize, small: usize| if quick { small } else { full };
    let cases = [
        Case { name: "even, answers at once", operations: size(20_000, 2_000), mix: Mix::Even, latency: at_once },
        Case { name: "even, answers in 5 ms", operations: size(20_000, 2_000), mix: Mix::Even, latency: slow },
        Case {
            name: "half in one conversation, at once",
            operations: size(20_000, 2_000),
            mix: Mix::HalfHot,
            latency: at_once,
        },
        // The hot lane goes one by one, at 5 ms each.
        Case { name: "half in one conversation, 5 ms", operations: size(5_000, 400), mix: Mix::HalfHot, latency: slow },
    ];
    let mut table = Table::new(
        "Drain: one worker, 128 slots, 200 conversations",
        &[
            "case",
            "operations",
            "drained",
            "homeserver alone",
            "ratio",
            "statements an operation",
            "rows a claim",
            "lanes a claim",
            "empty claims",
        ],
    );
    let mut figures = Vec::new();
    for case in cases {
        let drained = drain(&case).await;
        let ratio = drained.rate / drained.limit;
        let optional = |n: Option<f64>, digits: usize| n.map_or("–".to_owned(), |n| format!("{n:.digits$}"));
        table.row(vec![
            case.name.to_owned(),
            number(case.operations as f64),
            rate(drained.rate),
            rate(drained.limit),
            format!("{ratio:.2}"),
            optional(drained.statements, 3),
            optional(drained.rows_a_claim, 0),
            optional(drained.lanes_a_claim, 0),
            optional(drained.empty_claims, 2),
        ]);
        figures.push(Figure::new(
            format!("drain, {}", case.name),
            rate(drained.rate),
            format!("{} homeserver alone", rate(drained.limit)),
            ratio,
        ));
    }
    table.print();
    figures
}

async fn drain(case: &Case) -> Drained {
    let home = Home::start().await;
    let database = Database::create(8).await;
    let chat = Chat::create(&database.pool, CONVERSATIONS).await;
    home.open_rooms(&database.pool, &chat.conversations).await;
    chat.fill(&database.pool, case.operations, case.mix).await;
    database.settle_down().await;
    home.fake.latency(case.latency);

    let before = ceiling(&home, case).await;
    let sent_before = home.fake.sends();
    let counts = Statements::count(&database.pool).await;
    let started = Instant::now();
    let worker = home.worker(&database.url).await;
    let operations = case.operations as u64;
    while home.fake.sends() - sent_before < operations {
        sleep(Duration::from_millis(5)).await;
    }
    while sqlx::query_scalar::<_, bool>("select exists (select 1 from lanes where open > 0)")
        .fetch_one(&database.pool)
        .await
        .unwrap()
    {
        sleep(Duration::from_millis(5)).await;
    }
    let ended = Instant::now();
    let began = home.arrivals().into_values().filter(|arrived| *arrived >= started).min().unwrap();
    let rate = case.operations as f64 / (ended - began).as_secs_f64();
    let (mut statements, mut rows_a_claim, mut lanes_a_claim, mut empty_claims) = (None, None, None, None);
    if let Some(counts) = counts {
        statements = Some(counts.like("%").await.calls / case.operations as f64);
        let (locked, read) = (counts.like(LOCKING).await, counts.like(READING).await);
        // A claim that finds no lane ends there.
        rows_a_claim = Some(read.rows / read.calls);
        lanes_a_claim = Some(locked.rows / read.calls);
        empty_claims = Some((locked.calls - read.calls) / locked.calls);
    }
    drop(worker);

    // Whatever else the machine does meanwhile: the better of before and after is nearer to the limit.
    let limit = before.max(ceiling(&home, case).await);
    database.remove().await;
    Drained { rate, limit, statements, rows_a_claim, lanes_a_claim, empty_claims }
}

/// What the homeserver would take in a second. No lane can go faster than one request after the other, nor all of them
/// faster than all slots at once.
async fn ceiling(home: &Home, case: &Case) -> f64 {
    let sends = case.operations.min(5_000);
    let all = home.ceiling(SLOTS, sends).await;
    if case.mix == Mix::Even {
        return all;
    }
    let one = home.ceiling(1, sends / 10).await;
    let operations = case.operations as f64;
    operations / (operations / all).max(operations / 2.0 / one)
}
