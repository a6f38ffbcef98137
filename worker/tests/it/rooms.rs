//! Rooms that are half made, left, or replaced: each ends as one room with everyone in it, or its lane is held and says why.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use shared::{
    chat,
    ids::RoomId,
    outbox,
    testing::{
        eventually,
        homeserver::FakeHomeserver,
        matrix_client::{MatrixClient, MatrixEvent},
        nova::NovaUser,
    },
};

use crate::scene::{Home, Scene, id, room_of, shape};

/// What the creation of a room consists of at most, on the homeserver.
const EVENTS_OF_A_CREATION: usize = 10;

/// The reason for which the lane of a conversation is held, once it is.
async fn held(scene: &Scene, conversation: &str) -> String {
    eventually("the lane is held", || async {
        let hold: Option<String> = sqlx::query_scalar("select hold from lanes where conversation_id = $1::uuid")
            .bind(conversation)
            .fetch_one(&scene.database.pool)
            .await
            .unwrap();
        hold
    })
    .await
}

async fn resume(scene: &Scene, conversation: &str) {
    let mut tx = scene.database.pool.begin().await.unwrap();
    let id: uuid::Uuid = conversation.parse().unwrap();
    assert!(outbox::resume(&mut tx, id.into(), id.into()).await.unwrap());
    tx.commit().await.unwrap();
}

