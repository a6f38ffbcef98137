//! What `/sync` shows, to whom, and how much of it.
use std::time::Duration;

use serde_json::{Value, json};
use shared::testing::matrix_client::MatrixClient;

use super::{Target, laws, text};

laws!(
    an_echo_shows_its_transaction_id_to_its_device_alone,
    a_sync_shows_ten_events_unless_told_otherwise,
    a_filter_sets_the_limit,
    a_gap_can_be_paged_from_its_prev_batch_back_to_the_old_token,
    a_gap_can_be_paged_forwards_from_one_token_of_a_sync_to_the_next,
    a_rooms_history_can_be_paged_forwards_from_its_beginning,
    a_waiting_sync_wakes_up_for_an_event,
    a_sync_without_news_returns_after_its_timeout,
    an_invite_shows_the_state_of_the_room_in_short,
    a_member_who_is_kicked_learns_it,
    a_room_joined_after_the_token_is_shown_with_its_state,
    a_redaction_arrives_as_an_event,
);

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(30);

async fn token(user: &MatrixClient) -> String {
    next(&user.sync(None, NO_WAIT, None).await.unwrap())
}

fn next(sync: &Value) -> String {
    sync["next_batch"].as_str().unwrap().to_owned()
}

fn timeline<'a>(sync: &'a Value, room: &str) -> &'a Vec<Value> {
    sync["rooms"]["join"][room]["timeline"]["events"].as_array().unwrap_or_else(|| panic!("no {room} in {sync}"))
}

