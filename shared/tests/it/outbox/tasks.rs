//! Tasks: dead letters that come back by a filter, exactly those of the dry run, step by step; and the trail of it.
use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use serde_json::json;
use shared::{
    audit::{self, AuditFilter, Verb},
    chat,
    ids::{ConversationId, OutboxId, TaskId, UserId, WorkerId},
    outbox::{self, DeadFilter, Kind, MOST_LETTERS, Refusal, Repair, Selection},
    tasks::{self, AsOf, Preview, Progress, Step, Task, TaskKind, TaskStatus},
    verify::FindingKind,
    workers::{self, WorkerSeen},
};
use sqlx::{
    Connection as _,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{
    reactions::react,
    world::{End, Lane, Posted, Worker, World, pid, settlement},
};

const OPERATOR: &str = "ada";
const LASTS: Duration = Duration::from_mins(1);

fn all() -> DeadFilter {
    DeadFilter::default()
}

impl World {
    async fn preview(&self, filter: &DeadFilter) -> Preview {
        tasks::preview_requeue(&mut *self.begin().await, filter, None).await.unwrap()
    }

    async fn preview_as_of(&self, filter: &DeadFilter, as_of: &AsOf) -> Preview {
        tasks::preview_requeue(&mut *self.begin().await, filter, Some(as_of)).await.unwrap()
    }

    async fn start(&self, filter: &DeadFilter, as_of: &AsOf, rate: Option<u32>) -> Task {
        let mut tx = self.begin().await;
        let task = tasks::start_requeue(&mut tx, OPERATOR, filter, as_of, rate, Some("it is mended")).await.unwrap();
        tx.commit().await.unwrap();
        task
    }

    async fn task(&self, task_id: TaskId) -> Task {
        tasks::task(&mut *self.begin().await, task_id).await.unwrap().unwrap()
    }

    async fn step(&self) -> Step {
        let step = tasks::step(&self.pool, None).await.unwrap();
        self.sound().await;
        step
    }

    /// Takes steps until none is due. Returns how many letters came back.
    async fn steps(&self) -> u64 {
        let mut back = 0;
        while let Step::Back { letters, .. } = self.step().await {
            back += letters;
        }
        back
    }

    async fn requeue_all(&self, filter: &DeadFilter) -> Task {
        let as_of = self.preview(filter).await.as_of;
        let task = self.start(filter, &as_of, None).await;
        self.steps().await;
        self.task(task.task_id).await
    }

    async fn cancel(&self, task_id: TaskId) -> bool {
        let mut tx = self.begin().await;
        let cancelled = tasks::cancel(&mut tx, "grace", task_id, Some("enough")).await.unwrap();
        tx.commit().await.unwrap();
        cancelled
    }

    async fn acts(&self, filter: &AuditFilter) -> Vec<audit::Entry> {
        audit::entries(&mut *self.begin().await, filter, None, 1000).await.unwrap()
    }

    async fn dead_ids(&self) -> Vec<OutboxId> {
        sqlx::query_scalar("select outbox_id from dead_letters order by outbox_id").fetch_all(&self.pool).await.unwrap()
    }

    /// So many conversations, each with so many dead letters and one that waits behind them.
    async fn dying(&self, lanes: usize, letters: usize) -> Vec<Lane> {
        let worker = Worker::new();
        let mut dying = Vec::new();
        for _ in 0..lanes {
            let lane = self.lane().await;
            for _ in 0..letters {
                lane.die(&worker).await;
            }
            lane.post("waits").await;
            lane.hold().await;
            dying.push(lane);
        }
        dying
    }
}

impl Lane {
    async fn die(&self, worker: &Worker) -> Posted {
        let posted = self.post("dies").await;
        self.step(worker, End::OwnFault).await;
        posted
    }

    /// The seqs of what is live, in the order in which it is sent.
    async fn live(&self) -> Vec<i64> {
        sqlx::query_scalar("select seq from outbox where conversation_id = $1 order by lane_id, seq")
            .bind(self.id.as_uuid())
            .fetch_all(&self.world.pool)
            .await
            .unwrap()
    }
}

fn refusals(preview: &Preview) -> Vec<(Refusal, u64)> {
    preview.refused.iter().map(|refused| (refused.reason, refused.count)).collect()
}

// --- The dry run -----------------------------------------------------------------------------------------------------

/// A letter says when it died, not when that was committed: a time would count some that a dry run did not see.
#[tokio::test]
async fn exactly_the_letters_of_the_dry_run_come_back_whatever_dies_or_commits_meanwhile() {
    let world = World::new().await;
    let worker = Worker::new();
    let lanes = [world.lane().await, world.lane().await, world.lane().await];
    for lane in &lanes {
        lane.die(&worker).await;
    }
    // Dies before the dry run, and comes to light after it.
    let unseen = lanes[0].post("dies in a transaction that is open").await;
    let claimed = lanes[0].claim(&worker, 1).await;
    let mut open = world.begin().await;
    outbox::settle(&mut open, worker.id, &[settlement(&claimed, End::OwnFault)]).await.unwrap();
    world.advance(Duration::from_secs(1)).await;
    let counted: HashSet<OutboxId> = world.dead_ids().await.into_iter().collect();
    let preview = world.preview(&all()).await;
    assert_eq!((preview.back, preview.conversations), (3, 3));
    open.commit().await.unwrap();
    let later = lanes[1].die(&worker).await;
    let until: DeadFilter = DeadFilter { until: Some(preview.as_of.at()), ..all() };
    assert_eq!(world.preview(&until).await.back, 4, "by its time it would belong to the dry run");
    let again = world.preview_as_of(&all(), &preview.as_of).await;
    assert_eq!((again.back, again.as_of), (3, preview.as_of.clone()));

    let task = world.start(&all(), &preview.as_of, None).await;
    assert_eq!((task.expected, task.status), (3, TaskStatus::Running));
    let also_later = lanes[2].post("dies between the start and the step").await;
    let claimed = lanes[2].claim(&worker, 1).await;
    lanes[2].settle(&worker, &claimed, &[End::OwnFault]).await;
    assert_eq!(world.steps().await, preview.back);
    let task = world.task(task.task_id).await;
    assert_eq!((task.status, task.done, task.refused, task.findings), (TaskStatus::Done, 3, 0, json!([])));
    let left: HashSet<OutboxId> = world.dead_ids().await.into_iter().collect();
    assert_eq!(left, HashSet::from([unseen.outbox_id, later.outbox_id, also_later.outbox_id]));
    let live: Vec<OutboxId> = sqlx::query_scalar("select outbox_id from outbox").fetch_all(&world.pool).await.unwrap();
    assert_eq!(live.into_iter().collect::<HashSet<_>>(), counted);
}

#[tokio::test]
async fn a_letter_that_came_back_and_died_again_after_the_dry_run_is_not_taken() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let dead = lane.die(&worker).await;
    let preview = lane.world.preview(&all()).await;
    lane.requeue(dead.outbox_id).await;
    lane.step(&worker, End::OwnFault).await;
    let task = lane.world.start(&all(), &preview.as_of, None).await;
    assert_eq!((task.expected, task.status), (0, TaskStatus::Done), "there is nothing to do");
    assert_eq!(lane.ids("dead_letters", Kind::Message).await, [dead.outbox_id]);
}

