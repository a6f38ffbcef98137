//! What operators type, against running programs.

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use shared::testing::{
    eventually,
    homeserver::FakeHomeserver,
    nova::{Environment, Program, program_path},
};
use sqlx::AssertSqlSafe;

use crate::scene::{Scene, id, metric};

mod bulk;
mod by_hand;
mod pauses;
mod requeue;
mod seeing;
mod shapes;
mod trail;

/// What is found nowhere after it was deleted.
const CANARY: &str = "canary-7f3a";

/// What a command printed and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn json(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{self:?}"))
    }

    #[track_caller]
    fn text(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        &self.out
    }

    #[track_caller]
    fn complaint(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        &self.err
    }
}

/// Types a command with nothing but the database's address and a login name in the environment.
async fn type_in(url: &str, arguments: &[&str]) -> Said {
    let environment = Environment::from([("DATABASE_URL".into(), url.into()), ("USER".into(), "ada".into())]);
    let mut command = Command::new(program_path("outboxctl"));
    command.args(arguments).env_clear().envs(environment).stdin(Stdio::null());
    let output: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Scene {
    async fn outboxctl(&self, arguments: &[&str]) -> Said {
        type_in(&self.database.url, arguments).await
    }

    async fn trail(&self) -> Vec<Value> {
        let page = self.outboxctl(&["audit", "--json", "--limit", "1000"]).await.json(0);
        page["items"].as_array().unwrap().clone()
    }

    async fn becomes(&self, message: &str, state: &str) {
        eventually(&format!("{message} is {state}"), || async {
            let read = self.ada.get(&format!("/messages/{message}")).await;
            (read["matrix"]["delivery"] == state).then_some(())
        })
        .await;
    }

    /// A message that the homeserver will never take, dead.
    async fn dead(&self, fake: &FakeHomeserver, conversation: &str, text: &str) -> String {
        fake.on_send().fail(400).errcode("M_BAD_JSON").once();
        let message = id(&self.ada.post(conversation, text).await.expect(201));
        self.becomes(&message, "dead").await;
        message
    }
}

/// Every text column of every table, and every JSON and binary one as text.
async fn everything_stored(scene: &Scene) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I', table_name) from information_schema.tables
         where table_schema = 'public' and table_type = 'BASE TABLE'",
    )
    .fetch_all(&scene.database.pool)
    .await
    .unwrap();
    let mut all = String::new();
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!("select t::text from {table} t")))
            .fetch_all(&scene.database.pool)
            .await
            .unwrap();
        all += &rows.join("\n");
    }
    all
}

/// A worker's gauge, once it is so.
async fn reads(worker: &Program, name: &str, value: f64) {
    eventually(&format!("{name} is {value}"), || async {
        ((metric(worker, name).await - value).abs() < f64::EPSILON).then_some(())
    })
    .await;
}

/// The names of an object's fields, in order.
fn keys(value: &Value) -> String {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys.join(" ")
}
