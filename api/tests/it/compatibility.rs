//! The paths and field names that clients rely on. Whoever breaks this test breaks them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::testing::{
    database::TestDatabase,
    nova::{NovaUser, Program, api_environment},
};

/// The names of an object's fields, those of objects in it behind a dot.
fn names(value: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for (name, value) in value.as_object().unwrap() {
        match value {
            Value::Object(_) => names.extend(self::names(value).into_iter().map(|inner| format!("{name}.{inner}"))),
            _ => names.push(name.clone()),
        }
    }
    names.sort();
    names
}

const MESSAGE: [&str; 21] = [
    "author_id",
    "conversation_id",
    "created_at",
    "deleted_at",
    "edited_at",
    "external",
    "formatted",
    "id",
    "kind",
    "matrix.delivery",
    "matrix.event_id",
    "matrix.room_id",
    "media",
    "mentions",
    "mentions_room",
    "plaintext",
    "reactions",
    "reply_to",
    "revision",
    "seq",
    "thread_of",
];

const CONVERSATION: [&str; 8] =
    ["created_at", "created_by", "external", "id", "matrix.not_invited", "matrix.room_id", "members", "name"];

#[tokio::test(flavor = "multi_thread")]
async fn the_paths_and_field_names_that_clients_know_hold() {
    let database = TestDatabase::create().await;
    let api = Program::start("api", &api_environment(&database.url)).await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));

    let body = json!({"members": [grace.user_id], "name": "Engines"});
    let conversation = ada.call("POST", "/conversations", Some(&body)).await.expect(201);
    assert_eq!(names(&conversation), CONVERSATION);
    let conversation_id = conversation["id"].as_str().unwrap();
    let path = format!("/conversations/{conversation_id}");
    assert_eq!(names(&ada.get(&path).await), CONVERSATION);
    let page = ada.get("/conversations").await;
    assert_eq!(names(&page), ["conversations", "next_cursor"]);
    assert_eq!(names(&page["conversations"][0]), CONVERSATION);

    // The request as it always was: these two fields, a token, nothing else.
    let body = json!({"conversation_id": conversation_id, "plaintext": "Hello from Nova with Matrix!"});
    let message = ada.call("POST", "/messages", Some(&body)).await.expect(201);
    assert_eq!(names(&message), MESSAGE);
    assert_eq!(
        (&message["reply_to"], &message["edited_at"], &message["deleted_at"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let message_path = format!("/messages/{}", message["id"].as_str().unwrap());
    let body = json!({"conversation_id": conversation_id, "plaintext": "and back", "reply_to": message["id"]});
    let reply = grace.call("POST", "/messages", Some(&body)).await.expect(201);
    assert_eq!(reply["reply_to"], message["id"]);
    assert_eq!(names(&ada.get(&message_path).await), MESSAGE);
    let page = ada.get(&format!("{path}/messages")).await;
    assert_eq!(names(&page), ["messages", "next_cursor"]);
    assert_eq!(names(&page["messages"][0]), MESSAGE);
    let reaction = format!("{message_path}/reactions/%F0%9F%91%8D");
    let reacted = grace.call("PUT", &reaction, None).await.expect(201);
    assert_eq!(names(&reacted), MESSAGE);
    assert_eq!(names(&reacted["reactions"][0]), ["count", "key", "mine", "user_ids"]);
    assert_eq!(grace.call("DELETE", &reaction, None).await.status, 204);
    let edited = ada.call("PATCH", &message_path, Some(&json!({"plaintext": "Hello"}))).await.expect(200);
    assert_eq!(names(&edited), MESSAGE);
    let delivery = ada.get(&format!("{message_path}/delivery")).await;
    assert_eq!(
        names(&delivery),
        ["ahead", "attempts", "due_at", "event_id", "message_id", "sentence", "state", "waited", "waiting_for"]
    );
    let deleted = ada.call("DELETE", &message_path, None).await.expect(200);
    let mut with_deletion = names(&deleted);
    with_deletion.retain(|name| name != "deletion");
    assert_eq!((with_deletion.len(), names(&deleted).len()), (MESSAGE.len(), MESSAGE.len() + 1));

    let member = format!("{path}/members/{}", grace.user_id);
    assert_eq!(names(&ada.call("PUT", &member, None).await.expect(200)), CONVERSATION);
    assert_eq!(ada.call("DELETE", &member, None).await.status, 204);
    for (path, status) in [("/health/live", 200), ("/health/ready", 200), ("/metrics", 200)] {
        assert_eq!(reqwest::get(format!("{}{path}", api.url())).await.unwrap().status(), status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_prefers_to_wait_waits_as_long_as_that_and_no_longer() {
    let database = TestDatabase::create().await;
    let api = Program::start("api", &api_environment(&database.url)).await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    let body = json!({"conversation_id": conversation, "plaintext": "words"});
    let began = Instant::now();
    let answer = ada.call_with("POST", "/messages", &[("Prefer", "respond-async, wait=1")], Some(&body)).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!((answer.status, answer.headers["preference-applied"].as_str()), (201, "wait=1"));
    assert_eq!(answer.body["matrix"]["delivery"], "pending");
    // Nothing waits unasked, nor for what is not understood.
    for prefer in ["respond-async", "wait=soon"] {
        let answer = ada.call_with("POST", "/messages", &[("Prefer", prefer)], Some(&body)).await;
        assert!(!answer.headers.contains_key("preference-applied"));
        answer.expect(201);
    }
    // What is not on its way to Matrix is not waited for.
    let path = format!("/messages/{}", answer.body["id"].as_str().unwrap());
    ada.call("DELETE", &path, None).await.expect(200);
    let answer = ada.call_with("GET", &path, &[("Prefer", "wait=10")], None).await;
    assert_eq!(answer.headers["preference-applied"], "wait=10");
    assert_eq!(answer.expect(200)["matrix"]["delivery"], "cancelled");
}
