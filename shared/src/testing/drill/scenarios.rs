//! The harm that each scenario does while clients write. Each leaves at least one worker, or none: another is started when
//! it has ended.

use std::time::Duration;

use rustix::process::Signal;
use uuid::Uuid;

use super::{Bout, Scenario, Stage, Work, reached, stage::Victim};
use crate::testing::{eventually, eventually_within, nova::Program};

/// What a worker does between two kills, in statements: a claim and a settle are about a dozen.
const STATEMENTS: usize = 60;

/// After so many kills of workers one is of the API.
const API_TURN: usize = 8;

/// How long one part of an outage lasts. Requests time out after half a second.
const OUTAGE: Duration = Duration::from_secs(4);

/// How long a link to the database is cut.
const CUT: Duration = Duration::from_secs(1);

pub(super) async fn disturb(scenario: Scenario, stage: &mut Stage, work: &Work, bout: Bout) {
    match scenario {
        Scenario::Crash => crash(stage, work, bout).await,
        Scenario::Outage => outage(stage, work, bout).await,
        Scenario::Flaky => flaky(stage, work, bout).await,
        Scenario::Database => database(stage, work, bout).await,
        Scenario::Zombie => zombie(stage, work, bout).await,
        Scenario::Restart => restart(stage, work, bout).await,
        Scenario::Deploy => deploy(stage, work, bout).await,
    }
}

