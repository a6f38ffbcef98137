//! Dead letters back to their places.

use serde_json::json;
use shared::testing::homeserver::FakeHomeserver;

use super::{CANARY, everything_stored, reads};
use crate::scene::{Home, Scene, id, room_of, sends, shape};

#[tokio::test(flavor = "multi_thread")]
async fn three_dead_letters_with_ten_waiting_behind_are_the_first_three_in_the_room() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    for n in 1..=3 {
        scene.dead(&fake, &conversation, &format!("dead {n}")).await;
    }
    let between = id(&scene.ada.post(&conversation, "delivered meanwhile").await.expect(201));
    scene.ada.delivered(&between).await;
    scene.outboxctl(&["pause", "--conversation", &conversation, "--reason", "to look"]).await.text(0);
    for n in 1..=10 {
        scene.ada.post(&conversation, &format!("waiting {n}")).await.expect(201);
    }
    let preview = scene.outboxctl(&["requeue", "--conversation", &conversation, "--dry-run", "--json"]).await.json(0);
    assert_eq!((&preview["dry_run"], &preview["requeued"]), (&json!(true), &json!(3)));
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 3, "a preview changes nothing");
    let said = scene.outboxctl(&["requeue", "--conversation", &conversation, "--dry-run"]).await;
    for words in ["3 come back", "10 waiting after them", "1 later message delivered meanwhile", "(to look)"] {
        assert!(said.text(0).contains(words), "{words} in {}", said.out);
    }
    let done = scene.outboxctl(&["requeue", "--conversation", &conversation, "--json"]).await.json(0);
    assert_eq!(done["conversations"], preview["conversations"], "the act does what the preview said");
    let resumed = scene.outboxctl(&["resume", "--conversation", &conversation]).await;
    assert!(resumed.text(0).contains("resumed; 1 lane with something to send"), "{}", resumed.out);
    scene.drained().await;
    let dead = (1..=3).map(|n| format!("dead {n}"));
    let waiting = (1..=10).map(|n| format!("waiting {n}"));
    let expected: Vec<_> =
        ["begun", "delivered meanwhile"].map(str::to_owned).into_iter().chain(dead).chain(waiting).collect();
    assert_eq!(shape(&fake.timeline(&room)), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_message_takes_its_edits_along_and_ends_with_its_newest_text() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.patient_worker().await;
    let (conversation, room) = scene.begun().await;
    let refused = fake.on_send().hold().fail(413).once();
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    refused.arrived().await;
    scene.ada.edit(&message, "words two").await.expect(200);
    refused.release();
    scene.becomes(&message, "dead").await;
    let letters = scene.outboxctl(&["list", "--conversation", &conversation, "--json"]).await.json(0);
    let causes: Vec<_> = letters["items"].as_array().unwrap().iter().map(|letter| &letter["cause"]).collect();
    assert_eq!(causes.len(), 2);
    let edit = letters["items"].as_array().unwrap().iter().find(|letter| letter["kind"] == "edit").unwrap();
    assert_eq!(edit["cause"], "parent_dead");
    let alone = scene.outboxctl(&["requeue", edit["outbox_id"].as_str().unwrap(), "--json"]).await.json(1);
    assert_eq!(alone["refused"][0]["reason"], "parent_dead");
    // Where its edits can no longer be changed in place they follow it.
    let done = scene.outboxctl(&["requeue", &message, "--json"]).await.json(0);
    assert_eq!(done["requeued"], 2);
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words one", "1 := words two"]);
    let read = scene.ada.get(&format!("/messages/{message}")).await;
    assert_eq!((&read["plaintext"], &read["matrix"]["delivery"]), (&json!("words two"), &json!("delivered")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_never_requeued_and_its_text_is_nowhere() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let message = scene.dead(&fake, &conversation, CANARY).await;
    let listed = scene.outboxctl(&["list", "--json"]).await;
    let letter = listed.json(0)["items"][0]["outbox_id"].as_str().unwrap().to_owned();
    let shown = scene.outboxctl(&["show", &message]).await;
    let shown_json = scene.outboxctl(&["show", &message, "--json"]).await;
    let seen = fake.on_any().body_contains(CANARY).always();
    scene.ada.delete(&message).await.expect(200);
    let by_message = scene.outboxctl(&["requeue", &message, "--json"]).await;
    assert_eq!(by_message.json(1)["refused"][0]["reason"], "deleted");
    let by_letter = scene.outboxctl(&["requeue", &letter]).await;
    assert!(by_letter.text(1).contains("0 operations came back"), "{by_letter:?}");
    let all = scene.outboxctl(&["requeue", "--conversation", &conversation, "--json"]).await;
    assert_eq!(all.json(1)["requeued"], 0);
    assert!(scene.trail().await.is_empty(), "nothing was done");
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    scene.ada.delivered(&next).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "next"]);
    assert_eq!(seen.hits(), 0);
    for said in [&listed, &shown, &shown_json, &by_message, &by_letter, &all] {
        assert!(!said.out.contains(CANARY) && !said.err.contains(CANARY), "{said:?}");
    }
    for (place, text) in [
        ("the tables", everything_stored(&scene).await),
        ("the worker's log", worker.log().join("\n")),
        ("the API's log", scene.api.log().join("\n")),
    ] {
        assert!(!text.contains(CANARY), "in {place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_and_a_resume_wake_the_worker_and_do_not_wait_for_its_poll() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker_with(&[("OUTBOX_POLL", "10m")]).await;
    reads(&worker, "outbox_listening", 1.0).await;
    let (conversation, _) = scene.begun().await;
    let message = scene.dead(&fake, &conversation, "dead").await;
    scene.outboxctl(&["requeue", &message]).await.text(0);
    scene.ada.delivered(&message).await;
    scene.outboxctl(&["pause", "--all", "--reason", "why"]).await.text(0);
    let paused = id(&scene.ada.post(&conversation, "paused").await.expect(201));
    scene.outboxctl(&["resume", "--all"]).await.text(0);
    scene.ada.delivered(&paused).await;
}

/// Two conversations are two acts; when the second fails, the first is done and told.
#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_that_fails_halfway_tells_what_came_back() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    let (first, _) = scene.begun().await;
    let (second, _) = scene.begun().await;
    let (one, two) = (scene.dead(&fake, &first, "one").await, scene.dead(&fake, &second, "two").await);
    worker.kill();
    let mut tx = scene.database.pool.begin().await.unwrap();
    let later = first.clone().max(second.clone());
    sqlx::query("select 1 from conversations where conversation_id::text = $1 for no key update")
        .bind(&later)
        .execute(&mut *tx)
        .await
        .unwrap();
    let said = scene.outboxctl(&["requeue", &one, &two, "--json"]).await;
    assert_eq!(said.json(1)["requeued"], 1);
    assert!(said.err.contains("lock timeout"), "{said:?}");
    assert_eq!(scene.trail().await.len(), 1);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_homeserver_can_take_by_now_leaves_once_and_under_its_old_transaction() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let message = scene.dead(&fake, &conversation, "words").await;
    let before = sends(&fake).len();
    let said = scene.outboxctl(&["requeue", &message, &message]).await;
    assert!(said.text(0).contains("1 operation came back"), "{}", said.out);
    let room = room_of(&scene.ada.delivered(&message).await).to_owned();
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words"]);
    let sends = sends(&fake);
    assert_eq!(sends.len(), before + 1);
    assert_eq!(sends[before].txn, sends[before - 1].txn);
}
