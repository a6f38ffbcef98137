//! Everything at once, on a few conversations: nobody waits for anybody in a circle, and in the end all is done.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use shared::{
    chat::{self, ChatError},
    ids::{OutboxId, UserId},
    outbox::{self, OperationResult, Settlement},
};
use sqlx::PgConnection;

use super::{
    chance::{Chance, seed},
    world::{End, Lane, Posted, Worker, World, result, room},
};

const LANES: usize = 5;
const TASKS: u64 = 6;
const STEPS: usize = 340;

#[derive(Debug, Clone, Copy)]
enum Step {
    Post,
    Edit,
    Delete,
    React,
    Members,
    Claim,
    Settle,
    Echo,
    Requeue,
    Discard,
    Pause,
    Resume,
    Expire,
}

const CHANCES: [(usize, Step); 13] = [
    (24, Step::Post),
    (12, Step::Edit),
    (6, Step::Delete),
    (12, Step::React),
    (4, Step::Members),
    (20, Step::Claim),
    (20, Step::Settle),
    (4, Step::Echo),
    (5, Step::Requeue),
    (1, Step::Discard),
    (2, Step::Pause),
    (3, Step::Resume),
    (1, Step::Expire),
];

const ENDS: [(usize, End); 5] =
    [(70, End::Delivered), (10, End::Refused), (8, End::Ambiguous), (8, End::OwnFault), (4, End::RoomFault)];

/// What all tasks share: conversations, what was said in each, and batches whose worker has not settled them yet.
struct Storm {
    world: World,
    lanes: Vec<Lane>,
    said: Vec<Mutex<Vec<Posted>>>,
    flights: Mutex<Vec<(Worker, Settlement)>>,
    guests: Vec<UserId>,
}

/// What the words of the API refuse is no failure here; what the database refuses is.
fn database(error: ChatError) -> Option<sqlx::Error> {
    match error {
        ChatError::Database(error) => Some(error),
        _ => None,
    }
}

impl Storm {
    fn pick(&self, lane: usize, chance: &mut Chance) -> Option<Posted> {
        chance.one_of(&self.said[lane].lock().unwrap())
    }

    async fn step(&self, chance: &mut Chance) -> Result<(), sqlx::Error> {
        let n = chance.below(LANES);
        let lane = &self.lanes[n];
        let mut tx = self.world.pool.begin().await?;
        match chance.weighted(&CHANCES) {
            Step::Post => match lane.post_in(&mut tx, "text").await {
                Ok(posted) => {
                    tx.commit().await?;
                    self.said[n].lock().unwrap().push(posted);
                    return Ok(());
                }
                Err(error) => database(error).map_or(Ok(()), Err)?,
            },
            Step::Edit => {
                let Some(posted) = self.pick(n, chance) else { return Ok(()) };
                let text = format!("text {}", chance.below(1000));
                if let Err(error) = lane.edit_in(&mut tx, &posted, &text).await {
                    return database(error).map_or(Ok(()), Err);
                }
            }
            Step::Delete => {
                let Some(posted) = self.pick(n, chance) else { return Ok(()) };
                if let Err(error) = lane.delete_in(&mut tx, &posted).await {
                    return database(error).map_or(Ok(()), Err);
                }
            }
            Step::React => {
                let Some(posted) = self.pick(n, chance) else { return Ok(()) };
                if let Err(error) = self.react(&mut tx, lane, &posted, chance).await {
                    return database(error).map_or(Ok(()), Err);
                }
            }
            Step::Members => {
                let mut turn = lane.turn(&mut tx).await.unwrap();
                let guest = self.guests[chance.below(self.guests.len())];
                let changed = if chance.percent(50) {
                    chat::add_member(&mut tx, &turn, guest).await
                } else {
                    chat::remove_member(&mut tx, &mut turn, guest).await
                };
                if let Err(error) = changed {
                    return database(error).map_or(Ok(()), Err);
                }
            }
            Step::Claim => {
                let worker = Worker::new();
                let claim = outbox::claim(&mut tx, &worker.request(2, 3)).await?;
                tx.commit().await?;
                for claimed in claim.batches {
                    let results = send(&claimed.operations, chance);
                    self.flights.lock().unwrap().push((worker, Settlement { claim: claimed.claim, results }));
                }
                return Ok(());
            }
            Step::Settle => {
                tx.rollback().await?;
                return self.settle(chance).await;
            }
            Step::Echo => {
                let evidence = {
                    let flights = self.flights.lock().unwrap();
                    let n = chance.below(flights.len());
                    flights.get(n).and_then(|(_, flight)| {
                        let evidence = flight.results.first()?.evidence()?;
                        Some((flight.claim, evidence))
                    })
                };
                let Some((claim, evidence)) = evidence else { return Ok(()) };
                outbox::late_evidence(&mut tx, claim.conversation_id, claim.lane_id, &evidence).await?;
            }
            step @ (Step::Requeue | Step::Discard) => {
                let dead = dead(&mut tx, lane).await?;
                let Some(outbox_id) = chance.one_of(&dead) else { return Ok(()) };
                if matches!(step, Step::Requeue) {
                    outbox::requeue(&mut tx, lane.id, outbox_id).await?;
                } else {
                    outbox::discard(&mut tx, lane.id, outbox_id).await?;
                }
            }
            Step::Pause => {
                let now = shared::database::now(&mut tx).await?;
                let until = now + Duration::from_millis(chance.below(40) as u64);
                outbox::pause_lanes(&mut tx, lane.id, None, Some(until), "why").await?;
            }
            Step::Resume => {
                outbox::resume(&mut tx, lane.id, lane.lane_id()).await?;
            }
            Step::Expire => {
                tx.rollback().await?;
                outbox::expire(&self.world.pool, 10).await?;
                return Ok(());
            }
        }
        tx.commit().await
    }

