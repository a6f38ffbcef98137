//! What was deleted is nowhere, whatever it was about to become when it was deleted: not in the rooms, not in a table, a
//! log, a metric or an answer. Nor are tokens, secrets and keys; nor, outside of rooms and answers, any text at all.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use shared::{
    ids::OutboxId,
    outbox,
    testing::{
        database::TestDatabase,
        eventually,
        homeserver::FakeHomeserver,
        nova::{JWT_SECRET, NovaUser, Program, api_environment, worker_environment},
        traces::TraceCollector,
    },
};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::scene::{Home, Scene, id, sends};

/// Somewhere that something may be left lying.
struct Place {
    name: String,
    content: String,
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from_digit(digit.into(), 16).unwrap()).collect()
}

/// What must not be found, in the forms in which it may be left.
fn forms(needle: &str) -> Vec<String> {
    let bytes = format!("{:?}", needle.as_bytes());
    vec![needle.to_owned(), hex(needle.as_bytes()), STANDARD.encode(needle), bytes[1..bytes.len() - 1].to_owned()]
}

/// Where something is found, and around what.
fn finds(places: &[Place], needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    for place in places {
        for form in forms(needle) {
            if let Some(at) = place.content.find(&form) {
                let line = place.content[..at].rsplit('\n').next().unwrap_or_default();
                let short: String = line.chars().rev().take(300).collect::<Vec<_>>().into_iter().rev().collect();
                found.push(format!("{}: …{short}{form}", place.name));
            }
        }
    }
    found
}

/// Every row of every table, as text: what is binary, in hexadecimal.
async fn tables(database: &TestDatabase) -> Vec<Place> {
    let names: Vec<String> = sqlx::query_scalar(
        "select format('%I', tablename) from pg_tables where schemaname = 'public' order by tablename",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let mut places = Vec::new();
    for name in names {
        let sql = format!("select coalesce(string_agg(t::text, E'\\n'), '') from {name} t");
        let content = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&database.pool).await.unwrap();
        places.push(Place { name: format!("table {name}"), content });
    }
    places
}

async fn metrics(name: &str, program: &Program) -> Place {
    let content = reqwest::get(format!("{}/metrics", program.url())).await.unwrap().text().await.unwrap();
    Place { name: format!("metrics of {name}"), content }
}

fn log(name: &str, program: &Program) -> Place {
    Place { name: format!("log of {name}"), content: program.log().join("\n") }
}

/// The whole product at its most talkative, with keys of its own.
struct Stage {
    fake: FakeHomeserver,
    home: Home,
    scene: Scene,
    collector: TraceCollector,
    key: [u8; 32],
    workers: Vec<Program>,
    /// Texts that were deleted.
    gone: Vec<String>,
    /// Texts that stay.
    kept: Vec<String>,
    /// All messages.
    messages: Vec<String>,
    conversations: Vec<String>,
}

