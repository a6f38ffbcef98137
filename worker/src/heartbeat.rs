//! Every few seconds the worker tells of itself: who it is, how the homeserver is with it, how much it does.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::system::uname;
use shared::{
    ids::WorkerId,
    metric,
    workers::{self, TELL_EVERY_SECONDS, WorkerSeen},
};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval};

use crate::{breaker::Breaker, coordinator::Coordinator};

/// How far back the rate of deliveries looks.
const MINUTE: Duration = Duration::from_mins(1);

/// How often silent workers are forgotten: once in so many rounds, which is an hour.
const FORGET_EVERY: u64 = 3600 / TELL_EVERY_SECONDS;

/// What a process counts of its work.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    delivered: AtomicU64,
    failed: AtomicU64,
    leads_sync: AtomicBool,
}

impl Tally {
    /// Takes note of what a settle wrote back.
    pub(crate) fn settled(&self, delivered: u64, failed: u64) {
        self.delivered.fetch_add(delivered, Ordering::Relaxed);
        self.failed.fetch_add(failed, Ordering::Relaxed);
    }

    /// Takes note of whether this process reads what happens on Matrix.
    pub(crate) fn leads(&self, leads: bool) {
        self.leads_sync.store(leads, Ordering::Relaxed);
    }
}

/// What a worker that delivers is made of, as far as it tells of it.
#[derive(Debug, Clone)]
pub(crate) struct Delivering {
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) coordinator: Arc<Coordinator>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) slots: usize,
}

/// Runs for ever; a failure is logged and the next round tries again. Without `delivering` Matrix is switched off.
pub(crate) async fn run(pool: PgPool, worker_id: WorkerId, delivering: Option<Delivering>) {
    let host = uname().nodename().to_string_lossy().into_owned();
    let mut lately = Lately::default();
    let mut tick = interval(Duration::from_secs(TELL_EVERY_SECONDS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0_u64;
    loop {
        tick.tick().await;
        let worker = seen(worker_id, &host, delivering.as_ref(), &mut lately);
        if let Err(error) = tell(&pool, &worker, round.is_multiple_of(FORGET_EVERY)).await {
            tracing::debug!(%error, "not told that this worker is alive; trying again");
            metric::DATABASE_ERRORS.with(["heartbeat"]).increment(1);
        }
        round = round.wrapping_add(1);
    }
}

async fn tell(pool: &PgPool, worker: &WorkerSeen, forget: bool) -> Result<(), sqlx::Error> {
    let mut conn = pool.acquire().await?;
    workers::tell(&mut conn, worker).await?;
    if forget {
        workers::forget(&mut conn).await?;
    }
    Ok(())
}

/// Says that this worker has ended. If it cannot, its row is no longer fresh soon.
pub(crate) async fn leave(pool: &PgPool, worker_id: WorkerId) {
    let left = async {
        let mut conn = pool.acquire().await?;
        workers::leave(&mut conn, worker_id).await
    };
    if let Err(error) = left.await {
        tracing::debug!(%error, "not told that this worker ends");
    }
}

fn seen(worker_id: WorkerId, host: &str, delivering: Option<&Delivering>, lately: &mut Lately) -> WorkerSeen {
    let mut seen = WorkerSeen {
        worker_id,
        host: host.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        // The database says when.
        started_at: OffsetDateTime::UNIX_EPOCH,
        seen_at: OffsetDateTime::UNIX_EPOCH,
        circuit: "disabled".to_owned(),
        token_accepted: true,
        sync_leader: false,
        slots: 0,
        busy: 0,
        delivered: 0,
        failed: 0,
        delivered_per_minute: 0.0,
    };
    if let Some(Delivering { breaker, coordinator, tally, slots }) = delivering {
        let (circuit, token_accepted) = breaker.told();
        let delivered = tally.delivered.load(Ordering::Relaxed);
        circuit.clone_into(&mut seen.circuit);
        seen.token_accepted = token_accepted;
        seen.sync_leader = tally.leads_sync.load(Ordering::Relaxed);
        seen.slots = i32::try_from(*slots).unwrap_or(i32::MAX);
        seen.busy = i32::try_from(coordinator.busy()).unwrap_or(i32::MAX);
        seen.delivered = i64::try_from(delivered).unwrap_or(i64::MAX);
        seen.failed = i64::try_from(tally.failed.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        seen.delivered_per_minute = f64::from(lately.since_a_minute(delivered, Instant::now()));
    }
    seen
}

/// How much was delivered by when, for the last minute.
#[derive(Debug, Default)]
struct Lately {
    counts: VecDeque<(Instant, u64)>,
}

impl Lately {
    /// How much was delivered in the last minute, or since the start.
    fn since_a_minute(&mut self, delivered: u64, now: Instant) -> u32 {
        self.counts.push_back((now, delivered));
        while self.counts.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= MINUTE) {
            self.counts.pop_front();
        }
        let before = self.counts.front().map_or(0, |(_, count)| *count);
        u32::try_from(delivered.saturating_sub(before)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delivered_counts_for_a_minute() {
        let (mut lately, start) = (Lately::default(), Instant::now());
        let mut at =
            |seconds: u64, delivered: u64| lately.since_a_minute(delivered, start + Duration::from_secs(seconds));
        assert_eq!(at(0, 0), 0);
        assert_eq!(at(5, 100), 100);
        assert_eq!(at(55, 150), 150);
        assert_eq!(at(60, 150), 150);
        assert_eq!(at(65, 150), 50);
        assert_eq!(at(200, 150), 0);
    }
}
