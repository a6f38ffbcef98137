//! From an operation to Matrix content: pure, and apart from sending, so that what is sent can be frozen before.
//!
//! Every event that we send carries `com.nova.outbox_id`, our marker: the evidence that an event is that operation's.

use ruma::{
    OwnedEventId,
    events::{
        relation::Replacement,
        room::message::{Relation, RoomMessageEventContent, RoomMessageEventContentWithoutRelation},
    },
};
use serde_json::{Map, Value, json, value::RawValue};
use shared::ids::{EventId, MessageId, OutboxId, UserId};

/// Type and content of an event, ready to be sent.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) event_type: &'static str,
    pub(crate) content: Box<RawValue>,
}

/// A message, as it is to stand in the room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said<'a> {
    pub(crate) outbox_id: OutboxId,
    pub(crate) message_id: MessageId,
    pub(crate) author_id: UserId,
    pub(crate) revision: i32,
    pub(crate) words: &'a str,
}

/// The author, whom one account speaks for: for our own readers, and for clients that know per-message profiles
/// (MSC4144, under its unstable name).
fn name_author(content: &mut Map<String, Value>, author_id: UserId) {
    content.insert("com.nova.sender_id".into(), json!(author_id));
    let shown: String = author_id.to_string().chars().take(8).collect();
    content.insert(
        "com.beeper.per_message_profile".into(),
        json!({"id": author_id, "displayname": format!("nova-{shown}")}),
    );
}

fn mark(content: &mut Map<String, Value>, outbox_id: OutboxId) {
    content.insert("com.nova.outbox_id".into(), json!(outbox_id));
}

fn object(content: &impl serde::Serialize) -> Result<Map<String, Value>, serde_json::Error> {
    match serde_json::to_value(content)? {
        Value::Object(map) => Ok(map),
        other => Err(serde::de::Error::custom(format!("content is no object: {other}"))),
    }
}

/// Which message this is, in which revision, by whom.
fn describe(content: &mut Map<String, Value>, said: &Said<'_>) {
    content.insert("com.nova.message_id".into(), json!(said.message_id));
    content.insert("com.nova.revision".into(), json!(said.revision));
    name_author(content, said.author_id);
}

/// `m.room.message` of a message as sent.
pub(crate) fn message(said: &Said<'_>) -> Result<Prepared, serde_json::Error> {
    let mut content = object(&RoomMessageEventContent::text_plain(said.words))?;
    mark(&mut content, said.outbox_id);
    describe(&mut content, said);
    Ok(Prepared { event_type: "m.room.message", content: serde_json::value::to_raw_value(&content)? })
}

/// `m.room.message` that replaces the text of the original event. An edit of an edit names the original too.
pub(crate) fn edit(said: &Said<'_>, original: &EventId) -> Result<Prepared, serde_json::Error> {
    let original = OwnedEventId::try_from(original.as_str()).map_err(serde::de::Error::custom)?;
    let new_content = RoomMessageEventContentWithoutRelation::text_plain(said.words);
    let mut event = RoomMessageEventContent::text_plain(format!("* {}", said.words));
    event.relates_to = Some(Relation::Replacement(Replacement::new(original, new_content)));
    let mut content = object(&event)?;
    mark(&mut content, said.outbox_id);
    describe(&mut content, said);
    // Clients show the new content in place of the old, so it names the author too.
    if let Some(Value::Object(new_content)) = content.get_mut("m.new_content") {
        describe(new_content, said);
    }
    Ok(Prepared { event_type: "m.room.message", content: serde_json::value::to_raw_value(&content)? })
}

/// The content of a redaction.
pub(crate) fn redaction(outbox_id: OutboxId) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(&json!({
        "reason": "deleted by its author",
        "com.nova.outbox_id": outbox_id,
    }))
}

