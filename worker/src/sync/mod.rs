//! What happens on Matrix, on its way to the database: one worker leads, and reads for all.
//!
//! ```text
//!   leader ─▶ /sync ─▶ gaps (pages that it left out) ─▶ read ─▶ ask (what must be asked first) ─▶ intake ─▶ database
//! ```
//!
//! Events are applied in the order of their room. The token moves in the transaction that applies the last of what it
//! covers; what was applied before is known by its event id when it is read again, so a worker may die anywhere.

use std::{sync::Arc, time::Duration};

use ruma::api::client::sync::sync_events::v3::Timeline;
use shared::{
    config::SyncConfig,
    ids::{RoomId, WorkerId},
    inbound::{self, Leadership},
    metric,
    seal::KeyRing,
    wake::Wake,
};
use sqlx::PgPool;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    heartbeat::Tally,
    homeserver::{Failure, Homeserver},
    room::Rooms,
};

mod ask;
mod gaps;
mod intake;
mod read;

use ask::Asker;
use intake::{Intake, IntakeError, Room, Taken};

/// The first wait after a failure, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long a leader that stops may take to give its lead away.
const RESIGN_WITHIN: Duration = Duration::from_secs(1);

/// Why the leader stopped reading.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("homeserver: {0}")]
    Homeserver(#[from] Failure),
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}

/// Reads what happens on Matrix, when it is this worker's turn.
#[derive(Debug, Clone)]
pub(crate) struct Sync {
    pub(crate) pool: PgPool,
    pub(crate) keys: KeyRing,
    pub(crate) homeserver: Homeserver,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) config: SyncConfig,
    /// Whether calls over Matrix are taken.
    pub(crate) calls: bool,
    pub(crate) worker_id: WorkerId,
    /// Told of what was applied, so that clients hear of it.
    pub(crate) tell: Wake,
    /// Told when an echo has settled something: its lane may have more to send.
    pub(crate) look: Arc<Notify>,
    /// Told who leads.
    pub(crate) tally: Arc<Tally>,
}

