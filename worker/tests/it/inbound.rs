//! What people do on Matrix reaches the database once, in order, and never goes out again.

use std::time::Duration;

use serde_json::{Value, json};
use shared::testing::{
    eventually, eventually_within,
    homeserver::{FakeHomeserver, Kind, SHOWN_AS},
    matrix_client::MatrixClient,
    mutation::{Mutator, specimens},
    nova::Program,
};

use crate::scene::{Home, Scene, id, metric, shape};

/// A conversation with a room in which Grace is, by an account of her own, and a worker that reads what happens there.
pub(crate) struct Listening {
    pub(crate) scene: Scene,
    pub(crate) worker: Program,
    conversation: String,
    room: String,
    grace: MatrixClient,
}

impl Listening {
    pub(crate) async fn new(home: &Home) -> Self {
        Self::with(home, &[]).await
    }

    pub(crate) async fn with(home: &Home, options: &[(&str, &str)]) -> Self {
        let scene = Scene::new(home).await;
        let grace = home.member(&scene.grace).await;
        let mut listening = vec![("MATRIX_SYNC_ENABLED", "true")];
        listening.extend(options);
        let worker = scene.worker_with(&listening).await;
        let (conversation, room) = scene.begun().await;
        grace.join(&room).await.unwrap();
        Self { scene, worker, conversation, room, grace }
    }

    /// The conversation's messages as a member sees them, oldest first, but for the first.
    async fn messages(&self) -> Vec<Value> {
        let path = format!("/conversations/{}/messages?limit=200", self.conversation);
        let mut found =
            self.scene.ada.call("GET", &path, None).await.expect(200)["messages"].as_array().unwrap().clone();
        found.reverse();
        found.split_off(1)
    }

    /// Waits until the conversation's messages say so, one that was deleted `gone`.
    pub(crate) async fn says(&self, texts: &[&str]) -> Vec<Value> {
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen = eventually(&format!("the conversation says {texts:?}"), || async {
                let messages = self.messages().await;
                (words(&messages) == texts).then_some(messages)
            })
            .await;
        }
        seen
    }

    pub(crate) async fn say(&self, text: &str) -> String {
        self.grace.say(&self.room, text).await.unwrap()
    }

    async fn edit(&self, original: &str, text: &str) -> String {
        let content = json!({
            "msgtype": "m.text",
            "body": format!("* {text}"),
            "m.new_content": {"msgtype": "m.text", "body": text},
            "m.relates_to": {"rel_type": "m.replace", "event_id": original},
        });
        self.grace.send(&self.room, "m.room.message", &format!("edit {text}"), &content).await.unwrap()
    }

    /// Waits until everything that was said before is applied: the token covers it.
    pub(crate) async fn caught_up(&self, marker: &str) {
        let said = self.say(marker).await;
        eventually("the marker has come", || async {
            let messages = self.messages().await;
            messages.iter().any(|message| message["matrix"]["event_id"] == json!(said)).then_some(())
        })
        .await;
    }
}

/// How often our own account sent something.
fn sends(fake: &FakeHomeserver, home: &Home) -> usize {
    crate::scene::sends(fake).iter().filter(|request| request.user.as_deref() == Some(home.account.user_id())).count()
}

