//! Tasks of operators and the heartbeat, in running workers.

use rustix::process::Signal;
use shared::{
    outbox::DeadFilter,
    tasks::{self, TaskStatus},
    testing::{eventually, homeserver::FakeHomeserver},
    workers,
};

use crate::scene::{Home, Scene, id, sends};

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_requeue_is_done_by_whichever_worker_and_arrives_in_order() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _workers = [scene.worker().await, scene.worker().await];
    let mut rooms = Vec::new();
    for _ in 0..3 {
        let (conversation, room) = scene.begun().await;
        for n in 1..=3 {
            fake.on_send().fail(400).errcode("M_BAD_JSON").once();
            let message = id(&scene.ada.post(&conversation, &format!("dead {n}")).await.expect(201));
            eventually("it is dead", || async {
                let read = scene.ada.get(&format!("/messages/{message}")).await;
                (read["matrix"]["delivery"] == "dead").then_some(())
            })
            .await;
        }
        rooms.push(room);
    }
    let before = sends(&fake).len();
    let filter = DeadFilter { errcode: Some("M_BAD_JSON".to_owned()), ..DeadFilter::default() };
    let mut tx = scene.database.pool.begin().await.unwrap();
    let preview = tasks::preview_requeue(&mut tx, &filter, None).await.unwrap();
    assert_eq!((preview.back, preview.conversations), (9, 3));
    let task = tasks::start_requeue(&mut tx, "ada", &filter, &preview.as_of, None, None).await.unwrap();
    tx.commit().await.unwrap();
    let task = eventually("the task is through", || async {
        let mut conn = scene.database.pool.acquire().await.unwrap();
        tasks::task(&mut conn, task.task_id).await.unwrap().filter(|task| task.status != TaskStatus::Running)
    })
    .await;
    assert_eq!((task.status, task.done), (TaskStatus::Done, 9));
    scene.drained().await;
    let arrived = sends(&fake).split_off(before);
    let places: Vec<(String, i64)> = sqlx::query_as(
        "select s.outbox_id::text, m.seq from sent_events s join messages m on m.send_outbox_id = s.outbox_id",
    )
    .fetch_all(&scene.database.pool)
    .await
    .unwrap();
    assert_eq!(arrived.len(), 9);
    for room in rooms {
        let of_room = arrived.iter().filter(|send| send.room.as_ref() == Some(&room));
        let seqs: Vec<i64> =
            of_room.filter_map(|send| Some(places.iter().find(|(id, _)| Some(id) == send.txn.as_ref())?.1)).collect();
        assert!(seqs.len() == 3 && seqs.is_sorted(), "{seqs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_of_itself_while_it_works() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    scene.begun().await;
    let seen = eventually("the worker tells what it did", || async {
        let mut conn = scene.database.pool.acquire().await.unwrap();
        let seen = workers::seen(&mut conn).await.unwrap();
        seen.into_iter().find(|seen| seen.delivered > 0 && seen.delivered_per_minute > 0.0)
    })
    .await;
    assert_eq!((seen.circuit.as_str(), seen.token_accepted), ("closed", true));
    assert!(seen.slots > 0 && !seen.host.is_empty() && !seen.version.is_empty());
    worker.signal(Signal::TERM);
    assert!(worker.ended().await.success());
    let mut conn = scene.database.pool.acquire().await.unwrap();
    assert!(workers::seen(&mut conn).await.unwrap().is_empty(), "it said that it ends");
}
