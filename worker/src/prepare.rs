//! From an operation to Matrix content: pure, and apart from sending, so that what is sent can be frozen before.
//!
//! Every event that we send carries `com.nova.outbox_id`, our marker: the evidence that an event is that operation's.

use ruma::{
    OwnedEventId,
    events::{
        Mentions,
        reaction::ReactionEventContent,
        relation::{Annotation, InReplyTo, Replacement, Reply, Thread},
        room::message::{MessageType, Relation, RoomMessageEventContent, RoomMessageEventContentWithoutRelation},
    },
};
use serde_json::{Map, Value, json, value::RawValue};
use shared::{
    chat::{Content, MessageKind},
    ids::{EventId, MessageId, OutboxId, ReactionId, UserId},
};

pub(crate) mod calls;

/// Type and content of an event, ready to be sent.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) event_type: &'static str,
    pub(crate) content: Box<RawValue>,
}

/// A message, as it is to stand in the room.
#[derive(Debug, Clone)]
pub(crate) struct Said<'a> {
    pub(crate) outbox_id: OutboxId,
    pub(crate) message_id: MessageId,
    pub(crate) author_id: UserId,
    pub(crate) revision: i32,
    pub(crate) kind: MessageKind,
    pub(crate) content: &'a Content,
    /// Whom it alerts, by their names on Matrix.
    pub(crate) mentions: Mentions,
}

/// What a message answers, as far as that stands in the same room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// The first event of its thread.
    pub(crate) thread: Option<EventId>,
    /// The event that it answers.
    pub(crate) reply_to: Option<EventId>,
}

/// A reaction, as it is to stand in the room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reacting<'a> {
    pub(crate) outbox_id: OutboxId,
    pub(crate) reaction_id: ReactionId,
    pub(crate) reactor_id: UserId,
    pub(crate) key: &'a str,
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

fn owned(event_id: &EventId) -> Result<OwnedEventId, serde_json::Error> {
    OwnedEventId::try_from(event_id.as_str()).map_err(serde::de::Error::custom)
}

/// Words as Matrix types them. `before` stands before them, for clients that do not know what an edit is.
fn words(said: &Said<'_>, before: &str) -> MessageType {
    let text = format!("{before}{}", said.content.text);
    let html = said.content.formatted.as_ref().map(|html| format!("{before}{html}"));
    match (said.kind, html) {
        (MessageKind::Notice, Some(html)) => MessageType::notice_html(text, html),
        (MessageKind::Notice, None) => MessageType::notice_plain(text),
        (MessageKind::Emote, Some(html)) => MessageType::emote_html(text, html),
        (MessageKind::Emote, None) => MessageType::emote_plain(text),
        // Media come from Matrix only, and do not go out.
        (_, Some(html)) => MessageType::text_html(text, html),
        (_, None) => MessageType::text_plain(text),
    }
}

/// A message in a thread that answers none of its messages names the first as answered, for clients without threads.
fn relation(answers: &Answers) -> Result<Option<Relation<RoomMessageEventContentWithoutRelation>>, serde_json::Error> {
    let reply_to = answers.reply_to.as_ref().map(owned).transpose()?;
    let thread = answers.thread.as_ref().map(owned).transpose()?;
    Ok(match (thread, reply_to) {
        (Some(first), Some(reply_to)) => Some(Relation::Thread(Thread::reply(first, reply_to))),
        (Some(first), None) => Some(Relation::Thread(Thread::plain(first.clone(), first))),
        (None, Some(reply_to)) => Some(Relation::Reply(Reply::new(InReplyTo::new(reply_to)))),
        (None, None) => None,
    })
}

/// `m.room.message` of a message as sent. It always says whom it alerts, or clients look for names in its text (MSC3952).
pub(crate) fn message(said: &Said<'_>, answers: &Answers) -> Result<Prepared, serde_json::Error> {
    let mut event = RoomMessageEventContent::new(words(said, ""));
    event.mentions = Some(said.mentions.clone());
    event.relates_to = relation(answers)?;
    let mut content = object(&event)?;
    mark(&mut content, said.outbox_id);
    describe(&mut content, said);
    Ok(Prepared { event_type: "m.room.message", content: serde_json::value::to_raw_value(&content)? })
}

