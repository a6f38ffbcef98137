//! A bulk requeue: a hundred thousand dead letters of many conversations, by a filter, while people write and a worker
//! delivers.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use shared::{
    outbox::DeadFilter,
    tasks::{self, TaskStatus},
    testing::nova::NovaUser,
};
use sqlx::Row as _;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    chat::{Chat, Mix, TEXT},
    database::Database,
    figures::{Figure, Table, Times, number},
    home::{self, Home},
};

/// What only these letters died of.
const ERRCODE: &str = "M_BENCH";

/// The goal: all of them are live again within this.
const GOAL: Duration = Duration::from_mins(1);

/// Clients that write meanwhile, and how often each.
const CLIENTS: usize = 8;
/// See [`CLIENTS`].
const EACH: Duration = Duration::from_millis(80);

/// Measures it in a database that has dead letters by the million already.
pub(crate) async fn measure(database: &Database, quick: bool) -> Vec<Figure> {
    let (letters, conversations, before) =
        if quick { (2_000, 100, Duration::from_secs(1)) } else { (100_000, 2_000, Duration::from_secs(10)) };
    let home = Home::start().await;
    let chat = Chat::create(&database.pool, conversations).await;
    home.open_rooms(&database.pool, &chat.conversations).await;
    chat.fill(&database.pool, letters, Mix::Even).await;
    bury(database).await;
    database.settle_down().await;

    let worker = home.worker(&database.url).await;
    let api = home::api(&database.url, true).await;
    let user = NovaUser::at(&api.url(), chat.user_id);
    live(&chat, &user, Duration::from_secs(1)).await;
    let beside = live(&chat, &user, before).await;

    let filter = DeadFilter { errcode: Some(ERRCODE.to_owned()), ..DeadFilter::default() };
    let stop = CancellationToken::new();
    let writing = tokio::spawn({
        let (chat, user, stop) = (chat.clone(), user.clone(), stop.clone());
        async move { live_until(&chat, &user, &stop).await }
    });
    let asked = Instant::now();
    let mut tx = database.pool.begin().await.unwrap();
    let preview = tasks::preview_requeue(&mut tx, &filter, None).await.unwrap();
    let previewed = asked.elapsed();
    assert_eq!(preview.back, letters as u64, "the dry run counts them all");
    let began = Instant::now();
    let task = tasks::start_requeue(&mut tx, "bench", &filter, &preview.as_of, None, None).await.unwrap();
    tx.commit().await.unwrap();
    let started = began.elapsed();
    let task = loop {
        sleep(Duration::from_millis(50)).await;
        let mut conn = database.pool.acquire().await.unwrap();
        let task = tasks::task(&mut conn, task.task_id).await.unwrap().unwrap();
        if task.status != TaskStatus::Running {
            break task;
        }
    };
    let back = began.elapsed();
    assert_eq!(
        (task.status, usize::try_from(task.done)),
        (TaskStatus::Done, Ok(letters)),
        "all of them came back: {task:?}"
    );
    stop.cancel();
    let meanwhile = writing.await.unwrap();
    while sqlx::query_scalar::<_, bool>("select exists (select 1 from outbox)").fetch_one(&database.pool).await.unwrap()
    {
        sleep(Duration::from_millis(50)).await;
    }
    let delivered = began.elapsed();
    in_order(database, &home, letters).await;
    drop((worker, api));

    let title = format!(
        "Requeue by filter: {} of {} conversations, while {CLIENTS} clients write and a worker delivers",
        number(letters as f64),
        number(conversations as f64)
    );
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let mut table = Table::new(&title, &["what", "measured"]);
    table.row(vec!["the dry run".to_owned(), seconds(previewed)]);
    table.row(vec!["the task is written".to_owned(), seconds(started)]);
    table.row(vec!["all are live again".to_owned(), seconds(back)]);
    table.row(vec!["all are delivered, in order".to_owned(), seconds(delivered)]);
    table.row(vec!["API writes before it, p50 / p99".to_owned(), beside.shown()]);
    table.row(vec!["API writes meanwhile, p50 / p99".to_owned(), meanwhile.shown()]);
    table.print();
    let (p99, p99_beside) = (meanwhile.percentile(0.99), beside.percentile(0.99));
    vec![
        Figure::new(
            format!("requeue of {} by filter", number(letters as f64)),
            seconds(back),
            format!("goal {}", seconds(GOAL)),
            back.as_secs_f64() / GOAL.as_secs_f64(),
        )
        .at_most(1.0),
        Figure::new(
            "API writes during a bulk requeue, p99",
            crate::figures::ms(p99),
            format!("{} before it", crate::figures::ms(p99_beside)),
            p99.as_secs_f64() / p99_beside.as_secs_f64(),
        ),
    ]
}

