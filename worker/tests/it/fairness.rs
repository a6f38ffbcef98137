//! No lane waits for another: neither for a busy one nor for one that fails.

use std::time::Duration;

use shared::testing::{eventually, homeserver::FakeHomeserver};
use time::OffsetDateTime;

use crate::scene::{Home, Scene, id, metric, room_of, sends};

/// Posts so many messages, a few at a time; they may arrive in any order.
async fn post_many(scene: &Scene, conversation: &str, many: usize) {
    let posting: Vec<_> = (0..8)
        .map(|client| {
            let (ada, conversation) = (scene.ada.clone(), conversation.to_owned());
            tokio::spawn(async move {
                for n in (client..many).step_by(8) {
                    ada.post(&conversation, &format!("{n}")).await.expect(201);
                }
            })
        })
        .collect();
    for client in posting {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn noisy_conversations_with_hundreds_waiting_delay_a_quiet_one_by_a_few_batches_only() {
    /// What a claim hands out at most of one lane.
    const BATCH: usize = 16;
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let mut worker = scene.worker().await;
    let mut noisy = Vec::new();
    for _ in 0..4 {
        noisy.push(scene.begun().await.0);
    }
    let (quiet, room) = scene.begun().await;
    scene.drained().await;
    worker.kill();
    fake.latency(Duration::from_millis(2));
    for (conversation, many) in noisy.iter().zip([260, 80, 80, 80]) {
        post_many(&scene, conversation, many).await;
    }
    let quiet = id(&scene.ada.post(&quiet, "quiet").await.expect(201));
    let before = sends(&fake).len();
    // Two slots for five lanes: they have to take turns.
    let _worker = scene.worker_with(&[("OUTBOX_SLOTS", "2")]).await;
    scene.ada.delivered(&quiet).await;
    let place = sends(&fake)[before..].iter().position(|request| request.room.as_deref() == Some(&room)).unwrap();
    // It was the last to come, so each of the others has one turn before it, and what is under way may be another.
    assert!(place <= 2 * noisy.len() * BATCH, "{place} of 500 went before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_ninety_nine_lanes_have_drained_the_failing_one_has_made_its_due_attempts_only() {
    const BACKOFF: Duration = Duration::from_millis(200);
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let doomed_room = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let failing = fake.on_send().body_contains("doomed").fail(502).always();
    let doomed = id(&scene.ada.post(&doomed_room, "doomed").await.expect(201));
    let mut last = Vec::new();
    for _ in 0..99 {
        let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
        for n in 0..2 {
            last.push(id(&scene.ada.post(&conversation, &format!("{n}")).await.expect(201)));
        }
    }
    // However busy the machine is, no send but those of the failing lane may fail.
    let patient = [("OUTBOX_BACKOFF", "200ms"), ("OUTBOX_LEASE", "40s"), ("OUTBOX_HTTP_TIMEOUT", "30s")];
    let worker = scene.worker_with(&patient).await;
    eventually("the ninety-nine have drained", || async {
        (scene.database.count("select count(*) from outbox").await == 1).then_some(())
    })
    .await;
    // It failed at least once meanwhile, and more words of it do not make it try sooner.
    scene.attempted("ambiguous", 2).await;
    for n in 0..5 {
        scene.ada.post(&doomed_room, &format!("behind {n}")).await.expect(201);
    }
    scene.attempted("ambiguous", 3).await;
    // What waits costs the worker nothing: each of its claims of that lane is an attempt. In this order, since it goes on.
    let epochs: i64 = sqlx::query_scalar("select epoch from lanes where conversation_id::text = $1")
        .bind(&doomed_room)
        .fetch_one(&scene.database.pool)
        .await
        .unwrap();
    let hits = failing.hits();
    let attempts: Vec<OffsetDateTime> =
        sqlx::query_scalar("select attempted_at from attempts where outcome = 'ambiguous' order by attempted_at")
            .fetch_all(&scene.database.pool)
            .await
            .unwrap();
    for (n, pair) in attempts.windows(2).enumerate() {
        // Waits double and vary by a quarter either way.
        let shortest = BACKOFF.mul_f64(0.75) * (1 << n);
        assert!(pair[1] - pair[0] >= shortest, "attempt {} came {} after the one before", n + 2, pair[1] - pair[0]);
    }
    assert!(hits <= attempts.len() as u64 + 1);
    assert!(epochs <= i64::try_from(hits).unwrap() + 1);
    assert_eq!(sends(&fake).iter().filter(|request| request.status == Some(200)).count(), 198);
    assert!(metric(&worker, "outbox_lease_expired_total").await < 0.5);
    failing.remove();
    let doomed = scene.ada.delivered(&doomed).await;
    scene.drained().await;
    let bodies: Vec<_> =
        fake.timeline(room_of(&doomed)).iter().filter_map(|event| event.body().map(str::to_owned)).collect();
    assert_eq!(bodies, ["doomed", "behind 0", "behind 1", "behind 2", "behind 3", "behind 4"]);
}
