//! What operators type, against running programs.

use std::{
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use shared::testing::{
    eventually,
    homeserver::FakeHomeserver,
    nova::{Environment, Program, program_path},
};
use sqlx::AssertSqlSafe;

use crate::scene::{Home, Scene, id, metric, room_of, sends, shape};

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

#[tokio::test(flavor = "multi_thread")]
async fn three_dead_letters_with_ten_waiting_behind_are_the_first_three_in_the_room() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    for n in 1..=3 {
        scene.dead(&fake, &conversation, &format!("dead {n}")).await;
    }
    let between = id(&scene.ada.post(&conversation, "delivered meanwhile").await.expect(201));
    scene.ada.delivered(&between).await;
    scene.outboxctl(&["pause", "--conversation", &conversation, "--reason", "to look"]).await.text(0);
    for n in 1..=10 {
        scene.ada.post(&conversation, &format!("waiting {n}")).await.expect(201);
    }
    let preview = scene.outboxctl(&["requeue", "--conversation", &conversation, "--dry-run", "--json"]).await.json(0);
    assert_eq!((&preview["dry_run"], &preview["requeued"]), (&json!(true), &json!(3)));
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 3, "a preview changes nothing");
    let said = scene.outboxctl(&["requeue", "--conversation", &conversation, "--dry-run"]).await;
    for words in ["3 come back", "10 waiting after them", "1 later message delivered meanwhile", "(to look)"] {
        assert!(said.text(0).contains(words), "{words} in {}", said.out);
    }
    let done = scene.outboxctl(&["requeue", "--conversation", &conversation, "--json"]).await.json(0);
    assert_eq!(done["conversations"], preview["conversations"], "the act does what the preview said");
    let resumed = scene.outboxctl(&["resume", "--conversation", &conversation]).await;
    assert!(resumed.text(0).contains("resumed; 1 lane with something to send"), "{}", resumed.out);
    scene.drained().await;
    let dead = (1..=3).map(|n| format!("dead {n}"));
    let waiting = (1..=10).map(|n| format!("waiting {n}"));
    let expected: Vec<_> =
        ["begun", "delivered meanwhile"].map(str::to_owned).into_iter().chain(dead).chain(waiting).collect();
    assert_eq!(shape(&fake.timeline(&room)), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_message_takes_its_edits_along_and_ends_with_its_newest_text() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.patient_worker().await;
    let (conversation, room) = scene.begun().await;
    let refused = fake.on_send().hold().fail(413).once();
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    refused.arrived().await;
    scene.ada.edit(&message, "words two").await.expect(200);
    refused.release();
    scene.becomes(&message, "dead").await;
    let letters = scene.outboxctl(&["list", "--conversation", &conversation, "--json"]).await.json(0);
    let causes: Vec<_> = letters["items"].as_array().unwrap().iter().map(|letter| &letter["cause"]).collect();
    assert_eq!(causes.len(), 2);
    let edit = letters["items"].as_array().unwrap().iter().find(|letter| letter["kind"] == "edit").unwrap();
    assert_eq!(edit["cause"], "parent_dead");
    let alone = scene.outboxctl(&["requeue", edit["outbox_id"].as_str().unwrap(), "--json"]).await.json(1);
    assert_eq!(alone["refused"][0]["reason"], "parent_dead");
    // Where its edits can no longer be changed in place they follow it.
    let done = scene.outboxctl(&["requeue", &message, "--json"]).await.json(0);
    assert_eq!(done["requeued"], 2);
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words one", "1 := words two"]);
    let read = scene.ada.get(&format!("/messages/{message}")).await;
    assert_eq!((&read["plaintext"], &read["matrix"]["delivery"]), (&json!("words two"), &json!("delivered")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_never_requeued_and_its_text_is_nowhere() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let message = scene.dead(&fake, &conversation, CANARY).await;
    let listed = scene.outboxctl(&["list", "--json"]).await;
    let letter = listed.json(0)["items"][0]["outbox_id"].as_str().unwrap().to_owned();
    let shown = scene.outboxctl(&["show", &message]).await;
    let shown_json = scene.outboxctl(&["show", &message, "--json"]).await;
    let seen = fake.on_any().body_contains(CANARY).always();
    scene.ada.delete(&message).await.expect(200);
    let by_message = scene.outboxctl(&["requeue", &message, "--json"]).await;
    assert_eq!(by_message.json(1)["refused"][0]["reason"], "deleted");
    let by_letter = scene.outboxctl(&["requeue", &letter]).await;
    assert!(by_letter.text(1).contains("0 operations came back"), "{by_letter:?}");
    let all = scene.outboxctl(&["requeue", "--conversation", &conversation, "--json"]).await;
    assert_eq!(all.json(1)["requeued"], 0);
    assert!(scene.trail().await.is_empty(), "nothing was done");
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    scene.ada.delivered(&next).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "next"]);
    assert_eq!(seen.hits(), 0);
    for said in [&listed, &shown, &shown_json, &by_message, &by_letter, &all] {
        assert!(!said.out.contains(CANARY) && !said.err.contains(CANARY), "{said:?}");
    }
    for (place, text) in [
        ("the tables", everything_stored(&scene).await),
        ("the worker's log", worker.log().join("\n")),
        ("the API's log", scene.api.log().join("\n")),
    ] {
        assert!(!text.contains(CANARY), "in {place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snoozed_conversation_goes_on_by_itself_and_has_lost_no_attempt() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let (other, _) = scene.begun().await;
    let command = ["pause", "--conversation", &conversation, "--for", "1h", "--reason", "snooze", "--json"];
    let paused = scene.outboxctl(&command).await.json(0);
    assert_eq!((&paused["scope"], &paused["lanes"]), (&json!("conversation"), &json!(1)));
    let message = id(&scene.ada.post(&conversation, "during the pause").await.expect(201));
    let elsewhere = id(&scene.ada.post(&other, "elsewhere").await.expect(201));
    scene.ada.delivered(&elsewhere).await;
    let why = scene.ada.get(&format!("/messages/{message}/delivery")).await;
    assert_eq!((&why["state"], &why["due_at"]), (&json!("pending"), &paused["until"]));
    assert_eq!(why["waiting_for"], "the end of a pause of its lane (snooze)");
    let listed = scene.outboxctl(&["list", "--state", "paused"]).await;
    assert!(listed.text(0).contains("snooze"), "{listed:?}");
    assert_eq!(shape(&fake.timeline(&room)), ["begun"]);
    scene.database.advance(Duration::from_hours(1)).await;
    scene.ada.delivered(&message).await;
    let shown = scene.outboxctl(&["show", &message, "--json"]).await.json(0);
    let attempts: Vec<_> =
        shown["operations"][0]["attempts"].as_array().unwrap().iter().map(|attempt| &attempt["outcome"]).collect();
    assert_eq!(attempts, ["delivered"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_leaves_what_is_on_the_wire_alone() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.patient_worker().await;
    let (conversation, room) = scene.begun().await;
    let lane = format!("{conversation}/{conversation}");
    for end in [&["--for", "1h"] as &[&str], &[]] {
        let held = fake.on_send().hold().once();
        let message = id(&scene.ada.post(&conversation, "on the wire").await.expect(201));
        held.arrived().await;
        let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
        let command: Vec<&str> =
            ["pause", "--lane", &lane, "--reason", "why"].into_iter().chain(end.iter().copied()).collect();
        scene.outboxctl(&command).await.text(0);
        held.release();
        scene.ada.delivered(&message).await;
        scene.attempted("delivered", 2).await;
        assert_eq!(scene.ada.get(&format!("/messages/{next}")).await["matrix"]["delivery"], "pending");
        scene.outboxctl(&["resume", "--lane", &lane]).await.text(0);
        scene.ada.delivered(&next).await;
    }
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "on the wire", "next", "on the wire", "next"]);
}

/// A worker's gauge, once it is so.
async fn reads(worker: &Program, name: &str, value: f64) {
    eventually(&format!("{name} is {value}"), || async {
        ((metric(worker, name).await - value).abs() < f64::EPSILON).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_of_every_scope_outlive_a_worker_and_resume_undoes_each() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let (other, _) = scene.begun().await;
    let lane = format!("{conversation}/{conversation}");
    for (scope, gauge) in [
        (vec!["--all"], "outbox_paused{scope=\"all\"}"),
        (vec!["--class", "chat"], "outbox_paused{scope=\"chat\"}"),
        (vec!["--conversation", &conversation], "outbox_held_lanes"),
        (vec!["--lane", &lane, "--for", "24h"], "outbox_paused{scope=\"lane\"}"),
    ] {
        let command: Vec<&str> =
            ["pause", "--reason", "maintenance"].into_iter().chain(scope.iter().copied()).collect();
        scene.outboxctl(&command).await.text(0);
        let sent = fake.sends();
        let message = id(&scene.ada.post(&conversation, "later").await.expect(201));
        worker.kill();
        worker = scene.worker().await;
        reads_line(&worker, gauge).await;
        reads(&worker, "outbox_listening", 1.0).await;
        let sent = if gauge.contains("all") || gauge.contains("chat") {
            // It is woken by what is posted, and looks again at each poll.
            polled(&scene, 10).await;
            sent
        } else {
            let elsewhere = id(&scene.ada.post(&other, "elsewhere").await.expect(201));
            scene.ada.delivered(&elsewhere).await;
            sent + 1
        };
        assert_eq!(scene.ada.get(&format!("/messages/{message}")).await["matrix"]["delivery"], "pending");
        assert_eq!(fake.sends(), sent, "{scope:?}");
        let scope: Vec<&str> = scope.into_iter().filter(|word| !matches!(*word, "--for" | "24h")).collect();
        let command: Vec<&str> = ["resume", "--json"].into_iter().chain(scope).collect();
        let resumed = scene.outboxctl(&command).await.json(0);
        assert_eq!((&resumed["ended"], &resumed["lanes_going_on"]), (&json!(1), &json!(1)));
        scene.ada.delivered(&message).await;
        assert!(scene.outboxctl(&command).await.complaint(1).contains("nothing to resume"));
    }
}

/// Waits for as long as a worker takes for so many polls.
async fn polled(scene: &Scene, polls: u32) {
    let now = "select (extract(epoch from outbox_now()) * 1000)::bigint";
    let began = scene.database.count(now).await;
    eventually("time passes", || async {
        (scene.database.count(now).await > began + i64::from(polls) * 50).then_some(())
    })
    .await;
}

/// Waits until a gauge of these labels is 1.
async fn reads_line(worker: &Program, gauge: &str) {
    eventually(&format!("{gauge} is 1"), || async {
        let text = reqwest::get(format!("{}/metrics", worker.url())).await.ok()?.text().await.ok()?;
        text.lines().any(|line| line == format!("{gauge} 1")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_a_worker_held_for_its_room_is_found_and_resumed_by_the_same_verb() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let refused = fake.on_send().room(&room).fail(400).errcode("M_UNKNOWN").always();
    let message = id(&scene.ada.post(&conversation, "first").await.expect(201));
    scene.becomes(&message, "dead").await;
    refused.remove();
    // A redaction that is refused for good holds its lane.
    let refused = fake.on_redact().fail(400).errcode("M_UNKNOWN").always();
    let gone = id(&scene.ada.post(&conversation, "gone").await.expect(201));
    scene.ada.delivered(&gone).await;
    scene.ada.delete(&gone).await.expect(200);
    reads(&worker, "outbox_held_lanes", 1.0).await;
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    reads(&worker, "outbox_depth", 2.0).await;
    reads(&worker, "outbox_dead_letters", 1.0).await;
    let held = scene.outboxctl(&["list", "--state", "held", "--json"]).await.json(0);
    assert_eq!(held["items"][0]["conversation_id"], json!(conversation));
    assert_eq!(held["items"][0]["waiting"], 2);
    let reason = held["items"][0]["reason"].as_str().unwrap().to_owned();
    refused.remove();
    scene.outboxctl(&["resume", "--held", "--because", "another reason"]).await.complaint(1);
    let resumed = scene.outboxctl(&["resume", "--held", "--because", &reason, "--json"]).await.json(0);
    assert_eq!((&resumed["ended"], &resumed["lanes_going_on"]), (&json!(1), &json!(1)));
    scene.ada.delivered(&next).await;
    reads(&worker, "outbox_held_lanes", 0.0).await;
    reads(&worker, "outbox_depth", 0.0).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "gone", "x 1", "next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn show_says_why_what_to_do_what_happened_and_what_waits_behind() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    fake.on_send().fail(503).times(2);
    fake.on_send().fail(413).once();
    let message = id(&scene.ada.post(&conversation, CANARY).await.expect(201));
    scene.becomes(&message, "dead").await;
    scene.outboxctl(&["pause", "--all", "--reason", "why"]).await.text(0);
    for _ in 0..2 {
        scene.ada.post(&conversation, CANARY).await.expect(201);
    }
    let said = scene.outboxctl(&["show", &message]).await;
    for words in [
        "state        dead",
        "cause        it cannot be sent as it is (M_TOO_LARGE)",
        "what to do   have the message shortened",
        "in its lane  0 before it, 2 behind it",
        "3 attempts",
    ] {
        assert!(said.text(0).contains(words), "{words} in\n{}", said.out);
    }
    let errors: Vec<_> = said.out.lines().filter(|line| line.contains(" error  ")).collect();
    assert!(errors[0].starts_with("first error") && errors[0].contains("503"), "{errors:?}");
    assert!(errors[1].starts_with("last error") && errors[1].contains("413 M_TOO_LARGE"), "{errors:?}");
    let shown = scene.outboxctl(&["show", &message, "--json"]).await.json(0);
    let operation = shown["operations"][0]["outbox_id"].as_str().unwrap();
    let same = scene.outboxctl(&["show", operation, "--json"]).await.json(0);
    assert_eq!(same["operations"], shown["operations"]);
    assert!(!said.out.contains(CANARY) && !shown.to_string().contains(CANARY));
    let nobody = uuid::Uuid::now_v7().to_string();
    assert!(scene.outboxctl(&["show", &nobody]).await.complaint(1).contains("nothing is known"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_act_is_in_the_trail_once_with_who_and_why_and_is_counted() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    reads(&worker, "outbox_requeued_total", 0.0).await;
    let (one, two) = (scene.dead(&fake, &conversation, "one").await, scene.dead(&fake, &conversation, "two").await);
    scene.outboxctl(&["requeue", &one, "--as", "grace", "--reason", "mended"]).await.text(0);
    scene.outboxctl(&["discard", &two, "--reason", "spam"]).await.text(0);
    scene.outboxctl(&["pause", "--class", "call", "--reason", "quiet"]).await.text(0);
    scene.outboxctl(&["resume", "--class", "call"]).await.text(0);
    // None of these does anything.
    scene.outboxctl(&["requeue", &one]).await.text(1);
    scene.outboxctl(&["discard", &two, "--reason", "spam"]).await.text(1);
    scene.outboxctl(&["resume", "--all"]).await.complaint(1);
    scene.outboxctl(&["pause", "--conversation", &one, "--reason", "no conversation"]).await.complaint(1);
    let trail = scene.trail().await;
    let rows: Vec<_> = trail
        .iter()
        .map(|row| (row["acted_by"].as_str().unwrap(), row["verb"].as_str().unwrap(), row["reason"].as_str()))
        .collect();
    let expected = [
        ("ada", "resume", None),
        ("ada", "pause", Some("quiet")),
        ("ada", "discard", Some("spam")),
        ("grace", "requeue", Some("mended")),
    ];
    assert_eq!(rows, expected);
    let said = scene.outboxctl(&["audit", "--conversation", &conversation]).await;
    assert_eq!(said.text(0).lines().count(), 3, "{}", said.out);
    reads(&worker, "outbox_requeued_total", 1.0).await;
    reads(&worker, "outbox_discarded_total", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_and_a_resume_wake_the_worker_and_do_not_wait_for_its_poll() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker_with(&[("OUTBOX_POLL", "10m")]).await;
    reads(&worker, "outbox_listening", 1.0).await;
    let (conversation, _) = scene.begun().await;
    let message = scene.dead(&fake, &conversation, "dead").await;
    scene.outboxctl(&["requeue", &message]).await.text(0);
    scene.ada.delivered(&message).await;
    scene.outboxctl(&["pause", "--all", "--reason", "why"]).await.text(0);
    let paused = id(&scene.ada.post(&conversation, "paused").await.expect(201));
    scene.outboxctl(&["resume", "--all"]).await.text(0);
    scene.ada.delivered(&paused).await;
}

/// The names of an object's fields, in order.
fn keys(value: &Value) -> String {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_read_the_same_shapes_of_dead_letters_for_ever() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let (one, two) = (scene.dead(&fake, &conversation, "one").await, scene.dead(&fake, &conversation, "two").await);
    let dead = scene.outboxctl(&["list", "--limit", "1", "--json"]).await.json(0);
    assert_eq!(keys(&dead), "items next_cursor state");
    assert_eq!(
        keys(&dead["items"][0]),
        "attempts cause cause_in_words conversation_id detail died_at enqueued_at errcode hint kind lane_id maybe_sent \
         outbox_id repair revision seq subject_id user_id"
    );
    assert_eq!(dead["items"][0]["subject_id"], json!(two), "newest first");
    let cursor = dead["next_cursor"].as_str().unwrap();
    let rest = scene.outboxctl(&["list", "--cursor", cursor, "--json"]).await.json(0);
    assert_eq!((&rest["items"][0]["subject_id"], &rest["next_cursor"]), (&json!(one), &Value::Null));
    assert_eq!(rest["items"].as_array().unwrap().len(), 1);

    let shown = scene.outboxctl(&["show", &one, "--json"]).await.json(0);
    assert_eq!(keys(&shown), "id message operations");
    assert_eq!(
        keys(&shown["message"]),
        "author_id conversation_id created_at deleted_at disabled edited_at message_id revision seq"
    );
    let operation = &shown["operations"][0];
    assert_eq!(
        keys(operation),
        "ahead attempts attempts_total behind conversation_id dead due_at event_id first_error kind lane_id \
         last_error maybe_sent_at outbox_id place revision seq sentence state subject_id waited waiting_for \
         withdrawn"
    );
    assert_eq!(keys(&operation["dead"]), "cause cause_in_words died_at errcode hint");
    assert_eq!(keys(&operation["first_error"]), "at detail duration_ms errcode http_status outcome");

    let requeue = scene.outboxctl(&["requeue", &one, "--dry-run", "--json"]).await.json(0);
    assert_eq!(keys(&requeue), "conversations dry_run refused requeued");
    let of_conversation = &requeue["conversations"][0];
    assert_eq!(keys(of_conversation), "conversation_id lanes operations");
    assert_eq!(keys(&of_conversation["lanes"][0]), "after back before delivered_meanwhile lane_id waits waits_until");
    assert_eq!(keys(&of_conversation["operations"][0]), "cause errcode kind lane_id outbox_id seq subject_id");
    let refused = scene.outboxctl(&["requeue", &conversation, "--json"]).await.json(1);
    assert_eq!(keys(&refused["refused"][0]), "id reason reason_in_words");
    let discarded = scene.outboxctl(&["discard", &one, "--reason", "why", "--json"]).await.json(0);
    assert_eq!(keys(&discarded), "conversations discarded refused");
    assert_eq!(keys(&discarded["conversations"][0]), "conversation_id live operations");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_read_the_same_shapes_of_pauses_and_of_the_trail_for_ever() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let lane = format!("{conversation}/{conversation}");
    let json = async |arguments: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        scene.outboxctl(&arguments).await.json(0)
    };
    let paused = json(&["pause", "--all", "--for", "1h", "--reason", "why"]).await;
    assert_eq!(keys(&paused), "class conversation_id lane_id lanes scope until");
    json(&["pause", "--lane", &lane, "--for", "1h", "--reason", "why"]).await;
    let list = json(&["list", "--state", "paused"]).await;
    assert_eq!(keys(&list), "items next_cursor pauses state");
    assert_eq!(keys(&list["pauses"][0]), "paused_at paused_by reason scope until");
    assert_eq!(keys(&list["items"][0]), "conversation_id lane_class lane_id reason until waiting");
    json(&["pause", "--lane", &lane, "--reason", "why"]).await;
    scene.ada.post(&conversation, "live").await.expect(201);
    let list = json(&["list", "--state", "held"]).await;
    assert_eq!(keys(&list), "items next_cursor state");
    assert_eq!(keys(&list["items"][0]), "conversation_id lane_class lane_id oldest_at reason repair waiting");
    let list = json(&["list", "--state", "live"]).await;
    assert_eq!(
        keys(&list["items"][0]),
        "conversation_id enqueued_at failures first hold kind lane_due_at lane_id last_errcode maybe_sent outbox_id seq \
         subject_id user_id"
    );
    let resumed = json(&["resume", "--lane", &lane]).await;
    assert_eq!(keys(&resumed), "class conversation_id ended lane_id lanes_going_on scope still_paused");
    assert_eq!(resumed["still_paused"][0]["scope"], "all");
    let trail = json(&["audit"]).await;
    assert_eq!(keys(&trail), "items next_cursor");
    assert_eq!(
        keys(&trail["items"][0]),
        "acted_at acted_by affected arguments audit_id conversation_id reason scope verb"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_held_lanes_are_resumed_in_batches_each_of_which_is_an_act() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    sqlx::raw_sql(
        "create temporary table stuck as select gen_random_uuid() as id from generate_series(1, 1200);
         insert into conversations select id, null, id, outbox_now(), 0 from stuck;
         insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, hold, epoch)
         select id, id, 'chat', 0, 0, 'a fault', 0 from stuck;",
    )
    .execute(&scene.database.pool)
    .await
    .unwrap();
    let resumed = scene.outboxctl(&["resume", "--held", "--reason", "mended", "--json"]).await.json(0);
    assert_eq!((&resumed["scope"], &resumed["ended"]), (&json!("held"), &json!(1200)));
    assert_eq!(keys(&resumed), "class conversation_id ended lane_id lanes_going_on locked scope still_paused");
    let trail: Vec<_> = scene.trail().await.iter().map(|row| row["affected"].clone()).collect();
    assert_eq!(trail, [200, 500, 500]);
    assert_eq!(scene.database.count("select count(*) from lanes where hold is not null").await, 0);
}

/// Lanes whose fault is not mended are held again by workers, faster than they are resumed here; one is locked.
#[tokio::test(flavor = "multi_thread")]
async fn resuming_all_held_lanes_is_one_pass_that_ends_and_waits_for_nobody() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    sqlx::raw_sql(
        "create temporary table stuck as select gen_random_uuid() as id from generate_series(1, 1200);
         insert into conversations select id, null, id, outbox_now(), 0 from stuck;
         insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, hold, epoch)
         select id, id, 'chat', 0, 0, 'a fault', 0 from stuck;
         create sequence resumed;
         create function hold_again() returns trigger language plpgsql as $$
         begin
             if nextval('resumed') > 2000 then raise exception 'without end'; end if;
             new.hold := 'a fault';
             return new;
         end $$;
         create trigger hold_again before update on lanes for each row when (new.hold is null)
         execute function hold_again();",
    )
    .execute(&scene.database.pool)
    .await
    .unwrap();
    let mut stranger = scene.database.pool.begin().await.unwrap();
    sqlx::query("select 1 from lanes order by conversation_id limit 1 for no key update")
        .execute(&mut *stranger)
        .await
        .unwrap();
    let said = scene.outboxctl(&["resume", "--held", "--json"]).await;
    let resumed = said.json(1);
    assert_eq!((&resumed["ended"], &resumed["locked"]), (&json!(1199), &json!(1)));
    assert!(said.err.contains("1 held lane locked just now") && said.err.contains("run it again"), "{}", said.err);
    let only_one = "update lanes set hold = 'another' where conversation_id = (select min(conversation_id::text)::uuid from lanes)";
    sqlx::query(only_one).execute(&mut *stranger).await.unwrap();
    stranger.commit().await.unwrap();
    let mut stranger = scene.database.pool.begin().await.unwrap();
    sqlx::query("select 1 from lanes where hold = 'another' for no key update").execute(&mut *stranger).await.unwrap();
    let said = scene.outboxctl(&["resume", "--held", "--because", "another"]).await;
    assert!(said.complaint(1).contains("1 held lane locked just now"), "{said:?}");
    stranger.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_whose_redaction_can_never_succeed_goes_on_once_that_is_discarded_by_its_id() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    fake.on_redact().fail(400).errcode("M_UNKNOWN").always();
    let gone = id(&scene.ada.post(&conversation, "to be deleted").await.expect(201));
    scene.ada.delivered(&gone).await;
    scene.ada.delete(&gone).await.expect(200);
    reads(&worker, "outbox_held_lanes", 1.0).await;
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    scene.outboxctl(&["resume", "--held"]).await.text(0);
    // It is held again: that is what `discard` is for.
    scene.attempted("own_fault", 2).await;
    let lane = format!("{conversation}/{conversation}");
    let live = scene.outboxctl(&["list", "--state", "live", "--kind", "redact", "--json"]).await.json(0);
    let redaction = live["items"][0]["outbox_id"].as_str().unwrap().to_owned();
    let held = scene.outboxctl(&["list", "--state", "held"]).await;
    assert!(held.text(0).contains(&redaction), "the reason names it: {}", held.out);

    let by_message = scene.outboxctl(&["discard", &gone, "--reason", "why", "--json"]).await.json(1);
    assert_eq!(by_message["refused"][0]["reason"], "unnamed");
    let wanted = scene.outboxctl(&["show", &next, "--json"]).await.json(0);
    let wanted = wanted["operations"][0]["outbox_id"].as_str().unwrap();
    let said = scene.outboxctl(&["discard", wanted, "--reason", "why"]).await;
    assert!(said.text(1).contains("not the first of its held lane"), "{}", said.out);
    assert!(scene.outboxctl(&["discard", &redaction]).await.complaint(2).contains("--reason"));
    assert_eq!(scene.database.count("select count(*) from outbox").await, 2);

    let said = scene.outboxctl(&["discard", &redaction, "--reason", "redacted by hand"]).await;
    for words in ["stays readable on Matrix", &format!("outboxctl resume --lane {lane}"), "1 operation discarded"] {
        assert!(said.text(0).contains(words), "{words} in\n{}", said.out);
    }
    let trail = scene.trail().await;
    assert_eq!((&trail[0]["verb"], &trail[0]["reason"]), (&json!("discard"), &json!("redacted by hand")));
    assert_eq!(trail[0]["arguments"]["live"][0]["outbox_id"], json!(redaction));
    assert_eq!(scene.ada.get(&format!("/messages/{next}")).await["matrix"]["delivery"], "pending");
    scene.outboxctl(&["resume", "--lane", &lane]).await.text(0);
    scene.ada.delivered(&next).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "to be deleted", "next"], "as the warning says");
}

/// Two conversations are two acts; when the second fails, the first is done and told.
#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_that_fails_halfway_tells_what_came_back() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    let (first, _) = scene.begun().await;
    let (second, _) = scene.begun().await;
    let (one, two) = (scene.dead(&fake, &first, "one").await, scene.dead(&fake, &second, "two").await);
    worker.kill();
    let mut tx = scene.database.pool.begin().await.unwrap();
    let later = first.clone().max(second.clone());
    sqlx::query("select 1 from conversations where conversation_id::text = $1 for no key update")
        .bind(&later)
        .execute(&mut *tx)
        .await
        .unwrap();
    let said = scene.outboxctl(&["requeue", &one, &two, "--json"]).await;
    assert_eq!(said.json(1)["requeued"], 1);
    assert!(said.err.contains("lock timeout"), "{said:?}");
    assert_eq!(scene.trail().await.len(), 1);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_is_told_apart_from_failure_and_changes_nothing() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let somebody = uuid::Uuid::now_v7().to_string();
    for wrong in [
        vec!["pause", "--all"],
        vec!["pause", "--reason", "why"],
        vec!["pause", "--all", "--class", "chat", "--reason", "why"],
        vec!["pause", "--all", "--reason", " "],
        vec!["pause", "--all", "--reason", "why", "--until", "2020-01-01T00:00:00Z"],
        vec!["pause", "--all", "--reason", "why", "--until", "tomorrow"],
        vec!["pause", "--all", "--reason", "why", "--for", "0s"],
        vec!["pause", "--all", "--reason", "why", "--for", "1h", "--until", "2099-01-01T00:00:00Z"],
        vec!["pause", "--lane", &somebody, "--reason", "why"],
        vec!["resume"],
        vec!["resume", "--held", "--all"],
        vec!["resume", "--all", "--because", "why"],
        vec!["requeue"],
        vec!["requeue", &somebody, "--cause", "own_fault"],
        vec!["requeue", &somebody, "--conversation", &somebody],
        vec!["discard", &somebody],
        vec!["show", "not-an-id"],
        vec!["list", "--cursor", "not-a-cursor"],
        vec!["list", "--limit", "0"],
        vec!["list", "--state", "held", "--cause", "own_fault"],
        vec!["list", "--state", "held", "--kind", "edit"],
        vec!["pause", "--all", "--reason", "why", "--as", ""],
    ] {
        let said = scene.outboxctl(&wrong).await;
        assert!(!said.complaint(2).is_empty(), "{wrong:?}");
    }
    for nothing in [vec!["requeue", somebody.as_str()], vec!["discard", &somebody, "--reason", "why"]] {
        assert!(scene.outboxctl(&nothing).await.text(1).contains("nothing is known"));
    }
    assert!(type_in("postgres://127.0.0.1:1/x", &["list"]).await.complaint(1).len() > 1);
    assert!(type_in("nonsense", &["list"]).await.complaint(2).contains("DATABASE_URL"));
    assert_eq!(scene.database.count("select count(*) from audit_log").await, 0);
    assert_eq!(scene.database.count("select count(*) from pauses").await, 0);
    for verb in ["list", "show", "requeue", "discard", "pause", "resume", "audit"] {
        let help = scene.outboxctl(&[verb, "--help"]).await;
        assert!(help.text(0).contains("Examples:"), "{}", help.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_homeserver_can_take_by_now_leaves_once_and_under_its_old_transaction() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let message = scene.dead(&fake, &conversation, "words").await;
    let before = sends(&fake).len();
    let said = scene.outboxctl(&["requeue", &message, &message]).await;
    assert!(said.text(0).contains("1 operation came back"), "{}", said.out);
    let room = room_of(&scene.ada.delivered(&message).await).to_owned();
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words"]);
    let sends = sends(&fake);
    assert_eq!(sends.len(), before + 1);
    assert_eq!(sends[before].txn, sends[before - 1].txn);
}
