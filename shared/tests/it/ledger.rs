//! The ledger finds each kind of damage, made here by hand, and nothing where there is none.
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use shared::testing::homeserver::FakeHomeserver;
use shared::testing::ledger::{
    Asked, Deletion, Discrepancy, Ledger, Report, Senders, Summary, conversation_alias, matrix_user,
};
use shared::testing::matrix_client::{HomeserverAddress, MatrixClient};
use uuid::Uuid;

/// A conversation with one room, made and filled as the product would.
struct Stage {
    hs: FakeHomeserver,
    service: MatrixClient,
    asked: Asked,
    conversation: Uuid,
    author: Uuid,
    room: String,
    seq: AtomicI64,
}

/// A message as the API told it to its client, and as it stands in the room.
struct Sent {
    message_id: Uuid,
    event_id: String,
}

impl Stage {
    async fn set() -> Self {
        let hs = FakeHomeserver::start().await;
        let home = HomeserverAddress::from(&hs);
        let service = MatrixClient::register(&home, "nova-service", "password").await.unwrap();
        let (asked, conversation, author) = (Asked::new(), Uuid::new_v4(), Uuid::new_v4());
        asked.conversation(conversation, &[author]);
        let room = make_room(&service, conversation, &[author]).await;
        Self { hs, service, asked, conversation, author, room, seq: AtomicI64::new(0) }
    }

    fn ledger(&self) -> Ledger {
        Ledger::new(&self.asked, &self.service, Senders::ServiceAccount(self.service.user_id().to_owned()))
    }

    async fn check(&self) -> Result<Summary, Report> {
        self.ledger().check().await
    }

    /// What the ledger finds.
    async fn found(&self) -> Vec<Discrepancy> {
        self.check().await.unwrap_err().discrepancies
    }

    fn next_seq(&self) -> i64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn content(&self, message_id: Uuid, revision: i64, text: &str) -> Value {
        json!({
            "msgtype": "m.text",
            "body": text,
            "com.nova.outbox_id": Uuid::new_v4(),
            "com.nova.message_id": message_id,
            "com.nova.sender_id": self.author,
            "com.nova.revision": revision,
        })
    }

    async fn put(&self, content: &Value) -> String {
        self.service.send(&self.room, "m.room.message", &Uuid::new_v4().to_string(), content).await.unwrap()
    }

    /// Posted, acknowledged, delivered.
    async fn message(&self, text: &str) -> Sent {
        let message_id = Uuid::new_v4();
        self.asked.posted(self.conversation, self.author, message_id, self.next_seq(), text);
        Sent { message_id, event_id: self.put(&self.content(message_id, 1, text)).await }
    }

    /// Posted and acknowledged, and no more.
    fn promised(&self, text: &str) -> Uuid {
        let message_id = Uuid::new_v4();
        self.asked.posted(self.conversation, self.author, message_id, self.next_seq(), text);
        message_id
    }

    async fn put_edit(&self, sent: &Sent, revision: i64, text: &str) -> String {
        let mut content = self.content(sent.message_id, revision, &format!("* {text}"));
        content["m.new_content"] = json!({ "msgtype": "m.text", "body": text });
        content["m.relates_to"] = json!({ "rel_type": "m.replace", "event_id": sent.event_id });
        self.put(&content).await
    }

    async fn edit(&self, sent: &Sent, revision: i64, text: &str) -> String {
        self.asked.edit(sent.message_id, text).answered(revision);
        self.put_edit(sent, revision, text).await
    }

    async fn react(&self, to: &Sent, key: &str) -> String {
        let content = json!({
            "m.relates_to": { "rel_type": "m.annotation", "event_id": to.event_id, "key": key },
            "com.nova.outbox_id": Uuid::new_v4(),
            "com.nova.sender_id": self.author,
        });
        self.service.send(&self.room, "m.reaction", &Uuid::new_v4().to_string(), &content).await.unwrap()
    }

    /// Posted and acknowledged as an answer to that message; names that event.
    async fn reply(&self, event_id: &str, to: Uuid) -> Uuid {
        let message_id = Uuid::new_v4();
        let entry = self.asked.post(self.conversation, self.author, "a reply").replying_to(to);
        entry.answered(message_id, self.next_seq());
        let mut content = self.content(message_id, 1, "a reply");
        content["m.relates_to"] = json!({ "m.in_reply_to": { "event_id": event_id } });
        self.put(&content).await;
        message_id
    }

