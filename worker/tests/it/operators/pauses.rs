//! Pauses, holds, and their end.

use std::time::Duration;

use serde_json::json;
use shared::testing::{eventually, homeserver::FakeHomeserver, nova::Program};

use super::{keys, reads};
use crate::scene::{Home, Scene, id, shape};

#[tokio::test(flavor = "multi_thread")]
async fn a_snoozed_conversation_goes_on_by_itself_and_has_lost_no_attempt() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let (other, _) = scene.begun().await;
    let command = ["pause", "--conversation", &conversation, "--for", "1h", "--reason", "snooze", "--json"];
    let paused = scene.outboxctl(&command).await.json(0);
    assert_eq!((&paused["scope"], &paused["lanes"]), (&json!("conversation"), &json!(1)));
    let message = id(&scene.ada.post(&conversation, "during the pause").await.expect(201));
    let elsewhere = id(&scene.ada.post(&other, "elsewhere").await.expect(201));
    scene.ada.delivered(&elsewhere).await;
    let why = scene.ada.get(&format!("/messages/{message}/delivery")).await;
    assert_eq!((&why["state"], &why["due_at"]), (&json!("pending"), &paused["until"]));
    assert_eq!(why["waiting_for"], "the end of a pause of its lane (snooze)");
    let listed = scene.outboxctl(&["list", "--state", "paused"]).await;
    assert!(listed.text(0).contains("snooze"), "{listed:?}");
    assert_eq!(shape(&fake.timeline(&room)), ["begun"]);
    scene.database.advance(Duration::from_hours(1)).await;
    scene.ada.delivered(&message).await;
    let shown = scene.outboxctl(&["show", &message, "--json"]).await.json(0);
    let attempts: Vec<_> =
        shown["operations"][0]["attempts"].as_array().unwrap().iter().map(|attempt| &attempt["outcome"]).collect();
    assert_eq!(attempts, ["delivered"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_leaves_what_is_on_the_wire_alone() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.patient_worker().await;
    let (conversation, room) = scene.begun().await;
    let lane = format!("{conversation}/{conversation}");
    for end in [&["--for", "1h"] as &[&str], &[]] {
        let held = fake.on_send().hold().once();
        let message = id(&scene.ada.post(&conversation, "on the wire").await.expect(201));
        held.arrived().await;
        let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
        let command: Vec<&str> =
            ["pause", "--lane", &lane, "--reason", "why"].into_iter().chain(end.iter().copied()).collect();
        scene.outboxctl(&command).await.text(0);
        held.release();
        scene.ada.delivered(&message).await;
        scene.attempted("delivered", 2).await;
        assert_eq!(scene.ada.get(&format!("/messages/{next}")).await["matrix"]["delivery"], "pending");
        scene.outboxctl(&["resume", "--lane", &lane]).await.text(0);
        scene.ada.delivered(&next).await;
    }
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "on the wire", "next", "on the wire", "next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_of_every_scope_outlive_a_worker_and_resume_undoes_each() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let mut worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let (other, _) = scene.begun().await;
    let lane = format!("{conversation}/{conversation}");
    for (scope, gauge) in [
        (vec!["--all"], "outbox_paused{scope=\"all\"}"),
        (vec!["--class", "chat"], "outbox_paused{scope=\"chat\"}"),
        (vec!["--conversation", &conversation], "outbox_held_lanes"),
        (vec!["--lane", &lane, "--for", "24h"], "outbox_paused{scope=\"lane\"}"),
    ] {
        let command: Vec<&str> =
            ["pause", "--reason", "maintenance"].into_iter().chain(scope.iter().copied()).collect();
        scene.outboxctl(&command).await.text(0);
        let sent = fake.sends();
        let message = id(&scene.ada.post(&conversation, "later").await.expect(201));
        worker.kill();
        worker = scene.worker().await;
        reads_line(&worker, gauge).await;
        reads(&worker, "outbox_listening", 1.0).await;
        let sent = if gauge.contains("all") || gauge.contains("chat") {
            // It is woken by what is posted, and looks again at each poll.
            polled(&scene, 10).await;
            sent
        } else {
            let elsewhere = id(&scene.ada.post(&other, "elsewhere").await.expect(201));
            scene.ada.delivered(&elsewhere).await;
            sent + 1
        };
        assert_eq!(scene.ada.get(&format!("/messages/{message}")).await["matrix"]["delivery"], "pending");
        assert_eq!(fake.sends(), sent, "{scope:?}");
        let scope: Vec<&str> = scope.into_iter().filter(|word| !matches!(*word, "--for" | "24h")).collect();
        let command: Vec<&str> = ["resume", "--json"].into_iter().chain(scope).collect();
        let resumed = scene.outboxctl(&command).await.json(0);
        assert_eq!((&resumed["ended"], &resumed["lanes_going_on"]), (&json!(1), &json!(1)));
        scene.ada.delivered(&message).await;
        assert!(scene.outboxctl(&command).await.complaint(1).contains("nothing to resume"));
    }
}

/// Waits for as long as a worker takes for so many polls.
async fn polled(scene: &Scene, polls: u32) {
    let now = "select (extract(epoch from outbox_now()) * 1000)::bigint";
    let began = scene.database.count(now).await;
    eventually("time passes", || async {
        (scene.database.count(now).await > began + i64::from(polls) * 50).then_some(())
    })
    .await;
}

/// Waits until a gauge of these labels is 1.
async fn reads_line(worker: &Program, gauge: &str) {
    eventually(&format!("{gauge} is 1"), || async {
        let text = reqwest::get(format!("{}/metrics", worker.url())).await.ok()?.text().await.ok()?;
        text.lines().any(|line| line == format!("{gauge} 1")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_a_worker_held_for_its_room_is_found_and_resumed_by_the_same_verb() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let refused = fake.on_send().room(&room).fail(400).errcode("M_UNKNOWN").always();
    let message = id(&scene.ada.post(&conversation, "first").await.expect(201));
    scene.becomes(&message, "dead").await;
    refused.remove();
    // A redaction that is refused for good holds its lane.
    let refused = fake.on_redact().fail(400).errcode("M_UNKNOWN").always();
    let gone = id(&scene.ada.post(&conversation, "gone").await.expect(201));
    scene.ada.delivered(&gone).await;
    scene.ada.delete(&gone).await.expect(200);
    reads(&worker, "outbox_held_lanes", 1.0).await;
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    reads(&worker, "outbox_depth", 2.0).await;
    reads(&worker, "outbox_dead_letters", 1.0).await;
    let held = scene.outboxctl(&["list", "--state", "held", "--json"]).await.json(0);
    assert_eq!(held["items"][0]["conversation_id"], json!(conversation));
    assert_eq!(held["items"][0]["waiting"], 2);
    let reason = held["items"][0]["reason"].as_str().unwrap().to_owned();
    refused.remove();
    scene.outboxctl(&["resume", "--held", "--because", "another reason"]).await.complaint(1);
    let resumed = scene.outboxctl(&["resume", "--held", "--because", &reason, "--json"]).await.json(0);
    assert_eq!((&resumed["ended"], &resumed["lanes_going_on"]), (&json!(1), &json!(1)));
    scene.ada.delivered(&next).await;
    reads(&worker, "outbox_held_lanes", 0.0).await;
    reads(&worker, "outbox_depth", 0.0).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "gone", "x 1", "next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_held_lanes_are_resumed_in_batches_each_of_which_is_an_act() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    sqlx::raw_sql(
        "create temporary table stuck as select gen_random_uuid() as id from generate_series(1, 1200);
         insert into conversations select id, null, id, outbox_now(), 0 from stuck;
         insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, hold, epoch)
         select id, id, 'chat', 0, 0, 'a fault', 0 from stuck;",
    )
    .execute(&scene.database.pool)
    .await
    .unwrap();
    let resumed = scene.outboxctl(&["resume", "--held", "--reason", "mended", "--json"]).await.json(0);
    assert_eq!((&resumed["scope"], &resumed["ended"]), (&json!("held"), &json!(1200)));
    assert_eq!(keys(&resumed), "class conversation_id ended lane_id lanes_going_on locked scope still_paused");
    let trail: Vec<_> = scene.trail().await.iter().map(|row| row["affected"].clone()).collect();
    assert_eq!(trail, [200, 500, 500]);
    assert_eq!(scene.database.count("select count(*) from lanes where hold is not null").await, 0);
}

/// Lanes whose fault is not mended are held again by workers, faster than they are resumed here; one is locked.
#[tokio::test(flavor = "multi_thread")]
async fn resuming_all_held_lanes_is_one_pass_that_ends_and_waits_for_nobody() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    sqlx::raw_sql(
        "create temporary table stuck as select gen_random_uuid() as id from generate_series(1, 1200);
         insert into conversations select id, null, id, outbox_now(), 0 from stuck;
         insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, hold, epoch)
         select id, id, 'chat', 0, 0, 'a fault', 0 from stuck;
         create sequence resumed;
         create function hold_again() returns trigger language plpgsql as $$
         begin
             if nextval('resumed') > 2000 then raise exception 'without end'; end if;
             new.hold := 'a fault';
             return new;
         end $$;
         create trigger hold_again before update on lanes for each row when (new.hold is null)
         execute function hold_again();",
    )
    .execute(&scene.database.pool)
    .await
    .unwrap();
    let mut stranger = scene.database.pool.begin().await.unwrap();
    sqlx::query("select 1 from lanes order by conversation_id limit 1 for no key update")
        .execute(&mut *stranger)
        .await
        .unwrap();
    let said = scene.outboxctl(&["resume", "--held", "--json"]).await;
    let resumed = said.json(1);
    assert_eq!((&resumed["ended"], &resumed["locked"]), (&json!(1199), &json!(1)));
    assert!(said.err.contains("1 held lane locked just now") && said.err.contains("run it again"), "{}", said.err);
    let only_one = "update lanes set hold = 'another' where conversation_id = (select min(conversation_id::text)::uuid from lanes)";
    sqlx::query(only_one).execute(&mut *stranger).await.unwrap();
    stranger.commit().await.unwrap();
    let mut stranger = scene.database.pool.begin().await.unwrap();
    sqlx::query("select 1 from lanes where hold = 'another' for no key update").execute(&mut *stranger).await.unwrap();
    let said = scene.outboxctl(&["resume", "--held", "--because", "another"]).await;
    assert!(said.complaint(1).contains("1 held lane locked just now"), "{said:?}");
    stranger.rollback().await.unwrap();
}
