//! The homeserver's side: a fake one, the service account, rooms that are there already, and its own ceiling.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use serde_json::json;
use shared::{
    chat,
    ids::{ConversationId, RoomId},
    testing::{
        homeserver::{FakeHomeserver, Kind},
        matrix_client::{HomeserverAddress, MatrixClient},
        nova::{Environment, Program, api_environment, service_account, worker_environment},
    },
};
use sqlx::PgPool;
use tokio::task::JoinSet;

use crate::chat::TEXT;

/// Options that tests shorten: here they are as in life.
const FOR_TESTS: [&str; 5] = ["OUTBOX_LEASE", "OUTBOX_POLL", "OUTBOX_HTTP_TIMEOUT", "OUTBOX_BACKOFF", "EVENTS_POLL"];

/// More than is ever written here to one conversation.
const LANE_LIMIT: &str = "1000000";

/// A fake homeserver and the account that speaks there.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) fake: FakeHomeserver,
    pub(crate) account: MatrixClient,
}

impl Home {
    pub(crate) async fn start() -> Self {
        let fake = FakeHomeserver::start().await;
        let account = service_account(&HomeserverAddress::from(&fake)).await;
        Self { fake, account }
    }

    /// Gives conversations their rooms, so that what is measured are sends.
    pub(crate) async fn open_rooms(&self, pool: &PgPool, conversations: &[ConversationId]) {
        let mut conn = pool.acquire().await.unwrap();
        for conversation_id in conversations {
            let room = RoomId::from(self.account.create_room(&json!({})).await.unwrap());
            chat::save_room_mapping(&mut conn, *conversation_id, &room, true).await.unwrap();
        }
    }

    /// When each send arrived, by its transaction id.
    pub(crate) fn arrivals(&self) -> HashMap<String, Instant> {
        let sends = self.fake.requests().into_iter().filter(|request| request.kind == Kind::Send);
        sends.filter_map(|send| Some((send.txn?, send.arrived))).collect()
    }

    /// Starts the worker as it is released, with its own defaults.
    pub(crate) async fn worker(&self, database_url: &str) -> Program {
        Program::start("worker", &as_in_life(worker_environment(database_url, &self.account))).await
    }

    /// How many sends it takes in a second over so many connections, each in a room of its own.
    pub(crate) async fn ceiling(&self, connections: usize, sends: usize) -> f64 {
        let next = Arc::new(AtomicUsize::new(0));
        let mut rooms = Vec::new();
        for _ in 0..connections {
            rooms.push(self.account.create_room(&json!({})).await.unwrap());
        }
        let mut clients = JoinSet::new();
        let began = Instant::now();
        for room in rooms {
            let (account, next) = (self.account.clone(), Arc::clone(&next));
            clients.spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < sends {
                    account.say(&room, TEXT).await.unwrap();
                }
            });
        }
        clients.join_all().await;
        sends as f64 / began.elapsed().as_secs_f64()
    }
}

/// Starts the API as it is released, with its own defaults.
pub(crate) async fn api(database_url: &str, notify: bool) -> Program {
    let mut environment = as_in_life(api_environment(database_url));
    environment.insert("OUTBOX_NOTIFY".to_owned(), notify.to_string());
    environment.insert("OUTBOX_LANE_LIMIT".to_owned(), LANE_LIMIT.to_owned());
    Program::start("api", &environment).await
}

fn as_in_life(mut environment: Environment) -> Environment {
    environment.retain(|name, _| !FOR_TESTS.contains(&name.as_str()));
    environment
}
