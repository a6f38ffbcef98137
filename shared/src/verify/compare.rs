//! The comparison itself: pure. Pages of a room's history go in, newest first, with what the database knows of them; what
//! differs comes out.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Finding, FindingKind, Found, MOST_FINDINGS, Mend};
use crate::{
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, ReactionId, RoomId},
    outbox::Kind,
};

/// The homeserver's clock and the database's may differ by this much.
const CLOCK_SLACK: time::Duration = time::Duration::minutes(10);

/// What an event is, as far as that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// A message or an edit.
    Message,
    /// A reaction.
    Reaction,
    /// A redaction.
    Redaction,
    /// Closes a transaction, and says nothing.
    Void,
    /// Something of a call.
    Call,
    /// The first event of a room.
    Create,
    /// Anything else.
    Other,
}

/// An event of a room, as far as it is compared. It has no content.
#[derive(Debug, Clone)]
pub struct RoomEvent {
    /// The event.
    pub event_id: EventId,
    /// What it is.
    pub event_type: EventType,
    /// Who sent it.
    pub sender: String,
    /// When, by the homeserver: milliseconds since 1970.
    pub sent_at_ms: i64,
    /// The operation whose marker it carries.
    pub marker: Option<OutboxId>,
    /// The message that it says it is of.
    pub message_id: Option<MessageId>,
    /// The reaction that it says it is.
    pub reaction_id: Option<ReactionId>,
    /// The revision that it says it is.
    pub revision: Option<i32>,
    /// Whether it replaces another event.
    pub replaces: bool,
    /// What it redacts.
    pub redacts: Option<EventId>,
    /// Who redacted it.
    pub redacted_by: Option<String>,
}

/// Where an operation's row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Among the evidence.
    Sent {
        /// Its event.
        event_id: EventId,
        /// It was found missing before, and sent again.
        lost: bool,
    },
    /// In the outbox: under way.
    Live,
    /// Dead.
    Dead,
    /// Given up, although it may have been sent.
    Withdrawn,
}

/// A message, as far as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageState {
    /// Its place in the conversation.
    pub seq: i64,
    /// Its newest revision.
    pub revision: i32,
    /// It is deleted.
    pub deleted: bool,
    /// It was sent again once: its place in the room is not its place in the conversation.
    pub moved: bool,
}

/// An operation, as the database has it.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its id.
    pub outbox_id: OutboxId,
    /// Where its row stands.
    pub place: Place,
    /// What it does.
    pub kind: Kind,
    /// Its lane.
    pub lane_id: LaneId,
    /// What it is about.
    pub subject_id: Uuid,
    /// The revision that it carries.
    pub revision: Option<i32>,
    /// What it redacts.
    pub target_outbox_id: Option<OutboxId>,
    /// Who sent it, once that is fixed.
    pub sender: Option<String>,
    /// Its message, if it has one.
    pub message: Option<MessageState>,
    /// It is a reaction that was taken back.
    pub removed: bool,
    /// Its redaction is under way.
    pub redaction_follows: bool,
}

/// What the database knows of a page's events, asked after the page was read.
#[derive(Debug, Default)]
pub struct Known {
    operations: HashMap<OutboxId, Operation>,
    by_event: HashMap<EventId, OutboxId>,
}

impl Known {
    /// From operations.
    pub fn of(operations: impl IntoIterator<Item = Operation>) -> Self {
        let mut known = Self::default();
        for operation in operations {
            if let Place::Sent { event_id, .. } = &operation.place {
                known.by_event.insert(event_id.clone(), operation.outbox_id);
            }
            known.operations.insert(operation.outbox_id, operation);
        }
        known
    }

    /// An operation.
    pub fn operation(&self, outbox_id: OutboxId) -> Option<&Operation> {
        self.operations.get(&outbox_id)
    }

    fn of_event(&self, event_id: &EventId) -> Option<&Operation> {
        self.operations.get(self.by_event.get(event_id)?)
    }
}