/// Lets a time pass that is the length of a fault.
async fn lasts(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn crash(stage: &mut Stage, work: &Work, bout: Bout) {
    let mut victims = [stage.victim().await, stage.victim().await];
    for kill in 0..bout.faults {
        reached(stage, work, bout.when(kill)).await;
        if kill % (API_TURN + 1) == API_TURN {
            stage.replace_api().await;
        } else {
            let victim: &mut Victim = &mut victims[stage.chance.below(2)];
            victim.dies_at_statement(1 + stage.chance.below(STATEMENTS)).await;
            *victim = stage.victim().await;
        }
        stage.count();
    }
    finished(work).await;
}

async fn outage(stage: &mut Stage, work: &Work, bout: Bout) {
    let workers = [stage.worker().await, stage.worker().await];
    for fault in 0..bout.faults {
        reached(stage, work, bout.when(fault)).await;
        if fault % 2 == 0 {
            stage.fake.set_down(true).await;
            lasts(OUTAGE).await;
            stage.fake.set_down(false).await;
        } else {
            stage.fake.set_black_hole(true);
            lasts(OUTAGE).await;
            stage.fake.set_black_hole(false);
        }
        stage.count();
    }
    finished(work).await;
    super::drained(&stage.database).await;
    for worker in &workers {
        stage.add_probes(worker).await;
    }
}

async fn flaky(stage: &mut Stage, work: &Work, _: Bout) {
    // It answers at once, so that many operations are handed out together, and one in their middle fails.
    stage.fake.latency(Duration::ZERO);
    let seed = stage.chance.below(1 << 30) as u64;
    let any = |share: f64, n: u64| stage.fake.on_any().chance(share, seed + n);
    stage.flaws = vec![
        any(0.02, 1).drop_before().always(),
        any(0.03, 2).drop_after_accept().always(),
        // Few, since the header of a rate limit counts whole seconds, and the whole worker keeps them.
        any(0.004, 3).fail(429).retry_after(Duration::from_millis(20)).always(),
        any(0.02, 4).fail(500).always(),
        any(0.02, 5).fail(502).html("<h1>Bad gateway</h1>").always(),
        any(0.01, 6).fail(520).html("<!doctype html><title>Unknown error</title>").always(),
        any(0.015, 7).delay(Duration::from_millis(60)).always(),
        // Longer than the worker waits, before and after it is done.
        any(0.004, 8).delay(Duration::from_millis(700)).always(),
        any(0.004, 9).delay_answer(Duration::from_millis(700)).always(),
    ];
    let workers = [stage.worker().await, stage.worker().await];
    finished(work).await;
    super::drained(&stage.database).await;
    for worker in &workers {
        stage.add_probes(worker).await;
    }
}

async fn database(stage: &mut Stage, work: &Work, bout: Bout) {
    let _workers = [stage.worker().await, stage.worker().await];
    for fault in 0..bout.faults {
        reached(stage, work, bout.when(fault)).await;
        if fault % 2 == 0 {
            stage.link.cut();
            lasts(CUT).await;
            stage.link.restore();
        } else if let Some(postgres) = &stage.postgres {
            postgres.stop();
            postgres.start_again();
        }
        stage.count();
    }
    finished(work).await;
}

async fn zombie(stage: &mut Stage, work: &Work, bout: Bout) {
    let workers = [stage.worker().await, stage.worker().await];
    for fault in 0..bout.faults {
        reached(stage, work, bout.when(fault)).await;
        let stopped = &workers[stage.chance.below(2)];
        let Some(lanes) = stop_in_the_middle(stage, stopped, work).await else { continue };
        // Past its lease: somebody else has what it had.
        eventually("the other worker takes over", || async { (lanes_of(stage, stopped).await < lanes).then_some(()) })
            .await;
        stopped.signal(Signal::CONT);
        stage.count();
    }
    finished(work).await;
}

/// Stops a worker while it leases something; how many lanes. None when there is no more work.
async fn stop_in_the_middle(stage: &Stage, worker: &Program, work: &Work) -> Option<i64> {
    while !work.is_done() {
        worker.signal(Signal::STOP);
        let lanes = lanes_of(stage, worker).await;
        if lanes > 0 {
            return Some(lanes);
        }
        worker.signal(Signal::CONT);
    }
    None
}

async fn lanes_of(stage: &Stage, worker: &Program) -> i64 {
    let id: Uuid = worker.worker_id().parse().unwrap();
    sqlx::query_scalar("select count(*) from lanes where owner = $1")
        .bind(id)
        .fetch_one(&stage.database.pool)
        .await
        .unwrap()
}

async fn restart(stage: &mut Stage, work: &Work, bout: Bout) {
    let _workers = [stage.worker().await, stage.worker().await];
    for fault in 0..bout.faults {
        reached(stage, work, bout.when(fault)).await;
        stage.fake.restart();
        stage.count();
    }
    finished(work).await;
}

/// One worker starts before another is asked to end. An operation of a kind that none knows waits all the while, and its
/// lane with it; at the end the drill does what a newer worker would.
async fn deploy(stage: &mut Stage, work: &Work, bout: Bout) {
    let unknown = Unknown::write(stage).await;
    let mut workers = vec![stage.worker().await, stage.worker().await];
    for fault in 0..bout.faults {
        reached(stage, work, bout.when(fault)).await;
        workers.push(stage.worker().await);
        let mut old = workers.remove(0);
        old.signal(Signal::TERM);
        let ended = old.ended().await;
        if !ended.success() {
            stage.broken.push(format!("a worker that was asked to end ended with {ended}"));
        }
        stage.count();
    }
    finished(work).await;
    // Everything else flows.
    eventually("all other lanes are done", || async {
        let open = "select count(*) from lanes where open > 0";
        (stage.database.count(open).await == 1).then_some(())
    })
    .await;
    unknown.taken_by_a_newer_worker(stage).await;
    let failed = "select count(*) from attempts where outcome not in ('delivered', 'done', 'not_there')";
    let failed = stage.database.count(failed).await;
    if failed > 0 {
        stage.broken.push(format!("{failed} attempts failed, with nothing wrong but that workers came and went"));
    }
}

/// An operation of a kind that only a newer release knows.
struct Unknown(Uuid);

impl Unknown {
    async fn write(stage: &Stage) -> Self {
        // As the newer release's migration does, which comes before its workers.
        sqlx::raw_sql("alter table outbox drop constraint outbox_kind_check")
            .execute(&stage.database.pool)
            .await
            .unwrap();
        let (conversation, row) = (Uuid::now_v7(), Uuid::now_v7());
        sqlx::query(
            "with conversation as (
                insert into conversations (conversation_id, created_by, created_at, last_seq)
                values ($1, $1, outbox_now(), 1)
            ), lane as (
                insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, due_at, epoch)
                values ($1, $1, 'chat', 1, 0, outbox_now(), 0)
            )
            insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, enqueued_at, due_at, attempts,
                failures)
            values ($1, $1, 1, $2, 'reaction', $2, outbox_now(), outbox_now(), 0, 0)",
        )
        .bind(conversation)
        .bind(row)
        .execute(&stage.database.pool)
        .await
        .unwrap();
        Self(row)
    }

    async fn taken_by_a_newer_worker(self, stage: &mut Stage) {
        let untouched: i64 = sqlx::query_scalar(
            "select count(*) from outbox o join lanes l using (conversation_id, lane_id)
             where o.outbox_id = $1 and o.attempts = 0 and o.failures = 0 and o.maybe_sent_at is null
                and l.frozen_through = 0 and l.hold is null and l.due_at is not null",
        )
        .bind(self.0)
        .fetch_one(&stage.database.pool)
        .await
        .unwrap();
        if untouched != 1 {
            stage.broken.push("an operation of an unknown kind was not left alone".to_owned());
        }
        sqlx::raw_sql(
            "with taken as (delete from outbox where kind = 'reaction' returning conversation_id)
             update lanes set open = open - 1, due_at = null where conversation_id in (select * from taken)",
        )
        .execute(&stage.database.pool)
        .await
        .unwrap();
    }
}

async fn finished(work: &Work) {
    eventually_within(Duration::from_mins(10), "the clients are done", || async { work.is_done().then_some(()) }).await;
}
