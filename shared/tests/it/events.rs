//! The event log: its order, its end, its beginning.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use shared::{
    chat::{self, Content, MessageKind, NewMessage},
    database::{Limits, connect_options},
    events::{self, Entry, EventKind, Position, Span},
    ids::{ConversationId, MessageId, UserId},
    seal::KeyRing,
    testing::{database::TestDatabase, eventually, nova::CONTENT_KEYS},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

const DAY: Duration = Duration::from_hours(24);

struct World {
    database: TestDatabase,
    pool: PgPool,
    keys: KeyRing,
    author: UserId,
}

impl World {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        let pool = PgPoolOptions::new().max_connections(12).connect(&database.url).await.unwrap();
        Self { database, pool, keys: KeyRing::parse(CONTENT_KEYS).unwrap(), author: UserId::generate() }
    }

    async fn conversation(&self) -> ConversationId {
        let id = ConversationId::generate();
        let mut tx = self.pool.begin().await.unwrap();
        chat::create_conversation(&mut tx, id, None, self.author, &[]).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// Writes a message in a transaction that is the caller's to end; returns its place.
    async fn write(&self, conn: &mut PgConnection, id: ConversationId) -> i64 {
        let turn = chat::take_turn(conn, id, self.author).await.unwrap();
        let message = NewMessage {
            message_id: MessageId::generate(),
            author_id: self.author,
            kind: MessageKind::Text,
            content: &Content::plain("words"),
            reply_to: None,
            thread_of: None,
            send_outbox_id: None,
        };
        chat::insert_message(conn, &turn, &self.keys, &message).await.unwrap();
        turn.seq
    }

    async fn post(&self, id: ConversationId) -> i64 {
        let mut tx = self.pool.begin().await.unwrap();
        let seq = self.write(&mut tx, id).await;
        tx.commit().await.unwrap();
        seq
    }

    /// Everything that the author is told after a position, once the server lets it be read.
    async fn told(&self, after: Position, n: usize) -> Vec<Entry> {
        eventually("the log can be read", || async {
            let mut conn = self.pool.acquire().await.unwrap();
            let span = Span { after, through: None, conversations: None };
            let page = events::page(&mut conn, self.author, span, 10_000).await.unwrap().unwrap();
            (page.entries.len() >= n).then_some(page.entries)
        })
        .await
    }

    async fn newest(&self) -> Position {
        events::newest(&mut self.pool.acquire().await.unwrap()).await.unwrap()
    }

    async fn floor(&self) -> (String, i64) {
        sqlx::query_as("select xid::text, event_id from event_log_floor").fetch_one(&self.pool).await.unwrap()
    }

    /// The places of messages in their conversations, in the order of the log.
    async fn seqs(&self) -> BTreeMap<ConversationId, Vec<i64>> {
        let rows: Vec<(ConversationId, i64)> = sqlx::query_as(
            "select e.conversation_id, m.seq from events e
            join messages m on m.conversation_id = e.conversation_id and m.message_id = e.subject_id
            order by e.xid, e.event_id",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let mut seqs: BTreeMap<ConversationId, Vec<i64>> = BTreeMap::new();
        for (conversation_id, seq) in rows {
            seqs.entry(conversation_id).or_default().push(seq);
        }
        seqs
    }
}

/// Waits until a session waits for a lock, and returns the id of its transaction.
async fn xid_of_the_waiting(world: &World, pid: i32) -> Option<String> {
    eventually("a session waits", || async {
        let row: Option<(Option<String>,)> = sqlx::query_as(
            "select backend_xid::text from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'",
        )
        .bind(pid)
        .fetch_optional(&world.database.pool)
        .await
        .unwrap();
        row
    })
    .await
    .0
}

async fn pid(conn: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(conn).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_conversation_has_no_transaction_id_yet() {
    let world = World::new().await;
    let id = world.conversation().await;
    let mut first = world.pool.begin().await.unwrap();
    world.write(&mut first, id).await;
    let mut second = world.pool.begin().await.unwrap();
    let waiting = pid(&mut second).await;
    let (waited, ()) = tokio::join!(async { world.write(&mut second, id).await }, async {
        assert_eq!(xid_of_the_waiting(&world, waiting).await, None);
        first.commit().await.unwrap();
    });
    second.commit().await.unwrap();
    assert_eq!(waited, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_the_order_of_each_conversation_however_commits_cross() {
    const WRITERS: usize = 10;
    const EACH: usize = 100;
    let world = World::new().await;
    let (one, other) = (world.conversation().await, world.conversation().await);
    let writing = (0..WRITERS).map(|writer| {
        let world = &world;
        async move {
            for n in 0..EACH {
                let mut tx = world.pool.begin().await.unwrap();
                if (writer + n) % 4 == 0 {
                    // Both, in either order: what was lined up for first is not waited for afterwards.
                    let both = if n % 2 == 0 { [one, other] } else { [other, one] };
                    chat::line_up(&mut tx, &both).await.unwrap();
                    for id in both {
                        world.write(&mut tx, id).await;
                    }
                } else {
                    world.write(&mut tx, if n % 2 == 0 { one } else { other }).await;
                }
                // What comes between the lock and the commit makes commits cross.
                tokio::task::yield_now().await;
                tx.commit().await.unwrap();
            }
        }
    });
    futures_util::future::join_all(writing).await;
    let seqs = world.seqs().await;
    assert_eq!(seqs.len(), 2);
    for seqs in seqs.values() {
        assert!(seqs.is_sorted(), "{seqs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lined_up_for_is_had_without_a_transaction_id_and_keeps_others_out() {
    let world = World::new().await;
    let (one, other) = (world.conversation().await, world.conversation().await);
    let mut both = world.pool.begin().await.unwrap();
    chat::line_up(&mut both, &[one, other, one]).await.unwrap();
    let xid: Option<String> =
        sqlx::query_scalar("select pg_current_xact_id_if_assigned()::text").fetch_one(&mut *both).await.unwrap();
    assert_eq!(xid, None);
    let mut late = world.pool.begin().await.unwrap();
    let waiting = pid(&mut late).await;
    tokio::join!(
        async {
            world.write(&mut late, other).await;
            late.commit().await.unwrap();
        },
        async {
            assert_eq!(xid_of_the_waiting(&world, waiting).await, None);
            for id in [one, other] {
                world.write(&mut both, id).await;
            }
            both.commit().await.unwrap();
        }
    );
    assert!(world.seqs().await.values().all(|seqs| seqs.is_sorted()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commits_late_is_read_in_its_place_and_nothing_after_it_before() {
    let world = World::new().await;
    let (one, other) = (world.conversation().await, world.conversation().await);
    world.told(Position::default(), 2).await;
    let begin = world.newest().await;
    let mut late = world.pool.begin().await.unwrap();
    world.write(&mut late, one).await;
    world.post(other).await;
    let mut conn = world.pool.acquire().await.unwrap();
    let tail = events::tail(&mut conn, begin, 100).await.unwrap();
    assert!(tail.entries.is_empty(), "{:?}", tail.entries);
    assert!(tail.lag.is_some(), "and it says that it is held back");
    assert!(events::lag(&mut conn).await.unwrap() > Duration::ZERO);
    late.commit().await.unwrap();
    let told = world.told(begin, 2).await;
    let conversations: Vec<ConversationId> = told.iter().map(|entry| entry.conversation_id).collect();
    assert_eq!(conversations, [one, other]);
    assert_eq!(told[0].kind, Some(EventKind::MessageNew));
    let tail = events::tail(&mut conn, begin, 100).await.unwrap();
    assert_eq!(tail.entries, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_any_size_read_each_row_once() {
    let world = World::new().await;
    let begin = world.newest().await;
    let conversations = [world.conversation().await, world.conversation().await, world.conversation().await];
    for n in 0..30 {
        world.post(conversations[n % 3]).await;
    }
    let all = world.told(begin, 33).await;
    assert!(all.iter().map(|entry| entry.position).is_sorted_by(|one, next| one < next));
    let mut conn = world.pool.acquire().await.unwrap();
    for size in [1, 2, 7, 33, 34] {
        let (mut read, mut after) = (Vec::new(), begin);
        loop {
            let span = Span { after, through: None, conversations: None };
            let page = events::page(&mut conn, world.author, span, size).await.unwrap().unwrap();
            read.extend(page.entries);
            assert!(page.through >= after);
            after = page.through;
            if !page.more {
                break;
            }
        }
        assert_eq!(read, all, "in pages of {size}");
        let (mut read, mut after) = (Vec::new(), begin);
        loop {
            let tail = events::tail(&mut conn, after, size).await.unwrap();
            read.extend(tail.entries);
            after = tail.through;
            if !tail.more {
                break;
            }
        }
        assert_eq!(read, all, "in batches of {size}");
    }
    // A span has an end, and may be of some conversations only.
    let only = [conversations[1].as_uuid()];
    let span = Span { after: all[5].position, through: Some(all[20].position), conversations: Some(&only) };
    let page = events::page(&mut conn, world.author, span, 100).await.unwrap().unwrap();
    let expected: Vec<Entry> =
        all[6..=20].iter().filter(|entry| entry.conversation_id == conversations[1]).copied().collect();
    assert_eq!((page.entries, page.through, page.more), (expected, all[20].position, false));
    // Somebody else is told nothing.
    let span = Span { after: begin, through: None, conversations: None };
    let page = events::page(&mut conn, UserId::generate(), span, 100).await.unwrap().unwrap();
    assert!(page.entries.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_floor_moves_with_what_is_forgotten_and_a_batch_is_as_long_as_it_may_be() {
    let world = World::new().await;
    let id = world.conversation().await;
    for _ in 0..24 {
        world.post(id).await;
    }
    let all = world.told(Position::default(), 25).await;
    assert_eq!(events::forget(&world.pool, DAY, 10).await.unwrap(), 0, "nothing is old");
    assert_eq!(world.floor().await, ("0".to_owned(), 0));
    world.database.advance(Duration::from_hours(25)).await;
    let young = {
        world.post(id).await;
        world.told(all[24].position, 1).await
    };
    for (n, gone) in [(9, 10), (19, 10), (24, 5), (24, 0)] {
        assert_eq!(events::forget(&world.pool, DAY, 10).await.unwrap(), gone);
        let (xid, event_id) = world.floor().await;
        let floor = format!("{:x}.{event_id:x}", xid.parse::<u64>().unwrap());
        assert_eq!(floor, all[n].position.to_string());
        let mut conn = world.pool.acquire().await.unwrap();
        let after = |position| Span { after: position, through: None, conversations: None };
        let page = events::page(&mut conn, world.author, after(all[n].position), 100).await.unwrap();
        assert!(page.is_ok(), "who has read the last that is gone has missed nothing");
        let page = events::page(&mut conn, world.author, after(all[n - 1].position), 100).await.unwrap();
        assert_eq!(page.unwrap_err(), events::Lost::TooOld);
        let tail = events::tail(&mut conn, all[n - 1].position, 100).await.unwrap();
        assert!(tail.lost, "who follows it is told too");
    }
    assert_eq!(world.told(all[24].position, 1).await, young);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_with_a_restored_database_is_never_told_as_news() {
    let world = World::new().await;
    let id = world.conversation().await;
    // Rows, and a floor, of a server that had had more transactions than this one.
    sqlx::raw_sql(
        "insert into events (xid, conversation_id, kind, subject_id)
            select (pg_current_xact_id()::text::bigint + 100000 + n)::text::xid8, conversation_id, 'message_new', conversation_id
            from conversations, generate_series(1, 25) n;
        update event_log_floor set xid = (pg_current_xact_id()::text::bigint + 90000)::text::xid8, event_id = 7;",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    let begin = world.newest().await;
    world.post(id).await;
    assert_eq!(world.told(begin, 1).await.len(), 1, "a floor ahead of everything hides nothing");
    while events::forget(&world.pool, DAY, 10).await.unwrap() > 0 {}
    let begin = world.newest().await;
    world.post(id).await;
    assert_eq!(world.database.count("select count(*) from events").await, 3);
    let ahead = "select count(*) from event_log_floor where xid >= pg_snapshot_xmax(pg_current_snapshot())";
    assert_eq!(world.database.count(ahead).await, 0);
    assert_eq!(world.told(begin, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_costs_what_it_has_however_long_the_log_is() {
    let world = World::new().await;
    let id = world.conversation().await;
    let begin = world.newest().await;
    sqlx::raw_sql(
        "insert into events (conversation_id, kind, subject_id)
            select gen_random_uuid(), 'message_new', gen_random_uuid() from generate_series(1, 100000)",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::raw_sql("analyze events").execute(&world.pool).await.unwrap();
    for _ in 0..3 {
        world.post(id).await;
    }
    world.told(begin, 3).await;
    let options = connect_options(&world.database.url, "test", Limits::REQUESTS).unwrap();
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    let source = include_str!("../../src/events/log.rs").split_once("pub async fn page(").unwrap().1;
    let statement = source.split_once("r#\"").unwrap().1.split_once("\"#").unwrap().0;
    let plan: Value = sqlx::query_scalar(AssertSqlSafe(format!("explain (analyze, buffers, format json) {statement}")))
        .bind(world.author.as_uuid())
        .bind("0")
        .bind(0_i64)
        .bind(None::<String>)
        .bind(None::<i64>)
        .bind(None::<Vec<Uuid>>)
        .bind(32_i64)
        .fetch_one(&mut conn)
        .await
        .unwrap();
    let plan = &plan[0]["Plan"];
    assert_eq!(plan["Actual Rows"], 4, "{plan}");
    let pages = plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap();
    assert!(pages < 50, "{pages} pages for four rows of a hundred thousand");
}
