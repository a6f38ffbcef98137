//! Two workers: one ends, stalls or loses its database, and the other goes on.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use shared::testing::{
    eventually,
    homeserver::FakeHomeserver,
    ledger::{Asked, Ledger, Senders},
    matrix_client::MatrixClient,
    proxy::PgProxy,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::scene::{Home, Scene, id, metric, room_of, sends, shape};

/// Posts, and enters it into the record of what was asked.
async fn post(scene: &Scene, asked: &Asked, conversation: &str, text: &str) -> String {
    let author = scene.ada.user_id.as_uuid();
    let entry = asked.post(conversation.parse::<Uuid>().unwrap(), author, text);
    let posted = scene.ada.post(conversation, text).await.expect(201);
    entry.answered(id(&posted).parse::<Uuid>().unwrap(), posted["seq"].as_i64().unwrap());
    id(&posted)
}

fn asked_of(scene: &Scene, conversation: &str) -> Asked {
    let asked = Asked::new();
    let members = [scene.ada.user_id.as_uuid(), scene.grace.user_id.as_uuid()];
    asked.conversation(conversation.parse::<Uuid>().unwrap(), &members);
    asked
}

async fn assert_exact(home: &Home, asked: &Asked) {
    let senders = Senders::ServiceAccount(home.account.user_id().to_owned());
    Ledger::new(asked, &home.account, senders).exclusive().assert_settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_had_in_flight_is_resumed_by_another_and_stands_once() {
    for accepted in [true, false] {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let scene = Scene::new(&home).await;
        let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
        let asked = asked_of(&scene, &conversation);
        let held = if accepted { fake.on_send().hold_answer().once() } else { fake.on_send().hold().once() };
        let mut first = scene.worker().await;
        let message = post(&scene, &asked, &conversation, "in flight").await;
        held.arrived().await;
        let second = scene.worker().await;
        let next = post(&scene, &asked, &conversation, "behind it").await;
        let began = Instant::now();
        first.kill();
        scene.ada.delivered(&message).await;
        scene.ada.delivered(&next).await;
        assert!(began.elapsed() < Duration::from_secs(45));
        held.release();
        let sends = sends(&fake);
        assert_eq!(sends.len(), 3);
        assert_eq!(sends[0].txn, sends[1].txn);
        assert!((metric(&second, "outbox_lease_expired_total").await - 1.0).abs() < 0.1);
        assert_exact(&home, &asked).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_may_have_sent_is_redacted_although_the_next_attempt_was_refused() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let held = fake.on_send().hold_answer().once();
    let mut first = scene.worker().await;
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    held.arrived().await;
    first.kill();
    fake.on_send().fail(429).retry_after(Duration::from_secs(5)).once();
    let _second = scene.worker().await;
    scene.attempted("refused", 1).await;
    // The second worker was certainly refused; what became of the first attempt nobody knows.
    assert_eq!(scene.ada.delete(&message).await.expect(200)["deletion"], "redacting");
    scene.later().await;
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&fake.rooms()[0])), ["gone", "x 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stalls_past_its_lease_settles_nothing_when_it_comes_back() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let asked = asked_of(&scene, &conversation);
    let held = fake.on_send().hold().once();
    let stalled = scene.worker().await;
    let message = post(&scene, &asked, &conversation, "in flight").await;
    held.arrived().await;
    stalled.signal(Signal::STOP);
    let _other = scene.worker().await;
    let behind =
        [post(&scene, &asked, &conversation, "behind it").await, post(&scene, &asked, &conversation, "and last").await];
    for message in [&message, &behind[0], &behind[1]] {
        scene.ada.delivered(message).await;
    }
    scene.drained().await;
    let settled = "select count(*) from attempts";
    let attempts = scene.database.count(settled).await;
    held.release();
    stalled.signal(Signal::CONT);
    eventually("the late finisher is turned away", || async {
        (metric(&stalled, "outbox_fenced_settles_total").await > 0.5).then_some(())
    })
    .await;
    assert!((metric(&stalled, "outbox_fenced_settles_total").await - 1.0).abs() < 0.1);
    assert_eq!(scene.database.count(settled).await, attempts);
    assert_eq!(scene.database.count("select count(*) from lanes where owner is not null or open <> 0").await, 0);
    // Both still work.
    for n in 0..10 {
        let message = post(&scene, &asked, &conversation, &format!("afterwards {n}")).await;
        scene.ada.delivered(&message).await;
    }
    assert_exact(&home, &asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_evidence_of_a_late_finisher_is_kept_although_it_settles_nothing() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let asked = asked_of(&scene, &conversation);
    let proxy = PgProxy::start(&scene.database.url).await;
    let answered = fake.on_send().hold_answer().once();
    let cut_off = scene.worker_with(&[("DATABASE_URL", proxy.url())]).await;
    let message = post(&scene, &asked, &conversation, "answered").await;
    answered.arrived().await;
    // The homeserver's answer reaches a worker that cannot write it down, and whose lease lapses meanwhile.
    proxy.cut();
    answered.release();
    let repeated = fake.on_send().hold().once();
    let _other = scene.patient_worker().await;
    repeated.arrived().await;
    assert_eq!(scene.ada.get(&format!("/messages/{message}")).await["matrix"]["delivery"], "delivering");
    proxy.restore();
    let delivered = scene.ada.delivered(&message).await;
    // Neither has settled anything: the other worker still waits for its own answer.
    assert_eq!(scene.database.count("select count(*) from attempts").await, 0);
    assert_eq!(delivered["matrix"]["event_id"], json!(fake.timeline(room_of(&delivered)).last().unwrap().event_id));
    assert!((metric(&cut_off, "outbox_fenced_settles_total").await - 1.0).abs() < 0.1);
    eventually("the log says so", || async {
        cut_off.log().iter().any(|line| line.contains("keeping the evidence only")).then_some(())
    })
    .await;
    repeated.release();
    let next = post(&scene, &asked, &conversation, "next").await;
    scene.ada.delivered(&next).await;
    scene.drained().await;
    assert_exact(&home, &asked).await;
}

/// When the only lane with work is due, in milliseconds since 1970.
async fn due(scene: &Scene) -> u64 {
    let due: OffsetDateTime =
        sqlx::query_scalar("select due_at from lanes where open > 0").fetch_one(&scene.database.pool).await.unwrap();
    u64::try_from(due.unix_timestamp_nanos() / 1_000_000).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_survives_its_worker_and_the_next_attempt_comes_at_its_time_from_another() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let mut worker = scene.slow_worker().await;
    let (conversation, room) = scene.begun().await;
    scene.drained().await;
    fake.on_send().fail(502).once();
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    scene.attempted("ambiguous", 1).await;
    worker.kill();
    let due_at = due(&scene).await;
    let _next = scene.worker().await;
    // New messages do not re-arm a lane that waits.
    for n in 0..5 {
        scene.ada.post(&conversation, &format!("behind {n}")).await.expect(201);
        assert_eq!(due(&scene).await, due_at);
    }
    scene.ada.delivered(&message).await;
    scene.drained().await;
    let sends = sends(&fake);
    assert_eq!((sends[1].status, &sends[1].txn), (Some(502), &sends[2].txn));
    assert!(sends[2].at_ms + 5 >= due_at, "it came {} ms too early", due_at - sends[2].at_ms);
    // Less than once more the wait, however busy the machine.
    assert!(sends[2].at_ms < due_at + 10_000, "it came {} ms late", sends[2].at_ms - due_at);
    assert_eq!(
        shape(&fake.timeline(&room)),
        ["begun", "words", "behind 0", "behind 1", "behind 2", "behind 3", "behind 4"]
    );
}

/// A message that the homeserver took and did not answer, or never got; its worker is dead. Then the room.
async fn orphaned(fake: &FakeHomeserver, scene: &Scene, arrived: bool) -> (String, String) {
    let mut worker = scene.slow_worker().await;
    let (conversation, room) = scene.begun().await;
    scene.drained().await;
    if arrived {
        fake.on_send().drop_after_accept().once()
    } else {
        fake.on_send().drop_before().once()
    };
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    scene.attempted("ambiguous", 1).await;
    worker.kill();
    scene.later().await;
    (message, room)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_token_of_the_same_device_repeats_the_transaction_and_doubles_nothing() {
    for arrived in [true, false] {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let scene = Scene::new(&home).await;
        let (message, room) = orphaned(&fake, &scene, arrived).await;
        let (user, device) = (home.account.user_id(), home.account.device_id());
        fake.revoke_token(user);
        let localpart = user.trim_start_matches('@').split(':').next().unwrap();
        let again = MatrixClient::login(&home.address, localpart, "password", device).await.unwrap();
        assert_ne!(again.access_token(), home.account.access_token());
        let worker = scene.worker_with(&[("MATRIX_ACCESS_TOKEN", again.access_token())]).await;
        scene.ada.delivered(&message).await;
        scene.drained().await;
        assert_eq!(shape(&fake.timeline(&room)), ["begun", "words"]);
        let sends = sends(&fake);
        assert_eq!((sends.len(), &sends[1].txn), (3, &sends[2].txn));
        assert!(metric(&worker, "outbox_lookups_total").await < 0.5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_device_looks_before_it_sends_again() {
    for arrived in [true, false] {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let scene = Scene::new(&home).await;
        let (message, room) = orphaned(&fake, &scene, arrived).await;
        let user = home.account.user_id();
        let localpart = user.trim_start_matches('@').split(':').next().unwrap();
        fake.delete_device(user, home.account.device_id());
        let other = MatrixClient::login(&home.address, localpart, "password", "ANOTHER").await.unwrap();
        let worker = scene.worker_with(&[("MATRIX_ACCESS_TOKEN", other.access_token())]).await;
        if !arrived {
            // Not there, but perhaps on its way for another minute.
            scene.attempted("refused", 1).await;
            assert_eq!(sends(&fake).len(), 2);
            scene.database.advance(Duration::from_mins(1)).await;
        }
        scene.ada.delivered(&message).await;
        scene.drained().await;
        assert_eq!(shape(&fake.timeline(&room)), ["begun", "words"]);
        assert_eq!(sends(&fake).len(), if arrived { 2 } else { 3 });
        let lookups = metric(&worker, "outbox_lookups_total").await;
        assert!((lookups - if arrived { 1.0 } else { 2.0 }).abs() < 0.1, "{lookups}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_the_homeservers_memory_is_looked_for_and_sent_only_if_it_is_not_there() {
    for arrived in [true, false] {
        for by_clock in [true, false] {
            let fake = FakeHomeserver::start().await;
            let home = Home::of(&fake).await;
            let scene = Scene::new(&home).await;
            let (message, room) = orphaned(&fake, &scene, arrived).await;
            fake.forget_transactions();
            let options: &[(&str, &str)] = if by_clock {
                scene.database.advance(Duration::from_hours(25)).await;
                &[]
            } else {
                &[("OUTBOX_DEDUPE_WINDOW", "0s")]
            };
            let worker = scene.worker_with(options).await;
            let delivered = scene.ada.delivered(&message).await;
            scene.drained().await;
            assert_eq!(shape(&fake.timeline(&room)), ["begun", "words"], "arrived: {arrived}, by clock: {by_clock}");
            assert_eq!(sends(&fake).len(), if arrived { 2 } else { 3 });
            assert!((metric(&worker, "outbox_lookups_total").await - 1.0).abs() < 0.1);
            let event = fake.timeline(&room).into_iter().find(|event| event.body() == Some("words")).unwrap();
            assert_eq!(delivered["matrix"]["event_id"], json!(event.event_id));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_and_is_older_than_the_homeservers_memory_is_looked_for_and_never_sent() {
    for arrived in [true, false] {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let scene = Scene::new(&home).await;
        let (message, room) = orphaned(&fake, &scene, arrived).await;
        let words = fake.on_any().body_contains("words").always();
        assert_eq!(scene.ada.delete(&message).await.expect(200)["deletion"], "redacting");
        fake.forget_transactions();
        scene.database.advance(Duration::from_hours(25)).await;
        let worker = scene.worker().await;
        scene.drained().await;
        let stands = if arrived { "gone" } else { "void" };
        assert_eq!(shape(&fake.timeline(&room)), ["begun", stands, "x 1"]);
        assert_eq!(words.hits(), 0);
        assert!((metric(&worker, "outbox_lookups_total").await - 1.0).abs() < 0.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_the_database_refuses_stalls_no_other_lane_and_is_sent_once_all_the_same() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let (elsewhere, _) = scene.begun().await;
    scene.drained().await;
    let held = fake.on_send().body_contains("cursed").hold().once();
    let cursed = id(&scene.ada.post(&conversation, "cursed").await.expect(201));
    held.arrived().await;
    let refuse = format!("alter table sent_events add constraint refuses check (subject_id <> '{cursed}') not valid");
    sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(&scene.database.pool).await.unwrap();
    held.release();
    eventually("its settlement is given up", || async {
        (metric(&worker, "outbox_settlements_refused_total").await >= 1.0).then_some(())
    })
    .await;
    for n in 0..5 {
        let other = id(&scene.ada.post(&elsewhere, &format!("{n}")).await.expect(201));
        scene.ada.delivered(&other).await;
    }
    sqlx::raw_sql("alter table sent_events drop constraint refuses").execute(&scene.database.pool).await.unwrap();
    let behind = id(&scene.ada.post(&conversation, "behind").await.expect(201));
    scene.ada.delivered(&behind).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "cursed", "behind"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_another_device_that_is_on_its_way_for_long_stands_once() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let first = scene.slow_worker().await;
    let (conversation, room) = scene.begun().await;
    scene.drained().await;
    let lost = fake.on_send().hold().drop_after_accept().once();
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    lost.arrived().await;
    scene.attempted("ambiguous", 1).await;
    drop(first);
    let localpart = home.account.user_id().trim_start_matches('@').split(':').next().unwrap();
    let other = MatrixClient::login(&home.address, localpart, "password", "ANOTHER").await.unwrap();
    let second = scene.worker_with(&[("MATRIX_ACCESS_TOKEN", other.access_token())]).await;
    scene.later().await;
    // It is on its way still: nothing is there, and nothing may be sent.
    eventually("it was looked for", || async { (metric(&second, "outbox_lookups_total").await >= 1.0).then_some(()) })
        .await;
    scene.attempted("refused", 1).await;
    assert_eq!(sends(&fake).len(), 2);
    lost.release();
    eventually("it arrives", || async { (shape(&fake.timeline(&room)).len() == 2).then_some(()) }).await;
    scene.database.advance(Duration::from_mins(1)).await;
    scene.ada.delivered(&message).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words"]);
    assert_eq!(sends(&fake).len(), 2);
}

/// A worker that speaks for the same account on another device.
async fn on_another_device(home: &Home, scene: &Scene) -> shared::testing::nova::Program {
    let localpart = home.account.user_id().trim_start_matches('@').split(':').next().unwrap();
    let other = MatrixClient::login(&home.address, localpart, "password", "ANOTHER").await.unwrap();
    scene.worker_with(&[("MATRIX_ACCESS_TOKEN", other.access_token())]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_request_may_be_on_its_way_counts_from_the_last_attempt() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let first = scene.slow_worker().await;
    let (conversation, room) = scene.begun().await;
    scene.drained().await;
    fake.on_send().drop_before().once();
    let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
    scene.attempted("ambiguous", 1).await;
    let travels = fake.on_send().hold().drop_after_accept().once();
    scene.database.advance(Duration::from_mins(5)).await;
    travels.arrived().await;
    scene.attempted("ambiguous", 2).await;
    drop(first);
    let _second = on_another_device(&home, &scene).await;
    // Its second wait is over, and the minute since is not.
    scene.database.advance(Duration::from_secs(40)).await;
    scene.attempted("refused", 1).await;
    assert_eq!(sends(&fake).len(), 3, "it was put again, although the last attempt may be on its way");
    travels.release();
    eventually("it arrives", || async { (shape(&fake.timeline(&room)).len() == 2).then_some(()) }).await;
    scene.database.advance(Duration::from_mins(1)).await;
    scene.ada.delivered(&message).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_device_sends_anew_is_closed_by_that_device() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let first = scene.slow_worker().await;
    let (conversation, room) = scene.begun().await;
    scene.drained().await;
    fake.on_send().drop_before().once();
    let message = id(&scene.ada.post(&conversation, "secret").await.expect(201));
    scene.attempted("ambiguous", 1).await;
    drop(first);
    let travels = fake.on_send().body_contains("secret").hold().drop_after_accept().once();
    let _second = on_another_device(&home, &scene).await;
    scene.database.advance(Duration::from_mins(2)).await;
    travels.arrived().await;
    scene.attempted("ambiguous", 2).await;
    assert_eq!(scene.ada.delete(&message).await.expect(200)["deletion"], "redacting");
    scene.database.advance(Duration::from_mins(2)).await;
    scene.drained().await;
    travels.release();
    let after = id(&scene.ada.post(&conversation, "after").await.expect(201));
    scene.ada.delivered(&after).await;
    let shown = shape(&fake.timeline(&room));
    assert!(!shown.contains(&"secret".to_owned()), "{shown:?}");
}
