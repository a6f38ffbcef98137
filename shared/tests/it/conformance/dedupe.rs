//! What a transaction id is unique within.
use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::{Target, assert_refused, bodies, laws, random, text};

laws!(
    the_first_body_of_a_transaction_id_is_kept,
    a_new_token_of_the_same_device_is_the_same_sender,
    another_device_makes_a_new_event,
    another_room_makes_a_new_event,
    another_event_type_makes_no_new_event,
    a_redaction_with_the_transaction_id_of_a_send_does_nothing,
    a_redaction_with_the_transaction_id_of_a_redaction_does_nothing,
    a_second_redaction_with_its_own_transaction_id_is_accepted,
    concurrent_puts_of_one_transaction_id_make_one_event,
    concurrent_puts_of_one_transaction_id_under_several_types_make_one_event,
    a_put_whose_sender_hangs_up_and_its_retry_make_one_event,
    logout_forgets_the_durable_memory_of_its_device,
    what_failed_is_not_remembered,
    a_repeated_put_is_answered_whatever_its_body,
    a_repeated_put_is_answered_after_leaving,
    a_redacted_event_keeps_its_transaction_id,
    transaction_ids_may_be_long_and_odd,
);

async fn the_first_body_of_a_transaction_id_is_kept(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let first = user.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    let second = user.send(&room, "m.room.message", "t", &text("two")).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(bodies(&user, &room).await, ["one"]);
}

async fn a_new_token_of_the_same_device_is_the_same_sender(hs: &Target) {
    let user = hs.login(&hs.user().await, "DEVICE").await;
    let room = hs.room(&user, &[]).await;
    let first = user.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    let again = hs.login(&user, "DEVICE").await;
    assert_ne!(user.access_token(), again.access_token());
    assert_eq!(again.send(&room, "m.room.message", "t", &text("two")).await.unwrap(), first);
    // Nor did the new login end the old one.
    assert_eq!(user.send(&room, "m.room.message", "t", &text("three")).await.unwrap(), first);
}

async fn another_device_makes_a_new_event(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let first = user.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    let other = hs.login(&user, "OTHER").await;
    assert_ne!(other.send(&room, "m.room.message", "t", &text("two")).await.unwrap(), first);
    assert_eq!(bodies(&user, &room).await, ["one", "two"]);
}

async fn another_room_makes_a_new_event(hs: &Target) {
    let user = hs.user().await;
    let (one, two) = (hs.room(&user, &[]).await, hs.room(&user, &[]).await);
    let first = user.send(&one, "m.room.message", "t", &text("one")).await.unwrap();
    assert_ne!(user.send(&two, "m.room.message", "t", &text("two")).await.unwrap(), first);
    assert_eq!(bodies(&user, &two).await, ["two"]);
}

async fn another_event_type_makes_no_new_event(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let first = user.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    assert_eq!(user.send(&room, "com.nova.other", "t", &json!({ "a": 1 })).await.unwrap(), first);
    let events = user.timeline(&room).await.unwrap();
    assert!(events.iter().all(|event| event.event_type != "com.nova.other"));
}

async fn a_redaction_with_the_transaction_id_of_a_send_does_nothing(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let sent = user.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    assert_eq!(user.redact(&room, &sent, "t", &json!({})).await.unwrap(), sent);
    assert_eq!(bodies(&user, &room).await, ["one"]);
}

async fn a_redaction_with_the_transaction_id_of_a_redaction_does_nothing(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let (a, b) = (user.say(&room, "a").await.unwrap(), user.say(&room, "b").await.unwrap());
    let redaction = user.redact(&room, &a, "t", &json!({})).await.unwrap();
    assert_eq!(user.redact(&room, &b, "t", &json!({})).await.unwrap(), redaction);
    assert_eq!(bodies(&user, &room).await, ["b"]);
}

async fn a_second_redaction_with_its_own_transaction_id_is_accepted(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let sent = user.say(&room, "a").await.unwrap();
    let first = user.redact(&room, &sent, "t1", &json!({})).await.unwrap();
    assert_ne!(user.redact(&room, &sent, "t2", &json!({})).await.unwrap(), first);
    let events = user.timeline(&room).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.event_type == "m.room.redaction").count(), 2);
}

async fn concurrent_puts_of_one_transaction_id_make_one_event(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let contents: Vec<_> = (0..8).map(|n| text(&n.to_string())).collect();
    let sent = join_all(contents.iter().map(|content| user.send(&room, "m.room.message", "t", content))).await;
    let ids: Vec<String> = sent.into_iter().map(Result::unwrap).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(bodies(&user, &room).await.len(), 1);
}

