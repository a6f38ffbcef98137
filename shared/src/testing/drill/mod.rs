//! Drills: the whole product under one kind of fault, with traffic from a seed, and the ledger at the end.
//!
//! Each scenario plays in rounds of a few thousand requests at most. A round has a database, a homeserver and programs of
//! its own. While clients write, the scenario does its harm; then all faults end, everything has to drain, and the rooms
//! are compared with what the clients were answered.
//!
//! The seed decides what the clients ask and when a fault comes, but not how processes interleave: the same seed is
//! the same drill, not the same run.

use std::{
    str::FromStr,
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{
    database::TestDatabase,
    ledger::{Asked, Harm, Ledger, Senders},
    private::PrivatePostgres,
    traffic::{Chance, Traffic, Work, drained, note_event_ids, undelivered},
};

mod report;
mod scenarios;
mod stage;

pub use report::Report;
use stage::Stage;

/// What happens while clients write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// Workers are killed at any moment, and the API now and then.
    Crash,
    /// The homeserver refuses connections for a while, then answers nothing for a while.
    Outage,
    /// An eighth of all requests to the homeserver fails, in every way that a homeserver fails.
    Flaky,
    /// Links to Postgres are cut, and Postgres is stopped and started.
    Database,
    /// Workers are stopped past their leases, and go on as if nothing had happened.
    Zombie,
    /// The homeserver restarts: it forgets what it had in memory, and requests in flight.
    Restart,
    /// One worker after another is replaced while all go on, and an operation waits that none of them knows.
    Deploy,
}

impl Scenario {
    /// Every scenario.
    pub const ALL: [Self; 7] =
        [Self::Crash, Self::Outage, Self::Flaky, Self::Database, Self::Zombie, Self::Restart, Self::Deploy];

    /// As on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Outage => "outage",
            Self::Flaky => "flaky",
            Self::Database => "database",
            Self::Zombie => "zombie",
            Self::Restart => "restart",
            Self::Deploy => "deploy",
        }
    }

    /// How many faults of its kind a round has, unless it is told otherwise.
    const fn faults(self) -> usize {
        match self {
            Self::Crash => 20,
            Self::Outage | Self::Database => 4,
            Self::Flaky => 0,
            Self::Zombie | Self::Deploy => 6,
            Self::Restart => 10,
        }
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.as_str() == name)
            .ok_or_else(|| format!("there is no drill {name:?}; there are {}", known()))
    }
}

/// Requests of one round at most: the ledger and the memory of the fake homeserver are made for thousands.
const ROUND: usize = 4_000;

/// What to play.
#[derive(Debug, Clone, Copy)]
pub struct Drill {
    /// What happens.
    pub scenario: Scenario,
    /// What follows from it: see the [module](self).
    pub seed: u64,
    /// Requests of the clients over all rounds.
    pub operations: usize,
    /// Faults over all rounds; none for as many as are usual.
    pub faults: Option<usize>,
}

impl Drill {
    /// Plays it. What was not as it should be is in the report, also when it could not be played to its end.
    pub async fn play(self) -> Report {
        let report = Arc::new(Mutex::new(Report::new(self.scenario, self.seed)));
        let played = tokio::spawn(self.play_rounds(Arc::clone(&report))).await;
        let mut report = report.lock().unwrap().clone();
        if let Err(stopped) = played {
            report.broken.push(format!("round {} was not played to its end: {stopped}", report.rounds + 1));
        }
        report
    }

    async fn play_rounds(self, report: Arc<Mutex<Report>>) {
        let rounds = self.operations.div_ceil(ROUND).max(1);
        for round in 0..rounds {
            let share = |all: usize| all * (round + 1) / rounds - all * round / rounds;
            let faults = self.faults.map_or(self.scenario.faults(), share);
            let seed = self.seed.wrapping_add(round as u64);
            let mut so_far = report.lock().unwrap().clone();
            play_round(self.scenario, seed, share(self.operations), faults, &mut so_far).await;
            *report.lock().unwrap() = so_far;
        }
    }
}

async fn play_round(scenario: Scenario, seed: u64, operations: usize, faults: usize, report: &mut Report) {
    let began = Instant::now();
    let postgres = (scenario == Scenario::Database).then(PrivatePostgres::start);
    let database = match &postgres {
        Some(postgres) => TestDatabase::create_on(&postgres.url).await,
        None => TestDatabase::create().await,
    };
    let asked = Asked::new();
    let mut stage = Stage::set(database, postgres, Chance::of(seed)).await;
    let traffic = Traffic {
        seed,
        clients: 8,
        operations,
        conversations: (operations / 100).clamp(4, 20),
        // While the homeserver is away nothing is delivered, and clients go on writing.
        ahead: if scenario == Scenario::Outage { usize::MAX } else { 20 },
        guests: true,
    };
    let work = traffic.begin(&stage.front, &asked).await;
    scenarios::disturb(scenario, &mut stage, &work, Bout { operations, faults }).await;
    work.done().await;
    stage.calm().await;
    let _last = stage.worker().await;
    drained(&stage.database).await;
    note_event_ids(&stage.database, &asked).await;
    let senders = Senders::ServiceAccount(stage.account.user_id().to_owned());
    let checked = Ledger::new(&asked, &stage.account, senders).exclusive().check().await;
    let counts = |sql: &'static str| stage.database.count(sql);
    report.rounds += 1;
    report.operations += operations;
    report.faults += stage.faults();
    report.undelivered += undelivered(&stage.database).await + counts("select count(*) from outbox").await;
    report.dead_letters += counts("select count(*) from dead_letters").await;
    report.attempts += counts("select count(*) from attempts").await;
    report.probes += stage.probes();
    report.unanswered += stage.front.unanswered();
    if scenario == Scenario::Outage && stage.front.unanswered() > 0 {
        report.broken.push(format!("{} requests to the API failed in an outage of Matrix", stage.front.unanswered()));
    }
    report.broken.append(&mut stage.broken);
    if let Err(found) = checked {
        report.lost += found.count(Harm::Lost);
        report.doubled += found.count(Harm::Doubled);
        report.reordered += found.count(Harm::Reordered);
        report.leaked += found.count(Harm::Leaked);
        report.wrong += found.count(Harm::Wrong);
        report.broken.push(format!("seed {seed}: {found}"));
    }
    report.seconds += began.elapsed().as_secs_f64();
}

/// How much harm a round does, beside how much work.
#[derive(Debug, Clone, Copy)]
struct Bout {
    operations: usize,
    faults: usize,
}

impl Bout {
    /// After how many sends the n-th fault comes: of ten requests at least six come to an event of their own.
    fn when(self, fault: usize) -> u64 {
        ((fault + 1) * self.operations * 6 / 10 / (self.faults + 1)) as u64
    }
}

/// Whether a fault still finds work to disturb.
async fn reached(stage: &Stage, work: &Work, sends: u64) {
    super::eventually_within(std::time::Duration::from_mins(10), "the clients come that far", || async {
        (stage.fake.sends() >= sends || work.is_done()).then_some(())
    })
    .await;
}