/// An event of ours that is nobody's evidence.
#[derive(Debug, Clone)]
pub struct Stray {
    /// The event.
    pub event: RoomEvent,
    /// The operation whose it is.
    pub outbox_id: OutboxId,
    /// The room that has it.
    pub room_id: RoomId,
    /// The operation, if it has a row anywhere.
    pub operation: Option<Operation>,
}

/// How far a room was read.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Down to its first event.
    whole: bool,
    oldest_ms: i64,
}

/// A comparison under way. What it keeps of each event are a few bytes.
#[derive(Debug)]
pub struct Comparison {
    conversation_id: ConversationId,
    /// The account that speaks for us.
    account: String,
    rooms: HashMap<RoomId, Extent>,
    seen: HashSet<u64>,
    /// Messages of which it is known what the room shows.
    shown: HashSet<MessageId>,
    /// Messages by their places, of those that were met: what is older must have a smaller one.
    after: BinaryHeap<Reverse<(i64, MessageId)>>,
    strays: Vec<Stray>,
    found: Vec<Found>,
    counts: BTreeMap<FindingKind, u64>,
    events: u64,
}

impl Comparison {
    /// Of a conversation in which this account speaks for us.
    pub fn new(conversation_id: ConversationId, account: &str) -> Self {
        Self {
            conversation_id,
            account: account.to_owned(),
            rooms: HashMap::new(),
            seen: HashSet::new(),
            shown: HashSet::new(),
            after: BinaryHeap::new(),
            strays: Vec::new(),
            found: Vec::new(),
            counts: BTreeMap::new(),
            events: 0,
        }
    }

    /// How many events were compared.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// A page of a room, newest event first, behind the pages before it; and what the database knows of it.
    pub fn page(&mut self, room_id: &RoomId, events: &[RoomEvent], known: &Known) {
        for event in events {
            self.events += 1;
            let extent = self.rooms.entry(room_id.clone()).or_insert(Extent { whole: false, oldest_ms: i64::MAX });
            extent.oldest_ms = extent.oldest_ms.min(event.sent_at_ms);
            extent.whole |= event.event_type == EventType::Create;
            self.seen.insert(hashed(&event.event_id));
            self.event(room_id, event, known);
        }
    }

    fn event(&mut self, room_id: &RoomId, event: &RoomEvent, known: &Known) {
        if let Some(operation) = known.of_event(&event.event_id) {
            self.delivered(room_id, event, operation);
            return;
        }
        let Some(outbox_id) = event.marker.filter(|_| event.sender == self.account) else { return };
        let is_readable = event.redacted_by.is_none() && event.event_type != EventType::Void;
        let operation = known.operation(outbox_id);
        let is_stray = match operation {
            Some(Operation { place: Place::Live, .. }) => false,
            Some(Operation { place: Place::Sent { .. }, .. }) => {
                if is_readable {
                    self.push(spare(self.conversation_id, room_id, &event.event_id, outbox_id));
                }
                false
            }
            Some(operation) => operation.sender.as_ref().is_none_or(|sender| *sender == event.sender),
            None => is_readable,
        };
        if is_stray && self.strays.len() < MOST_FINDINGS {
            let (event, room_id, operation) = (event.clone(), room_id.clone(), operation.cloned());
            self.strays.push(Stray { event, outbox_id, room_id, operation });
        }
    }