async fn concurrent_puts_of_one_transaction_id_under_several_types_make_one_event(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let types: Vec<String> = (0..8).map(|n| format!("com.nova.type{n}")).collect();
    let content = json!({});
    let sent = join_all(types.iter().map(|event_type| user.send(&room, event_type, "t", &content))).await;
    let ids: Vec<String> = sent.into_iter().map(Result::unwrap).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let events = user.timeline(&room).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.event_type.starts_with("com.nova.type")).count(), 1);
}

async fn a_put_whose_sender_hangs_up_and_its_retry_make_one_event(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let host = hs.home.url.strip_prefix("http://").unwrap();
    let body = text("once").to_string();
    let request = format!(
        "PUT /_matrix/client/v3/rooms/{room}/send/m.room.message/t HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        user.access_token(),
        body.len(),
    );
    let mut socket = tokio::net::TcpStream::connect(host).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    drop(socket);
    user.send(&room, "m.room.message", "t", &text("once")).await.unwrap();
    assert_eq!(bodies(&user, &room).await, ["once"]);
}

async fn logout_forgets_the_durable_memory_of_its_device(hs: &Target) {
    let user = hs.user().await;
    let device = hs.login(&user, "DEVICE").await;
    let room = hs.room(&user, &[]).await;
    let first = device.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    device.logout().await.unwrap();
    let again = hs.login(&user, "DEVICE").await;
    // The memory in RAM goes by path, and outlives the device.
    assert_eq!(again.send(&room, "m.room.message", "t", &text("one")).await.unwrap(), first);
    assert_ne!(again.send(&room, "com.nova.other", "t", &json!({})).await.unwrap(), first);
}

async fn what_failed_is_not_remembered(hs: &Target) {
    let (owner, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&owner, &[]).await;
    guest.send(&room, "m.room.message", "t", &text("one")).await.unwrap_err();
    owner.invite(&room, guest.user_id()).await.unwrap();
    guest.join(&room).await.unwrap();
    guest.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    assert_eq!(bodies(&owner, &room).await, ["one"]);
}

async fn a_repeated_put_is_answered_whatever_its_body(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let first = user.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    let path = ["_matrix", "client", "v3", "rooms", &room, "send", "m.room.message", "t"];
    let broken = user.call_raw(reqwest::Method::PUT, &path, &[], Some(b"{".to_vec())).await.unwrap();
    assert_eq!(broken["event_id"], first);
    // Another type is another path, which only the durable memory knows: that one is asked after the body was read.
    let path = ["_matrix", "client", "v3", "rooms", &room, "send", "com.nova.other", "t"];
    let broken = user.call_raw(reqwest::Method::PUT, &path, &[], Some(b"{".to_vec())).await;
    assert_refused!(broken, 400, "M_NOT_JSON");
    let float = json!({ "number": 1.5 });
    assert_eq!(user.send(&room, "com.nova.other", "t", &float).await.unwrap(), first);
}

async fn a_repeated_put_is_answered_after_leaving(hs: &Target) {
    let (owner, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&owner, &[&guest]).await;
    let first = guest.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    owner.kick(&room, guest.user_id()).await.unwrap();
    for event_type in ["m.room.message", "com.nova.other"] {
        assert_eq!(guest.send(&room, event_type, "t", &text("one")).await.unwrap(), first, "{event_type}");
    }
    assert_refused!(guest.say(&room, "two").await, 403, "M_FORBIDDEN");
}

async fn a_redacted_event_keeps_its_transaction_id(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let first = user.send(&room, "m.room.message", "t", &text("one")).await.unwrap();
    user.redact(&room, &first, "r", &json!({})).await.unwrap();
    for event_type in ["m.room.message", "com.nova.other"] {
        assert_eq!(user.send(&room, event_type, "t", &text("one")).await.unwrap(), first, "{event_type}");
    }
    assert!(bodies(&user, &room).await.is_empty());
}

async fn transaction_ids_may_be_long_and_odd(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    for txn in ["x".repeat(600), "a/b c é".to_owned(), random("t")] {
        let first = user.send(&room, "m.room.message", &txn, &text("one")).await.unwrap();
        assert_eq!(user.send(&room, "m.room.message", &txn, &text("one")).await.unwrap(), first);
    }
    assert_eq!(bodies(&user, &room).await.len(), 3);
}
