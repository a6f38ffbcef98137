//! What differs between the database and a real room is found, told and repaired; what is under way is not.

use std::{
    collections::BTreeSet,
    process::{Command, Output, Stdio},
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};
use shared::{
    outbox::{Ailment, Repair},
    tasks,
    testing::{
        eventually,
        homeserver::{FakeHomeserver, Fault},
        ledger::Asked,
        matrix_client::MatrixClient,
        nova::{Environment, Front, NovaUser, program_path},
        traffic::{Traffic, drained},
    },
};
use uuid::Uuid;

use crate::scene::{Home, Scene, id, room_of, shape};

/// Without the sync nothing mends itself.
const ALONE: [(&str, &str); 1] = [("MATRIX_SYNC_ENABLED", "false")];

/// Types a command; returns how it ended and what it printed.
async fn type_in(scene: &Scene, arguments: &[&str]) -> (i32, String) {
    let url = scene.database.url.clone();
    let environment = Environment::from([("DATABASE_URL".into(), url), ("USER".into(), "ada".into())]);
    let mut command = Command::new(program_path("outboxctl"));
    command.args(arguments).env_clear().envs(environment).stdin(Stdio::null());
    let output: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() != Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), out)
}

/// What a comparison found: kind and what it is about, a message or a member, else the operation.
async fn verify(scene: &Scene, conversation: &str, more: &[&str]) -> Value {
    let arguments = [&["verify", "--conversation", conversation, "--json"][..], more].concat();
    let (code, out) = type_in(scene, &arguments).await;
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}"));
    assert_eq!(report["status"], "done", "{report}");
    let clean = report["counts"].as_object().unwrap().is_empty();
    assert_eq!(code, i32::from(!clean), "{report}");
    assert_eq!(clean, report["findings"].as_array().unwrap().is_empty(), "{report}");
    report
}

fn found(report: &Value) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| {
            let about = text(&finding["subject_id"]).or(text(&finding["event_id"]));
            (text(&finding["kind"]).unwrap(), about.unwrap_or_default())
        })
        .collect()
}

fn expected(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    pairs.iter().map(|(kind, about)| ((*kind).to_owned(), (*about).to_owned())).collect()
}

impl Scene {
    /// Changes rows behind everybody's back. `$1` is the message or user.
    async fn damage(&self, sql: &'static str, subject: &str) {
        let subject: Uuid = subject.parse().unwrap();
        let changed = sqlx::query(sql).bind(subject).execute(&self.database.pool).await.unwrap().rows_affected();
        assert!(changed > 0, "{sql}");
    }

    async fn text(&self, sql: &'static str, subject: &str) -> String {
        let subject: Uuid = subject.parse().unwrap();
        sqlx::query_scalar(sql).bind(subject).fetch_one(&self.database.pool).await.unwrap()
    }

    async fn posted(&self, conversation: &str, text: &str) -> String {
        let message = id(&self.ada.post(conversation, text).await.expect(201));
        self.ada.delivered(&message).await;
        message
    }

    /// What waits of a message is taken to be sent, and never was.
    async fn never_sent(&self, message: &str) {
        self.damage(
            "with gone as (
                 delete from outbox where subject_id = $1 returning *
             ), idle as (
                 update lanes l set open = l.open - 1, due_at = null
                 from gone where l.conversation_id = gone.conversation_id and l.lane_id = gone.lane_id
             ), told as (
                 update messages m set matrix_event_id = '$' || gone.outbox_id
                 from gone where m.conversation_id = gone.conversation_id and m.send_outbox_id = gone.outbox_id
             )
             insert into sent_events (conversation_id, outbox_id, event_id, kind, subject_id, revision, room_id, sender,
                 sent_at)
             select gone.conversation_id, gone.outbox_id, '$' || gone.outbox_id, gone.kind, gone.subject_id,
                 gone.revision, r.matrix_room_id, '@nobody:nova.test', outbox_now()
             from gone join matrix_room_mappings r on r.conversation_id = gone.conversation_id",
            message,
        )
        .await;
    }
}

/// Grace may do whatever the account may, and is in the room.
async fn empowered(home: &Home, scene: &Scene, room: &str) -> MatrixClient {
    let grace = home.member(&scene.grace).await;
    empower(home, &grace, room).await;
    grace
}

async fn empower(home: &Home, grace: &MatrixClient, room: &str) {
    grace.join(room).await.unwrap();
    let power = json!({"users": {grace.user_id(): 100}});
    home.account.put_state(room, "m.room.power_levels", "", &power).await.unwrap();
}

