//! Which worker reads what happens on Matrix, and what becomes of what it read when it leads no more.

use shared::testing::{eventually, homeserver::FakeHomeserver};

use crate::{inbound::Listening, scene::Home};

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_that_reads_dies_and_another_takes_over_within_seconds() {
    let fake = FakeHomeserver::start().await;
    let mut room = Listening::new(&Home::of(&fake).await).await;
    let _other = room.scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true")]).await;
    room.say("one").await;
    room.says(&["one"]).await;
    room.worker.kill();
    room.say("two").await;
    room.says(&["one", "two"]).await;
    assert_eq!(room.scene.database.count("select epoch from sync_state").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_read_when_it_led_is_not_applied_once_another_leads() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    // It renews its lease so seldom that it does not find out by that.
    let room = Listening::with(&home, &[("MATRIX_SYNC_LEASE", "10m")]).await;
    room.caught_up("one").await;
    let lead = async |change: &'static str| {
        let token = format!("update sync_state set {change} returning next_batch");
        let token: String =
            sqlx::query_scalar(sqlx::AssertSqlSafe(token)).fetch_one(&room.scene.database.pool).await.unwrap();
        token
    };
    let token = lead("epoch = epoch + 1, owner = gen_random_uuid()").await;
    room.say("two").await;
    eventually("it finds out", || async {
        room.worker.log().iter().any(|line| line.contains("another worker leads the sync by now")).then_some(())
    })
    .await;
    room.says(&["one"]).await;
    assert_eq!(lead("owner = null, leased_until = null").await, token);
    room.worker.signal(rustix::process::Signal::TERM);
    let _next = room.scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true")]).await;
    room.says(&["one", "two"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_is_given_away_by_a_worker_that_stops() {
    let fake = FakeHomeserver::start().await;
    let room = Listening::with(&Home::of(&fake).await, &[("MATRIX_SYNC_LEASE", "30s")]).await;
    room.caught_up("one").await;
    let Listening { scene, mut worker, .. } = room;
    worker.signal(rustix::process::Signal::TERM);
    assert!(worker.ended().await.success());
    assert_eq!(scene.database.count("select count(*) from sync_state where owner is null").await, 1);
}

/// `FUZZ_EVENTS=` and `SEED=` make it longer and another.

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_had_read_when_it_died_is_applied_once() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let brief = ("MATRIX_SYNC_LEASE", "500ms");
    let mut room = Listening::with(&home, &[brief]).await;
    room.caught_up("before").await;
    let mut said = vec!["before"];
    for (step, text) in [("event_applies", "one"), ("events_written", "two"), ("events_committed", "three")] {
        room.worker.kill();
        room.say(text).await;
        said.push(text);
        // It dies with the token that covers what was said: not yet moved, moved and not committed, committed.
        let failpoint = format!("{step}=return");
        let options = [("MATRIX_SYNC_ENABLED", "true"), ("FAILPOINTS", failpoint.as_str()), brief];
        let mut dying = room.scene.worker_with(&options).await;
        assert!(!dying.ended().await.success(), "{step} was not passed");
        room.worker = room.scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true"), brief]).await;
        room.says(&said).await;
    }
}