    async fn redact(&self, event_id: &str) {
        let txn = Uuid::new_v4().to_string();
        self.service.redact(&self.room, event_id, &txn, &json!({ "com.nova.outbox_id": txn })).await.unwrap();
    }
}

async fn make_room(service: &MatrixClient, conversation: Uuid, members: &[Uuid]) -> String {
    let server_name = &service.home().server_name;
    let alias = conversation_alias(conversation, server_name);
    let name = alias.trim_start_matches('#').split(':').next().unwrap();
    let marker = json!({ "conversation_id": conversation });
    let invite: Vec<String> = members.iter().map(|&member| matrix_user(member, server_name)).collect();
    let body = json!({
        "room_alias_name": name,
        "invite": invite,
        "initial_state": [{ "type": "com.nova.conversation", "state_key": "", "content": marker }],
    });
    service.create_room(&body).await.unwrap()
}

#[tokio::test]
async fn what_is_as_asked_passes() {
    let stage = Stage::set().await;
    stage.message("one").await;
    let edited = stage.message("two").await;
    stage.edit(&edited, 2, "two, edited").await;
    stage.edit(&edited, 3, "two, edited again").await;
    let deleted = stage.message("three, to be deleted").await;
    let edit = stage.edit(&deleted, 2, "three, edited and to be deleted").await;
    stage.redact(&deleted.event_id).await;
    stage.redact(&edit).await;
    stage.asked.delete(deleted.message_id).answered(Deletion::Redacting);
    let cancelled = stage.promised("four, cancelled");
    stage.asked.delete(cancelled).answered(Deletion::Cancelled);
    let merged = stage.promised("five");
    stage.asked.edit(merged, "five, edited before it left").answered(2);
    stage.put(&stage.content(merged, 2, "five, edited before it left")).await;
    let reacted = stage.message("six").await;
    stage.react(&reacted, "+1").await;
    stage.asked.react(reacted.message_id, stage.author, "+1").answered();
    let taken_back = stage.react(&reacted, "-1").await;
    stage.redact(&taken_back).await;
    stage.asked.unreact(reacted.message_id, stage.author, "-1").answered();
    stage.reply(&reacted.event_id, reacted.message_id).await;
    let summary = stage.ledger().exclusive().assert_settled().await;
    let expected = Summary {
        conversations: 1,
        rooms: 1,
        events: summary.events,
        messages: 5,
        edits: 2,
        redacted: 2,
        reactions: 1,
        unanswered: 0,
    };
    assert_eq!(summary, expected);
}

#[tokio::test]
async fn a_missing_message_is_found() {
    let stage = Stage::set().await;
    stage.message("one").await;
    let missing = stage.promised("two");
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::Missing { message_id, .. }] if *message_id == missing), "{found:?}");
    stage.asked.given_up(missing);
    stage.check().await.unwrap();
}

#[tokio::test]
async fn a_doubled_message_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    let copy = stage.put(&stage.content(sent.message_id, 1, "one")).await;
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::Doubled { second, .. }] if *second == copy), "{found:?}");
}

#[tokio::test]
async fn a_doubled_operation_is_found() {
    let stage = Stage::set().await;
    let message_id = stage.promised("one");
    let content = stage.content(message_id, 1, "one");
    stage.put(&content).await;
    stage.put(&content).await;
    let found = stage.found().await;
    assert!(found.iter().any(|found| matches!(found, Discrepancy::DoubledOperation { .. })), "{found:?}");
}

#[tokio::test]
async fn a_doubled_edit_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    stage.edit(&sent, 2, "two").await;
    stage.put_edit(&sent, 2, "two").await;
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::Doubled { .. }]), "{found:?}");
}

#[tokio::test]
async fn wrong_order_is_found() {
    let stage = Stage::set().await;
    let first = stage.promised("one");
    let second = stage.message("two").await;
    stage.put(&stage.content(first, 1, "one")).await;
    stage.message("three").await;
    let found = stage.found().await;
    let expected = Discrepancy::Reordered { message_id: first, seq: 1, ahead: second.message_id, ahead_seq: 2 };
    assert_eq!(found, [expected]);
    stage.asked.requeued(first);
    stage.check().await.unwrap();
}

