//! What happened, by time: to an operation, and in a conversation.
use std::time::Duration;

use shared::{
    operator::{self, Scope},
    outbox::{
        self, Cursor, Moment,
        MomentKind::{self, Act, Attempt, Delivered, Died, Enqueued},
        Selection,
    },
};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{
    reactions::react,
    world::{End, Lane, Worker, World},
};

const OPERATOR: &str = "ada";
const SECRET: &str = "a text that nobody is shown";

/// A conversation in which everything happened, much of it at one time.
async fn eventful() -> Lane {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let world = &lane.world;
    for _ in 0..3 {
        world.db.stop_clock().await;
        let (sent, dead) = (lane.post(SECRET).await, lane.post(SECRET).await);
        let doubtful = lane.post(SECRET).await;
        let gone = lane.post(SECRET).await;
        lane.post_here_only(SECRET).await;
        lane.step(&worker, End::Delivered).await;
        lane.step(&worker, End::OwnFault).await;
        lane.step(&worker, End::Ambiguous).await;
        lane.step(&worker, End::OwnFault).await;
        lane.edit(&sent, &format!("{SECRET}, edited")).await;
        lane.edit(&dead, &format!("{SECRET}, edited")).await;
        react(&lane, &sent, world.author, "+1").await.unwrap();
        lane.delete(&gone).await;
        lane.discard(doubtful.outbox_id).await;
        let mut tx = world.begin().await;
        operator::requeue(&mut tx, OPERATOR, lane.id, Selection::Named(&[dead.outbox_id]), Some("mended"))
            .await
            .unwrap();
        operator::pause(&mut tx, OPERATOR, Scope::Conversation(lane.id), None, "snooze").await.unwrap();
        operator::resume(&mut tx, OPERATOR, Scope::Conversation(lane.id), None).await.unwrap();
        for n in 0..3 {
            sqlx::query(
                "insert into received_events (conversation_id, event_id, kind, room_id, sender, sent_at_ms, received_at)
                 values ($1, $2, 'message', '!room', '@eve:elsewhere.test', 0, outbox_now())",
            )
            .bind(lane.id.as_uuid())
            .bind(format!("${n}-{}", Uuid::now_v7()))
            .execute(&mut *tx)
            .await
            .unwrap();
        }
        sqlx::query(
            "insert into calls (conversation_id, call_id, matrix_call_id, seq, origin, status, reason, initiator_id,
                 created_at, ring_until, ended_at)
             values ($1, $2, 'call', -(random() * 1e9)::bigint, 'nova', 'ended', 'invite_timeout', $3, outbox_now(),
                 outbox_now(), outbox_now())",
        )
        .bind(lane.id.as_uuid())
        .bind(Uuid::now_v7())
        .bind(world.author.as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
        lane.drain().await;
        world.advance(Duration::from_mins(5)).await;
    }
    lane
}

async fn paged(lane: &Lane, size: i64) -> Vec<Moment> {
    let mut tx = lane.world.begin().await;
    let (mut moments, mut before): (Vec<Moment>, Option<Cursor>) = (Vec::new(), None);
    loop {
        let page = outbox::conversation_timeline(&mut tx, lane.id, before, size).await.unwrap();
        assert!(i64::try_from(page.moments.len()).unwrap() <= size);
        moments.extend(page.moments);
        // As programs carry it.
        before = page.next.map(|cursor| cursor.to_string().parse().unwrap());
        if before.is_none() {
            return moments;
        }
    }
}

