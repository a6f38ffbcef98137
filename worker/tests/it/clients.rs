//! What connected clients are told: how deliveries end, and what happens on Matrix.

use serde_json::{Value, json};
use shared::testing::{
    homeserver::FakeHomeserver,
    nova::{Environment, program_path},
    websocket::{Heard, Socket},
};

use crate::scene::{Home, Scene, id};

/// Types an operator's command.
async fn outboxctl(scene: &Scene, arguments: &[&str]) {
    let environment =
        Environment::from([("DATABASE_URL".into(), scene.database.url.clone()), ("USER".into(), "ada".into())]);
    let mut command = std::process::Command::new(program_path("outboxctl"));
    command.args(arguments).env_clear().envs(environment);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The next word of a delivery: its message and its state.
async fn delivery(socket: &mut Socket) -> (Value, Value) {
    let frame = socket.frame_of("MessageDelivery").await;
    let mut fields: Vec<&str> = frame.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["conversation_id", "cursor", "matrix", "message_id", "type"]);
    let matrix = frame["matrix"].as_object().unwrap();
    assert_eq!(matrix.keys().collect::<Vec<_>>(), ["delivery", "event_id", "room_id"]);
    (frame["message_id"].clone(), frame["matrix"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_hear_how_a_delivery_ends_and_that_it_begins_anew() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let mut socket = scene.grace.listen(None).await;

    let message = id(&scene.ada.post(&conversation, "arrives").await.expect(201));
    let (told, matrix) = delivery(&mut socket).await;
    let read = scene.ada.get(&format!("/messages/{message}")).await;
    assert_eq!((told, &matrix), (json!(message), &read["matrix"]));
    assert_eq!((&matrix["delivery"], &matrix["room_id"]), (&json!("delivered"), &json!(room)));
    assert!(matrix["event_id"].is_string());

    fake.on_send().fail(400).errcode("M_BAD_JSON").once();
    let dead = id(&scene.ada.post(&conversation, "dies").await.expect(201));
    let (told, matrix) = delivery(&mut socket).await;
    assert_eq!((told, &matrix["delivery"]), (json!(dead), &json!("dead")));

    outboxctl(&scene, &["pause", "--conversation", &conversation, "--reason", "to look"]).await;
    outboxctl(&scene, &["requeue", &dead]).await;
    assert_eq!(delivery(&mut socket).await.1["delivery"], "pending");
    outboxctl(&scene, &["resume", "--conversation", &conversation]).await;
    let (told, matrix) = delivery(&mut socket).await;
    assert_eq!((told, &matrix["delivery"]), (json!(dead), &json!("delivered")));

    fake.on_send().fail(400).errcode("M_BAD_JSON").once();
    let given_up = id(&scene.ada.post(&conversation, "is given up").await.expect(201));
    assert_eq!(delivery(&mut socket).await.1["delivery"], "dead");
    outboxctl(&scene, &["discard", &given_up, "--reason", "nobody wants it"]).await;
    let (told, matrix) = delivery(&mut socket).await;
    assert_eq!((told, &matrix["delivery"]), (json!(given_up), &json!("cancelled")));
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story, frame by frame")]
async fn what_happens_on_matrix_is_told_once_by_the_names_that_clients_know() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let grace = home.member(&scene.grace).await;
    let _worker = scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true")]).await;
    let (conversation, room) = scene.begun().await;
    grace.join(&room).await.unwrap();
    let mut socket = scene.ada.listen(None).await;
    let begin = socket.cursor().to_owned();
    let send =
        async |event_type: &str, txn: &str, content: Value| grace.send(&room, event_type, txn, &content).await.unwrap();

    let said = grace.say(&room, "from Matrix").await.unwrap();
    let new = socket.frame_of("MessageNew").await;
    assert_eq!(new["message"]["plaintext"], "from Matrix");
    assert_eq!(new["message"]["author_id"], json!(scene.grace.user_id));
    assert_eq!(new["message"]["matrix"]["event_id"], json!(said));
    let message = new["message"]["id"].clone();
    let edited = json!({
        "msgtype": "m.text",
        "body": "* better",
        "m.new_content": {"msgtype": "m.text", "body": "better"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": said},
    });
    send("m.room.message", "edit", edited).await;
    assert_eq!(socket.frame_of("MessageEdited").await["message"]["plaintext"], "better");
    let annotation = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": said, "key": "👍"}});
    send("m.reaction", "reaction", annotation).await;
    let reaction = socket.frame_of("ReactionAdded").await;
    let told = (&reaction["message_id"], &reaction["user_id"], &reaction["key"]);
    assert_eq!(told, (&message, &json!(scene.grace.user_id), &json!("👍")));

    let call = |call_id: &str, content: Value| {
        let mut call = json!({"call_id": call_id, "party_id": "PHONE", "version": "1"});
        call.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        call
    };
    let offer = json!({"lifetime": 60_000, "offer": {"type": "offer", "sdp": "v=0 the offer"}});
    let invited = send("m.call.invite", "invite", call("call-1", offer)).await;
    let mut frame = socket.frame_of("CallInviteViaMatrix").await;
    let theirs = frame["call_id"].take();
    assert!(frame["cursor"].take().is_string() && frame["ring_until"].take().is_string());
    let expected = json!({
        "type": "CallInviteViaMatrix",
        "call_id": null,
        "cursor": null,
        "conversation_id": conversation,
        "initiator_id": scene.grace.user_id,
        "invitee_id": scene.ada.user_id,
        "sdp_offer": "v=0 the offer",
        "sdp_stream_metadata": null,
        "ring_until": null,
        "matrix_event_id": invited,
        "party_id": "PHONE",
    });
    assert_eq!(frame, expected);
    let mut heard =
        async |name: &str, call_id: &Value, event_type: &str, matrix_id: &str, content: Value, fields: Value| {
            let event_id = send(event_type, &format!("{matrix_id} {event_type}"), call(matrix_id, content)).await;
            let mut frame = socket.frame_of(name).await;
            assert!(frame["cursor"].take().is_string());
            let mut expected = json!({
                "type": name,
                "cursor": null,
                "conversation_id": conversation,
                "call_id": call_id,
                "participant_id": scene.grace.user_id,
                "party_id": "PHONE",
                "matrix_event_id": event_id,
            });
            expected.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            assert_eq!(frame, expected);
        };
    let candidates = json!([
        {"candidate": "candidate:1 1 UDP 1 192.0.2.1 9 typ host", "sdpMid": "0", "sdpMLineIndex": 0},
        {"candidate": ""},
    ]);
    let said = json!({"candidates": candidates});
    let as_shown = json!({"candidates": [candidates[0], {"candidate": "", "sdpMid": null, "sdpMLineIndex": null}]});
    heard("CallCandidatesViaMatrix", &theirs, "m.call.candidates", "call-1", said, as_shown).await;
    let over = json!({"reason": "user_hangup"});
    heard("CallHangupViaMatrix", &theirs, "m.call.hangup", "call-1", over.clone(), over.clone()).await;

    let place = async || {
        let new = json!({"conversation_id": conversation, "sdp_offer": "v=0 ours"});
        id(&scene.ada.call("POST", "/calls/initiate", Some(&new)).await.expect(201))
    };
    let ours = place().await;
    let (name, answer) = (json!(ours), json!({"answer": {"type": "answer", "sdp": "v=0 the answer"}}));
    let fields = json!({"sdp_answer": "v=0 the answer", "sdp_stream_metadata": null});
    heard("CallAnswerViaMatrix", &name, "m.call.answer", &ours, answer, fields).await;
    let more = json!({"lifetime": 9, "description": {"type": "offer", "sdp": "v=0 more"}});
    let fields = json!({"kind": "negotiate", "content": call(&ours, more.clone())});
    heard("CallSignalViaMatrix", &name, "m.call.negotiate", &ours, more, fields).await;
    heard("CallHangupViaMatrix", &name, "m.call.hangup", &ours, over.clone(), over).await;
    let declined = place().await;
    heard("CallRejectViaMatrix", &json!(declined), "m.call.reject", &declined, json!({}), json!({})).await;

    // Whoever comes back hears all of it, but no phone rings for a call that is over.
    let mut back = scene.ada.listen(Some(&begin)).await;
    let mut names = Vec::new();
    while names.last().is_none_or(|last| last != "CallRejectViaMatrix") {
        let Heard::Frame(frame) = back.hear().await else { panic!("it stays connected") };
        names.push(frame["type"].as_str().unwrap().to_owned());
    }
    names.retain(|name| !["MessageDelivery", "CallUpdated", "heartbeat"].contains(&name.as_str()));
    let expected = [
        "MessageNew",
        "MessageEdited",
        "ReactionAdded",
        "CallCandidatesViaMatrix",
        "CallHangupViaMatrix",
        "CallAnswerViaMatrix",
        "CallSignalViaMatrix",
        "CallHangupViaMatrix",
        "CallRejectViaMatrix",
    ];
    assert_eq!(names, expected);
}
