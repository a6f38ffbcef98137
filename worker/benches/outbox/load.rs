//! Many rows at once, as they lie in the tables after a long time of ordinary work.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::database::Database;

/// Lanes that a measured claim takes, and operations of each.
pub(crate) const LANES: usize = 32;
/// See [`LANES`].
pub(crate) const OPERATIONS: usize = 16;

/// The size of the lanes that are due first: more than a claim takes.
const FRONT: usize = 20;

/// How what waits is spread over lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spread {
    /// Over at most this many lanes, evenly.
    Lanes(usize),
    /// All in one, but for what else a claim takes.
    Hot,
}

/// Waiting messages, their conversations, lanes and rooms, written in turn by all conversations.
pub(crate) async fn waiting(database: &Database, rows: usize, spread: Spread) {
    let (lanes, front, size) = match spread {
        Spread::Lanes(lanes) => {
            let lanes = lanes.min(rows / FRONT);
            // Where the lanes are short, those in front are still long enough for a whole claim.
            let size = rows / lanes;
            (lanes, if size < FRONT { lanes.min(1_000) } else { 0 }, size)
        }
        Spread::Hot => (LANES, LANES - 1, rows - FRONT * (LANES - 1)),
    };
    let messages = messages("null");
    run(
        database,
        &format!(
            "create table bench_lanes as
                select n, gen_random_uuid() as id, case when n <= {front} then {FRONT} else {size} end as size
                from generate_series(1, {lanes}) n;
            insert into conversations (conversation_id, created_by, created_at, last_seq)
                select id, id, outbox_now(), size from bench_lanes;
            insert into matrix_room_mappings (conversation_id, matrix_room_id, created_at, ready_at)
                select id, '!' || n, outbox_now(), outbox_now() from bench_lanes;
            insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, due_at, epoch)
                select id, id, 'chat', size, 0, outbox_now() - interval '1 hour' + n * interval '1 ms', 0
                from bench_lanes;
            create temporary table bench_rows as
                select id, seq, gen_random_uuid() as message_id, gen_random_uuid() as outbox_id
                from bench_lanes cross join lateral generate_series(1, size) seq
                order by seq::float8 / size, n;
            {messages}
            insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
                    due_at, attempts, failures)
                select id, id, seq, outbox_id, 'message', message_id, 1, outbox_now() - interval '1 hour',
                    outbox_now() - interval '1 hour', 0, 0
                from bench_rows;
            drop table bench_rows;"
        ),
    )
    .await;
}

/// Lanes that somebody holds, with an operation each.
pub(crate) async fn held(database: &Database, lanes: usize) {
    let messages = messages("null");
    run(
        database,
        &format!(
            "create temporary table bench_rows as
                select gen_random_uuid() as id, 1 as seq, gen_random_uuid() as message_id,
                    gen_random_uuid() as outbox_id
                from generate_series(1, {lanes});
            insert into conversations (conversation_id, created_by, created_at, last_seq)
                select id, id, outbox_now(), 1 from bench_rows;
            insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, hold, epoch)
                select id, id, 'chat', 1, 0, 'held by hand', 0 from bench_rows;
            {messages}
            insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
                    due_at, attempts, failures)
                select id, id, seq, outbox_id, 'message', message_id, 1, outbox_now(), outbox_now(), 0, 0
                from bench_rows;
            drop table bench_rows;"
        ),
    )
    .await;
}

/// Dead letters of the lanes that wait, numbered from `from` on.
pub(crate) async fn dead(database: &Database, from: usize, rows: usize) {
    let messages = messages("null");
    run(
        database,
        &format!(
            "{}
            {messages}
            insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision,
                    enqueued_at, attempts, sender, device, cause, errcode, hint, died_at)
                select id, id, seq, outbox_id, 'message', message_id, 1, outbox_now(), 8, '@bench:nova.test',
                    'BENCH', 'own_fault', 'M_TOO_LARGE', 'shorten it', outbox_now()
                from bench_rows;
            drop table bench_rows;",
            history(10_000_000 + from, rows)
        ),
    )
    .await;
}

/// Delivered messages of the lanes that wait, numbered from `from` on.
pub(crate) async fn done(database: &Database, from: usize, rows: usize) {
    run(
        database,
        &format!(
            "{}
            {}
            insert into sent_events (conversation_id, outbox_id, event_id, kind, subject_id, revision, room_id,
                    sender, sent_at)
                select id, outbox_id, '$' || outbox_id, 'message', message_id, 1, '!' || id, '@bench:nova.test',
                    outbox_now()
                from bench_rows;
            insert into attempts (conversation_id, outbox_id, attempted_at, worker_id, outcome, http_status,
                    duration_ms)
                select id, outbox_id, outbox_now(), id, 'delivered', 200, 5 from bench_rows;
            drop table bench_rows;",
            history(20_000_000 + from, rows),
            messages("'$' || outbox_id")
        ),
    )
    .await;
}

/// Conversations and users of [`desk`], the first of them busier than the last.
const DESK_CONVERSATIONS: usize = 20_000;
/// See [`DESK_CONVERSATIONS`].
const DESK_USERS: usize = 5_000;