async fn read(reader: &MatrixClient, room: &str) -> Vec<String> {
    shape(&reader.timeline(room).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_stops_at_any_of_its_events_ends_as_one_room_with_everyone() {
    for (stops_after, answer) in (0..EVENTS_OF_A_CREATION).flat_map(|n| [(n, 500), (n, 429)]) {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let scene = Scene::new(&home).await;
        let creation = fake.on_create_room().stop_after(stops_after).fail(answer);
        let creation = if answer == 429 { creation.retry_after(Duration::from_millis(20)) } else { creation };
        creation.once();
        let _worker = scene.worker_with(&[("OUTBOX_BACKOFF", "1ms")]).await;
        let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
        let message = id(&scene.ada.post(&conversation, "words").await.expect(201));
        let message = scene.ada.delivered(&message).await;
        let room = room_of(&message);
        let case = format!("{answer} after {stops_after} events");
        let alias = format!("#nova-conv-{conversation}:{}", home.address.server_name);
        assert_eq!(fake.alias(&alias).as_deref(), Some(room), "{case}");
        let marker = fake.room_state(room, "com.nova.conversation", "").unwrap();
        assert_eq!(marker["conversation_id"], json!(conversation), "{case}");
        let visibility = fake.room_state(room, "m.room.history_visibility", "").unwrap();
        assert_eq!(visibility["history_visibility"], "invited", "{case}");
        for user in [&scene.ada, &scene.grace] {
            let member = format!("@nova-{}:{}", user.user_id.as_uuid().simple(), home.address.server_name);
            assert_eq!(fake.membership(room, &member).as_deref(), Some("invite"), "{case}");
        }
        assert_eq!(shape(&fake.timeline(room)), ["words"], "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_removed_before_the_room_was_found_is_not_left_in_it() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    // A creation whose answer was lost.
    let grace = format!("@nova-{}:{}", scene.grace.user_id.as_uuid().simple(), home.address.server_name);
    let body = json!({"room_alias_name": format!("nova-conv-{conversation}"), "invite": [grace]});
    let room = home.account.create_room(&body).await.unwrap();
    let path = format!("/conversations/{conversation}/members/{}", scene.grace.user_id);
    assert_eq!(scene.ada.call("DELETE", &path, None).await.status, 204);
    let _worker = scene.worker().await;
    let message = id(&scene.ada.post(&conversation, "not for her").await.expect(201));
    assert_eq!(room_of(&scene.ada.delivered(&message).await), room);
    assert_eq!(fake.membership(&room, &grace).as_deref(), Some("leave"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_whose_room_is_not_open_to_us_is_waited_for_and_then_holds_its_lane() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let other = MatrixClient::register_random(&home.address).await.unwrap();
    let alias = format!("nova-conv-{conversation}");
    let room = other.create_room(&json!({"room_alias_name": alias, "preset": "private_chat"})).await.unwrap();
    let _worker = scene.worker_with(&[("OUTBOX_BACKOFF", "1ms")]).await;
    scene.ada.post(&conversation, "words").await.expect(201);
    let why = held(&scene, &conversation).await;
    assert!(why.contains("not open to us"), "{why}");
    // Its creation might only have been slow: it was asked again and again before.
    assert!(scene.database.count("select count(*) from attempts where outcome = 'refused'").await >= 8);
    assert_eq!(shape(&fake.timeline(&room)), Vec::<String>::new());
}

/// The account leaves a room, as it would if it were removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_we_left_holds_its_lane_until_we_are_invited_and_then_all_arrives_in_order() {
    let home = Home::synapse().await;
    let scene = Scene::new(&home).await;
    let grace = home.member(&scene.grace).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    grace.join(&room).await.unwrap();
    let power = json!({"users": {grace.user_id(): 100}});
    home.account.put_state(&room, "m.room.power_levels", "", &power).await.unwrap();
    home.account.leave(&room).await.unwrap();
    let first = id(&scene.ada.post(&conversation, "first").await.expect(201));
    let second = id(&scene.ada.post(&conversation, "second").await.expect(201));
    let why = held(&scene, &conversation).await;
    assert!(why.contains("not in the room any more") && why.contains("resume"), "{why}");
    assert_eq!(read(&grace, &room).await, ["begun"]);
    grace.invite(&room, home.account.user_id()).await.unwrap();
    resume(&scene, &conversation).await;
    scene.ada.delivered(&first).await;
    scene.ada.delivered(&second).await;
    assert_eq!(read(&grace, &room).await, ["begun", "first", "second"]);

    // Invited already: it joins by itself, and nobody has to act.
    home.account.leave(&room).await.unwrap();
    grace.invite(&room, home.account.user_id()).await.unwrap();
    let third = id(&scene.ada.post(&conversation, "third").await.expect(201));
    scene.ada.delivered(&third).await;
    assert_eq!(read(&grace, &room).await, ["begun", "first", "second", "third"]);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_was_replaced_is_followed_and_what_stands_in_the_old_one_is_redacted_there() {
    let home = Home::synapse().await;
    let scene = Scene::new(&home).await;
    let grace = home.member(&scene.grace).await;
    let worker = scene.worker().await;
    let (conversation, old) = scene.begun().await;
    grace.join(&old).await.unwrap();
    let doomed = id(&scene.ada.post(&conversation, "to be deleted").await.expect(201));
    scene.ada.delivered(&doomed).await;
    let body = json!({"new_version": "12"});
    let upgraded = home.account.call(Method::POST, &["rooms", &old, "upgrade"], &[], Some(&body)).await.unwrap();
    let new = upgraded["replacement_room"].as_str().unwrap().to_owned();
    // We still may write to the old room, as its creator; nobody would read it. A worker looks now and then.
    drop(worker);
    let _worker = scene.worker().await;
    let message = id(&scene.ada.post(&conversation, "in the new room").await.expect(201));
    let message = scene.ada.delivered(&message).await;
    assert_eq!(room_of(&message), new);
    let state: Vec<MatrixEvent> = home.account.all_state(&new).await.unwrap();
    let content = |kind: &str, key: &str| {
        let event = state.iter().find(|event| event.event_type == kind && event.state_key.as_deref() == Some(key));
        event.map_or(Value::Null, |event| event.content.clone())
    };
    assert_eq!(content("com.nova.conversation", "")["conversation_id"], json!(conversation));
    assert_eq!(content("m.room.member", grace.user_id())["membership"], "invite");
    grace.join(&new).await.unwrap();
    assert_eq!(read(&grace, &new).await, ["in the new room"]);
    assert!(!read(&grace, &old).await.contains(&"in the new room".to_owned()));

    // Where it stands, not where the conversation is now.
    assert_eq!(scene.ada.delete(&doomed).await.expect(200)["deletion"], "redacting");
    scene.drained().await;
    assert_eq!(read(&grace, &old).await, ["begun", "gone", "x 1"]);

    // Where we are not any more, an edit is dead and says why, and a redaction holds its lane and says why.
    let sent: Vec<String> =
        sqlx::query_scalar("select message_id::text from messages where deleted_at is null order by seq")
            .fetch_all(&scene.database.pool)
            .await
            .unwrap();
    home.account.leave(&old).await.unwrap();
    scene.ada.edit(&sent[0], "edited").await.expect(200);
    scene.drained().await;
    let hint: String =
        sqlx::query_scalar("select hint from dead_letters").fetch_one(&scene.database.pool).await.unwrap();
    assert!(hint.contains("was replaced"), "{hint}");
    scene.ada.delete(&sent[0]).await.expect(200);
    let why = held(&scene, &conversation).await;
    assert!(why.contains("redact") && why.contains("M_FORBIDDEN") && why.contains("was replaced"), "{why}");
}

/// Grace may do whatever the account may, and is in the room.
async fn empowered(home: &Home, scene: &Scene, room: &str) -> MatrixClient {
    let grace = home.member(&scene.grace).await;
    grace.join(room).await.unwrap();
    let power = json!({"users": {grace.user_id(): 100}});
    home.account.put_state(room, "m.room.power_levels", "", &power).await.unwrap();
    grace
}

fn matrix_id(home: &Home, user: &NovaUser) -> String {
    format!("@nova-{}:{}", user.user_id.as_uuid().simple(), home.address.server_name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_message_brings_nobody_back_into_a_room_that_is_mended_for_it() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let (bob, carol) = (NovaUser::new(&scene.api), NovaUser::new(&scene.api));
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id, bob.user_id]).await;
    let _worker = scene.worker().await;
    let begun = id(&scene.ada.post(&conversation, "begun").await.expect(201));
    let room = room_of(&scene.ada.delivered(&begun).await).to_owned();
    fake.on_send().body_contains("too large").fail(413).once();
    let dead = id(&scene.ada.post(&conversation, "too large").await.expect(201));
    let member = |user: &NovaUser| format!("/conversations/{conversation}/members/{}", user.user_id);
    assert_eq!(scene.ada.call("DELETE", &member(&bob), None).await.status, 204);
    assert_eq!(scene.ada.call("PUT", &member(&carol), None).await.status, 200);
    scene.drained().await;
    let grace = empowered(&home, &scene, &room).await;
    home.account.leave(&room).await.unwrap();
    grace.invite(&room, home.account.user_id()).await.unwrap();
    let outbox_id: uuid::Uuid =
        sqlx::query_scalar("select outbox_id from dead_letters").fetch_one(&scene.database.pool).await.unwrap();
    let mut tx = scene.database.pool.begin().await.unwrap();
    let conversation_id: uuid::Uuid = conversation.parse().unwrap();
    outbox::requeue(&mut tx, conversation_id.into(), outbox_id.into()).await.unwrap();
    tx.commit().await.unwrap();
    scene.ada.delivered(&dead).await;
    assert_eq!(fake.membership(&room, &matrix_id(&home, &bob)).as_deref(), Some("leave"));
    assert_eq!(fake.membership(&room, &matrix_id(&home, &carol)).as_deref(), Some("invite"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_removed_and_invited_also_after_we_were_out_of_the_room() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let (bob, carol) = (NovaUser::new(&scene.api), NovaUser::new(&scene.api));
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id, bob.user_id]).await;
    let _worker = scene.worker().await;
    let begun = id(&scene.ada.post(&conversation, "begun").await.expect(201));
    let room = room_of(&scene.ada.delivered(&begun).await).to_owned();
    let grace = empowered(&home, &scene, &room).await;
    for (method, user, membership) in [("DELETE", &bob, "leave"), ("PUT", &carol, "invite")] {
        home.account.leave(&room).await.unwrap();
        grace.invite(&room, home.account.user_id()).await.unwrap();
        let path = format!("/conversations/{conversation}/members/{}", user.user_id);
        assert!(scene.ada.call(method, &path, None).await.status < 300);
        eventually(&format!("{method} is done or given up"), || async {
            let open = "select count(*) from lanes where open > 0 and hold is null";
            (scene.database.count(open).await == 0).then_some(())
        })
        .await;
        assert_eq!(fake.membership(&room, &matrix_id(&home, user)).as_deref(), Some(membership));
        assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_slow_to_open_is_waited_for_however_often_it_failed_before() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker_with(&[("OUTBOX_BACKOFF", "1ms")]).await;
    fake.on_alias().fail(502).html("<h1>Bad gateway</h1>").times(12);
    fake.on_create_room().stop_after(1).fail(500).once();
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    scene.ada.post(&conversation, "words").await.expect(201);
    eventually("it failed often, and the room is not open yet", || async {
        // Only between two attempts: else time would end each lease before its answer.
        if scene.database.count("select count(*) from lanes where owner is not null").await == 0 {
            scene.later().await;
        }
        let not_yet = "select count(*) from attempts where detail like '%not open to us%'";
        (scene.database.count(not_yet).await >= 1).then_some(())
    })
    .await;
    assert!(scene.database.count("select coalesce(max(failures), 0)::bigint from outbox").await >= 8);
    assert_eq!(scene.database.count("select count(*) from lanes where hold is not null").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_sent_before_its_room_was_replaced_is_redacted_where_it_stands() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker().await;
    let (conversation, old) = scene.begun().await;
    scene.drained().await;
    // It stands there, nobody knows, and it is dead.
    fake.on_send().body_contains("secret").drop_after_accept().once();
    let refused = fake.on_send().body_contains("secret").fail(413).once();
    let message = id(&scene.ada.post(&conversation, "secret").await.expect(201));
    refused.arrived().await;
    scene.drained().await;
    drop(worker);
    let new = home.account.create_room(&json!({"preset": "private_chat"})).await.unwrap();
    let conversation_id: uuid::Uuid = conversation.parse().unwrap();
    let mut conn = scene.database.pool.acquire().await.unwrap();
    let (old_id, new_id) = (RoomId::from(old.clone()), RoomId::from(new.clone()));
    assert!(chat::replace_room(&mut conn, conversation_id.into(), &old_id, &new_id).await.unwrap());
    drop(conn);
    assert_eq!(scene.ada.delete(&message).await.expect(200)["deletion"], "redacting");
    let _worker = scene.worker().await;
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&old)), ["begun", "gone", "x 1"]);
    assert_eq!(shape(&fake.timeline(&new)), Vec::<String>::new());
}
