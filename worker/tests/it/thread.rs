//! The thread: a message goes in by REST and stands in its Matrix room.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use shared::testing::{
    database::TestDatabase,
    eventually,
    homeserver::{FakeHomeserver, Kind},
    matrix_client::MatrixClient,
    nova::NovaUser,
    proxy::PgProxy,
};

use crate::scene::{Home, Scene, id, room_of};

/// The messages of a room, as a client reads them: body, author, event id.
async fn messages(client: &MatrixClient, room: &str) -> Vec<(String, Value, String)> {
    let timeline = client.timeline(room).await.unwrap();
    timeline
        .iter()
        .filter(|event| event.event_type == "m.room.message")
        .map(|event| {
            (
                event.body().unwrap_or_default().to_owned(),
                event.content["com.nova.sender_id"].clone(),
                event.event_id.clone(),
            )
        })
        .collect()
}

/// Posts, and reads back as a member of the room does.
async fn a_message_stands_in_its_room(home: &Home) {
    let scene = Scene::new(home).await;
    let _worker = scene.worker().await;
    let grace = home.member(&scene.grace).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let first = id(&scene.ada.post(&conversation, "hello").await.expect(201));
    let first = scene.ada.delivered(&first).await;
    let room = room_of(&first);
    assert_eq!(
        home.account.resolve_alias(&format!("#nova-conv-{conversation}:{}", home.address.server_name)).await.unwrap(),
        room
    );
    grace.join(room).await.unwrap();
    let second = id(&scene.grace.post(&conversation, "hello yourself").await.expect(201));
    let second = scene.grace.delivered(&second).await;
    assert_eq!(
        messages(&grace, room).await,
        [
            ("hello".to_owned(), json!(scene.ada.user_id), first["matrix"]["event_id"].as_str().unwrap().to_owned()),
            (
                "hello yourself".to_owned(),
                json!(scene.grace.user_id),
                second["matrix"]["event_id"].as_str().unwrap().to_owned()
            ),
        ]
    );
    let event = grace.event(room, second["matrix"]["event_id"].as_str().unwrap()).await.unwrap();
    assert_eq!(event.sender, home.account.user_id());
    assert_eq!(event.content["com.nova.message_id"], second["id"]);
    assert_eq!(event.content["com.beeper.per_message_profile"]["id"], json!(scene.grace.user_id));
    assert!(event.content["com.nova.outbox_id"].is_string());
    let members = home.account.members(room).await.unwrap();
    let membership = |user: &NovaUser| {
        let user = format!("@nova-{}:{}", user.user_id.as_uuid().simple(), home.address.server_name);
        members.iter().find(|(member, _)| *member == user).map(|(_, membership)| membership.clone())
    };
    assert_eq!(membership(&scene.grace).as_deref(), Some("join"));
    assert_eq!(membership(&scene.ada).as_deref(), Some("invite"));
    assert_eq!(members.len(), 3);
    let visibility = home.account.state(room, "m.room.history_visibility", "").await.unwrap();
    assert_eq!(visibility["history_visibility"], "invited");
    let marker = home.account.state(room, "com.nova.conversation", "").await.unwrap();
    assert_eq!(marker["conversation_id"], json!(conversation));
    assert_eq!(scene.database.count("select count(*) from outbox").await, 0);
    assert_eq!(scene.database.count("select count(*) from attempts where outcome = 'delivered'").await, 2);
    // Every id that we keep is one that the homeserver knows.
    let kept: Vec<String> =
        sqlx::query_scalar("select event_id from sent_events").fetch_all(&scene.database.pool).await.unwrap();
    assert_eq!(kept.len(), 2);
    for event in kept {
        grace.event(room, &event).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_stands_in_its_room_on_the_fake_homeserver() {
    let fake = FakeHomeserver::start().await;
    a_message_stands_in_its_room(&Home::of(&fake).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_stands_in_its_room_on_synapse() {
    a_message_stands_in_its_room(&Home::synapse().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_while_the_homeserver_holds_every_connection_and_all_arrives_in_order() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    fake.set_black_hole(true);
    let mut last = String::new();
    for n in 0..20 {
        let began = Instant::now();
        last = id(&scene.ada.post(&conversation, &format!("{n}")).await.expect(201));
        assert!(began.elapsed() < Duration::from_secs(5), "a POST waited for Matrix");
    }
    let pending = scene.ada.call("GET", &format!("/messages/{last}"), None).await.expect(200);
    assert_ne!(pending["matrix"]["delivery"], "delivered");
    fake.set_black_hole(false);
    let last = scene.ada.delivered(&last).await;
    let bodies: Vec<String> =
        messages(&home.account, room_of(&last)).await.into_iter().map(|(body, ..)| body).collect();
    assert_eq!(bodies, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_homeserver_down_no_request_fails_and_all_arrives_once_it_is_back() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let first = id(&scene.ada.post(&conversation, "before").await.expect(201));
    scene.ada.delivered(&first).await;
    fake.set_down(true).await;
    for n in 0..10 {
        scene.ada.post(&conversation, &format!("{n}")).await.expect(201);
    }
    eventually("an attempt failed", || async {
        (scene.database.count("select count(*) from attempts where outcome = 'refused'").await > 0).then_some(())
    })
    .await;
    fake.set_down(false).await;
    let last = id(&scene.ada.post(&conversation, "after").await.expect(201));
    let last = scene.ada.delivered(&last).await;
    let bodies: Vec<String> =
        messages(&home.account, room_of(&last)).await.into_iter().map(|(body, ..)| body).collect();
    let expected: Vec<String> =
        ["before".to_owned()].into_iter().chain((0..10).map(|n| n.to_string())).chain(["after".to_owned()]).collect();
    assert_eq!(bodies, expected);
    // An outage burns no attempts and kills nothing, and each failed attempt is one line of the log and one row.
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    let failures = scene.database.count("select count(*) from attempts where outcome <> 'delivered'").await;
    let lines = worker.log().iter().filter(|line| line.contains("Matrix send failed")).count();
    assert_eq!(usize::try_from(failures).unwrap(), lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_send_and_write_back_doubles_nothing_and_the_event_id_is_still_written() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let held = fake.on_send().hold_answer().once();
    let mut worker = scene.worker().await;
    let message = id(&scene.ada.post(&conversation, "once").await.expect(201));
    held.arrived().await;
    worker.kill();
    held.release();
    let _next = scene.worker().await;
    let message = scene.ada.delivered(&message).await;
    let there = messages(&home.account, room_of(&message)).await;
    assert_eq!(there.len(), 1);
    assert_eq!(message["matrix"]["event_id"], json!(there[0].2));
    assert_eq!(fake.sends(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_carries_the_same_transaction_id_each_time() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    fake.on_send().drop_after_accept().times(2);
    fake.on_send().fail(502).times(2);
    fake.on_send().fail(429).retry_after(Duration::from_millis(100)).once();
    let message = id(&scene.ada.post(&conversation, "once").await.expect(201));
    let message = scene.ada.delivered(&message).await;
    let transactions: Vec<Option<String>> =
        fake.requests().into_iter().filter(|request| request.kind == Kind::Send).map(|request| request.txn).collect();
    assert_eq!(transactions.len(), 6);
    assert!(transactions.iter().all(|transaction| *transaction == transactions[0] && transaction.is_some()));
    assert_eq!(messages(&home.account, room_of(&message)).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_notification_delivery_comes_within_a_poll() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let mut scene = Scene::new(&home).await;
    let mut environment = shared::testing::nova::api_environment(&scene.database.url);
    environment.insert("OUTBOX_NOTIFY".into(), "false".into());
    scene.api = shared::testing::nova::Program::start("api", &environment).await;
    let ada = scene.ada.via(&scene.api);
    let _worker = scene.worker().await;
    let conversation = ada.create_conversation(&[scene.grace.user_id]).await;
    for n in 0..5 {
        let message = id(&ada.post(&conversation, &format!("{n}")).await.expect(201));
        ada.delivered(&message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_wakes_the_worker_long_before_its_poll() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    // Were it not woken, the worker would look again in ten minutes.
    let worker = scene.worker_with(&[("OUTBOX_POLL", "10m")]).await;
    let listening = || async {
        let text = reqwest::get(format!("{}/metrics", worker.url())).await.ok()?.text().await.ok()?;
        text.contains("outbox_listening 1").then_some(())
    };
    eventually("the worker listens", listening).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    for n in 0..5 {
        let message = id(&scene.ada.post(&conversation, &format!("{n}")).await.expect(201));
        scene.ada.delivered(&message).await;
    }
}

/// Many first messages of one conversation at once.
async fn fifty_first_messages_make_one_room(home: &Home) {
    let scene = Scene::new(home).await;
    let _workers = (scene.worker().await, scene.worker().await);
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let posting = (0..50).map(|n| {
        let (ada, conversation) = (scene.ada.clone(), conversation.clone());
        tokio::spawn(async move {
            // On a busy machine some of fifty wait too long for their turn, and are told to come back.
            let (key, body) = (n.to_string(), json!({"conversation_id": conversation, "plaintext": n.to_string()}));
            id(&ada.insist("POST", "/messages", &[("Idempotency-Key", &key)], Some(&body)).await.expect(201))
        })
    });
    let posting: Vec<_> = posting.collect();
    let mut rooms = Vec::new();
    for message in posting {
        let message = scene.ada.delivered(&message.await.unwrap()).await;
        rooms.push((message["seq"].as_i64().unwrap(), room_of(&message).to_owned(), message["plaintext"].clone()));
    }
    rooms.sort_unstable_by_key(|(seq, ..)| *seq);
    let room = rooms[0].1.clone();
    assert!(rooms.iter().all(|(_, other, _)| *other == room));
    assert_eq!(home.account.joined_rooms().await.unwrap(), std::slice::from_ref(&room));
    let bodies: Vec<Value> = messages(&home.account, &room).await.into_iter().map(|(body, ..)| json!(body)).collect();
    assert_eq!(bodies, rooms.into_iter().map(|(.., text)| text).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_first_messages_at_once_make_one_room_on_the_fake_homeserver() {
    let fake = FakeHomeserver::start().await;
    fifty_first_messages_make_one_room(&Home::of(&fake).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_first_messages_at_once_make_one_room_on_synapse() {
    fifty_first_messages_make_one_room(&Home::synapse().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_whose_creation_was_not_answered_is_found_by_its_alias_and_completed() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    fake.on_create_room().drop_after_accept().once();
    let _worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "hello").await.expect(201));
    let message = scene.ada.delivered(&message).await;
    assert_eq!(fake.rooms(), [room_of(&message)]);
    for user in [&scene.ada, &scene.grace] {
        let user = format!("@nova-{}:{}", user.user_id.as_uuid().simple(), home.address.server_name);
        assert_eq!(fake.membership(room_of(&message), &user).as_deref(), Some("invite"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whom_the_homeserver_refuses_keeps_nobody_from_talking_and_is_shown() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let unwanted = NovaUser::new(&scene.api);
    fake.on_create_room().stop_after(3).fail(500).once();
    let localpart = format!("nova-{}", unwanted.user_id.as_uuid().simple());
    fake.on_invite().body_contains(&localpart).fail(403).errcode("M_FORBIDDEN").always();
    let _worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[unwanted.user_id, scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "hello").await.expect(201));
    let message = scene.ada.delivered(&message).await;
    let grace = format!("@nova-{}:{}", scene.grace.user_id.as_uuid().simple(), home.address.server_name);
    assert_eq!(fake.membership(room_of(&message), &grace).as_deref(), Some("invite"));
    let shown = eventually("the refused invitation is shown", || async {
        let conversation = scene.ada.call("GET", &format!("/conversations/{conversation}"), None).await.expect(200);
        (conversation["matrix"]["not_invited"] != json!([])).then(|| conversation["matrix"]["not_invited"].clone())
    })
    .await;
    assert_eq!(shown, json!([unwanted.user_id]));
    let next = id(&scene.ada.post(&conversation, "still here").await.expect(201));
    scene.ada.delivered(&next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_under_our_alias_that_is_not_ours_is_never_written_to() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let mallory = MatrixClient::register_random(&home.address).await.unwrap();
    let room = json!({"room_alias_name": format!("nova-conv-{conversation}"), "preset": "public_chat"});
    let room = mallory.create_room(&room).await.unwrap();
    let worker = scene.worker().await;
    scene.ada.post(&conversation, "secret").await.expect(201);
    eventually("the lane is held", || async {
        (scene.database.count("select count(*) from lanes where hold is not null").await == 1).then_some(())
    })
    .await;
    eventually("the log says why", || async {
        worker.log().iter().any(|line| line.contains("is not ours")).then_some(())
    })
    .await;
    assert!(messages(&mallory, &room).await.is_empty());
    assert_eq!(fake.sends(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_database_cut_off_for_ten_seconds_the_api_says_503_and_both_come_back_by_themselves() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let database = TestDatabase::create().await;
    let proxy = PgProxy::start(&database.url).await;
    let scene = Scene::with(&home, database, proxy.url()).await;
    let worker = scene.worker().await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let before = id(&scene.ada.post(&conversation, "before").await.expect(201));
    scene.ada.delivered(&before).await;
    proxy.cut();
    let cut_at = Instant::now();
    let mut refused = 0;
    while cut_at.elapsed() < Duration::from_secs(10) {
        let answer = scene.ada.post(&conversation, "meanwhile").await;
        assert_eq!((answer.status, answer.code()), (503, "unavailable"), "{}", answer.body);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert!(answer.headers.contains_key("retry-after"));
        refused += 1;
    }
    assert!(refused > 1);
    assert_eq!(reqwest::get(format!("{}/health/ready", scene.api.url())).await.unwrap().status(), 503);
    assert_eq!(reqwest::get(format!("{}/health/live", worker.url())).await.unwrap().status(), 200);
    proxy.restore();
    let after = eventually("the API is back", || async {
        let answer = scene.ada.post(&conversation, "after").await;
        (answer.status == 201).then(|| id(&answer.body))
    })
    .await;
    let after = scene.ada.delivered(&after).await;
    let bodies: Vec<String> =
        messages(&home.account, room_of(&after)).await.into_iter().map(|(body, ..)| body).collect();
    assert_eq!(bodies, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_under_way_and_hands_back_the_rest() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    fake.latency(Duration::from_millis(5));
    let mut worker = scene.worker_with(&[("OUTBOX_LEASE", "30s"), ("OUTBOX_HTTP_TIMEOUT", "5s")]).await;
    let mut messages_posted = 0;
    let conversations = [
        scene.ada.create_conversation(&[scene.grace.user_id]).await,
        scene.ada.create_conversation(&[scene.grace.user_id]).await,
    ];
    for n in 0..60 {
        scene.ada.post(&conversations[n % 2], &format!("{n}")).await.expect(201);
        messages_posted += 1;
    }
    let held = fake.on_send().hold_answer().once();
    held.arrived().await;
    let began = Instant::now();
    worker.signal(Signal::TERM);
    eventually("the worker is stopping", || async {
        worker.log().iter().any(|line| line.contains("worker stops")).then_some(())
    })
    .await;
    held.release();
    assert!(worker.ended().await.success());
    assert!(began.elapsed() < Duration::from_secs(10));
    // Nothing is leased any more, nothing is doubtful, nothing lost, and no attempt was burnt.
    assert_eq!(scene.database.count("select count(*) from lanes where owner is not null").await, 0);
    assert_eq!(scene.database.count("select count(*) from outbox where maybe_sent_at is not null").await, 0);
    assert_eq!(scene.database.count("select count(*) from attempts where outcome <> 'delivered'").await, 0);
    let left = scene.database.count("select count(*) from outbox").await;
    let sent = scene.database.count("select count(*) from sent_events").await;
    assert_eq!(left + sent, messages_posted);
    assert_eq!(u64::try_from(sent).unwrap(), fake.sends());
    // The next one goes on at once, in order, without waiting for a lease to lapse.
    let _next = scene.worker().await;
    for conversation in &conversations {
        let last = id(&scene.ada.post(conversation, "last").await.expect(201));
        let last = scene.ada.delivered(&last).await;
        let bodies: Vec<String> =
            messages(&home.account, room_of(&last)).await.into_iter().map(|(body, ..)| body).collect();
        assert_eq!(bodies.len(), 31);
        assert!(bodies[..30].is_sorted_by_key(|body| body.parse::<u32>().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_its_homeserver_and_for_its_database_at_start() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let database = TestDatabase::create().await;
    let proxy = PgProxy::start(&database.url).await;
    let scene = Scene::with(&home, database, proxy.url()).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let message = id(&scene.ada.post(&conversation, "hello").await.expect(201));
    fake.set_down(true).await;
    proxy.cut();
    let worker = scene.worker().await;
    eventually("the worker asks in vain", || async {
        worker.log().iter().any(|line| line.contains("asking again")).then_some(())
    })
    .await;
    fake.set_down(false).await;
    proxy.restore();
    scene.ada.delivered(&message).await;
}
