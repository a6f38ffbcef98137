//! What there is: one lane with its operations, two workers, the wire, the homeserver, and what may still go wrong.
//!
//! Everything is small and `Copy`: an exploration copies a state for each step that leaves it.
use std::fmt;
use std::hash::{Hash, Hasher};

use super::chance::{Budget, Chance};
use super::list::{List, Operations};

/// The bounds of the model. A step that would pass one sets [`State::overflowed`] and is not followed; a scenario in
/// which that happens fails, since it was not explored to its end. Only a full wire is silent: it lets no further
/// request start.
const OPERATIONS: usize = 10;
const MESSAGES: usize = 2;
const WORKERS: usize = 2;
const REQUESTS: usize = 3;
const ROOM_EVENTS: usize = 10;
/// The most rows that one claim hands out.
pub(super) const BATCH: usize = 2;

/// An operation's place in commit order, which is also its name.
pub(super) type Seq = u8;
/// An index into [`State::messages`].
pub(super) type MessageId = u8;
/// An index into [`State::workers`].
pub(super) type WorkerId = u8;

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Hash, Debug)]
pub(super) enum Kind {
    #[default]
    Message,
    Edit,
    Redaction,
    /// Takes the one member that the model knows out of the room.
    Removal,
    /// Brings that member in.
    Invitation,
}

impl Kind {
    /// Whether it carries a message's text.
    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::Message | Self::Edit)
    }

    /// Whether it has a transaction id and our marker. Operations on membership have neither.
    pub(super) fn is_send(self) -> bool {
        self <= Self::Redaction
    }
}

/// Where an operation's row is.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(super) enum Place {
    /// Live.
    #[default]
    Outbox,
    DeadLetters,
    /// Nowhere: taken out by a delete, by a newer edit, or by a settle that had nothing left to do.
    Cancelled,
    /// In `sent_events`.
    Delivered,
    /// Given up by an operator; known only to the audit log.
    Discarded,
}

/// `maybe_sent_at`, and how long ago that is.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(super) enum MaybeSent {
    /// Null.
    #[default]
    Never,
    /// The homeserver still knows the transaction id.
    Lately,
    /// More than 20 hours ago: the homeserver may have forgotten the transaction id.
    LongAgo,
}

/// One thing to do on Matrix.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "four facts about a row that do not depend on each other")]
pub(super) struct Operation {
    pub(super) kind: Kind,
    pub(super) message: MessageId,
    pub(super) revision: u8,
    /// What a redaction aims at.
    pub(super) target: Seq,
    pub(super) place: Place,
    pub(super) maybe_sent: MaybeSent,
    /// Its own due time is in the future.
    pub(super) backs_off: bool,
    /// There is a row in `sent_events`.
    pub(super) evidence: bool,
    /// It left the line once, or found its work done, so that it may act after its followers. For the law of order
    /// only.
    pub(super) out_of_line: bool,
    /// A delete took it away on the word that it had not been sent. For the law of the delete's answer only.
    pub(super) promised_unsent: bool,
}

impl Operation {
    pub(super) fn is_live(&self) -> bool {
        self.place == Place::Outbox
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Message {
    /// The newest revision in the database.
    pub(super) revision: u8,
    pub(super) deleted: bool,
    /// The operation that sends revision 1.
    pub(super) send: Seq,
}

/// The lane's `due_at`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(super) enum Due {
    /// Null.
    #[default]
    Never,
    Now,
    Later,
}

/// The lane's `owner` and `leased_until`. Epochs are only ever compared for equality, so that the state keeps the
/// result of the comparison ([`Worker::current`]) and not a number that would make each retry a state of its own.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(super) enum Lease {
    /// No owner.
    #[default]
    Released,
    Held,
    /// An owner who did not release, and whose time is over.
    Lapsed,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    /// Counts live operations.
    pub(super) open: i8,
    /// All operations below this number count as handed to a sender.
    pub(super) frozen_through: u8,
    pub(super) due: Due,
    pub(super) held: bool,
    pub(super) lease: Lease,
    /// `claimed_at` is more than 20 hours ago.
    pub(super) claimed_long_ago: bool,
}