    /// An event that is an operation's evidence.
    fn delivered(&mut self, room_id: &RoomId, event: &RoomEvent, operation: &Operation) {
        let Place::Sent { lost, .. } = operation.place else { return };
        let is_void = event.event_type == EventType::Void;
        if lost {
            if event.redacted_by.is_none() && !is_void {
                let mut back = spare(self.conversation_id, room_id, &event.event_id, operation.outbox_id);
                "it was missing and sent again, and is back: a repair redacts this one"
                    .clone_into(&mut back.finding.words);
                self.push(back);
            }
            return;
        }
        let Some(message) = operation.message else { return };
        let message_id = MessageId::from(operation.subject_id);
        if operation.kind == Kind::Message && !message.moved {
            self.in_order(message.seq, message_id);
        }
        if is_void || !operation.kind.carries_words() {
            return;
        }
        let is_text = operation.kind.carries_text();
        let conversation_id = self.conversation_id;
        let finding = |kind, words: &str| Finding {
            kind,
            conversation_id,
            outbox_id: Some(operation.outbox_id),
            subject_id: Some(operation.subject_id),
            room_id: Some(room_id.clone()),
            event_id: Some(event.event_id.clone()),
            words: words.to_owned(),
            repairable: kind != FindingKind::Redacted,
            repaired: false,
        };
        let unwanted = if is_text { message.deleted } else { operation.removed || message.deleted };
        if let Some(by) = &event.redacted_by {
            let is_newest = operation.kind != Kind::Edit || operation.revision >= Some(message.revision);
            // Who redacted the newest text wants the one before it shown.
            if is_text && is_newest {
                self.shown.insert(message_id);
            }
            if *by == self.account && is_newest && !unwanted {
                let words = "our own account redacted it, although it is not deleted: delete it, or post it anew";
                self.push(Found { finding: finding(FindingKind::Redacted, words), mend: Mend::Nothing });
            }
        } else if unwanted {
            // What reacts to a deleted message is shown with it or not at all.
            let shows = is_text || !message.deleted;
            if shows && !operation.redaction_follows {
                let words = "what was deleted or taken back can still be read: a repair enqueues its redaction";
                let mend = Mend::Redact { outbox_id: operation.outbox_id, message_id };
                self.push(Found { finding: finding(FindingKind::Unredacted, words), mend });
            }
        } else if is_text {
            let revision = event.revision.or(operation.revision);
            let stale = finding(
                FindingKind::Stale,
                "the room shows an older text, and nothing brings the newest: a repair enqueues it as an edit",
            );
            if self.shown.insert(message_id) && revision < Some(message.revision) {
                self.push(Found { finding: stale, mend: Mend::Edit(message_id) });
            }
        }
    }

    /// A message that stands before all that were met so far: those with a smaller place should stand before it.
    fn in_order(&mut self, seq: i64, message_id: MessageId) {
        while let Some(Reverse((late, late_id))) = self.after.peek().copied()
            && late < seq
        {
            self.after.pop();
            let finding = Finding {
                kind: FindingKind::Reordered,
                conversation_id: self.conversation_id,
                outbox_id: None,
                subject_id: Some(late_id.as_uuid()),
                room_id: None,
                event_id: None,
                words: format!(
                    "message {late_id} (place {late}) stands behind message {message_id} (place {seq}): it was requeued, \
                     or came late; a room's order cannot be mended"
                ),
                repairable: false,
                repaired: false,
            };
            self.push(Found { finding, mend: Mend::Nothing });
        }
        self.after.push(Reverse((seq, message_id)));
    }

    /// Adds what was found by other means.
    pub fn push(&mut self, found: Found) {
        *self.counts.entry(found.finding.kind).or_default() += 1;
        if self.found.len() < MOST_FINDINGS {
            self.found.push(found);
        }
    }

    /// Whether an event should have been met, if it is there: its room was read as far back as it was sent.
    pub fn should_have_met(&self, room_id: &RoomId, sent_at: OffsetDateTime) -> bool {
        self.rooms.get(room_id).is_some_and(|extent| {
            let sent_at_ms = (sent_at - CLOCK_SLACK).unix_timestamp_nanos() / 1_000_000;
            extent.whole || sent_at_ms > i128::from(extent.oldest_ms)
        })
    }

    /// Whether an event was met. Events are remembered by 64 bits of hash.
    pub fn has_met(&self, event_id: &EventId) -> bool {
        self.seen.contains(&hashed(event_id))
    }

