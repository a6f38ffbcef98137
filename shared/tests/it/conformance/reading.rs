//! Paging through a room, and who may read what.
use reqwest::Method;
use serde_json::{Value, json};
use shared::testing::matrix_client::MatrixClient;

use super::{Target, assert_refused, bodies, laws};

laws!(
    a_timeline_is_read_page_by_page_in_both_directions,
    the_default_page_has_ten_events,
    a_page_can_be_filtered_by_type_and_sender,
    with_invited_history_a_member_reads_from_the_invite_on,
    with_joined_history_a_member_reads_from_the_join_on,
    with_shared_history_a_member_reads_everything,
    a_kicked_member_reads_up_to_the_kick,
    an_invited_user_reads_nothing,
    events_show_the_transaction_id_to_the_device_that_sent_them,
);

async fn page(user: &MatrixClient, room: &str, query: &[(&str, &str)]) -> (Vec<String>, Option<String>) {
    let page = user.call(Method::GET, &["rooms", room, "messages"], query, None).await.unwrap();
    let text = |event: &Value| event["content"]["body"].as_str().map(str::to_owned);
    let texts = page["chunk"].as_array().unwrap().iter().filter_map(text).collect();
    (texts, page["end"].as_str().map(str::to_owned))
}

async fn a_timeline_is_read_page_by_page_in_both_directions(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    for n in 0..5 {
        user.say(&room, &n.to_string()).await.unwrap();
    }
    let (texts, end) = page(&user, &room, &[("dir", "b"), ("limit", "2")]).await;
    assert_eq!(texts, ["4", "3"]);
    let (texts, end) = page(&user, &room, &[("dir", "b"), ("limit", "2"), ("from", &end.unwrap())]).await;
    assert_eq!(texts, ["2", "1"]);
    let from = end.unwrap();
    let (texts, _) = page(&user, &room, &[("dir", "f"), ("limit", "3"), ("from", &from)]).await;
    assert_eq!(texts, ["1", "2", "3"]);
    // Where nothing more is to come, there is no end token; the page before may still have one.
    let (texts, end) = page(&user, &room, &[("dir", "b"), ("limit", "100"), ("from", &from)]).await;
    assert_eq!(texts, ["0"]);
    if let Some(end) = end {
        let (texts, end) = page(&user, &room, &[("dir", "b"), ("limit", "100"), ("from", &end)]).await;
        assert_eq!((texts.len(), end), (0, None));
    }
}

async fn the_default_page_has_ten_events(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    for n in 0..12 {
        user.say(&room, &n.to_string()).await.unwrap();
    }
    assert_eq!(page(&user, &room, &[("dir", "b")]).await.0.len(), 10);
}

async fn a_page_can_be_filtered_by_type_and_sender(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    user.say(&room, "by user").await.unwrap();
    guest.say(&room, "by guest").await.unwrap();
    user.send(&room, "com.nova.other", "t", &json!({ "body": "other" })).await.unwrap();
    let filter = json!({ "types": ["m.room.message"], "senders": [user.user_id()] }).to_string();
    let (texts, _) = page(&user, &room, &[("dir", "b"), ("limit", "100"), ("filter", &filter)]).await;
    assert_eq!(texts, ["by user"]);
}

async fn room_with_history(user: &MatrixClient, visibility: &str) -> String {
    let content = json!({ "history_visibility": visibility });
    let state = json!({ "type": "m.room.history_visibility", "state_key": "", "content": content });
    user.create_room(&json!({ "initial_state": [state] })).await.unwrap()
}

async fn read_by_late_member(hs: &Target, visibility: &str) -> Vec<String> {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = room_with_history(&user, visibility).await;
    user.say(&room, "before the invite").await.unwrap();
    user.invite(&room, guest.user_id()).await.unwrap();
    user.say(&room, "before the join").await.unwrap();
    guest.join(&room).await.unwrap();
    user.say(&room, "after the join").await.unwrap();
    bodies(&guest, &room).await
}

async fn with_invited_history_a_member_reads_from_the_invite_on(hs: &Target) {
    assert_eq!(read_by_late_member(hs, "invited").await, ["before the join", "after the join"]);
}

async fn with_joined_history_a_member_reads_from_the_join_on(hs: &Target) {
    assert_eq!(read_by_late_member(hs, "joined").await, ["after the join"]);
}

async fn with_shared_history_a_member_reads_everything(hs: &Target) {
    assert_eq!(read_by_late_member(hs, "shared").await.len(), 3);
}

async fn a_kicked_member_reads_up_to_the_kick(hs: &Target) {
    for visibility in ["shared", "invited"] {
        let (user, guest) = (hs.user().await, hs.user().await);
        let room = room_with_history(&user, visibility).await;
        user.invite(&room, guest.user_id()).await.unwrap();
        guest.join(&room).await.unwrap();
        user.say(&room, "before").await.unwrap();
        user.kick(&room, guest.user_id()).await.unwrap();
        user.say(&room, "after").await.unwrap();
        assert_eq!(bodies(&guest, &room).await, ["before"], "{visibility}");
        let state = guest.state(&room, "m.room.member", guest.user_id()).await.unwrap();
        assert_eq!(state["membership"], "leave");
    }
}

async fn an_invited_user_reads_nothing(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[]).await;
    user.invite(&room, guest.user_id()).await.unwrap();
    assert_refused!(guest.timeline(&room).await, 403, "M_FORBIDDEN");
    assert_refused!(guest.state(&room, "m.room.create", "").await, 403, "M_FORBIDDEN");
}

async fn events_show_the_transaction_id_to_the_device_that_sent_them(hs: &Target) {
    let user = hs.login(&hs.user().await, "DEVICE").await;
    let room = hs.room(&user, &[]).await;
    let sent = user.send(&room, "m.room.message", "t", &super::text("x")).await.unwrap();
    let (again, other) = (hs.login(&user, "DEVICE").await, hs.login(&user, "OTHER").await);
    for (reader, expected) in [(&user, Some("t")), (&again, Some("t")), (&other, None)] {
        assert_eq!(reader.event(&room, &sent).await.unwrap().transaction_id(), expected);
        let events = reader.timeline(&room).await.unwrap();
        assert_eq!(events.last().unwrap().transaction_id(), expected);
    }
}
