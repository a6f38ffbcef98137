//! A snapshot held open elsewhere: a long report, a backup, a forgotten psql. What is done meanwhile stays in the index of
//! due lanes, and a claim walks over it, but for its bookmark.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use shared::{
    ids::{EventId, RoomId, WorkerId},
    outbox::{self, Attempt, Claimed, LaneClass, OperationResult, Outcome, Settlement},
};
use sqlx::{Connection as _, PgConnection, PgPool};
use time::OffsetDateTime;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    chat::{Chat, Mix},
    claim::{locking_arguments, request},
    database::Database,
    figures::{Figure, Table, number, rate},
    statements::{self, LOCKING},
};

/// Each is written to every few seconds. In fewer, each conversation's own row gathers so many dead versions while the
/// snapshot is held that the load cannot be kept up, which says nothing about claims.
const CONVERSATIONS: usize = 5_000;

/// Connections that write.
const WRITERS: usize = 8;

/// Lanes of a claim: the worker's slots.
const SLOTS: usize = 128;

/// The worker's own: a claim scans from the oldest entry so often, and starts so far below what it found.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(1);
/// See [`FULL_SCAN_EVERY`].
const BOOKMARK_SLACK: Duration = Duration::from_secs(1);

/// Samples of each point in time.
const SAMPLES: u32 = 5;

/// At most this part of the pages that a claim without a bookmark reads.
const GOAL_HELD: f64 = 0.1;

/// Less than twice of what is normal, a while after the release.
const GOAL_RELEASED: f64 = 2.0;

/// What the load and the samples share.
#[derive(Debug, Default)]
struct Shared {
    bookmark: Mutex<Option<OffsetDateTime>>,
    written: AtomicU64,
    delivered: AtomicU64,
}

/// What a claim reads at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    with: f64,
    without: f64,
    ms_with: f64,
    ms_without: f64,
}

pub(crate) async fn measure(quick: bool) -> Vec<Figure> {
    let seconds = |full: u64, small: u64| Duration::from_secs(if quick { small } else { full });
    let (before, long, after) = (seconds(10, 1), seconds(60, 4), seconds(10, 1));
    let every = long / 6;
    let a_second = if quick { 300 } else { 1_000 };

    let database = Database::create(WRITERS as u32 + 8).await;
    let chat = Chat::create(&database.pool, CONVERSATIONS).await;
    database.settle_down().await;
    let shared = Arc::new(Shared::default());
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let load = write(chat.clone(), database.pool.clone(), Arc::clone(&shared), writer, a_second / WRITERS as u32);
        tasks.spawn(stop.clone().run_until_cancelled_owned(load));
    }
    tasks.spawn(stop.clone().run_until_cancelled_owned(deliver(database.pool.clone(), Arc::clone(&shared))));

    let mut table = Table::new(
        &format!(
            "A snapshot held for {} s, {} operations a second asked for",
            long.as_secs(),
            number(f64::from(a_second))
        ),
        &[
            "when",
            "pages with bookmark",
            "without",
            "ratio",
            "ms with",
            "ms without",
            "written",
            "delivered",
            "index pages",
        ],
    );
    let mut sampler = Sampler::start(&database, Arc::clone(&shared)).await;
    sleep(before).await;
    let normal = sampler.point("before", &mut table).await;
    let mut holder = database.connect().await;
    let snapshot = hold_snapshot(&mut holder).await;
    let began = tokio::time::Instant::now();
    let mut held = Sample::default();
    for n in 1..=6 {
        // The last point just before the release.
        sleep_until(began + every * n - if n == 6 { Duration::from_secs(2) } else { Duration::ZERO }).await;
        held = sampler.point(&format!("held for {} s", began.elapsed().as_secs()), &mut table).await;
    }
    snapshot.rollback().await.unwrap();
    sampler.point("just released", &mut table).await;
    sleep(after).await;
    let released = sampler.point(&format!("{} s after", after.as_secs()), &mut table).await;
    table.print();

    stop.cancel();
    tasks.join_all().await;
    sampler.conn.close().await.unwrap();
    database.remove().await;
    vec![
        Figure::new(
            "pages of a claim with a bookmark, at the end of a held snapshot",
            number(held.with),
            format!("{} without bookmark", number(held.without)),
            held.with / held.without,
        )
        .at_most(GOAL_HELD),
        Figure::new(
            format!("pages of a claim, {} s after its release", after.as_secs()),
            number(released.with),
            format!("{} before", number(normal.with)),
            released.with / normal.with,
        )
        .at_most(GOAL_RELEASED),
    ]
}

async fn hold_snapshot(conn: &mut PgConnection) -> sqlx::Transaction<'_, sqlx::Postgres> {
    let mut tx = conn.begin_with("begin isolation level repeatable read").await.unwrap();
    sqlx::query("select count(*) from lanes").execute(&mut *tx).await.unwrap();
    tx
}