fn words(messages: &[Value]) -> Vec<String> {
    messages.iter().map(|message| message["plaintext"].as_str().unwrap_or("gone").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_says_on_matrix_is_a_message_of_theirs_and_never_goes_out_again() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let event_id = room.say("hello from Matrix").await;
    let message = room.says(&["hello from Matrix"]).await.remove(0);
    assert_eq!(message["author_id"], json!(room.scene.grace.user_id));
    assert_eq!(message["matrix"]["event_id"], json!(event_id));
    assert_eq!(message["matrix"]["delivery"], Value::Null);
    assert_eq!(message["matrix"]["room_id"], json!(room.room));
    // Only her own account there may change it.
    for refused in [room.scene.grace.edit(&id(&message), "no").await, room.scene.grace.delete(&id(&message)).await] {
        assert_eq!((refused.status, refused.code()), (409, "made_on_matrix"));
    }
    // Answered here, it is answered there.
    let answer = json!({"conversation_id": room.conversation, "plaintext": "welcome", "reply_to": message["id"]});
    let answer = room.scene.ada.call("POST", "/messages", Some(&answer)).await.expect(201);
    room.scene.ada.delivered(&id(&answer)).await;
    assert_eq!(shape(&fake.timeline(&room.room)), ["begun", "hello from Matrix", "welcome"]);
    assert_eq!(sends(&fake, &home), 2, "what came in was sent out");
    assert_eq!(room.scene.database.count("select count(*) from sent_events").await, 2);
    room.scene.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_and_redactions_made_on_matrix_change_the_message_and_an_edit_of_an_edit_changes_nothing() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let original = room.say("first").await;
    let edit = room.edit(&original, "second").await;
    let message = room.says(&["second"]).await.remove(0);
    assert_eq!(message["revision"], 2);
    assert!(message["edited_at"].is_string());
    room.edit(&edit, "an edit of an edit").await;
    room.caught_up("marker").await;
    room.says(&["second", "marker"]).await;
    assert!(metric(&room.worker, "matrix_sync_events_skipped_total").await > 0.5);
    // Without its edit the message says what it said at first.
    room.grace.redact(&room.room, &edit, "redact the edit", &json!({})).await.unwrap();
    room.says(&["first", "marker"]).await;
    room.grace.redact(&room.room, &original, "redact the message", &json!({"reason": "never mind"})).await.unwrap();
    let gone = room.says(&["gone", "marker"]).await.remove(0);
    assert!(gone["deleted_at"].is_string());
    let left = "select count(*) from message_revisions join messages using (conversation_id, message_id) where deleted_at is not null";
    assert_eq!(room.scene.database.count(left).await, 0);
    room.scene.drained().await;
    assert_eq!(sends(&fake, &home), 1, "nothing of it went out again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_by_another_than_its_sender_changes_nothing() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let ours = fake.timeline(&room.room).iter().find(|event| event.body() == Some("begun")).unwrap().event_id.clone();
    room.edit(&ours, "not hers").await;
    room.caught_up("marker").await;
    let first = room.scene.ada.call("GET", &format!("/conversations/{}/messages", room.conversation), None).await;
    let texts = words(first.expect(200)["messages"].as_array().unwrap());
    assert_eq!(texts, ["marker", "begun"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_echo_settles_an_operation_whose_answer_never_comes() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::with(&home, &[("OUTBOX_LEASE", "40s"), ("OUTBOX_HTTP_TIMEOUT", "30s")]).await;
    let held = fake.on_send().hold_answer().once();
    let message = id(&room.scene.ada.post(&room.conversation, "echoed").await.expect(201));
    held.arrived().await;
    // The PUT is still under way, and the lane is leased.
    let delivered = room.scene.ada.delivered(&message).await;
    assert!(delivered["matrix"]["event_id"].is_string());
    assert_eq!(room.scene.database.count("select count(*) from lanes where owner is not null").await, 1);
    assert_eq!(room.scene.database.count("select count(*) from outbox").await, 0);
    held.release();
    let next = id(&room.scene.ada.post(&room.conversation, "after it").await.expect(201));
    room.scene.ada.delivered(&next).await;
    room.scene.drained().await;
    assert_eq!(room.scene.database.count("select count(*) from lanes where owner is not null or open <> 0").await, 0);
    assert_eq!(shape(&fake.timeline(&room.room)), ["begun", "echoed", "after it"]);
    assert_eq!(words(&room.messages().await), ["echoed", "after it"], "an echo is no message");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_that_comes_after_the_answer_changes_nothing() {
    let fake = FakeHomeserver::start().await;
    let room = Listening::new(&Home::of(&fake).await).await;
    let held = fake.on(Kind::Sync).hold_answer().once();
    held.arrived().await;
    let message = id(&room.scene.ada.post(&room.conversation, "answered first").await.expect(201));
    let before = room.scene.ada.delivered(&message).await;
    held.release();
    room.caught_up("marker").await;
    let path = format!("/messages/{message}");
    let after = room.scene.ada.call("GET", &path, None).await.expect(200);
    assert_eq!(before["matrix"], after["matrix"]);
    assert_eq!(words(&room.messages().await), ["answered first", "marker"]);
    assert!(metric(&room.worker, "matrix_duplicate_events_total").await > 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_in_somebody_elses_event_means_nothing() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::with(&home, &[("OUTBOX_BACKOFF", "30s")]).await;
    let failing = fake.on_send().by(home.account.user_id()).fail(500).always();
    let message = room.scene.ada.post(&room.conversation, "waits").await.expect(201);
    let marker: uuid::Uuid =
        sqlx::query_scalar("select outbox_id from outbox").fetch_one(&room.scene.database.pool).await.unwrap();
    let forged = json!({"msgtype": "m.text", "body": "forged", "com.nova.outbox_id": marker});
    room.grace.send(&room.room, "m.room.message", "forged", &forged).await.unwrap();
    room.says(&["waits", "forged"]).await;
    let state = room.scene.ada.call("GET", &format!("/messages/{}", id(&message)), None).await.expect(200);
    assert_eq!(state["matrix"]["event_id"], Value::Null);
    failing.remove();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_appear_as_contacts_and_a_name_like_ours_on_another_server_is_a_stranger() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let bob = MatrixClient::register(&home.address, "bob", "password").await.unwrap();
    home.account.invite(&room.room, bob.user_id()).await.unwrap();
    bob.join(&room.room).await.unwrap();
    bob.say(&room.room, "from outside").await.unwrap();
    let message = room.says(&["from outside"]).await.remove(0);
    assert_eq!(message["external"]["matrix_user_id"], json!(bob.user_id()));
    let members = room.scene.ada.call("GET", &format!("/conversations/{}", room.conversation), None).await.expect(200);
    assert!(!members["members"].as_array().unwrap().contains(&message["author_id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_our_namespace_that_is_no_users_is_skipped_and_counted() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let odd = MatrixClient::register(&home.address, "nova-nobody", "password").await.unwrap();
    home.account.invite(&room.room, odd.user_id()).await.unwrap();
    odd.join(&room.room).await.unwrap();
    odd.say(&room.room, "who am I").await.unwrap();
    room.caught_up("marker").await;
    assert_eq!(words(&room.messages().await), ["marker"]);
    let text = reqwest::get(format!("{}/metrics", room.worker.url())).await.unwrap().text().await.unwrap();
    assert!(text.contains("matrix_sync_events_skipped_total{reason=\"user_format\"}"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_room_leaves_the_conversation_and_who_is_let_in_joins_it() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let members = || async {
        let path = format!("/conversations/{}", room.conversation);
        room.scene.ada.call("GET", &path, None).await.expect(200)["members"].as_array().unwrap().len()
    };
    assert_eq!(members().await, 2);
    room.grace.leave(&room.room).await.unwrap();
    eventually("Grace is out", || async { (members().await == 1).then_some(()) }).await;
    // An invitation by somebody else: she comes in when she accepts it.
    let ada = home.member(&room.scene.ada).await;
    ada.join(&room.room).await.unwrap();
    ada.invite(&room.room, room.grace.user_id()).await.unwrap();
    room.grace.join(&room.room).await.unwrap();
    eventually("Grace is in again", || async { (members().await == 2).then_some(()) }).await;
    assert_eq!(sends(&fake, &home), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_makes_no_sense_is_parked_and_what_follows_it_is_applied() {
    let fake = FakeHomeserver::start().await;
    let room = Listening::new(&Home::of(&fake).await).await;
    let nonsense = [
        ("m.room.message", json!({"msgtype": "m.image", "body": "no file"})),
        ("m.call.invite", json!({"nonsense": true})),
        ("m.reaction", json!({})),
    ];
    for (n, (event_type, content)) in nonsense.iter().enumerate() {
        room.grace.send(&room.room, event_type, &format!("nonsense {n}"), content).await.unwrap();
    }
    room.say("sense").await;
    room.says(&["sense"]).await;
    let parked = "select count(*) from sync_parked where cause = 'poison' and detail is not null";
    assert_eq!(room.scene.database.count(parked).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_events_while_we_were_away_are_all_there_in_order() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let mut room = Listening::with(&home, &[("MATRIX_SYNC_LIMIT", "10")]).await;
    room.caught_up("before").await;
    room.worker.kill();
    let mut texts = vec!["before".to_owned()];
    for n in 0..500 {
        texts.push(format!("text {n}"));
        room.say(&texts[n + 1]).await;
    }
    // Each of these dies at a step, the first times it comes there; what is left is done by one that lives.
    for failpoint in ["event_applies=3*off->return", "events_written=return", "events_committed=2*off->return"] {
        let options = [
            ("MATRIX_SYNC_ENABLED", "true"),
            ("MATRIX_SYNC_LIMIT", "10"),
            ("FAILPOINTS", failpoint),
            ("MATRIX_SYNC_LEASE", "500ms"),
        ];
        let mut dying = room.scene.worker_with(&options).await;
        assert!(!dying.ended().await.success(), "{failpoint} was not passed");
    }
    room.worker = room.scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true"), ("MATRIX_SYNC_LIMIT", "10")]).await;
    eventually("all have come", || async {
        (room.scene.database.count("select count(*) from messages where origin = 'matrix'").await >= 501).then_some(())
    })
    .await;
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/conversations/{}/messages?limit=100{cursor}", room.conversation);
        let page = room.scene.ada.call("GET", &path, None).await.expect(200);
        found.extend(page["messages"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    found.reverse();
    assert_eq!(words(&found[1..]), texts);
    assert!(metric(&room.worker, "matrix_sync_gaps_total").await > 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_that_fail_are_repeated_and_deliveries_go_on_meanwhile() {
    let fake = FakeHomeserver::start().await;
    let room = Listening::new(&Home::of(&fake).await).await;
    let failing = fake.on(Kind::Sync).fail(500).times(3);
    fake.on(Kind::Sync).fail(502).html("<h1>Bad Gateway</h1>").times(2);
    room.say("ends the sync that is under way").await;
    failing.arrived().await;
    room.say("during the failures").await;
    let sent = id(&room.scene.ada.post(&room.conversation, "meanwhile").await.expect(201));
    room.scene.ada.delivered(&sent).await;
    eventually("it has come", || async { (room.messages().await.len() == 3).then_some(()) }).await;
    assert!(metric(&room.worker, "matrix_sync_failures_total").await > 4.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_panics_begins_again_and_nothing_else_notices() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let grace = home.member(&scene.grace).await;
    let (conversation, room) = {
        let _worker = scene.worker().await;
        let begun = scene.begun().await;
        grace.join(&begun.1).await.unwrap();
        begun
    };
    // Once in the quick transaction, once in the careful one.
    let panics = [("MATRIX_SYNC_ENABLED", "true"), ("FAILPOINTS", "event_applies=2*panic")];
    let worker = scene.worker_with(&panics).await;
    grace.say(&room, "after the panic").await.unwrap();
    let sent = id(&scene.ada.post(&conversation, "meanwhile").await.expect(201));
    scene.ada.delivered(&sent).await;
    eventually("it has come", || async {
        (scene.database.count("select count(*) from messages where origin = 'matrix'").await == 1).then_some(())
    })
    .await;
    assert!((metric(&worker, "matrix_sync_crashes_total").await - 1.0).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_by_a_stranger_is_turned_down() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let bob = MatrixClient::register(&home.address, "bob", "password").await.unwrap();
    let elsewhere = bob.create_room(&json!({"preset": "private_chat"})).await.unwrap();
    bob.invite(&elsewhere, home.account.user_id()).await.unwrap();
    let name = home.account.user_id().to_owned();
    eventually("it is turned down", || async {
        let state = bob.state(&elsewhere, "m.room.member", &name).await.unwrap();
        (state["membership"] == "leave").then_some(())
    })
    .await;
    room.caught_up("still here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_events_neither_stop_the_sync_nor_hide_what_comes_after_them() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(default)
    };
    let (seed, events) = (number("SEED", 5), number("FUZZ_EVENTS", 1000));
    println!("SEED={seed} FUZZ_EVENTS={events}");
    let fake = FakeHomeserver::start().await;
    let room = Listening::new(&Home::of(&fake).await).await;
    let target = room.say("the target").await;
    let specimens = specimens(room.grace.user_id(), &target);
    let mut mutator = Mutator::new(seed);
    for n in 0..events {
        let mut shown = mutator.mutate(&specimens);
        if shown["event_id"] == "$specimen" {
            shown["event_id"] = json!(format!("$specimen-{n}"));
        }
        let content = json!({"msgtype": "m.text", "body": "", SHOWN_AS: shown.to_string()});
        room.grace.send(&room.room, "m.room.message", &format!("mutated {n}"), &content).await.unwrap();
    }
    let last = room.say("after all of it").await;
    eventually_within(Duration::from_mins(5), "what comes after them is there", || async {
        let found: i64 = sqlx::query_scalar("select count(*) from messages where matrix_event_id = $1")
            .bind(&last)
            .fetch_one(&room.scene.database.pool)
            .await
            .unwrap();
        (found == 1).then_some(())
    })
    .await;
    assert!(metric(&room.worker, "matrix_sync_crashes_total").await < 0.5);
    assert!(room.scene.database.count("select count(*) from sync_parked where cause = 'poison'").await > 0);
    // All of it can be shown.
    let mut cursor = String::new();
    loop {
        let path = format!("/conversations/{}/messages?limit=100{cursor}", room.conversation);
        let page = room.scene.ada.call("GET", &path, None).await.expect(200);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_was_replaced_is_followed_and_what_is_said_in_either_is_there() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    room.say("in the old").await;
    let creation = json!({"creation_content": {"predecessor": {"room_id": room.room}}, "preset": "private_chat",
        "invite": [room.grace.user_id()]});
    let new = home.account.create_room(&creation).await.unwrap();
    room.grace.join(&new).await.unwrap();
    room.grace.say(&new, "early in the new").await.unwrap();
    home.account.put_state(&room.room, "m.room.tombstone", "", &json!({"replacement_room": new})).await.unwrap();
    room.grace.say(&new, "in the new").await.unwrap();
    room.says(&["in the old", "early in the new", "in the new"]).await;
    // Nobody has sent anything since; what we send goes where they are.
    let message = id(&room.scene.ada.post(&room.conversation, "ours").await.expect(201));
    assert_eq!(room.scene.ada.delivered(&message).await["matrix"]["room_id"], json!(new));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_in_a_room_that_was_left_moves_nobody() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let creation = json!({"creation_content": {"predecessor": {"room_id": room.room}}, "preset": "private_chat",
        "invite": [room.grace.user_id()]});
    let new = home.account.create_room(&creation).await.unwrap();
    room.grace.join(&new).await.unwrap();
    home.account.put_state(&room.room, "m.room.tombstone", "", &json!({"replacement_room": new})).await.unwrap();
    room.grace.say(&new, "here").await.unwrap();
    room.says(&["here"]).await;
    room.grace.leave(&room.room).await.unwrap();
    room.grace.say(&new, "still here").await.unwrap();
    room.says(&["here", "still here"]).await;
    let is_member = "select count(*) from conversation_members where removed_seq is null";
    assert_eq!(room.scene.database.count(is_member).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_ours_that_invites_us_again_is_joined_again() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    room.caught_up("before").await;
    home.account.leave(&room.room).await.unwrap();
    room.grace.invite(&room.room, home.account.user_id()).await.unwrap();
    eventually("we are in it again", || async {
        let rooms = home.account.joined_rooms().await.unwrap();
        rooms.contains(&room.room).then_some(())
    })
    .await;
    room.say("after").await;
    room.says(&["before", "after"]).await;
    let message = id(&room.scene.ada.post(&room.conversation, "ours").await.expect(201));
    room.scene.ada.delivered(&message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_somebody_else_replaced_is_entered_as_invited_and_shows_all_in_order() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::with(&home, &[("MATRIX_SYNC_LIMIT", "3")]).await;
    let power = json!({"users": {room.grace.user_id(): 100}});
    home.account.put_state(&room.room, "m.room.power_levels", "", &power).await.unwrap();
    let creation = json!({"creation_content": {"predecessor": {"room_id": room.room}}, "preset": "private_chat",
        "power_level_content_override": {"users": {home.account.user_id(): 100}}});
    let new = room.grace.create_room(&creation).await.unwrap();
    room.grace.put_state(&room.room, "m.room.tombstone", "", &json!({"replacement_room": new})).await.unwrap();
    room.say("the last here").await;
    room.says(&["the last here"]).await;
    room.grace.invite(&new, home.account.user_id()).await.unwrap();
    let mut texts = vec!["the last here".to_owned()];
    for n in 0..10 {
        texts.push(format!("there {n}"));
        room.grace.say(&new, &texts[n + 1]).await.unwrap();
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    room.says(&texts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_threads_reactions_files_and_formatted_words_come_in_as_what_they_are() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let room = Listening::new(&home).await;
    let first = room.say("root").await;
    let thread = json!({"rel_type": "m.thread", "event_id": first, "is_falling_back": true, "m.in_reply_to": {"event_id": first}});
    let said = [
        json!({"msgtype": "m.text", "body": "reply", "m.relates_to": {"m.in_reply_to": {"event_id": first}}}),
        json!({"msgtype": "m.text", "body": "thread", "m.relates_to": thread}),
        json!({"msgtype": "m.emote", "body": "bold", "format": "org.matrix.custom.html",
            "formatted_body": "<strong>bold</strong><script>x</script>",
            "m.mentions": {"user_ids": [room.grace.user_id()]}}),
        json!({"msgtype": "m.file", "body": "plan.pdf", "url": "mxc://nova.test/plan", "info": {"size": 7}}),
    ];
    for (n, content) in said.iter().enumerate() {
        room.grace.send(&room.room, "m.room.message", &format!("said {n}"), content).await.unwrap();
    }
    let reaction = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": first, "key": "yes"}});
    let reaction = room.grace.send(&room.room, "m.reaction", "reaction", &reaction).await.unwrap();
    let messages = room.says(&["root", "reply", "thread", "bold", "plan.pdf"]).await;
    let parent = &messages[0]["id"];
    assert_eq!((&messages[1]["reply_to"], &messages[1]["thread_of"]), (parent, &Value::Null));
    assert_eq!((&messages[2]["reply_to"], &messages[2]["thread_of"]), (&Value::Null, parent));
    assert_eq!(messages[3]["formatted"], "<strong>bold</strong>");
    assert_eq!((&messages[3]["kind"], &messages[3]["mentions"]), (&json!("emote"), &json!([room.scene.grace.user_id])));
    assert_eq!((&messages[4]["kind"], &messages[4]["media"]["url"]), (&json!("file"), &json!("mxc://nova.test/plan")));
    let reactions = |count: usize| {
        let room = &room;
        async move {
            eventually("the reactions are so", || async {
                let message = room.messages().await.remove(0);
                (message["reactions"].as_array().unwrap().len() == count).then_some(message)
            })
            .await
        }
    };
    let reacted = reactions(1).await;
    assert_eq!(reacted["reactions"][0]["user_ids"], json!([room.scene.grace.user_id]));
    room.grace.redact(&room.room, &reaction, "no reaction", &json!({})).await.unwrap();
    reactions(0).await;
}