#[tokio::test]
async fn letters_that_were_restored_from_another_cluster_are_old() {
    let lane = World::with_lane().await;
    lane.die(&Worker::new()).await;
    sqlx::query("update dead_letters set died_xid = '4000000000'").execute(&lane.world.pool).await.unwrap();
    let preview = lane.world.preview(&all()).await;
    assert_eq!(preview.back, 1);
    assert_eq!(lane.world.requeue_all(&all()).await.done, 1);
}

#[tokio::test]
async fn a_filter_chooses_by_each_trait_and_all_of_them() {
    let world = World::new().await;
    let worker = Worker::new();
    let (lane, other) = (world.lane().await, world.lane().await);
    let dead = lane.die(&worker).await;
    other.die(&worker).await;
    sqlx::query(
        "update dead_letters set errcode = 'M_TOO_LARGE', detail = 'is 100% Too_Large', died_at = outbox_now() - interval '1 h'
         where outbox_id = $1",
    )
    .bind(dead.outbox_id.as_uuid())
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::query("update dead_letters set user_id = $1")
        .bind(world.author.as_uuid())
        .execute(&world.pool)
        .await
        .unwrap();
    let now: time::OffsetDateTime = sqlx::query_scalar("select outbox_now()").fetch_one(&world.pool).await.unwrap();
    let half = Some(now - Duration::from_mins(30));
    let text = |text: &str| Some(text.to_owned());
    let ones = [
        DeadFilter { conversation_id: Some(lane.id), ..all() },
        DeadFilter { errcode: text("M_TOO_LARGE"), ..all() },
        DeadFilter { text: text("100% too_large"), ..all() },
        DeadFilter { until: half, ..all() },
        DeadFilter { since: half, ..all() },
        DeadFilter {
            user_id: Some(world.author),
            kind: text("message"),
            cause: text("own_fault"),
            until: half,
            ..all()
        },
    ];
    for filter in ones {
        let preview = world.preview(&filter).await;
        assert_eq!(preview.back, 1, "{filter:?}");
        assert_eq!(preview.first[0].outbox_id == dead.outbox_id, filter.since.is_none(), "{filter:?}");
    }
    let none = [
        DeadFilter { text: text("1000 too"), ..all() },
        DeadFilter { user_id: Some(UserId::generate()), ..all() },
        DeadFilter { kind: text("edit"), ..all() },
        DeadFilter { cause: text("gave_up"), ..all() },
    ];
    for filter in none {
        assert_eq!(world.preview(&filter).await.back, 0, "{filter:?}");
    }
}