/// `m.room.message` that replaces the text of the original event. An edit of an edit names the original too. `alerted` are
/// those whom the message did not mention before: only they are alerted now. What the message answers is not repeated.
pub(crate) fn edit(said: &Said<'_>, original: &EventId, alerted: Mentions) -> Result<Prepared, serde_json::Error> {
    let mut new_content = RoomMessageEventContentWithoutRelation::new(words(said, ""));
    new_content.mentions = Some(said.mentions.clone());
    let mut event = RoomMessageEventContent::new(words(said, "* "));
    event.mentions = Some(alerted);
    event.relates_to = Some(Relation::Replacement(Replacement::new(owned(original)?, new_content)));
    let mut content = object(&event)?;
    mark(&mut content, said.outbox_id);
    describe(&mut content, said);
    // Clients show the new content in place of the old, so it names the author too.
    if let Some(Value::Object(new_content)) = content.get_mut("m.new_content") {
        describe(new_content, said);
    }
    Ok(Prepared { event_type: "m.room.message", content: serde_json::value::to_raw_value(&content)? })
}

/// `m.reaction` to an event.
pub(crate) fn reaction(reaction: &Reacting<'_>, to: &EventId) -> Result<Prepared, serde_json::Error> {
    let event = ReactionEventContent::new(Annotation::new(owned(to)?, reaction.key.to_owned()));
    let mut content = object(&event)?;
    mark(&mut content, reaction.outbox_id);
    content.insert("com.nova.reaction_id".into(), json!(reaction.reaction_id));
    name_author(&mut content, reaction.reactor_id);
    Ok(Prepared { event_type: "m.reaction", content: serde_json::value::to_raw_value(&content)? })
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
    use shared::{
        chat::{self, MAX_MENTIONS, MAX_WEIGHT},
        ids::MatrixUserId,
    };

    use super::*;

    const AUTHOR: &str = "550e8400-e29b-41d4-a716-446655440000";

    fn said(content: &Content) -> Said<'_> {
        Said {
            outbox_id: "0190b5a0-0000-7000-8000-000000000001".parse().unwrap(),
            message_id: "0190b5a0-0000-7000-8000-000000000002".parse().unwrap(),
            author_id: AUTHOR.parse().unwrap(),
            revision: 1,
            kind: MessageKind::Text,
            content,
            mentions: Mentions::new(),
        }
    }

    fn alerting(users: &[&str]) -> Mentions {
        Mentions::with_user_ids(users.iter().map(|user| ruma::OwnedUserId::try_from(*user).unwrap()))
    }

    fn event(id: &str) -> EventId {
        EventId::from(id.to_owned())
    }

    fn profile() -> Value {
        json!({"id": AUTHOR, "displayname": "nova-550e8400"})
    }

    /// What every event of that message has.
    fn with_ours(mut content: Value) -> Value {
        let ours = json!({
            "com.nova.outbox_id": "0190b5a0-0000-7000-8000-000000000001",
            "com.nova.message_id": "0190b5a0-0000-7000-8000-000000000002",
            "com.nova.revision": 1,
            "com.nova.sender_id": AUTHOR,
            "com.beeper.per_message_profile": profile(),
        });
        content.as_object_mut().unwrap().extend(ours.as_object().unwrap().clone());
        content
    }

    fn json_of(prepared: &Prepared) -> Value {
        serde_json::from_str(prepared.content.get()).unwrap()
    }

    #[test]
    fn a_message_carries_its_marker_its_id_and_its_author_and_alerts_nobody_unasked() {
        let prepared = message(&said(&Content::plain("hello")), &Answers::default()).unwrap();
        assert_eq!(prepared.event_type, "m.room.message");
        assert_eq!(
            json_of(&prepared),
            json!({
                "msgtype": "m.text",
                "body": "hello",
                "m.mentions": {},
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
        let content = Content::plain("better");
        let said = Said { revision: 3, ..said(&content) };
        let prepared = edit(&said, &event("$original"), Mentions::new()).unwrap();
        assert_eq!(prepared.event_type, "m.room.message");
        assert_eq!(
            json_of(&prepared),
            json!({
                "msgtype": "m.text",
                "body": "* better",
                "m.mentions": {},
                "m.relates_to": {"rel_type": "m.replace", "event_id": "$original"},
                "m.new_content": {
                    "msgtype": "m.text",
                    "body": "better",
                    "m.mentions": {},
                    "com.nova.message_id": "0190b5a0-0000-7000-8000-000000000002",
                    "com.nova.revision": 3,
                    "com.nova.sender_id": "550e8400-e29b-41d4-a716-446655440000",
                    "com.beeper.per_message_profile": profile(),
                },
                "com.nova.outbox_id": "0190b5a0-0000-7000-8000-000000000001",
                "com.nova.message_id": "0190b5a0-0000-7000-8000-000000000002",
                "com.nova.revision": 3,
                "com.nova.sender_id": "550e8400-e29b-41d4-a716-446655440000",
                "com.beeper.per_message_profile": profile(),
            })
        );
    }

    #[test]
    fn a_reply_names_what_it_answers_and_quotes_nothing() {
        let answers = Answers { thread: None, reply_to: Some(event("$asked")) };
        let prepared = message(&said(&Content::plain("yes")), &answers).unwrap();
        let expected = json!({
            "msgtype": "m.text",
            "body": "yes",
            "m.mentions": {},
            "m.relates_to": {"m.in_reply_to": {"event_id": "$asked"}},
        });
        assert_eq!(json_of(&prepared), with_ours(expected));
    }

    #[test]
    fn a_message_of_a_thread_falls_back_to_a_reply_for_clients_without_threads() {
        let answers = Answers { thread: Some(event("$first")), reply_to: None };
        let prepared = message(&said(&Content::plain("yes")), &answers).unwrap();
        let expected = json!({
            "msgtype": "m.text",
            "body": "yes",
            "m.mentions": {},
            "m.relates_to": {
                "rel_type": "m.thread",
                "event_id": "$first",
                "is_falling_back": true,
                "m.in_reply_to": {"event_id": "$first"},
            },
        });
        assert_eq!(json_of(&prepared), with_ours(expected));
    }

    #[test]
    fn a_reply_within_a_thread_is_no_fallback() {
        let answers = Answers { thread: Some(event("$first")), reply_to: Some(event("$asked")) };
        let prepared = message(&said(&Content::plain("yes")), &answers).unwrap();
        let relation = &json_of(&prepared)["m.relates_to"];
        let expected = json!({"rel_type": "m.thread", "event_id": "$first", "m.in_reply_to": {"event_id": "$asked"}});
        assert_eq!(*relation, expected);
    }

    #[test]
    fn formatted_text_and_mentions_are_typed_as_matrix_types_them() {
        let formatted = Some("<b>hi</b>".to_owned());
        let content = Content { formatted, ..Content::plain("hi") };
        for (kind, msgtype) in
            [(MessageKind::Text, "m.text"), (MessageKind::Notice, "m.notice"), (MessageKind::Emote, "m.emote")]
        {
            let said = Said { kind, mentions: alerting(&["@nova-1:example.org"]), ..said(&content) };
            let prepared = message(&said, &Answers::default()).unwrap();
            let expected = json!({
                "msgtype": msgtype,
                "body": "hi",
                "format": "org.matrix.custom.html",
                "formatted_body": "<b>hi</b>",
                "m.mentions": {"user_ids": ["@nova-1:example.org"]},
            });
            assert_eq!(json_of(&prepared), with_ours(expected));
        }
    }

    #[test]
    fn an_edit_alerts_only_those_whom_the_message_did_not_mention_before() {
        let formatted = Some("<b>hi</b>".to_owned());
        let content = Content { formatted, ..Content::plain("hi") };
        let mut all = alerting(&["@nova-1:example.org", "@nova-2:example.org"]);
        all.room = true;
        let said = Said { mentions: all, ..said(&content) };
        let prepared = edit(&said, &event("$original"), alerting(&["@nova-2:example.org"])).unwrap();
        let event = json_of(&prepared);
        assert_eq!(event["m.mentions"], json!({"user_ids": ["@nova-2:example.org"]}));
        assert_eq!(event["formatted_body"], "* <b>hi</b>");
        assert_eq!(event["m.new_content"]["formatted_body"], "<b>hi</b>");
        let mentions = json!({"user_ids": ["@nova-1:example.org", "@nova-2:example.org"], "room": true});
        assert_eq!(event["m.new_content"]["m.mentions"], mentions);
    }

    #[test]
    fn a_reaction_names_its_message_its_key_and_who_reacts() {
        let reacted = Reacting {
            outbox_id: "0190b5a0-0000-7000-8000-000000000001".parse().unwrap(),
            reaction_id: "0190b5a0-0000-7000-8000-000000000004".parse().unwrap(),
            reactor_id: AUTHOR.parse().unwrap(),
            key: "\u{1f44d}\u{fe0f}",
        };
        let prepared = reaction(&reacted, &event("$message")).unwrap();
        assert_eq!(prepared.event_type, "m.reaction");
        assert_eq!(
            json_of(&prepared),
            json!({
                "m.relates_to": {"rel_type": "m.annotation", "event_id": "$message", "key": "\u{1f44d}\u{fe0f}"},
                "com.nova.outbox_id": "0190b5a0-0000-7000-8000-000000000001",
                "com.nova.reaction_id": "0190b5a0-0000-7000-8000-000000000004",
                "com.nova.sender_id": AUTHOR,
                "com.beeper.per_message_profile": profile(),
            })
        );
    }

    /// What Matrix adds around content: ids, hashes, signatures; rounded up from 533 bytes measured.
    const ENVELOPE: usize = 2 * 1024;

    /// The largest event that a homeserver takes, in bytes.
    const EVENT_LIMIT: usize = 65_536;

    proptest::proptest! {
        #[test]
        fn all_content_that_the_api_takes_fits_an_event_also_as_an_edit_and_encrypted(
            text in "(?s).{1,5200}",
            html in "(?s).{0,3000}",
            filler in "[\"\\\\\u{1}\u{e9}\u{1f56f}x]",
            mentioned in 0..=MAX_MENTIONS,
            server in "[a-z]{1,60}[.]example[.]org",
        ) {
            let users = (0..mentioned).map(|_| UserId::generate()).collect::<Vec<_>>();
            let mut content = Content {
                text,
                formatted: Some(html),
                mentions: chat::Mentions { users, room: true },
                media: None,
            };
            let fits = |content: &Content| content.weight().unwrap() <= MAX_WEIGHT;
            while !fits(&content) {
                content.text.pop();
                content.formatted.as_mut().unwrap().pop();
            }
            let room = (MAX_WEIGHT - content.weight().unwrap()) / (serde_json::to_string(&filler).unwrap().len() - 2);
            content.text.push_str(&filler.repeat(room));
            proptest::prop_assert!(fits(&content));
            let user = |user| MatrixUserId::of(user, &server).as_str().try_into().unwrap();
            let mut mentions = Mentions::with_user_ids(content.mentions.users.iter().copied().map(user));
            mentions.room = true;
            let said = Said {
                outbox_id: OutboxId::generate(),
                message_id: MessageId::generate(),
                author_id: UserId::generate(),
                revision: i32::MAX,
                kind: MessageKind::Notice,
                content: &content,
                mentions: mentions.clone(),
            };
            let id = event(&format!("${}", "e".repeat(43)));
            let answers = Answers { thread: Some(id.clone()), reply_to: Some(id.clone()) };
            let reacted = Reacting {
                outbox_id: OutboxId::generate(),
                reaction_id: ReactionId::generate(),
                reactor_id: UserId::generate(),
                key: &filler.repeat(16),
            };
            for prepared in [
                message(&said, &answers).unwrap(),
                edit(&said, &id, mentions).unwrap(),
                reaction(&reacted, &id).unwrap(),
            ] {
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