#[tokio::test]
async fn a_leak_after_a_cancel_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("never to be seen").await;
    stage.asked.delete(sent.message_id).answered(Deletion::Cancelled);
    let found = stage.found().await;
    let expected = Discrepancy::LeakedAfterCancel { message_id: sent.message_id, event_id: sent.event_id.clone() };
    assert_eq!(found, [expected]);
    // Redacting it afterwards does not undo that it was seen.
    stage.redact(&sent.event_id).await;
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::RedactedUnasked { redacted: 1, allowed: 0, .. }]), "{found:?}");
}

#[tokio::test]
async fn a_leak_under_another_name_is_found() {
    let stage = Stage::set().await;
    let cancelled = stage.promised("never to be seen");
    stage.asked.delete(cancelled).answered(Deletion::Cancelled);
    let content = json!({ "name": "he said: never to be seen" });
    stage.service.put_state(&stage.room, "m.room.name", "", &content).await.unwrap();
    let found = stage.found().await;
    assert!(
        matches!(&found[..], [Discrepancy::LeakedText { message_id, .. }] if *message_id == cancelled),
        "{found:?}"
    );
}

#[tokio::test]
async fn an_unredacted_original_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    stage.asked.delete(sent.message_id).answered(Deletion::Redacting);
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::Unredacted { is_edit: false, .. }]), "{found:?}");
}

#[tokio::test]
async fn an_unredacted_edit_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    let edit = stage.edit(&sent, 2, "two").await;
    stage.asked.delete(sent.message_id).answered(Deletion::Redacting);
    stage.redact(&sent.event_id).await;
    let found = stage.found().await;
    let is_edit = matches!(&found[..], [Discrepancy::Unredacted { event_id, is_edit: true, .. }] if *event_id == edit);
    assert!(is_edit, "{found:?}");
}

#[tokio::test]
async fn a_redaction_without_a_deletion_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    stage.redact(&sent.event_id).await;
    let found = stage.found().await;
    assert!(found.iter().any(|found| matches!(found, Discrepancy::Missing { .. })), "{found:?}");
    assert!(found.iter().any(|found| matches!(found, Discrepancy::RedactedUnasked { .. })), "{found:?}");
}

#[tokio::test]
async fn a_wrong_text_is_found() {
    let stage = Stage::set().await;
    let message_id = stage.promised("one");
    stage.put(&stage.content(message_id, 1, "another")).await;
    let found = stage.found().await;
    assert!(
        matches!(&found[..], [Discrepancy::UnaskedText { .. }, Discrepancy::WrongText { found, .. }] if found == "another"),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_lost_edit_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    stage.asked.edit(sent.message_id, "two").answered(2);
    let found = stage.found().await;
    let is_old =
        matches!(&found[..], [Discrepancy::WrongText { found, expected, .. }] if found == "one" && expected == "two");
    assert!(is_old, "{found:?}");
}

#[tokio::test]
async fn edits_in_the_wrong_order_are_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    stage.edit(&sent, 3, "three").await;
    stage.edit(&sent, 2, "two").await;
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::WrongText { found, .. }] if found == "two"), "{found:?}");
}

#[tokio::test]
async fn an_edit_of_something_else_is_found() {
    let stage = Stage::set().await;
    let (one, other) = (stage.message("one").await, stage.message("other").await);
    let astray = Sent { message_id: one.message_id, event_id: other.event_id };
    stage.edit(&astray, 2, "two").await;
    let found = stage.found().await;
    assert!(found.iter().any(|found| matches!(found, Discrepancy::MisaimedEdit { .. })), "{found:?}");
}

#[tokio::test]
async fn a_wrong_author_is_found() {
    let stage = Stage::set().await;
    let message_id = stage.promised("one");
    let mut content = stage.content(message_id, 1, "one");
    content["com.nova.sender_id"] = json!(Uuid::new_v4());
    stage.put(&content).await;
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::WrongAuthor { .. }]), "{found:?}");
}

#[tokio::test]
async fn a_wrong_event_id_is_found() {
    let stage = Stage::set().await;
    let (one, two) = (stage.message("one").await, stage.message("two").await);
    stage.asked.event_id(one.message_id, &one.event_id);
    stage.check().await.unwrap();
    stage.asked.event_id(one.message_id, &two.event_id);
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::WrongEventId { .. }]), "{found:?}");
}

