//! Order and once, with everything failing at the same time: clients write, edit and delete at once, half of it in one
//! conversation, while requests fail and workers die. In the end the rooms are as the clients were told, and nothing else.

use std::time::{Duration, Instant};

use shared::testing::{
    database::TestDatabase,
    eventually_within,
    homeserver::FakeHomeserver,
    ledger::{Asked, Ledger, Senders, Summary},
    nova::Front,
    private::PrivatePostgres,
    traffic::{Traffic, Work, drained, note_event_ids, undelivered},
};

use crate::scene::{Home, Scene, id, room_of};

/// Leases as short as they may be: each kill stalls the lanes of the dead for one. For the fake homeserver: a Synapse
/// is waited for.
const WORKER: [(&str, &str); 2] = [("OUTBOX_LEASE", "1s"), ("OUTBOX_HTTP_TIMEOUT", "500ms")];

/// How long anything may take on a busy machine.
const WITHIN: Duration = Duration::from_mins(10);

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    operations: usize,
    conversations: usize,
    /// After so many operations a client waits until its last message is delivered.
    ahead: usize,
    /// How often a worker is killed.
    kills: usize,
}

/// How many clients write at once.
const CLIENTS: usize = 8;

/// The clients' work, entered into the record.
async fn clients(plan: Plan, scene: &Scene, asked: &Asked) -> Work {
    let Plan { seed, operations, conversations, ahead, .. } = plan;
    let traffic = Traffic { seed, clients: CLIENTS, operations, conversations, ahead, guests: true };
    traffic.begin(&Front::at(&scene.api.url()), asked).await
}

async fn sent_at_least(scene: &Scene, many: usize) {
    let many = i64::try_from(many).unwrap();
    eventually_within(WITHIN, &format!("{many} operations are sent"), || async {
        (scene.database.count("select count(*) from sent_events").await >= many).then_some(())
    })
    .await;
}

/// Kills a worker and starts another, again and again, spread over the work.
async fn kill_workers(plan: Plan, scene: &Scene, options: &[(&str, &str)]) {
    for kill in 0..plan.kills {
        let mut worker = scene.worker_with(options).await;
        // Of ten operations at least six come to an event of their own.
        let until = (kill + 1) * plan.operations * 6 / 10 / (plan.kills + 1);
        sent_at_least(scene, until).await;
        worker.kill();
    }
}

/// What the rooms show is what the clients were told.
async fn assert_exact(home: &Home, scene: &Scene, asked: &Asked) -> Summary {
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    assert_eq!(undelivered(&scene.database).await, 0);
    note_event_ids(&scene.database, asked).await;
    let senders = Senders::ServiceAccount(home.account.user_id().to_owned());
    Ledger::new(asked, &home.account, senders).exclusive().assert_settled().await
}

/// All of it: clients, a worker that lives, and one that is killed again and again.
async fn everything_at_once(plan: Plan, home: &Home, fake: Option<&FakeHomeserver>) {
    println!("ORDER_SEED={} ORDER_OPERATIONS={}: {plan:?}", plan.seed, plan.operations);
    let scene = Scene::new(home).await;
    let asked = Asked::new();
    if let Some(fake) = fake {
        trouble(fake, plan.seed);
    }
    let options: &[(&str, &str)] = if fake.is_some() { &WORKER } else { &[] };
    let began = Instant::now();
    let _worker = scene.worker_with(options).await;
    let writing = clients(plan, &scene, &asked).await;
    let written = async {
        writing.done().await;
        began.elapsed()
    };
    let (written, ()) = tokio::join!(written, kill_workers(plan, &scene, options));
    let _another = scene.worker_with(options).await;
    drained(&scene.database).await;
    let delivered = began.elapsed();
    if let Some(fake) = fake {
        fake.clear_faults();
        fake.latency(Duration::ZERO);
    }
    let summary = assert_exact(home, &scene, &asked).await;
    println!("written in {written:?}, delivered in {delivered:?}, read in {:?}: {summary:?}", began.elapsed());
    assert_eq!(summary.rooms, plan.conversations);
}

