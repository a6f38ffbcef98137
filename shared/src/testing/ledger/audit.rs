//! One room against what was asked of its conversation.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use uuid::Uuid;

use super::asked::{Book, Deletion, Outcome, PostRecord, Wanted};
use super::{Discrepancy, Senders, Summary, matrix_user};
use crate::testing::matrix_client::MatrixEvent;

/// State that belongs to a room of ours.
const ROOM_STATE: [&str; 13] = [
    "com.nova.conversation",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.create",
    "m.room.encryption",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.member",
    "m.room.name",
    "m.room.power_levels",
    "m.room.tombstone",
    "m.room.topic",
];

/// A text of at least this many bytes is not part of anything by chance.
const TELLING: usize = 12;

/// Closes an operation for good without a text.
const VOID: &str = "com.nova.outbox.void";

/// A room as it was read.
pub(super) struct RoomReading {
    pub(super) events: Vec<MatrixEvent>,
    /// User id and membership.
    pub(super) members: Vec<(String, String)>,
}

pub(super) struct Audit<'a> {
    pub(super) book: &'a Book,
    pub(super) conversation: Uuid,
    pub(super) senders: &'a Senders,
    pub(super) server_name: &'a str,
    pub(super) found: &'a mut Vec<Discrepancy>,
    pub(super) summary: &'a mut Summary,
}

/// The events of one message.
#[derive(Default)]
pub(super) struct Delivered<'e> {
    pub(super) originals: Vec<&'e MatrixEvent>,
    edits: Vec<&'e MatrixEvent>,
}

impl<'a> Audit<'a> {
    pub(super) fn room(&mut self, room: &RoomReading) {
        let delivered = self.sort(&room.events);
        let mut claimed = self.posts(&delivered);
        self.unasked(&delivered, &mut claimed);
        self.relations(&room.events, &delivered);
        self.order(&room.events);
        self.leaks(&room.events);
        self.members(&room.members);
        self.summary.rooms += 1;
        self.summary.events += room.events.len();
    }

    pub(super) fn report(&mut self, discrepancy: Discrepancy) {
        self.found.push(discrepancy);
    }

