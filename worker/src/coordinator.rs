//! The coordinator: one claim and one settle at a time for the whole process, slots, wake-ups, leases.
//!
//! ```text
//!   wake-up, poll, freed slots ──▶ claim ──▶ batches ──▶ apalis ──▶ deliver ──▶ finished ──▶ settle ──▶ freed slots
//!                                              │                                   ▲
//!                                              └── renew while it is under way ────┘
//! ```
//!
//! Three loops share one table of what is under way: the claimer, the settler and the renewer. A database that is away is
//! logged, counted and waited for in each of them, and never ends anything.
//!
//! To stop, the coordinator claims no more, lets what is under way finish its current operation, settles it, and closes
//! the channel of batches, which ends the apalis worker.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use shared::{
    config::DeliveryConfig,
    database,
    failpoint::{Point, reach},
    ids::WorkerId,
    metric,
    outbox::{
        self, Attempt, ClaimRequest, Claimed, ClaimedOperation, LaneClaim, LaneClass, OperationResult, Outcome,
        Settlement,
    },
    wake::Wake,
};
use sqlx::{Connection as _, PgConnection, PgPool, Postgres, pool::PoolConnection};
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    breaker::Breaker,
    heartbeat::Tally,
    verdict::{self, History},
};

/// After this many claims that found nothing new below it, or this long, a claim scans from the oldest entry again.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(1);

/// How far below the oldest entry found the next claims start: a transaction that waited for its conversation's lock
/// commits a due time that is already this old at most, before a full scan finds it.
const BOOKMARK_SLACK: Duration = Duration::from_secs(1);

/// How long the claimer lets more commits arrive before it looks, when little is under way.
const DEBOUNCE: Duration = Duration::from_millis(2);

/// What a claim hands out at most, however fast the homeserver answers.
const MAX_OPERATIONS: u16 = 16;

/// A batch is as many operations as the homeserver answers in about this long: fewer, and a delete still catches those
/// behind; more, and claims cost less.
const BATCH_TIME: Duration = Duration::from_millis(20);

/// How many finished batches one settle takes at most.
const MAX_SETTLEMENTS: usize = 256;

/// How long a round with the database may take. A link that died without a word would keep it for many minutes.
const DATABASE_PATIENCE: Duration = Duration::from_secs(10);

/// How long the loops wait for a database that is away.
const DATABASE_BACKOFF: Duration = Duration::from_millis(500);

/// How long the settler waits before it tries lanes again that others had locked.
const DEFERRED_PAUSE: Duration = Duration::from_millis(20);

/// How long a stop lets requests finish before it breaks them off: they then count as ambiguous, and are settled.
const FINISH_WITHIN: Duration = Duration::from_secs(7);

/// How long a stop then waits for the last settle, before what is left is left to its lease.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

/// Of the slots, the part that only calls, and the part that only chat may use.
const RESERVED_PART: usize = 8;

/// Bounds what is done on a connection. One that did not answer in time is closed instead of being used again.
async fn in_time<T>(
    conn: &mut PoolConnection<Postgres>,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    if let Ok(done) = timeout(DATABASE_PATIENCE, work(conn)).await {
        return done;
    }
    conn.close_on_drop();
    Err(sqlx::Error::PoolTimedOut)
}

/// Time that goes on while the machine sleeps: a deadline by any other clock would outlive its lease.
fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// What is under way, by lane.
#[derive(Debug, Default)]
struct Underway {
    lanes: Mutex<HashMap<LaneClaim, Lease>>,
}

#[derive(Debug, Clone)]
struct Lease {
    /// By [`boot_time`]: no request may still be under way then.
    ends: Arc<Mutex<Duration>>,
}