/// Runs until it is told to stop. A panic in it is logged, counted, and it begins again: nothing else of the worker notices.
pub(crate) async fn run(sync: Sync, stop: CancellationToken) {
    let mut wait = FIRST_WAIT;
    while !stop.is_cancelled() {
        let task = tokio::spawn(sync.clone().take_part(stop.clone()));
        match task.await {
            Ok(()) => wait = FIRST_WAIT,
            Err(panic) => {
                tracing::error!(error = %panic, "the sync loop crashed; it begins again");
                metric::SYNC_CRASHES.increment(1);
                pause(&stop, wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

async fn pause(stop: &CancellationToken, wait: Duration) {
    stop.run_until_cancelled(sleep(wait)).await;
}

impl Sync {
    /// Waits until nobody leads, and then leads, until the lead is lost.
    async fn take_part(self, stop: CancellationToken) {
        metric::SYNC_LEADER.set_bool(false);
        self.tally.leads(false);
        while !stop.is_cancelled() {
            let user = self.homeserver.service_user();
            let led = async {
                let mut conn = self.pool.acquire().await?;
                inbound::lead(&mut conn, user, self.worker_id, self.config.lease).await
            };
            match led.await {
                Ok(Some(leadership)) => {
                    tracing::info!(sync.epoch = leadership.epoch, "Matrix sync loop started");
                    metric::SYNC_LEADER.set_bool(true);
                    self.tally.leads(true);
                    self.lead(leadership, &stop).await;
                    metric::SYNC_LEADER.set_bool(false);
                    self.tally.leads(false);
                    return;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "cannot ask who syncs; asking again"),
            }
            pause(&stop, self.config.lease / 4).await;
        }
    }

    /// Leads until the lease is lost or the worker stops. What goes wrong meanwhile is tried again, ever more slowly.
    async fn lead(&self, leadership: Leadership, stop: &CancellationToken) {
        let lost = stop.child_token();
        // Ends with this future, also when that panics.
        let _ends = lost.clone().drop_guard();
        tokio::spawn(lost.clone().run_until_cancelled_owned(renew(
            self.pool.clone(),
            leadership.clone(),
            self.config.lease,
            lost.clone(),
        )));
        lost.run_until_cancelled(self.follow(leadership.clone())).await;
        let resigned = async {
            let mut conn = self.pool.acquire().await?;
            leadership.resign(&mut conn).await
        };
        if !matches!(tokio::time::timeout(RESIGN_WITHIN, resigned).await, Ok(Ok(()))) {
            tracing::debug!("the lead is left to its lease");
        }
    }

    /// Reads, for as long as it leads.
    async fn follow(&self, mut leadership: Leadership) {
        let intake = Intake {
            pool: &self.pool,
            keys: &self.keys,
            homeserver: &self.homeserver,
            tell: &self.tell,
            look: &self.look,
            calls: self.calls,
        };
        let asker = Asker::new(&self.pool, &self.homeserver, &self.rooms, self.config.invites);
        let mut wait = FIRST_WAIT;
        loop {
            match self.step(&mut leadership, intake, &asker).await {
                Ok(()) => wait = FIRST_WAIT,
                Err(SyncError::Intake(IntakeError::NotLeading)) => {
                    tracing::warn!("another worker leads the sync by now");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, wait = ?wait, "the sync did not succeed; trying again");
                    metric::SYNC_FAILURES.increment(1);
                    sleep(asked_to_wait(&error).unwrap_or(wait).max(wait)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// One sync, and all that it brought.
    async fn step(&self, leadership: &mut Leadership, intake: Intake<'_>, asker: &Asker<'_>) -> Result<(), SyncError> {
        let since = leadership.next_batch.clone();
        let answer = self.homeserver.sync(since.as_deref(), self.config.limit, self.config.hold).await?;
        let next_batch = answer.next_batch;
        for (room_id, invited) in answer.rooms.invite {
            asker.invited(room_id.to_string().into(), &invited).await?;
        }
        let joined = answer.rooms.join.into_iter().map(|(room_id, room)| (room_id, room.timeline));
        let left = answer.rooms.leave.into_iter().map(|(room_id, room)| (room_id, room.timeline));
        let timelines: Vec<(RoomId, Timeline)> =
            joined.chain(left).map(|(room_id, timeline)| (room_id.to_string().into(), timeline)).collect();
        let span = Span { since: since.as_deref(), next_batch: &next_batch };
        let (known, unknown) = self.sort(asker, timelines).await?;
        let applied = if unknown.is_empty() {
            self.apply(leadership, intake, asker, span, known, true).await?
        } else {
            // One of them may have replaced one of those: then it is known once that one's tombstone is.
            self.apply(leadership, intake, asker, span, known, false).await?;
            let mut followed = Vec::new();
            for (room_id, timeline) in unknown {
                if let Some(conversation_id) = asker.mapped(&room_id).await? {
                    followed.push((Room { conversation_id, room_id }, timeline));
                } else {
                    let events = u64::try_from(timeline.events.len()).unwrap_or(u64::MAX);
                    metric::SYNC_EVENTS_SKIPPED.with(["unknown_room"]).increment(events);
                }
            }
            self.apply(leadership, intake, asker, span, followed, true).await?
        };
        metric::SYNC_LAG.set(applied.lag.as_secs_f64());
        leadership.next_batch = Some(next_batch);
        Ok(())
    }
}

/// From which token to which a sync went.
#[derive(Debug, Clone, Copy)]
struct Span<'a> {
    since: Option<&'a str>,
    next_batch: &'a str,
}

type Timelines<R> = Vec<(R, Timeline)>;

impl Sync {
    /// Which rooms are a conversation's, and which are nobody's.
    async fn sort(
        &self,
        asker: &Asker<'_>,
        timelines: Timelines<RoomId>,
    ) -> Result<(Timelines<Room>, Timelines<RoomId>), SyncError> {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for (room_id, timeline) in timelines {
            match asker.conversation(&room_id).await? {
                Some(conversation_id) => known.push((Room { conversation_id, room_id }, timeline)),
                None => unknown.push((room_id, timeline)),
            }
        }
        Ok((known, unknown))
    }

    /// Applies what a sync brought of rooms, after what it left out of them. With the last, the token moves.
    async fn apply(
        &self,
        leadership: &Leadership,
        intake: Intake<'_>,
        asker: &Asker<'_>,
        span: Span<'_>,
        rooms: Timelines<Room>,
        is_last: bool,
    ) -> Result<Taken, SyncError> {
        let mut events = Vec::with_capacity(rooms.len());
        for (room, timeline) in rooms {
            // Of a room that we have just come into, or that was nobody's until its predecessor's tombstone came, all that
            // we may see is new.
            let is_new = asker.is_new(&room).await?;
            if timeline.limited || is_new {
                let from = span.since.filter(|_| !is_new);
                let gap = gaps::Gap { room: &room, from, to: span.next_batch };
                gaps::fill(&self.homeserver, leadership, intake, asker, &gap).await?;
            }
            events.push((room, timeline.events.iter().map(|event| event.json().get().to_owned()).collect()));
        }
        intake.take(leadership, asker, events, is_last.then_some(span.next_batch)).await
    }
}

/// How long the homeserver asked us to wait.
fn asked_to_wait(error: &SyncError) -> Option<Duration> {
    match error {
        SyncError::Homeserver(Failure::Refused(refusal)) => refusal.retry_after,
        _ => None,
    }
}

/// Keeps the lease; says that it is lost when it is.
async fn renew(pool: PgPool, leadership: Leadership, lease: Duration, lost: CancellationToken) {
    let mut failing_since = None;
    loop {
        sleep(lease / 4).await;
        let renewed = async {
            let mut conn = pool.acquire().await?;
            leadership.renew(&mut conn, lease).await
        };
        let still_ours = if let Ok(Ok(renewed)) = tokio::time::timeout(lease / 2, renewed).await {
            failing_since = None;
            renewed
        } else {
            // The database does not answer: by its clock the lease may last or not. The epoch fences what we write.
            let since = *failing_since.get_or_insert_with(tokio::time::Instant::now);
            since.elapsed() < lease
        };
        if !still_ours {
            lost.cancel();
            return;
        }
    }
}