/// Dead letters as they gather over a month, up to `rows` with those that `from` says are there: of every kind, cause and
/// error, some of them rare, with what they belong to. One in 50,000 says `needle`.
pub(crate) async fn desk(database: &Database, from: usize, rows: usize) {
    if from == 0 {
        run(
            database,
            &format!(
                "create table desk_lanes as
                    select n, gen_random_uuid() as id from generate_series(1, {DESK_CONVERSATIONS}) n;
                create unique index on desk_lanes (n);
                create table desk_users as select n, gen_random_uuid() as id from generate_series(1, {DESK_USERS}) n;
                create unique index on desk_users (n);
                insert into conversations (conversation_id, created_by, created_at, last_seq)
                    select id, id, outbox_now(), 100000000 from desk_lanes;
                insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, epoch)
                    select id, id, 'chat', 0, 0, 0 from desk_lanes;"
            ),
        )
        .await;
    }
    // An index of texts is made faster than it is kept up.
    let index: String =
        sqlx::query_scalar("select indexdef from pg_indexes where indexname = 'dead_letters_detail_idx'")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    run(
        database,
        &format!(
            "drop index dead_letters_detail_idx;
            create temporary table bench_rows as
                select k, l.id, k + 1000 as seq, gen_random_uuid() as outbox_id, gen_random_uuid() as message_id,
                    u.id as user_id, r,
                    case
                        when k % 100 < 90 then 'message'
                        when k % 100 < 94 then 'edit'
                        when k % 100 < 97 then 'react'
                        when k % 100 = 97 then 'edit'
                        when k % 100 = 98 then 'react'
                        else 'invite'
                    end as kind
                from (
                    select k, random() as r, random() as c, random() as u
                    from generate_series({from} + 1, {rows}) k
                ) k
                join desk_lanes l on l.n = 1 + floor({DESK_CONVERSATIONS} * c * c)
                join desk_users u on u.n = 1 + floor({DESK_USERS} * k.u * k.u);
            create index on bench_rows (k);
            update bench_rows f set id = p.id, message_id = p.message_id
                from bench_rows p where f.k % 100 in (97, 98) and p.k = f.k - 50;
            insert into messages (conversation_id, message_id, seq, author_id, origin, kind, revision, send_outbox_id,
                    matrix_event_id, created_at)
                select id, message_id, seq, user_id, 'nova', 'text', 1 + (k % 100 between 90 and 93)::integer,
                    case when kind = 'message' then outbox_id else gen_random_uuid() end,
                    case when kind <> 'message' then '$' || k end, outbox_now()
                from bench_rows where k % 100 < 97;
            insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
                    attempts, sender, device, cause, errcode, hint, died_at, user_id, detail)
                select id, id, seq, outbox_id, kind, case when kind = 'invite' then user_id else message_id end,
                    case kind when 'message' then 1 when 'edit' then 2 end, outbox_now() - interval '31 days', 8,
                    '@bench:nova.test', 'BENCH',
                    case
                        when k % 100 in (97, 98) then 'parent_dead'
                        when r > 0.92 then 'gave_up'
                        else 'own_fault'
                    end,
                    case
                        when k % 100 in (97, 98) or r > 0.92 then null
                        when r < 0.001 then 'M_RARE'
                        when r < 0.55 then 'M_FORBIDDEN'
                        when r < 0.8 then 'M_TOO_LARGE'
                        else 'M_BAD_JSON'
                    end,
                    'do something', outbox_now() - interval '30 days' + k * interval '2 seconds', user_id,
                    case
                        when k % 100 in (97, 98) then null
                        when k % 50000 = 7 then 'the proxy closed the connection: needle ' || k
                        when r > 0.92 then 'the homeserver answered 502: bad gateway'
                        when r < 0.55 then 'the homeserver answered 403: you may not post to the room (' || k || ')'
                        else 'the homeserver answered 400: it takes no such content (' || k % 1000 || ')'
                    end
                from bench_rows order by k;
            {index};
            insert into conversation_members (conversation_id, user_id, added_seq)
                select distinct id, user_id, 1 from bench_rows where kind = 'invite'
                on conflict do nothing;
            drop table bench_rows;"
        ),
    )
    .await;
}

/// Rows of the lanes that wait, in turn.
fn history(from: usize, rows: usize) -> String {
    format!(
        "create temporary table bench_rows as
            select id, {from} + k as seq, gen_random_uuid() as message_id, gen_random_uuid() as outbox_id
            from generate_series(1, {rows}) k
            join bench_lanes l on l.n = 1 + k % (select count(*) from bench_lanes)
            order by k;"
    )
}

/// The messages of the rows with a text each, and the event that they became.
fn messages(event_id: &str) -> String {
    format!(
        "insert into messages (conversation_id, message_id, seq, author_id, origin, kind, revision, send_outbox_id,
                matrix_event_id, created_at)
            select id, message_id, seq, id, 'nova', 'text', 1, outbox_id, {event_id}, outbox_now() from bench_rows;
        insert into message_revisions (conversation_id, message_id, revision, body, created_at)
            select id, message_id, 1, decode(repeat('00', 120), 'hex'), outbox_now() from bench_rows;"
    )
}

/// Runs statements on a connection that checks no foreign keys, which these rows keep anyway.
async fn run(database: &Database, statements: &str) {
    let mut conn: PgConnection = database.connect().await;
    sqlx::raw_sql("set session_replication_role = replica; set synchronous_commit = off; set work_mem = '256MB'")
        .execute(&mut conn)
        .await
        .unwrap();
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut conn).await.unwrap();
}