impl Underway {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<LaneClaim, Lease>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) {
        for class in LaneClass::ALL {
            let lanes = u32::try_from(self.count(class).1).unwrap_or(u32::MAX);
            metric::OUTBOX_LANES_UNDERWAY.with([class.as_str()]).set(f64::from(lanes));
        }
    }

    fn count(&self, class: LaneClass) -> (usize, usize) {
        let lanes = self.lock();
        (lanes.len(), lanes.keys().filter(|claim| claim.class == class).count())
    }
}

/// Whether a sender may go on.
#[derive(Debug, Clone)]
pub(crate) struct Permission {
    lease: Lease,
    breaker: Arc<Breaker>,
    draining: CancellationToken,
    broken_off: CancellationToken,
}

impl Permission {
    /// Whether the lease lasts long enough for a request of this length. No request is started that could still be
    /// under way when somebody else owns the lane.
    pub(crate) fn covers(&self, longest: Duration) -> bool {
        let ends = *self.lease.ends.lock().unwrap_or_else(PoisonError::into_inner);
        boot_time() + longest < ends
    }

    /// Whether the next operation of the batch may be begun: the lease covers a request, the homeserver is there, and the
    /// process is not stopping.
    pub(crate) fn next(&self, longest: Duration) -> bool {
        !self.draining.is_cancelled() && self.breaker.lets_go_on() && self.covers(longest)
    }

    /// Ends when even what is under way has to be given up, since the process stops.
    pub(crate) async fn broken_off(&self) {
        self.broken_off.cancelled().await;
    }
}

/// Work of one lane, on its way to a sender and back. However it ends (also by a panic or a timeout around it), what was
/// done with it is settled.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The lane, its room and its operations.
    claimed: Option<Claimed>,
    claim: LaneClaim,
    results: Vec<OperationResult>,
    current: Option<(ClaimedOperation, Instant)>,
    /// Whose requests these are, once an operation is sent anew.
    identity: Identity,
    /// The operation under way was looked up, is not there, and is sent anew.
    anew: Arc<AtomicBool>,
    lease: Lease,
    breaker: Arc<Breaker>,
    draining: CancellationToken,
    broken_off: CancellationToken,
    finished: mpsc::UnboundedSender<Settlement>,
    backoff: Duration,
}

impl Batch {
    /// Takes what is to be done. Once.
    pub(crate) fn take(&mut self) -> Option<Claimed> {
        self.claimed.take()
    }

    /// Says which operation is tried from now on.
    pub(crate) fn begin(&mut self, operation: ClaimedOperation) {
        self.current = Some((operation, Instant::now()));
        self.anew.store(false, Ordering::SeqCst);
    }

    /// Says, at the moment when it is sent, that the operation under way is sent anew: its earlier attempts are not there
    /// and never will be.
    pub(crate) fn anew(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.anew)
    }

    /// What tells whether a request may still be started, and when to break off.
    pub(crate) fn permission(&self) -> Permission {
        Permission {
            lease: self.lease.clone(),
            breaker: Arc::clone(&self.breaker),
            draining: self.draining.clone(),
            broken_off: self.broken_off.clone(),
        }
    }

    /// Says that the operation begun last was not tried after all.
    pub(crate) fn leave(&mut self) {
        self.current = None;
    }

    /// Says how the operation ended that was begun last. True when the next may follow.
    pub(crate) fn end(&mut self, outcome: Outcome, attempt: Option<Attempt>, found: Vec<outbox::Evidence>) -> bool {
        let Some((mut operation, began)) = self.current.take() else { return false };
        let anew = self.anew.swap(false, Ordering::SeqCst);
        if anew {
            operation.sender.clone_from(&self.identity.sender);
            operation.device.clone_from(&self.identity.device);
        }
        let attempt = attempt.map(|attempt| Attempt { began: Some(began), took: began.elapsed(), ..attempt });
        let next = outcome.lets_the_next_go();
        self.results.push(OperationResult { operation, outcome, attempt, found, anew });
        reach(Point::OperationEnded);
        next
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if self.current.is_some() {
            // A panic, a timeout around the handler, or the end of the process: nobody knows how far the request got.
            let history = self.current.as_ref().map(|(operation, _)| History::of(operation)).unwrap_or_default();
            let outcome = verdict::broken_off(self.broken_off.is_cancelled(), self.backoff, &history);
            let attempt = Attempt { detail: Some("the attempt was broken off".to_owned()), ..Attempt::default() };
            metric::ATTEMPTS_BROKEN_OFF.increment(1);
            self.end(outcome, Some(attempt), Vec::new());
        }
        let settlement = Settlement { claim: self.claim, results: std::mem::take(&mut self.results) };
        // Nobody receives only after a stop that took too long: the lease lapses.
        let _ = self.finished.send(settlement);
    }
}

