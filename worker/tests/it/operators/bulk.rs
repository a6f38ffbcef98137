//! Requeueing by a filter: first what would come back, then exactly that, as a task.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use shared::testing::{eventually, homeserver::FakeHomeserver, nova::program_path};

use super::keys;
use crate::scene::{Home, Scene, shape};

const OF_CODE: [&str; 3] = ["requeue", "--errcode", "M_BAD_JSON"];

impl Scene {
    /// What a dry run of these words names as the moment of which it looked.
    async fn looked(&self, words: &[&str]) -> (Value, String) {
        let words: Vec<&str> = words.iter().copied().chain(["--dry-run", "--json"]).collect();
        let preview = self.outboxctl(&words).await.json(0);
        let as_of = preview["as_of"].as_str().unwrap().to_owned();
        (preview, as_of)
    }

    async fn requeued(&self, words: &[&str], as_of: &str, more: &[&str]) -> super::Said {
        let words: Vec<&str> = words.iter().copied().chain(["--as-of", as_of]).chain(more.iter().copied()).collect();
        self.outboxctl(&words).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_by_filter_brings_back_exactly_what_its_dry_run_found_also_with_no_worker() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    let (first, room) = scene.begun().await;
    let (second, _) = scene.begun().await;
    let (one, two) = (scene.dead(&fake, &first, "one").await, scene.dead(&fake, &first, "two").await);
    let three = scene.dead(&fake, &second, "three").await;
    let (preview, as_of) = scene.looked(&OF_CODE).await;
    assert_eq!((&preview["back"], &preview["conversations"]), (&json!(3), &json!(2)));
    let late = scene.dead(&fake, &second, "died after the dry run").await;
    let said = scene.outboxctl(&["requeue", "--errcode", "M_BAD_JSON", "--since", "1h", "--dry-run"]).await;
    for words in
        ["4 operations would come back; of 2 conversations", "outboxctl requeue --errcode M_BAD_JSON --since 2"]
    {
        assert!(said.text(0).contains(words), "{words} in\n{}", said.out);
    }
    worker.kill();
    let done = scene.requeued(&OF_CODE, &as_of, &["--reason", "mended", "--rate", "1000", "--json"]).await;
    assert!(done.err.contains("3 operations to bring back"), "{done:?}");
    let task = done.json(0);
    assert_eq!((&task["status"], &task["done"], &task["expected"]), (&json!("done"), &json!(3), &json!(3)));
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 1);
    let _worker = scene.worker().await;
    for message in [&one, &two, &three] {
        scene.ada.delivered(message).await;
    }
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "one", "two"]);
    let read = scene.ada.get(&format!("/messages/{late}")).await;
    assert_eq!(read["matrix"]["delivery"], "dead", "it was not what the dry run found");

    let task_id = task["task_id"].as_str().unwrap();
    let trail = scene.outboxctl(&["audit", "--task", task_id, "--json"]).await.json(0);
    let trail = trail["items"].as_array().unwrap();
    assert!(trail.iter().all(|row| row["verb"] == "requeue" && row["acted_by"] == "ada"), "{trail:?}");
    assert!(trail.iter().any(|row| row["reason"] == "mended" && row["arguments"]["filter"]["errcode"] == "M_BAD_JSON"));
    let affected: i64 = trail.iter().filter_map(|row| row["affected"].as_i64()).sum();
    assert_eq!(affected, 3, "{trail:?}");
    let tasks = scene.outboxctl(&["tasks"]).await;
    assert!(tasks.text(0).contains(task_id) && tasks.out.contains("3 of 3"), "{}", tasks.out);
    let shown = scene.outboxctl(&["tasks", task_id, "--json"]).await.json(0);
    assert_eq!(shown, task);
    assert_eq!(
        keys(&task),
        "arguments as_of conversation_id counts created_at created_by done ended_at ended_by error expected findings \
         kind rate reason refused status task_id"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_finds_nothing_or_was_not_looked_at_before_brings_nothing_back() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    scene.dead(&fake, &conversation, "dead").await;
    assert!(scene.outboxctl(&OF_CODE).await.complaint(2).contains("--dry-run"));
    let nothing = scene.outboxctl(&["requeue", "--errcode", "M_UNHEARD_OF", "--dry-run", "--json"]).await.json(1);
    assert_eq!(nothing["back"], 0);
    assert_eq!(keys(&nothing), "along as_of back conversations first lanes_waiting refused");
    assert!(scene.requeued(&OF_CODE, "nonsense", &[]).await.complaint(2).contains("as-of"));
    assert_eq!(scene.database.count("select count(*) from operator_tasks").await, 0);
    assert_eq!(scene.database.count("select count(*) from audit_log").await, 0);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 1);
    let (all, _) = scene.looked(&["requeue", "--all"]).await;
    assert_eq!(all["back"], 1);
}

