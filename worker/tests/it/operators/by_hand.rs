//! What a person knows better: discard, expire, complete.

use serde_json::json;
use shared::testing::homeserver::FakeHomeserver;

use super::{keys, reads};
use crate::scene::{Home, Scene, id, shape};

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

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_its_room_unknown_to_us_is_completed_with_its_event_and_nothing_is_sent_again() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.slow_worker().await;
    let (conversation, _) = scene.begun().await;
    let refused = fake.on_send().fail(503).always();
    let message = id(&scene.ada.post(&conversation, "in doubt").await.expect(201));
    scene.attempted("ambiguous", 1).await;
    worker.kill();
    let shown = scene.outboxctl(&["show", &message, "--json"]).await.json(0);
    let operation = shown["operations"][0]["outbox_id"].as_str().unwrap().to_owned();
    let complete = async |event: &[&str]| {
        let words = ["complete", operation.as_str(), "--reason", "found it in the room"];
        let words: Vec<&str> = words.into_iter().chain(event.iter().copied()).collect();
        scene.outboxctl(&words).await
    };
    assert!(complete(&[]).await.complaint(1).contains("name the one that it became"));
    assert!(complete(&["--event-id", "no event"]).await.complaint(2).contains("event id"));
    let done = complete(&["--event-id", "$found", "--json"]).await.json(0);
    assert_eq!(keys(&done), "completed conversation_id event_id kind outbox_id parked refused subject_id");
    let again = complete(&["--event-id", "$found", "--json"]).await.json(1);
    assert_eq!(again["refused"]["reason"], "delivered");
    let read = scene.ada.get(&format!("/messages/{message}")).await;
    assert_eq!((&read["matrix"]["delivery"], &read["matrix"]["event_id"]), (&json!("delivered"), &json!("$found")));
    let trail = scene.trail().await;
    assert_eq!(trail.len(), 1, "{trail:?}");
    assert_eq!((&trail[0]["verb"], &trail[0]["reason"]), (&json!("complete"), &json!("found it in the room")));
    assert_eq!(trail[0]["arguments"]["event_id"], "$found");
    refused.remove();
    let sent = fake.sends();
    let _worker = scene.worker().await;
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    scene.ada.delivered(&next).await;
    assert_eq!(fake.sends(), sent + 1, "only what came next");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_ended_by_hand_and_never_leaves_but_a_redaction_is_not() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let kept = id(&scene.ada.post(&conversation, "kept").await.expect(201));
    scene.ada.delivered(&kept).await;
    scene.outboxctl(&["pause", "--conversation", &conversation, "--reason", "to look"]).await.text(0);
    let late = id(&scene.ada.post(&conversation, "too late").await.expect(201));
    scene.ada.delete(&kept).await.expect(200);
    let done = scene.outboxctl(&["expire", &late, "--reason", "of no use any more", "--json"]).await.json(0);
    assert_eq!(keys(&done), "conversations expired refused");
    assert_eq!(done["expired"], 1);
    let redaction = scene.outboxctl(&["list", "--state", "live", "--json"]).await.json(0);
    let redaction = redaction["items"][0]["outbox_id"].as_str().unwrap().to_owned();
    let refused = scene.outboxctl(&["expire", &redaction, &late, "--reason", "why", "--json"]).await.json(1);
    let reasons: Vec<_> = refused["refused"].as_array().unwrap().iter().map(|refused| &refused["reason"]).collect();
    assert!(reasons.contains(&&json!("must_not_be_lost")), "{refused}");
    let trail = scene.trail().await;
    let rows: Vec<_> = trail.iter().map(|row| (row["verb"].as_str().unwrap(), row["reason"].as_str())).collect();
    assert_eq!(rows, [("expire", Some("of no use any more")), ("pause", Some("to look"))]);
    scene.outboxctl(&["resume", "--conversation", &conversation]).await.text(0);
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "gone", "x 1"]);
    assert!(scene.outboxctl(&["expire", &late]).await.complaint(2).contains("--reason"));
}