/// In one conversation the bulk requeue and the one by hand say and do the same.
#[tokio::test]
async fn messages_take_their_edits_and_reactions_along_and_refusals_are_those_of_one_conversation() {
    let lane = World::with_lane().await;
    let world = &lane.world;
    let worker = Worker::new();
    // Dead with a parked edit and a reaction: may have been sent.
    let posted = lane.post("1").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    lane.edit(&posted, "2").await;
    react(&lane, &posted, world.author, "+").await.unwrap();
    // An edit that may have been sent, and that a newer one has replaced.
    let edited = lane.post("1").await;
    lane.step(&worker, End::Delivered).await;
    lane.edit(&edited, "2").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    lane.edit(&edited, "3").await;
    lane.step(&worker, End::Delivered).await;
    assert_eq!(lane.picture().await, "dead: message 1?, edit 2, react, edit 2?; sent: message 1, edit 3");

    let reactions = DeadFilter { kind: Some("react".to_owned()), ..all() };
    let preview = world.preview(&reactions).await;
    assert_eq!((preview.back, refusals(&preview)), (0, vec![(Refusal::ParentDead, 1)]));
    let task = world.requeue_all(&reactions).await;
    assert_eq!((task.status, task.done, task.refused), (TaskStatus::Done, 0, 1));
    assert_eq!(task.findings[0]["reason"], "parent_dead");

    let messages = DeadFilter { kind: Some("message".to_owned()), ..all() };
    let preview = world.preview(&messages).await;
    assert_eq!((preview.back, preview.along, refusals(&preview)), (3, 2, vec![]));

    let preview = world.preview(&all()).await;
    let mut tx = world.begin().await;
    let any = Selection::Matching { cause: None, errcode: None };
    let by_hand = outbox::preview_requeue(&mut tx, lane.id, any).await.unwrap();
    drop(tx);
    assert_eq!((preview.back, preview.along, refusals(&preview)), (3, 2, vec![(Refusal::Superseded, 1)]));
    assert_eq!(preview.first, by_hand.back);
    assert_eq!(by_hand.refused.len(), 1);

    let task = world.requeue_all(&all()).await;
    assert_eq!((task.expected, task.done, task.refused), (3, 3, 1));
    assert_eq!(lane.picture().await, "live: message 1?, edit 2, react; dead: edit 2?; sent: message 1, edit 3");
}

/// An edit that was parked after the dry run: without it the old text would come back.
#[tokio::test]
async fn what_users_add_to_a_message_meanwhile_comes_back_with_it() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("1").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    let as_of = lane.world.preview(&all()).await.as_of;
    let task = lane.world.start(&all(), &as_of, None).await;
    assert_eq!(task.expected, 1);
    lane.edit(&posted, "2").await;
    assert_eq!(lane.world.steps().await, 2);
    assert_eq!(lane.picture().await, "live: message 1?, edit 2");
}

// --- Steps -----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn letters_come_back_before_what_waits_and_in_their_order() {
    let world = World::new().await;
    let lanes = world.dying(3, 4).await;
    let preview = world.preview(&all()).await;
    assert_eq!((preview.back, preview.lanes_waiting, preview.first.len()), (12, 3, 12));
    let places: Vec<_> = preview.first.iter().map(|letter| (letter.conversation_id, letter.seq)).collect();
    assert!(places.is_sorted());
    let task = world.start(&all(), &preview.as_of, None).await;
    assert_eq!(world.step().await, Step::Back { task_id: task.task_id, letters: 12, ended: true });
    assert_eq!(world.step().await, Step::Idle);
    for lane in lanes {
        let frozen = lane.frozen_through().await;
        lane.resume().await;
        let drained: Vec<i64> = lane.drain().await.iter().map(|operation| operation.seq).collect();
        assert!(drained.len() == 5 && drained.is_sorted(), "{drained:?}");
        assert!(drained.iter().filter(|seq| **seq <= frozen).count() <= 4);
    }
}