    /// Sorts our messages by message id, and reports what has no place in the room.
    fn sort<'e>(&mut self, events: &'e [MatrixEvent]) -> HashMap<Uuid, Delivered<'e>> {
        let mut delivered: HashMap<Uuid, Delivered<'e>> = HashMap::new();
        let mut operations: HashMap<Uuid, &str> = HashMap::new();
        let mut redacted = 0;
        for event in events {
            if self.book.outside_events.contains(&event.event_id) {
                continue;
            }
            let is_ours = self.senders.is_ours(&event.sender);
            if event.state_key.is_some() {
                if !ROOM_STATE.contains(&event.event_type.as_str()) {
                    self.foreign(event, "state of a type that is not ours");
                }
                continue;
            }
            if !is_ours {
                self.foreign(event, "sent by somebody else");
                continue;
            }
            if let Some(outbox_id) = uuid(&event.content, "com.nova.outbox_id")
                && let Some(first) = operations.insert(outbox_id, &event.event_id)
            {
                let (first, second) = (first.to_owned(), event.event_id.clone());
                self.report(Discrepancy::DoubledOperation { outbox_id, first, second });
            }
            match event.event_type.as_str() {
                "m.room.message" | VOID if event.is_redacted() => {
                    redacted += usize::from(event.event_type != VOID);
                }
                "m.room.message" => match uuid(&event.content, "com.nova.message_id") {
                    Some(message_id) if uuid(&event.content, "com.nova.outbox_id").is_some() => {
                        let of_message = delivered.entry(message_id).or_default();
                        if event.replaces().is_some() {
                            of_message.edits.push(event);
                        } else {
                            of_message.originals.push(event);
                        }
                    }
                    _ => self.foreign(event, "a message without our marker"),
                },
                "m.reaction" if event.is_redacted() || uuid(&event.content, "com.nova.outbox_id").is_some() => {}
                "m.room.redaction" | VOID if uuid(&event.content, "com.nova.outbox_id").is_some() => {}
                call if call.starts_with("m.call.") => {}
                _ => self.foreign(event, "an event that nobody asked for"),
            }
        }
        self.redactions(redacted);
        delivered
    }

    pub(super) fn foreign(&mut self, event: &MatrixEvent, why: &'static str) {
        let (event_id, event_type) = (event.event_id.clone(), event.event_type.clone());
        let sender = event.sender.clone();
        self.report(Discrepancy::Foreign { conversation: self.conversation, event_id, event_type, sender, why });
    }

    /// A redacted event no longer says which message it was: only their number can be checked.
    fn redactions(&mut self, redacted: usize) {
        let may_be_redacted = |post: &&PostRecord| {
            matches!(post.deletion, Some(Outcome::Unknown | Outcome::Answered(Deletion::Redacting)))
        };
        let allowed = self.asked().filter(may_be_redacted).map(|post| post.texts().count()).sum();
        if redacted > allowed {
            self.report(Discrepancy::RedactedUnasked { conversation: self.conversation, redacted, allowed });
        }
        self.summary.redacted += redacted;
    }

    pub(super) fn asked(&self) -> impl Iterator<Item = &'a PostRecord> + use<'a> {
        let conversation = self.conversation;
        self.book.posts.iter().filter(move |post| post.conversation == conversation)
    }

    /// Checks every message that the API acknowledged; returns the ids of those.
    fn posts(&mut self, delivered: &HashMap<Uuid, Delivered<'_>>) -> BTreeSet<Uuid> {
        let mut claimed = BTreeSet::new();
        let none = Delivered::default();
        for post in self.asked() {
            let Some(committed) = post.committed() else { continue };
            let message_id = committed.message_id;
            claimed.insert(message_id);
            let events = delivered.get(&message_id).unwrap_or(&none);
            match post.deletion {
                Some(Outcome::Answered(Deletion::Cancelled)) => {
                    for event in events.originals.iter().chain(&events.edits) {
                        let event_id = event.event_id.clone();
                        self.report(Discrepancy::LeakedAfterCancel { message_id, event_id });
                    }
                }
                Some(Outcome::Answered(Deletion::Redacting)) => self.unredacted(message_id, events),
                Some(Outcome::Unknown) if events.originals.is_empty() => self.unredacted(message_id, events),
                Some(Outcome::Unknown | Outcome::Refused) | None => self.stands(post, message_id, events),
            }
        }
        claimed
    }

    fn unredacted(&mut self, message_id: Uuid, events: &Delivered<'_>) {
        for event in events.originals.iter().chain(&events.edits) {
            let (event_id, is_edit) = (event.event_id.clone(), event.replaces().is_some());
            self.report(Discrepancy::Unredacted { message_id, event_id, is_edit });
        }
    }

    /// A message that was not deleted is there once, by its author, with its last text.
    fn stands(&mut self, post: &PostRecord, message_id: Uuid, events: &Delivered<'_>) {
        let (original, copies) = match events.originals.as_slice() {
            [] => {
                if !post.may_be_missing {
                    let text = post.text.clone();
                    self.report(Discrepancy::Missing { conversation: self.conversation, message_id, text });
                }
                return;
            }
            [original, copies @ ..] => (*original, copies),
        };
        for copy in copies {
            let (first, second) = (original.event_id.clone(), copy.event_id.clone());
            self.report(Discrepancy::Doubled { message_id, first, second });
        }
        self.summary.messages += 1;
        self.summary.edits += events.edits.len();
        if let Some(told) = post.event_id.as_ref().filter(|told| **told != original.event_id) {
            let (told, found) = (told.clone(), original.event_id.clone());
            self.report(Discrepancy::WrongEventId { message_id, told, found });
        }
        let expected_sender = self.senders.of(post.author, self.server_name);
        let by_author = uuid(&original.content, "com.nova.sender_id") == Some(post.author);
        if !by_author || original.sender != expected_sender {
            let event_id = original.event_id.clone();
            self.report(Discrepancy::WrongAuthor { message_id, event_id, author: post.author });
        }
        self.edits(post, message_id, original, &events.edits);
    }

    fn edits(&mut self, post: &PostRecord, message_id: Uuid, original: &MatrixEvent, edits: &[&MatrixEvent]) {
        let mut revisions: BTreeMap<i64, &MatrixEvent> = BTreeMap::new();
        for &edit in edits {
            if edit.replaces() != Some(original.event_id.as_str()) || edit.sender != original.sender {
                let event_id = edit.event_id.clone();
                self.report(Discrepancy::MisaimedEdit { message_id, event_id });
            }
            if let Some(first) = revisions.insert(revision(edit), edit) {
                let (first, second) = (first.event_id.clone(), edit.event_id.clone());
                self.report(Discrepancy::Doubled { message_id, first, second });
            }
        }
        for event in edits.iter().copied().chain([original]) {
            if !post.texts().any(|asked| Some(asked) == text(event)) {
                let (event_id, found) = (event.event_id.clone(), text(event).unwrap_or_default().to_owned());
                self.report(Discrepancy::UnaskedText { message_id, event_id, found });
            }
        }
        // By the specification the newest counts, and of two at one time the one with the greater id.
        let counts = |edit: &&&MatrixEvent| edit.replaces() == Some(original.event_id.as_str());
        let newest = edits.iter().filter(counts).max_by_key(|edit| (edit.origin_server_ts, &edit.event_id));
        let shown = newest.copied().unwrap_or(original);
        let (revision_confirmed, confirmed) = post.confirmed();
        let found = text(shown).unwrap_or_default();
        let is_open = post.open_edits().any(|open| open == found);
        let is_final = revision(shown) == revision_confirmed && found == confirmed;
        if !is_final && !is_open {
            let (found, expected) = (found.to_owned(), confirmed.to_owned());
            let event_id = shown.event_id.clone();
            self.report(Discrepancy::WrongText { message_id, event_id, found, expected, revision: revision_confirmed });
        }
    }

    /// What is there under a message id that no client was told must be one of the posts without an answer.
    fn unasked(&mut self, delivered: &HashMap<Uuid, Delivered<'_>>, claimed: &mut BTreeSet<Uuid>) {
        let is_open = |post: &&PostRecord| post.outcome == Outcome::Unknown;
        let mut open: Vec<(Uuid, String)> =
            self.asked().filter(is_open).map(|post| (post.author, post.text.clone())).collect();
        let mut unclaimed: Vec<(&Uuid, &Delivered<'_>)> =
            delivered.iter().filter(|(message_id, _)| !claimed.contains(message_id)).collect();
        unclaimed.sort_by_key(|(message_id, _)| **message_id);
        for (&message_id, events) in unclaimed {
            let all: Vec<&MatrixEvent> = events.originals.iter().chain(&events.edits).copied().collect();
            for (number, event) in all.iter().copied().enumerate() {
                let author = uuid(&event.content, "com.nova.sender_id");
                let place =
                    open.iter().position(|(by, asked)| Some(*by) == author && Some(asked.as_str()) == text(event));
                match place {
                    Some(place) if number == 0 => {
                        open.swap_remove(place);
                        claimed.insert(message_id);
                        self.summary.unanswered += 1;
                    }
                    _ if number > 0 && claimed.contains(&message_id) => {
                        let (first, second) = (all[0].event_id.clone(), event.event_id.clone());
                        self.report(Discrepancy::Doubled { message_id, first, second });
                    }
                    _ => self.foreign(event, "a message that nobody posted"),
                }
            }
        }
    }

    /// The originals of acknowledged messages stand in the order of their sequence numbers.
    fn order(&mut self, events: &[MatrixEvent]) {
        let sequence: HashMap<Uuid, i64> = self
            .asked()
            .filter(|post| !post.may_be_late)
            .filter_map(PostRecord::committed)
            .map(|committed| (committed.message_id, committed.seq))
            .collect();
        let mut last: Option<(i64, Uuid)> = None;
        let mut seen = BTreeSet::new();
        for event in events.iter().filter(|event| self.senders.is_ours(&event.sender) && event.replaces().is_none()) {
            let Some(message_id) = uuid(&event.content, "com.nova.message_id") else { continue };
            let Some(&seq) = sequence.get(&message_id).filter(|_| seen.insert(message_id)) else { continue };
            match last {
                Some((before, ahead)) if before > seq => {
                    self.found.push(Discrepancy::Reordered { message_id, seq, ahead, ahead_seq: before });
                }
                _ => last = Some((seq, message_id)),
            }
        }
    }

    /// No text of a deleted message stands anywhere in the room, unless it is part of another message's.
    fn leaks(&mut self, events: &[MatrixEvent]) {
        let is_gone = |post: &&PostRecord| matches!(post.deletion, Some(Outcome::Answered(_)));
        let kept: BTreeSet<&str> = self.asked().filter(|post| !is_gone(post)).flat_map(PostRecord::texts).collect();
        let mut leaks = Vec::new();
        for post in self.asked().filter(is_gone) {
            let Some(committed) = post.committed() else { continue };
            let message_id = committed.message_id;
            for gone in post.texts().filter(|gone| !kept.iter().any(|text| text.contains(gone))) {
                for event in events {
                    let known = uuid(&event.content, "com.nova.message_id") == Some(message_id);
                    if !known && contains(&event.content, gone) {
                        leaks.push(Discrepancy::LeakedText { message_id, event_id: event.event_id.clone() });
                    }
                }
            }
        }
        self.found.append(&mut leaks);
    }

    fn members(&mut self, members: &[(String, String)]) {
        let conversation = self.conversation;
        let present: BTreeMap<&str, &str> =
            members.iter().map(|(user, state)| (user.as_str(), state.as_str())).collect();
        let is_in = |membership: Option<&&str>| matches!(membership, Some(&("join" | "invite")));
        let asked = &self.book.conversations[&conversation].members;
        let mut expected = BTreeSet::new();
        for (&user, &wanted) in asked {
            let user_id = matrix_user(user, self.server_name);
            let membership = present.get(user_id.as_str());
            match wanted {
                Wanted::In if !is_in(membership) => {
                    let membership = membership.copied().unwrap_or("none").to_owned();
                    self.found.push(Discrepancy::MemberMissing { conversation, user_id: user_id.clone(), membership });
                }
                Wanted::Out if is_in(membership) => {
                    self.found.push(Discrepancy::MemberRemains { conversation, user_id: user_id.clone() });
                }
                _ => {}
            }
            expected.insert(user_id);
        }
        for (user, membership) in &present {
            let is_known =
                expected.contains(*user) || self.book.outsiders.contains(*user) || *user == self.senders.service_user();
            if !is_known && is_in(Some(membership)) {
                self.found.push(Discrepancy::MemberUnasked { conversation, user_id: (*user).to_owned() });
            }
        }
    }
}

pub(super) fn uuid(content: &Value, key: &str) -> Option<Uuid> {
    Uuid::parse_str(content.get(key)?.as_str()?).ok()
}

/// The text that a client shows: of an edit, the new one.
fn text(event: &MatrixEvent) -> Option<&str> {
    if event.replaces().is_some() { event.content["m.new_content"]["body"].as_str() } else { event.body() }
}

fn revision(event: &MatrixEvent) -> i64 {
    let inner = event.content["m.new_content"]["com.nova.revision"].as_i64();
    event.content["com.nova.revision"].as_i64().or(inner).unwrap_or_default()
}

fn contains(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string == text || (text.len() >= TELLING && string.contains(text)),
        Value::Array(values) => values.iter().any(|value| contains(value, text)),
        Value::Object(values) => values.values().any(|value| contains(value, text)),
        _ => false,
    }
}
