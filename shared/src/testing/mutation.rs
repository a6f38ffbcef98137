//! Events that nobody should have sent: real ones, with something wrong in them.

use serde_json::{Map, Value, json};

use super::traffic::Chance;

/// Mutates events as a seed says.
#[derive(Debug)]
pub struct Mutator {
    chance: Chance,
}

impl Mutator {
    /// The same seed makes the same mutations.
    pub const fn new(seed: u64) -> Self {
        Self { chance: Chance::of(seed) }
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.chance.below(end.max(1))
    }

    /// One of the events, with one or two things wrong in it.
    pub fn mutate(&mut self, events: &[Value]) -> Value {
        let mut event = events[self.below(events.len())].clone();
        for _ in 0..=self.below(2) {
            // What an event says is wrong more often than that it is one.
            match event.get_mut("content") {
                Some(content) if self.below(4) > 0 => self.mutate_somewhere(content),
                _ => self.mutate_somewhere(&mut event),
            }
        }
        event
    }

    fn mutate_somewhere(&mut self, value: &mut Value) {
        // Descends as often as not, so that all depths are met.
        match value {
            Value::Object(fields) if !fields.is_empty() && self.below(5) > 0 => {
                let key = fields.keys().nth(self.below(fields.len())).cloned().unwrap_or_default();
                match self.below(6) {
                    0 => {
                        fields.remove(&key);
                    }
                    1 => {
                        let moved = fields.remove(&key).unwrap_or_default();
                        fields.insert(self.text(), moved);
                    }
                    _ => {
                        if let Some(inner) = fields.get_mut(&key) {
                            self.mutate_somewhere(inner);
                        }
                    }
                }
            }
            Value::Array(items) if !items.is_empty() && self.below(5) > 0 => {
                let at = self.below(items.len());
                self.mutate_somewhere(&mut items[at]);
            }
            other => *other = self.anything(3),
        }
    }

    fn anything(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 8 } else { 11 }) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(i64::MIN),
            3 => json!(u64::MAX),
            4 => json!(-1.5e300),
            5 => json!(self.below(100_000)),
            6 | 7 => json!(self.text()),
            8 => Value::Array((0..self.below(4)).map(|_| self.anything(depth - 1)).collect()),
            9 => Value::Object(
                (0..self.below(4)).map(|_| (self.text(), self.anything(depth - 1))).collect::<Map<_, _>>(),
            ),
            _ => (0..100).fold(json!("deep"), |inner, _| json!({"m.relates_to": inner})),
        }
    }

    fn text(&mut self) -> String {
        const TEXTS: &[&str] = &[
            "",
            "\u{0}",
            "\u{202e}",
            "\u{1f56f}\u{fe0f}",
            "$",
            "$x",
            "@a:b",
            "@nova-:nova.test",
            "!r",
            "mxc://",
            "m.replace",
            "m.thread",
            "m.annotation",
            "event_id",
            "m.room.message",
            "m.call.invite",
            "<b>",
            "</mx-reply><script>",
            "1e999",
            "-1",
            "0",
            "true",
            "{}",
            "[]",
            "\\ud800",
            "../../..",
            "'; drop table messages; --",
            "%00",
        ];
        match self.below(4) {
            0 => "x".repeat(self.below(2000)),
            _ => TEXTS[self.below(TEXTS.len())].to_owned(),
        }
    }
}

/// One event of each kind that is read, as a homeserver shows them. `sender` is who sent them, `target` what they relate
/// to.
pub fn specimens(sender: &str, target: &str) -> Vec<Value> {
    let event = |event_type: &str, content: Value| {
        json!({
            "type": event_type,
            "event_id": "$specimen",
            "sender": sender,
            "origin_server_ts": 1_700_000_000_000_u64,
            "content": content,
            "unsigned": {"age": 1},
        })
    };
    let info = json!({"mimetype": "image/png", "size": 10, "w": 1, "h": 2, "duration": 3});
    let mentions = json!({"user_ids": [sender], "room": true});
    let call = |content: Value| {
        let mut all = json!({"call_id": "c", "party_id": "p", "version": "1"});
        if let (Some(all), Value::Object(more)) = (all.as_object_mut(), content) {
            all.extend(more);
        }
        all
    };
    vec![
        event(
            "m.room.message",
            json!({"msgtype": "m.text", "body": "words", "format": "org.matrix.custom.html",
            "formatted_body": "<b>words</b>", "m.mentions": mentions}),
        ),
        event(
            "m.room.message",
            json!({"msgtype": "m.emote", "body": "waves",
            "m.relates_to": {"m.in_reply_to": {"event_id": target}}}),
        ),
        event(
            "m.room.message",
            json!({"msgtype": "m.notice", "body": "in a thread",
            "m.relates_to": {"rel_type": "m.thread", "event_id": target, "is_falling_back": true,
                "m.in_reply_to": {"event_id": target}}}),
        ),
        event(
            "m.room.message",
            json!({"msgtype": "m.text", "body": "* new", "m.new_content": {"msgtype": "m.text", "body": "new"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": target}}),
        ),
        event(
            "m.room.message",
            json!({"msgtype": "m.image", "body": "i.png", "url": "mxc://nova.test/i", "info": info}),
        ),
        event(
            "m.room.message",
            json!({"msgtype": "m.file", "body": "f", "file": {"url": "mxc://nova.test/f", "v": "v2",
            "iv": "AAAAAAAAAAAAAAAAAAAAAA", "hashes": {"sha256": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}, "key": {"kty": "oct", "key_ops": ["encrypt", "decrypt"], "alg": "A256CTR",
            "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "ext": true}}, "info": info}),
        ),
        event("m.room.message", json!({"msgtype": "m.audio", "body": "a", "url": "mxc://nova.test/a", "info": info})),
        event("m.room.message", json!({"msgtype": "m.video", "body": "v", "url": "mxc://nova.test/v", "info": info})),
        event("m.reaction", json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": "👍"}})),
        json!({"type": "m.room.redaction", "event_id": "$specimen", "sender": sender, "redacts": target,
            "origin_server_ts": 1, "content": {"redacts": target, "reason": "none"}}),
        json!({"type": "m.room.member", "event_id": "$specimen", "sender": sender, "state_key": sender,
            "origin_server_ts": 1, "content": {"membership": "join", "displayname": "G", "avatar_url": "mxc://nova.test/g"}}),
        event(
            "m.call.invite",
            call(json!({"lifetime": 60000, "offer": {"type": "offer", "sdp": "v=0"}, "invitee": sender,
            "sdp_stream_metadata": {"s": {"purpose": "m.usermedia"}}})),
        ),
        event(
            "m.call.candidates",
            call(json!({"candidates": [{"candidate": "c", "sdpMid": "0", "sdpMLineIndex": 0}, {"candidate": ""}]})),
        ),
        event("m.call.answer", call(json!({"answer": {"type": "answer", "sdp": "v=0"}}))),
        event("m.call.select_answer", call(json!({"selected_party_id": "q"}))),
        event("m.call.negotiate", call(json!({"lifetime": 1000, "description": {"type": "offer", "sdp": "v=0"}}))),
        event("m.call.sdp_stream_metadata_changed", call(json!({"sdp_stream_metadata": {}}))),
        event("m.call.reject", call(json!({}))),
        event("m.call.hangup", call(json!({"reason": "user_hangup"}))),
    ]
}
