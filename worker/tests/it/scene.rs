//! The whole product around a homeserver, as a test needs it.

use std::time::Duration;

use serde_json::Value;
use shared::testing::{
    database::TestDatabase,
    eventually,
    homeserver::{FakeHomeserver, Kind, LoggedRequest},
    matrix_client::{HomeserverAddress, MatrixClient, MatrixEvent},
    nova::{Environment, NovaUser, Program, api_environment, service_account, worker_environment},
    test_variable,
};

/// A homeserver and the service account on it.
pub(crate) struct Home {
    pub(crate) address: HomeserverAddress,
    pub(crate) account: MatrixClient,
    /// Whether it is a Synapse: beside other tests on a small machine it takes seconds for a room.
    real: bool,
}

/// How a worker waits for a Synapse.
const FOR_SYNAPSE: [(&str, &str); 2] = [("OUTBOX_LEASE", "20s"), ("OUTBOX_HTTP_TIMEOUT", "15s")];

impl Home {
    pub(crate) async fn of(fake: &FakeHomeserver) -> Self {
        let address = HomeserverAddress::from(fake);
        Self { account: service_account(&address).await, address, real: false }
    }

    pub(crate) async fn synapse() -> Self {
        Self::at(HomeserverAddress {
            url: test_variable("TEST_HOMESERVER_URL"),
            server_name: test_variable("TEST_HOMESERVER_NAME"),
            registration_secret: test_variable("TEST_HOMESERVER_REGISTRATION_SECRET"),
        })
        .await
    }

    /// A Synapse of the test's own.
    pub(crate) async fn at(address: HomeserverAddress) -> Self {
        Self { account: service_account(&address).await, address, real: true }
    }

    /// The Matrix account of a user, registered.
    pub(crate) async fn member(&self, user: &NovaUser) -> MatrixClient {
        let localpart = format!("nova-{}", user.user_id.as_uuid().simple());
        MatrixClient::register(&self.address, &localpart, "password").await.unwrap()
    }
}

/// Database and API, and the environment of workers.
pub(crate) struct Scene {
    pub(crate) database: TestDatabase,
    pub(crate) api: Program,
    pub(crate) worker_environment: Environment,
    pub(crate) ada: NovaUser,
    pub(crate) grace: NovaUser,
}

impl Scene {
    pub(crate) async fn new(home: &Home) -> Self {
        let database = TestDatabase::create().await;
        let url = database.url.clone();
        Self::with(home, database, &url).await
    }

