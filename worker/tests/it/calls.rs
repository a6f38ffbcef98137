//! Calls through the whole product: clients of ours by REST and WebSocket, and people on Matrix.

use std::time::Duration;

use serde_json::{Value, json};
use shared::testing::{
    eventually,
    homeserver::FakeHomeserver,
    matrix_client::{MatrixClient, MatrixEvent},
    nova::Program,
};

use crate::scene::{Home, Scene, id, metric};

/// What is said in calls of a room, in order.
fn signals(events: &[MatrixEvent]) -> Vec<MatrixEvent> {
    events.iter().filter(|event| event.event_type.starts_with("m.call.")).cloned().collect()
}

fn names(events: &[MatrixEvent]) -> Vec<&str> {
    events.iter().map(|event| event.event_type.trim_start_matches("m.call.")).collect()
}

async fn place(scene: &Scene, conversation: &str) -> String {
    let call = json!({"conversation_id": conversation, "sdp_offer": "v=0 ours", "party_id": "PHONE"});
    id(&scene.ada.call("POST", "/calls/initiate", Some(&call)).await.expect(201))
}

/// Waits until a call is so.
async fn is(scene: &Scene, call: &str, status: &str, reason: Option<&str>) -> Value {
    eventually(&format!("the call is {status} {reason:?}"), || async {
        let call = scene.ada.get(&format!("/calls/{call}")).await;
        (call["status"] == status && call["reason"].as_str() == reason).then_some(call)
    })
    .await
}

/// A homeserver with a conversation of Ada and Grace, who is in its room by an account of her own.
struct Line {
    scene: Scene,
    worker: Program,
    conversation: String,
    room: String,
    grace: MatrixClient,
}

impl Line {
    async fn new(home: &Home) -> Self {
        let scene = Scene::new(home).await;
        let grace = home.member(&scene.grace).await;
        let worker = scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true"), ("OUTBOX_PROBE", "100ms")]).await;
        let (conversation, room) = scene.begun().await;
        grace.join(&room).await.unwrap();
        Self { scene, worker, conversation, room, grace }
    }

    async fn says(&self, call: &str, kind: &str, fields: Value) {
        let mut content = json!({"call_id": call, "party_id": "DESK", "version": "1"});
        content.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let txn = format!("{call} {kind} {fields}");
        self.grace.send(&self.room, &format!("m.call.{kind}"), &txn, &content).await.unwrap();
    }

    /// Waits until so much was said in the room's calls.
    async fn heard(&self, count: usize) -> Vec<MatrixEvent> {
        eventually(&format!("{count} signals"), || async {
            let signals = signals(&self.grace.timeline(&self.room).await.unwrap());
            (signals.len() >= count).then_some(signals)
        })
        .await
    }
}

