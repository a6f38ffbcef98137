//! Verify: compares what the database says of a conversation with what stands in its rooms.
//!
//! Rooms are read newest event first, page by page, and of each page the database is asked right after it was read. So
//! what is under way is no finding: whoever sends an event has its row in the outbox until the row of the evidence is
//! there. Three things are read the other way round, and so are looked at once more, on the homeserver and then in the
//! database, before they are told: what is missing, what is not redacted yet, and who is a member.
//!
//! | finding | the database | the room | repair |
//! |---|---|---|---|
//! | `missing` | delivered | there is no such event | the newest text is sent again, by a new operation at the lane's end |
//! | `doubled` | one operation | two events of it | the one that is no evidence is redacted |
//! | `unknown` | not delivered | an event with its marker | the event is taken as evidence (rule R follows) |
//! | `unredacted` | deleted, or taken back | the words can be read | a redaction is enqueued |
//! | `stale` | a newer text, and nothing brings it | an older text is shown | the newest text is enqueued as an edit |
//! | `member_missing`, `member_remains` | belongs, does not | is not there, is | invited, removed |
//! | `redacted` | not deleted | our own account redacted it | none: told |
//! | `reordered` | one order | another | none: told |
//! | `unreadable` | a room | we may not read it | none here: see the repairs by cause |
//!
//! A marker in somebody else's event says nothing. What others redacted is theirs, and the sync applies it. What is dead
//! is known to be dead: that is no finding either, unless its event stands in the room.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId},
    outbox::Evidence,
};

mod compare;
mod read;
mod repair;

pub use compare::{Comparison, EventType, Known, MessageState, Operation, Place, RoomEvent, Stray};
pub use read::{
    SENT_PAGE, SentRow, Standing, identify, is_received, is_still_so, known, rooms_of, sent_before, standing,
};
pub use repair::{Reinvited, reinvite, repair, transaction_of_spare};

/// How many findings of one conversation are kept; all are counted. What is more, the next run finds.
pub const MOST_FINDINGS: usize = 1_000;

/// When more messages than this are missing in one conversation, the homeserver has dropped a part of its history on
/// purpose, or is another one: nothing of that is sent again by itself.
pub const MOST_RESENT: usize = 100;

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Delivered, but its room has no such event.
    Missing,
    /// Two events of one operation.
    Doubled,
    /// An event of ours that the database does not know as sent.
    Unknown,
    /// What was deleted or taken back can be read.
    Unredacted,
    /// The room shows an older text, and nothing brings the newest.
    Stale,
    /// A member is not in the room.
    MemberMissing,
    /// Who was removed is still there.
    MemberRemains,
    /// Our own account redacted what is not deleted.
    Redacted,
    /// A message stands behind a later one.
    Reordered,
    /// A room cannot be read.
    Unreadable,
}

impl FindingKind {
    /// As in JSON and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Doubled => "doubled",
            Self::Unknown => "unknown",
            Self::Unredacted => "unredacted",
            Self::Stale => "stale",
            Self::MemberMissing => "member_missing",
            Self::MemberRemains => "member_remains",
            Self::Redacted => "redacted",
            Self::Reordered => "reordered",
            Self::Unreadable => "unreadable",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something in which database and room differ. Ids and words; never content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What differs.
    pub kind: FindingKind,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The operation, if it is about one.
    pub outbox_id: Option<OutboxId>,
    /// The message, the member or the call.
    pub subject_id: Option<Uuid>,
    /// The room.
    pub room_id: Option<RoomId>,
    /// The event.
    pub event_id: Option<EventId>,
    /// What is wrong and what a repair does, for people.
    pub words: String,
    /// Whether a repair can mend it.
    pub repairable: bool,
    /// Whether it was repaired: what it takes is done, or on its way.
    pub repaired: bool,
}

/// What mends a finding.
#[derive(Debug, Clone)]
pub enum Mend {
    /// Nothing that is done by itself.
    Nothing,
    /// The operation's message or reaction is sent again.
    Resend(OutboxId),
    /// An event of ours beside the one that counts is redacted, straight away.
    RedactSpare {
        /// The operation whose marker it carries.
        outbox_id: OutboxId,
        /// The room that has it.
        room_id: RoomId,
        /// The event.
        event_id: EventId,
    },
    /// The event is evidence.
    Adopt(LaneId, Box<Evidence>),
    /// The operation's event is redacted.
    Redact {
        /// The operation.
        outbox_id: OutboxId,
        /// The message that it is of.
        message_id: MessageId,
    },
    /// The message's newest text is sent as an edit.
    Edit(MessageId),
    /// The member is invited.
    Invite(UserId),
    /// The user is removed.
    Remove(UserId),
}

/// A finding, and what mends it.
#[derive(Debug, Clone)]
pub struct Found {
    /// The finding.
    pub finding: Finding,
    /// What mends it.
    pub mend: Mend,
}

impl Found {
    /// Told, and not mended by itself.
    #[must_use]
    pub fn only_told(mut self, words: &str) -> Self {
        self.finding.repairable = false;
        words.clone_into(&mut self.finding.words);
        self.mend = Mend::Nothing;
        self
    }
}