fn matrix_id(home: &Home, user: &NovaUser) -> String {
    format!("@nova-{}:{}", user.user_id.as_uuid().simple(), home.address.server_name)
}

const EVENT_OF: &str =
    "select event_id from sent_events where subject_id = $1 and kind = 'message' and lost_at is null";

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one room, damaged in every way")]
async fn each_kind_of_damage_in_a_real_room_is_found_repaired_as_it_says_and_then_gone() {
    let home = Home::synapse().await;
    let scene = Scene::new(&home).await;
    let (bob, carol) = (NovaUser::new(&scene.api), NovaUser::new(&scene.api));
    let worker = scene.worker_with(&ALONE).await;
    let users = [scene.grace.user_id, bob.user_id, carol.user_id];
    for user in [&bob, &carol] {
        home.member(user).await;
    }
    let conversation = scene.ada.create_conversation(&users).await;
    let begun = scene.posted(&conversation, "begun").await;
    let room = room_of(&scene.ada.delivered(&begun).await).to_owned();
    let grace = empowered(&home, &scene, &room).await;
    let mut messages = Vec::new();
    for text in ["doubled", "unredacted", "stale", "unknown", "late", "early", "redacted", "moderated", "reacted"] {
        messages.push(scene.posted(&conversation, text).await);
    }
    let [doubled, unredacted, stale, unknown, late, early, redacted, moderated, liked] = &messages[..] else {
        panic!()
    };
    scene.ada.edit(unredacted, "unredacted edit").await.expect(200);
    scene.ada.edit(moderated, "moderated edit").await.expect(200);
    let react = format!("/messages/{liked}/reactions/up");
    assert!(scene.ada.call("PUT", &react, None).await.status < 300);
    let path = format!("/conversations/{conversation}/members/{}", carol.user_id);
    assert_eq!(scene.ada.call("DELETE", &path, None).await.status, 204);
    scene.drained().await;
    assert_eq!(found(&verify(&scene, &conversation, &[]).await), BTreeSet::new(), "before anything is damaged");

    // With nobody who would carry it out.
    drop(worker);
    let missing = id(&scene.ada.post(&conversation, "missing").await.expect(201));
    scene.never_sent(&missing).await;
    scene.ada.edit(stale, "stale no more").await.expect(200);
    scene
        .damage(
            "with gone as (delete from outbox where subject_id = $1 returning conversation_id)
             update lanes set open = 0, due_at = null where conversation_id in (select conversation_id from gone)",
            stale,
        )
        .await;
    let event = scene.text(EVENT_OF, doubled).await;
    let content = home.account.event(&room, &event).await.unwrap().content;
    home.account.send(&room, "m.room.message", "another-transaction", &content).await.unwrap();
    grace.send(&room, "m.room.message", "somebody-else", &content).await.unwrap();
    scene.damage("update messages set deleted_at = outbox_now() where message_id = $1", unredacted).await;
    scene.damage("delete from sent_events where subject_id = $1", unknown).await;
    scene
        .damage("update message_reactions set removed_at = outbox_now(), key = null where message_id = $1", liked)
        .await;
    let event = scene.text(EVENT_OF, redacted).await;
    home.account.redact(&room, &event, "by-hand", &json!({})).await.unwrap();
    let edit = scene.text("select event_id from sent_events where subject_id = $1 and kind = 'edit'", moderated).await;
    grace.redact(&room, &edit, "by-a-moderator", &json!({})).await.unwrap();
    for (message, seq) in [(late, 1_000_001), (early, 1_000_000)] {
        let sql = "update messages set seq = $2 where message_id = $1";
        let message: Uuid = message.parse().unwrap();
        sqlx::query(sql).bind(message).bind(i64::from(seq)).execute(&scene.database.pool).await.unwrap();
    }
    for after in [redacted, moderated, liked, &missing] {
        scene.damage("update messages set seq = seq + 2000000 where message_id = $1", after).await;
    }
    home.account.kick(&room, &matrix_id(&home, &bob)).await.unwrap();
    home.account.invite(&room, &matrix_id(&home, &carol)).await.unwrap();

    let _worker = scene.worker_with(&ALONE).await;
    let bob_id = bob.user_id.to_string();
    let carol_id = carol.user_id.to_string();
    let told = verify(&scene, &conversation, &[]).await;
    let spare = found(&told).into_iter().find(|(kind, _)| kind == "doubled").unwrap().1;
    let only_told = [("redacted", redacted.as_str()), ("reordered", early.as_str())];
    let repairable = [
        ("missing", missing.as_str()),
        ("doubled", spare.as_str()),
        ("unredacted", unredacted.as_str()),
        ("unredacted", liked.as_str()),
        ("stale", stale.as_str()),
        ("unknown", unknown.as_str()),
        ("member_missing", bob_id.as_str()),
        ("member_remains", carol_id.as_str()),
    ];
    assert_eq!(found(&told), expected(&[&only_told[..], &repairable[..]].concat()), "{told}");
    assert_eq!(told["counts"]["unredacted"], 3, "both texts of a message, and a reaction: {told}");
    for finding in told["findings"].as_array().unwrap() {
        let kind = finding["kind"].as_str().unwrap();
        assert_eq!(finding["repairable"] == false, ["redacted", "reordered"].contains(&kind), "{finding}");
        assert_eq!(finding["repaired"], false, "{finding}");
    }
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0, "to compare changes nothing");
    assert!(!told.to_string().contains("stale no more"), "no text is told");

    let mended = verify(&scene, &conversation, &["--repair", "--reason", "a test"]).await;
    assert_eq!(found(&mended), found(&told), "{mended}");
    for finding in mended["findings"].as_array().unwrap() {
        assert_eq!(finding["repaired"], finding["repairable"], "{finding}");
    }
    scene.drained().await;
    let repaired = "select count(*) from audit_log where verb = 'repair' and task_id is not null";
    assert_eq!(scene.database.count(repaired).await, 9, "an act each");

    let again = verify(&scene, &conversation, &["--repair", "--reason", "once more"]).await;
    assert_eq!(found(&again), expected(&only_told), "{again}");
    assert_eq!(scene.database.count(repaired).await, 9, "what is repaired is not repaired again");
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);

    let events = grace.timeline(&room).await.unwrap();
    let shown: Vec<String> = shape(&events).into_iter().filter(|line| !line.starts_with("x ")).collect();
    let place = |text: &str| shown.iter().position(|line| line == text);
    assert!(place("missing").is_some(), "{shown:?}");
    assert_eq!(place("unredacted"), None, "{shown:?}");
    assert!(shown.iter().any(|line| line.ends_with(":= stale no more")), "{shown:?}");
    assert!(!shown.iter().any(|line| line.ends_with("+ up")), "{shown:?}");
    // One is ours, one somebody else's.
    assert_eq!(shown.iter().filter(|line| *line == "doubled").count(), 2, "{shown:?}");
    assert_eq!(room_of(&scene.ada.delivered(&missing).await), room);
    let members = home.account.members(&room).await.unwrap();
    let membership = |user: &NovaUser| {
        let user = matrix_id(&home, user);
        members.iter().find(|(member, _)| *member == user).map(|(_, membership)| membership.as_str())
    };
    assert_eq!((membership(&bob), membership(&carol)), (Some("invite"), Some("leave")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_comes_back_with_its_newest_text_and_its_reactions_and_can_be_edited_and_deleted() {
    let home = Home::synapse().await;
    let scene = Scene::new(&home).await;
    let grace = home.member(&scene.grace).await;
    let worker = scene.worker_with(&ALONE).await;
    let (conversation, room) = scene.begun().await;
    grace.join(&room).await.unwrap();
    drop(worker);
    let message = id(&scene.ada.post(&conversation, "first text").await.expect(201));
    scene.never_sent(&message).await;
    scene.ada.edit(&message, "newest text").await.expect(200);
    scene.never_sent(&message).await;
    let react = format!("/messages/{message}/reactions/up");
    assert!(scene.grace.call("PUT", &react, None).await.status < 300);
    scene.never_sent(&message).await;
    let _worker = scene.worker_with(&ALONE).await;
    scene.posted(&conversation, "sent since").await;

    let found_first = verify(&scene, &conversation, &["--repair", "--reason", "a test"]).await;
    assert_eq!(found_first["counts"], json!({"missing": 3}), "{found_first}");
    scene.drained().await;
    let shown = shape(&grace.timeline(&room).await.unwrap());
    assert_eq!(shown, ["begun", "sent since", "newest text", "2 + up"]);
    assert_eq!(found(&verify(&scene, &conversation, &[]).await), BTreeSet::new(), "its place is known, too");

    scene.ada.edit(&message, "edited").await.expect(200);
    scene.drained().await;
    assert_eq!(scene.ada.delete(&message).await.expect(200)["deletion"], "redacting");
    scene.drained().await;
    let shown = shape(&grace.timeline(&room).await.unwrap());
    assert_eq!(shown.iter().filter(|line| *line == "gone").count(), 2, "{shown:?}");
    assert_eq!(found(&verify(&scene, &conversation, &[]).await), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_clients_write_and_the_homeserver_fails_nothing_is_found() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    fake.latency(Duration::from_millis(5));
    fake.on_any().chance(0.03, 1).fail(502).html("<h1>Bad gateway</h1>").always();
    fake.on_any().chance(0.03, 2).drop_before().always();
    fake.on_any().chance(0.05, 3).drop_after_accept().always();
    fake.on_any().chance(0.03, 4).delay_answer(Duration::from_millis(100)).always();
    let options = [("OUTBOX_BACKOFF", "20ms"), ("OUTBOX_LEASE", "1s"), ("OUTBOX_HTTP_TIMEOUT", "500ms")];
    let mut workers = vec![scene.worker_with(&options).await, scene.worker_with(&options).await];
    let asked = Asked::new();
    let traffic = Traffic { seed: 7, clients: 6, operations: 400, conversations: 4, ahead: 5, guests: true };
    let work = traffic.begin(&Front::at(&scene.api.url()), &asked).await;
    let (mut looks, mut killed) = (0, false);
    while !work.is_done() {
        // To repair what is under way would be the worst damage.
        let repairing: &[&str] = if looks % 2 == 1 { &["--repair", "--reason", "a test"] } else { &[] };
        let (_, out) = type_in(&scene, &[&["verify", "--all", "--json"], repairing].concat()).await;
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&report["counts"], &report["findings"]), (&json!({}), &json!([])), "{report}");
        looks += 1;
        if looks == 3 {
            workers[0].kill();
            workers.push(scene.worker_with(&options).await);
            killed = true;
        }
    }
    work.done().await;
    assert!(looks > 3 && killed, "{looks} looks");
    drained(&scene.database).await;
    assert_eq!(scene.database.count("select count(*) from audit_log where verb = 'repair'").await, 0);
    let (code, out) = type_in(&scene, &["verify", "--all"]).await;
    assert_eq!((code, out.trim()), (0, "4 conversations compared: nothing differs"));
}

/// Why the lane of a conversation is held, once it is.
async fn held(scene: &Scene, conversation: &str) -> String {
    eventually("the lane is held", || async {
        let hold: Option<String> = sqlx::query_scalar("select hold from lanes where conversation_id = $1::uuid")
            .bind(conversation)
            .fetch_one(&scene.database.pool)
            .await
            .unwrap();
        hold
    })
    .await
}

async fn repair(scene: &Scene, conversation: &str, which: &str) -> (i32, String) {
    type_in(scene, &["repair", "--conversation", conversation, which, "--reason", "a test"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_we_are_not_in_is_rejoined_once_we_are_invited_and_until_then_says_what_to_do() {
    let home = Home::synapse().await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let grace = empowered(&home, &scene, &room).await;
    home.account.leave(&room).await.unwrap();
    let waiting = id(&scene.ada.post(&conversation, "waits").await.expect(201));
    held(&scene, &conversation).await;
    let report = verify(&scene, &conversation, &[]).await;
    assert_eq!(report["counts"], json!({"unreadable": 1}), "{report}");
    let (code, out) = repair(&scene, &conversation, "rejoin").await;
    assert!(code == 1 && out.contains("invite it there"), "{out}");
    let (code, out) = repair(&scene, &conversation, "reinvite").await;
    assert!(code == 1 && out.contains("rejoin"), "{out}");
    grace.invite(&room, home.account.user_id()).await.unwrap();
    let (code, out) = repair(&scene, &conversation, "rejoin").await;
    assert!(code == 0 && out.contains("joined the room again") && out.contains("its lane goes on"), "{out}");
    scene.ada.delivered(&waiting).await;
    assert_eq!(shape(&grace.timeline(&room).await.unwrap()), ["begun", "waits"]);
    assert_eq!(found(&verify(&scene, &conversation, &[]).await), BTreeSet::new());
    let (code, out) = repair(&scene, &conversation, "rejoin").await;
    assert!(code == 0 && out.contains("was not held for that"), "{out}");
    let acts = "select count(*) from audit_log where verb = 'repair' and acted_by = 'ada' and reason = 'a test'";
    assert_eq!(scene.database.count(acts).await, 6, "four were asked for, two were done");
}

/// A conversation whose room the service account has left, that room, and a message that waits.
async fn left(home: &Home, scene: &Scene, grace: &MatrixClient) -> (String, String, String) {
    let (conversation, room) = scene.begun().await;
    empower(home, grace, &room).await;
    home.account.leave(&room).await.unwrap();
    let waiting = id(&scene.ada.post(&conversation, "waits").await.expect(201));
    held(scene, &conversation).await;
    (conversation, room, waiting)
}

/// Begins a task as the command does, without waiting for its end.
async fn begun_for_all(scene: &Scene, repair: Repair) -> String {
    let mut tx = scene.database.pool.begin().await.unwrap();
    let all = Ailment { repair, errcode: None };
    let task = tasks::start_repairs(&mut tx, "ada", all, Some("a test")).await.unwrap();
    tx.commit().await.unwrap();
    task.task_id.to_string()
}

/// Whether the errand was tried, says why it waits, and waits for its next try.
async fn waits(scene: &Scene) -> bool {
    let told = "select count(*) from operator_tasks
        where error like '%it is tried again' and leased_until is null and due_at > outbox_now()";
    scene.database.count(told).await == 1
}

async fn handed_back(scene: &Scene) {
    eventually("it is told why it waits", || async { waits(scene).await.then_some(()) }).await;
}

/// Waits until the errand has ended with so much done and left, however often it is tried meanwhile.
async fn through(scene: &Scene, done: i64, refused: i64) {
    eventually("the task has ended", || async {
        if waits(scene).await {
            scene.later().await;
        }
        let ended = "select done, refused from operator_tasks where status = 'done' and error is null";
        let ended: Option<(i64, i64)> = sqlx::query_as(ended).fetch_optional(&scene.database.pool).await.unwrap();
        ended.inspect(|counts| assert_eq!(*counts, (done, refused)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_all_mends_each_that_can_be_mended_and_says_what_to_do_about_the_others() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (code, out) = type_in(&scene, &["repair", "--all", "rejoin", "--dry-run"]).await;
    assert!(code == 1 && out.starts_with("0 conversations"), "{out}");
    let grace = home.member(&scene.grace).await;
    let mut outside = Vec::new();
    for _ in 0..3 {
        outside.push(left(&home, &scene, &grace).await);
    }
    let (well, _) = scene.begun().await;
    let (code, out) = type_in(&scene, &["list", "--state", "held"]).await;
    assert!(code == 0 && out.contains("Of all conversations: outboxctl repair --all rejoin"), "{out}");
    let (code, out) = type_in(&scene, &["repair", "--all", "rejoin", "--dry-run"]).await;
    assert!(code == 0 && out.starts_with("3 conversations would be repaired"), "{out}");
    let (code, out) = type_in(&scene, &["repair", "--all", "rejoin", "--dry-run", "--json"]).await;
    let counted: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, counted), (0, json!({"conversations": {"count": 3, "more": false}})));
    assert_eq!(scene.database.count("select count(*) from operator_tasks").await, 0, "a dry run begins nothing");

    let (first, rest) = outside.split_first().unwrap();
    for (_, room, _) in rest {
        grace.invite(room, home.account.user_id()).await.unwrap();
    }
    let (code, out) = type_in(&scene, &["repair", "--all", "rejoin", "--reason", "a test"]).await;
    assert_eq!(code, 1, "{out}");
    let told: Vec<&str> = out.lines().collect();
    assert!(told[1].starts_with(&first.0) && told[1].contains("invite it there"), "{out}");
    assert_eq!(told[2..], ["2 conversations repaired", "1 conversation could not be repaired"], "{out}");
    for (_, room, waiting) in rest {
        scene.ada.delivered(waiting).await;
        assert_eq!(shape(&fake.timeline(room)), ["begun", "waits"]);
    }

    let (_, room, waiting) = first;
    grace.invite(room, home.account.user_id()).await.unwrap();
    let (code, out) = type_in(&scene, &["repair", "--all", "rejoin", "--reason", "a test"]).await;
    assert_eq!((code, out.trim()), (0, "1 conversation repaired"));
    scene.ada.delivered(waiting).await;
    let (code, out) = type_in(&scene, &["repair", "--all", "rejoin", "--reason", "a test"]).await;
    assert_eq!((code, out.trim()), (1, "no conversation needs that: nothing was changed"));
    let done = "select count(*) from audit_log where verb = 'repair' and scope = 'task' and reason = 'a test'";
    assert_eq!(scene.database.count(done).await, 3, "each stands in the trail");
    let acts: i64 = sqlx::query_scalar("select count(*) from audit_log where conversation_id = $1::uuid")
        .bind(&well)
        .fetch_one(&scene.database.pool)
        .await
        .unwrap();
    assert_eq!(acts, 0, "who suffers from nothing is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_nobody_answers_says_why_it_waits_and_of_many_it_goes_on_with_the_next() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let grace = home.member(&scene.grace).await;
    let mut outside = Vec::new();
    for _ in 0..2 {
        outside.push(left(&home, &scene, &grace).await);
        grace.invite(&outside.last().unwrap().1, home.account.user_id()).await.unwrap();
    }
    outside.sort();
    let (first, second) = (&outside[0], &outside[1]);
    fake.on_any().room(&first.1).fail(500).always();
    let task = begun_for_all(&scene, Repair::Rejoin).await;
    for tried in 1..4 {
        handed_back(&scene).await;
        assert_eq!(scene.database.count("select refused from operator_tasks").await, 0, "tried {tried} times");
        scene.later().await;
    }
    through(&scene, 1, 1).await;
    scene.ada.delivered(&second.2).await;
    let (_, out) = type_in(&scene, &["tasks", &task, "--json"]).await;
    let task: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(task["findings"][0]["conversation_id"], json!(first.0), "{task}");
    assert_eq!(task["findings"][0]["reason"], "not_now", "{task}");
}

/// A token that was revoked, a proxy that leads astray, a limit: whoever is tried then is not at fault.
#[tokio::test(flavor = "multi_thread")]
async fn what_everybody_is_refused_costs_no_conversation_of_an_errand_its_turn() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker_with(&ALONE).await;
    let grace = home.member(&scene.grace).await;
    let (_, room, waiting) = left(&home, &scene, &grace).await;
    grace.invite(&room, home.account.user_id()).await.unwrap();
    let account = home.account.user_id();
    let (mut tried, mut stands) = (0, None);
    for (status, errcode) in [(401, Some("M_UNKNOWN_TOKEN")), (404, None), (429, Some("M_LIMIT_EXCEEDED"))] {
        let fault = fake.on_any().by(account).fail(status);
        let fault = match errcode {
            Some(errcode) => fault.errcode(errcode),
            None => fault.html("<h1>no such page</h1>"),
        };
        // The one before ends once this one is there.
        if stands.replace(fault.always()).inspect(Fault::remove).is_none() {
            begun_for_all(&scene, Repair::Rejoin).await;
        }
        for _ in 0..3 {
            handed_back(&scene).await;
            tried += 1;
            let left = "select count(*) from operator_tasks where done + refused > 0";
            assert_eq!(scene.database.count(left).await, 0, "tried {tried} times");
            scene.later().await;
        }
    }
    fake.clear_faults();
    through(&scene, 1, 0).await;
    scene.ada.delivered(&waiting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_errand_lets_a_short_one_go_between_its_conversations() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker_with(&ALONE).await;
    let mut begun = Vec::new();
    for _ in 0..25 {
        let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
        let message = id(&scene.ada.post(&conversation, "begun").await.expect(201));
        begun.push((conversation, message));
    }
    let mut rooms = Vec::new();
    for (conversation, message) in begun {
        rooms.push((conversation, room_of(&scene.ada.delivered(&message).await).to_owned()));
    }
    rooms.sort();
    let first = fake.on_any().room(&rooms[0].1).hold().once();
    let mut tx = scene.database.pool.begin().await.unwrap();
    let long = tasks::start_verify(&mut tx, "ada", None, false, None).await.unwrap().task_id;
    tx.commit().await.unwrap();
    first.arrived().await;
    let mut tx = scene.database.pool.begin().await.unwrap();
    let last = rooms[24].0.parse::<Uuid>().unwrap().into();
    let short = tasks::start_verify(&mut tx, "ada", Some(last), false, None).await.unwrap().task_id;
    tx.commit().await.unwrap();
    first.release();
    let ended = eventually("both have ended", || async {
        let ended = "select task_id from operator_tasks where status = 'done' order by ended_at";
        let ended: Vec<Uuid> = sqlx::query_scalar(ended).fetch_all(&scene.database.pool).await.unwrap();
        (ended.len() == 2).then_some(ended)
    })
    .await;
    assert_eq!(ended, [short.as_uuid(), long.as_uuid()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_says_which_invitations_come_back_and_whoever_was_removed_is_not_invited() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker_with(&ALONE).await;
    let (conversation, room) = scene.begun().await;
    let users = [NovaUser::new(&scene.api), NovaUser::new(&scene.api), NovaUser::new(&scene.api)];
    let path = |user: &NovaUser| format!("/conversations/{conversation}/members/{}", user.user_id);
    for (n, (user, errcode)) in (1..).zip(users.iter().zip(["M_FORBIDDEN", "M_INVALID_PARAM", "M_FORBIDDEN"])) {
        home.member(user).await;
        let refused = fake.on_invite().fail(400).errcode(errcode).always();
        assert_eq!(scene.ada.call("PUT", &path(user), None).await.status, 200);
        eventually("the invitation is dead", || async {
            (scene.database.count("select count(*) from dead_letters").await == n).then_some(())
        })
        .await;
        refused.remove();
    }
    assert_eq!(scene.ada.call("DELETE", &path(&users[2]), None).await.status, 204);
    scene.drained().await;
    let repair = ["repair", "--all", "reinvite", "--errcode", "M_FORBIDDEN"];
    let asked = [&repair[..], &["--reason", "a test"]].concat();
    assert_eq!(type_in(&scene, &asked).await, (0, "1 conversation repaired\n".to_owned()));
    scene.drained().await;
    let standing = users.each_ref().map(|user| fake.membership(&room, &matrix_id(&home, user)));
    assert_eq!(standing.map(|standing| standing.as_deref() == Some("invite")), [true, false, false]);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 2);
    let dry = [&repair[..], &["--dry-run"]].concat();
    let (code, out) = type_in(&scene, &dry).await;
    assert!(code == 1 && out.starts_with("0 conversations"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_ends_no_pause_of_an_operators() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let grace = home.member(&scene.grace).await;
    let (conversation, room, waiting) = left(&home, &scene, &grace).await;
    let (code, _) = type_in(&scene, &["pause", "--conversation", &conversation, "--reason", "to look"]).await;
    assert_eq!(code, 0);
    grace.invite(&room, home.account.user_id()).await.unwrap();
    let (code, out) = repair(&scene, &conversation, "rejoin").await;
    assert!(code == 0 && out.contains("joined the room again"), "{out}");
    assert!(out.contains("its lane is held still: to look"), "{out}");
    assert_eq!(scene.database.count("select count(*) from lanes where hold = 'to look'").await, 1);
    let (code, out) = type_in(&scene, &["repair", "--all", "rejoin", "--dry-run"]).await;
    assert!(code == 1 && out.starts_with("0 conversations"), "what is mended is not asked for again: {out}");
    let sends = fake.sends();
    let (_, out) = type_in(&scene, &["explain", &waiting]).await;
    assert!(out.contains("to look"), "{out}");
    assert_eq!(fake.sends(), sends);
    let (code, _) = type_in(&scene, &["resume", "--conversation", &conversation]).await;
    assert_eq!(code, 0);
    scene.ada.delivered(&waiting).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "waits"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_by_themselves_is_the_syncs_to_tell_and_nobody_invites_them_again() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker_with(&ALONE).await;
    let (conversation, room) = scene.begun().await;
    let grace = home.member(&scene.grace).await;
    grace.join(&room).await.unwrap();
    grace.leave(&room).await.unwrap();
    let report = verify(&scene, &conversation, &["--repair", "--reason", "a test"]).await;
    assert_eq!(found(&report), BTreeSet::new(), "the sync has not told it yet: {report}");
    assert_eq!(fake.membership(&room, grace.user_id()).as_deref(), Some("leave"));
    drop(worker);
    let _worker = scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true")]).await;
    eventually("she has left the conversation", || async {
        let left = "select count(*) from conversation_members where removed_seq is not null";
        (scene.database.count(left).await == 1).then_some(())
    })
    .await;
    let report = verify(&scene, &conversation, &[]).await;
    assert_eq!(found(&report), BTreeSet::new(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_there_is_not_is_no_task() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let unknown = Uuid::new_v4().to_string();
    for words in [
        &["verify", "--conversation", &unknown][..],
        &["repair", "--conversation", &unknown, "adopt-alias", "--reason", "a test"],
    ] {
        let (code, out) = type_in(&scene, words).await;
        assert_eq!((code, out.as_str()), (1, ""));
    }
    assert_eq!(scene.database.count("select count(*) from operator_tasks").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_invitation_is_sent_again_once_what_was_wrong_is_mended() {
    let home = Home::synapse().await;
    let scene = Scene::new(&home).await;
    let bob = NovaUser::new(&scene.api);
    home.member(&bob).await;
    let _worker = scene.worker_with(&ALONE).await;
    let (conversation, room) = scene.begun().await;
    home.account.ban(&room, &matrix_id(&home, &bob)).await.unwrap();
    let path = format!("/conversations/{conversation}/members/{}", bob.user_id);
    assert_eq!(scene.ada.call("PUT", &path, None).await.status, 200);
    eventually("the invitation is dead", || async {
        (scene.database.count("select count(*) from dead_letters").await == 1).then_some(())
    })
    .await;
    assert_eq!(found(&verify(&scene, &conversation, &[]).await), BTreeSet::new(), "what is dead is known to be");
    home.account.unban(&room, &matrix_id(&home, &bob)).await.unwrap();
    home.account.kick(&room, &matrix_id(&home, &scene.grace)).await.unwrap();
    let (code, out) = repair(&scene, &conversation, "reinvite").await;
    assert!(code == 0 && out.starts_with("1 dead invitation came back, 1 member who was not"), "{out}");
    scene.drained().await;
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    for user in [&bob, &scene.grace] {
        let member = home.account.state(&room, "m.room.member", &matrix_id(&home, user)).await.unwrap();
        assert_eq!(member["membership"], "invite");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_others_under_the_alias_becomes_the_conversations_at_an_operators_word() {
    let home = Home::synapse().await;
    let scene = Scene::new(&home).await;
    home.member(&scene.ada).await;
    home.member(&scene.grace).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let other = MatrixClient::register_random(&home.address).await.unwrap();
    let body = json!({
        "room_alias_name": format!("nova-conv-{conversation}"),
        "preset": "private_chat",
        "invite": [home.account.user_id()],
    });
    let room = other.create_room(&body).await.unwrap();
    let _worker = scene.worker_with(&ALONE).await;
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    assert!(held(&scene, &conversation).await.contains("not ours"));
    let (code, out) = repair(&scene, &conversation, "rejoin").await;
    assert!(code == 1 && out.contains("adopt-alias"), "{out}");
    let (code, out) = repair(&scene, &conversation, "adopt-alias").await;
    assert!(code == 1 && out.contains("give it the power"), "{out}");
    assert!(home.account.state(&room, "com.nova.conversation", "").await.is_err(), "nothing is written before");
    let mut power = other.state(&room, "m.room.power_levels", "").await.unwrap();
    power["users"][home.account.user_id()] = json!(100);
    other.put_state(&room, "m.room.power_levels", "", &power).await.unwrap();
    let (code, out) = repair(&scene, &conversation, "adopt-alias").await;
    assert!(code == 0 && out.contains("is the conversation's now") && out.contains("its lane goes on"), "{out}");
    assert_eq!(room_of(&scene.ada.delivered(&message).await), room);
    let marker = home.account.state(&room, "com.nova.conversation", "").await.unwrap();
    assert_eq!(marker["conversation_id"], json!(conversation));
    for user in [&scene.ada, &scene.grace] {
        let member = home.account.state(&room, "m.room.member", &matrix_id(&home, user)).await.unwrap();
        assert_eq!(member["membership"], "invite");
    }
    assert_eq!(found(&verify(&scene, &conversation, &[]).await), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_that_leads_to_another_conversations_room_is_freed_if_it_is_ours() {
    let home = Home::synapse().await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (_, others) = scene.begun().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let alias = format!("#nova-conv-{conversation}:{}", home.address.server_name);
    home.account.put_alias(&alias, &others).await.unwrap();
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    assert!(held(&scene, &conversation).await.contains("not ours"));
    let (code, out) = repair(&scene, &conversation, "adopt-alias").await;
    assert!(code == 0 && out.contains("another room is made"), "{out}");
    let delivered = scene.ada.delivered(&message).await;
    assert_ne!(room_of(&delivered), others);
    let marker = home.account.state(&others, "com.nova.conversation", "").await.unwrap();
    assert_ne!(marker["conversation_id"], json!(conversation));
    let path = ["directory", "room", alias.as_str()];
    let resolved = home.account.call(Method::GET, &path, &[], None).await.unwrap();
    assert_eq!(resolved["room_id"], json!(room_of(&delivered)));
}
