//! Random histories of a conversation: whatever users and operators do and whatever goes wrong on the way, in the end the
//! room shows what the database says.
use std::time::Duration;

use shared::{
    chat::{Edited, Reacted, Unreacted},
    ids::{OutboxId, UserId},
    outbox::{Claimed, Deletion, Kind, OperationResult},
};
use uuid::Uuid;

use super::{
    chance::{Chance, seed},
    reactions,
    room::{Answer, Event, Room},
    world::{Lane, Posted, Worker, World},
};

const HISTORIES: u64 = 120;
const STEPS: usize = 40;
const MESSAGES: usize = 5;

/// What the history knows of a message, from the API's answers alone.
struct Told {
    posted: Posted,
    revision: i32,
    deletion: Option<Deletion>,
    /// Which of two users react to it, both with one key.
    reacts: [bool; 2],
    /// One of its operations was dead at some time.
    died: bool,
    /// One of its operations was thrown away by an operator.
    discarded: bool,
}

/// A batch that a worker has in its hands, and what it did with it so far.
struct Flight {
    worker: Worker,
    claimed: Claimed,
    results: Option<Vec<OperationResult>>,
}

struct History {
    lane: Lane,
    chance: Chance,
    room: Room,
    users: [UserId; 2],
    flights: Vec<Flight>,
    messages: Vec<Told>,
    trace: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Post,
    Edit,
    Delete,
    React,
    Deliver,
    Claim,
    GoOn,
    Lapse,
    Land,
    Echo,
    Resume,
    Requeue,
    Discard,
    Day,
}

const CHANCES: [(usize, Step); 14] = [
    (16, Step::Post),
    (20, Step::Edit),
    (7, Step::Delete),
    (14, Step::React),
    (26, Step::Deliver),
    (10, Step::Claim),
    (14, Step::GoOn),
    (5, Step::Lapse),
    (5, Step::Land),
    (4, Step::Echo),
    (5, Step::Resume),
    (6, Step::Requeue),
    (2, Step::Discard),
    (1, Step::Day),
];

const ANSWERS: [(usize, Answer); 8] = [
    (52, Answer::Accepted),
    (14, Answer::Refused),
    (9, Answer::OwnFault),
    (2, Answer::RoomFault),
    (6, Answer::LostStored),
    (7, Answer::LostTravelling),
    (4, Answer::LostForGood),
    (6, Answer::Crash),
];

/// One history is repeated, to be looked at closely.
fn is_repeated() -> bool {
    std::env::var("OUTBOX_SEED").is_ok()
}

impl History {
    fn new(lane: Lane, seed: u64) -> Self {
        let (chance, room) = (Chance::new(seed), Room::default());
        let users = [UserId::generate(), UserId::generate()];
        Self { lane, chance, room, users, flights: Vec::new(), messages: Vec::new(), trace: Vec::new() }
    }

    async fn step(&mut self) {
        let step = self.chance.weighted(&CHANCES);
        self.trace.push(format!("{step:?}"));
        match step {
            Step::Post if self.messages.len() < MESSAGES => {
                let posted = self.lane.post("text").await;
                let (deletion, reacts) = (None, [false; 2]);
                self.messages.push(Told { posted, revision: 1, deletion, reacts, died: false, discarded: false });
            }
            Step::Edit => self.edit().await,
            Step::Delete => self.delete().await,
            Step::React => self.react().await,
            Step::Deliver | Step::Post => {
                if self.claim().await {
                    let last = self.flights.len() - 1;
                    self.go_on(last).await;
                    if self.flights.len() > last {
                        self.go_on(last).await;
                    }
                }
            }
            Step::Claim => {
                self.claim().await;
            }
            Step::GoOn if !self.flights.is_empty() => {
                let n = self.chance.below(self.flights.len());
                self.go_on(n).await;
            }
            Step::Lapse => self.lane.world.lapse().await,
            Step::Land if !self.room.travelling.is_empty() => {
                let n = self.chance.below(self.room.travelling.len());
                self.room.land(n);
            }
            Step::Echo => self.echo(3).await,
            Step::Resume => {
                self.lane.resume().await;
            }
            Step::Requeue | Step::Discard => self.operate(matches!(step, Step::Discard)).await,
            Step::Day => {
                self.room.forget();
                self.flights.clear();
                self.lane.world.advance(Duration::from_hours(25)).await;
            }
            Step::GoOn | Step::Land => {}
        }
        if is_repeated() {
            let picture = self.lane.picture().await;
            self.trace.push(format!("    {picture}"));
        }
    }