/// `outboxctl` as a requeue of what [`OF_CODE`] chooses, as of a dry run.
fn requeueing(scene: &Scene, as_of: &str) -> Command {
    let mut command = Command::new(program_path("outboxctl"));
    command.args(OF_CODE).args(["--as-of", as_of]).env_clear();
    command.env("DATABASE_URL", &scene.database.url).env("USER", "ada");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Ctrl-C in a terminal is a signal to the command.
fn interrupt(child: &Child) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::INT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_that_is_interrupted_while_it_counts_has_begun_nothing() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    scene.dead(&fake, &conversation, "dead").await;
    worker.kill();
    let (_, as_of) = scene.looked(&OF_CODE).await;
    // Somebody keeps everybody from the dead letters, so that the count does not end before the signal comes.
    let mut stranger = scene.database.pool.begin().await.unwrap();
    sqlx::query("lock table dead_letters in access exclusive mode").execute(&mut *stranger).await.unwrap();
    let mut child = requeueing(&scene, &as_of).spawn().unwrap();
    eventually("it waits for the dead letters", async || {
        let waits = "select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock' and query like '%dead_letters%'";
        (scene.database.count(waits).await == 1).then_some(())
    })
    .await;
    interrupt(&child);
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "it ends at once, as any command does");
    stranger.rollback().await.unwrap();
    // Whatever its connection may still have done has ended.
    eventually("its connection is gone", async || {
        let there = "select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'outboxctl'";
        (scene.database.count(there).await == 0).then_some(())
    })
    .await;
    assert_eq!(scene.database.count("select count(*) from operator_tasks").await, 0);
    assert_eq!(scene.database.count("select count(*) from audit_log").await, 0);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_that_is_interrupted_goes_on_and_says_so() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    for n in 0..3 {
        scene.dead(&fake, &conversation, &format!("dead {n}")).await;
    }
    worker.kill();
    let (_, as_of) = scene.looked(&OF_CODE).await;
    // Somebody has the conversation, so that no step is taken before the signal comes.
    let mut stranger = scene.database.pool.begin().await.unwrap();
    sqlx::query("select 1 from conversations for no key update").execute(&mut *stranger).await.unwrap();
    let mut child = requeueing(&scene, &as_of).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let (child, said) = tokio::task::spawn_blocking(move || {
        let first = said.next().unwrap().unwrap();
        assert!(first.contains("3 operations to bring back"), "{first}");
        interrupt(&child);
        let rest: Vec<String> = said.map(|line| line.unwrap()).collect();
        (child.wait().unwrap(), rest.join("\n"))
    })
    .await
    .unwrap();
    assert_eq!(child.code(), Some(1), "{said}");
    assert!(said.contains("The task goes on") && said.contains("outboxctl tasks --cancel"), "{said}");
    assert_eq!(scene.database.count("select count(*) from operator_tasks where status = 'running'").await, 1);
    stranger.rollback().await.unwrap();
    let _worker = scene.worker().await;
    eventually("a worker ends the task", async || {
        let ended = "select count(*) from operator_tasks where status = 'done' and done = 3";
        (scene.database.count(ended).await == 1).then_some(())
    })
    .await;
    scene.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_begun_for_the_workers_and_ended_by_an_operator_before_they_do_it() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    scene.dead(&fake, &conversation, "dead").await;
    worker.kill();
    let (_, as_of) = scene.looked(&OF_CODE).await;
    let begun = scene.requeued(&OF_CODE, &as_of, &["--detach", "--json"]).await.json(0);
    assert_eq!((&begun["status"], &begun["done"]), (&json!("running"), &json!(0)));
    let task_id = begun["task_id"].as_str().unwrap();
    let said = scene.outboxctl(&["tasks", "--cancel", task_id, "--reason", "wrong filter"]).await;
    assert!(said.text(0).contains("cancelled by ada; 0 of 1 operation done"), "{}", said.out);
    assert!(scene.outboxctl(&["tasks", "--cancel", task_id]).await.complaint(1).contains("it is cancelled"));
    let nobody = uuid::Uuid::now_v7().to_string();
    assert!(scene.outboxctl(&["tasks", &nobody]).await.complaint(1).contains("there is no task"));
    assert!(scene.outboxctl(&["tasks", "--cancel", &nobody]).await.complaint(1).contains("there is no task"));
    let trail = scene.trail().await;
    let rows: Vec<_> = trail.iter().map(|row| (row["verb"].as_str().unwrap(), row["reason"].as_str())).collect();
    assert_eq!(rows, [("cancel", Some("wrong filter")), ("requeue", None)]);
    assert!(trail.iter().all(|row| row["task_id"] == task_id), "{trail:?}");
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 1);
}