fn texts(sync: &Value, room: &str) -> Vec<String> {
    let events = timeline(sync, room).iter();
    events.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

async fn an_echo_shows_its_transaction_id_to_its_device_alone(hs: &Target) {
    let (user, guest) = (hs.login(&hs.user().await, "DEVICE").await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    let (again, other) = (hs.login(&user, "DEVICE").await, hs.login(&user, "OTHER").await);
    let readers = [(&user, Some("t")), (&again, Some("t")), (&other, None), (&guest, None)];
    let mut tokens = Vec::new();
    for (reader, _) in readers {
        tokens.push(token(reader).await);
    }
    let sent = user.send(&room, "m.room.message", "t", &text("x")).await.unwrap();
    for ((reader, expected), since) in readers.into_iter().zip(tokens) {
        let sync = reader.sync(Some(&since), LONG, None).await.unwrap();
        let echo = timeline(&sync, &room).last().unwrap();
        assert_eq!(echo["event_id"], sent);
        assert_eq!(echo["unsigned"]["transaction_id"].as_str(), expected, "{}", reader.user_id());
    }
}

async fn a_sync_shows_ten_events_unless_told_otherwise(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let since = token(&user).await;
    for n in 0..15 {
        user.say(&room, &n.to_string()).await.unwrap();
    }
    let sync = user.sync(Some(&since), NO_WAIT, None).await.unwrap();
    assert_eq!(texts(&sync, &room), (5..15).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(sync["rooms"]["join"][&room]["timeline"]["limited"], true);
}

async fn a_filter_sets_the_limit(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let since = token(&user).await;
    for n in 0..15 {
        user.say(&room, &n.to_string()).await.unwrap();
    }
    let filter = |limit: u32| json!({ "room": { "timeline": { "limit": limit } } });
    let all = user.sync(Some(&since), NO_WAIT, Some(&filter(100))).await.unwrap();
    assert_eq!(texts(&all, &room).len(), 15);
    assert_eq!(all["rooms"]["join"][&room]["timeline"]["limited"], false);
    let few = user.sync(Some(&since), NO_WAIT, Some(&filter(3))).await.unwrap();
    assert_eq!(texts(&few, &room), ["12", "13", "14"]);
    let quiet = json!({ "room": { "timeline": { "not_senders": [user.user_id()] } } });
    let none = user.sync(Some(&since), NO_WAIT, Some(&quiet)).await.unwrap();
    assert!(none["rooms"]["join"][&room]["timeline"]["events"].as_array().is_none_or(Vec::is_empty), "{none}");
}

async fn a_gap_can_be_paged_from_its_prev_batch_back_to_the_old_token(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    user.say(&room, "old").await.unwrap();
    let since = token(&user).await;
    for n in 0..15 {
        user.say(&room, &n.to_string()).await.unwrap();
    }
    let sync = user.sync(Some(&since), NO_WAIT, None).await.unwrap();
    let prev = sync["rooms"]["join"][&room]["timeline"]["prev_batch"].as_str().unwrap();
    let query = [("dir", "b"), ("from", prev), ("to", since.as_str()), ("limit", "100")];
    let page = user.call(reqwest::Method::GET, &["rooms", &room, "messages"], &query, None).await.unwrap();
    let gap: Vec<&str> =
        page["chunk"].as_array().unwrap().iter().filter_map(|e| e["content"]["body"].as_str()).collect();
    assert_eq!(gap, ["4", "3", "2", "1", "0"]);
}

/// All pages of a room's messages, forwards, of so many events each.
async fn forwards(user: &MatrixClient, room: &str, from: Option<&str>, to: &str) -> Vec<String> {
    let (mut from, mut found) = (from.map(str::to_owned), Vec::new());
    loop {
        let mut query = vec![("dir", "f"), ("to", to), ("limit", "4"), ("filter", r#"{"types":["m.room.message"]}"#)];
        query.extend(from.as_deref().map(|from| ("from", from)));
        let page = user.call(reqwest::Method::GET, &["rooms", room, "messages"], &query, None).await.unwrap();
        let events = page["chunk"].as_array().unwrap();
        found.extend(events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)));
        match page["end"].as_str() {
            Some(next) if from.as_deref() != Some(next) => from = Some(next.to_owned()),
            _ => return found,
        }
    }
}

async fn a_gap_can_be_paged_forwards_from_one_token_of_a_sync_to_the_next(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    user.say(&room, "old").await.unwrap();
    let since = token(&user).await;
    let texts: Vec<String> = (0..15).map(|n| n.to_string()).collect();
    for text in &texts {
        user.say(&room, text).await.unwrap();
    }
    let to = next(&user.sync(Some(&since), NO_WAIT, None).await.unwrap());
    user.say(&room, "new").await.unwrap();
    assert_eq!(forwards(&user, &room, Some(&since), &to).await, texts);
}

async fn a_rooms_history_can_be_paged_forwards_from_its_beginning(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let texts: Vec<String> = (0..9).map(|n| n.to_string()).collect();
    for text in &texts {
        user.say(&room, text).await.unwrap();
    }
    let to = token(&user).await;
    user.say(&room, "new").await.unwrap();
    assert_eq!(forwards(&user, &room, None, &to).await, texts);
}

async fn a_waiting_sync_wakes_up_for_an_event(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    let since = token(&guest).await;
    let (sync, sent) = tokio::join!(guest.sync(Some(&since), LONG, None), user.say(&room, "wake up"));
    sent.unwrap();
    assert_eq!(texts(&sync.unwrap(), &room), ["wake up"]);
}

async fn a_sync_without_news_returns_after_its_timeout(hs: &Target) {
    let user = hs.user().await;
    hs.room(&user, &[]).await;
    let since = token(&user).await;
    let sync = user.sync(Some(&since), Duration::from_millis(200), None).await.unwrap();
    assert!(sync["rooms"]["join"].as_object().is_none_or(serde_json::Map::is_empty), "{sync}");
}

async fn an_invite_shows_the_state_of_the_room_in_short(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let since = token(&guest).await;
    let room = user.create_room(&json!({ "name": "A room", "invite": [guest.user_id()] })).await.unwrap();
    for since in [Some(since.as_str()), None] {
        let sync = guest.sync(since, LONG, None).await.unwrap();
        let events = sync["rooms"]["invite"][&room]["invite_state"]["events"].as_array().unwrap();
        let types: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
        assert!(types.contains(&"m.room.name") && types.contains(&"m.room.member"), "{types:?}");
    }
}

async fn a_member_who_is_kicked_learns_it(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    let since = token(&guest).await;
    user.say(&room, "before").await.unwrap();
    user.kick(&room, guest.user_id()).await.unwrap();
    user.say(&room, "after").await.unwrap();
    let sync = guest.sync(Some(&since), LONG, None).await.unwrap();
    let left = &sync["rooms"]["leave"][&room]["timeline"]["events"];
    let events = left.as_array().unwrap_or_else(|| panic!("not left: {sync}"));
    assert_eq!(events[0]["content"]["body"], "before");
    assert_eq!(events.last().unwrap()["content"]["membership"], "leave");
    assert_eq!(events.len(), 2);
}

async fn a_room_joined_after_the_token_is_shown_with_its_state(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let since = token(&guest).await;
    let room = hs.room(&user, &[&guest]).await;
    for n in 0..12 {
        user.say(&room, &n.to_string()).await.unwrap();
    }
    let sync = guest.sync(Some(&since), LONG, None).await.unwrap();
    assert_eq!(texts(&sync, &room).len(), 10);
    let state = sync["rooms"]["join"][&room]["state"]["events"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"), "{state:?}");
}

async fn a_redaction_arrives_as_an_event(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    let sent = user.say(&room, "x").await.unwrap();
    let since = token(&guest).await;
    let redaction = user.redact(&room, &sent, "t", &json!({ "com.nova.outbox_id": "1" })).await.unwrap();
    let sync = guest.sync(Some(&since), LONG, None).await.unwrap();
    let event = timeline(&sync, &room).last().unwrap();
    assert_eq!((&event["event_id"], &event["type"]), (&json!(redaction), &json!("m.room.redaction")));
    assert_eq!((&event["redacts"], &event["content"]["redacts"]), (&json!(sent), &json!(sent)));
    assert_eq!(event["content"]["com.nova.outbox_id"], "1");
}
