//! An hour without a homeserver, by the database's clock: clients notice nothing, and everything arrives in order.

use std::time::{Duration, Instant};

use shared::testing::{
    eventually,
    homeserver::FakeHomeserver,
    ledger::{Asked, Ledger, Senders},
};
use uuid::Uuid;

use crate::scene::{Home, Scene, id, metric};

const CONVERSATIONS: usize = 6;

/// The hour goes by in steps of a minute.
const MINUTE: Duration = Duration::from_mins(1);

const PROBE: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_without_a_homeserver_fails_no_request_kills_nothing_and_keeps_the_order() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker_with(&[("OUTBOX_PROBE", "250ms")]).await;
    let asked = Asked::new();
    let members = [scene.ada.user_id.as_uuid(), scene.grace.user_id.as_uuid()];
    let mut conversations = Vec::new();
    for _ in 0..CONVERSATIONS {
        let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
        asked.conversation(conversation.parse::<Uuid>().unwrap(), &members);
        conversations.push(conversation);
    }
    let post = async |n: usize| {
        let conversation = &conversations[n % CONVERSATIONS];
        let text = format!("said in minute {n:03}");
        let entry = asked.post(conversation.parse::<Uuid>().unwrap(), members[0], &text);
        // A request that fails is not made again.
        let posted = scene.ada.post(conversation, &text).await.expect(201);
        entry.answered(id(&posted).parse::<Uuid>().unwrap(), posted["seq"].as_i64().unwrap());
        id(&posted)
    };
    // Half of the rooms stand before.
    for n in 0..CONVERSATIONS / 2 {
        scene.ada.delivered(&post(n).await).await;
    }
    scene.drained().await;
    fake.set_down(true).await;
    let began = Instant::now();
    let mut last = Vec::new();
    for minute in 0..60 {
        last.push(post(CONVERSATIONS + minute).await);
        last.push(post(2 * CONVERSATIONS + minute + 1).await);
        scene.database.advance(MINUTE).await;
    }
    // The worker is awake all that time, and asks as often as it may.
    eventually("the circuit is open, and was probed", || async {
        (metric(&worker, "outbox_circuit_probes_total").await >= 4.0).then_some(())
    })
    .await;
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    assert_eq!(scene.database.count("select coalesce(sum(attempts), 0)::bigint from outbox").await, 0);
    let probes = metric(&worker, "outbox_circuit_probes_total").await;
    let most = began.elapsed().as_secs_f64() / PROBE.as_secs_f64() + 1.0;
    assert!(probes <= most, "{probes} probes in {:?}", began.elapsed());
    // Lanes that found out for the others, and no more, although each was due sixty times.
    let attempts = scene.database.count("select count(*) from attempts where outcome <> 'delivered'").await;
    assert!(attempts <= 2 * i64::try_from(CONVERSATIONS).unwrap(), "{attempts} attempts failed");
    println!("{probes} probes in {:?}, {attempts} attempts", began.elapsed());

    fake.set_down(false).await;
    // What waits longer than the test would, is due.
    scene.database.advance(5 * MINUTE).await;
    for message in last {
        scene.ada.delivered(&message).await;
    }
    scene.drained().await;
    let senders = Senders::ServiceAccount(home.account.user_id().to_owned());
    let summary = Ledger::new(&asked, &home.account, senders).exclusive().assert_settled().await;
    assert_eq!(summary.messages, CONVERSATIONS / 2 + 120);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
}