impl Stage {
    async fn set() -> Self {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let database = TestDatabase::create().await;
        let mut key = [0; 32];
        key[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        let keys = format!("canary:{}", STANDARD.encode(key));
        let collector = TraceCollector::start().await;
        let mut environment = api_environment(&database.url);
        let mut worker_environment = worker_environment(&database.url, &home.account);
        for environment in [&mut environment, &mut worker_environment] {
            environment.insert("CONTENT_KEYS".to_owned(), keys.clone());
            environment.insert("RUST_LOG".to_owned(), "trace".to_owned());
            environment.extend(collector.environment());
        }
        // What waits after a failure waits until the test lets time pass.
        worker_environment.insert("OUTBOX_BACKOFF".to_owned(), "5s".to_owned());
        let api = Program::start("api", &environment).await;
        let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
        let scene = Scene { database, api, worker_environment, ada, grace };
        let (gone, kept, messages) = (Vec::new(), Vec::new(), Vec::new());
        Self { fake, home, scene, collector, key, workers: Vec::new(), gone, kept, messages, conversations: Vec::new() }
    }

    async fn worker(&mut self) {
        self.workers.push(self.scene.worker().await);
    }

    async fn conversation(&mut self) -> String {
        let conversation = self.scene.ada.create_conversation(&[self.scene.grace.user_id]).await;
        self.conversations.push(conversation.clone());
        conversation
    }

    /// A conversation whose room stands, with a text that stays.
    async fn begun(&mut self) -> String {
        let conversation = self.conversation().await;
        let text = format!("kept {}", Uuid::new_v4());
        let message = id(&self.scene.ada.post(&conversation, &text).await.expect(201));
        self.kept.push(text);
        self.messages.push(message.clone());
        self.scene.ada.delivered(&message).await;
        self.scene.drained().await;
        conversation
    }

    /// A text that will be deleted.
    fn doomed(&mut self, stage: &str) -> String {
        let text = format!("{stage} {}", Uuid::new_v4());
        self.gone.push(text.clone());
        text
    }

    async fn post(&mut self, conversation: &str, text: &str) -> String {
        let message = id(&self.scene.ada.post(conversation, text).await.expect(201));
        self.messages.push(message.clone());
        message
    }

    async fn delete(&self, message: &str, deletion: &str) {
        let deleted = self.scene.ada.delete(message).await.expect(200);
        assert_eq!(deleted["deletion"], deletion, "{deleted}");
    }

    async fn state(&self, message: &str, delivery: &str) {
        eventually(&format!("{message} is {delivery}"), || async {
            let read = self.scene.ada.get(&format!("/messages/{message}")).await;
            (read["matrix"]["delivery"] == delivery).then_some(())
        })
        .await;
    }

    /// Waits until a message's first attempt has ended in doubt.
    async fn ambiguous(&self, message: &str) {
        let message: Uuid = message.parse().unwrap();
        eventually("an attempt ends in doubt", || async {
            let attempts: i64 = sqlx::query_scalar(
                "select count(*) from attempts a join messages m on m.send_outbox_id = a.outbox_id
                 where m.message_id = $1 and a.outcome = 'ambiguous'",
            )
            .bind(message)
            .fetch_one(&self.scene.database.pool)
            .await
            .unwrap();
            (attempts > 0).then_some(())
        })
        .await;
    }

    /// Lets time pass until nothing is left to do.
    async fn drained(&self) {
        self.scene.later().await;
        eventually("everything is done", || async {
            // A failure on the way waits again.
            self.scene.database.advance(std::time::Duration::from_millis(200)).await;
            (self.scene.database.count("select count(*) from outbox").await == 0).then_some(())
        })
        .await;
    }

    async fn deleted_while_it_waits(&mut self) {
        let conversation = self.conversation().await;
        let (text, edited) = (self.doomed("waiting"), self.doomed("edited while waiting"));
        let message = self.post(&conversation, &text).await;
        self.delete(&message, "cancelled").await;
        let message = self.post(&conversation, &self.gone[0].clone()).await;
        self.scene.ada.edit(&message, &edited).await.expect(200);
        self.delete(&message, "cancelled").await;
    }

    async fn deleted_while_its_room_is_made(&mut self) {
        let made = self.fake.on_create_room().hold().once();
        let (conversation, text) = (self.conversation().await, self.doomed("room under way"));
        let message = self.post(&conversation, &text).await;
        made.arrived().await;
        self.delete(&message, "redacting").await;
        made.release();
        self.drained().await;
    }

    async fn deleted_on_its_way(&mut self, arrives: bool) {
        let (conversation, text) = (self.begun().await, self.doomed("on its way"));
        let sending = self.fake.on_send().body_contains(&text);
        let held = if arrives { sending.hold_answer().once() } else { sending.hold().once() };
        let message = self.post(&conversation, &text).await;
        held.arrived().await;
        let sent = sends(&self.fake).pop().unwrap();
        self.delete(&message, "redacting").await;
        if !arrives {
            // Its sender gives it up before time passes.
            self.ambiguous(&message).await;
        }
        self.drained().await;
        // What was on its way arrives when all is over.
        held.release();
        eventually("what was held goes on", || async {
            self.fake.requests().into_iter().find(|request| request.arrived == sent.arrived)?.status
        })
        .await;
    }

    async fn deleted_in_doubt(&mut self, arrived: bool) {
        let (conversation, text) = (self.begun().await, self.doomed("in doubt"));
        let sending = self.fake.on_send().body_contains(&text);
        if arrived {
            sending.drop_after_accept().once()
        } else {
            sending.drop_before().once()
        };
        let message = self.post(&conversation, &text).await;
        self.ambiguous(&message).await;
        self.delete(&message, "redacting").await;
        self.drained().await;
    }

    async fn dead(&mut self, stage: &str) -> (String, String) {
        let (conversation, text) = (self.begun().await, self.doomed(stage));
        self.fake.on_send().body_contains(&text).fail(413).once();
        let message = self.post(&conversation, &text).await;
        self.state(&message, "dead").await;
        (conversation, message)
    }

    async fn deleted_when_dead(&mut self) {
        let (_, message) = self.dead("dead").await;
        let edited = self.doomed("dead and edited");
        self.scene.ada.edit(&message, &edited).await.expect(200);
        self.delete(&message, "cancelled").await;
    }

    async fn deleted_when_requeued(&mut self) {
        let (conversation, message) = self.dead("requeued").await;
        let held = self.fake.on_send().hold().once();
        let letter: OutboxId = sqlx::query_scalar("select outbox_id from dead_letters")
            .fetch_one(&self.scene.database.pool)
            .await
            .unwrap();
        let requeue = async || {
            let mut tx = self.scene.database.pool.begin().await.unwrap();
            let back = outbox::requeue(&mut tx, conversation.parse().unwrap(), letter).await.unwrap();
            tx.commit().await.unwrap();
            back
        };
        assert_eq!(requeue().await, outbox::Requeued::Back(1));
        held.arrived().await;
        self.delete(&message, "redacting").await;
        assert_eq!(requeue().await, outbox::Requeued::NotDead);
        held.release();
        self.drained().await;
        assert_eq!(requeue().await, outbox::Requeued::NotDead);
    }

    async fn deleted_when_delivered_and_edited(&mut self) {
        let (conversation, text) = (self.begun().await, self.doomed("delivered"));
        let edits = [self.doomed("edit delivered"), self.doomed("edit on its way"), self.doomed("edit waiting")];
        let message = self.post(&conversation, &text).await;
        self.scene.ada.delivered(&message).await;
        self.scene.ada.edit(&message, &edits[0]).await.expect(200);
        self.drained().await;
        let held = self.fake.on_send().body_contains(&edits[1]).hold_answer().once();
        self.scene.ada.edit(&message, &edits[1]).await.expect(200);
        held.arrived().await;
        self.scene.ada.edit(&message, &edits[2]).await.expect(200);
        self.delete(&message, "redacting").await;
        self.drained().await;
        held.release();
    }

    async fn deleted_and_asked_for_again(&mut self) {
        let (conversation, text) = (self.begun().await, self.doomed("asked for again"));
        let body = json!({"conversation_id": conversation, "plaintext": text});
        let post = async || {
            self.scene
                .ada
                .call_with("POST", "/messages", &[("Idempotency-Key", "canary")], Some(&body))
                .await
                .expect(201)
        };
        let message = id(&post().await);
        self.scene.ada.delivered(&message).await;
        self.delete(&message, "redacting").await;
        let replayed = post().await;
        assert_eq!((&replayed["id"], &replayed["plaintext"]), (&json!(message), &Value::Null));
        self.drained().await;
        self.messages.push(message);
    }

    async fn deleted_while_its_worker_dies(&mut self) {
        let (conversation, text) = (self.begun().await, self.doomed("worker killed"));
        let held = self.fake.on_send().body_contains(&text).hold_answer().once();
        let message = self.post(&conversation, &text).await;
        held.arrived().await;
        self.workers.last_mut().unwrap().kill();
        self.delete(&message, "redacting").await;
        self.worker().await;
        self.drained().await;
        held.release();
    }

    /// What anybody may be shown by the API.
    async fn answers(&self) -> Vec<Place> {
        let mut paths = Vec::new();
        paths.extend(self.messages.iter().map(|message| format!("/messages/{message}")));
        paths.extend(self.messages.iter().map(|message| format!("/messages/{message}/delivery")));
        paths.extend(self.conversations.iter().map(|conversation| format!("/conversations/{conversation}/messages")));
        let mut places = Vec::new();
        for path in paths {
            let content = self.scene.grace.get(&path).await.to_string();
            places.push(Place { name: format!("answer of {path}"), content });
        }
        places
    }

    fn rooms(&self) -> Vec<Place> {
        let timeline = |room: &String| {
            let events = self.fake.timeline(room);
            let lines = events.iter().map(|event| format!("{} {} {}", event.event_id, event.content, event.unsigned));
            Place { name: format!("room {room}"), content: lines.collect::<Vec<_>>().join("\n") }
        };
        self.fake.rooms().iter().map(timeline).collect()
    }

    /// What nobody reads who is not to read texts.
    async fn insides(&self) -> Vec<Place> {
        let mut places = tables(&self.scene.database).await;
        places.push(log("api", &self.scene.api));
        places.push(metrics("api", &self.scene.api).await);
        places.extend(self.workers.iter().map(|worker| log("worker", worker)));
        places.push(metrics("worker", self.workers.last().unwrap()).await);
        places.push(Place { name: "traces".to_owned(), content: self.collector.raw() });
        places
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_was_deleted_at_any_stage_is_found_nowhere_and_secrets_never_were() {
    let mut stage = Stage::set().await;
    stage.deleted_while_it_waits().await;
    stage.worker().await;
    stage.deleted_while_its_room_is_made().await;
    for arrives in [true, false] {
        stage.deleted_on_its_way(arrives).await;
        stage.deleted_in_doubt(arrives).await;
    }
    stage.deleted_when_dead().await;
    stage.deleted_when_requeued().await;
    stage.deleted_when_delivered_and_edited().await;
    stage.deleted_and_asked_for_again().await;
    stage.deleted_while_its_worker_dies().await;
    stage.drained().await;

    let (insides, rooms, answers) = (stage.insides().await, stage.rooms(), stage.answers().await);
    // What looks, sees: ids in tables and logs, names of metrics, and the texts that stay where they belong.
    let message: &str = stage.messages.last().unwrap();
    let seen = finds(&insides, message);
    assert!(seen.iter().any(|place| place.starts_with("table messages")), "{seen:?}");
    assert!(!finds(&insides, &stage.scene.api.url()["http://".len()..]).is_empty());
    assert!(insides.iter().any(|place| place.name == "log of worker" && place.content.contains("\"TRACE\"")));
    assert!(finds(&insides, "outbox_attempts_total").iter().any(|place| place.starts_with("metrics of worker")));
    for name in ["POST /messages", "commit", "wait", "attempt", "PUT"] {
        assert!(finds(&insides, name).iter().any(|place| place.starts_with("traces")), "{name}");
    }
    for text in &stage.kept {
        assert_eq!(finds(&rooms, text).len(), 1, "{text}");
        assert!(!finds(&answers, text).is_empty(), "{text}");
    }

    let mut found = Vec::new();
    for text in &stage.gone {
        found.extend(finds(&insides, text));
        found.extend(finds(&rooms, text));
        found.extend(finds(&answers, text));
    }
    for text in &stage.kept {
        found.extend(finds(&insides, text));
    }
    let key = STANDARD.encode(stage.key);
    let raw_key = hex(&stage.key);
    for secret in [stage.home.account.access_token(), JWT_SECRET, &key, &raw_key, "eyJ"] {
        found.extend(finds(&insides, secret));
        found.extend(finds(&answers, secret));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    let revisions: Vec<Uuid> = sqlx::query_scalar(
        "select r.message_id from message_revisions r join messages m using (conversation_id, message_id)
         where m.deleted_at is not null",
    )
    .fetch_all(&stage.scene.database.pool)
    .await
    .unwrap();
    assert!(revisions.is_empty(), "sealed texts of deleted messages are kept: {revisions:?}");
}
