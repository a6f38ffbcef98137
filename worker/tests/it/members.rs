//! Members that come and go, as the homeserver sees them.

use std::time::Duration;

use serde_json::{Value, json};
use shared::{
    ids::{ConversationId, LaneId},
    outbox,
    testing::{
        eventually,
        homeserver::{FakeHomeserver, Kind},
        ledger::matrix_user,
        matrix_client::{MatrixClient, MatrixEvent},
        nova::NovaUser,
    },
};

use crate::scene::{Home, Scene, id, room_of, shape};

async fn change(scene: &Scene, method: &str, conversation: &str, user: &NovaUser) -> u16 {
    scene.ada.call(method, &format!("/conversations/{conversation}/members/{}", user.user_id), None).await.status
}

/// What became of a user's membership of a room, in order.
fn stays(events: &[MatrixEvent], user: &NovaUser, server_name: &str) -> Vec<String> {
    let user = matrix_user(user.user_id.as_uuid(), server_name);
    events
        .iter()
        .filter(|event| event.event_type == "m.room.member" && event.state_key.as_deref() == Some(&user))
        .map(|event| event.content["membership"].as_str().unwrap().to_owned())
        .collect()
}

/// The texts that somebody reads in a room.
async fn read(reader: &MatrixClient, room: &str) -> Vec<String> {
    shape(&reader.timeline(room).await.unwrap())
}