    /// The strays: of several with one marker the oldest, which is its operation's; the others are found to be doubled.
    pub fn take_strays(&mut self) -> Vec<Stray> {
        let mut firsts = HashSet::new();
        let (mut oldest, mut spares) = (Vec::new(), Vec::new());
        for stray in std::mem::take(&mut self.strays).into_iter().rev() {
            if firsts.insert(stray.outbox_id) {
                oldest.push(stray);
            } else if stray.event.redacted_by.is_none() {
                spares.push(spare(self.conversation_id, &stray.room_id, &stray.event.event_id, stray.outbox_id));
            }
        }
        for spare in spares {
            self.push(spare);
        }
        oldest
    }

    /// What differs, and how much of each kind.
    pub fn finish(self) -> (Vec<Found>, BTreeMap<FindingKind, u64>) {
        (self.found, self.counts)
    }
}

/// An event beside the one that counts.
fn spare(conversation_id: ConversationId, room_id: &RoomId, event_id: &EventId, outbox_id: OutboxId) -> Found {
    Found {
        finding: Finding {
            kind: FindingKind::Doubled,
            conversation_id,
            outbox_id: Some(outbox_id),
            subject_id: None,
            room_id: Some(room_id.clone()),
            event_id: Some(event_id.clone()),
            words: "a second event of one operation: a repair redacts the one that is not known as sent".to_owned(),
            repairable: true,
            repaired: false,
        },
        mend: Mend::RedactSpare { outbox_id, room_id: room_id.clone(), event_id: event_id.clone() },
    }
}

