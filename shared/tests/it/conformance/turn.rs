//! The TURN servers that a homeserver names, or that it has none.
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use reqwest::Method;
use serde_json::{Value, json};
use shared::testing::homeserver::FakeHomeserver;
use shared::{database::unix_time, testing::matrix_client::MatrixClient};
use std::time::Duration;

use super::{Target, assert_refused, laws};

laws!(turn_servers_come_with_credentials_that_expire_or_not_at_all, turn_servers_are_named_to_users_only,);

async fn ask(user: &MatrixClient) -> Value {
    user.call(Method::GET, &["voip", "turnServer"], &[], None).await.unwrap()
}

/// Whether a homeserver has any is its configuration's: both are as Synapse answers.
async fn turn_servers_come_with_credentials_that_expire_or_not_at_all(hs: &Target) {
    let user = hs.user().await;
    let answer = ask(&user).await;
    if answer == json!({}) {
        return;
    }
    check(&answer, user.user_id());
}

#[tokio::test]
async fn the_fake_names_the_turn_servers_that_it_was_given() {
    let fake = FakeHomeserver::start().await;
    let user = Target::fake(&fake).user().await;
    assert_eq!(ask(&user).await, json!({}));
    fake.set_turn_servers(&["turn:turn.nova.test?transport=udp"], "turn-secret", Duration::from_hours(1));
    let answer = ask(&user).await;
    assert_eq!((&answer["ttl"], &answer["uris"]), (&json!(3600), &json!(["turn:turn.nova.test?transport=udp"])));
    check(&answer, user.user_id());
}

#[track_caller]
fn check(answer: &Value, user_id: &str) {
    let names: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["password", "ttl", "uris", "username"]);
    let (until, name) = answer["username"].as_str().unwrap().split_once(':').unwrap();
    assert_eq!(name, user_id);
    let ttl = answer["ttl"].as_i64().unwrap();
    let left = until.parse::<i64>().unwrap() - unix_time();
    assert!((ttl - 60..=ttl + 60).contains(&left), "{left} s are left of {ttl}");
    assert_eq!(BASE64.decode(answer["password"].as_str().unwrap()).unwrap().len(), 20, "it is an HMAC-SHA1");
    assert!(answer["uris"].as_array().unwrap().iter().all(|uri| uri.as_str().unwrap().starts_with("turn")));
}

async fn turn_servers_are_named_to_users_only(hs: &Target) {
    let user = hs.user().await;
    user.call(Method::POST, &["logout"], &[], Some(&json!({}))).await.unwrap();
    let refused = user.call(Method::GET, &["voip", "turnServer"], &[], None).await;
    assert_refused!(refused, 401, "M_UNKNOWN_TOKEN");
}