/// What the claim says is to be done with a row.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mode {
    #[default]
    Put,
    /// May have been sent so long ago that the homeserver has forgotten it: look it up, and PUT if it is not there.
    LookUpThenPut,
    /// Its message is deleted: make sure that it can never appear (see [`Closing`](super::protocol::Closing)).
    Close,
    /// The same after a look-up: a void would not meet a transaction id that is forgotten.
    LookUpThenClose,
    /// There is evidence already: send nothing, settle.
    SettleOnly,
}

/// What became of an attempt.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Outcome {
    #[default]
    Untried,
    Delivered,
    /// 429, or a connection that was never made.
    Refused,
    /// Timeout, connection cut, 5xx: may have been sent.
    Ambiguous,
    OwnFault,
    RoomFault,
    /// The look-up of a deleted message's operation found nothing.
    NotFound,
    /// An edit whose original has no event.
    ParentDead,
    /// A redaction whose target has no event.
    NoTarget,
}

/// A row as it was handed to a worker.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Row {
    pub(super) seq: Seq,
    pub(super) revision: u8,
    pub(super) mode: Mode,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Phase {
    #[default]
    Idle,
    /// Between snapshot and lock of a claim in one statement.
    Claiming,
    /// About to work on the row at `position`.
    Ready,
    /// Its request is on the wire.
    Waiting,
    /// The answer is on its way back.
    Answered,
    /// Has nothing left to send; will settle.
    Finished,
    /// Between snapshot and lock of a settle in one statement.
    Settling,
}

/// What a worker did about the target of the redaction at hand.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Target {
    #[default]
    Untouched,
    /// The request on the wire is a void for the target, and not the redaction itself.
    Closing,
    /// The answer to the void told the target's event.
    Known,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Worker {
    pub(super) phase: Phase,
    /// Its epoch is still the lane's.
    pub(super) current: bool,
    /// It slept for more than a day since it claimed.
    pub(super) overslept: bool,
    pub(super) rows: List<Row, BATCH>,
    pub(super) position: u8,
    /// The answer that is on its way.
    pub(super) answer: Outcome,
    pub(super) target: Target,
    /// The live rows that a settle in one statement sees.
    pub(super) snapshot: Operations,
}

impl Worker {
    pub(super) fn row(&self) -> Row {
        self.rows[self.position]
    }

    /// Whether an earlier row of this batch was `seq`, and was delivered.
    pub(super) fn has_delivered(&self, seq: Seq) -> bool {
        self.rows.iter().any(|row| row.seq == seq && row.outcome == Outcome::Delivered)
    }

    /// Any total order does: it only decides which of two workers is called the first.
    fn rank(&self) -> (Phase, bool, bool, u8, Target, Outcome, &[Row]) {
        (self.phase, self.current, self.overslept, self.position, self.target, self.answer, &self.rows)
    }
}

/// What a request carries and an event shows.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Content {
    /// A redaction or a membership.
    #[default]
    Bare,
    /// A message's or an edit's text.
    Revision(u8),
    /// An event without content that only occupies its operation's transaction id.
    Void,
}

/// A PUT on its way to the homeserver.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Request {
    pub(super) seq: Seq,
    pub(super) content: Content,
    /// Nobody waits for a request whose sender timed out or crashed: it *travels*, and may arrive at any time, or
    /// never.
    pub(super) waiter: Option<WorkerId>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct RoomEvent {
    pub(super) seq: Seq,
    pub(super) content: Content,
    pub(super) redacted: bool,
}

#[derive(Clone, Copy, Default)]
pub(super) struct State {
    // The database.
    pub(super) lane: Lane,
    pub(super) operations: List<Operation, OPERATIONS>,
    pub(super) messages: List<Message, MESSAGES>,
    pub(super) member_in_database: bool,
    // The workers, and the room's events that the sync has seen.
    pub(super) workers: [Worker; WORKERS],
    pub(super) synced: u8,
    // The wire and the homeserver.
    pub(super) wire: List<Request, REQUESTS>,
    pub(super) room: List<RoomEvent, ROOM_EVENTS>,
    pub(super) member_in_room: bool,
    /// The operations whose transaction ids the homeserver knows.
    pub(super) remembered: Operations,
    // The model's own.
    pub(super) budget: Budget,
    pub(super) overflowed: bool,
}

