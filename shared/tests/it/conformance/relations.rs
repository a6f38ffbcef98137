//! Edits and redactions.
use serde_json::{Value, json};
use shared::testing::matrix_client::MatrixEvent;

use super::{Target, edit_of, laws, text};

laws!(
    an_edit_leaves_the_original_and_is_bundled_with_it,
    relations_list_the_newest_first,
    the_edit_of_another_does_not_count,
    an_edit_of_an_edit_does_not_count,
    an_edit_without_new_content_is_bundled,
    a_redacted_edit_gives_way_to_the_one_before,
    redacting_the_original_leaves_the_text_of_its_edits,
    a_redacted_original_can_still_be_edited,
    redaction_strips_content_and_names_itself,
    a_redaction_keeps_what_its_content_carries,
    state_set_to_what_it_is_makes_no_event,
    an_account_annotates_an_event_with_a_key_once,
    a_redacted_annotation_can_be_made_again,
    no_thread_begins_within_a_thread,
);

fn bundled(event: &MatrixEvent) -> Option<&Value> {
    event.unsigned.get("m.relations")?.get("m.replace")
}

async fn an_edit_leaves_the_original_and_is_bundled_with_it(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let original = user.say(&room, "one").await.unwrap();
    user.send(&room, "m.room.message", "t1", &edit_of(&original, "two")).await.unwrap();
    let newest = user.send(&room, "m.room.message", "t2", &edit_of(&original, "three")).await.unwrap();
    let event = user.event(&room, &original).await.unwrap();
    assert_eq!(event.body(), Some("one"));
    let edit = bundled(&event).unwrap();
    assert_eq!((&edit["event_id"], &edit["content"]["m.new_content"]["body"]), (&json!(newest), &json!("three")));
    let read = user.timeline(&room).await.unwrap();
    let in_timeline = read.iter().find(|event| event.event_id == original).unwrap();
    assert_eq!(bundled(in_timeline).unwrap()["event_id"], newest);
}

async fn relations_list_the_newest_first(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let original = user.say(&room, "one").await.unwrap();
    let first = user.send(&room, "m.room.message", "t1", &edit_of(&original, "two")).await.unwrap();
    let second = user.send(&room, "m.room.message", "t2", &edit_of(&original, "three")).await.unwrap();
    let edits = user.relations(&room, &original, "m.replace").await.unwrap();
    assert_eq!(edits.iter().map(|edit| &edit.event_id).collect::<Vec<_>>(), [&second, &first]);
    assert_eq!(edits[0].replaces(), Some(original.as_str()));
}

async fn the_edit_of_another_does_not_count(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    let original = user.say(&room, "one").await.unwrap();
    guest.send(&room, "m.room.message", "t", &edit_of(&original, "two")).await.unwrap();
    assert_eq!(bundled(&user.event(&room, &original).await.unwrap()), None);
}

async fn an_edit_of_an_edit_does_not_count(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let original = user.say(&room, "one").await.unwrap();
    let edit = user.send(&room, "m.room.message", "t1", &edit_of(&original, "two")).await.unwrap();
    user.send(&room, "m.room.message", "t2", &edit_of(&edit, "three")).await.unwrap();
    let event = user.event(&room, &original).await.unwrap();
    assert_eq!(bundled(&event).unwrap()["event_id"], edit);
}

async fn an_edit_without_new_content_is_bundled(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let original = user.say(&room, "one").await.unwrap();
    let mut edit = edit_of(&original, "two");
    edit.as_object_mut().unwrap().remove("m.new_content");
    let sent = user.send(&room, "m.room.message", "t", &edit).await.unwrap();
    assert_eq!(bundled(&user.event(&room, &original).await.unwrap()).unwrap()["event_id"], sent);
}

async fn a_redacted_edit_gives_way_to_the_one_before(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let original = user.say(&room, "one").await.unwrap();
    let first = user.send(&room, "m.room.message", "t1", &edit_of(&original, "two")).await.unwrap();
    let second = user.send(&room, "m.room.message", "t2", &edit_of(&original, "three")).await.unwrap();
    user.redact(&room, &second, "t3", &json!({})).await.unwrap();
    assert_eq!(bundled(&user.event(&room, &original).await.unwrap()).unwrap()["event_id"], first);
    assert_eq!(user.relations(&room, &original, "m.replace").await.unwrap().len(), 1);
    user.redact(&room, &first, "t4", &json!({})).await.unwrap();
    assert_eq!(bundled(&user.event(&room, &original).await.unwrap()), None);
}

async fn redacting_the_original_leaves_the_text_of_its_edits(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let original = user.say(&room, "one").await.unwrap();
    let edit = user.send(&room, "m.room.message", "t1", &edit_of(&original, "two")).await.unwrap();
    user.redact(&room, &original, "t2", &json!({})).await.unwrap();
    let event = user.event(&room, &original).await.unwrap();
    assert_eq!((&event.content, bundled(&event)), (&json!({}), None));
    let edit = user.event(&room, &edit).await.unwrap();
    assert_eq!(edit.content["m.new_content"]["body"], "two");
}