async fn our_call_to_matrix(home: &Home) {
    let line = Line::new(home).await;
    let scene = &line.scene;
    let call = place(scene, &line.conversation).await;
    let invite = line.heard(1).await.remove(0);
    let lifetime = invite.content["lifetime"].as_u64().unwrap();
    assert!((60_000..=90_000).contains(&lifetime), "{lifetime}");
    let expected = json!({
        "call_id": call,
        "party_id": "PHONE",
        "version": "1",
        "lifetime": lifetime,
        "invitee": line.grace.user_id(),
        "offer": {"type": "offer", "sdp": "v=0 ours"},
        "com.nova.outbox_id": invite.content["com.nova.outbox_id"],
        "com.nova.sender_id": scene.ada.user_id,
        "com.beeper.per_message_profile": invite.content["com.beeper.per_message_profile"],
    });
    assert_eq!(invite.content, expected);
    let shown = scene.ada.get(&format!("/calls/{call}")).await;
    assert_eq!(shown["matrix"]["party_id"], "PHONE");
    eventually("the invite's event is known", || async {
        let matrix = &scene.ada.get(&format!("/calls/{call}")).await["matrix"];
        (matrix["event_id"] == invite.event_id.as_str() && matrix["delivery"] == "delivered").then_some(())
    })
    .await;
    for n in 0..5 {
        let candidates = json!({"candidates": [{"candidate": format!("candidate:{n}"), "sdpMid": "0"}]});
        scene.ada.call("POST", &format!("/calls/{call}/candidates"), Some(&candidates)).await.expect(200);
    }
    let last = json!({"candidates": [{"candidate": ""}]});
    scene.ada.call("POST", &format!("/calls/{call}/candidates"), Some(&last)).await.expect(200);
    let candidates = line.heard(2).await.remove(1);
    assert_eq!(candidates.content["candidates"].as_array().unwrap().len(), 6);
    line.says(&call, "answer", json!({"answer": {"type": "answer", "sdp": "v=0 theirs"}})).await;
    let active = is(scene, &call, "active", None).await;
    assert_eq!(active["answered_by"], json!({"user_id": scene.grace.user_id, "party_id": "DESK"}));
    assert_eq!(active["sdp_answer"], "v=0 theirs");
    let selected = line.heard(4).await.remove(3);
    assert_eq!(
        (selected.event_type.as_str(), &selected.content["party_id"], &selected.content["selected_party_id"]),
        ("m.call.select_answer", &json!("PHONE"), &json!("DESK"))
    );
    line.says(&call, "hangup", json!({"reason": "user_hangup"})).await;
    is(scene, &call, "ended", Some("user_hangup")).await;
    scene.drained().await;
    let all = line.heard(5).await;
    assert_eq!(names(&all), ["invite", "candidates", "answer", "select_answer", "hangup"]);
    let worker = &line.worker;
    assert!((metric(worker, "matrix_voip_invite_sent_total").await - 1.0).abs() < f64::EPSILON);
    assert!((metric(worker, "matrix_voip_answer_received_total").await - 1.0).abs() < f64::EPSILON);
    assert!((metric(worker, "matrix_voip_ice_candidates_sent_total").await - 5.0).abs() < f64::EPSILON);
    assert!((metric(worker, "matrix_voip_call_duration_seconds_count").await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_call_is_answered_and_hung_up_on_the_fake_homeserver() {
    let fake = FakeHomeserver::start().await;
    our_call_to_matrix(&Home::of(&fake).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_call_is_answered_and_hung_up_on_synapse() {
    our_call_to_matrix(&Home::synapse().await).await;
}

async fn call_from_matrix(home: &Home) {
    let line = Line::new(home).await;
    let scene = &line.scene;
    let mut socket = scene.ada.listen(None).await;
    let offer = json!({"lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0 theirs"}});
    line.says("call-1", "invite", offer).await;
    let ring = socket.frame_of("CallInviteViaMatrix").await;
    assert_eq!((&ring["sdp_offer"], &ring["party_id"]), (&json!("v=0 theirs"), &json!("DESK")));
    let call = ring["call_id"].as_str().unwrap().to_owned();
    let answer = json!({"sdp_answer": "v=0 ours", "party_id": "TABLET"});
    scene.ada.call("POST", &format!("/calls/{call}/answer"), Some(&answer)).await.expect(200);
    let answered = line.heard(2).await.remove(1);
    let said = (&answered.content["answer"]["sdp"], &answered.content["party_id"], &answered.content["call_id"]);
    assert_eq!(said, (&json!("v=0 ours"), &json!("TABLET"), &json!("call-1")));
    line.says("call-1", "select_answer", json!({"selected_party_id": "TABLET"})).await;
    let negotiate = json!({"description": {"type": "offer", "sdp": "v=0 more"}});
    scene.ada.call("POST", &format!("/calls/{call}/negotiate"), Some(&negotiate)).await.expect(200);
    let negotiated = line.heard(4).await.remove(3);
    assert_eq!(negotiated.content["description"], negotiate["description"]);
    scene.ada.call("POST", &format!("/calls/{call}/hangup"), Some(&json!({"reason": "ice_failed"}))).await.expect(200);
    let hangup = line.heard(5).await.remove(4);
    assert_eq!((&hangup.content["reason"], &hangup.content["party_id"]), (&json!("ice_failed"), &json!("TABLET")));
    // The next one is rejected.
    line.says("call-2", "invite", json!({"lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"}})).await;
    let second = socket.frame_of("CallInviteViaMatrix").await["call_id"].as_str().unwrap().to_owned();
    scene.ada.call("POST", &format!("/calls/{second}/reject"), Some(&json!({}))).await.expect(200);
    let all = line.heard(7).await;
    assert_eq!(names(&all[5..]), ["invite", "reject"]);
    scene.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_from_matrix_is_answered_negotiated_and_hung_up_on_the_fake_homeserver() {
    let fake = FakeHomeserver::start().await;
    call_from_matrix(&Home::of(&fake).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_from_matrix_is_answered_negotiated_and_hung_up_on_synapse() {
    call_from_matrix(&Home::synapse().await).await;
}

/// A homeserver is away for so many seconds from the moment of a call. What Matrix heard of it, once its time was over.
async fn outage(
    fake: &FakeHomeserver,
    scene: &Scene,
    worker: &Program,
    seconds: u64,
    silently: bool,
) -> Vec<MatrixEvent> {
    let (conversation, room) = scene.begun().await;
    scene.drained().await;
    if silently {
        fake.on_send().drop_after_accept().always();
    } else {
        fake.set_down(true).await;
    }
    let attempts = async || scene.database.count("select count(*) from attempts where outcome <> 'delivered'").await;
    let before = attempts().await;
    let call = place(scene, &conversation).await;
    eventually("it was tried", || async { (attempts().await > before).then_some(()) }).await;
    if !silently {
        // The clock must not jump between a claim and its request, which in life it does not.
        eventually("nothing is claimed any more", || async {
            ((metric(worker, "outbox_circuit_state").await - 2.0).abs() < f64::EPSILON).then_some(())
        })
        .await;
    }
    scene.database.advance(Duration::from_secs(seconds)).await;
    if silently {
        fake.clear_faults();
    } else {
        fake.set_down(false).await;
    }
    scene.drained().await;
    scene.database.advance(Duration::from_secs(90)).await;
    let ended = is(scene, &call, "ended", Some("invite_timeout")).await;
    scene.drained().await;
    let heard = signals(&fake.timeline(&room));
    let delivery = ended["matrix"]["delivery"].as_str().unwrap();
    assert_eq!(delivery, if heard.is_empty() { "expired" } else { "delivered" }, "{seconds} s");
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_rings_after_an_outage_for_what_is_left_or_not_at_all() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker_with(&[("OUTBOX_PROBE", "100ms")]).await;
    for (seconds, at_most) in [(0, Some(90_000)), (30, Some(60_000)), (89, None), (91, None), (200, None)] {
        let heard = outage(&fake, &scene, &worker, seconds, false).await;
        let Some(at_most) = at_most else {
            assert_eq!(names(&heard), [""; 0], "{seconds} s");
            continue;
        };
        assert_eq!(names(&heard), ["invite", "hangup"], "{seconds} s");
        let lifetime = heard[0].content["lifetime"].as_u64().unwrap();
        assert!(lifetime <= at_most && lifetime > at_most - 20_000, "{seconds} s: {lifetime}");
        assert_eq!(heard[1].content["reason"], "invite_timeout");
    }
    assert!((metric(&worker, "matrix_voip_invite_sent_total").await - 2.0).abs() < f64::EPSILON);
    assert!((metric(&worker, "matrix_voip_invite_failed_total").await - 3.0).abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_whose_answer_was_lost_rings_once_and_gets_its_hangup_however_long_that_lasts() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker_with(&[("OUTBOX_PROBE", "100ms")]).await;
    for seconds in [0, 30, 89, 91, 200] {
        let heard = outage(&fake, &scene, &worker, seconds, true).await;
        assert_eq!(names(&heard), ["invite", "hangup"], "{seconds} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_rings_for_a_call_that_came_and_ended_while_nobody_listened() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let line = Line::new(&home).await;
    let scene = &line.scene;
    // All of it comes in one answer, as after an outage.
    fake.on_sync().fail(503).always();
    let mut socket = scene.ada.listen(None).await;
    let offer = json!({"lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"}});
    line.says("over", "invite", offer.clone()).await;
    line.says("over", "candidates", json!({"candidates": [{"candidate": ""}]})).await;
    for n in 0..150 {
        line.grace.say(&line.room, &format!("words {n}")).await.unwrap();
    }
    line.says("over", "hangup", json!({"reason": "user_hangup"})).await;
    line.says("rings", "invite", offer).await;
    fake.clear_faults();
    let mut rings = Vec::new();
    while rings.is_empty() {
        let frame = socket.frame().await;
        if frame["type"] == "CallInviteViaMatrix" {
            rings.push(frame["call_id"].clone());
        }
    }
    let calls = scene.ada.get("/calls").await["calls"].as_array().unwrap().clone();
    assert_eq!((&calls[0]["id"], &calls[0]["status"]), (&rings[0], &json!("ringing")), "{calls:?}");
    assert_eq!((&calls[1]["status"], &calls[1]["missed"]), (&json!("ended"), &json!(true)), "{calls:?}");
    assert_eq!(calls.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_messages_holds_no_call_and_a_call_waits_for_no_message() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    fake.on_send().body_contains("never").fail(503).always();
    scene.ada.post(&conversation, "never").await.expect(201);
    let call = place(&scene, &conversation).await;
    eventually("it rings", || async { (names(&signals(&fake.timeline(&room))) == ["invite"]).then_some(()) }).await;
    scene.ada.call("POST", &format!("/calls/{call}/hangup"), Some(&json!({}))).await.expect(200);
    eventually("it stops", || async { (names(&signals(&fake.timeline(&room))) == ["invite", "hangup"]).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_calls_over_matrix_nothing_of_one_goes_out_and_nothing_comes_in() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let mut scene = Scene::new(&home).await;
    scene.api = scene.api_with(&[("MATRIX_VOIP_ENABLED", "false")]).await;
    scene.ada = scene.ada.via(&scene.api);
    let grace = home.member(&scene.grace).await;
    let _worker = scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true"), ("MATRIX_VOIP_ENABLED", "false")]).await;
    let (conversation, room) = scene.begun().await;
    grace.join(&room).await.unwrap();
    let call = place(&scene, &conversation).await;
    assert_eq!(scene.ada.get(&format!("/calls/{call}")).await["matrix"]["delivery"], "disabled");
    let offer = json!({
        "call_id": "c", "party_id": "P", "version": "1", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"},
    });
    grace.send(&room, "m.call.invite", "1", &offer).await.unwrap();
    grace.say(&room, "did you not hear me").await.unwrap();
    eventually("words come in", || async {
        (scene.database.count("select count(*) from messages").await == 2).then_some(())
    })
    .await;
    assert_eq!(scene.database.count("select count(*) from calls").await, 1);
    assert_eq!(names(&signals(&fake.timeline(&room))), ["invite"], "hers");
}