/// Also when a step begins with it alone: what comes later stands behind.
#[tokio::test]
async fn a_conversation_with_more_letters_than_come_back_at_once_takes_steps_in_order() {
    let lane = World::with_lane().await;
    let letters = MOST_LETTERS + 10;
    let rows = "with rows as (
            select $1::uuid as c, n + 10 as seq, gen_random_uuid() as o, gen_random_uuid() as m
            from generate_series(1, $2) n
        ), said as (
            insert into messages (conversation_id, message_id, seq, author_id, origin, kind, revision, send_outbox_id,
                created_at)
            select c, m, seq, c, 'nova', 'text', 1, o, outbox_now() from rows
        ), written as (
            insert into message_revisions (conversation_id, message_id, revision, body, created_at)
            select c, m, 1, '', outbox_now() from rows
        )
        insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
            attempts, cause, hint, died_at)
        select c, c, seq, o, 'message', m, 1, outbox_now(), 8, 'own_fault', 'shorten it', outbox_now() from rows";
    sqlx::query(rows).bind(lane.id.as_uuid()).bind(letters).execute(&lane.world.pool).await.unwrap();
    sqlx::query("update conversations set last_seq = 100000").execute(&lane.world.pool).await.unwrap();
    let as_of = lane.world.preview(&all()).await.as_of;
    let task = lane.world.start(&all(), &as_of, None).await;
    let step = tasks::step(&lane.world.pool, None).await.unwrap();
    let most = u64::try_from(MOST_LETTERS).unwrap();
    assert_eq!(step, Step::Back { task_id: task.task_id, letters: most, ended: false });
    let (last, first): (i64, i64) =
        sqlx::query_as("select (select max(seq) from outbox), (select min(seq) from dead_letters)")
            .fetch_one(&lane.world.pool)
            .await
            .unwrap();
    assert!(last < first, "the first come first");
    assert_eq!(lane.world.step().await, Step::Back { task_id: task.task_id, letters: 10, ended: true });
    assert_eq!(lane.number("select open::bigint from lanes where conversation_id = $1").await, letters);
}

#[tokio::test]
async fn a_conversation_that_somebody_has_locked_stalls_no_other_and_is_come_back_to() {
    let world = World::new().await;
    let lanes = world.dying(3, 2).await;
    let as_of = world.preview(&all()).await.as_of;
    let task = world.start(&all(), &as_of, None).await;
    let mut slow = world.begin().await;
    chat::lock_conversation(&mut slow, lanes[0].id).await.unwrap();
    assert_eq!(world.step().await, Step::Back { task_id: task.task_id, letters: 4, ended: false });
    // All that is left is locked: it waits a little, gives up and tries again later.
    assert_eq!(world.step().await, Step::Idle);
    slow.rollback().await.unwrap();
    world.advance(Duration::from_secs(1)).await;
    assert_eq!(world.step().await, Step::Back { task_id: task.task_id, letters: 2, ended: true });
}

#[tokio::test]
async fn a_lane_that_somebody_has_locked_is_come_back_to_with_its_conversation() {
    let world = World::new().await;
    let lanes = world.dying(2, 2).await;
    let as_of = world.preview(&all()).await.as_of;
    let task = world.start(&all(), &as_of, None).await;
    let mut slow = world.begin().await;
    outbox::hold(&mut slow, lanes[0].id, lanes[0].lane_id(), "slowly").await.unwrap();
    assert_eq!(world.step().await, Step::Back { task_id: task.task_id, letters: 2, ended: false });
    slow.rollback().await.unwrap();
    assert_eq!(world.step().await, Step::Back { task_id: task.task_id, letters: 2, ended: true });
}

#[tokio::test]
async fn what_left_meanwhile_is_counted_as_gone_and_nothing_fails() {
    let world = World::new().await;
    let worker = Worker::new();
    let (lane, other) = (world.lane().await, world.lane().await);
    let (requeued, discarded, deleted) = (lane.die(&worker).await, lane.die(&worker).await, lane.die(&worker).await);
    lane.die(&worker).await;
    other.die(&worker).await;
    let as_of = world.preview(&all()).await.as_of;
    let task = world.start(&all(), &as_of, None).await;
    lane.requeue(requeued.outbox_id).await;
    lane.discard(discarded.outbox_id).await;
    lane.delete(&deleted).await;
    other.forget().await;
    assert_eq!(world.steps().await, 1);
    let task = world.task(task.task_id).await;
    assert_eq!((task.status, task.expected, task.done), (TaskStatus::Done, 5, 1));
    assert_eq!((&task.findings[0]["reason"], &task.findings[0]["count"]), (&json!("gone"), &json!(4)));
}

