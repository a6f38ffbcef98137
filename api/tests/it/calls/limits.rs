//! How many calls may be placed.

use std::time::Duration;

use serde_json::json;
use shared::testing::nova::{NovaUser, Program};

use super::{Scene, id, offer, with};

const LIMITS: [(&str, &str); 2] = [("CALLS_PER_CALLER", "3"), ("CALLS_PER_CALLEE", "5")];

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_limited_over_all_processes_and_told_when_to_try_again() {
    let scene = Scene::with(&LIMITS).await;
    let other = Program::start("api", &with(&scene.database.url, &LIMITS)).await;
    let elsewhere = scene.ada.via(&other);
    for user in [&scene.ada, &elsewhere, &scene.ada] {
        scene.initiate(user, json!({})).await.expect(201);
    }
    for user in [&scene.ada, &elsewhere] {
        let refused = scene.initiate(user, json!({})).await;
        assert_eq!((refused.status, refused.code()), (429, "rate_limited"));
        let seconds: u64 = refused.headers["retry-after"].parse().unwrap();
        assert!((1..=20).contains(&seconds), "{seconds}");
        assert_eq!(refused.body["retry_after_seconds"], seconds);
    }
    let metrics = reqwest::get(format!("{}/metrics", other.url())).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("calls_limited_total{role=\"caller\"} 1"), "{metrics}");
    assert_eq!(scene.database.count("select count(*) from calls").await, 3);
    assert_eq!(scene.database.count("select count(*) from outbox where kind = 'call_invite'").await, 3);
    scene.database.advance(Duration::from_secs(20)).await;
    scene.initiate(&elsewhere, json!({})).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_called_by_many_is_spared() {
    let scene = Scene::with(&LIMITS).await;
    let mut refused = 0;
    for _ in 0..6 {
        let caller = NovaUser::new(&scene.api);
        let conversation = caller.create_conversation(&[scene.grace.user_id]).await;
        let body = offer(&conversation, json!({}));
        let answer = caller.call("POST", "/calls/initiate", Some(&body)).await;
        refused += u32::from(answer.code() == "rate_limited");
    }
    assert_eq!(refused, 1);
    assert_eq!(scene.database.count("select count(*) from calls").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_repeated_or_refused_is_not_counted() {
    let scene = Scene::with(&LIMITS).await;
    let key = [("Idempotency-Key", "k")];
    let body = offer(&scene.conversation, json!({}));
    let first = id(&scene.ada.call_with("POST", "/calls/initiate", &key, Some(&body)).await.expect(201));
    for _ in 0..5 {
        let again = scene.ada.call_with("POST", "/calls/initiate", &key, Some(&body)).await.expect(201);
        assert_eq!(id(&again), first);
        scene.initiate(&scene.ada, json!({"invitee": scene.ada.user_id})).await.expect(422);
    }
    for _ in 0..2 {
        scene.initiate(&scene.ada, json!({})).await.expect(201);
    }
    scene.initiate(&scene.ada, json!({})).await.expect(429);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_limits_nobody_is_limited() {
    let scene = Scene::with(&[("CALLS_PER_CALLER", "0"), ("CALLS_PER_CALLEE", "0")]).await;
    for _ in 0..70 {
        scene.initiate(&scene.ada, json!({})).await.expect(201);
    }
    assert_eq!(scene.database.count("select count(*) from call_allowances").await, 0);
}