/// Five milliseconds for each request, and one in ten fails.
fn trouble(fake: &FakeHomeserver, seed: u64) {
    fake.latency(Duration::from_millis(5));
    fake.on_any().chance(0.025, seed).drop_before().always();
    fake.on_any().chance(0.03, seed + 1).drop_after_accept().always();
    // Few, since the header of a rate limit counts whole seconds.
    fake.on_any().chance(0.005, seed + 2).fail(429).retry_after(Duration::from_millis(20)).always();
    fake.on_any().chance(0.03, seed + 3).fail(502).html("<h1>Bad gateway</h1>").always();
    fake.on_any().chance(0.007, seed + 4).delay_answer(Duration::from_millis(100)).always();
    // Longer than the worker waits.
    fake.on_any().chance(0.003, seed + 5).delay_answer(Duration::from_millis(700)).always();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_all_work_in_one_conversation_arrives_in_order_and_once_whatever_fails() {
    let operations = variable("ORDER_OPERATIONS", 4_000);
    let seed = u64::try_from(variable("ORDER_SEED", 20)).unwrap();
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let plan = Plan { seed, operations, conversations: 20, ahead: 40, kills: 10 };
    everything_at_once(plan, &home, Some(&fake)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_all_work_in_one_conversation_arrives_in_order_and_once_on_synapse() {
    let seed = u64::try_from(variable("ORDER_SEED", 20)).unwrap();
    let plan = Plan { seed, operations: 120, conversations: 6, ahead: 4, kills: 1 };
    everything_at_once(plan, &Home::synapse().await, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_stopped_for_ten_seconds_in_the_middle_all_arrives_in_order_and_once() {
    let seed = u64::try_from(variable("ORDER_SEED", 20)).unwrap();
    let plan = Plan { seed, operations: 160, conversations: 6, ahead: 10, kills: 0 };
    println!("ORDER_SEED={seed}: {plan:?}");
    let postgres = PrivatePostgres::start();
    let database = TestDatabase::create_on(&postgres.url).await;
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let url = database.url.clone();
    let scene = Scene::with(&home, database, &url).await;
    let asked = Asked::new();
    trouble(&fake, seed);
    let _workers = (scene.worker_with(&WORKER).await, scene.worker_with(&WORKER).await);
    let writing = clients(plan, &scene, &asked).await;
    sent_at_least(&scene, plan.operations / 8).await;
    postgres.stop();
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(10) {
        let ready = reqwest::get(format!("{}/health/ready", scene.api.url())).await.unwrap();
        assert_eq!(ready.status(), 503);
    }
    assert!(!writing.is_done(), "the clients were done before Postgres was stopped");
    postgres.start_again();
    writing.done().await;
    drained(&scene.database).await;
    fake.clear_faults();
    let summary = assert_exact(&home, &scene, &asked).await;
    assert_eq!(summary.rooms, plan.conversations);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_out_together_stops_at_the_first_failure() {
    let seed = u64::try_from(variable("ORDER_SEED", 20)).unwrap();
    println!("ORDER_SEED={seed}");
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let (conversation, mut last) = (scene.ada.create_conversation(&[scene.grace.user_id]).await, String::new());
    for n in 0..150 {
        last = id(&scene.ada.post(&conversation, &format!("{n:03}")).await.expect(201));
    }
    // It answers at once, so that many operations are handed out together.
    fake.on_send().chance(0.15, seed).fail(502).always();
    let _worker = scene.worker().await;
    let last = scene.ada.delivered(&last).await;
    let bodies: Vec<String> =
        fake.timeline(room_of(&last)).iter().filter_map(|event| event.body().map(str::to_owned)).collect();
    assert_eq!(bodies, (0..150).map(|n| format!("{n:03}")).collect::<Vec<_>>());
    let claims = scene.database.count("select sum(epoch)::bigint from lanes").await;
    println!("{claims} claims for {} requests", fake.sends());
}
