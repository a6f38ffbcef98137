//! What a client is sent: frames, rendered from the rows that events refer to, as these are now.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use shared::{
    chat::{self, ChatError},
    events::{Entry, EventKind, Lost, Position},
    ids::{ConversationId, MessageId, UserId},
    seal::KeyRing,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    conversations::ConversationBody,
    messages::{MatrixBody, MessageBody},
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
        message: Box<MessageBody>,
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
        }
    }
}

/// Renders events, in their order. To be called in the transaction that has read them: what a reader may see was decided
/// by its snapshot. What cannot be shown any more is left out.
pub(crate) async fn render(
    conn: &mut PgConnection,
    keys: &KeyRing,
    entries: &[Entry],
) -> Result<Vec<Frame>, sqlx::Error> {
    let mut rows = Rows::read(conn, keys, entries).await?;
    Ok(entries.iter().filter_map(|entry| rows.frame(entry)).collect())
}

/// What events refer to.
struct Rows {
    messages: HashMap<MessageId, chat::Message>,
    conversations: HashMap<ConversationId, chat::Conversation>,
}

impl Rows {
    async fn read(conn: &mut PgConnection, keys: &KeyRing, entries: &[Entry]) -> Result<Self, sqlx::Error> {
        let subjects = |kinds: &[EventKind]| -> HashSet<(ConversationId, Uuid)> {
            let of_kind = entries.iter().filter(|entry| entry.kind.is_some_and(|kind| kinds.contains(&kind)));
            of_kind.map(|entry| (entry.conversation_id, entry.subject_id)).collect()
        };
        let mut messages = HashMap::new();
        let wanted: Vec<_> = subjects(&[
            EventKind::MessageNew,
            EventKind::MessageEdited,
            EventKind::MessageDeleted,
            EventKind::MessageDelivery,
        ])
        .into_iter()
        .map(|(conversation_id, id)| (conversation_id, MessageId::from(id)))
        .collect();
        if !wanted.is_empty() {
            for message in chat::messages_of(conn, keys, &wanted).await? {
                match message {
                    Ok(message) => {
                        messages.insert(message.message_id, message);
                    }
                    Err(error) => unreadable(&error),
                }
            }
        }
        let mut conversations = HashMap::new();
        let wanted: Vec<_> =
            subjects(&[EventKind::ConversationNew]).into_iter().map(|(conversation_id, _)| conversation_id).collect();
        if !wanted.is_empty() {
            for conversation in chat::conversations_of(conn, &wanted).await? {
                conversations.insert(conversation.conversation_id, conversation);
            }
        }
        Ok(Self { messages, conversations })
    }

    fn frame(&mut self, entry: &Entry) -> Option<Frame> {
        let Entry { position: cursor, conversation_id, kind, subject_id } = *entry;
        Some(match kind? {
            EventKind::MessageNew => Frame::MessageNew { cursor, conversation_id, message: self.message(entry)? },
            EventKind::MessageEdited => Frame::MessageEdited { cursor, conversation_id, message: self.message(entry)? },
            EventKind::MessageDeleted => {
                Frame::MessageDeleted { cursor, conversation_id, message: self.message(entry)? }
            }
            EventKind::MessageDelivery => {
                let matrix = self.message(entry)?.into_matrix();
                Frame::MessageDelivery { cursor, conversation_id, message_id: MessageId::from(subject_id), matrix }
            }
            EventKind::ConversationNew => {
                let conversation = Box::new(self.conversations.get(&conversation_id)?.clone().into());
                Frame::ConversationNew { cursor, conversation_id, conversation }
            }
            EventKind::MemberAdded => Frame::MemberAdded { cursor, conversation_id, user_id: UserId::from(subject_id) },
            EventKind::MemberRemoved => {
                Frame::MemberRemoved { cursor, conversation_id, user_id: UserId::from(subject_id) }
            }
            EventKind::ReactionAdded | EventKind::ReactionRemoved | EventKind::CallSignal => return None,
        })
    }

    fn message(&self, entry: &Entry) -> Option<Box<MessageBody>> {
        self.messages.get(&MessageId::from(entry.subject_id)).map(|message| Box::new(message.clone().into()))
    }
}

/// One damaged text must not keep a client from all that follows.
fn unreadable(error: &ChatError) {
    metrics::counter!("ws_frames_unreadable_total").increment(1);
    tracing::error!(%error, "an event is not shown: its content cannot be opened");
}
