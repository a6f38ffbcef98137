//! What a claim reads does not grow with what there is.
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::world::World;

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
