//! The homeserver's TURN servers, as a worker fetches and keeps them.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use shared::{
    seal::KeyRing,
    testing::{
        eventually,
        homeserver::{FakeHomeserver, Kind},
        nova::CONTENT_KEYS,
    },
    turn::{self, OfHomeserver},
};

use crate::scene::{Home, Scene};

const OPTION: [(&str, &str); 1] = [("TURN_FROM_HOMESERVER", "true")];
const URIS: [&str; 2] = ["turn:turn.nova.test?transport=udp", "turns:turn.nova.test?transport=tcp"];

async fn kept(scene: &Scene) -> Option<OfHomeserver> {
    let mut conn = scene.database.pool.acquire().await.unwrap();
    turn::of_homeserver(&mut conn, &KeyRing::parse(CONTENT_KEYS).unwrap()).await.unwrap()
}

fn asked(fake: &FakeHomeserver) -> usize {
    fake.requests().iter().filter(|request| request.path.ends_with("/voip/turnServer")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_servers_are_fetched_once_for_all_workers_and_again_at_half_their_time() {
    let fake = FakeHomeserver::start().await;
    fake.set_turn_servers(&URIS, "secret", Duration::from_mins(10));
    let scene = Scene::new(&Home::of(&fake).await).await;
    let (_one, _other) = (scene.worker_with(&OPTION).await, scene.worker_with(&OPTION).await);
    let first = eventually("they are kept", || kept(&scene)).await;
    assert_eq!(first.uris, URIS);
    let username = first.credentials.username.clone();
    assert!(username.contains("@nova-service-"), "{username}");
    assert!(!first.credentials.password.expose_secret().is_empty());
    let sealed = "select count(*) from turn_servers where encode(password, 'escape') like '%' || username || '%'";
    assert_eq!(scene.database.count(sealed).await, 0);
    scene.database.advance(Duration::from_mins(4)).await;
    assert_eq!(kept(&scene).await.unwrap().credentials.username, username);
    assert_eq!(asked(&fake), 1, "one worker asks, and not before it is time");
    fake.advance(Duration::from_mins(6));
    scene.database.advance(Duration::from_mins(2)).await;
    eventually("they are fetched again", || async {
        kept(&scene).await.filter(|kept| kept.credentials.username != username)
    })
    .await;
    assert_eq!(asked(&fake), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_to_expire_is_given_to_nobody_and_a_homeserver_that_was_away_is_asked_again() {
    let fake = FakeHomeserver::start().await;
    fake.set_turn_servers(&URIS, "secret", Duration::from_mins(10));
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker_with(&OPTION).await;
    eventually("they are kept", || kept(&scene)).await;
    fake.on(Kind::Other).fail(500).always();
    scene.database.advance(Duration::from_secs(9 * 60 - 2)).await;
    assert!(kept(&scene).await.is_some(), "a minute is left");
    scene.database.advance(Duration::from_secs(3)).await;
    assert!(kept(&scene).await.is_none());
    eventually("it is asked again", || async { (asked(&fake) >= 2).then_some(()) }).await;
    fake.clear_faults();
    scene.database.advance(Duration::from_secs(31)).await;
    eventually("they are kept", || kept(&scene)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_without_turn_servers_is_no_failure_and_is_asked_rarely() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker_with(&OPTION).await;
    let answered = "select count(*) from turn_servers where fetched_at is not null and uris = '{}'";
    eventually("it has answered", || async { (scene.database.count(answered).await == 1).then_some(()) }).await;
    assert!(kept(&scene).await.is_none());
    scene.database.advance(Duration::from_mins(9)).await;
    // It is no failure: deliveries go on, and nothing is said of it.
    let (conversation, _) = scene.begun().await;
    let second = scene.ada.post(&conversation, "second").await.expect(201);
    scene.ada.delivered(second["id"].as_str().unwrap()).await;
    assert_eq!(asked(&fake), 1);
    let log = worker.log().join("\n");
    assert!(!log.contains("TURN"), "{log}");
    fake.set_turn_servers(&URIS, "secret", Duration::from_mins(10));
    scene.database.advance(Duration::from_mins(2)).await;
    eventually("it has some by now", || kept(&scene)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_asks_unless_that_is_configured() {
    let fake = FakeHomeserver::start().await;
    fake.set_turn_servers(&URIS, "secret", Duration::from_mins(10));
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    scene.begun().await;
    assert_eq!(asked(&fake), 0);
}
