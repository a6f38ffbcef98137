//! `GET /ws`: what clients are told, and that they are told all of it, once.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::testing::{
    database::TestDatabase,
    eventually,
    nova::{Environment, NovaUser, Program, api_environment},
    websocket::{Heard, Socket},
};

mod connections;
mod faults;
mod frames;
mod resume;
mod send;

/// How long to listen for what must not come: some polls.
const A_WHILE: Duration = Duration::from_millis(400);

async fn api_with(database: &TestDatabase, options: &[(&str, &str)]) -> Program {
    Program::start("api", &environment_with(&database.url, options)).await
}

fn environment_with(database_url: &str, options: &[(&str, &str)]) -> Environment {
    let mut environment = api_environment(database_url);
    environment.extend(options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    environment
}

/// Ada and Grace, a conversation of the two, and a process.
struct Scene {
    database: TestDatabase,
    api: Program,
    ada: NovaUser,
    grace: NovaUser,
    conversation: String,
}

impl Scene {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(options: &[(&str, &str)]) -> Self {
        let database = TestDatabase::create().await;
        let api = api_with(&database, options).await;
        let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
        let conversation = ada.create_conversation(&[grace.user_id]).await;
        // Other tests of this server may hold the log back: what is heard begins after this.
        eventually("the log can be read to its end", || async {
            let held = "select count(*) from events where xid >= pg_snapshot_xmin(pg_current_snapshot())";
            (database.count(held).await == 0).then_some(())
        })
        .await;
        Self { database, api, ada, grace, conversation }
    }

    /// Posts as Ada; returns the message's id.
    async fn post(&self, text: &str) -> String {
        let message = self.ada.post(&self.conversation, text).await.expect(201);
        message["id"].as_str().unwrap().to_owned()
    }
}

/// What comes until nothing has come for a while; heartbeats apart.
async fn all_for_now(socket: &mut Socket) -> Vec<Value> {
    let mut frames = Vec::new();
    let mut until = Instant::now() + A_WHILE;
    while let Some(heard) = socket.hear_within(until.saturating_duration_since(Instant::now())).await {
        match heard {
            Heard::Frame(frame) if frame["type"] == "heartbeat" => {}
            Heard::Frame(frame) => {
                frames.push(frame);
                until = Instant::now() + A_WHILE;
            }
            end => panic!("the connection ended: {end:?}"),
        }
    }
    frames
}

/// The types of frames.
fn types(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect()
}

/// The next so many frames but heartbeats.
async fn frames(socket: &mut Socket, n: usize) -> Vec<Value> {
    let mut frames = Vec::new();
    for _ in 0..n {
        frames.push(socket.frame().await);
    }
    frames
}

/// A frame without its cursor, which is opaque.
fn without_cursor(frame: &Value) -> Value {
    let mut frame = frame.clone();
    assert!(frame["cursor"].as_str().is_some_and(|cursor| !cursor.is_empty()), "{frame}");
    frame["cursor"] = json!(null);
    frame
}

/// A metric of a process; none when it has not been counted yet.
async fn metric(api: &Program, name: &str) -> Option<f64> {
    let metrics = reqwest::get(format!("{}/metrics", api.url())).await.ok()?.text().await.ok()?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.parse().ok()
}
