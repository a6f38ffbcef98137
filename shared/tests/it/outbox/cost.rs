//! What a claim reads does not grow with what there is.
use secrecy::SecretString;
use serde_json::Value;
use shared::{
    config::DatabaseConfig,
    database::{self, Limits},
    outbox,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use uuid::Uuid;

use super::world::{End, Lane, Worker, World, settlement};

/// The statements of a claim, as they stand in its source.
const CLAIM: &str = include_str!("../../../src/outbox/claim.rs");

/// The first statement in a source after a line of it.
pub(super) fn statement(source: &str, after: &str) -> String {
    let rest = source.split_once(after).expect("the source has this line").1;
    let rest = rest.split_once("r#\"").expect("a statement follows").1;
    rest.split_once("\"#").expect("the statement ends").0.to_owned()
}

/// A database in which `many` operations wait, in one hot conversation and in as many lanes, of which half are held or back
/// off; as many are dead, and as many were sent.
pub(super) async fn filled(many: i32) -> World {
    let world = World::new().await;
    // One connection, for the temporary table.
    let mut conn = world.db.pool.acquire().await.unwrap();
    for sql in [
        "create temporary table numbered as select n, gen_random_uuid() as id from generate_series(0, $1) n",
        "insert into conversations (conversation_id, created_by, created_at, last_seq)
         select id, id, outbox_now(), $1 + 1 from numbered where $1 > 0",
        "insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, due_at, hold, epoch)
         select id, id, 'chat', case when n = 0 then $1 + 1 else 1 end, 0,
             case when n % 4 = 1 then null else
                 outbox_now() + make_interval(secs => case when n % 4 = 2 then 3600 else -3600 + n / 100 end) end,
             case when n % 4 = 1 then 'held' end, 0
         from numbered",
        "insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at, due_at,
             attempts, failures)
         select id, id, 1, gen_random_uuid(), 'message', gen_random_uuid(), 1, outbox_now(), outbox_now(), 0, 0
         from numbered where $1 > 0",
        "insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at, due_at,
             attempts, failures)
         select hot.id, hot.id, 1 + each.n, gen_random_uuid(), 'message', gen_random_uuid(), 1, outbox_now(),
             outbox_now(), 0, 0
         from numbered hot, generate_series(1, $1) each (n) where hot.n = 0",
        "insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
             attempts, cause, hint, died_at)
         select id, id, 0, gen_random_uuid(), 'message', gen_random_uuid(), 1, outbox_now(), 1, 'own_fault', '',
             outbox_now()
         from numbered where $1 > 0",
        "insert into sent_events (conversation_id, outbox_id, event_id, kind, subject_id, revision, room_id, sender, sent_at)
         select case when n % 2 = 0 then hot.id else each.id end, gen_random_uuid(), '$' || each.n, 'message',
             gen_random_uuid(), 1, '!room', '@service:nova.test', outbox_now()
         from (select id from numbered where n = 0) hot, numbered each where $1 > 0",
    ] {
        let sql = sql.replace("$1", &many.to_string());
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await.unwrap();
    }
    sqlx::raw_sql("vacuum analyze").execute(&mut *conn).await.unwrap();
    drop(conn);
    world
}

/// How many pages a statement read, by its plan.
pub(super) fn pages(plan: &Value) -> i64 {
    let plan = &plan[0]["Plan"];
    plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap()
}

/// The pages that the two statements of a claim of 16 lanes read.
async fn claim_cost(world: &World) -> (i64, i64) {
    let mut tx = world.begin().await;
    let explain = |sql: String| AssertSqlSafe(format!("explain (analyze, buffers, format json) {sql}"));
    let lock = statement(CLAIM, "// Locks and reads nothing else");
    let ids = due(&mut tx).await;
    let locked: Value = sqlx::query_scalar(explain(lock))
        .bind("chat")
        .bind(None::<time::OffsetDateTime>)
        .bind(16_i64)
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    let now: time::OffsetDateTime = sqlx::query_scalar("select outbox_now()").fetch_one(&mut *tx).await.unwrap();
    let read: Value = sqlx::query_scalar(explain(statement(CLAIM, "DueRow,\n")))
        .bind(&ids)
        .bind(&ids)
        .bind(16_i64)
        .bind(now)
        .bind(false)
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    (pages(&locked), pages(&read))
}

/// Sixteen lanes that are due, the hot one among them.
async fn due(conn: &mut PgConnection) -> Vec<Uuid> {
    sqlx::query_scalar("select lane_id from lanes where due_at <= outbox_now() order by open desc, due_at limit 16")
        .fetch_all(conn)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_claim_reads_no_more_when_far_more_waits_is_held_is_dead_or_was_sent() {
    let few = claim_cost(&filled(1_000).await).await;
    let many = claim_cost(&filled(30_000).await).await;
    println!("pages read by a claim's statements: {few:?} of a thousand, {many:?} of thirty thousand");
    assert!(2 * many.0 <= 3 * few.0, "locking: {} pages, and {} with thirty times as much", few.0, many.0);
    assert!(2 * many.1 <= 3 * few.1, "reading: {} pages, and {} with thirty times as much", few.1, many.1);
}

/// How often each table was read as a whole.
async fn scans(world: &World) -> Vec<(String, i64)> {
    sqlx::query_as(
        "select relname::text, seq_scan from pg_stat_user_tables
        where relname in ('conversations', 'lanes', 'outbox', 'messages', 'message_revisions', 'sent_events',
            'withdrawn_operations', 'matrix_room_mappings', 'dead_letters')
        order by relname",
    )
    .fetch_all(&world.db.pool)
    .await
    .unwrap()
}

/// Posts, claims and settles as the programs do, often enough that every statement has the plan that it keeps.
async fn lives(lane: &Lane, worker: &Worker, pool: &PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    for text in ["one", "two", "three", "four", "five", "six", "seven"] {
        let mut tx = conn.begin().await.unwrap();
        lane.post_in(&mut tx, text).await.unwrap();
        tx.commit().await.unwrap();
        for end in [End::Ambiguous, End::Delivered] {
            let mut tx = conn.begin().await.unwrap();
            let claim = outbox::claim(&mut tx, &worker.request(1, 1)).await.unwrap();
            tx.commit().await.unwrap();
            let mut tx = conn.begin().await.unwrap();
            outbox::settle(&mut tx, worker.id, &[settlement(&claim.batches[0], end)]).await.unwrap();
            tx.commit().await.unwrap();
        }
    }
    sqlx::query("select pg_stat_force_next_flush()").execute(&mut *conn).await.unwrap();
    sqlx::query("select 1").execute(&mut *conn).await.unwrap();
}

/// A plan is kept, so what is right for an empty table must be right for a full one.
#[tokio::test]
async fn no_statement_of_a_message_reads_a_whole_table_though_the_tables_are_empty_when_it_is_planned() {
    let world = World::new().await;
    let lane = world.lane().await;
    sqlx::raw_sql("vacuum analyze").execute(&world.db.pool).await.unwrap();
    let config = DatabaseConfig { url: SecretString::from(world.db.url.clone()), max_connections: 1 };
    let pool = database::pool(&config, "test", Limits::WORKERS).unwrap();
    let worker = Worker::new();
    let before = scans(&world).await;
    lives(&lane, &worker, &pool).await;
    assert_eq!(scans(&world).await, before);
}