#[tokio::test]
async fn a_task_keeps_to_its_rate() {
    let world = World::new().await;
    world.dying(4, 2).await;
    let as_of = world.preview(&all()).await.as_of;
    let task = world.start(&all(), &as_of, Some(2)).await;
    for done in 1..=4 {
        assert_eq!(world.step().await, Step::Back { task_id: task.task_id, letters: 2, ended: done == 4 });
        assert_eq!(world.step().await, Step::Idle, "not before a second has passed");
        world.advance(Duration::from_millis(1100)).await;
    }
}

#[tokio::test]
async fn a_cancelled_task_keeps_what_it_did_and_begins_nothing_more() {
    let world = World::new().await;
    world.dying(3, 1).await;
    let as_of = world.preview(&all()).await.as_of;
    let task = world.start(&all(), &as_of, Some(1)).await;
    assert_eq!(world.step().await, Step::Back { task_id: task.task_id, letters: 1, ended: false });
    assert!(world.cancel(task.task_id).await);
    assert!(!world.cancel(task.task_id).await, "it has ended");
    world.advance(LASTS).await;
    assert_eq!(world.step().await, Step::Idle);
    let task = world.task(task.task_id).await;
    assert_eq!((task.status, task.done, task.ended_by.as_deref()), (TaskStatus::Cancelled, 1, Some("grace")));
    assert_eq!(world.dead_ids().await.len(), 2);
    assert_eq!(world.db.count("select count(*) from operator_task_parts").await, 0);
}

/// Four drivers, as four workers are.
#[tokio::test(flavor = "multi_thread")]
async fn several_drivers_bring_each_letter_back_once() {
    let world = World::new().await;
    let lanes = world.dying(70, 2).await;
    let as_of = world.preview(&all()).await.as_of;
    let task = world.start(&all(), &as_of, None).await;
    let mut drivers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (world, task_id) = (world.clone(), task.task_id);
        drivers.spawn(async move {
            let mut back = 0;
            while world.task(task_id).await.status == TaskStatus::Running {
                if let Step::Back { letters, .. } = tasks::step(&world.pool, None).await.unwrap() {
                    back += letters;
                }
            }
            back
        });
    }
    let back: u64 = drivers.join_all().await.into_iter().sum();
    assert_eq!(back, 140);
    let task = world.task(task.task_id).await;
    assert_eq!((task.status, task.done, task.findings), (TaskStatus::Done, 140, json!([])));
    for lane in lanes {
        assert_eq!(lane.live().await.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_process_dies_leaves_everything_to_the_next() {
    let world = World::new().await;
    world.dying(3, 2).await;
    let as_of = world.preview(&all()).await.as_of;
    let task = world.start(&all(), &as_of, Some(2)).await;
    assert_eq!(world.step().await, Step::Back { task_id: task.task_id, letters: 2, ended: false });
    world.advance(Duration::from_secs(2)).await;
    // It has locked its conversations, and dies before it has the task.
    let mut holds = world.begin().await;
    sqlx::query("select 1 from operator_tasks for update").execute(&mut *holds).await.unwrap();
    let pool = world.pool.clone();
    let dying = tokio::spawn(async move { tasks::step(&pool, None).await });
    let pid: i32 = shared::testing::eventually("a step waits for its task", async || {
        sqlx::query_scalar(
            "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        )
        .fetch_optional(&world.db.pool)
        .await
        .unwrap()
    })
    .await;
    sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&world.db.pool).await.unwrap();
    assert!(dying.await.unwrap().is_err());
    holds.rollback().await.unwrap();
    assert_eq!(world.task(task.task_id).await.done, 2);
    world.advance(LASTS).await;
    let mut back = 0;
    while let Step::Back { letters, .. } = world.step().await {
        back += letters;
        world.advance(LASTS).await;
    }
    assert_eq!(back, 4);
    assert_eq!(world.task(task.task_id).await.status, TaskStatus::Done);
}

#[tokio::test]
async fn a_step_that_the_database_refuses_ends_its_task_and_no_other() {
    let world = World::new().await;
    let lanes = world.dying(2, 1).await;
    let as_of = world.preview(&all()).await.as_of;
    let broken = world.start(&DeadFilter { conversation_id: Some(lanes[0].id), ..all() }, &as_of, None).await;
    let well = world.start(&DeadFilter { conversation_id: Some(lanes[1].id), ..all() }, &as_of, None).await;
    sqlx::query(
        "insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at, due_at,
            attempts, failures)
         select conversation_id, lane_id, seq, gen_random_uuid(), 'message', subject_id, 1, died_at, died_at, 0, 0
         from dead_letters where conversation_id = $1",
    )
    .bind(lanes[0].id.as_uuid())
    .execute(&world.pool)
    .await
    .unwrap();
    while tasks::step(&world.pool, None).await.unwrap() != Step::Idle {}
    let broken = world.task(broken.task_id).await;
    assert_eq!(broken.status, TaskStatus::Failed);
    assert!(broken.error.unwrap().contains("outbox_pkey"));
    assert_eq!(world.task(well.task_id).await.status, TaskStatus::Done);
}

// --- The trail -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_start_each_step_and_the_end_of_a_task_stand_in_the_trail() {
    let world = World::new().await;
    world.dying(3, 2).await;
    let filter = DeadFilter { cause: Some("own_fault".to_owned()), ..all() };
    let as_of = world.preview(&filter).await.as_of;
    let task = world.start(&filter, &as_of, Some(4)).await;
    world.step().await;
    world.cancel(task.task_id).await;
    let of_task = AuditFilter { task_id: Some(task.task_id), ..AuditFilter::default() };
    let mut trail = world.acts(&of_task).await;
    trail.reverse();
    let acts: Vec<_> =
        trail.iter().map(|act| (act.acted_by.as_str(), act.verb.as_str(), act.scope.as_str(), act.affected)).collect();
    assert_eq!(
        acts,
        [(OPERATOR, "requeue", "filter", 0), (OPERATOR, "requeue", "task", 4), ("grace", "cancel", "task", 1)]
    );
    let asked = json!({"filter": {"cause": "own_fault"}, "as_of": as_of, "rate": 4, "expected": 6});
    assert_eq!(trail[0].arguments, asked);
    assert_eq!(trail[0].reason.as_deref(), Some("it is mended"));
    let totals = audit::totals_since(&mut *world.begin().await, time::OffsetDateTime::UNIX_EPOCH).await.unwrap();
    assert_eq!(totals.requeued, 4, "what was asked for is not counted, what came back is");
    let of_grace = AuditFilter { by: Some("grace".to_owned()), ..AuditFilter::default() };
    assert_eq!(world.acts(&of_grace).await.len(), 1);
    let requeues = AuditFilter { verb: Some(Verb::Requeue), ..AuditFilter::default() };
    assert_eq!(world.acts(&requeues).await.len(), 2);
    let earlier = AuditFilter { until: Some(trail[0].acted_at), ..AuditFilter::default() };
    assert!(world.acts(&earlier).await.is_empty());
}

