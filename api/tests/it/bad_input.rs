//! Bad input gets a problem that says which field is wrong and why, and changes nothing.

use std::process::{Command, Stdio};

use secrecy::SecretString;
use serde_json::{Value, json};
use shared::{
    ids::{MessageId, UserId},
    testing::{
        database::TestDatabase,
        nova::{Answer, JWT_SECRET, NovaUser, Program, api_environment, program_path},
    },
    token,
};

struct Scene {
    _database: TestDatabase,
    _api: Program,
    ada: NovaUser,
    stranger: NovaUser,
    conversation: String,
}

async fn scene() -> Scene {
    let database = TestDatabase::create().await;
    let api = Program::start("api", &api_environment(&database.url)).await;
    let (ada, stranger) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[UserId::generate()]).await;
    Scene { _database: database, _api: api, ada, stranger, conversation }
}

#[track_caller]
fn assert_problem(answer: &Answer, status: u16, code: &str, field: Option<&str>) {
    assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.body);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!(answer.body["status"], status);
    assert!(answer.body["title"].is_string() && answer.body["type"].is_string(), "{}", answer.body);
    if let Some(field) = field {
        assert_eq!(answer.body["errors"][0]["field"], field, "{}", answer.body);
        assert!(!answer.body["errors"][0]["reason"].as_str().unwrap().is_empty());
        assert!(answer.body["detail"].as_str().unwrap().contains(field));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_cannot_be_sent_as_it_is_is_refused_by_field() {
    let Scene { ada, conversation, .. } = &scene().await;
    let post = |body: Value| async move { ada.call("POST", "/messages", Some(&body)).await };
    let text = |text: &str| json!({"conversation_id": conversation, "plaintext": text});
    assert_problem(&post(text("")).await, 422, "invalid", Some("plaintext"));
    assert_problem(&post(text("a\0b")).await, 422, "invalid", Some("plaintext"));
    // 20 KiB is measured as JSON: quotes count twice, the two around the text count too.
    let fits = "x".repeat(20 * 1024 - 2);
    post(text(&fits)).await.expect(201);
    assert_problem(&post(text(&format!("{fits}x"))).await, 413, "too_large", Some("plaintext"));
    assert_problem(&post(text(&"\"".repeat(10 * 1024))).await, 413, "too_large", Some("plaintext"));
    assert_problem(&post(text(&"y".repeat(70_000))).await, 413, "too_large", Some("body"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lone_surrogates_are_refused_by_field() {
    let Scene { ada, conversation, .. } = &scene().await;
    for text in ["\\ud800", "\\ud800x", "x\\udc00", "\\ud800\\ud800"] {
        let body = format!(r#"{{"conversation_id": "{conversation}", "plaintext": "{text}"}}"#);
        let answer = ada.call_raw("/messages", "application/json", body).await;
        assert_problem(&answer, 422, "invalid", Some("plaintext"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_shape_is_refused_by_field() {
    let Scene { ada, conversation, .. } = &scene().await;
    let post = |path: &'static str, body: Value| async move { ada.call("POST", path, Some(&body)).await };
    let wrong = [
        (json!({"conversation_id": "not-a-uuid", "plaintext": "x"}), "conversation_id"),
        (json!({"conversation_id": conversation, "plaintext": 7}), "plaintext"),
        (json!({"conversation_id": conversation, "plaintext": "x", "reply_to": "seven"}), "reply_to"),
        (json!({"conversation_id": conversation, "plaintext": "x", "reply_to": MessageId::generate()}), "reply_to"),
        (json!({"conversation_id": conversation, "plaintext": "x", "colour": "red"}), "colour"),
        (json!({"conversation_id": conversation}), "body"),
        (json!("text"), "body"),
    ];
    for (body, field) in wrong {
        assert_problem(&post("/messages", body).await, 422, "invalid", Some(field));
    }
    let members = |members: Value| json!({"members": members});
    assert_problem(&post("/conversations", members(json!([]))).await, 422, "invalid", Some("members"));
    assert_problem(&post("/conversations", members(json!(["bob"]))).await, 422, "invalid", Some("members[0]"));
    let many: Vec<UserId> = (0..501).map(|_| UserId::generate()).collect();
    assert_problem(&post("/conversations", members(json!(many))).await, 422, "invalid", Some("members"));
    let named = |name: &str| json!({"members": [UserId::generate()], "name": name});
    for name in ["", "  ", "a\0b", &"n".repeat(201)] {
        assert_problem(&post("/conversations", named(name)).await, 422, "invalid", Some("name"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_is_told_apart_from_a_wrong_field() {
    let Scene { ada, .. } = &scene().await;
    for body in ["", "{", "nonsense", "\u{feff}{}"] {
        let answer = ada.call_raw("/messages", "application/json", body).await;
        assert_problem(&answer, 400, "bad_json", None);
    }
    let answer = ada.call_raw("/messages", "application/json", vec![b'"', 0xff, b'"']).await;
    assert!([400, 422].contains(&answer.status), "{}", answer.body);
    assert_problem(&ada.call_raw("/messages", "text/plain", "{}").await, 415, "unsupported_media_type", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_the_unknown_is_not_found() {
    let Scene { ada, stranger, conversation, .. } = &scene().await;
    assert_problem(&stranger.post(conversation, "hello").await, 403, "not_a_member", None);
    let read = |path: String| async move { stranger.call("GET", &path, None).await };
    assert_problem(&read(format!("/conversations/{conversation}")).await, 403, "not_a_member", None);
    let message = ada.post(conversation, "hello").await.expect(201)["id"].as_str().unwrap().to_owned();
    assert_problem(&read(format!("/messages/{message}")).await, 403, "not_a_member", None);
    let unknown = MessageId::generate();
    assert_problem(&read(format!("/conversations/{unknown}")).await, 404, "not_found", None);
    assert_problem(&read(format!("/messages/{unknown}")).await, 404, "not_found", None);
    assert_problem(&ada.post(&unknown.to_string(), "hello").await, 404, "not_found", None);
    assert_problem(&read("/messages/one".into()).await, 422, "invalid", Some("path"));
    assert_problem(&read("/nowhere".into()).await, 404, "not_found", None);
    assert_problem(&stranger.call("PUT", "/messages", None).await, 405, "method_not_allowed", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_a_wrong_one_and_an_expired_one_are_unauthorized() {
    let Scene { ada, conversation, .. } = &scene().await;
    let sign =
        |secret: &str, expires_at| token::sign(&SecretString::from(secret), ada.user_id, expires_at, None).unwrap();
    let now = shared::database::unix_time();
    let path = format!("/conversations/{conversation}");
    let mut wrong =
        vec![None, Some("Bearer".to_owned()), Some("Bearer x.y.z".to_owned()), Some("Basic YTpi".to_owned())];
    wrong.push(Some(format!("Bearer {}", sign(JWT_SECRET, now - 60))));
    wrong.push(Some(format!("Bearer {}", sign("another secret that is long enough", now + 60))));
    // A token that says that it needs no signature.
    let claims = sign(JWT_SECRET, now + 60).split('.').nth(1).unwrap().to_owned();
    wrong.push(Some(format!("Bearer eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.")));
    for authorization in wrong {
        let answer = ada.get_as(&path, authorization.as_deref()).await;
        assert_problem(&answer, 401, "unauthorized", None);
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    let good = format!("bearer {}", sign(JWT_SECRET, now + 60));
    assert_eq!(ada.get_as(&path, Some(&good)).await.status, 200);
}

#[test]
fn a_wrong_configuration_is_reported_whole_at_start() {
    let output = Command::new(program_path("api"))
        .env_clear()
        .envs([
            ("DATABASE_URL", "oracle://x"),
            ("CONTENT_KEYS", "k"),
            ("MATRIX_ENABLED", "perhaps"),
            ("API_LISTEN", "here"),
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    for option in ["DATABASE_URL", "CONTENT_KEYS", "JWT_SECRET", "MATRIX_ENABLED", "API_LISTEN"] {
        assert!(said.lines().any(|line| line.starts_with(&format!("{option}: "))), "{option} in:\n{said}");
    }
}

#[test]
fn every_option_appears_in_help() {
    const OF_THE_WORKER: [&str; 5] =
        ["OUTBOX_LEASE", "OUTBOX_POLL", "OUTBOX_HTTP_TIMEOUT", "OUTBOX_BACKOFF", "OUTBOX_PROBE"];
    let output = Command::new(program_path("api")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for option in api_environment("x").keys().filter(|name| !name.starts_with("RUST_")) {
        let of_the_worker = OF_THE_WORKER.contains(&option.as_str());
        assert!(of_the_worker || help.contains(option), "{option} in:\n{help}");
    }
    let version = Command::new(program_path("api")).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(version.stdout).unwrap().trim(), concat!("api ", env!("CARGO_PKG_VERSION")));
}
