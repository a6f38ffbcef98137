//! From an operation to Matrix content: pure, and apart from sending, so that what is sent can be frozen before.
//!
//! Every event that we send carries `com.nova.outbox_id`, our marker: the evidence that an event is that operation's.

use ruma::events::room::message::RoomMessageEventContent;
use serde_json::{Map, Value, json, value::RawValue};
use shared::ids::{MessageId, OutboxId, UserId};

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

/// `m.room.message` of a message as sent.
pub(crate) fn message(said: Said<'_>) -> Result<Prepared, serde_json::Error> {
    let mut content = object(&RoomMessageEventContent::text_plain(said.words))?;
    mark(&mut content, said.outbox_id);
    content.insert("com.nova.message_id".into(), json!(said.message_id));
    content.insert("com.nova.revision".into(), json!(said.revision));
    name_author(&mut content, said.author_id);
    Ok(Prepared { event_type: "m.room.message", content: serde_json::value::to_raw_value(&content)? })
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
        let prepared = message(said).unwrap();
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
}