/// How long the homeserver takes to answer: it decides how much a claim hands out.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    micros: AtomicU64,
}

impl Pace {
    /// Notes how long an answer took: a moving average over about eight.
    pub(crate) fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let old = self.micros.load(Ordering::Relaxed);
        let new = if old == 0 { took } else { old - old / 8 + took / 8 };
        self.micros.store(new.max(1), Ordering::Relaxed);
    }

    fn operations(&self) -> u16 {
        match self.micros.load(Ordering::Relaxed) {
            0 => 1,
            micros => {
                let fit = u64::try_from(BATCH_TIME.as_micros()).unwrap_or(u64::MAX) / micros;
                u16::try_from(fit).unwrap_or(MAX_OPERATIONS).clamp(1, MAX_OPERATIONS)
            }
        }
    }
}

/// Who claims, as whom.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) worker_id: WorkerId,
    pub(crate) sender: String,
    pub(crate) device: String,
}

/// The three loops and what they share.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pool: PgPool,
    config: DeliveryConfig,
    identity: Identity,
    pace: Arc<Pace>,
    breaker: Arc<Breaker>,
    underway: Underway,
    look: Arc<Notify>,
    /// Told when clients have something to hear.
    tell: Wake,
    /// What is counted of this process' work.
    tally: Arc<Tally>,
    idle: Notify,
    stop: CancellationToken,
    draining: CancellationToken,
    broken_off: CancellationToken,
}

impl Coordinator {
    /// `look` is notified when there may be work: by wake-ups, and by the coordinator itself when slots are freed.
    pub(crate) fn new(
        pool: PgPool,
        config: DeliveryConfig,
        identity: Identity,
        pace: Arc<Pace>,
        breaker: Arc<Breaker>,
        look: Arc<Notify>,
        stop: CancellationToken,
    ) -> Self {
        metric::OUTBOX_SLOTS.set(f64::from(u32::try_from(config.slots).unwrap_or(u32::MAX)));
        Self {
            pool,
            config,
            identity,
            pace,
            breaker,
            underway: Underway::default(),
            look,
            tell: Wake::silent(),
            tally: Arc::default(),
            idle: Notify::new(),
            stop,
            draining: CancellationToken::new(),
            broken_off: CancellationToken::new(),
        }
    }

    /// Wakes those who tell clients, after each settle that has news for them.
    pub(crate) fn telling(mut self, tell: Wake) -> Self {
        self.tell = tell;
        self
    }

    /// Counts what is settled, for those who ask how much this process does.
    pub(crate) fn counting(mut self, tally: Arc<Tally>) -> Self {
        self.tally = tally;
        self
    }

    /// How many lanes are under way.
    pub(crate) fn busy(&self) -> usize {
        self.underway.count(LaneClass::Chat).0
    }

