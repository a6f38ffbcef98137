//! The WebSocket: from a commit to the frame at a client of another process.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use shared::{
    testing::{
        nova::NovaUser,
        websocket::{Heard, Socket},
    },
    wake::{Channel, Wake},
};
use sqlx::{Row as _, postgres::PgListener};
use tokio::{sync::oneshot, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    chat::{Chat, Mix},
    database::Database,
    figures::{Figure, Table, Times, ms},
    home,
};

const CONVERSATIONS: usize = 100;

/// Messages in a second.
const RATE: f64 = 20.0;

pub(crate) async fn measure(quick: bool) -> Vec<Figure> {
    let messages = (RATE * if quick { 1.0 } else { 15.0 }) as usize;
    let database = Database::create(4).await;
    let chat = Chat::create(&database.pool, CONVERSATIONS).await;
    let limit = bare_notify(&database, messages).await;
    let api = home::api(&database.url, true).await;
    let user = NovaUser::at(&api.url(), chat.user_id);
    // What starts up is slow once; it is not what is measured.
    by_commit(&database, &chat, user.listen(None).await, 20).await;
    let measured = by_commit(&database, &chat, user.listen(None).await, messages).await;
    drop(api);
    database.remove().await;

    let mut table = Table::new("WebSocket: 20 messages a second", &["from the commit to …", "p50 / p99"]);
    table.row(vec!["the frame at a client of another process".to_owned(), measured.shown()]);
    table.row(vec!["beside it: a bare NOTIFY, sent and heard".to_owned(), limit.shown()]);
    table.print();
    let figure = |name: &str, part: f64| {
        let (measured, limit) = (measured.percentile(part), limit.percentile(part));
        let ratio = measured.as_secs_f64() / limit.as_secs_f64();
        Figure::new(
            format!("commit → WebSocket, {name}, 20/s"),
            ms(measured),
            format!("{} bare NOTIFY", ms(limit)),
            ratio,
        )
    };
    vec![figure("p50", 0.5), figure("p99", 0.99)]
}

/// Waits for the next message: at random, so that no timer of anybody falls into step with it.
async fn pause(random: &mut StdRng) {
    sleep(Duration::from_secs_f64(random.random_range(0.5..1.5) / RATE)).await;
}

/// The least that a wake-up costs: a notification of its own, until it is heard on another connection.
async fn bare_notify(database: &Database, times: usize) -> Times {
    let mut listener = PgListener::connect(&database.url).await.unwrap();
    listener.listen("bench_ws").await.unwrap();
    let mut random = StdRng::seed_from_u64(5);
    let mut all = Vec::new();
    for _ in 0..times {
        pause(&mut random).await;
        let sent = Instant::now();
        sqlx::query("select pg_notify('bench_ws', '')").execute(&database.pool).await.unwrap();
        listener.recv().await.unwrap();
        all.push(sent.elapsed());
    }
    Times::of(all)
}

/// Messages that are committed here and announced as the API does, heard by a client of an API process.
async fn by_commit(database: &Database, chat: &Chat, socket: Socket, messages: usize) -> Times {
    let stop = CancellationToken::new();
    let wake = Wake::start(Channel::Events, database.pool.clone(), stop.clone());
    let (all_heard, heard) = oneshot::channel();
    tokio::spawn(async move {
        let _ = all_heard.send(hear(socket, messages).await);
    });
    let mut random = StdRng::seed_from_u64(6);
    let mut conn = database.connect().await;
    let mut committed = HashMap::new();
    for n in 0..messages {
        pause(&mut random).await;
        let (outbox_id, commits) = chat.write(&mut conn, chat.pick(n, Mix::Even)).await;
        wake.committed();
        committed.insert(outbox_id.as_uuid(), commits);
    }
    let heard: HashMap<String, Instant> = heard.await.unwrap();
    stop.cancel();
    let rows =
        sqlx::query("select message_id::text, send_outbox_id from messages").fetch_all(&database.pool).await.unwrap();
    let times = rows.iter().filter_map(|row| {
        let (message, operation): (String, Uuid) = (row.get(0), row.get(1));
        Some(heard.get(&message)?.saturating_duration_since(*committed.get(&operation)?))
    });
    let times: Vec<Duration> = times.collect();
    assert_eq!(times.len(), messages, "each is heard");
    Times::of(times)
}

/// When each message was heard.
async fn hear(mut socket: Socket, messages: usize) -> HashMap<String, Instant> {
    let mut heard = HashMap::new();
    while heard.len() < messages {
        match socket.hear().await {
            Heard::Frame(frame) if frame["type"] == "MessageNew" => {
                heard.insert(frame["message"]["id"].as_str().unwrap().to_owned(), Instant::now());
            }
            Heard::Frame(_) => {}
            end => panic!("the connection ended: {end:?}"),
        }
    }
    heard
}