#[tokio::test]
async fn nobody_rewrites_the_trail() {
    let lane = World::with_lane().await;
    lane.die(&Worker::new()).await;
    lane.world.requeue_all(&all()).await;
    let before = lane.world.acts(&AuditFilter::default()).await.len();
    for sql in ["update audit_log set acted_by = 'nobody'", "delete from audit_log", "truncate audit_log"] {
        let refused = sqlx::query(sql).execute(&lane.world.pool).await.unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
    assert_eq!(lane.world.acts(&AuditFilter::default()).await.len(), before);
    assert!(before > 0);
}

/// Whoever has an id of a transaction keeps back what clients are told, everywhere.
#[tokio::test]
async fn beginning_a_requeue_writes_nothing_while_it_still_counts() {
    let world = World::new().await;
    world.dying(1, 2).await;
    let as_of = world.preview(&all()).await.as_of;
    let mut stranger = world.begin().await;
    sqlx::query("lock table dead_letters in access exclusive mode").execute(&mut *stranger).await.unwrap();
    let mut tx = world.begin().await;
    let pid = pid(&mut tx).await;
    let filter = all();
    let starting = tasks::start_requeue(&mut tx, OPERATOR, &filter, &as_of, None, None);
    let looking = async {
        world.until_blocked(pid).await;
        let written: bool = sqlx::query_scalar("select backend_xid is not null from pg_stat_activity where pid = $1")
            .bind(pid)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        stranger.rollback().await.unwrap();
        written
    };
    let (task, written) = tokio::join!(starting, looking);
    assert_eq!(task.unwrap().expected, 2);
    assert!(!written);
}

#[tokio::test]
async fn a_step_that_always_takes_too_long_keeps_no_other_task_waiting() {
    let world = World::new().await;
    let lanes = world.dying(2, 1).await;
    let of = |lane: &Lane| DeadFilter { conversation_id: Some(lane.id), ..all() };
    let as_of = world.preview(&all()).await.as_of;
    let slow = world.start(&of(&lanes[0]), &as_of, None).await;
    let quick = world.start(&of(&lanes[1]), &as_of, None).await;
    // The database is slow with this conversation, and statements may take three seconds.
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "create function slow() returns trigger language plpgsql as $$
         begin if new.conversation_id = '{}' then perform pg_sleep(60); end if; return new; end $$;
         create trigger slow before insert on outbox for each row execute function slow()",
        lanes[0].id
    )))
    .execute(&world.pool)
    .await
    .unwrap();
    let hasty: PgConnectOptions = world.db.url.parse().unwrap();
    let hasty = PgPoolOptions::new().connect_lazy_with(hasty.options([("statement_timeout", "3000")]));
    let step = tasks::step(&hasty, None).await.unwrap();
    assert_eq!(step, Step::Back { task_id: quick.task_id, letters: 1, ended: true });
    assert_eq!(tasks::step(&hasty, None).await.unwrap(), Step::Idle, "it is tried again, but not at once");
    let trouble = world.task(slow.task_id).await;
    assert!(trouble.status == TaskStatus::Running && trouble.error.unwrap().contains("too long"), "it is told");
    sqlx::raw_sql("drop trigger slow on outbox").execute(&world.pool).await.unwrap();
    world.advance(Duration::from_secs(10)).await;
    assert_eq!(world.step().await, Step::Back { task_id: slow.task_id, letters: 1, ended: true });
    assert_eq!(world.task(slow.task_id).await.error, None, "it got on");
}