    fn pick(&mut self) -> Option<usize> {
        let alive: Vec<usize> = (0..self.messages.len()).filter(|n| self.messages[*n].deletion.is_none()).collect();
        self.chance.one_of(&alive)
    }

    async fn edit(&mut self) {
        let Some(n) = self.pick() else { return };
        let message = &mut self.messages[n];
        let text = format!("text {}", message.revision + 1);
        assert!(matches!(self.lane.edit(&message.posted, &text).await, Edited::Changed(_)));
        message.revision += 1;
    }

    async fn delete(&mut self) {
        let Some(n) = self.pick() else { return };
        let deletion = self.lane.delete(&self.messages[n].posted).await;
        self.trace.push(format!("    {deletion:?}"));
        self.messages[n].deletion = deletion;
    }

    /// One of two users reacts, or takes their reaction back.
    async fn react(&mut self) {
        let Some(n) = self.pick() else { return };
        let who = self.chance.below(2);
        let message = &mut self.messages[n];
        message.reacts[who] = !message.reacts[who];
        if message.reacts[who] {
            let reacted = reactions::react(&self.lane, &message.posted, self.users[who], "+1").await.unwrap();
            assert!(matches!(reacted, Reacted::Added { .. }));
        } else {
            let removed = reactions::unreact(&self.lane, &message.posted, self.users[who], "+1").await;
            assert!(matches!(removed, Unreacted::Removed { .. }));
        }
    }

    async fn claim(&mut self) -> bool {
        let worker = Worker::new();
        let operations = u16::try_from(1 + self.chance.below(3)).unwrap();
        let Some(claimed) = self.lane.try_claim(&worker, operations).await else { return false };
        self.flights.push(Flight { worker, claimed, results: None });
        true
    }

    /// A worker sends its batch, or settles what it sent.
    async fn go_on(&mut self, n: usize) {
        let mut flight = self.flights.swap_remove(n);
        let Some(results) = flight.results.take() else {
            let chance = &mut self.chance;
            match self.room.send(&flight.claimed, || chance.weighted(&ANSWERS)) {
                Ok(results) => {
                    let ends: Vec<_> = results.iter().map(|result| result.outcome.as_str()).collect();
                    self.trace.push(format!("    sent: {}", ends.join(", ")));
                    flight.results = Some(results);
                    self.flights.push(flight);
                }
                Err(_) => self.trace.push("    crashed".to_owned()),
            }
            return;
        };
        self.settle(&flight.worker, &flight.claimed, results).await;
    }

    async fn settle(&mut self, worker: &Worker, claimed: &Claimed, results: Vec<OperationResult>) {
        let evidence: Vec<_> =
            results.iter().flat_map(|result| result.found.iter().cloned().chain(result.evidence())).collect();
        let settled = self.lane.settle_results(worker, claimed.claim, results).await;
        assert!(settled.deferred.is_empty(), "nobody holds the lane");
        if !settled.fenced.is_empty() {
            self.trace.push("    fenced".to_owned());
            for evidence in evidence {
                self.lane.late_evidence(&evidence).await;
            }
        }
        if settled.died > 0 {
            for (_, subject) in self.dead().await {
                self.told(subject).died = true;
            }
        }
    }

    /// The sync brings up to so many events that it has not brought yet.
    async fn echo(&mut self, at_most: usize) {
        for event in self.room.events.iter_mut().filter(|event| !event.echoed).take(at_most) {
            event.echoed = true;
            self.lane.late_evidence(&event.of).await;
        }
    }

    async fn dead(&self) -> Vec<(OutboxId, Uuid)> {
        sqlx::query_as("select outbox_id, subject_id from dead_letters where conversation_id = $1 order by seq")
            .bind(self.lane.id.as_uuid())
            .fetch_all(&self.lane.world.pool)
            .await
            .unwrap()
    }

    fn told(&mut self, subject: Uuid) -> &mut Told {
        self.messages.iter_mut().find(|told| told.posted.message_id.as_uuid() == subject).unwrap()
    }

