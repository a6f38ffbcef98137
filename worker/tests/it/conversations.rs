//! Replies, threads, formatted text, mentions and reactions, as the homeserver sees them.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use shared::testing::{
    eventually,
    homeserver::{FakeHomeserver, Kind},
    ledger::matrix_user,
    matrix_client::MatrixEvent,
    nova::NovaUser,
};

use crate::scene::{Home, Scene, id, sends, shape};

const THUMB: &str = "%F0%9F%91%8D";

async fn say(user: &NovaUser, conversation: &str, more: &Value) -> String {
    let mut body = json!({"conversation_id": conversation, "plaintext": "words"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    id(&user.call("POST", "/messages", Some(&body)).await.expect(201))
}

async fn react(user: &NovaUser, message: &str, key: &str) {
    let answer = user.call("PUT", &format!("/messages/{message}/reactions/{key}"), None).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

async fn unreact(user: &NovaUser, message: &str, key: &str) {
    let answer = user.call("DELETE", &format!("/messages/{message}/reactions/{key}"), None).await;
    assert_eq!(answer.status, 204, "{answer:?}");
}

/// The event of a message, in the room as somebody reads it.
fn event_of<'e>(timeline: &'e [MatrixEvent], message: &str) -> &'e MatrixEvent {
    timeline.iter().find(|event| event.content["com.nova.message_id"] == message).unwrap()
}

/// What stands in the room beside redactions and what was redacted.
fn standing(timeline: &[MatrixEvent]) -> Vec<String> {
    shape(timeline).into_iter().filter(|entry| entry != "gone" && entry != "void" && !entry.starts_with("x ")).collect()
}

async fn a_lively_conversation(home: &Home) {
    let scene = Scene::new(home).await;
    let _worker = scene.worker().await;
    let reader = home.member(&scene.grace).await;
    let (conversation, room) = scene.begun().await;
    reader.join(&room).await.unwrap();
    let (ada, grace) = (&scene.ada, &scene.grace);
    let first = say(ada, &conversation, &json!({})).await;
    let reply = say(grace, &conversation, &json!({"reply_to": first})).await;
    let in_thread = say(ada, &conversation, &json!({"thread_of": first})).await;
    let deeper = say(grace, &conversation, &json!({"thread_of": in_thread, "reply_to": in_thread})).await;
    let rich = json!({
        "plaintext": "hello grace",
        "formatted": "<b onclick=\"x()\">hello</b> <script>alert(1)</script>grace",
        "mentions": [grace.user_id],
        "kind": "emote",
    });
    let rich = say(ada, &conversation, &rich).await;
    react(ada, &first, THUMB).await;
    react(grace, &first, THUMB).await;
    react(grace, &first, "yes").await;
    let edit = json!({"plaintext": "hello both", "mentions": [grace.user_id, ada.user_id]});
    ada.delivered(&rich).await;
    ada.call("PATCH", &format!("/messages/{rich}"), Some(&edit)).await.expect(200);
    scene.drained().await;
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);

    let timeline = reader.timeline(&room).await.unwrap();
    let event = |message: &str| event_of(&timeline, message);
    let relation = |message: &str| event(message).content["m.relates_to"].clone();
    let of_first = event(&first).event_id.clone();
    assert_eq!(relation(&reply), json!({"m.in_reply_to": {"event_id": of_first}}));
    assert_eq!(
        relation(&in_thread),
        json!({
            "rel_type": "m.thread",
            "event_id": of_first,
            "is_falling_back": true,
            "m.in_reply_to": {"event_id": of_first},
        })
    );
    // Begun at a message of a thread, it is that thread.
    assert_eq!(
        relation(&deeper),
        json!({
            "rel_type": "m.thread",
            "event_id": of_first,
            "m.in_reply_to": {"event_id": event(&in_thread).event_id},
        })
    );
    assert_eq!(grace.get(&format!("/messages/{deeper}")).await["thread_of"], json!(first));
    let user = |user: &NovaUser| matrix_user(user.user_id.as_uuid(), &home.address.server_name);
    let content = &event(&rich).content;
    assert_eq!((&content["msgtype"], &content["body"]), (&json!("m.emote"), &json!("hello grace")));
    assert_eq!(content["formatted_body"], "<b>hello</b> grace");
    assert_eq!(content["m.mentions"], json!({"user_ids": [user(grace)]}));
    assert_eq!(event(&first).content["m.mentions"], json!({}));
    let edited = timeline.iter().find(|event| event.replaces().is_some()).unwrap();
    assert_eq!(edited.content["m.mentions"], json!({"user_ids": [user(ada)]}));
    let all: BTreeSet<String> =
        serde_json::from_value(edited.content["m.new_content"]["m.mentions"]["user_ids"].clone()).unwrap();
    assert_eq!(all, BTreeSet::from([user(ada), user(grace)]));
    assert!(edited.content.get("formatted_body").is_none());

    let annotations = reader.relations(&room, &of_first, "m.annotation").await.unwrap();
    let keys: BTreeSet<_> =
        annotations.iter().map(|event| event.content["m.relates_to"]["key"].as_str().unwrap()).collect();
    assert_eq!((annotations.len(), keys), (2, BTreeSet::from(["\u{1f44d}", "yes"])), "a key stands once for both");
    let read = grace.get(&format!("/messages/{first}")).await;
    assert_eq!(
        read["reactions"],
        json!([
            {"key": "\u{1f44d}", "count": 2, "user_ids": [ada.user_id, grace.user_id], "mine": true},
            {"key": "yes", "count": 1, "user_ids": [grace.user_id], "mine": true},
        ])
    );

    // The one who made it leaves: it stands for the other.
    unreact(ada, &first, THUMB).await;
    unreact(grace, &first, "yes").await;
    scene.drained().await;
    let annotations = reader.relations(&room, &of_first, "m.annotation").await.unwrap();
    assert_eq!(annotations.len(), 1);
    assert_eq!(annotations[0].content["m.relates_to"]["key"], "\u{1f44d}");
    assert_eq!(annotations[0].content["com.nova.sender_id"], json!(grace.user_id));
    unreact(grace, &first, THUMB).await;
    scene.drained().await;
    assert!(reader.relations(&room, &of_first, "m.annotation").await.unwrap().is_empty());
    assert_eq!(scene.database.count("select count(*) from message_reactions where key is not null").await, 0);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_as_lively_on_the_fake_homeserver() {
    let fake = FakeHomeserver::start().await;
    a_lively_conversation(&Home::of(&fake).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_as_lively_on_synapse() {
    a_lively_conversation(&Home::synapse().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_and_a_reaction_that_wait_with_their_message_find_its_event() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let first = say(&scene.ada, &conversation, &json!({})).await;
    let reply = say(&scene.grace, &conversation, &json!({"reply_to": first, "thread_of": first})).await;
    react(&scene.grace, &first, THUMB).await;
    let _worker = scene.worker().await;
    scene.drained().await;
    let timeline = fake.timeline(&fake.rooms()[0]);
    assert_eq!(shape(&timeline), ["words", "words", "0 + \u{1f44d}"]);
    let target = json!({"event_id": event_of(&timeline, &first).event_id});
    assert_eq!(event_of(&timeline, &reply).content["m.relates_to"]["m.in_reply_to"], target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_to_what_matrix_does_not_have_goes_without_its_relation() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let (conversation, room, redacted) = {
        let _worker = scene.worker().await;
        let (conversation, room) = scene.begun().await;
        let redacted = say(&scene.ada, &conversation, &json!({})).await;
        scene.ada.delivered(&redacted).await;
        (conversation, room, redacted)
    };
    let api = scene.api_with(&[("MATRIX_ENABLED", "false")]).await;
    let disabled = say(&scene.ada.via(&api), &conversation, &json!({})).await;
    let deleted = say(&scene.ada, &conversation, &json!({})).await;
    fake.on_send().body_contains("too large").fail(413).once();
    let dead = say(&scene.ada, &conversation, &json!({"plaintext": "too large"})).await;
    let mut replies = Vec::new();
    for target in [&disabled, &deleted, &dead] {
        replies.push(say(&scene.grace, &conversation, &json!({"reply_to": target})).await);
        replies.push(say(&scene.grace, &conversation, &json!({"thread_of": target})).await);
    }
    replies.push(say(&scene.grace, &conversation, &json!({"reply_to": redacted})).await);
    scene.ada.delete(&deleted).await.expect(200);
    scene.ada.delete(&redacted).await.expect(200);
    let _worker = scene.worker().await;
    scene.drained().await;
    let timeline = fake.timeline(&room);
    for reply in &replies {
        assert_eq!(event_of(&timeline, reply).content.get("m.relates_to"), None);
        assert!(scene.grace.get(&format!("/messages/{reply}")).await["matrix"]["event_id"].is_string());
    }
    assert_eq!(timeline.iter().filter(|event| event.event_type == "m.room.message").count(), 2 + replies.len());
}

/// Where the reaction stands when somebody changes their mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Untried,
    InFlight,
    Ambiguous,
    Sent,
    Dead,
}

/// What then happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    TakenBack,
    TakenBackAndMadeAgain,
    MessageDeleted,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_room_shows_the_reactions_that_the_database_has_whatever_happened_on_the_way() {
    let mut wrong = Vec::new();
    for stands in [Stands::Untried, Stands::InFlight, Stands::Ambiguous, Stands::Sent, Stands::Dead] {
        for then in [Then::Nothing, Then::TakenBack, Then::TakenBackAndMadeAgain, Then::MessageDeleted] {
            let fake = FakeHomeserver::start().await;
            let home = Home::of(&fake).await;
            let scene = Scene::new(&home).await;
            let mut worker = scene.worker_with(&[("OUTBOX_BACKOFF", "3s"), ("OUTBOX_LEASE", "40s")]).await;
            let (conversation, room) = scene.begun().await;
            let message = say(&scene.ada, &conversation, &json!({})).await;
            scene.ada.delivered(&message).await;
            scene.drained().await;
            let mut held = None;
            match stands {
                Stands::Untried => worker.kill(),
                Stands::InFlight => held = Some(fake.on_send().hold().once()),
                Stands::Ambiguous => drop(fake.on_send().drop_after_accept().once()),
                Stands::Dead => drop(fake.on_send().fail(400).errcode("M_UNKNOWN").once()),
                Stands::Sent => {}
            }
            react(&scene.grace, &message, THUMB).await;
            match stands {
                Stands::Untried => {}
                Stands::InFlight => held.as_ref().unwrap().arrived().await,
                Stands::Ambiguous => scene.attempted("ambiguous", 1).await,
                Stands::Sent => scene.drained().await,
                Stands::Dead => {
                    eventually("it is dead", || async {
                        (scene.database.count("select count(*) from dead_letters").await == 1).then_some(())
                    })
                    .await;
                }
            }
            match then {
                Then::Nothing => {}
                Then::TakenBack => unreact(&scene.grace, &message, THUMB).await,
                Then::TakenBackAndMadeAgain => {
                    unreact(&scene.grace, &message, THUMB).await;
                    react(&scene.grace, &message, THUMB).await;
                }
                Then::MessageDeleted => drop(scene.ada.delete(&message).await.expect(200)),
            }
            if let Some(held) = held {
                held.release();
            }
            let _other = if stands == Stands::Untried { Some(scene.worker().await) } else { None };
            scene.later().await;
            scene.drained().await;
            let shown = scene.ada.get(&format!("/messages/{message}")).await["reactions"].clone();
            let timeline = fake.timeline(&room);
            let in_the_room = standing(&timeline).iter().any(|entry| entry == "1 + \u{1f44d}");
            let in_the_database = shown.as_array().unwrap().len() == 1;
            let dead = scene.database.count("select count(*) from dead_letters").await;
            let expected = match (stands, then) {
                // An operator is needed, and knows.
                (Stands::Dead, Then::Nothing) => in_the_database && !in_the_room && dead == 1,
                (_, Then::MessageDeleted) => {
                    !in_the_database && dead == 0 && !standing(&timeline).contains(&"words".into())
                }
                _ => in_the_database == in_the_room && dead == 0,
            };
            if !expected {
                wrong.push(format!("{stands:?}, {then:?}: {:?}, {shown}, {dead} dead", shape(&timeline)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaction_to_a_dead_message_is_parked_and_comes_back_with_it() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let (conversation, room) = scene.begun().await;
    fake.on_send().fail(413).once();
    let message = say(&scene.ada, &conversation, &json!({})).await;
    eventually("it is dead", || async {
        (scene.database.count("select count(*) from dead_letters").await == 1).then_some(())
    })
    .await;
    react(&scene.grace, &message, THUMB).await;
    let parked: Vec<(String, String)> = sqlx::query_as("select kind, cause from dead_letters order by seq")
        .fetch_all(&scene.database.pool)
        .await
        .unwrap();
    let parked: Vec<_> = parked.iter().map(|(kind, cause)| (kind.as_str(), cause.as_str())).collect();
    assert_eq!(parked, [("message", "own_fault"), ("react", "parent_dead")]);
    let mut tx = scene.database.pool.begin().await.unwrap();
    let all = shared::outbox::Selection::Matching { cause: None, errcode: None };
    let back = shared::outbox::requeue_all(&mut tx, conversation.parse().unwrap(), all).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(back.back.len(), 2);
    scene.drained().await;
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "words", "1 + \u{1f44d}"]);
}

/// The key is gone when the operation is tried again: its transaction is closed without it.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_reaction_that_was_taken_back_never_leaves_again() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.slow_worker().await;
    let (_, room) = scene.begun().await;
    let message = fake.timeline(&room).last().unwrap().content["com.nova.message_id"].as_str().unwrap().to_owned();
    let key = fake.on_any().body_contains("unmistakable").always();
    fake.on_send().drop_after_accept().once();
    react(&scene.grace, &message, "unmistakable").await;
    scene.attempted("ambiguous", 1).await;
    unreact(&scene.grace, &message, "unmistakable").await;
    scene.later().await;
    scene.drained().await;
    assert_eq!(key.hits(), 1);
    assert_eq!(shape(&fake.timeline(&room)), ["begun", "gone", "x 1"]);
    let kinds: Vec<Kind> = sends(&fake).iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Send, Kind::Send, Kind::Send, Kind::Redact]);
}
