//! Messages that are sent over the WebSocket, by the rules of `POST /messages`.

use serde_json::{Value, json};
use shared::testing::{PATIENCE, nova::NovaUser, websocket::Socket};
use tokio_tungstenite::tungstenite::Message;

use super::Scene;

fn send(scene: &Scene, request_id: &str, text: &str) -> Value {
    json!({
        "type": "MessageSend",
        "request_id": request_id,
        "conversation_id": scene.conversation,
        "plaintext": text,
    })
}

/// A problem without what differs by where in a text it was found.
fn essence(problem: &Value) -> Value {
    let mut problem = problem.clone();
    problem["detail"].take();
    for error in problem["errors"].as_array_mut().into_iter().flatten() {
        error["reason"].take();
    }
    problem
}

async fn answer(socket: &mut Socket, request_id: &str) -> Value {
    loop {
        let frame = socket.frame().await;
        if frame["request_id"] == request_id {
            return frame;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_acknowledged_as_a_post_is_answered_and_everyone_hears_of_it() {
    let scene = Scene::new().await;
    let (mut of_ada, mut of_grace) = (scene.ada.listen(None).await, scene.grace.listen(None).await);
    of_ada.say(&send(&scene, "r1", "over the socket")).await;
    let ack = answer(&mut of_ada, "r1").await;
    let id = ack["message"]["id"].as_str().unwrap();
    let message = scene.ada.get(&format!("/messages/{id}")).await;
    assert_eq!(ack, json!({"type": "ack", "request_id": "r1", "status": 201, "message": message}));
    assert_eq!(message["author_id"], json!(scene.ada.user_id));
    assert_eq!(of_grace.frame().await["message"], message);
    let mut again = scene.ada.listen(None).await;
    again.say(&send(&scene, "r2", "and another")).await;
    assert_eq!(again.frame_of("MessageNew").await["message"]["plaintext"], "and another", "its author hears of it too");
    assert_eq!(scene.database.count("select count(*) from outbox").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_writes_once_whichever_way_it_comes() {
    let scene = Scene::new().await;
    let mut socket = scene.ada.listen(None).await;
    let mut request = send(&scene, "r1", "once");
    request["idempotency_key"] = json!("the key");
    socket.say(&request).await;
    let first = answer(&mut socket, "r1").await;
    assert_eq!((&first["type"], &first["status"]), (&json!("ack"), &json!(201)));
    request["request_id"] = json!("r2");
    socket.say(&request).await;
    let second = answer(&mut socket, "r2").await;
    assert_eq!((&second["message"], &second["status"]), (&first["message"], &json!(201)));
    let body = json!({"conversation_id": scene.conversation, "plaintext": "once"});
    let by_rest = scene.ada.call_with("POST", "/messages", &[("Idempotency-Key", "the key")], Some(&body)).await;
    assert_eq!(by_rest.expect(201), first["message"]);
    assert_eq!(scene.database.count("select count(*) from messages").await, 1);
    // With other content it is another request's.
    request["request_id"] = json!("r3");
    request["plaintext"] = json!("twice");
    socket.say(&request).await;
    let refused = answer(&mut socket, "r3").await;
    assert_eq!((&refused["type"], &refused["problem"]["code"]), (&json!("error"), &json!("idempotency_key_reused")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_post_refuses_is_refused_with_the_same_problem_and_the_connection_stays() {
    let scene = Scene::with(&[("OUTBOX_LANE_LIMIT", "1")]).await;
    let stranger = NovaUser::new(&scene.api);
    let mut socket = scene.ada.listen(None).await;
    let mut of_stranger = stranger.listen(None).await;
    let bodies = [
        json!({"conversation_id": scene.conversation, "plaintext": ""}),
        json!({"conversation_id": scene.conversation, "plaintext": "a\u{0}b"}),
        json!({"conversation_id": scene.conversation, "plaintext": "x".repeat(21_000)}),
        json!({"conversation_id": scene.conversation, "plaintext": "x", "colour": "red"}),
        json!({"conversation_id": scene.conversation, "plaintext": 5}),
        json!({"conversation_id": "nowhere", "plaintext": "x"}),
        json!({"conversation_id": uuid::Uuid::new_v4(), "plaintext": "x"}),
        json!({"conversation_id": scene.conversation}),
    ];
    for (n, body) in bodies.iter().enumerate() {
        let by_rest = scene.ada.call("POST", "/messages", Some(body)).await;
        assert!(by_rest.status >= 400, "{body}");
        let mut request = body.clone();
        request["type"] = json!("MessageSend");
        request["request_id"] = json!(format!("r{n}"));
        socket.say(&request).await;
        let refused = answer(&mut socket, &format!("r{n}")).await;
        assert_eq!((&refused["type"], &refused["request_id"]), (&json!("error"), &json!(format!("r{n}"))));
        assert_eq!(essence(&refused["problem"]), essence(&by_rest.body), "{body}");
    }
    of_stranger.say(&send(&scene, "r", "let me in")).await;
    assert_eq!(answer(&mut of_stranger, "r").await["problem"]["code"], "not_a_member");
    socket.say(&send(&scene, "full", "one")).await;
    assert_eq!(answer(&mut socket, "full").await["type"], "ack");
    socket.say(&send(&scene, "fuller", "two")).await;
    let refused = answer(&mut socket, "fuller").await;
    assert_eq!((&refused["problem"]["code"], &refused["problem"]["status"]), (&json!("lane_full"), &json!(429)));
    assert_eq!(scene.database.count("select count(*) from messages").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_the_connection_stays() {
    let scene = Scene::new().await;
    let mut socket = scene.ada.listen(None).await;
    for (text, request_id, code) in [
        ("{", json!(null), "bad_json"),
        ("[]", json!(null), "invalid"),
        ("\"MessageSend\"", json!(null), "invalid"),
        (r#"{"type": "MessageSend"}"#, json!(null), "invalid"),
        (r#"{"type": "MessageSend", "request_id": 7}"#, json!(null), "invalid"),
        (r#"{"type": "MessageSend", "request_id": ""}"#, json!(null), "invalid"),
        (r#"{"type": "MessageBurn", "request_id": "r"}"#, json!("r"), "invalid"),
        (r#"{"request_id": "r"}"#, json!("r"), "invalid"),
        (r#"{"type": "MessageSend", "request_id": "r", "plaintext": "\ud800"}"#, json!(null), "invalid"),
        (r#"{"type": "MessageSend", "request_id": "r", "idempotency_key": ""}"#, json!("r"), "invalid"),
        (r#"{"type": "MessageSend", "request_id": "r", "idempotency_key": "é"}"#, json!("r"), "invalid"),
    ] {
        socket.send(Message::text(text)).await;
        let refused = socket.frame().await;
        assert_eq!(refused["type"], "error", "{text}");
        assert_eq!((&refused["request_id"], &refused["problem"]["code"]), (&request_id, &json!(code)), "{text}");
    }
    socket.say(&send(&scene, "r", "and yet")).await;
    assert_eq!(answer(&mut socket, "r").await["type"], "ack");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_without_a_pause_is_told_what_happens_all_the_same() {
    const AHEAD: usize = 50;
    let scene = Scene::new().await;
    let mut socket = scene.ada.listen(None).await;
    // There is always a request that was not read yet; the news come between their answers.
    let (mut sent, mut answered) = (0, 0);
    let told = async {
        loop {
            while sent < answered + AHEAD {
                sent += 1;
                socket.say(&send(&scene, &format!("r{sent}"), &format!("number {sent}"))).await;
            }
            let frame = socket.frame().await;
            match frame["type"].as_str() {
                Some("ack") => answered += 1,
                _ => return frame,
            }
        }
    };
    let frame = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!((&frame["type"], &frame["message"]["plaintext"]), (&json!("MessageNew"), &json!("number 1")));
}