    /// Runs until the stop token is cancelled and everything under way is settled, or the time for that is over. Then
    /// the channel of batches closes.
    pub(crate) async fn run(self: Arc<Self>, batches: mpsc::Sender<Batch>) {
        let (finished, to_settle) = mpsc::unbounded_channel();
        let done = CancellationToken::new();
        let settler = tokio::spawn(done.clone().run_until_cancelled_owned(Arc::clone(&self).settle_loop(to_settle)));
        let renewer = tokio::spawn(done.clone().run_until_cancelled_owned(Arc::clone(&self).renew_loop()));
        let (mut settler, mut renewer) = (settler, renewer);
        tokio::select! {
            () = self.claim_loop(&batches, &finished) => {}
            // Without them leases would be kept that nobody settles: the process has to end.
            _ = &mut settler => tracing::error!("the settle loop ended"),
            _ = &mut renewer => tracing::error!("the renew loop ended"),
        }
        self.draining.cancel();
        if timeout(FINISH_WITHIN, self.drained()).await.is_err() {
            tracing::warn!("breaking off the requests that are still under way");
            self.broken_off.cancel();
            if timeout(SETTLE_WITHIN, self.drained()).await.is_err() {
                let left = self.underway.count(LaneClass::Chat).0;
                tracing::warn!(lanes = left, "stopping before everything was settled; the leases will lapse");
            }
        }
        done.cancel();
        settler.abort();
        renewer.abort();
    }

    async fn drained(&self) {
        while self.underway.count(LaneClass::Chat).0 > 0 {
            self.idle.notified().await;
        }
    }

    fn free_slots(&self, class: LaneClass) -> usize {
        let (all, of_class) = self.underway.count(class);
        let reserved_for_others = self.config.slots / RESERVED_PART;
        let of_class_at_most = (self.config.slots - reserved_for_others).max(1);
        let allowed = self.config.slots.min(self.breaker.allowance());
        allowed.saturating_sub(all).min(of_class_at_most.saturating_sub(of_class))
    }

