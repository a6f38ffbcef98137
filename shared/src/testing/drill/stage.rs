//! The product and its surroundings, as a drill disturbs them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Signal, kill_process};

use crate::testing::{
    database::TestDatabase,
    homeserver::{FakeHomeserver, Fault},
    matrix_client::{HomeserverAddress, MatrixClient},
    nova::{Environment, Front, Program, api_environment, service_account, worker_environment},
    private::PrivatePostgres,
    proxy::PgProxy,
    traffic::Chance,
};

/// Leases as short as they may be: what a dead worker had lies for one.
const QUICK: [(&str, &str); 2] = [("OUTBOX_LEASE", "1s"), ("OUTBOX_HTTP_TIMEOUT", "500ms")];

/// How long the homeserver takes to answer: long enough that a fault finds requests in flight.
const LATENCY: Duration = Duration::from_millis(5);

pub(super) struct Stage {
    pub(super) fake: FakeHomeserver,
    pub(super) account: MatrixClient,
    pub(super) database: TestDatabase,
    pub(super) postgres: Option<PrivatePostgres>,
    /// Between the programs and the database.
    pub(super) link: PgProxy,
    pub(super) front: Front,
    pub(super) chance: Chance,
    /// What was not as the scenario demands.
    pub(super) broken: Vec<String>,
    /// Faults that the homeserver counts by itself.
    pub(super) flaws: Vec<Fault>,
    done: u64,
    probes: u64,
    api: Program,
    worker_environment: Environment,
}

/// A worker with a link of its own to the database, which sees when to end it.
pub(super) struct Victim {
    pub(super) program: Program,
    link: PgProxy,
}

impl Victim {
    /// Dies before its n-th statement from now on reaches the database.
    pub(super) async fn dies_at_statement(&mut self, n: usize) {
        let (pid, n) = (self.program.pid(), n as u64);
        let killed = Arc::new(Mutex::new(false));
        self.link.on_statement(move |number| {
            let mut killed = killed.lock().unwrap();
            if number >= n && !*killed {
                *killed = true;
                // It may have ended for another reason.
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        self.program.ended().await;
    }
}

impl Stage {
    pub(super) async fn set(database: TestDatabase, postgres: Option<PrivatePostgres>, mut chance: Chance) -> Self {
        let fake = FakeHomeserver::start().await;
        let account = service_account(&HomeserverAddress::from(&fake)).await;
        fake.latency(LATENCY);
        let link = PgProxy::start(&database.url).await;
        let api = Program::start("api", &api_environment(link.url())).await;
        let mut worker_environment = worker_environment(link.url(), &account);
        worker_environment.extend(QUICK.map(|(name, value)| (name.to_owned(), value.to_owned())));
        // In half of the rounds workers hear their echoes, which settle what nobody answers for; in the others they do not.
        let listening = chance.below(2) == 0;
        worker_environment.insert("MATRIX_SYNC_ENABLED".to_owned(), listening.to_string());
        Self {
            front: Front::at(&api.url()),
            fake,
            account,
            database,
            postgres,
            link,
            chance,
            broken: Vec::new(),
            flaws: Vec::new(),
            done: 0,
            probes: 0,
            api,
            worker_environment,
        }
    }

    /// Counts one fault.
    pub(super) const fn count(&mut self) {
        self.done += 1;
    }

    pub(super) fn faults(&self) -> u64 {
        self.done + self.flaws.iter().map(Fault::hits).sum::<u64>()
    }

    pub(super) const fn probes(&self) -> u64 {
        self.probes
    }

    pub(super) async fn worker(&self) -> Program {
        Program::start("worker", &self.worker_environment).await
    }

    pub(super) async fn victim(&self) -> Victim {
        let link = PgProxy::start(&self.database.url).await;
        let mut environment = self.worker_environment.clone();
        environment.insert("DATABASE_URL".to_owned(), link.url().to_owned());
        Victim { program: Program::start("worker", &environment).await, link }
    }

    /// Kills the API and starts another, at another place.
    pub(super) async fn replace_api(&mut self) {
        self.api.kill();
        self.api = Program::start("api", &api_environment(self.link.url())).await;
        self.front.move_to(&self.api);
    }

    /// Adds the probes that a worker has made.
    pub(super) async fn add_probes(&mut self, worker: &Program) {
        let text = reqwest::get(format!("{}/metrics", worker.url())).await.unwrap().text().await.unwrap();
        let probes = text
            .lines()
            .filter(|line| line.starts_with("outbox_circuit_probes_total"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        self.probes += probes.sum::<u64>();
    }

    /// No more faults.
    pub(super) async fn calm(&mut self) {
        self.fake.clear_faults();
        self.fake.latency(Duration::ZERO);
        self.fake.set_black_hole(false);
        self.fake.set_down(false).await;
        self.link.restore();
    }
}
