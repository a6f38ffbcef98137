//! Calls over the WebSocket, by the rules of the routes.

use serde_json::{Value, json};
use shared::testing::{nova::NovaUser, websocket::Socket};

use super::{ANSWER, OFFER, Scene, merged, read, say};

async fn ask(socket: &mut Socket, frame: Value) -> Value {
    let request_id = uuid::Uuid::new_v4().to_string();
    socket.say(&merged(frame, json!({"request_id": request_id}))).await;
    loop {
        let frame = socket.frame().await;
        if frame["request_id"] == json!(request_id) {
            return frame;
        }
    }
}

/// The call of an acknowledgement.
#[track_caller]
fn acknowledged(frame: &Value, status: u16) -> Value {
    assert_eq!((&frame["type"], &frame["status"]), (&json!("ack"), &json!(status)), "{frame}");
    assert!(frame.get("message").is_none(), "{frame}");
    frame["call"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_placed_held_and_ended_over_sockets_alone() {
    let scene = Scene::new().await;
    let (mut of_ada, mut of_grace) = (scene.ada.listen(None).await, scene.grace.listen(None).await);
    let initiate = json!({
        "type": "CallInitiate",
        "conversation_id": scene.conversation,
        "sdp_offer": OFFER,
        "party_id": "ada-phone",
    });
    let call = acknowledged(&ask(&mut of_ada, initiate).await, 201);
    assert_eq!((&call["status"], &call["party_id"]), (&json!("ringing"), &json!("ada-phone")));
    let call_id = call["id"].clone();
    let said = |name: &str, fields: Value| merged(json!({"type": name, "call_id": call_id}), fields);
    let candidates = json!({"candidates": [{"candidate": "candidate:1", "sdpMid": "0"}], "party_id": "ada-phone"});
    acknowledged(&ask(&mut of_ada, said("CallCandidates", candidates)).await, 200);
    let answer = json!({"sdp_answer": ANSWER, "party_id": "grace-phone"});
    let call = acknowledged(&ask(&mut of_grace, said("CallAnswer", answer)).await, 200);
    assert_eq!((&call["status"], &call["direction"]), (&json!("active"), &json!("incoming")));
    let selected = json!({"selected_party_id": "grace-phone"});
    acknowledged(&ask(&mut of_ada, said("CallSelectAnswer", selected)).await, 200);
    let offer = json!({"description": {"type": "offer", "sdp": OFFER}});
    acknowledged(&ask(&mut of_ada, said("CallNegotiate", offer)).await, 200);
    acknowledged(&ask(&mut of_ada, said("CallMetadata", json!({"sdp_stream_metadata": {}}))).await, 200);
    let call = acknowledged(&ask(&mut of_grace, said("CallHangup", json!({}))).await, 200);
    assert_eq!((&call["status"], &call["reason"]), (&json!("ended"), &json!("user_hangup")));

    let second = scene.ring().await;
    let reject = json!({"type": "CallReject", "call_id": second});
    let call = acknowledged(&ask(&mut of_grace, reject).await, 200);
    assert_eq!((&call["status"], &call["reason"]), (&json!("ended"), &json!("rejected")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_the_same_whichever_way_it_comes() {
    let scene = Scene::new().await;
    let mut socket = scene.ada.listen(None).await;
    let body = json!({"conversation_id": scene.conversation, "sdp_offer": OFFER});
    let frame = merged(body.clone(), json!({"type": "CallInitiate", "idempotency_key": "k"}));
    let call = acknowledged(&ask(&mut socket, frame.clone()).await, 201);
    assert_eq!(acknowledged(&ask(&mut socket, frame).await, 201), call);
    let by_rest = scene.ada.call_with("POST", "/calls/initiate", &[("Idempotency-Key", "k")], Some(&body)).await;
    assert_eq!(by_rest.expect(201), call);
    let path = format!("/calls/{}/hangup", call["id"].as_str().unwrap());
    let ended = scene.ada.call_with("POST", &path, &[("Idempotency-Key", "h")], Some(&json!({}))).await.expect(200);
    let frame = json!({"type": "CallHangup", "call_id": call["id"], "idempotency_key": "h"});
    assert_eq!(acknowledged(&ask(&mut socket, frame).await, 200), ended);
    assert_eq!(scene.database.count("select count(*) from calls").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_route_refuses_is_refused_with_the_same_problem() {
    let scene = Scene::with(&[("CALLS_PER_CALLER", "1")]).await;
    let call = scene.ring().await;
    let stranger = NovaUser::new(&scene.api);
    for (user, name, route, body) in [
        (&stranger, "CallAnswer", "answer", json!({"sdp_answer": ANSWER})),
        (&scene.ada, "CallAnswer", "answer", json!({"sdp_answer": ANSWER})),
        (&scene.ada, "CallNegotiate", "negotiate", json!({"description": {"type": "offer", "sdp": OFFER}})),
        (&scene.grace, "CallAnswer", "answer", json!({"sdp_answer": ""})),
        (&scene.grace, "CallAnswer", "answer", json!({"sdp_answer": ANSWER, "party_id": "a b"})),
        (&scene.grace, "CallCandidates", "candidates", json!({"candidates": [{}]})),
        (&scene.grace, "CallMetadata", "metadata", json!({"sdp_stream_metadata": {"a": 0.5}})),
        (&scene.grace, "CallHangup", "hangup", json!({"reason": "boredom"})),
        (&scene.grace, "CallReject", "reject", json!({"colour": "red"})),
    ] {
        let by_rest = say(user, &call, route, body.clone()).await;
        assert!(by_rest.status >= 400, "{name} {body}");
        let mut socket = user.listen(None).await;
        let refused = ask(&mut socket, merged(body.clone(), json!({"type": name, "call_id": call}))).await;
        assert_eq!(refused["type"], "error");
        let essence = |problem: &Value| (problem["code"].clone(), problem["errors"][0]["field"].clone());
        assert_eq!(essence(&refused["problem"]), essence(&by_rest.body), "{name} {body}");
    }
    let mut socket = scene.ada.listen(None).await;
    let again = json!({"type": "CallInitiate", "conversation_id": scene.conversation, "sdp_offer": OFFER});
    let refused = ask(&mut socket, again).await;
    assert_eq!(refused["problem"]["code"], "rate_limited");
    assert!(refused["problem"]["retry_after_seconds"].as_u64().is_some_and(|seconds| seconds > 0));
    for call_id in [json!(null), json!(7), json!("nonsense")] {
        let refused = ask(&mut socket, json!({"type": "CallHangup", "call_id": call_id})).await;
        assert_eq!(refused["problem"]["errors"][0]["field"], "call_id");
    }
    let none = json!({"type": "CallHangup", "call_id": uuid::Uuid::new_v4()});
    assert_eq!(ask(&mut socket, none).await["problem"]["code"], "not_found");
    assert_eq!(read(&scene.ada, &call).await["status"], "ringing");
}