/// What waits becomes dead letters, as if the homeserver had refused it.
async fn bury(database: &Database) {
    sqlx::raw_sql(
        "with gone as (delete from outbox returning *)
         insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision,
            target_outbox_id, enqueued_at, attempts, sender, device, cause, errcode, hint, died_at, user_id)
         select conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, target_outbox_id, enqueued_at, 8,
            '@bench:nova.test', 'BENCH', 'own_fault', 'M_BENCH', 'requeue it', outbox_now(), null
         from gone;
         update lanes set open = 0, due_at = null where open > 0;
         create table bench_letters as select outbox_id from dead_letters where errcode = 'M_BENCH'",
    )
    .execute(&database.pool)
    .await
    .unwrap();
}

/// Clients write for so long. How long each write took.
async fn live(chat: &Chat, user: &NovaUser, length: Duration) -> Times {
    let stop = CancellationToken::new();
    let ends = stop.clone();
    tokio::spawn(async move {
        sleep(length).await;
        ends.cancel();
    });
    live_until(chat, user, &stop).await
}

async fn live_until(chat: &Chat, user: &NovaUser, stop: &CancellationToken) -> Times {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (chat, user, next, stop) = (chat.clone(), user.clone(), Arc::clone(&next), stop.clone());
        clients.spawn(async move {
            let mut times = Vec::new();
            let mut tick = interval(EACH);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !stop.is_cancelled() {
                tick.tick().await;
                // Not in the order in which the task goes through them.
                let n = next.fetch_add(7, Ordering::Relaxed);
                let began = Instant::now();
                user.post(&chat.pick(n, Mix::Even).to_string(), TEXT).await.expect(201);
                times.push(began.elapsed());
            }
            times
        });
    }
    Times::of(clients.join_all().await.into_iter().flatten().collect())
}

/// In each room the letters arrived in the order of their places, each of them once; and so did what was written meanwhile.
async fn in_order(database: &Database, home: &Home, letters: usize) {
    let places: HashMap<String, (i64, bool)> = sqlx::query(
        "select s.outbox_id::text, m.seq, a.outbox_id is not null
         from sent_events s
         join messages m on m.conversation_id = s.conversation_id and m.message_id = s.subject_id
         left join bench_letters a on a.outbox_id = s.outbox_id",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap()
    .iter()
    .map(|row| (row.get(0), (row.get(1), row.get(2))))
    .collect();
    let rooms: Vec<String> =
        sqlx::query_scalar("select matrix_room_id from matrix_room_mappings").fetch_all(&database.pool).await.unwrap();
    let mut arrived: HashSet<String> = HashSet::new();
    for room in rooms {
        let mut last: HashMap<bool, i64> = HashMap::new();
        for event in home.fake.timeline(&room) {
            let Some(operation) = event.content["com.nova.outbox_id"].as_str() else { continue };
            let (seq, letter) = places[operation];
            let before = last.insert(letter, seq).unwrap_or(0);
            assert!(before < seq, "{operation} came after what stands behind it");
            assert!(arrived.insert(operation.to_owned()), "sent once");
        }
    }
    let back = arrived.iter().filter(|operation| places[*operation].1).count();
    assert_eq!(back, letters, "all letters arrived");
}
