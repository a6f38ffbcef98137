//! What a sender reports of the operations that it was handed: how each attempt ended, and whose fault it was.

use std::time::{Duration, Instant};

use super::{ClaimedOperation, Evidence};
use crate::ids::{EventId, RoomId};

/// Whose fault it is that an attempt failed: what is counted against the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Nobody's: it waits for as long as it was told, and the next wait does not grow.
    Nobody,
    /// The homeserver's or the network's: the next wait grows.
    Passing,
    /// Perhaps its own: its budget of time runs from the first such failure on.
    Suspect,
    /// Its own: an attempt is burnt too.
    Own,
}

/// How the attempt at an operation ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The homeserver named its event.
    Delivered {
        /// The event.
        event_id: EventId,
        /// The room that has it.
        room_id: RoomId,
    },
    /// A state operation: the room is as it should be.
    Done,
    /// Certainly not accepted; it waits again.
    Refused {
        /// For how long.
        retry_in: Duration,
        /// Whose fault it is.
        blame: Blame,
    },
    /// Nobody knows whether it was accepted.
    Ambiguous {
        /// For how long it waits before it is tried again in the same way.
        retry_in: Duration,
        /// Whose fault it is.
        blame: Blame,
    },
    /// The room does not take it: the lane is held until somebody acts.
    RoomFault {
        /// Why, for people.
        reason: String,
    },
    /// The homeserver will never take it.
    OwnFault {
        /// What an operator can do.
        hint: &'static str,
    },
    /// It was tried for as long as such a failure is tried.
    GaveUp {
        /// What an operator can do.
        hint: &'static str,
    },
    /// What it relates to is dead.
    ParentDead,
    /// It is no longer worth sending, and was never sent.
    Expired,
    /// Looked for and not there: an operation whose message was deleted, or a redaction without a target.
    NotThere,
}

impl Outcome {
    /// In the words of metrics and attempt records.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Delivered { .. } => "delivered",
            Self::Done => "done",
            Self::Refused { .. } => "refused",
            Self::Ambiguous { .. } => "ambiguous",
            Self::RoomFault { .. } => "room_fault",
            Self::OwnFault { .. } => "own_fault",
            Self::GaveUp { .. } => "gave_up",
            Self::ParentDead => "parent_dead",
            Self::Expired => "expired",
            Self::NotThere => "not_there",
        }
    }

    /// True when the next operation of the lane may follow.
    pub const fn lets_the_next_go(&self) -> bool {
        matches!(self, Self::Delivered { .. } | Self::Done)
    }
}

/// What is remembered of one attempt, for ever visible to operators.
#[derive(Debug, Clone, Default)]
pub struct Attempt {
    /// When it began; none: just now. A settle may have to wait for its database, so this is not `took` ago.
    pub began: Option<Instant>,
    /// How long it took.
    pub took: Duration,
    /// The homeserver's status, when it answered.
    pub http_status: Option<i32>,
    /// The Matrix error code.
    pub errcode: Option<String>,
    /// What went wrong, for people. Never content, never a token.
    pub detail: Option<String>,
}

impl Attempt {
    /// How long ago it began.
    pub(super) fn age(&self) -> Duration {
        self.began.map_or(self.took, |began| began.elapsed().max(self.took))
    }
}

/// How one operation ended.
#[derive(Debug)]
pub struct OperationResult {
    /// The operation, as it was handed out.
    pub operation: ClaimedOperation,
    /// How it ended.
    pub outcome: Outcome,
    /// The attempt; none when nothing was tried (the evidence was there before).
    pub attempt: Option<Attempt>,
    /// What was learnt of other operations on the way (the target of a redaction).
    pub found: Vec<Evidence>,
    /// Its earlier attempts were looked up, are not there and never will be: what is known of it begins with this one,
    /// by the sender and device that the operation names here.
    pub anew: bool,
}

impl OperationResult {
    /// The evidence that this result is, if it is.
    pub fn evidence(&self) -> Option<Evidence> {
        let Outcome::Delivered { event_id, room_id } = &self.outcome else { return None };
        Some(Evidence {
            outbox_id: self.operation.outbox_id,
            kind: self.operation.kind,
            subject_id: self.operation.subject_id,
            revision: self.operation.revision,
            target_outbox_id: self.operation.target.as_ref().map(|target| target.outbox_id),
            event_id: event_id.clone(),
            room_id: room_id.clone(),
            sender: self.operation.sender.clone(),
        })
    }
}