impl State {
    pub(super) fn initial(budget: Budget) -> Self {
        Self { member_in_database: true, member_in_room: true, budget, ..Self::default() }
    }

    pub(super) fn worker(&self, id: WorkerId) -> &Worker {
        &self.workers[usize::from(id)]
    }

    pub(super) fn worker_mut(&mut self, id: WorkerId) -> &mut Worker {
        &mut self.workers[usize::from(id)]
    }

    /// The operations that carry a text of `message`.
    pub(super) fn texts(&self, message: MessageId) -> impl Iterator<Item = Seq> + use<> {
        let operations = self.operations;
        operations.indices().filter(move |&seq| {
            let operation = &operations[seq];
            operation.kind.is_text() && operation.message == message
        })
    }

    /// Whether the room has an event of this operation, be it a void.
    pub(super) fn in_room(&self, seq: Seq) -> bool {
        self.room.iter().any(|event| event.seq == seq)
    }

    /// `self` with one of this chance spent, if there is one left.
    pub(super) fn spend(&self, chance: Chance) -> Option<Self> {
        let budget = self.budget.spend(chance)?;
        Some(Self { budget, ..*self })
    }

    /// Gives states that differ only in names that mean nothing one form. Returns whether the workers changed their
    /// names.
    pub(super) fn canonicalise(&mut self) -> bool {
        let swapped = self.workers[0].rank() < self.workers[1].rank();
        if swapped {
            self.workers.swap(0, 1);
            for request in self.wire.iter_mut() {
                request.waiter = request.waiter.map(|worker| 1 - worker);
            }
        }
        self.wire.sort_unstable();
        swapped
    }

    /// A hash of all but the budget. It stands for the state: at a million states, two of them share a value with a
    /// probability of about 1 : 40 million.
    pub(super) fn fingerprint(&self) -> u64 {
        // No `..`: whoever adds a field decides here whether it tells states apart.
        let Self {
            lane,
            operations,
            messages,
            member_in_database,
            workers,
            synced,
            wire,
            room,
            member_in_room,
            remembered,
            budget: _,
            overflowed: _,
        } = self;
        let mut hasher = Fingerprint(0);
        (lane, operations, messages, member_in_database).hash(&mut hasher);
        (workers, synced, wire, room, member_in_room, remembered).hash(&mut hasher);
        hasher.finish()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lane { open, frozen_through, due, held, lease, .. } = self.lane;
        writeln!(f, "  lane: open {open}, frozen below #{frozen_through}, due {due:?}, held {held}, lease {lease:?}")?;
        for seq in self.operations.indices() {
            let Operation { kind, message, revision, target, place, maybe_sent, evidence, .. } = self.operations[seq];
            write!(f, "  #{seq}: {kind:?}")?;
            match kind {
                Kind::Message | Kind::Edit => write!(f, " of message {message}, revision {revision}")?,
                Kind::Redaction => write!(f, " of #{target}")?,
                Kind::Removal | Kind::Invitation => {}
            }
            writeln!(f, ", {place:?}, maybe sent {maybe_sent:?}, evidence {evidence}")?;
        }
        write!(f, "  room:")?;
        for event in self.room.iter() {
            write!(f, " #{} ({}{})", event.seq, event.content, if event.redacted { ", redacted" } else { "" })?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => write!(f, "no text"),
            Self::Revision(revision) => write!(f, "revision {revision}"),
            Self::Void => write!(f, "void"),
        }
    }
}

/// A quick hash of many small numbers: multiply and fold for each. Nobody chooses the input, so that it need not resist
/// anybody.
struct Fingerprint(u64);

impl Hasher for Fingerprint {
    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number.cast_unsigned() as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u8(byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