/// The event that closes a transaction id for good: whoever asks for it again is answered with this event, or with the
/// first one that had arrived.
pub(crate) fn void(outbox_id: OutboxId) -> Result<Prepared, serde_json::Error> {
    let content = serde_json::value::to_raw_value(&json!({"com.nova.outbox_id": outbox_id}))?;
    Ok(Prepared { event_type: "com.nova.outbox.void", content })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_marker_its_id_and_its_author() {
        let author: UserId = "550e8400-e29b-41d4-a716-446655440000".parse().unwrap();
        let outbox_id: OutboxId = "0190b5a0-0000-7000-8000-000000000001".parse().unwrap();
        let message_id: MessageId = "0190b5a0-0000-7000-8000-000000000002".parse().unwrap();
        let said = Said { outbox_id, message_id, author_id: author, revision: 1, words: "hello" };
        let prepared = message(&said).unwrap();
        assert_eq!(prepared.event_type, "m.room.message");
        let content: Value = serde_json::from_str(prepared.content.get()).unwrap();
        assert_eq!(
            content,
            json!({
                "msgtype": "m.text",
                "body": "hello",
                "com.nova.outbox_id": "0190b5a0-0000-7000-8000-000000000001",
                "com.nova.message_id": "0190b5a0-0000-7000-8000-000000000002",
                "com.nova.revision": 1,
                "com.nova.sender_id": "550e8400-e29b-41d4-a716-446655440000",
                "com.beeper.per_message_profile": {
                    "id": "550e8400-e29b-41d4-a716-446655440000",
                    "displayname": "nova-550e8400"
                }
            })
        );
    }

    #[test]
    fn an_edit_replaces_the_original_and_says_so_to_old_clients() {
        let said = Said {
            outbox_id: "0190b5a0-0000-7000-8000-000000000003".parse().unwrap(),
            message_id: "0190b5a0-0000-7000-8000-000000000002".parse().unwrap(),
            author_id: "550e8400-e29b-41d4-a716-446655440000".parse().unwrap(),
            revision: 3,
            words: "better",
        };
        let prepared = edit(&said, &EventId::from("$original".to_owned())).unwrap();
        assert_eq!(prepared.event_type, "m.room.message");
        let content: Value = serde_json::from_str(prepared.content.get()).unwrap();
        let profile = json!({"id": "550e8400-e29b-41d4-a716-446655440000", "displayname": "nova-550e8400"});
        assert_eq!(
            content,
            json!({
                "msgtype": "m.text",
                "body": "* better",
                "m.relates_to": {"rel_type": "m.replace", "event_id": "$original"},
                "m.new_content": {
                    "msgtype": "m.text",
                    "body": "better",
                    "com.nova.message_id": "0190b5a0-0000-7000-8000-000000000002",
                    "com.nova.revision": 3,
                    "com.nova.sender_id": "550e8400-e29b-41d4-a716-446655440000",
                    "com.beeper.per_message_profile": profile,
                },
                "com.nova.outbox_id": "0190b5a0-0000-7000-8000-000000000003",
                "com.nova.message_id": "0190b5a0-0000-7000-8000-000000000002",
                "com.nova.revision": 3,
                "com.nova.sender_id": "550e8400-e29b-41d4-a716-446655440000",
                "com.beeper.per_message_profile": profile,
            })
        );
    }

    /// What Matrix adds around content: ids, hashes, signatures; rounded up from 533 bytes measured.
    const ENVELOPE: usize = 2 * 1024;

    /// The largest event that a homeserver takes, in bytes.
    const EVENT_LIMIT: usize = 65_536;

    proptest::proptest! {
        #[test]
        fn every_text_that_the_api_takes_fits_an_event_also_as_an_edit_and_encrypted(
            text in "(?s).{1,5200}", filler in "[\"\\\\\u{1}\u{e9}\u{1f56f}x]"
        ) {
            let mut words = text;
            let fits = |words: &str| serde_json::to_string(words).unwrap().len() <= 20 * 1024;
            while !fits(&words) {
                words.pop();
            }
            let room = (20 * 1024 - serde_json::to_string(&words).unwrap().len())
                / (serde_json::to_string(&filler).unwrap().len() - 2);
            words.push_str(&filler.repeat(room));
            proptest::prop_assert!(fits(&words));
            let said = Said {
                outbox_id: OutboxId::generate(),
                message_id: MessageId::generate(),
                author_id: UserId::generate(),
                revision: i32::MAX,
                words: &words,
            };
            let original = EventId::from(format!("${}", "e".repeat(43)));
            for prepared in [message(&said).unwrap(), edit(&said, &original).unwrap()] {
                let encrypted = prepared.content.get().len() * 4 / 3;
                proptest::prop_assert!(encrypted + ENVELOPE <= EVENT_LIMIT, "{encrypted} bytes");
                // Canonical JSON knows no fractions and no integers beyond 2^53.
                let content: Value = serde_json::from_str(prepared.content.get()).unwrap();
                proptest::prop_assert!(canonical(&content));
            }
        }
    }

    fn canonical(value: &Value) -> bool {
        match value {
            Value::Number(number) => number.as_i64().is_some_and(|n| n.unsigned_abs() < 1 << 53),
            Value::Array(items) => items.iter().all(canonical),
            Value::Object(map) => map.values().all(canonical),
            Value::Null | Value::Bool(_) | Value::String(_) => true,
        }
    }
}
