//! Who may connect, how many, and for how long.

use std::time::Duration;

use shared::testing::{
    eventually,
    nova::NovaUser,
    websocket::{Heard, Socket},
};
use tokio_tungstenite::tungstenite::Message;

use super::{Scene, metric};

fn ws(scene: &Scene, path: &str) -> String {
    format!("{}{path}", scene.api.url().replacen("http", "ws", 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_in_the_header_or_as_a_subprotocol_and_never_in_the_url() {
    let scene = Scene::new().await;
    let token = scene.ada.token().to_owned();
    let url = ws(&scene, "/ws");
    let by_header = Socket::connect(&url, &[("authorization", &format!("bearer {token}"))]).await.unwrap();
    assert_eq!(by_header.protocol, None);
    let offered = format!("matrix-outbox, bearer.{token}");
    let mut in_browser = Socket::connect(&url, &[("sec-websocket-protocol", &offered)]).await.unwrap();
    assert_eq!(in_browser.protocol.as_deref(), Some("matrix-outbox"), "and the token is not said back");
    assert_eq!(in_browser.frame().await["type"], "ready");
    assert!(!String::from_utf8_lossy(&in_browser.bytes()).contains(&token));

    let expired = scene.ada.expiring_in(-60);
    let refusals = [
        (vec![], url.clone()),
        (vec![("authorization", "Bearer nonsense".to_owned())], url.clone()),
        (vec![("authorization", token.clone())], url.clone()),
        (vec![("authorization", format!("Bearer {}", expired.token()))], url.clone()),
        (vec![("sec-websocket-protocol", "matrix-outbox".to_owned())], url.clone()),
        (vec![("sec-websocket-protocol", format!("bearer.{}", expired.token()))], url.clone()),
        (vec![], ws(&scene, &format!("/ws?access_token={token}"))),
    ];
    for (headers, url) in refusals {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (status, problem) = Socket::connect(&url, &headers).await.unwrap_err();
        assert_eq!((status, problem["code"].as_str()), (401, Some("unauthorized")), "{headers:?}");
    }
    let log = scene.api.log().join("\n");
    assert!(!log.contains(&token), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_token() {
    let scene = Scene::new().await;
    // Within the leeway: good for some five seconds more.
    let ada = scene.ada.expiring_in(0);
    let mut socket = ada.listen(None).await;
    scene.post("in time").await;
    assert_eq!(socket.frame().await["message"]["plaintext"], "in time");
    match socket.ended().await {
        Heard::Closed(code, reason) => assert!(code == 4401 && reason.contains("expired"), "{code} {reason}"),
        end => panic!("{end:?}"),
    }
    scene.post("too late").await;
    let mut back = scene.ada.listen(Some(socket.cursor())).await;
    assert_eq!(back.frame().await["message"]["plaintext"], "too late");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_websocket_is_told_so() {
    let scene = Scene::new().await;
    let answer = scene.ada.call("GET", "/ws", None).await;
    assert_eq!((answer.status, answer.code()), (426, "upgrade_required"));
    assert_eq!(answer.headers.get("upgrade").map(String::as_str), Some("websocket"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_for_each_user_and_for_the_process() {
    let options = [("WS_MAX_CONNECTIONS", "3"), ("WS_MAX_CONNECTIONS_PER_USER", "2")];
    let scene = Scene::with(&options).await;
    let one = scene.ada.listen(None).await;
    let two = scene.ada.listen(None).await;
    let (status, problem) = scene.ada.try_listen(None).await.unwrap_err();
    assert_eq!((status, problem["code"].as_str()), (429, Some("too_many_connections")));
    let three = scene.grace.listen(None).await;
    let other = NovaUser::new(&scene.api);
    let (status, problem) = other.try_listen(None).await.unwrap_err();
    assert_eq!((status, problem["code"].as_str()), (503, Some("at_capacity")));
    // A place is free again when its connection has ended, by a word or without.
    one.close().await;
    drop((two, three));
    for user in [&scene.ada, &scene.ada, &other] {
        eventually("a place is free", || async { user.try_listen(None).await.ok().map(std::mem::forget) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_and_pings_come_and_who_answers_stays() {
    let scene = Scene::with(&[("WS_HEARTBEAT", "1s")]).await;
    let mut socket = scene.ada.listen(None).await;
    let mut heartbeats = 0;
    while heartbeats < 6 {
        match socket.hear().await {
            Heard::Frame(frame) => {
                assert_eq!(frame["type"], "heartbeat");
                heartbeats += 1;
            }
            end => panic!("{end:?}"),
        }
    }
    assert!(socket.pings >= 4, "{} pings", socket.pings);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_no_sign_of_life_is_closed() {
    let scene = Scene::with(&[("WS_HEARTBEAT", "200ms")]).await;
    let mut socket = scene.ada.listen(None).await;
    // Whoever does not read answers no ping.
    eventually("it is taken for gone", || async {
        (metric(&scene.api, "ws_closed_total{why=\"silent\"}").await == Some(1.0)).then_some(())
    })
    .await;
    match socket.ended().await {
        Heard::Closed(code, reason) => assert!(code == 4408 && reason.contains("not answer"), "{code} {reason}"),
        end => panic!("{end:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_or_no_text_ends_the_connection_with_the_reason() {
    let scene = Scene::new().await;
    for (message, code) in [(Message::text("x".repeat(70_000)), 1009), (Message::binary(vec![1, 2, 3]), 1003)] {
        let mut socket = scene.ada.listen(None).await;
        socket.send(message).await;
        match socket.hear_within(Duration::from_mins(1)).await {
            Some(Heard::Closed(said, _)) => assert_eq!(said, code),
            end => panic!("{code}: {end:?}"),
        }
    }
}