    /// With a database that programs reach at this URL.
    pub(crate) async fn with(home: &Home, database: TestDatabase, url: &str) -> Self {
        let api = Program::start("api", &api_environment(url)).await;
        let mut worker_environment = worker_environment(url, &home.account);
        if home.real {
            worker_environment.extend(FOR_SYNAPSE.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
        Self { database, api, worker_environment, ada, grace }
    }

    pub(crate) async fn worker(&self) -> Program {
        Program::start("worker", &self.worker_environment).await
    }

    /// A worker that waits long for the homeserver, so that a test may hold what it asks.
    pub(crate) async fn patient_worker(&self) -> Program {
        self.worker_with(&[("OUTBOX_LEASE", "40s"), ("OUTBOX_HTTP_TIMEOUT", "30s")]).await
    }

    /// A worker that waits long after a failure, so that a test may act before the next attempt.
    pub(crate) async fn slow_worker(&self) -> Program {
        self.worker_with(&[("OUTBOX_BACKOFF", "15s")]).await
    }

    /// A worker with other options.
    pub(crate) async fn worker_with(&self, options: &[(&str, &str)]) -> Program {
        let mut environment = self.worker_environment.clone();
        environment.extend(options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Program::start("worker", &environment).await
    }

    /// The API once more, with other options.
    pub(crate) async fn api_with(&self, options: &[(&str, &str)]) -> Program {
        let mut environment = api_environment(&self.database.url);
        environment.extend(options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Program::start("api", &environment).await
    }

    /// A conversation of the two, with a room in which one message stands. Who listens from now on is told none of that:
    /// the log is past it, which any transaction on the same servers can hold back.
    pub(crate) async fn begun(&self) -> (String, String) {
        let conversation = self.ada.create_conversation(&[self.grace.user_id]).await;
        let first = id(&self.ada.post(&conversation, "begun").await.expect(201));
        let room = room_of(&self.ada.delivered(&first).await).to_owned();
        eventually("the log is past it", || async {
            let unread = "select count(*) from events where xid >= pg_snapshot_xmin(pg_current_snapshot())";
            (self.database.count(unread).await == 0).then_some(())
        })
        .await;
        (conversation, room)
    }

    /// Lets twenty seconds pass: what waits after a failure is due.
    pub(crate) async fn later(&self) {
        self.database.advance(Duration::from_secs(20)).await;
    }

    /// Waits until nothing is left to do.
    pub(crate) async fn drained(&self) {
        eventually("everything is done", || async {
            (self.database.count("select count(*) from outbox").await == 0).then_some(())
        })
        .await;
    }

    /// Waits until so many attempts ended in this way.
    pub(crate) async fn attempted(&self, outcome: &str, times: i64) {
        eventually(&format!("{times} attempts are {outcome}"), || async {
            let found: i64 = sqlx::query_scalar("select count(*) from attempts where outcome = $1")
                .bind(outcome)
                .fetch_one(&self.database.pool)
                .await
                .unwrap();
            (found >= times).then_some(())
        })
        .await;
    }
}

/// The room of a message that is known to stand in one.
pub(crate) fn room_of(message: &Value) -> &str {
    message["matrix"]["room_id"].as_str().unwrap()
}

/// What stands in a room beside its state, an entry for each event. A message is its text, one that was redacted
/// `gone`, an edit `<place> := <text>`, a reaction `<place> + <key>`, a redaction `x <place>`, what closes a transaction
/// `void`.
pub(crate) fn shape(events: &[MatrixEvent]) -> Vec<String> {
    let events: Vec<&MatrixEvent> = events.iter().filter(|event| event.state_key.is_none()).collect();
    let place = |id: &str| events.iter().position(|event| event.event_id == id).unwrap_or(usize::MAX);
    events
        .iter()
        .map(|event| match event.event_type.as_str() {
            "m.room.redaction" => format!("x {}", place(event.content["redacts"].as_str().unwrap_or_default())),
            "com.nova.outbox.void" => "void".to_owned(),
            _ if event.is_redacted() => "gone".to_owned(),
            "m.room.message" => match event.replaces() {
                Some(original) => {
                    format!("{} := {}", place(original), event.content["m.new_content"]["body"].as_str().unwrap())
                }
                None => event.body().unwrap().to_owned(),
            },
            "m.reaction" => {
                let relates_to = &event.content["m.relates_to"];
                format!("{} + {}", place(relates_to["event_id"].as_str().unwrap()), relates_to["key"].as_str().unwrap())
            }
            other => other.to_owned(),
        })
        .collect()
}

/// What was asked of the homeserver under transaction ids, in order.
pub(crate) fn sends(fake: &FakeHomeserver) -> Vec<LoggedRequest> {
    fake.requests().into_iter().filter(|request| matches!(request.kind, Kind::Send | Kind::Redact)).collect()
}

/// The sum of a metric over all its labels.
pub(crate) async fn metric(program: &Program, name: &str) -> f64 {
    let text = reqwest::get(format!("{}/metrics", program.url())).await.unwrap().text().await.unwrap();
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Waits until a message is dead.
pub(crate) async fn dead(scene: &Scene, message: &str) {
    eventually(&format!("{message} is dead"), || async {
        let read = scene.ada.get(&format!("/messages/{message}")).await;
        (read["matrix"]["delivery"] == "dead").then_some(())
    })
    .await;
}

/// The id of what an answer describes.
pub(crate) fn id(body: &Value) -> String {
    body["id"].as_str().unwrap().to_owned()
}