#[tokio::test]
async fn a_conversations_timeline_has_each_moment_once_newest_first_wherever_a_page_ends() {
    let lane = eventful().await;
    let whole = paged(&lane, 1_000).await;
    assert!(whole.is_sorted_by(|one, next| one.at >= next.at));
    for size in [1, 2, 3, 7, 20] {
        assert_eq!(paged(&lane, size).await, whole, "in pages of {size}");
    }
    let count = |kind| whole.iter().filter(|moment| moment.kind == kind).count();
    for (kind, many) in [
        (MomentKind::Written, 15),
        (MomentKind::Edited, 6),
        (MomentKind::Deleted, 3),
        // The edits and the reactions; a message's own operation is told of with it.
        (MomentKind::Enqueued, 6),
        (MomentKind::Attempt, 9),
        (MomentKind::Delivered, 12),
        (MomentKind::Withdrawn, 3),
        (MomentKind::Received, 9),
        (MomentKind::CallPlaced, 3),
        (MomentKind::CallEnded, 3),
        (MomentKind::Act, 9),
    ] {
        assert_eq!(count(kind), many, "{kind:?}");
    }
    let text = serde_json::to_string(&whole).unwrap();
    assert!(!text.contains(SECRET) && text.contains("snooze") && text.contains("mended"));
}

#[tokio::test]
async fn an_operations_timeline_tells_its_attempts_its_end_and_what_operators_did_about_it() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let world = &lane.world;
    let posted = lane.post(SECRET).await;
    let step = Duration::from_mins(1);
    let tell = async || {
        let mut tx = world.begin().await;
        let found = outbox::find(&mut tx, posted.outbox_id.as_uuid()).await.unwrap().remove(0);
        let moments = outbox::operation_timeline(&mut tx, &found).await.unwrap();
        assert!(moments.is_sorted_by_key(|moment| moment.at));
        moments.iter().map(|moment| moment.kind).collect::<Vec<_>>()
    };
    world.advance(step).await;
    lane.step(&worker, End::Refused).await;
    world.advance(step).await;
    lane.step(&worker, End::OwnFault).await;
    assert_eq!(tell().await, [Enqueued, Attempt, Attempt, Died]);
    world.advance(step).await;
    let act = async |pause: bool| {
        let mut tx = world.begin().await;
        if pause {
            operator::pause(&mut tx, OPERATOR, Scope::Lane(lane.id, lane.lane_id()), None, "why").await.unwrap();
            operator::resume(&mut tx, OPERATOR, Scope::Conversation(lane.id), None).await.unwrap();
        } else {
            let named = Selection::Named(&[posted.outbox_id]);
            operator::requeue(&mut tx, OPERATOR, lane.id, named, Some("mended")).await.unwrap();
        }
        tx.commit().await.unwrap();
    };
    act(false).await;
    // Another's requeue is none of its acts.
    let other = lane.post("other").await;
    world.advance(step).await;
    act(true).await;
    assert_eq!(tell().await, [Enqueued, Attempt, Attempt, Act, Act, Act]);
    world.advance(step).await;
    lane.drain().await;
    let ended = tell().await;
    assert_eq!(ended.last(), Some(&Delivered));
    assert_eq!(ended.iter().filter(|kind| **kind == Act).count(), 2, "{ended:?}: its lane is known no more");
    assert!(ended.contains(&Attempt));
    world.advance(step).await;
    act(true).await;
    assert_eq!(tell().await, ended, "what came after its delivery is none of its business");
    let mut tx = world.begin().await;
    let found = outbox::find(&mut tx, other.outbox_id.as_uuid()).await.unwrap().remove(0);
    let acts = outbox::operation_timeline(&mut tx, &found).await.unwrap();
    assert!(acts.iter().all(|moment| moment.reason.as_deref() != Some("mended")), "{acts:?}");
}

/// Pages read of the tables that a timeline is made of.
const READ: &str = "select sum(pg_stat_get_xact_blocks_fetched(oid))::bigint from pg_class where relkind in ('r', 'i')
    and relname ~ '^(messages|outbox|dead_letters|sent_events|withdrawn_operations|attempts|received_events|calls|audit_log)'";