#[tokio::test]
async fn foreign_events_are_found() {
    let stage = Stage::set().await;
    stage.service.say(&stage.room, "no marker").await.unwrap();
    stage.put(&stage.content(Uuid::new_v4(), 1, "nobody posted it")).await;
    stage.service.send(&stage.room, "com.nova.other", "t", &json!({})).await.unwrap();
    stage.service.put_state(&stage.room, "com.nova.other", "", &json!({})).await.unwrap();
    let found = stage.found().await;
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found.iter().all(|found| matches!(found, Discrepancy::Foreign { .. })), "{found:?}");
}

#[tokio::test]
async fn what_others_say_is_foreign_unless_it_is_declared() {
    let stage = Stage::set().await;
    let localpart = format!("nova-{}", stage.author.simple());
    let member = MatrixClient::register(stage.service.home(), &localpart, "password").await.unwrap();
    member.join(&stage.room).await.unwrap();
    let said = member.say(&stage.room, "hello").await.unwrap();
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::Foreign { sender, .. }] if sender == member.user_id()), "{found:?}");
    stage.asked.outside_event(&said);
    stage.check().await.unwrap();
}

#[tokio::test]
async fn a_post_without_an_answer_may_be_there_once() {
    let stage = Stage::set().await;
    let post = stage.asked.post(stage.conversation, stage.author, "perhaps");
    stage.check().await.unwrap();
    let message_id = Uuid::new_v4();
    stage.put(&stage.content(message_id, 1, "perhaps")).await;
    assert_eq!(stage.check().await.unwrap().unanswered, 1);
    stage.put(&stage.content(message_id, 1, "perhaps")).await;
    assert!(matches!(&stage.found().await[..], [Discrepancy::Doubled { .. }]));
    post.refused();
    assert!(stage.found().await.iter().all(|found| matches!(found, Discrepancy::Foreign { .. })));
}

#[tokio::test]
async fn a_change_without_an_answer_may_have_been_made() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    drop(stage.asked.edit(sent.message_id, "two"));
    stage.check().await.unwrap();
    let edit = stage.put_edit(&sent, 2, "two").await;
    stage.check().await.unwrap();
    drop(stage.asked.delete(sent.message_id));
    stage.check().await.unwrap();
    stage.redact(&sent.event_id).await;
    assert!(matches!(&stage.found().await[..], [Discrepancy::Unredacted { is_edit: true, .. }]));
    stage.redact(&edit).await;
    stage.check().await.unwrap();
}

#[tokio::test]
async fn members_are_compared() {
    let stage = Stage::set().await;
    let (added, removed, stranger) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let user = |member| matrix_user(member, stage.hs.server_name());
    stage.asked.add_member(stage.conversation, added).answered();
    stage.asked.add_member(stage.conversation, removed).answered();
    stage.service.invite(&stage.room, &user(removed)).await.unwrap();
    stage.asked.remove_member(stage.conversation, removed).answered();
    stage.service.invite(&stage.room, &user(stranger)).await.unwrap();
    let mut found = stage.found().await;
    found.sort_by_key(ToString::to_string);
    assert!(
        matches!(
            &found[..],
            [
                Discrepancy::MemberMissing { user_id: missing, .. },
                Discrepancy::MemberRemains { user_id: remains, .. },
                Discrepancy::MemberUnasked { user_id: unasked, .. },
            ] if *missing == user(added) && *remains == user(removed) && *unasked == user(stranger)
        ),
        "{found:?}"
    );
    stage.service.invite(&stage.room, &user(added)).await.unwrap();
    stage.service.kick(&stage.room, &user(removed)).await.unwrap();
    stage.asked.outsider(&user(stranger));
    stage.check().await.unwrap();
}

#[tokio::test]
async fn a_conversation_has_one_room() {
    let stage = Stage::set().await;
    let conversation = Uuid::new_v4();
    stage.asked.conversation(conversation, &[stage.author]);
    // Nothing was to be sent yet.
    stage.check().await.unwrap();
    let post = stage.asked.post(conversation, stage.author, "one");
    stage.check().await.unwrap();
    post.answered(Uuid::new_v4(), 1);
    assert_eq!(stage.found().await, [Discrepancy::NoRoom { conversation }]);
}

