//! Whose fault a failure is: only what is an operation's own fault counts against it.

use std::time::Duration;

use shared::testing::{eventually, homeserver::FakeHomeserver};

use crate::scene::{Home, Scene, id, room_of};

/// Cause and error code of all dead letters, in their order.
async fn dead(scene: &Scene) -> Vec<(String, Option<String>)> {
    sqlx::query_as("select cause, errcode from dead_letters order by seq")
        .fetch_all(&scene.database.pool)
        .await
        .unwrap()
}

fn one(cause: &str, errcode: &str) -> Vec<(String, Option<String>)> {
    vec![(cause.to_owned(), Some(errcode.to_owned()))]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_homeserver_itself_fails_on_is_dead_the_sixth_time_if_it_takes_others_in_between() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let (elsewhere, _) = scene.begun().await;
    let failing = fake.on_send().body_contains("poison").fail(500).always();
    scene.ada.post(&conversation, "poison").await.expect(201);
    let behind = id(&scene.ada.post(&conversation, "behind").await.expect(201));
    eventually("it is dead", || async {
        let other = id(&scene.ada.post(&elsewhere, "other").await.expect(201));
        scene.ada.delivered(&other).await;
        (!dead(&scene).await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(dead(&scene).await, one("own_fault", "M_UNKNOWN"));
    // The first failure proves nothing: nobody knows yet that others get through.
    assert!(failing.hits() >= 6, "{} attempts", failing.hits());
    scene.ada.delivered(&behind).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_homeserver_fails_on_while_it_takes_nothing_else_is_tried_for_ever() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker_with(&[("OUTBOX_BACKOFF", "1ms")]).await;
    let (conversation, _) = scene.begun().await;
    let failing = fake.on_send().fail(500).always();
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    for n in 1..=10 {
        failing.arrived_times(n).await;
        scene.later().await;
    }
    assert_eq!(dead(&scene).await, []);
    fake.clear_faults();
    scene.ada.delivered(&message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_nobody_knows_is_given_up_after_three_days_and_not_before() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    fake.on_send().body_contains("odd").fail(418).errcode("M_TEAPOT").always();
    let (elsewhere, _) = scene.begun().await;
    scene.ada.post(&conversation, "odd").await.expect(201);
    let behind = id(&scene.ada.post(&conversation, "behind").await.expect(201));
    scene.attempted("refused", 1).await;
    // As if it had been tried for so long.
    let tried_for = async |hours: i32| {
        let tried = "update outbox set first_failed_at = outbox_now() - make_interval(hours => $1) where failures > 0";
        sqlx::query(tried).bind(hours).execute(&scene.database.pool).await.unwrap();
    };
    // Others get through, and then its turn comes.
    let next_attempt_comes = async || {
        let other = id(&scene.ada.post(&elsewhere, "other").await.expect(201));
        scene.ada.delivered(&other).await;
        scene.database.advance(Duration::from_mins(6)).await;
    };
    let attempts = async || scene.database.count("select count(*) from attempts where http_status = 418").await;
    tried_for(71).await;
    // The first of them may have been on its way before.
    for _ in 0..2 {
        let before = attempts().await;
        next_attempt_comes().await;
        eventually("it is tried again", || async { (attempts().await > before).then_some(()) }).await;
    }
    assert_eq!(dead(&scene).await, []);
    tried_for(73).await;
    eventually("it is given up", || async {
        next_attempt_comes().await;
        (!dead(&scene).await.is_empty()).then_some(())
    })
    .await;
    let behind = scene.ada.delivered(&behind).await;
    assert_eq!(dead(&scene).await, one("gave_up", "M_TEAPOT"));
    let bodies: Vec<_> =
        fake.timeline(room_of(&behind)).iter().filter_map(|event| event.body().map(str::to_owned)).collect();
    assert_eq!(bodies, ["begun", "behind"]);
}