#[tokio::test]
async fn a_page_of_a_timeline_reads_no_more_when_ten_times_as_much_has_happened() {
    let mut costs = Vec::new();
    for many in [2_000, 20_000] {
        let lane = World::with_lane().await;
        let id = "overlay(overlay(lpad(to_hex((extract(epoch from outbox_now()) * 1000)::bigint - 20000 + n), 12, '0')
            || substr(md5(n::text || 'X'), 1, 20) placing '7' from 13) placing '8' from 17)::uuid";
        for sql in [
            "insert into messages (conversation_id, message_id, seq, author_id, origin, kind, revision, created_at,
                 edited_at, deleted_at)
             select C, ID, n + 10, C, case when n % 2 = 0 then 'nova' else 'matrix' end, 'text', 1, outbox_now(),
                 T, T from generate_series(1, MANY) n",
            "insert into sent_events (conversation_id, outbox_id, event_id, kind, subject_id, revision, room_id, sender, sent_at)
             select C, ID, '$' || n, 'edit', ID, 1, '!room', '@s:nova.test', T from generate_series(1, MANY) n",
            "insert into attempts (conversation_id, outbox_id, attempted_at, worker_id, outcome, duration_ms)
             select C, ID, T, C, 'delivered', 1 from generate_series(1, MANY) n",
            "insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
                 attempts, cause, hint, died_at)
             select C, C, n, ID, 'edit', ID, 1, T, 1, 'own_fault', '', T from generate_series(1, MANY) n",
            "insert into received_events (conversation_id, event_id, kind, room_id, sender, sent_at_ms, received_at)
             select C, '$' || n, 'message', '!room', '@eve:elsewhere.test', 0, T from generate_series(1, MANY) n",
            "insert into audit_log (audit_id, acted_at, acted_by, verb, scope, conversation_id, arguments, affected)
             select ID, T, 'ada', 'requeue', 'operations', C, '{}', 1 from generate_series(1, MANY) n",
            "insert into withdrawn_operations (conversation_id, lane_id, outbox_id, kind, subject_id, maybe_sent_at,
                 sender, device, reason, withdrawn_at)
             select C, C, ID, 'edit', ID, T, '', '', 'deleted', T from generate_series(1, MANY) n",
        ] {
            let sql = sql
                .replace("ID", id)
                .replace("MANY", &many.to_string())
                .replace('C', &format!("'{}'::uuid", lane.id))
                .replace('T', "outbox_now() - make_interval(secs => (20000 - n)::double precision)");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&lane.world.pool).await.unwrap();
        }
        sqlx::raw_sql("vacuum analyze").execute(&lane.world.pool).await.unwrap();
        let mut tx = lane.world.begin().await;
        sqlx::query("set local enable_seqscan = off").execute(&mut *tx).await.unwrap();
        let before: i64 = sqlx::query_scalar(READ).fetch_one(&mut *tx).await.unwrap();
        let first = outbox::conversation_timeline(&mut tx, lane.id, None, 50).await.unwrap();
        assert_eq!(first.moments.len(), 50);
        outbox::conversation_timeline(&mut tx, lane.id, first.next, 50).await.unwrap();
        let after: i64 = sqlx::query_scalar(READ).fetch_one(&mut *tx).await.unwrap();
        costs.push(after - before);
    }
    println!("pages read by two pages of a timeline: {costs:?}");
    assert!(2 * costs[1] <= 3 * costs[0] + 200, "{costs:?}");
}

#[tokio::test]
async fn the_overview_says_what_waits_what_is_stuck_and_of_what() {
    let world = World::new().await;
    let worker = Worker::new();
    let (lane, held) = (world.lane().await, world.lane().await);
    lane.post("dead").await;
    lane.step(&worker, End::OwnFault).await;
    held.post("held").await;
    held.hold().await;
    lane.post("waits").await;
    outbox::pause(&world.pool, None, None, "why", OPERATOR).await.unwrap();
    let mut tx = world.begin().await;
    let stats = outbox::stats(&mut tx).await.unwrap();
    assert_eq!((stats.dead_letters.to_string(), stats.held_lanes.to_string()), ("1".to_owned(), "1".to_owned()));
    assert_eq!(stats.classes.iter().map(|class| class.depth).sum::<i64>(), 2);
    assert_eq!((stats.pauses[0].scope.as_str(), stats.groups.len(), stats.tasks_running), ("all", 1, 0));
}
