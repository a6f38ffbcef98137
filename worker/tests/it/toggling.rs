//! `MATRIX_ENABLED`, switched off and on with work in hand.

use serde_json::{Value, json};
use shared::testing::{eventually, homeserver::FakeHomeserver, nova::NovaUser};

use crate::scene::{Home, Scene, id, room_of, shape};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_while_disabled_is_never_sent_and_the_room_comes_with_the_first_need() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let disabled = scene.api_with(&[("MATRIX_ENABLED", "false")]).await;
    let _worker = scene.worker().await;
    let quiet = scene.ada.via(&disabled);
    let conversation = quiet.create_conversation(&[scene.grace.user_id]).await;
    let bygone = fake.on_any().body_contains("bygone").always();
    let mut old = Vec::new();
    for n in 0..3 {
        let posted = quiet.post(&conversation, &format!("bygone {n}")).await.expect(201);
        assert_eq!(posted["matrix"], json!({"delivery": "disabled", "event_id": null, "room_id": null}));
        old.push(id(&posted));
    }
    // Edited and deleted in the database only, disabled or not.
    quiet.edit(&old[0], "bygone rewritten").await.expect(200);
    assert_eq!(quiet.delete(&old[1]).await.expect(200)["deletion"], "cancelled");
    scene.ada.edit(&old[2], "bygone corrected").await.expect(200);
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0);

    // Enabled: the existing conversation gets its room with its next message.
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    let next = scene.ada.delivered(&next).await;
    assert_eq!(shape(&fake.timeline(room_of(&next))), ["next"]);
    assert_eq!(bygone.hits(), 0);
    let why = scene.ada.get(&format!("/messages/{}/delivery", old[0])).await;
    assert_eq!((&why["state"], &why["waiting_for"], &why["attempts"]), (&json!("disabled"), &Value::Null, &json!([])));
    assert_eq!(scene.ada.get(&format!("/messages/{}", old[0])).await["plaintext"], "bygone rewritten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_worker_claims_nothing_and_an_enabled_one_goes_on_where_it_was() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "words one").await.expect(201));
    let mut idle = scene.worker_with(&[("MATRIX_ENABLED", "false")]).await;
    eventually("the worker says so", || async {
        idle.log().iter().any(|line| line.contains("nothing is claimed")).then_some(())
    })
    .await;
    // Nothing is handed out, so all can still be changed in place.
    for n in 0..20 {
        scene.ada.edit(&message, &format!("words {n}")).await.expect(200);
        assert_eq!(scene.ada.get(&format!("/messages/{message}")).await["matrix"]["delivery"], "pending");
    }
    assert_eq!(scene.database.count("select count(*) from lanes where epoch > 0").await, 0);
    let before = fake.requests().len();
    idle.signal(rustix::process::Signal::TERM);
    assert!(idle.ended().await.success());
    assert_eq!((fake.requests().len(), fake.sends()), (before, 0));
    let _worker = scene.worker().await;
    let message = scene.ada.delivered(&message).await;
    assert_eq!(shape(&fake.timeline(room_of(&message))), ["words 19"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_disabled_edits_and_deletes_of_what_is_on_matrix_still_go_and_nothing_new_does() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let mut worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let mut ids = Vec::new();
    for text in ["to be edited", "to be deleted"] {
        ids.push(id(&scene.ada.post(&conversation, text).await.expect(201)));
    }
    scene.ada.delivered(&ids[1]).await;
    worker.kill();
    // Waiting when Matrix is disabled: it was promised to Matrix and goes, with what is done to it meanwhile.
    let waiting = id(&scene.ada.post(&conversation, "waiting").await.expect(201));
    let disabled = scene.api_with(&[("MATRIX_ENABLED", "false")]).await;
    let ada: NovaUser = scene.ada.via(&disabled);
    let only_here = id(&ada.post(&conversation, "only here").await.expect(201));
    ada.edit(&waiting, "waited").await.expect(200);
    ada.edit(&ids[0], "edited").await.expect(200);
    assert_eq!(ada.delete(&ids[1]).await.expect(200)["deletion"], "redacting");
    let _worker = scene.worker().await;
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "to be edited", "gone", "waited", "1 := edited", "x 2"],);
    assert_eq!(ada.get(&format!("/messages/{only_here}")).await["matrix"]["delivery"], "disabled");
}