#[tokio::test]
async fn a_second_room_of_a_conversation_is_found() {
    let stage = Stage::set().await;
    stage.message("one").await;
    let marker = json!({ "conversation_id": stage.conversation });
    let initial = json!([{ "type": "com.nova.conversation", "state_key": "", "content": marker }]);
    let invite = matrix_user(stage.author, stage.hs.server_name());
    stage.service.create_room(&json!({ "initial_state": initial, "invite": [invite] })).await.unwrap();
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::SeveralRooms { rooms, .. }, ..] if rooms.len() == 2), "{found:?}");
    assert!(found.iter().any(|found| matches!(found, Discrepancy::MisaimedAlias { .. })), "{found:?}");
}

#[tokio::test]
async fn a_half_made_room_is_found_where_no_other_may_be() {
    let stage = Stage::set().await;
    stage.hs.on_create_room().stop_after(4).fail(500).once();
    stage.service.create_room(&json!({})).await.unwrap_err();
    stage.check().await.unwrap();
    let report = stage.ledger().exclusive().check().await.unwrap_err();
    assert!(matches!(&report.discrepancies[..], [Discrepancy::UnaskedRoom { marker: None, .. }]), "{report}");
}

#[tokio::test]
async fn voids_and_calls_with_our_marker_are_in_order() {
    let stage = Stage::set().await;
    let marked = || json!({ "com.nova.outbox_id": Uuid::new_v4() });
    stage.service.send(&stage.room, "com.nova.outbox.void", "t1", &marked()).await.unwrap();
    stage.service.send(&stage.room, "m.call.invite", "t2", &marked()).await.unwrap();
    stage.check().await.unwrap();
    let hangup = marked();
    for txn in ["t3", "t4"] {
        stage.service.send(&stage.room, "m.call.hangup", txn, &hangup).await.unwrap();
    }
    assert!(matches!(&stage.found().await[..], [Discrepancy::DoubledOperation { .. }]));
}

#[tokio::test]
async fn a_check_can_wait_until_all_has_arrived() {
    let stage = Stage::set().await;
    let late = stage.promised("late");
    let ledger = stage.ledger();
    let waiting = tokio::spawn(async move { ledger.assert_settled_within(Duration::from_secs(30)).await });
    stage.put(&stage.content(late, 1, "late")).await;
    assert_eq!(waiting.await.unwrap().messages, 1);
    stage.promised("never");
    stage.ledger().settled_within(Duration::from_millis(100)).await.unwrap_err();
}

#[tokio::test]
async fn a_report_can_be_read() {
    let stage = Stage::set().await;
    stage.message("one").await;
    let missing = stage.promised("two");
    let report = stage.check().await.unwrap_err().to_string();
    assert!(report.contains(&format!("missing: message {missing} \"two\"")), "{report}");
    assert!(report.contains("m.room.message @nova-service:nova.test \"one\""), "{report}");
}

#[tokio::test]
async fn a_missing_reaction_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    stage.react(&sent, "-1").await;
    stage.asked.react(sent.message_id, stage.author, "-1").answered();
    let _unanswered = stage.asked.react(sent.message_id, Uuid::new_v4(), "+1");
    stage.check().await.unwrap();
    stage.asked.react(sent.message_id, stage.author, "+1").answered();
    let found = stage.found().await;
    assert_eq!(found, [Discrepancy::ReactionMissing { message_id: sent.message_id, key: "+1".into() }]);
}

#[tokio::test]
async fn a_reaction_that_was_taken_back_or_never_made_is_found() {
    let stage = Stage::set().await;
    let sent = stage.message("one").await;
    let event_id = stage.react(&sent, "+1").await;
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::Foreign { .. }]), "{found:?}");
    stage.asked.unreact(sent.message_id, stage.author, "+1").answered();
    let (message_id, key) = (sent.message_id, "+1".to_owned());
    assert_eq!(stage.found().await, [Discrepancy::ReactionRemains { message_id, key, event_id }]);
}

#[tokio::test]
async fn a_reply_to_another_message_is_found() {
    let stage = Stage::set().await;
    let (one, two) = (stage.message("one").await, stage.message("two").await);
    let reply = stage.reply(&one.event_id, two.message_id).await;
    let found = stage.found().await;
    assert!(matches!(&found[..], [Discrepancy::MisaimedReply { message_id, .. }] if *message_id == reply), "{found:?}");
    // Nobody knows whether what is deleted was there when the reply was sent.
    stage.redact(&two.event_id).await;
    stage.asked.delete(two.message_id).answered(Deletion::Redacting);
    stage.check().await.unwrap();
}
