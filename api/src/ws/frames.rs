//! What a client is sent.

use serde::Serialize;
use shared::{
    events::{Lost, Position},
    ids::{ConversationId, MessageId, ReactionId, UserId},
};

use super::calls::CallFrame;
use crate::{
    calls::CallBody,
    conversations::ConversationBody,
    messages::{MatrixBody, MessageBody, ReactionBody},
    problem::Problem,
};

/// A frame. Events have the names of the protocol that clients know; what is about the connection itself is in lower case.
#[derive(Debug, Serialize)]
#[serde(tag = "type")]
pub(crate) enum Frame {
    /// The first: what follows comes after this cursor.
    #[serde(rename = "ready")]
    Ready {
        cursor: Position,
    },
    /// Nothing was missed up to this cursor.
    #[serde(rename = "heartbeat")]
    Heartbeat {
        cursor: Position,
    },
    /// Something may have been missed; what follows comes after this cursor.
    #[serde(rename = "resync")]
    Resync {
        cursor: Position,
        reason: Resync,
    },
    /// What the client sent was done.
    #[serde(rename = "ack")]
    Ack {
        request_id: String,
        status: u16,
        #[serde(flatten)]
        done: Done,
    },
    /// What the client sent was refused.
    #[serde(rename = "error")]
    Error {
        request_id: Option<String>,
        problem: Box<Problem>,
    },
    MessageNew {
        cursor: Position,
        conversation_id: ConversationId,
        message: Box<MessageBody>,
    },
    MessageEdited {
        cursor: Position,
        conversation_id: ConversationId,
        message: Box<MessageBody>,
    },
    MessageDeleted {
        cursor: Position,
        conversation_id: ConversationId,
        message: Box<MessageBody>,
    },
    MessageDelivery {
        cursor: Position,
        conversation_id: ConversationId,
        message_id: MessageId,
        matrix: MatrixBody,
    },
    ConversationNew {
        cursor: Position,
        conversation_id: ConversationId,
        conversation: Box<ConversationBody>,
    },
    MemberAdded {
        cursor: Position,
        conversation_id: ConversationId,
        user_id: UserId,
    },
    MemberRemoved {
        cursor: Position,
        conversation_id: ConversationId,
        user_id: UserId,
    },
    ReactionAdded(ReactionFrame),
    ReactionRemoved(ReactionFrame),
    /// A call came to another status, or its invite did on the way to Matrix.
    CallUpdated {
        cursor: Position,
        conversation_id: ConversationId,
        call: Box<CallBody>,
    },
    #[serde(untagged)]
    Call {
        #[serde(flatten)]
        call: CallFrame,
        cursor: Position,
        conversation_id: ConversationId,
    },
}

/// What was done, as it is now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Done {
    Message(Box<MessageBody>),
    Call(Box<CallBody>),
}

/// A reaction that came or went.
#[derive(Debug, Serialize)]
pub(crate) struct ReactionFrame {
    pub(crate) cursor: Position,
    pub(crate) conversation_id: ConversationId,
    pub(crate) message_id: MessageId,
    pub(crate) reaction_id: ReactionId,
    pub(crate) user_id: UserId,
    /// None once it was removed.
    pub(crate) key: Option<String>,
    /// All that stand by now, as the message has them.
    pub(crate) reactions: Vec<ReactionBody>,
}

/// Why a client must read anew what it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Resync {
    /// It was away for longer than the log is kept.
    TooOld,
    /// Its cursor is ahead of the log: the database was restored, or is another.
    FromTheFuture,
    /// Its cursor cannot be read.
    Unknown,
}

impl From<Lost> for Resync {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::TooOld => Self::TooOld,
            Lost::FromTheFuture => Self::FromTheFuture,
        }
    }
}

impl Resync {
    /// As in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::TooOld => "too_old",
            Self::FromTheFuture => "from_the_future",
            Self::Unknown => "unknown",
        }
    }
}

impl Frame {
    /// Its type, as in metrics.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Ready { .. } => "ready",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Resync { .. } => "resync",
            Self::Ack { .. } => "ack",
            Self::Error { .. } => "error",
            Self::MessageNew { .. } => "MessageNew",
            Self::MessageEdited { .. } => "MessageEdited",
            Self::MessageDeleted { .. } => "MessageDeleted",
            Self::MessageDelivery { .. } => "MessageDelivery",
            Self::ConversationNew { .. } => "ConversationNew",
            Self::MemberAdded { .. } => "MemberAdded",
            Self::MemberRemoved { .. } => "MemberRemoved",
            Self::ReactionAdded(_) => "ReactionAdded",
            Self::ReactionRemoved(_) => "ReactionRemoved",
            Self::CallUpdated { .. } => "CallUpdated",
            Self::Call { call, .. } => call.name(),
        }
    }
}
