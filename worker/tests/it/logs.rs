//! What the programs log: events that others look for, with exactly their fields.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use shared::testing::{eventually, homeserver::FakeHomeserver, nova::Program};

use crate::scene::{Home, Scene, dead, id};

/// The lines with a message.
fn lines(program: &Program, message: &str) -> Vec<Value> {
    let lines = program.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

/// A line's level, and its fields beside those that all have.
fn told(line: &Value) -> (&str, BTreeSet<&str>) {
    let fields = line.as_object().unwrap().keys().map(String::as_str);
    let common = ["timestamp", "level", "target", "message"];
    (line["level"].as_str().unwrap(), fields.filter(|field| !common.contains(field)).collect())
}

async fn logged(program: &Program, message: &str) -> Value {
    eventually(&format!("{message:?} is logged"), || async { lines(program, message).pop() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_told_with_exactly_the_fields_that_others_look_for() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker_with(&[("RUST_LOG", "info,worker=debug")]).await;
    let (conversation, room) = scene.begun().await;
    let place = async || {
        let call = json!({"conversation_id": conversation, "sdp_offer": "v=0 ours", "party_id": "PHONE"});
        id(&scene.ada.call("POST", "/calls/initiate", Some(&call)).await.expect(201))
    };
    let call = place().await;
    let candidate = "candidate:1 1 UDP 2122 192.0.2.77 40000 typ host";
    let said = json!({"candidates": [{"candidate": candidate, "sdpMid": "0"}, {"candidate": ""}]});
    scene.ada.call("POST", &format!("/calls/{call}/candidates"), Some(&said)).await.expect(200);
    let sent = logged(&worker, "matrix_voip.send_invite").await;
    assert_eq!(told(&sent), ("INFO", BTreeSet::from(["call_id", "room_id", "event_id"])));
    assert_eq!((&sent["call_id"], &sent["room_id"]), (&json!(call), &json!(room)));
    let candidate = logged(&worker, "matrix_voip.ice_candidate").await;
    assert_eq!(told(&candidate), ("DEBUG", BTreeSet::from(["call_id", "candidate"])));
    assert_eq!((&candidate["call_id"], &candidate["candidate"]), (&json!(call), &json!("host udp")));
    scene.ada.call("POST", &format!("/calls/{call}/hangup"), None).await.expect(200);
    scene.drained().await;

    fake.on_send().body_contains("offer").fail(413).once();
    let refused = place().await;
    let failed = logged(&worker, "matrix_voip.send_failed").await;
    assert_eq!(told(&failed), ("ERROR", BTreeSet::from(["call_id", "error"])));
    assert_eq!(failed["call_id"], json!(refused));
    assert!(failed["error"].as_str().unwrap().contains("413"), "{failed}");
    assert!(lines(&worker, "Matrix send failed").is_empty(), "one line for a failure");
    assert!(!worker.log().iter().any(|line| line.contains("192.0.2.77")), "no address is logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_that_matter_are_logged() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true")]).await;
    let started = logged(&worker, "Matrix client initialized").await;
    assert_eq!(told(&started), ("INFO", BTreeSet::from(["homeserver", "sender"])));
    assert_eq!(told(&logged(&worker, "Matrix sync loop started").await).0, "INFO");
    let (conversation, _) = scene.begun().await;
    fake.on_send().fail(413).once();
    let text = "what nobody may find in a log";
    let message = id(&scene.ada.post(&conversation, text).await.expect(201));
    dead(&scene, &message).await;
    logged(&worker, "Matrix send failed").await;
    let failed = lines(&worker, "Matrix send failed");
    let [failed] = failed.as_slice() else { panic!("one line for a failure: {failed:?}") };
    assert_eq!((failed["level"].as_str(), &failed["conversation_id"]), (Some("WARN"), &json!(conversation)));
    for field in ["outbox.id", "outbox.kind", "outcome", "error"] {
        assert!(failed[field].is_string(), "{field} in {failed}");
    }
    for program in [&worker, &scene.api] {
        let log = program.log().join("\n");
        assert!(!log.contains(text) && !log.contains(home.account.access_token()) && !log.contains(scene.ada.token()));
    }
}