async fn a_redacted_original_can_still_be_edited(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let original = user.say(&room, "one").await.unwrap();
    user.redact(&room, &original, "t1", &json!({})).await.unwrap();
    user.send(&room, "m.room.message", "t2", &edit_of(&original, "two")).await.unwrap();
    assert_eq!(bundled(&user.event(&room, &original).await.unwrap()), None);
}

async fn redaction_strips_content_and_names_itself(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let mut content = text("one");
    content["com.nova.message_id"] = json!("1");
    let sent = user.send(&room, "m.room.message", "t1", &content).await.unwrap();
    let redaction = user.redact(&room, &sent, "t2", &json!({ "reason": "why" })).await.unwrap();
    for event in [
        user.event(&room, &sent).await.unwrap(),
        user.timeline(&room).await.unwrap().into_iter().find(|event| event.event_id == sent).unwrap(),
    ] {
        assert_eq!(event.content, json!({}));
        assert!(event.is_redacted());
        assert_eq!(event.unsigned["redacted_because"]["event_id"], redaction);
        assert_eq!(event.unsigned["redacted_by"], redaction);
    }
}

async fn a_redaction_keeps_what_its_content_carries(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let sent = user.say(&room, "one").await.unwrap();
    let marked = json!({ "reason": "why", "com.nova.outbox_id": "1" });
    let redaction = user.redact(&room, &sent, "t", &marked).await.unwrap();
    let event = user.event(&room, &redaction).await.unwrap();
    let expected = json!({ "reason": "why", "com.nova.outbox_id": "1", "redacts": sent });
    assert_eq!((event.event_type.as_str(), &event.content), ("m.room.redaction", &expected));
}

async fn state_set_to_what_it_is_makes_no_event(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let first = user.put_state(&room, "com.nova.x", "", &json!({ "a": 1 })).await.unwrap();
    let second = user.put_state(&room, "com.nova.x", "", &json!({ "a": 1 })).await.unwrap();
    assert_eq!(first, second);
    assert_ne!(user.put_state(&room, "com.nova.x", "", &json!({ "a": 2 })).await.unwrap(), first);
    assert_eq!(user.state(&room, "com.nova.x", "").await.unwrap(), json!({ "a": 2 }));
}

fn annotation_of(event: &str, key: &str) -> Value {
    json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": event, "key": key } })
}

async fn an_account_annotates_an_event_with_a_key_once(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    let original = user.say(&room, "one").await.unwrap();
    user.send(&room, "m.reaction", "t1", &annotation_of(&original, "a")).await.unwrap();
    let again = user.send(&room, "m.reaction", "t2", &annotation_of(&original, "a")).await.unwrap_err();
    assert_eq!((again.status(), again.errcode()), (Some(400), "M_DUPLICATE_ANNOTATION"));
    // Under the transaction id of the first it is no second one.
    user.send(&room, "m.reaction", "t1", &annotation_of(&original, "a")).await.unwrap();
    user.send(&room, "m.reaction", "t3", &annotation_of(&original, "b")).await.unwrap();
    guest.send(&room, "m.reaction", "t4", &annotation_of(&original, "a")).await.unwrap();
    assert_eq!(user.relations(&room, &original, "m.annotation").await.unwrap().len(), 3);
}

async fn a_redacted_annotation_can_be_made_again(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let original = user.say(&room, "one").await.unwrap();
    let first = user.send(&room, "m.reaction", "t1", &annotation_of(&original, "a")).await.unwrap();
    user.redact(&room, &first, "t2", &json!({})).await.unwrap();
    let second = user.send(&room, "m.reaction", "t3", &annotation_of(&original, "a")).await.unwrap();
    let standing = user.relations(&room, &original, "m.annotation").await.unwrap();
    assert_eq!(standing.iter().map(|event| &event.event_id).collect::<Vec<_>>(), [&second]);
}

async fn no_thread_begins_within_a_thread(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let in_thread = |event: &str| {
        let mut content = text("words");
        content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": event });
        content
    };
    let original = user.say(&room, "one").await.unwrap();
    let second = user.send(&room, "m.room.message", "t1", &in_thread(&original)).await.unwrap();
    let refused = user.send(&room, "m.room.message", "t2", &in_thread(&second)).await.unwrap_err();
    assert_eq!(refused.status(), Some(400));
    // A reply is no relation of that sort.
    let mut reply = text("words");
    reply["m.relates_to"] = json!({ "m.in_reply_to": { "event_id": original } });
    let reply = user.send(&room, "m.room.message", "t3", &reply).await.unwrap();
    user.send(&room, "m.room.message", "t4", &in_thread(&reply)).await.unwrap();
}
