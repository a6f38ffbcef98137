//! Calls: from the commit of an invite to the request at the homeserver, while messages wait by the hundred thousand.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use shared::{
    calls::{self, NewCall},
    chat,
    ids::{CallId, ConversationId, UserId},
    seal::KeyRing,
    testing::nova::CONTENT_KEYS,
    wake::{Channel, Wake},
};
use sqlx::Acquire as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    chat::{Chat, Mix},
    database::Database,
    figures::{Figure, Table, Times, ms, number},
    home::Home,
};

/// Conversations in which messages wait, and as many in which somebody calls.
const CONVERSATIONS: usize = 200;

/// What the homeserver takes for an answer: a Synapse on an ordinary machine.
const LATENCY: Duration = Duration::from_millis(20);

/// Calls in a second.
const RATE: f64 = 5.0;

/// The goal, for 99 of 100 calls.
const GOAL: Duration = Duration::from_millis(200);

pub(crate) async fn measure(quick: bool) -> Vec<Figure> {
    let (messages, invites) = if quick { (2_000, 5) } else { (100_000, 100) };
    let home = Home::start().await;
    let database = Database::create(8).await;
    let callers = Callers::create(&database).await;
    home.open_rooms(&database.pool, &callers.conversations).await;
    let chat = Chat::create(&database.pool, CONVERSATIONS).await;
    home.open_rooms(&database.pool, &chat.conversations).await;
    home.fake.latency(LATENCY);

    let worker = home.worker(&database.url).await;
    callers.ring(&database, &home, 5).await;
    let alone = callers.ring(&database, &home, invites).await;
    drop(worker);
    chat.fill(&database.pool, messages, Mix::Even).await;
    database.settle_down().await;
    let worker = home.worker(&database.url).await;
    callers.ring(&database, &home, 5).await;
    let behind = callers.ring(&database, &home, invites).await;
    let left: i64 = sqlx::query_scalar("select count(*) from outbox where kind = 'message'")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    drop(worker);
    database.remove().await;

    let title = format!("Calls: {} messages waiting, the homeserver answers in 20 ms", number(messages as f64));
    let mut table = Table::new(&title, &["from the commit of an invite to its arrival", "p50 / p99"]);
    table.row(vec!["nothing else to do".to_owned(), alone.shown()]);
    table.row(vec![
        format!("beside the messages, {} of which still waited at the end", number(left as f64)),
        behind.shown(),
    ]);
    table.print();
    let figure = |name: &str, part: f64| {
        let (measured, limit) = (behind.percentile(part), alone.percentile(part));
        let ratio = measured.as_secs_f64() / limit.as_secs_f64();
        let beside = format!("{} with nothing else to do; goal {}", ms(limit), ms(GOAL));
        Figure::new(format!("invite → homeserver beside {messages} messages, {name}"), ms(measured), beside, ratio)
    };
    vec![figure("p50", 0.5), figure("p99", 0.99)]
}

/// People who call each other.
struct Callers {
    caller: UserId,
    conversations: Vec<ConversationId>,
    keys: KeyRing,
}

impl Callers {
    async fn create(database: &Database) -> Self {
        let (caller, other) = (UserId::generate(), UserId::generate());
        let conversations: Vec<_> = (0..CONVERSATIONS).map(|_| ConversationId::generate()).collect();
        let mut tx = database.pool.begin().await.unwrap();
        for conversation_id in &conversations {
            chat::create_conversation(&mut tx, *conversation_id, None, caller, &[other]).await.unwrap();
        }
        tx.commit().await.unwrap();
        Self { caller, conversations, keys: KeyRing::parse(CONTENT_KEYS).unwrap() }
    }

    /// Places calls, each in the next conversation, at random moments. How long their invites took.
    async fn ring(&self, database: &Database, home: &Home, calls: usize) -> Times {
        let stop = CancellationToken::new();
        let wake = Wake::start(Channel::Outbox, database.pool.clone(), stop.clone());
        let mut random = StdRng::seed_from_u64(5);
        let mut conn = database.connect().await;
        let mut placed: HashMap<String, Instant> = HashMap::new();
        for n in 0..calls {
            sleep(Duration::from_secs_f64(random.random_range(0.5..1.5) / RATE)).await;
            let conversation_id = self.conversations[n % self.conversations.len()];
            let new = NewCall {
                call_id: CallId::generate(),
                initiator_id: self.caller,
                party_id: None,
                invitee_id: None,
                lifetime: Duration::from_secs(90),
                sdp: "v=0\r\n".repeat(500),
                sdp_stream_metadata: Some(json!({})),
                on_matrix: true,
            };
            let mut tx = conn.begin().await.unwrap();
            let mut turn = chat::take_turn(&mut tx, conversation_id, self.caller).await.unwrap();
            calls::initiate(&mut tx, &mut turn, &self.keys, &new).await.unwrap();
            let outbox_id: Uuid = sqlx::query_scalar("select send_outbox_id from calls where call_id = $1")
                .bind(new.call_id.as_uuid())
                .fetch_one(&mut *tx)
                .await
                .unwrap();
            let commits = Instant::now();
            tx.commit().await.unwrap();
            wake.committed();
            placed.insert(outbox_id.to_string(), commits);
        }
        let times = shared::testing::eventually("all phones ring", || async {
            let arrivals = home.arrivals();
            placed
                .iter()
                .map(|(txn, since)| Some(arrivals.get(txn)?.saturating_duration_since(*since)))
                .collect::<Option<Vec<_>>>()
                .map(Times::of)
        })
        .await;
        stop.cancel();
        times
    }
}