// --- Tasks that ask the homeserver -----------------------------------------------------------------------------------

async fn leased(world: &World, owner: WorkerId) -> Option<Task> {
    let mut tx = world.begin().await;
    let task = tasks::lease(&mut tx, owner, &[TaskKind::Verify, TaskKind::Repair], LASTS).await.unwrap();
    tx.commit().await.unwrap();
    task
}

#[tokio::test]
async fn a_task_under_lease_is_one_process_until_that_is_over_and_then_takes_no_notes_of_it() {
    let lane = World::with_lane().await;
    let world = &lane.world;
    let mut tx = world.begin().await;
    chat::save_room_mapping(&mut tx, lane.id, &super::world::room(), true).await.unwrap();
    let task = tasks::start_verify(&mut tx, OPERATOR, None, false, None).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((task.expected, task.kind), (1, TaskKind::Verify));
    let (first, second) = (WorkerId::generate(), WorkerId::generate());
    assert_eq!(leased(world, first).await.unwrap().task_id, task.task_id);
    assert!(leased(world, second).await.is_none());
    assert!(tasks::renew(&mut *world.begin().await, first, task.task_id, LASTS).await.unwrap());
    assert_eq!(tasks::step(&world.pool, None).await.unwrap(), Step::Idle, "it is no requeue");
    world.advance(LASTS * 2).await;
    assert!(leased(world, second).await.is_some());
    let counts = BTreeMap::from([(FindingKind::Missing, 2), (FindingKind::Doubled, 1)]);
    let found = Progress { done: 1, refused: 1, findings: vec![json!({"kind": "missing"})], counts: counts.clone() };
    let note = async |owner, part| {
        let mut tx = world.begin().await;
        let noted = tasks::note(&mut tx, owner, task.task_id, part, &found).await.unwrap();
        tx.commit().await.unwrap();
        noted
    };
    assert!(!note(first, Some(lane.id)).await);
    assert_eq!(tasks::parts(&mut *world.begin().await, task.task_id, 10).await.unwrap(), [lane.id]);
    assert!(note(second, Some(lane.id)).await);
    assert_eq!(tasks::parts(&mut *world.begin().await, task.task_id, 10).await.unwrap(), [] as [ConversationId; 0]);
    for _ in 0..3 {
        let many = Progress { findings: vec![json!({}); 400], counts: counts.clone(), ..Progress::default() };
        let mut tx = world.begin().await;
        assert!(tasks::note(&mut tx, second, task.task_id, None, &many).await.unwrap());
        tx.commit().await.unwrap();
    }
    let mut tx = world.begin().await;
    assert!(!tasks::finish(&mut tx, first, task.task_id).await.unwrap());
    assert!(tasks::finish(&mut tx, second, task.task_id).await.unwrap());
    tx.commit().await.unwrap();
    let task = world.task(task.task_id).await;
    assert_eq!((task.status, task.done, task.refused), (TaskStatus::Done, 1, 1));
    assert_eq!(task.findings.as_array().unwrap().len(), 1000, "what is more is not kept");
    assert_eq!(task.counts, json!({"missing": 8, "doubled": 4}), "all of what was noted is counted, and nothing else");
    assert_eq!(task.findings[0], json!({"kind": "missing"}));
}

