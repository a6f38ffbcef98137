//! Order and once, with everything failing at the same time: clients write, edit and delete at once, half of it in one
//! conversation, while requests fail and workers die. In the end the rooms are as the clients were told, and nothing else.

use std::time::{Duration, Instant};

use serde_json::json;
use shared::testing::{
    database::TestDatabase,
    eventually_within,
    homeserver::FakeHomeserver,
    ledger::{Asked, Deletion, Ledger, Senders, Summary},
    nova::NovaUser,
};
use uuid::Uuid;

use crate::{
    private_postgres::PrivatePostgres,
    scene::{Home, Scene, id, insist, room_of},
};

/// How many clients write at once.
const CLIENTS: usize = 8;

/// Leases as short as they may be: each kill stalls the lanes of the dead for one.
const WORKER: [(&str, &str); 2] = [("OUTBOX_LEASE", "1s"), ("OUTBOX_HTTP_TIMEOUT", "500ms")];

/// How long anything may take on a busy machine.
const WITHIN: Duration = Duration::from_mins(10);

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Numbers that follow from a seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }
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

/// One client: it knows its own messages, and keeps asking until it is answered.
struct Client {
    number: usize,
    user: NovaUser,
    asked: Asked,
    conversations: Vec<String>,
    own: Vec<String>,
    chance: Chance,
}

impl Client {
    async fn run(mut self, operations: usize, ahead: usize) {
        for n in 0..operations {
            // Not too far ahead of Matrix, or all edits and deletes would find their message waiting.
            if let Some(message) = n.checked_sub(1).filter(|n| n % ahead == 0).and(self.own.last()) {
                self.delivered(message).await;
            }
            let text = format!("client {} says number {n:05}", self.number);
            match self.chance.below(100) {
                0..5 if !self.own.is_empty() => self.delete().await,
                5..15 if !self.own.is_empty() => self.edit(&text).await,
                _ => self.post(&text).await,
            }
        }
    }

    async fn delivered(&self, message: &str) {
        eventually_within(WITHIN, "a client's last message is delivered", || async {
            let answer = self.user.try_call("GET", &format!("/messages/{message}"), None).await.ok()?;
            (answer.body["matrix"]["delivery"] == "delivered").then_some(())
        })
        .await;
    }

    async fn post(&mut self, text: &str) {
        // Half of all work is in the first.
        let others = self.conversations.len() - 1;
        let place = if self.chance.below(2) == 0 { 0 } else { 1 + self.chance.below(others) };
        let conversation = &self.conversations[place];
        let entry = self.asked.post(conversation.parse::<Uuid>().unwrap(), self.user.user_id.as_uuid(), text);
        let body = json!({"conversation_id": conversation, "plaintext": text});
        let posted =
            insist(&self.user, "POST", "/messages", &[("Idempotency-Key", text)], Some(&body)).await.expect(201);
        entry.answered(id(&posted).parse::<Uuid>().unwrap(), posted["seq"].as_i64().unwrap());
        self.own.push(id(&posted));
    }

    async fn edit(&mut self, text: &str) {
        let message = self.own[self.chance.below(self.own.len())].clone();
        let entry = self.asked.edit(message.parse::<Uuid>().unwrap(), text);
        let body = json!({"plaintext": text});
        let edited = insist(&self.user, "PATCH", &format!("/messages/{message}"), &[], Some(&body)).await.expect(200);
        entry.answered(edited["revision"].as_i64().unwrap());
    }

    async fn delete(&mut self) {
        let place = self.chance.below(self.own.len());
        let message = self.own.swap_remove(place);
        let entry = self.asked.delete(message.parse::<Uuid>().unwrap());
        let deleted = insist(&self.user, "DELETE", &format!("/messages/{message}"), &[], None).await.expect(200);
        match deleted["deletion"].as_str() {
            Some("cancelled") => entry.answered(Deletion::Cancelled),
            Some("redacting") => entry.answered(Deletion::Redacting),
            // Done by an earlier try, whose answer did not arrive.
            _ => {}
        }
    }
}

/// The clients' work, entered into the record.
async fn clients(plan: Plan, scene: &Scene, asked: &Asked) -> Vec<tokio::task::JoinHandle<()>> {
    let users: Vec<NovaUser> = (0..CLIENTS).map(|_| NovaUser::new(&scene.api)).collect();
    let ids: Vec<_> = users.iter().map(|user| user.user_id).collect();
    let members: Vec<Uuid> = ids.iter().map(|user| user.as_uuid()).collect();
    let mut conversations = Vec::new();
    for _ in 0..plan.conversations {
        let conversation = users[0].create_conversation(&ids).await;
        asked.conversation(conversation.parse::<Uuid>().unwrap(), &members);
        conversations.push(conversation);
    }
    let start = |(number, user)| {
        let chance = Chance(plan.seed.wrapping_mul(1000).wrapping_add(number as u64));
        let (asked, conversations) = (asked.clone(), conversations.clone());
        let client = Client { number, user, asked, conversations, own: Vec::new(), chance };
        tokio::spawn(client.run(plan.operations / CLIENTS, plan.ahead))
    };
    users.into_iter().enumerate().map(start).collect()
}

async fn sent_at_least(scene: &Scene, many: usize) {
    let many = i64::try_from(many).unwrap();
    eventually_within(WITHIN, &format!("{many} operations are sent"), || async {
        (scene.database.count("select count(*) from sent_events").await >= many).then_some(())
    })
    .await;
}

/// Kills a worker and starts another, again and again, spread over the work.
async fn kill_workers(plan: Plan, scene: &Scene) {
    for kill in 0..plan.kills {
        let mut worker = scene.worker_with(&WORKER).await;
        // Of ten operations at least six come to an event of their own.
        let until = (kill + 1) * plan.operations * 6 / 10 / (plan.kills + 1);
        sent_at_least(scene, until).await;
        worker.kill();
    }
}

async fn drained(scene: &Scene) {
    eventually_within(WITHIN, "everything is delivered", || async {
        (scene.database.count("select coalesce(sum(open), 0)::bigint from lanes").await == 0).then_some(())
    })
    .await;
}

/// What the rooms show is what the clients were told.
async fn assert_exact(home: &Home, scene: &Scene, asked: &Asked) -> Summary {
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    let undelivered = "select count(*) from message_details where deleted_at is null and delivery <> 'delivered'";
    assert_eq!(scene.database.count(undelivered).await, 0);
    let told: Vec<(Uuid, String)> = sqlx::query_as(
        "select message_id, matrix_event_id from messages where deleted_at is null and matrix_event_id is not null",
    )
    .fetch_all(&scene.database.pool)
    .await
    .unwrap();
    for (message, event) in told {
        asked.event_id(message, &event);
    }
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
    let began = Instant::now();
    let _worker = scene.worker_with(&WORKER).await;
    let writing = clients(plan, &scene, &asked).await;
    let written = async {
        for client in writing {
            client.await.unwrap();
        }
        began.elapsed()
    };
    let (written, ()) = tokio::join!(written, kill_workers(plan, &scene));
    let _another = scene.worker_with(&WORKER).await;
    drained(&scene).await;
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
    assert!(writing.iter().any(|client| !client.is_finished()), "the clients were done before Postgres was stopped");
    postgres.start_again();
    for client in writing {
        client.await.unwrap();
    }
    drained(&scene).await;
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