fn hashed(event_id: &EventId) -> u64 {
    let mut hasher = DefaultHasher::new();
    event_id.as_str().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    const ACCOUNT: &str = "@service:nova.test";

    /// A room in which each operation has one event, and what the database knows of them.
    #[expect(clippy::struct_field_names, reason = "it is what it is called everywhere")]
    struct Room {
        room_id: RoomId,
        conversation_id: ConversationId,
        events: Vec<RoomEvent>,
        operations: Vec<Operation>,
    }

    impl Room {
        fn new() -> Self {
            let mut room = Self {
                room_id: RoomId::from("!room".to_owned()),
                conversation_id: ConversationId::generate(),
                events: Vec::new(),
                operations: Vec::new(),
            };
            room.event(EventType::Create, None);
            room
        }

        fn event(&mut self, event_type: EventType, marker: Option<OutboxId>) -> &mut RoomEvent {
            let place = self.events.len();
            self.events.push(RoomEvent {
                event_id: EventId::from(format!("${place}")),
                event_type,
                sender: ACCOUNT.to_owned(),
                sent_at_ms: 1_000_000 + i64::try_from(place).unwrap(),
                marker,
                message_id: None,
                reaction_id: None,
                revision: None,
                replaces: false,
                redacts: None,
                redacted_by: None,
            });
            self.events.last_mut().unwrap()
        }

        /// An operation that was delivered, as the last event.
        fn sent(&mut self, kind: Kind, subject_id: Uuid, seq: i64, revision: i32) -> usize {
            let outbox_id = OutboxId::generate();
            let event_type = if kind == Kind::React { EventType::Reaction } else { EventType::Message };
            let event = self.event(event_type, Some(outbox_id));
            event.revision = Some(revision);
            let event_id = event.event_id.clone();
            self.operations.push(Operation {
                outbox_id,
                place: Place::Sent { event_id, lost: false },
                kind,
                lane_id: LaneId::from(self.conversation_id),
                subject_id,
                revision: kind.carries_text().then_some(revision),
                target_outbox_id: None,
                sender: Some(ACCOUNT.to_owned()),
                message: Some(MessageState { seq, revision, deleted: false, moved: false }),
                removed: false,
                redaction_follows: false,
            });
            self.operations.len() - 1
        }

        fn message(&mut self, seq: i64) -> usize {
            self.sent(Kind::Message, Uuid::now_v7(), seq, 1)
        }

        /// The newest state of all operations' message.
        fn state(&mut self, change: impl Fn(&mut MessageState)) {
            self.operations.iter_mut().filter_map(|operation| operation.message.as_mut()).for_each(change);
        }

        fn event_of(&mut self, operation: usize) -> &mut RoomEvent {
            let Place::Sent { event_id, .. } = self.operations[operation].place.clone() else { panic!("is not sent") };
            self.events.iter_mut().find(|event| event.event_id == event_id).unwrap()
        }

        /// Read in pages of two.
        fn compared(&self) -> Comparison {
            let mut comparison = Comparison::new(self.conversation_id, ACCOUNT);
            let newest_first: Vec<RoomEvent> = self.events.iter().rev().cloned().collect();
            for page in newest_first.chunks(2) {
                comparison.page(&self.room_id, page, &Known::of(self.operations.clone()));
            }
            comparison
        }

        fn found(&self) -> Vec<(FindingKind, Option<OutboxId>)> {
            let mut comparison = self.compared();
            assert_eq!(comparison.take_strays().len(), 0);
            let found = comparison.finish().0;
            found.into_iter().map(|found| (found.finding.kind, found.finding.outbox_id)).collect()
        }
    }

    #[test]
    fn a_room_in_good_order_differs_in_nothing() {
        let mut room = Room::new();
        let message = room.message(1);
        let subject = room.operations[message].subject_id;
        room.message(2);
        room.sent(Kind::Edit, subject, 1, 2);
        room.sent(Kind::React, subject, 1, 2);
        room.operations[message].message.as_mut().unwrap().revision = 2;
        assert_eq!(room.found(), []);
    }

    #[test]
    fn a_second_event_of_an_operation_is_doubled_and_not_once_it_is_redacted_or_by_somebody_else() {
        let mut room = Room::new();
        let message = room.message(1);
        let outbox_id = room.operations[message].outbox_id;
        room.event(EventType::Message, Some(outbox_id));
        assert_eq!(room.found(), [(FindingKind::Doubled, Some(outbox_id))]);
        let spare = room.events.len() - 1;
        room.events[spare].redacted_by = Some(ACCOUNT.to_owned());
        assert_eq!(room.found(), []);
        room.events[spare].redacted_by = None;
        room.events[spare].sender = "@mallory:evil.example".to_owned();
        assert_eq!(room.found(), []);
    }

    #[test]
    fn of_several_strays_with_one_marker_the_oldest_is_its_operations() {
        let mut room = Room::new();
        let marker = OutboxId::generate();
        let oldest = room.event(EventType::Message, Some(marker)).event_id.clone();
        room.event(EventType::Message, Some(marker));
        let mut comparison = room.compared();
        let strays = comparison.take_strays();
        assert_eq!(strays.iter().map(|stray| &stray.event.event_id).collect::<Vec<_>>(), [&oldest]);
        assert_eq!(comparison.finish().1, BTreeMap::from([(FindingKind::Doubled, 1)]));
    }

    #[test]
    fn what_is_under_way_is_no_stray_and_what_is_dead_is_one() {
        let mut room = Room::new();
        let message = room.message(1);
        room.operations[message].place = Place::Live;
        assert_eq!(room.found(), []);
        room.operations[message].place = Place::Dead;
        assert_eq!(room.compared().take_strays().len(), 1);
        room.operations[message].sender = Some("@another:nova.test".to_owned());
        assert_eq!(room.found(), []);
    }

    #[test]
    fn a_text_of_a_deleted_message_is_unredacted_unless_its_redaction_is_under_way_or_done() {
        let mut room = Room::new();
        let message = room.message(1);
        let subject = room.operations[message].subject_id;
        let edit = room.sent(Kind::Edit, subject, 1, 2);
        room.sent(Kind::React, subject, 1, 2);
        room.state(|message| message.deleted = true);
        let expected = [edit, message].map(|at| (FindingKind::Unredacted, Some(room.operations[at].outbox_id)));
        assert_eq!(room.found(), expected);
        room.operations[edit].redaction_follows = true;
        room.event_of(message).redacted_by = Some(ACCOUNT.to_owned());
        assert_eq!(room.found(), []);
    }

    #[test]
    fn a_reaction_that_was_taken_back_is_unredacted() {
        let mut room = Room::new();
        let reaction = room.sent(Kind::React, Uuid::now_v7(), 1, 1);
        room.operations[reaction].removed = true;
        assert_eq!(room.found(), [(FindingKind::Unredacted, Some(room.operations[reaction].outbox_id))]);
    }

    #[test]
    fn the_newest_text_in_the_room_is_compared_whatever_was_sent() {
        let mut room = Room::new();
        let message = room.message(1);
        let subject = room.operations[message].subject_id;
        let newer = room.sent(Kind::Edit, subject, 1, 3);
        let older = room.sent(Kind::Edit, subject, 1, 2);
        room.state(|message| message.revision = 3);
        assert_eq!(room.found(), [(FindingKind::Stale, Some(room.operations[older].outbox_id))], "the older came last");
        room.event_of(older).redacted_by = Some("@moderator:nova.test".to_owned());
        assert_eq!(room.found(), []);
        room.event_of(newer).redacted_by = Some("@moderator:nova.test".to_owned());
        assert_eq!(room.found(), [], "who redacted the newest text wants another one shown");
        room.event_of(newer).redacted_by = Some(ACCOUNT.to_owned());
        assert_eq!(room.found(), [(FindingKind::Redacted, Some(room.operations[newer].outbox_id))]);
    }

    #[test]
    fn a_message_behind_a_later_one_is_reordered_and_told_once() {
        let mut room = Room::new();
        room.message(1);
        for seq in [3, 4, 5] {
            room.message(seq);
        }
        assert_eq!(room.found(), []);
        let at = room.message(2);
        let late_message = room.operations[at].subject_id;
        let found = room.compared().finish().0;
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].finding.kind, found[0].finding.subject_id), (FindingKind::Reordered, Some(late_message)));
        assert!(found[0].finding.words.contains("place 2") && found[0].finding.words.contains("place 5"));
        // What was sent again stands where it was sent again.
        room.operations[at].message.as_mut().unwrap().moved = true;
        assert_eq!(room.found(), []);
    }

    #[test]
    fn what_was_sent_again_and_is_back_is_doubled() {
        let mut room = Room::new();
        let message = room.message(1);
        let Place::Sent { lost, .. } = &mut room.operations[message].place else { panic!("is not sent") };
        *lost = true;
        assert_eq!(room.found(), [(FindingKind::Doubled, Some(room.operations[message].outbox_id))]);
    }

    #[test]
    fn nothing_is_missing_beyond_the_history_that_there_is() {
        let mut room = Room::new();
        room.message(1);
        let long_ago = OffsetDateTime::UNIX_EPOCH;
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        let other = RoomId::from("!other".to_owned());
        let comparison = room.compared();
        assert!(comparison.should_have_met(&room.room_id, long_ago), "it was read down to its first event");
        assert!(!comparison.should_have_met(&other, now), "it was not read at all");
        room.events.remove(0);
        let comparison = room.compared();
        assert!(!comparison.should_have_met(&room.room_id, long_ago));
        assert!(comparison.should_have_met(&room.room_id, now));
        assert!(comparison.has_met(&room.events[0].event_id));
        assert!(!comparison.has_met(&EventId::from("$never".to_owned())));
    }

    #[test]
    fn what_is_found_is_bounded_and_counted() {
        let mut room = Room::new();
        let many = MOST_FINDINGS + 5;
        for seq in 0..many {
            room.message(i64::try_from(seq).unwrap());
        }
        room.state(|message| message.deleted = true);
        let (found, counts) = room.compared().finish();
        assert_eq!(found.len(), MOST_FINDINGS);
        assert_eq!(counts, BTreeMap::from([(FindingKind::Unredacted, many as u64)]));
    }
}
