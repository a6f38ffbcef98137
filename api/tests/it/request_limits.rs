//! How many requests one user may make.

use serde_json::json;
use shared::testing::{
    database::TestDatabase,
    nova::{NovaUser, Program, api_environment},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_asks_too_much_is_told_when_to_ask_again_and_others_are_not_affected() {
    let database = TestDatabase::create().await;
    let mut environment = api_environment(&database.url);
    environment.insert("API_REQUESTS_PER_SECOND".into(), "1".into());
    let api = Program::start("api", &environment).await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let mut remaining = Vec::new();
    let refused = loop {
        let answer = ada.call("GET", "/conversations", None).await;
        assert_eq!(answer.headers["ratelimit-policy"], "\"user\";q=10;w=10");
        if answer.status != 200 {
            break answer;
        }
        remaining.push(answer.headers["ratelimit"].clone());
        assert!(remaining.len() < 60, "never refused");
    };
    assert!(remaining.len() >= 10, "{remaining:?}");
    assert_eq!(remaining[0], "\"user\";r=9;t=0");
    assert_eq!((refused.status, refused.code()), (429, "rate_limited"));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.headers["ratelimit"], "\"user\";r=0;t=1");
    // What has no token is refused for that, and costs nobody anything.
    let nobody = ada.get_as("/conversations", None).await;
    assert_eq!((nobody.status, nobody.headers.contains_key("ratelimit")), (401, false));
    // Frames of a socket count as requests do.
    let mut socket = grace.listen(None).await;
    let mut answered = 0;
    let problem = loop {
        socket.say(&json!({"type": "CallHangup", "request_id": "r", "call_id": uuid::Uuid::new_v4()})).await;
        let frame = socket.frame().await;
        if frame["problem"]["code"] != "not_found" {
            break frame["problem"].clone();
        }
        answered += 1;
        assert!(answered < 60, "never refused");
    };
    assert_eq!((&problem["code"], &problem["retry_after_seconds"]), (&json!("rate_limited"), &json!(1)));
    assert!(answered >= 9, "the connection itself was one, {answered} more");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_limit_there_are_no_headers() {
    let database = TestDatabase::create().await;
    let api = Program::start("api", &api_environment(&database.url)).await;
    let ada = NovaUser::new(&api);
    for _ in 0..50 {
        let answer = ada.call("GET", "/conversations", None).await;
        assert!(answer.status == 200 && !answer.headers.contains_key("ratelimit"));
    }
}
