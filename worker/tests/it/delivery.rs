//! "Where is my message?": what `GET /messages/{id}/delivery` answers, and what becomes of operations whose fault is
//! their own.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::{
    outbox,
    testing::{
        eventually,
        homeserver::{FakeHomeserver, Kind},
    },
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::scene::{Home, Scene, id, sends, shape};

async fn why(scene: &Scene, message: &str) -> Value {
    scene.ada.get(&format!("/messages/{message}/delivery")).await
}

fn moment(value: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(value.as_str().unwrap(), &Rfc3339).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_behind_one_that_waits_says_behind_how_many_and_when_that_one_goes() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.slow_worker().await;
    let (conversation, _) = scene.begun().await;
    fake.on_send().fail(502).html("<h1>Bad gateway</h1>").once();
    let mut messages = Vec::new();
    for text in ["first", "second", "third"] {
        messages.push(id(&scene.ada.post(&conversation, text).await.expect(201)));
    }
    scene.attempted("ambiguous", 1).await;
    let first = why(&scene, &messages[0]).await;
    assert_eq!((&first["state"], &first["ahead"], &first["event_id"]), (&json!("delivering"), &json!(0), &Value::Null));
    assert!(first["waiting_for"].as_str().unwrap().contains("after 1 that failed"), "{first}");
    let attempt = &first["attempts"][0];
    assert_eq!((&attempt["outcome"], &attempt["http_status"]), (&json!("ambiguous"), &json!(502)));
    assert!(moment(&first["due_at"]) > moment(&attempt["at"]));
    let third = why(&scene, &messages[2]).await;
    assert_eq!((&third["state"], &third["ahead"], &third["attempts"]), (&json!("pending"), &json!(2), &json!([])));
    let words = third["waiting_for"].as_str().unwrap();
    assert!(words.contains("2 before it") && words.contains("waits after a failed attempt"), "{words}");
    assert_eq!(third["due_at"], first["due_at"]);
    // Only members may ask.
    let stranger = shared::testing::nova::NovaUser::new(&scene.api);
    assert_eq!(stranger.call("GET", &format!("/messages/{}/delivery", messages[0]), None).await.status, 403);

    scene.later().await;
    let delivered = scene.ada.delivered(&messages[2]).await;
    let third = why(&scene, &messages[2]).await;
    assert_eq!((&third["state"], &third["event_id"]), (&json!("delivered"), &delivered["matrix"]["event_id"]));
    assert_eq!((&third["waiting_for"], &third["due_at"], &third["ahead"]), (&Value::Null, &Value::Null, &json!(0)));
    let outcomes: Vec<_> = why(&scene, &messages[0]).await["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| attempt["outcome"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(outcomes, ["ambiguous", "delivered"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_flight_waits_for_the_homeserver_and_a_paused_one_for_the_end_of_the_pause() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.patient_worker().await;
    let (conversation, _) = scene.begun().await;
    let held = fake.on_send().hold().once();
    let message = id(&scene.ada.post(&conversation, "in flight").await.expect(201));
    held.arrived().await;
    let answer = why(&scene, &message).await;
    assert_eq!((&answer["state"], &answer["waiting_for"]), (&json!("delivering"), &json!("the homeserver's answer")));
    outbox::pause(&scene.database.pool, None, None, "the homeserver moves house", "an operator").await.unwrap();
    held.release();
    scene.ada.delivered(&message).await;
    let paused = id(&scene.ada.post(&conversation, "paused").await.expect(201));
    let answer = why(&scene, &paused).await;
    assert_eq!(answer["state"], "pending");
    assert_eq!(answer["waiting_for"], "the end of a pause (the homeserver moves house)");
    assert!(outbox::unpause(&scene.database.pool, None).await.unwrap());
    scene.ada.delivered(&paused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_message_says_why_and_what_to_do_and_takes_its_edits_with_it_but_not_its_lane() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.patient_worker().await;
    let (conversation, room) = scene.begun().await;
    let refused = fake.on_send().hold().fail(413).once();
    let message = id(&scene.ada.post(&conversation, "too large").await.expect(201));
    refused.arrived().await;
    scene.ada.edit(&message, "still too large").await.expect(200);
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    refused.release();
    scene.ada.delivered(&next).await;
    let answer = why(&scene, &message).await;
    assert_eq!((&answer["state"], &answer["due_at"]), (&json!("dead"), &Value::Null));
    let words = answer["waiting_for"].as_str().unwrap();
    assert!(words.contains("an operator") && words.contains("M_TOO_LARGE") && words.contains("requeue"), "{words}");
    assert_eq!(
        (&answer["attempts"][0]["errcode"], &answer["attempts"][0]["http_status"]),
        (&json!("M_TOO_LARGE"), &json!(413))
    );
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "next"]);
    let causes: Vec<(String, String)> = sqlx::query_as("select kind, cause from dead_letters order by seq")
        .fetch_all(&scene.database.pool)
        .await
        .unwrap();
    let causes: Vec<_> = causes.iter().map(|(kind, cause)| (kind.as_str(), cause.as_str())).collect();
    assert_eq!(causes, [("message", "own_fault"), ("edit", "parent_dead")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_takes_nothing_holds_its_own_lane_only() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let (other, _) = scene.begun().await;
    let refused = fake.on_send().room(&room).fail(403).always();
    let message = id(&scene.ada.post(&conversation, "first").await.expect(201));
    let behind = id(&scene.ada.post(&conversation, "behind").await.expect(201));
    eventually("its lane is held", || async {
        let answer = why(&scene, &behind).await;
        answer["waiting_for"].as_str()?.contains("lane is held").then_some(())
    })
    .await;
    for n in 0..10 {
        let elsewhere = id(&scene.ada.post(&other, &format!("{n}")).await.expect(201));
        scene.ada.delivered(&elsewhere).await;
    }
    assert_eq!(refused.hits(), 1);
    assert_eq!(why(&scene, &message).await["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_prefers_to_wait_is_answered_with_the_event() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let body = json!({"conversation_id": conversation, "plaintext": "words"});
    let began = Instant::now();
    let answer = scene.ada.call_with("POST", "/messages", &[("Prefer", "wait=10")], Some(&body)).await;
    assert!(began.elapsed() < Duration::from_secs(9), "it did not answer when it was delivered");
    assert_eq!(answer.headers["preference-applied"], "wait=10");
    let message = answer.expect(201);
    assert_eq!(message["matrix"]["delivery"], "delivered");
    assert!(message["matrix"]["event_id"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_whose_creation_failed_is_tried_again_without_another_message() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    fake.on_create_room().fail(500).times(3);
    fake.on_create_room().fail(429).retry_after(Duration::from_millis(50)).once();
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    scene.ada.delivered(&message).await;
    assert_eq!((fake.rooms().len(), fake.count(Kind::CreateRoom)), (1, 5));
    assert_eq!(sends(&fake).len(), 1);
    assert_eq!(scene.database.count("select count(*) from attempts where outcome = 'refused'").await, 4);
}