/// Writes so many messages a second, each in a transaction of its own.
async fn write(chat: Chat, pool: PgPool, shared: Arc<Shared>, writer: usize, a_second: u32) {
    let mut conn = pool.acquire().await.unwrap();
    let mut tick = interval(Duration::from_secs(1) / a_second);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for n in 0.. {
        tick.tick().await;
        chat.write(&mut conn, chat.pick(writer + n * WRITERS, Mix::Even)).await;
        shared.written.fetch_add(1, Ordering::Relaxed);
    }
}

/// Claims and settles as the worker does, with a homeserver that takes no time.
async fn deliver(pool: PgPool, shared: Arc<Shared>) {
    let worker_id = WorkerId::generate();
    let mut scanned: Option<Instant> = None;
    loop {
        if scanned.is_none_or(|at| at.elapsed() >= FULL_SCAN_EVERY) {
            let mut conn = pool.acquire().await.unwrap();
            let (oldest, now) = outbox::oldest_due(&mut conn, LaneClass::Chat).await.unwrap();
            drop(conn);
            *shared.bookmark.lock().unwrap() = Some(oldest.unwrap_or(now).min(now) - BOOKMARK_SLACK);
            scanned = Some(Instant::now());
        }
        let mut request = request(SLOTS, *shared.bookmark.lock().unwrap());
        request.worker_id = worker_id;
        let mut tx = pool.begin().await.unwrap();
        let claim = outbox::claim(&mut tx, &request).await.unwrap();
        tx.commit().await.unwrap();
        let mut settlements: Vec<_> = claim.batches.into_iter().map(delivered).collect();
        while !settlements.is_empty() {
            let mut tx = pool.begin().await.unwrap();
            let settled = outbox::settle(&mut tx, worker_id, &settlements).await.unwrap();
            tx.commit().await.unwrap();
            shared.delivered.fetch_add(settled.finished, Ordering::Relaxed);
            let mut n = 0;
            settlements.retain(|_| {
                n += 1;
                settled.deferred.contains(&(n - 1))
            });
        }
        sleep(Duration::from_millis(5)).await;
    }
}

fn delivered(claimed: Claimed) -> Settlement {
    let results = claimed.operations.into_iter().map(|operation| OperationResult {
        outcome: Outcome::Delivered {
            event_id: EventId::from(format!("${}", operation.outbox_id)),
            room_id: RoomId::from(format!("!{}", claimed.claim.conversation_id)),
        },
        operation,
        attempt: Some(Attempt::default()),
        found: Vec::new(),
        anew: false,
    });
    Settlement { claim: claimed.claim, results: results.collect() }
}

/// Looks at what a claim would read, on a connection of its own.
#[derive(Debug)]
struct Sampler {
    conn: PgConnection,
    shared: Arc<Shared>,
    counted: (Instant, u64, u64),
}

impl Sampler {
    async fn start(database: &Database, shared: Arc<Shared>) -> Self {
        let mut conn = database.connect().await;
        let mut tx = conn.begin().await.unwrap();
        outbox::claim(&mut tx, &request(1, None)).await.unwrap();
        tx.rollback().await.unwrap();
        Self { conn, shared, counted: (Instant::now(), 0, 0) }
    }

    /// The mean of a few samples, spread over the time between two full scans.
    async fn point(&mut self, when: &str, table: &mut Table) -> Sample {
        let mut mean = Sample::default();
        for _ in 0..SAMPLES {
            let bookmark = *self.shared.bookmark.lock().unwrap();
            let (with, ms_with) = self.sample(bookmark).await;
            let (without, ms_without) = self.sample(None).await;
            mean.with += with / f64::from(SAMPLES);
            mean.without += without / f64::from(SAMPLES);
            mean.ms_with += ms_with / f64::from(SAMPLES);
            mean.ms_without += ms_without / f64::from(SAMPLES);
            sleep(FULL_SCAN_EVERY / SAMPLES).await;
        }
        let index_pages: i64 = sqlx::query_scalar("select pg_relation_size('lanes_due_idx') / 8192")
            .fetch_one(&mut self.conn)
            .await
            .unwrap();
        let written = self.shared.written.load(Ordering::Relaxed);
        let delivered = self.shared.delivered.load(Ordering::Relaxed);
        let (since, written_before, delivered_before) =
            std::mem::replace(&mut self.counted, (Instant::now(), written, delivered));
        let a_second = |now: u64, before: u64| rate((now - before) as f64 / since.elapsed().as_secs_f64());
        table.row(vec![
            when.to_owned(),
            number(mean.with),
            number(mean.without),
            format!("{:.2}", mean.with / mean.without),
            format!("{:.2}", mean.ms_with),
            format!("{:.2}", mean.ms_without),
            a_second(written, written_before),
            a_second(delivered, delivered_before),
            number(index_pages as f64),
        ]);
        mean
    }

    /// Pages and milliseconds of the locking statement. It locks and lets go: nothing is claimed.
    async fn sample(&mut self, bookmark: Option<OffsetDateTime>) -> (f64, f64) {
        let mut tx = self.conn.begin().await.unwrap();
        let explained = statements::explain(&mut tx, LOCKING, &locking_arguments(SLOTS, bookmark)).await;
        tx.rollback().await.unwrap();
        (explained.pages, explained.ms)
    }
}
