//! Writes: messages that the API takes in a second, beside the same transactions without HTTP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use shared::testing::nova::NovaUser;
use sqlx::PgPool;
use tokio::task::JoinSet;

use crate::{
    chat::{Chat, Mix, TEXT},
    database::Database,
    figures::{Figure, Table, Times, rate},
    home,
};

/// Clients of the API.
const CLIENTS: usize = 32;

/// Connections of the API by default, and of the bare SQL.
const CONNECTIONS: u32 = 16;

const CONVERSATIONS: usize = 100;

/// How messages are written.
#[derive(Debug, Clone)]
enum Way {
    /// By REST.
    Api(NovaUser),
    /// By the same statements, on connections of our own.
    Sql(PgPool),
}

/// What was written one way.
#[derive(Debug)]
struct Run {
    name: &'static str,
    way: Way,
    mix: Mix,
    took: Duration,
    times: Vec<Duration>,
}

impl Run {
    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }

    /// Writes for a while, and adds it to what was before.
    async fn round(&mut self, chat: &Chat, length: Duration) {
        let writers = if matches!(self.way, Way::Api(_)) { CLIENTS } else { CONNECTIONS as usize };
        let next = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..writers {
            let (way, mix, chat, next) = (self.way.clone(), self.mix, chat.clone(), Arc::clone(&next));
            tasks.spawn(async move {
                let mut times = Vec::new();
                let mut conn = match &way {
                    Way::Api(_) => None,
                    Way::Sql(pool) => Some(pool.acquire().await.unwrap()),
                };
                while began.elapsed() < length {
                    let conversation_id = chat.pick(next.fetch_add(1, Ordering::Relaxed), mix);
                    let write_began = Instant::now();
                    match (&way, &mut conn) {
                        (Way::Sql(_), Some(conn)) => drop(chat.write(conn, conversation_id).await),
                        (Way::Api(user), _) => {
                            user.post(&conversation_id.to_string(), TEXT).await.expect(201);
                        }
                        (Way::Sql(_), None) => {}
                    }
                    times.push(write_began.elapsed());
                }
                times
            });
        }
        let times = tasks.join_all().await;
        self.took += began.elapsed();
        self.times.extend(times.into_iter().flatten());
    }
}

pub(crate) async fn measure(quick: bool) -> Vec<Figure> {
    // In rounds, so that a machine that gets busy is so for all of them.
    let (rounds, length) = if quick { (1, Duration::from_millis(700)) } else { (2, Duration::from_secs(4)) };
    let database = Database::create(CONNECTIONS).await;
    let chat = Chat::create(&database.pool, CONVERSATIONS).await;
    let (waking, silent) = (home::api(&database.url, true).await, home::api(&database.url, false).await);
    let by = |api| Way::Api(NovaUser::at(api, chat.user_id));
    let (waking_url, silent_url) = (waking.url(), silent.url());
    let ways = [
        ("API", by(&waking_url), Mix::Even),
        ("API, no wake-ups", by(&silent_url), Mix::Even),
        ("bare SQL", Way::Sql(database.pool.clone()), Mix::Even),
        ("API, one hot conversation", by(&waking_url), Mix::Hot),
        ("bare SQL, one hot conversation", Way::Sql(database.pool.clone()), Mix::Hot),
    ];
    let mut runs = ways.map(|(name, way, mix)| Run { name, way, mix, took: Duration::ZERO, times: Vec::new() });
    for _ in 0..rounds {
        for run in &mut runs {
            run.round(&chat, length).await;
        }
    }
    drop((waking, silent));

    let mut table = Table::new(
        "Writes: 32 clients, 100 conversations; bare SQL on 16 connections",
        &["way", "messages", "p50 / p99"],
    );
    for run in &runs {
        let times = Times::of(run.times.clone());
        table.row(vec![run.name.to_owned(), rate(run.rate()), times.shown()]);
    }
    table.print();
    let [api, unwoken, sql, hot_api, hot_sql] = runs.map(|run| run.rate());
    database.remove().await;
    let figure = |what: &str, measured: f64, limit: f64, beside: &str| {
        Figure::new(what, rate(measured), format!("{} {beside}", rate(limit)), measured / limit)
    };
    vec![
        figure("API writes, 32 clients, 100 conversations", api, sql, "bare SQL"),
        figure("API writes, one hot conversation", hot_api, hot_sql, "bare SQL"),
        figure("API writes with wake-ups", api, unwoken, "without wake-ups"),
    ]
}
