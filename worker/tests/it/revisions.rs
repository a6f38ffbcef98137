//! Edits and deletes, as the homeserver sees them.

use std::time::Duration;

use serde_json::{Value, json};
use shared::{
    outbox,
    testing::{
        eventually,
        homeserver::{FakeHomeserver, Fault, Kind},
        nova::Program,
    },
};

use crate::scene::{Home, Scene, id, room_of, sends, shape};

/// Counts the requests that carry a text.
fn watch(fake: &FakeHomeserver, text: &str) -> Fault {
    fake.on_any().body_contains(text).always()
}

async fn delete(scene: &Scene, message: &str) -> Value {
    let deleted = scene.ada.delete(message).await.expect(200);
    assert_eq!(deleted["plaintext"], Value::Null);
    assert!(deleted["deleted_at"].is_string());
    deleted["deletion"].clone()
}

/// Posted, edited, edited again, deleted.
async fn a_whole_life(home: &Home) {
    let scene = Scene::new(home).await;
    let _worker = scene.worker().await;
    let grace = home.member(&scene.grace).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "first words").await.expect(201));
    let room = room_of(&scene.ada.delivered(&message).await).to_owned();
    grace.join(&room).await.unwrap();
    for text in ["second words", "third words"] {
        assert_eq!(scene.ada.edit(&message, text).await.expect(200)["plaintext"], text);
        scene.drained().await;
    }
    let timeline = grace.timeline(&room).await.unwrap();
    assert_eq!(shape(&timeline), ["first words", "0 := second words", "0 := third words"]);
    let events: Vec<_> = timeline.iter().filter(|event| event.event_type == "m.room.message").collect();
    for (edit, text) in events[1..].iter().zip(["second words", "third words"]) {
        assert_eq!(edit.sender, events[0].sender);
        assert_eq!(edit.replaces(), Some(events[0].event_id.as_str()));
        assert_eq!(edit.body(), Some(format!("* {text}").as_str()));
        let inner = &edit.content["m.new_content"];
        assert_eq!((&inner["body"], &inner["msgtype"]), (&json!(text), &json!("m.text")));
        assert_eq!(
            (&edit.content["com.nova.message_id"], &inner["com.nova.message_id"]),
            (&json!(message), &json!(message))
        );
        assert_eq!(inner["com.nova.sender_id"], json!(scene.ada.user_id));
        assert_ne!(edit.content["com.nova.outbox_id"], events[0].content["com.nova.outbox_id"]);
    }
    // The homeserver too takes them for edits of it, by its author.
    let relations = grace.relations(&room, &events[0].event_id, "m.replace").await.unwrap();
    assert_eq!(relations.len(), 2);
    let read = scene.grace.get(&format!("/messages/{message}")).await;
    assert_eq!((&read["plaintext"], &read["revision"]), (&json!("third words"), &json!(3)));
    assert_eq!(read["matrix"]["event_id"], json!(events[0].event_id));

    assert_eq!(delete(&scene, &message).await, "redacting");
    scene.drained().await;
    let mut after = shape(&grace.timeline(&room).await.unwrap());
    after.sort();
    assert_eq!(after, ["gone", "gone", "gone", "x 0", "x 1", "x 2"]);
    for event in events {
        let event = grace.event(&room, &event.event_id).await.unwrap();
        assert_eq!(event.content, json!({}));
        assert!(event.is_redacted());
    }
    // A tombstone is left of it, and nothing to edit or to delete once more.
    let read = scene.grace.get(&format!("/messages/{message}")).await;
    assert_eq!((&read["plaintext"], &read["revision"]), (&Value::Null, &json!(3)));
    assert_eq!(scene.database.count("select count(*) from message_revisions").await, 0);
    let refused = scene.ada.edit(&message, "fourth words").await;
    assert_eq!((refused.status, refused.code()), (409, "message_deleted"));
    assert_eq!(delete(&scene, &message).await, Value::Null);
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0);
    assert_eq!(scene.database.count("select count(distinct outbox_id) from sent_events").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_posted_edited_twice_and_deleted_on_the_fake_homeserver() {
    let fake = FakeHomeserver::start().await;
    a_whole_life(&Home::of(&fake).await).await;
    // No transaction id serves twice, whatever the endpoint.
    let mut transactions: Vec<_> = sends(&fake).into_iter().map(|request| request.txn).collect();
    assert_eq!(transactions.len(), 6);
    transactions.sort();
    transactions.dedup();
    assert_eq!(transactions.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_posted_edited_twice_and_deleted_on_synapse() {
    a_whole_life(&Home::synapse().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_edited_while_it_waits_is_sent_once_with_its_last_text() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let old = [watch(&fake, "words one"), watch(&fake, "words two")];
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    scene.ada.edit(&message, "words two").await.expect(200);
    // Nor does a homeserver that is away make the worker take it out of the API's hands.
    fake.set_down(true).await;
    let worker = scene.worker().await;
    eventually("the worker asks in vain", || async {
        worker.log().iter().any(|line| line.contains("asking again")).then_some(())
    })
    .await;
    let edited = scene.ada.edit(&message, "words three").await.expect(200);
    assert_eq!((&edited["revision"], &edited["matrix"]["delivery"]), (&json!(3), &json!("pending")));
    fake.set_down(false).await;
    let sent = scene.ada.delivered(&message).await;
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(room_of(&sent))), ["words three"]);
    assert_eq!(fake.timeline(room_of(&sent)).last().unwrap().content["com.nova.revision"], 3);
    assert_eq!((fake.sends(), old[0].hits(), old[1].hits()), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_certainly_refused_waits_again_and_is_still_changed_in_place() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.slow_worker().await;
    let (conversation, room) = scene.begun().await;
    fake.on_send().fail(429).retry_after(Duration::from_secs(10)).once();
    let edited = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    scene.attempted("refused", 1).await;
    scene.ada.edit(&edited, "words two").await.expect(200);
    let deleted = id(&scene.ada.post(&conversation, "words three").await.expect(201));
    assert_eq!(delete(&scene, &deleted).await, "cancelled");
    scene.later().await;
    scene.ada.delivered(&edited).await;
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_while_it_waits_never_leaves() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let (first, second) = (watch(&fake, "words one"), watch(&fake, "words two"));
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    let edited = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    scene.ada.edit(&edited, "words two").await.expect(200);
    for message in [&message, &edited] {
        assert_eq!(delete(&scene, message).await, "cancelled");
        let read = scene.ada.get(&format!("/messages/{message}")).await;
        assert_eq!(read["matrix"]["delivery"], "cancelled");
    }
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0);
    let _worker = scene.worker().await;
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    let next = scene.ada.delivered(&next).await;
    assert_eq!(shape(&fake.timeline(room_of(&next))), ["next"]);
    assert_eq!((first.hits(), second.hits(), fake.sends()), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_edit_goes_with_its_message_and_only_what_left_is_redacted() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let mut worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    let room = room_of(&scene.ada.delivered(&message).await).to_owned();
    scene.drained().await;
    worker.kill();
    let second = watch(&fake, "words two");
    scene.ada.edit(&message, "words two").await.expect(200);
    assert_eq!(delete(&scene, &message).await, "redacting");
    let _worker = scene.worker().await;
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["gone", "x 0"]);
    assert_eq!(second.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_that_wait_are_sent_as_one_with_the_last_text() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.patient_worker().await;
    let (conversation, room) = scene.begun().await;
    let held = fake.on_send().hold_answer().once();
    let second = watch(&fake, "words two");
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    held.arrived().await;
    for text in ["words two", "words three"] {
        scene.ada.edit(&message, text).await.expect(200);
    }
    held.release();
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words one", "1 := words three"]);
    assert_eq!(second.hits(), 0);
}

/// Where a test holds the worker.
#[derive(Debug, Clone, Copy)]
enum Held {
    /// The row is claimed; the room is still being looked for.
    BeforeTheRoom,
    /// The row is claimed; the room is being created.
    InTheRoom,
    /// The request is on its way and not yet accepted.
    InThePut,
    /// It is accepted and not yet answered.
    BeforeTheAnswer,
}

impl Held {
    const ALL: [Self; 4] = [Self::BeforeTheRoom, Self::InTheRoom, Self::InThePut, Self::BeforeTheAnswer];

    fn install(self, fake: &FakeHomeserver) -> Fault {
        match self {
            Self::BeforeTheRoom => fake.on_alias().hold().once(),
            Self::InTheRoom => fake.on_create_room().hold().once(),
            Self::InThePut => fake.on_send().hold().once(),
            Self::BeforeTheAnswer => fake.on_send().hold_answer().once(),
        }
    }
}

/// The first message of a conversation, whose delivery is held; the worker holds it still when this returns.
async fn held_at(fake: &FakeHomeserver, scene: &Scene, held: Held) -> (Program, Fault, String) {
    let fault = held.install(fake);
    let worker = scene.patient_worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    fault.arrived().await;
    assert_eq!(fake.sends() == 0, matches!(held, Held::BeforeTheRoom | Held::InTheRoom));
    let read = scene.ada.get(&format!("/messages/{message}")).await;
    assert_eq!(read["matrix"]["delivery"], "delivering", "{held:?}");
    (worker, fault, message)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_after_the_claim_stands_in_the_room_and_then_its_redaction() {
    for held in Held::ALL {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let scene = Scene::new(&home).await;
        let (_worker, fault, message) = held_at(&fake, &scene, held).await;
        assert_eq!(delete(&scene, &message).await, "redacting", "{held:?}");
        fault.release();
        scene.drained().await;
        let rooms = fake.rooms();
        assert_eq!(shape(&fake.timeline(&rooms[0])), ["gone", "x 0"], "{held:?}");
        let kinds: Vec<Kind> = sends(&fake).iter().map(|request| request.kind).collect();
        assert_eq!(kinds, [Kind::Send, Kind::Redact], "{held:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_edited_after_the_claim_stands_in_the_room_and_then_its_edit() {
    for held in Held::ALL {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let scene = Scene::new(&home).await;
        let (_worker, fault, message) = held_at(&fake, &scene, held).await;
        scene.ada.edit(&message, "words two").await.expect(200);
        fault.release();
        scene.drained().await;
        let rooms = fake.rooms();
        assert_eq!(shape(&fake.timeline(&rooms[0])), ["words one", "0 := words two"], "{held:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_after_a_claim_that_came_to_nothing_is_never_put() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let words = watch(&fake, "words one");
    let refused = fake.on_create_room().hold().fail(429).retry_after(Duration::from_millis(50)).once();
    let _worker = scene.patient_worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    refused.arrived().await;
    assert_eq!(delete(&scene, &message).await, "redacting");
    refused.release();
    scene.drained().await;
    assert_eq!(words.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_unanswered_and_was_deleted_is_closed_and_redacted() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.slow_worker().await;
    let (conversation, room) = scene.begun().await;
    let words = watch(&fake, "words one");
    fake.on_send().drop_after_accept().once();
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    scene.attempted("ambiguous", 1).await;
    fake.set_down(true).await;
    assert_eq!(delete(&scene, &message).await, "redacting");
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    fake.set_down(false).await;
    scene.later().await;
    scene.ada.delivered(&next).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "gone", "x 1", "next"]);
    // Its text left once, before the delete; its transaction was closed with another event.
    assert_eq!(words.hits(), 1);
    let sends = sends(&fake);
    let types: Vec<_> = sends.iter().map(|request| request.event_type.as_deref()).collect();
    let kinds: Vec<_> = sends.iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Send, Kind::Send, Kind::Send, Kind::Redact, Kind::Send]);
    assert_eq!(types[1..3], [Some("m.room.message"), Some("com.nova.outbox.void")]);
    assert_eq!(sends[1].txn, sends[2].txn);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_arrived_and_was_deleted_leaves_a_void_and_no_text() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.slow_worker().await;
    let (conversation, room) = scene.begun().await;
    let lost = fake.on_send().body_contains("words one").drop_before().once();
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    scene.attempted("ambiguous", 1).await;
    let words = watch(&fake, "words one");
    assert_eq!(delete(&scene, &message).await, "redacting");
    scene.later().await;
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "void", "x 1"]);
    assert_eq!((lost.hits(), words.hits()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_edit_of_what_was_deleted_is_closed_too_and_both_are_redacted() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.slow_worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    let room = room_of(&scene.ada.delivered(&message).await).to_owned();
    fake.on_send().drop_after_accept().once();
    scene.ada.edit(&message, "words two").await.expect(200);
    scene.attempted("ambiguous", 1).await;
    assert_eq!(delete(&scene, &message).await, "redacting");
    scene.later().await;
    scene.drained().await;
    let mut shape = shape(&fake.timeline(&room));
    shape.sort();
    assert_eq!(shape, ["gone", "gone", "x 0", "x 1"]);
}

/// A message that the homeserver will never take, dead.
async fn dead(fake: &FakeHomeserver, scene: &Scene, conversation: &str) -> String {
    fake.on_send().fail(400).errcode("M_BAD_JSON").once();
    let message = id(&scene.ada.post(conversation, "words one").await.expect(201));
    eventually("it is dead", || async {
        let read = scene.ada.get(&format!("/messages/{message}")).await;
        (read["matrix"]["delivery"] == "dead").then_some(())
    })
    .await;
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_message_that_is_edited_sends_nothing_until_it_is_requeued_and_then_its_last_text() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let message = dead(&fake, &scene, &conversation).await;
    scene.ada.edit(&message, "words two").await.expect(200);
    // What comes after it in its lane goes on.
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    scene.ada.delivered(&next).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "next"]);
    let letter =
        sqlx::query_scalar("select outbox_id from dead_letters").fetch_one(&scene.database.pool).await.unwrap();
    let mut tx = scene.database.pool.begin().await.unwrap();
    let back = outbox::requeue(&mut tx, conversation.parse().unwrap(), letter).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(back, outbox::Requeued::Back(1));
    scene.ada.delivered(&message).await;
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "next", "words two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_message_that_is_deleted_is_cancelled_and_leaves_nothing_to_requeue() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let message = dead(&fake, &scene, &conversation).await;
    let before = fake.sends();
    assert_eq!(delete(&scene, &message).await, "cancelled");
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    scene.ada.delivered(&next).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "next"]);
    assert_eq!(fake.sends(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redaction_that_is_refused_for_good_holds_its_lane_and_no_other() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let (other, _) = scene.begun().await;
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    scene.ada.delivered(&message).await;
    let refused = fake.on_redact().fail(400).errcode("M_UNKNOWN").always();
    assert_eq!(delete(&scene, &message).await, "redacting");
    eventually("the lane is held", || async {
        (scene.database.count("select count(*) from lanes where hold is not null").await == 1).then_some(())
    })
    .await;
    let later = id(&scene.ada.post(&conversation, "later").await.expect(201));
    let elsewhere = id(&scene.ada.post(&other, "elsewhere").await.expect(201));
    scene.ada.delivered(&elsewhere).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words one"]);
    assert_eq!(refused.hits(), 1);
    refused.remove();
    let mut conn = scene.database.pool.acquire().await.unwrap();
    let lane = shared::ids::LaneId::from(conversation.parse::<shared::ids::ConversationId>().unwrap());
    assert!(outbox::resume(&mut conn, conversation.parse().unwrap(), lane).await.unwrap());
    scene.ada.delivered(&later).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "gone", "x 1", "later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_author_edits_or_deletes_a_message() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    let room = room_of(&scene.ada.delivered(&message).await).to_owned();
    for answer in [scene.grace.edit(&message, "words two").await, scene.grace.delete(&message).await] {
        assert_eq!((answer.status, answer.code()), (403, "not_the_author"));
    }
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["words one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_changes_nothing_or_comes_too_late_sends_nothing() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let posted = scene.ada.post(&conversation, "words one").await;
    assert_eq!(posted.headers["etag"], "\"1\"");
    let message = id(&posted.body);
    let room = room_of(&scene.ada.delivered(&message).await).to_owned();
    let same = scene.ada.edit(&message, "words one").await;
    assert_eq!(same.headers["etag"], "\"1\"");
    assert_eq!((&same.body["revision"], &same.body["edited_at"]), (&json!(1), &Value::Null));
    let path = format!("/messages/{message}");
    let edit = |tag: &'static str, text: &'static str| {
        let (scene, path) = (&scene, &path);
        async move { scene.ada.call_with("PATCH", path, &[("If-Match", tag)], Some(&json!({"plaintext": text}))).await }
    };
    let edited = edit("\"1\"", "words two").await;
    assert_eq!((edited.status, edited.headers["etag"].as_str()), (200, "\"2\""));
    let late = edit("\"1\"", "words three").await;
    assert_eq!((late.status, late.code()), (412, "another_revision"));
    let garbled = edit("one", "words three").await;
    assert_eq!((garbled.status, garbled.code()), (422, "invalid"));
    let current = edit("*", "words four").await;
    assert_eq!((current.status, current.headers["etag"].as_str()), (200, "\"3\""));
    scene.drained().await;
    let shape = shape(&fake.timeline(&room));
    assert_eq!((shape[0].as_str(), shape.last().unwrap().as_str()), ("words one", "0 := words four"));
    assert!(!shape.iter().any(|event| event.contains("three")));
}