    async fn claim_loop(&self, batches: &mpsc::Sender<Batch>, finished: &mpsc::UnboundedSender<Settlement>) {
        let mut poll = interval(self.config.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut bookmarks = Bookmarks::default();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = poll.tick() => {}
                () = self.look.notified() => {
                    // Little under way: let a burst of commits arrive, so that one claim takes all of it.
                    if self.underway.count(LaneClass::Chat).0 < self.config.slots / 4 {
                        sleep(DEBOUNCE).await;
                    }
                }
            }
            for class in LaneClass::ALL {
                if let Err(error) = self.claim_class(class, &mut bookmarks, batches, finished).await {
                    metric::DATABASE_ERRORS.with(["claim"]).increment(1);
                    tracing::warn!(%error, "claim failed; trying again");
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = sleep(DATABASE_BACKOFF) => {}
                    }
                }
            }
        }
    }

    /// Claims until there is nothing due or no slot is free.
    async fn claim_class(
        &self,
        class: LaneClass,
        bookmarks: &mut Bookmarks,
        batches: &mpsc::Sender<Batch>,
        finished: &mpsc::UnboundedSender<Settlement>,
    ) -> Result<(), sqlx::Error> {
        loop {
            let lanes = u16::try_from(self.free_slots(class)).unwrap_or(u16::MAX);
            if lanes == 0 || self.stop.is_cancelled() {
                return Ok(());
            }
            let mut conn = self.pool.acquire().await?;
            let bookmark = in_time(&mut conn, async |conn| bookmarks.of(conn, class).await).await?;
            let request = ClaimRequest {
                worker_id: self.identity.worker_id,
                sender: self.identity.sender.clone(),
                device: self.identity.device.clone(),
                class,
                lanes,
                operations: self.pace.operations(),
                lease: self.config.lease,
                dedupe_window: self.config.dedupe_window,
                bookmark,
            };
            let lease_from = boot_time();
            let claim = in_time(&mut conn, async |conn| {
                let mut tx = conn.begin().await?;
                let claim = outbox::claim(&mut tx, &request).await?;
                tx.commit().await?;
                Ok(claim)
            })
            .await?;
            drop(conn);
            reach(Point::ClaimCommitted);
            if claim.taken_over > 0 {
                metric::LEASE_EXPIRED.increment(claim.taken_over as u64);
                tracing::warn!(lanes = claim.taken_over, "took over lanes whose owner was gone");
            }
            let full = claim.lanes >= usize::from(lanes);
            for claimed in claim.batches {
                let lease = Lease { ends: Arc::new(Mutex::new(lease_from + self.config.lease)) };
                self.underway.lock().insert(claimed.claim, lease.clone());
                let batch = Batch {
                    claim: claimed.claim,
                    claimed: Some(claimed),
                    results: Vec::new(),
                    current: None,
                    identity: self.identity.clone(),
                    anew: Arc::default(),
                    lease,
                    breaker: Arc::clone(&self.breaker),
                    draining: self.draining.clone(),
                    broken_off: self.broken_off.clone(),
                    finished: finished.clone(),
                    backoff: self.config.backoff,
                };
                // The channel is as long as there are slots; a batch that finds it closed hands itself back.
                let _ = batches.send(batch).await;
                reach(Point::BatchHandedOver);
            }
            self.underway.report();
            if !full {
                return Ok(());
            }
        }
    }

    async fn settle_loop(self: Arc<Self>, mut finished: mpsc::UnboundedReceiver<Settlement>) {
        let mut round: Vec<Settlement> = Vec::new();
        loop {
            let room = MAX_SETTLEMENTS.saturating_sub(round.len());
            if round.is_empty() {
                if finished.recv_many(&mut round, room).await == 0 {
                    return;
                }
            } else {
                while round.len() < MAX_SETTLEMENTS
                    && let Ok(settlement) = finished.try_recv()
                {
                    round.push(settlement);
                }
            }
            match self.settle_round(&mut round).await {
                Ok(()) if round.is_empty() => {}
                Ok(()) => sleep(DEFERRED_PAUSE).await,
                Err(error) if database::is_unavailable(&error) => {
                    metric::DATABASE_ERRORS.with(["settle"]).increment(1);
                    tracing::warn!(%error, "settle failed; trying again");
                    sleep(DATABASE_BACKOFF).await;
                }
                Err(error) => {
                    tracing::error!(%error, "a settlement is refused by the database; settling one by one");
                    self.settle_apart(&mut round).await;
                }
            }
        }
    }

    /// Settles a round; what is left in it goes into the next one.
    async fn settle_round(&self, round: &mut Vec<Settlement>) -> Result<(), sqlx::Error> {
        reach(Point::SettleBegins);
        let mut conn = self.pool.acquire().await?;
        let settled = in_time(&mut conn, async |conn| {
            let mut tx = conn.begin().await?;
            let settled = outbox::settle(&mut tx, self.identity.worker_id, round).await?;
            tx.commit().await?;
            Ok(settled)
        })
        .await?;
        drop(conn);
        reach(Point::SettleCommitted);
        metric::OUTBOX_DEAD.increment(settled.died);
        let more = settled.finished > 0;
        if more || settled.died > 0 {
            self.tell.committed();
        }
        let mut failed = 0;
        let mut fenced = Vec::new();
        for (n, settlement) in std::mem::take(round).into_iter().enumerate() {
            if settled.deferred.contains(&n) {
                round.push(settlement);
                continue;
            }
            failed += settlement.results.iter().filter(|result| !result.outcome.lets_the_next_go()).count();
            self.underway.lock().remove(&settlement.claim);
            if settled.fenced.contains(&n) {
                fenced.push(settlement);
            }
        }
        self.underway.report();
        self.tally.settled(settled.finished, failed as u64);
        reach(Point::SlotsFreed);
        self.idle.notify_one();
        while let Some(settlement) = fenced.pop() {
            if let Err(error) = self.keep_evidence(&settlement).await {
                // Its epoch is as gone in the next round as in this one.
                round.push(settlement);
                round.append(&mut fenced);
                return Err(error);
            }
        }
        // A lane with more to do is due again at once; a quarter of the slots free is worth a claim.
        if more || self.free_slots(LaneClass::Chat) >= self.config.slots / 4 {
            self.look.notify_one();
        }
        Ok(())
    }

    /// Settles each batch of a round by itself, so that one which the database refuses stalls no other. That one is given
    /// up: its lease lapses, and what it holds counts as ambiguous for whoever takes it over.
    async fn settle_apart(&self, round: &mut Vec<Settlement>) {
        let mut again = Vec::new();
        for settlement in std::mem::take(round) {
            let claim = settlement.claim;
            let mut one = vec![settlement];
            match self.settle_round(&mut one).await {
                Ok(()) => again.append(&mut one),
                Err(error) if database::is_unavailable(&error) => again.append(&mut one),
                Err(error) => {
                    metric::SETTLEMENTS_REFUSED.increment(1);
                    tracing::error!(%error, conversation.id = %claim.conversation_id, "settlement given up");
                    self.underway.lock().remove(&claim);
                }
            }
        }
        *round = again;
    }

    /// A late finisher changes nothing, but what the homeserver answered it is true.
    async fn keep_evidence(&self, settlement: &Settlement) -> Result<(), sqlx::Error> {
        let claim = settlement.claim;
        metric::FENCED_SETTLES.increment(1);
        tracing::warn!(
            conversation.id = %claim.conversation_id,
            lane.epoch = claim.epoch,
            "finished after its lease was taken over: keeping the evidence only"
        );
        for result in &settlement.results {
            for evidence in result.found.iter().cloned().chain(result.evidence()) {
                reach(Point::EvidenceBegins);
                let mut tx = self.pool.begin().await?;
                outbox::late_evidence(&mut tx, claim.conversation_id, claim.lane_id, &evidence).await?;
                reach(Point::EvidenceWritten);
                tx.commit().await?;
                reach(Point::EvidenceCommitted);
                self.tell.committed();
            }
        }
        Ok(())
    }

    async fn renew_loop(self: Arc<Self>) {
        let mut tick = interval(self.config.lease / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let claims: Vec<LaneClaim> = self.underway.lock().keys().copied().collect();
            if claims.is_empty() {
                continue;
            }
            reach(Point::RenewBegins);
            let from = boot_time();
            let renewed = async {
                let mut conn = self.pool.acquire().await?;
                let (worker_id, lease) = (self.identity.worker_id, self.config.lease);
                in_time(&mut conn, async |conn| outbox::renew(conn, worker_id, &claims, lease).await).await
            };
            match renewed.await {
                Ok(lost) => {
                    reach(Point::RenewEnded);
                    let lanes = self.underway.lock();
                    for claim in &claims {
                        if lost.contains(claim) {
                            continue;
                        }
                        if let Some(lease) = lanes.get(claim) {
                            *lease.ends.lock().unwrap_or_else(PoisonError::into_inner) = from + self.config.lease;
                        }
                    }
                }
                Err(error) => {
                    metric::DATABASE_ERRORS.with(["renew"]).increment(1);
                    tracing::warn!(%error, "leases not renewed; trying again");
                }
            }
        }
    }
}

/// Where the claims of each class start; see [`outbox::oldest_due`].
#[derive(Debug, Default)]
struct Bookmarks {
    known: HashMap<LaneClass, (Instant, OffsetDateTime)>,
}

impl Bookmarks {
    async fn of(&mut self, conn: &mut PgConnection, class: LaneClass) -> Result<Option<OffsetDateTime>, sqlx::Error> {
        if let Some((found, bookmark)) = self.known.get(&class)
            && found.elapsed() < FULL_SCAN_EVERY
        {
            return Ok(Some(*bookmark));
        }
        let (oldest, now) = outbox::oldest_due(conn, class).await?;
        let bookmark = oldest.unwrap_or(now).min(now) - BOOKMARK_SLACK;
        self.known.insert(class, (Instant::now(), bookmark));
        Ok(Some(bookmark))
    }
}