    async fn operate(&mut self, discard: bool) {
        let dead = self.dead().await;
        let Some((outbox_id, subject)) = self.chance.one_of(&dead) else { return };
        if discard {
            self.lane.discard(outbox_id).await;
            self.told(subject).discarded = true;
        } else {
            let requeued = self.lane.requeue(outbox_id).await;
            self.trace.push(format!("    {requeued:?}"));
        }
    }

    /// From now on nothing goes wrong: all that can arrive does, and all that can be requeued is.
    async fn come_to_rest(&mut self) {
        self.flights.clear();
        for _ in 0..20 {
            while !self.room.travelling.is_empty() {
                self.room.land(0);
            }
            self.lane.resume().await;
            self.lane.world.lapse().await;
            for (outbox_id, _) in self.dead().await {
                self.lane.requeue(outbox_id).await;
            }
            let worker = Worker::new();
            while let Some(claimed) = self.lane.try_claim(&worker, 3).await {
                let results = self.room.send(&claimed, || Answer::Accepted).expect("nothing crashes");
                self.settle(&worker, &claimed, results).await;
            }
            self.echo(usize::MAX).await;
            if self.lane.number("select open::bigint from lanes where conversation_id = $1").await == 0 {
                return;
            }
        }
        panic!("it does not come to rest: {}", self.lane.picture().await);
    }

    fn texts(&self, told: &Told) -> Vec<&Event> {
        let of_message = |event: &&Event| {
            event.of.subject_id == told.posted.message_id.as_uuid() && event.of.kind.carries_text() && !event.void
        };
        self.room.events.iter().filter(of_message).collect()
    }

    /// How many reactions to a message stand.
    fn reactions(&self, told: &Told) -> usize {
        let stands = |event: &&Event| {
            event.of.kind == Kind::React
                && event.of.subject_id == told.posted.message_id.as_uuid()
                && !event.void
                && !event.redacted
        };
        self.room.events.iter().filter(stands).count()
    }

    fn check(&self) {
        for event in self.room.events.iter().filter(|event| !event.void) {
            let twins = self.room.events.iter().filter(|twin| twin.of.outbox_id == event.of.outbox_id).count();
            assert_eq!(twins, 1, "an operation is in the room once");
        }
        let mut last = 0;
        for event in self.room.events.iter().filter(|event| event.of.kind == Kind::Message && !event.void) {
            let told =
                self.messages.iter().find(|told| told.posted.message_id.as_uuid() == event.of.subject_id).unwrap();
            if !told.died {
                assert!(told.posted.seq > last, "messages are in the room in the order in which they were written");
                last = told.posted.seq;
            }
        }
        for told in &self.messages {
            let texts = self.texts(told);
            match told.deletion {
                Some(Deletion::Cancelled) => assert!(texts.is_empty(), "what was cancelled never appears"),
                Some(Deletion::Redacting) => {
                    assert!(texts.iter().all(|event| event.redacted), "no text of a deleted message stays");
                }
                None if told.discarded => {}
                None => {
                    assert_eq!(
                        texts.iter().filter(|event| event.of.kind == Kind::Message).count(),
                        1,
                        "no message is lost"
                    );
                    assert!(texts.iter().all(|event| !event.redacted));
                    let shown = texts.last().and_then(|event| event.of.revision);
                    assert_eq!(shown, Some(told.revision), "the room shows the newest text");
                    let wanted = usize::from(told.reacts.contains(&true));
                    assert_eq!(self.reactions(told), wanted, "a key stands once while anybody reacts with it");
                }
            }
        }
    }
}

/// Prints how it came to a failure.
impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.trace.join("\n"));
        }
    }
}

async fn histories(seeds: impl Iterator<Item = u64>) {
    let world = World::new().await;
    for seed in seeds {
        let mut history = History::new(world.lane().await, seed);
        history.trace.push(format!("OUTBOX_SEED={seed}"));
        for _ in 0..STEPS {
            history.step().await;
        }
        history.come_to_rest().await;
        history.check();
        history.lane.clone().forget().await;
    }
}

#[tokio::test]
async fn whatever_happens_the_room_shows_in_the_end_what_the_database_says() {
    let first = seed();
    let last = if is_repeated() { first } else { first + HISTORIES - 1 };
    let even = tokio::spawn(histories((first..=last).filter(|seed| seed % 2 == 0)));
    histories((first..=last).filter(|seed| seed % 2 == 1)).await;
    even.await.unwrap();
}