/// Added after the first words, joined, removed, added again.
async fn a_later_member_comes_and_goes(home: &Home) {
    let scene = Scene::new(home).await;
    let _worker = scene.worker().await;
    let alan = NovaUser::new(&scene.api);
    let account = home.member(&alan).await;
    let server_name = &home.address.server_name;
    let (conversation, room) = scene.begun().await;

    assert_eq!(change(&scene, "PUT", &conversation, &alan).await, 200);
    let second = id(&alan.post(&conversation, "second").await.expect(201));
    scene.ada.delivered(&second).await;
    // The invitation is an operation of the lane: before what was said after it.
    let timeline = home.account.timeline(&room).await.unwrap();
    let place = |wanted: &dyn Fn(&MatrixEvent) -> bool| timeline.iter().position(wanted).unwrap();
    let member = matrix_user(alan.user_id.as_uuid(), server_name);
    let invited = place(&|event| event.state_key.as_deref() == Some(&member));
    assert!(place(&|event| event.body() == Some("begun")) < invited);
    assert!(invited < place(&|event| event.body() == Some("second")));
    account.join(&room).await.unwrap();
    // He reads from the invitation on.
    assert_eq!(read(&account, &room).await, ["second"]);

    assert_eq!(change(&scene, "DELETE", &conversation, &alan).await, 204);
    let third = id(&scene.ada.post(&conversation, "third").await.expect(201));
    scene.ada.delivered(&third).await;
    let refused = alan.post(&conversation, "let me in").await;
    assert_eq!((refused.status, refused.code()), (403, "not_a_member"));
    assert_eq!(change(&scene, "DELETE", &conversation, &alan).await, 404);

    assert_eq!(change(&scene, "PUT", &conversation, &alan).await, 200);
    scene.drained().await;
    account.join(&room).await.unwrap();
    let fourth = id(&alan.post(&conversation, "fourth").await.expect(201));
    scene.ada.delivered(&fourth).await;
    let timeline = home.account.timeline(&room).await.unwrap();
    assert_eq!(stays(&timeline, &alan, server_name), ["invite", "join", "leave", "invite", "join"]);
    let removal = timeline.iter().find(|event| event.content["membership"] == "leave").unwrap();
    assert_eq!(removal.sender, home.account.user_id());
    // What was said while he was away he does not read.
    let words = read(&account, &room).await;
    assert!(words.contains(&"fourth".to_owned()) && !words.contains(&"third".to_owned()), "{words:?}");
    assert_eq!(scene.database.count("select count(*) from attempts where outcome = 'done'").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_member_reads_from_the_invitation_on_until_the_removal_on_the_fake_homeserver() {
    let fake = FakeHomeserver::start().await;
    a_later_member_comes_and_goes(&Home::of(&fake).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_member_reads_from_the_invitation_on_until_the_removal_on_synapse() {
    a_later_member_comes_and_goes(&Home::synapse().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_the_room_already_is_not_invited_again() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let alan = NovaUser::new(&scene.api);
    let account = home.member(&alan).await;
    let (conversation, room) = scene.begun().await;
    home.account.invite(&room, account.user_id()).await.unwrap();
    account.join(&room).await.unwrap();
    let invitations = fake.count(Kind::Invite);
    assert_eq!(change(&scene, "PUT", &conversation, &alan).await, 200);
    scene.drained().await;
    assert_eq!(stays(&fake.timeline(&room), &alan, &home.address.server_name), ["invite", "join"]);
    assert_eq!(fake.count(Kind::Invite), invitations);
    // A second addition is none.
    assert_eq!(change(&scene, "PUT", &conversation, &alan).await, 200);
    assert_eq!(scene.database.count("select count(*) from attempts where outcome = 'done'").await, 1);
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_or_removal_that_was_not_answered_is_not_done_twice() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let alan = NovaUser::new(&scene.api);
    let (conversation, room) = scene.begun().await;
    let faults = [fake.on_invite().drop_after_accept().once(), fake.on_kick().drop_after_accept().once()];
    let invitations = fake.count(Kind::Invite);
    assert_eq!(change(&scene, "PUT", &conversation, &alan).await, 200);
    scene.drained().await;
    assert_eq!(change(&scene, "DELETE", &conversation, &alan).await, 204);
    scene.drained().await;
    assert_eq!(stays(&fake.timeline(&room), &alan, &home.address.server_name), ["invite", "leave"]);
    assert_eq!(faults.map(|fault| fault.hits()), [1, 1]);
    assert_eq!((fake.count(Kind::Invite) - invitations, fake.count(Kind::Kick)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_that_the_homeserver_will_not_have_is_dead_and_shown_and_the_lane_goes_on() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let alan = NovaUser::new(&scene.api);
    let (conversation, room) = scene.begun().await;
    home.account.ban(&room, &matrix_user(alan.user_id.as_uuid(), &home.address.server_name)).await.unwrap();
    assert_eq!(change(&scene, "PUT", &conversation, &alan).await, 200);
    let next = id(&scene.ada.post(&conversation, "next").await.expect(201));
    scene.ada.delivered(&next).await;
    let shown = scene.ada.get(&format!("/conversations/{conversation}")).await;
    assert_eq!(shown["matrix"]["not_invited"], json!([alan.user_id]));
    assert_eq!(shown["matrix"]["room_id"], json!(room));
    assert_eq!(scene.database.count("select count(*) from dead_letters where kind = 'invite'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_refused_for_good_holds_its_lane_and_no_other() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let (other, _) = scene.begun().await;
    fake.on_kick().fail(403).always();
    let grace = home.member(&scene.grace).await;
    grace.join(&room).await.unwrap();
    assert_eq!(change(&scene, "DELETE", &conversation, &scene.grace).await, 204);
    eventually("the lane is held", || async {
        (scene.database.count("select count(*) from lanes where hold is not null").await == 1).then_some(())
    })
    .await;
    let secret = id(&scene.ada.post(&conversation, "not for her").await.expect(201));
    for n in 0..5 {
        let elsewhere = id(&scene.ada.post(&other, &format!("{n}")).await.expect(201));
        scene.ada.delivered(&elsewhere).await;
    }
    assert_eq!(read(&grace, &room).await, ["begun"]);
    let why = scene.ada.get(&format!("/messages/{secret}/delivery")).await;
    assert_eq!((&why["state"], &why["ahead"]), (&json!("pending"), &json!(1)));
    assert!(why["waiting_for"].as_str().unwrap().contains("lane is held"), "{why}");
    assert_eq!(why["due_at"], Value::Null);
    // Mended and resumed, it goes first.
    fake.clear_faults();
    let conversation_id: ConversationId = conversation.parse().unwrap();
    let mut conn = scene.database.pool.acquire().await.unwrap();
    assert!(outbox::resume(&mut conn, conversation_id, LaneId::from(conversation_id)).await.unwrap());
    let secret = scene.ada.delivered(&secret).await;
    assert_eq!(room_of(&secret), room);
    assert_eq!(stays(&fake.timeline(&room), &scene.grace, &home.address.server_name), ["invite", "join", "leave"]);
    assert_eq!(read(&home.account, &room).await, ["begun", "not for her"]);
    assert_eq!(read(&grace, &room).await, ["begun"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_is_created_with_the_members_of_its_first_operation_and_the_later_ones_are_invited() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let (alan, edith) = (NovaUser::new(&scene.api), NovaUser::new(&scene.api));
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id, edith.user_id]).await;
    // Before there is anything to send, members come and go in the database only.
    assert_eq!(change(&scene, "DELETE", &conversation, &edith).await, 204);
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0);
    scene.ada.post(&conversation, "words").await.expect(201);
    assert_eq!(change(&scene, "PUT", &conversation, &alan).await, 200);
    assert_eq!(change(&scene, "DELETE", &conversation, &scene.grace).await, 204);
    let last = id(&scene.ada.post(&conversation, "last").await.expect(201));
    let _worker = scene.worker().await;
    let last = scene.ada.delivered(&last).await;
    let timeline = fake.timeline(room_of(&last));
    let server_name = &home.address.server_name;
    assert_eq!(stays(&timeline, &scene.grace, server_name), ["invite", "leave"]);
    assert_eq!(stays(&timeline, &alan, server_name), ["invite"]);
    assert!(stays(&timeline, &edith, server_name).is_empty());
    let events: Vec<&str> =
        timeline.iter().filter_map(|event| event.body().or_else(|| event.content["membership"].as_str())).collect();
    assert_eq!(events[events.len() - 4..], ["words", "invite", "leave", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_room_come_and_go_also_while_matrix_is_disabled_for_new_things() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let mut scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    let silent = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let disabled = scene.api_with(&[("MATRIX_ENABLED", "false")]).await;
    scene.ada = scene.ada.via(&disabled);
    let alan = NovaUser::new(&disabled);
    for conversation in [&conversation, &silent] {
        assert_eq!(change(&scene, "PUT", conversation, &alan).await, 200);
        assert_eq!(change(&scene, "DELETE", conversation, &scene.grace).await, 204);
    }
    scene.drained().await;
    let timeline = fake.timeline(&room);
    assert_eq!(stays(&timeline, &alan, &home.address.server_name), ["invite"]);
    assert_eq!(stays(&timeline, &scene.grace, &home.address.server_name), ["invite", "leave"]);
    // The conversation without a room got none by it.
    assert_eq!(fake.rooms(), [room]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_of_an_invitation_is_waited_for_in_its_lane_only() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let alan = NovaUser::new(&scene.api);
    let (conversation, room) = scene.begun().await;
    let (other, _) = scene.begun().await;
    let limited = fake.on_invite().fail(429).retry_after(Duration::from_mins(1)).once();
    assert_eq!(change(&scene, "PUT", &conversation, &alan).await, 200);
    let behind = id(&alan.post(&conversation, "behind").await.expect(201));
    limited.arrived().await;
    let elsewhere = id(&scene.ada.post(&other, "elsewhere").await.expect(201));
    scene.ada.delivered(&elsewhere).await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun"]);
    scene.attempted("refused", 1).await;
    scene.database.advance(Duration::from_mins(1)).await;
    scene.ada.delivered(&behind).await;
    assert_eq!(stays(&fake.timeline(&room), &alan, &home.address.server_name), ["invite"]);
    assert_eq!(scene.database.count("select coalesce(sum(attempts), 0)::bigint from dead_letters").await, 0);
}

/// Who is in a conversation, as Ada sees it.
async fn members_of(scene: &Scene, conversation: &str) -> usize {
    scene.ada.get(&format!("/conversations/{conversation}")).await["members"].as_array().unwrap().len()
}

/// Waits until what Ada says on Matrix has come: all before it is applied.
async fn caught_up(scene: &Scene, conversation: &str, ada: &MatrixClient, room: &str, text: &str) {
    ada.say(room, text).await.unwrap();
    eventually("what is said on Matrix comes", || async {
        let newest = scene.ada.get(&format!("/conversations/{conversation}/messages?limit=1")).await;
        (newest["messages"][0]["plaintext"] == text).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_here_while_the_room_was_asked_is_newer_than_its_answer() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let patient = [("MATRIX_SYNC_ENABLED", "true"), ("OUTBOX_LEASE", "40s"), ("OUTBOX_HTTP_TIMEOUT", "30s")];
    let _worker = scene.worker_with(&patient).await;
    let (ada, grace) = (home.member(&scene.ada).await, home.member(&scene.grace).await);
    let (conversation, room) = scene.begun().await;
    ada.join(&room).await.unwrap();
    grace.join(&room).await.unwrap();
    caught_up(&scene, &conversation, &ada, &room, "before").await;
    // Grace leaves; the room is asked, and says so. Before its answer is heard she is removed and added here.
    let held = fake.on(Kind::GetState).hold_answer().once();
    grace.leave(&room).await.unwrap();
    held.arrived().await;
    for (method, status) in [("DELETE", 204), ("PUT", 200)] {
        assert_eq!(change(&scene, method, &conversation, &scene.grace).await, status);
        scene.drained().await;
    }
    held.release();
    caught_up(&scene, &conversation, &ada, &room, "after").await;
    assert_eq!(members_of(&scene, &conversation).await, 2, "an old answer removed her again");
    scene.drained().await;
    let stays = stays(&fake.timeline(&room), &scene.grace, &home.address.server_name);
    assert_eq!(stays, ["invite", "join", "leave", "invite"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_and_came_back_before_anybody_looked_never_left() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let patient = [("MATRIX_SYNC_ENABLED", "true"), ("OUTBOX_LEASE", "40s"), ("OUTBOX_HTTP_TIMEOUT", "30s")];
    let _worker = scene.worker_with(&patient).await;
    let (ada, grace) = (home.member(&scene.ada).await, home.member(&scene.grace).await);
    let (conversation, room) = scene.begun().await;
    ada.join(&room).await.unwrap();
    grace.join(&room).await.unwrap();
    caught_up(&scene, &conversation, &ada, &room, "before").await;
    let held = fake.on(Kind::Sync).hold().once();
    ada.say(&room, "ends the sync that is under way").await.unwrap();
    held.arrived().await;
    grace.leave(&room).await.unwrap();
    ada.invite(&room, grace.user_id()).await.unwrap();
    grace.join(&room).await.unwrap();
    held.release();
    caught_up(&scene, &conversation, &ada, &room, "after").await;
    assert_eq!(members_of(&scene, &conversation).await, 2);
    let left = "select count(*) from conversation_members where removed_seq is not null";
    assert_eq!(scene.database.count(left).await, 0);
}
