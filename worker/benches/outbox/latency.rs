//! Latency: from a commit to the request at the homeserver, while little is going on.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use shared::{
    testing::nova::NovaUser,
    wake::{Channel, Wake},
};
use sqlx::{Connection as _, Row as _, postgres::PgListener};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    chat::{Chat, Mix, TEXT},
    database::Database,
    figures::{Figure, Table, Times, ms},
    home::{self, Home},
};

const CONVERSATIONS: usize = 100;

/// Posts in a second.
const RATE: f64 = 20.0;

pub(crate) async fn measure(quick: bool) -> Vec<Figure> {
    let posts = (RATE * if quick { 1.0 } else { 15.0 }) as usize;
    let home = Home::start().await;
    let database = Database::create(4).await;
    let chat = Chat::create(&database.pool, CONVERSATIONS).await;
    home.open_rooms(&database.pool, &chat.conversations).await;
    let limit = wake_and_put(&database, &home, posts).await;
    let commit = bare_commit(&database, posts).await;
    let api = home::api(&database.url, true).await;
    let worker = home.worker(&database.url).await;
    // What starts up is slow once; it is not what is measured.
    by_commit(&database, &home, &chat, 20).await;
    let (from_request, from_answer) = by_request(&database, &home, &chat, &api.url(), posts).await;
    let from_commit = by_commit(&database, &home, &chat, posts).await;
    drop((api, worker));
    database.remove().await;

    let mut table = Table::new("Latency: 20 posts a second", &["from … to the PUT at the homeserver", "p50 / p99"]);
    table.row(vec!["just before commit (same transaction, no HTTP)".to_owned(), from_commit.shown()]);
    table.row(vec!["the API's answer".to_owned(), from_answer.shown()]);
    table.row(vec!["the request to the API".to_owned(), from_request.shown()]);
    table.row(vec!["beside it: a bare NOTIFY, heard, then one PUT".to_owned(), limit.shown()]);
    table.row(vec!["beside it: one commit of one row, of which there are two on the way".to_owned(), commit.shown()]);
    table.print();
    let figure = |name: &str, part: f64| {
        let measured = from_commit.percentile(part);
        let limit = limit.percentile(part) + 2 * commit.percentile(part);
        let ratio = measured.as_secs_f64() / limit.as_secs_f64();
        let beside = format!("{} bare NOTIFY → PUT and two commits", ms(limit));
        Figure::new(format!("commit → PUT, {name}, 20/s"), ms(measured), beside, ratio)
    };
    vec![figure("p50", 0.5), figure("p99", 0.99)]
}

/// Waits for the next post: at random, so that no timer of anybody falls into step with it.
async fn pause(random: &mut StdRng) {
    let mean = 1.0 / RATE;
    sleep(Duration::from_secs_f64(mean * random.random_range(0.5..1.5))).await;
}

/// The least that a wake-up could cost: a bare notification, and one request once it is heard.
async fn wake_and_put(database: &Database, home: &Home, posts: usize) -> Times {
    let mut listener = PgListener::connect(&database.url).await.unwrap();
    listener.listen(Channel::Outbox.as_str()).await.unwrap();
    let room = home.account.create_room(&json!({})).await.unwrap();
    let mut random = StdRng::seed_from_u64(1);
    let mut sent: HashMap<String, Instant> = HashMap::new();
    for _ in 0..posts {
        pause(&mut random).await;
        let txn = Uuid::new_v4().to_string();
        sent.insert(txn.clone(), Instant::now());
        sqlx::query("select pg_notify($1, $2)")
            .bind(Channel::Outbox.as_str())
            .bind(&txn)
            .execute(&database.pool)
            .await
            .unwrap();
        let heard = listener.recv().await.unwrap();
        let content = json!({"msgtype": "m.text", "body": TEXT});
        home.account.send(&room, "m.room.message", heard.payload(), &content).await.unwrap();
    }
    until_arrival(home, &sent).await
}

/// What durability costs: the commit of a row. A message is committed before it is announced, and its claim before it is
/// sent.
async fn bare_commit(database: &Database, posts: usize) -> Times {
    let mut conn = database.connect().await;
    sqlx::raw_sql("create table bench_commits (n int)").execute(&mut conn).await.unwrap();
    let mut random = StdRng::seed_from_u64(4);
    let mut times = Vec::new();
    for _ in 0..posts {
        pause(&mut random).await;
        let mut tx = conn.begin().await.unwrap();
        sqlx::query("insert into bench_commits values (1)").execute(&mut *tx).await.unwrap();
        let commits = Instant::now();
        tx.commit().await.unwrap();
        times.push(commits.elapsed());
    }
    Times::of(times)
}

/// Messages of ours, committed here and announced as the API does.
async fn by_commit(database: &Database, home: &Home, chat: &Chat, posts: usize) -> Times {
    let stop = CancellationToken::new();
    let wake = Wake::start(Channel::Outbox, database.pool.clone(), stop.clone());
    let mut random = StdRng::seed_from_u64(2);
    let mut conn = database.connect().await;
    let mut sent = HashMap::new();
    for n in 0..posts {
        pause(&mut random).await;
        let (outbox_id, commits) = chat.write(&mut conn, chat.pick(n, Mix::Even)).await;
        wake.committed();
        sent.insert(outbox_id.to_string(), commits);
    }
    let times = until_arrival(home, &sent).await;
    stop.cancel();
    times
}

/// Messages posted by REST: from the request, and from the answer.
async fn by_request(database: &Database, home: &Home, chat: &Chat, api: &str, posts: usize) -> (Times, Times) {
    let user = NovaUser::at(api, chat.user_id);
    let mut random = StdRng::seed_from_u64(3);
    let mut asking = JoinSet::new();
    for n in 0..posts {
        pause(&mut random).await;
        let (user, conversation_id) = (user.clone(), chat.pick(n, Mix::Even).to_string());
        asking.spawn(async move {
            let asked = Instant::now();
            let message = user.post(&conversation_id, TEXT).await.expect(201);
            let answered = Instant::now();
            (message["id"].as_str().unwrap().to_owned(), asked, answered)
        });
    }
    let answers = asking.join_all().await;
    let operations: HashMap<String, String> =
        sqlx::query("select message_id::text, send_outbox_id::text from messages")
            .fetch_all(&database.pool)
            .await
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
    let (mut asked, mut answered) = (HashMap::new(), HashMap::new());
    for (message_id, ask, answer) in answers {
        asked.insert(operations[&message_id].clone(), ask);
        answered.insert(operations[&message_id].clone(), answer);
    }
    (until_arrival(home, &asked).await, until_arrival(home, &answered).await)
}

/// How long after these moments the sends with these transaction ids arrived; zero for what came before.
async fn until_arrival(home: &Home, sent: &HashMap<String, Instant>) -> Times {
    shared::testing::eventually("all is sent", || async {
        let arrivals = home.arrivals();
        sent.iter()
            .map(|(txn, since)| Some(arrivals.get(txn)?.saturating_duration_since(*since)))
            .collect::<Option<Vec<_>>>()
            .map(Times::of)
    })
    .await
}