#[tokio::test]
async fn a_task_that_was_handed_back_is_due_later_and_one_that_was_cancelled_never() {
    let lane = World::with_lane().await;
    let world = &lane.world;
    let mut tx = world.begin().await;
    let task = tasks::start_repair(&mut tx, OPERATOR, lane.id, Repair::Rejoin, Some("why")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((task.kind, task.arguments), (TaskKind::Repair, json!({"repair": "rejoin"})));
    let owner = WorkerId::generate();
    leased(world, owner).await.unwrap();
    let mut conn = world.pool.acquire().await.unwrap();
    tasks::hand_back(&mut conn, owner, task.task_id, LASTS, "nobody answers").await.unwrap();
    assert_eq!(world.task(task.task_id).await.error.as_deref(), Some("nobody answers"), "people are told why");
    assert!(leased(world, owner).await.is_none());
    world.advance(LASTS).await;
    assert!(leased(world, owner).await.is_some());
    assert!(tasks::note(&mut conn, owner, task.task_id, None, &Progress::default()).await.unwrap());
    assert_eq!(world.task(task.task_id).await.error, None, "until it gets on");
    tasks::hand_back(&mut conn, owner, task.task_id, LASTS, "nobody answers").await.unwrap();
    assert!(world.cancel(task.task_id).await);
    assert_eq!(world.task(task.task_id).await.error, None, "what is cancelled did not fail");
    assert!(!tasks::renew(&mut *world.begin().await, owner, task.task_id, LASTS).await.unwrap());
    assert!(!tasks::fail(&mut *world.begin().await, owner, task.task_id, "why").await.unwrap());
    let mut tx = world.begin().await;
    let listed = tasks::tasks(&mut tx, None, 10).await.unwrap();
    assert_eq!((listed.len(), listed[0].status), (1, TaskStatus::Cancelled));
    assert!(tasks::tasks(&mut tx, Some(task.task_id), 10).await.unwrap().is_empty());
    assert!(tasks::running(&mut tx, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_task_that_gives_way_has_its_next_turn_after_those_that_are_due() {
    let lane = World::with_lane().await;
    let world = &lane.world;
    let start = async || {
        let mut tx = world.begin().await;
        let task = tasks::start_repair(&mut tx, OPERATOR, lane.id, Repair::Rejoin, Some("why")).await.unwrap();
        tx.commit().await.unwrap();
        world.advance(Duration::from_secs(1)).await;
        task.task_id
    };
    let owner = WorkerId::generate();
    let turn = async || leased(world, owner).await.unwrap().task_id;
    let give_way = async |task_id| {
        world.advance(Duration::from_secs(1)).await;
        tasks::give_way(&mut world.pool.acquire().await.unwrap(), owner, task_id).await.unwrap();
    };
    let (long, short) = (start().await, start().await);
    assert_eq!(turn().await, long);
    give_way(long).await;
    assert_eq!(turn().await, short);
    give_way(short).await;
    assert_eq!(turn().await, long);
    tasks::give_way(&mut world.pool.acquire().await.unwrap(), WorkerId::generate(), long).await.unwrap();
    assert_eq!(turn().await, short, "nobody gives away what is another's");
}

// --- Who works -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn workers_are_seen_while_they_tell_of_themselves() {
    let world = World::new().await;
    let told = |busy| WorkerSeen {
        worker_id: WorkerId::generate(),
        host: "host".to_owned(),
        version: "0".to_owned(),
        started_at: time::OffsetDateTime::UNIX_EPOCH,
        seen_at: time::OffsetDateTime::UNIX_EPOCH,
        circuit: "closed".to_owned(),
        token_accepted: true,
        sync_leader: false,
        slots: 8,
        busy,
        delivered: 1,
        failed: 2,
        delivered_per_minute: 3.0,
    };
    let mut conn = sqlx::PgConnection::connect(&world.db.url).await.unwrap();
    let (mut one, other) = (told(1), told(2));
    workers::tell(&mut conn, &one).await.unwrap();
    workers::tell(&mut conn, &other).await.unwrap();
    let started = workers::seen(&mut conn).await.unwrap()[0].started_at;
    world.advance(Duration::from_secs(15)).await;
    one.busy = 7;
    workers::tell(&mut conn, &one).await.unwrap();
    world.advance(Duration::from_secs(15)).await;
    let seen = workers::seen(&mut conn).await.unwrap();
    assert_eq!((seen.len(), seen[0].worker_id, seen[0].busy), (1, one.worker_id, 7));
    assert!(seen[0].started_at == started && seen[0].seen_at > started);
    world.advance(Duration::from_hours(25)).await;
    assert_eq!(workers::forget(&mut conn).await.unwrap(), 2);
    workers::tell(&mut conn, &other).await.unwrap();
    workers::leave(&mut conn, other.worker_id).await.unwrap();
    assert!(workers::seen(&mut conn).await.unwrap().is_empty());
}