    /// One of the guests reacts to a message, or takes their reaction back.
    async fn react(
        &self,
        conn: &mut PgConnection,
        lane: &Lane,
        posted: &Posted,
        chance: &mut Chance,
    ) -> Result<(), ChatError> {
        let mut turn = lane.turn(conn).await?;
        let (keys, guest) = (&self.world.keys, self.guests[chance.below(self.guests.len())]);
        if chance.percent(60) {
            chat::add_reaction(conn, &turn, keys, posted.message_id, guest, "+1", true).await?;
        } else {
            chat::remove_reaction(conn, &mut turn, keys, posted.message_id, guest, "+1").await?;
        }
        Ok(())
    }

    /// A worker settles what it sent, or leaves its evidence when it comes too late.
    async fn settle(&self, chance: &mut Chance) -> Result<(), sqlx::Error> {
        let flight = {
            let mut flights = self.flights.lock().unwrap();
            let n = chance.below(flights.len());
            (!flights.is_empty()).then(|| flights.swap_remove(n))
        };
        let Some((worker, settlement)) = flight else { return Ok(()) };
        let claim = settlement.claim;
        let settlements = [settlement];
        let mut tx = self.world.pool.begin().await?;
        let settled = outbox::settle(&mut tx, worker.id, &settlements).await?;
        tx.commit().await?;
        let [settlement] = settlements;
        if !settled.deferred.is_empty() {
            self.flights.lock().unwrap().push((worker, settlement));
        } else if !settled.fenced.is_empty() {
            for evidence in settlement.results.iter().filter_map(OperationResult::evidence) {
                let mut tx = self.world.pool.begin().await?;
                outbox::late_evidence(&mut tx, claim.conversation_id, claim.lane_id, &evidence).await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }
}

async fn dead(conn: &mut PgConnection, lane: &Lane) -> Result<Vec<OutboxId>, sqlx::Error> {
    sqlx::query_scalar("select outbox_id from dead_letters where conversation_id = $1 order by seq")
        .bind(lane.id.as_uuid())
        .fetch_all(conn)
        .await
}

/// A batch ends with the first that is not delivered.
fn send(operations: &[outbox::ClaimedOperation], chance: &mut Chance) -> Vec<OperationResult> {
    let mut results = Vec::new();
    for operation in operations {
        let end = match chance.weighted(&ENDS) {
            End::Delivered if operation.kind.is_state() => End::Done,
            end => end,
        };
        results.push(result(operation, end));
        if !matches!(end, End::Delivered | End::Done) {
            break;
        }
    }
    results
}

/// Locks are waited for, for a while; whoever waits in a circle is told so by another error.
fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_nobody_waits_in_a_circle_and_all_is_done() {
    let world = World::new().await;
    let mut lanes = Vec::new();
    for _ in 0..LANES {
        let lane = world.lane().await;
        let mut tx = world.begin().await;
        let room_id = shared::ids::RoomId::from(format!("{}{}", room(), lane.id));
        chat::save_room_mapping(&mut tx, lane.id, &room_id, true).await.unwrap();
        tx.commit().await.unwrap();
        lanes.push(lane);
    }
    let storm = Arc::new(Storm {
        said: lanes.iter().map(|_| Mutex::default()).collect(),
        flights: Mutex::default(),
        guests: (0..4).map(|_| UserId::generate()).collect(),
        lanes,
        world,
    });
    let seed = seed();
    println!("OUTBOX_SEED={seed}");
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let storm = Arc::clone(&storm);
            tokio::spawn(async move {
                let mut chance = Chance::new(seed * TASKS + task);
                for _ in 0..STEPS {
                    match storm.step(&mut chance).await {
                        Err(error) if !is_lock_timeout(&error) => panic!("{error}"),
                        _ => {}
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let world = &storm.world;
    world.sound().await;

    world.advance(Duration::from_hours(1)).await;
    for lane in &storm.lanes {
        lane.resume().await;
    }
    let worker = Worker::new();
    loop {
        let claimed = world.claim_lanes(&worker, 8, 16).await;
        if claimed.is_empty() {
            break;
        }
        let settlements: Vec<Settlement> = claimed
            .iter()
            .map(|claimed| {
                let end = |kind: outbox::Kind| if kind.is_state() { End::Done } else { End::Delivered };
                let results =
                    claimed.operations.iter().map(|operation| result(operation, end(operation.kind))).collect();
                Settlement { claim: claimed.claim, results }
            })
            .collect();
        world.settle_all(&worker, &settlements).await;
    }
    world.sound().await;
    assert_eq!(world.db.count("select count(*) from outbox").await, 0);
    assert_eq!(world.db.count("select count(*) from lanes where owner is not null").await, 0);
}
