//! The event log: what clients are told of, as it happens or when they come back.
//!
//! Whoever changes something that clients see [`record`]s it in the same transaction. A row only refers to what changed;
//! what a client is shown is read from that itself, when it is shown. So there is no second copy of a text, and what was
//! deleted or edited meanwhile is not shown as it was.
//!
//! # Order
//!
//! The log is read in the order of (transaction, place in the transaction), and only as far as all transactions have ended:
//! below the snapshot's xmin. So nothing is ever inserted before what was read, which no serial number can promise, and a
//! [`Position`] in it says exactly what was read and what was not. The price: a transaction that is open anywhere on the
//! server, and has written, holds the log back until it ends.
//!
//! Within a conversation the order is that of sequence numbers. A transaction must not have an id when it waits for its
//! turn, else one that waited could be told before the one that it waited for: see [`crate::chat::lock_conversation`].

use sqlx::PgConnection;
use uuid::Uuid;

use crate::ids::ConversationId;

mod log;
mod position;
mod retention;

pub use log::{Entry, Lost, Page, Span, Tail, lag, members_of, newest, page, tail};
pub use position::{NotAPosition, Position};
pub use retention::forget;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A message was written, here or on Matrix. Subject: the message.
    MessageNew,
    /// It has a new revision. Subject: the message.
    MessageEdited,
    /// It was deleted. Subject: the message.
    MessageDeleted,
    /// The state of its delivery ended, or began anew. Subject: the message.
    MessageDelivery,
    /// Someone reacted to a message. Subject: the reaction.
    ReactionAdded,
    /// A reaction was taken back. Subject: the reaction.
    ReactionRemoved,
    /// A conversation was created. Subject: the conversation.
    ConversationNew,
    /// Someone became a member. Subject: the user.
    MemberAdded,
    /// Someone is no member any more. Subject: the user.
    MemberRemoved,
    /// Something was said in a call, here or on Matrix. Subject: the call signal.
    CallSignal,
    /// A call's status changed, or how far its invite has come. Subject: the call.
    CallUpdated,
}

impl EventKind {
    const ALL: [Self; 11] = [
        Self::MessageNew,
        Self::MessageEdited,
        Self::MessageDeleted,
        Self::MessageDelivery,
        Self::ReactionAdded,
        Self::ReactionRemoved,
        Self::ConversationNew,
        Self::MemberAdded,
        Self::MemberRemoved,
        Self::CallSignal,
        Self::CallUpdated,
    ];

    /// As in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessageNew => "message_new",
            Self::MessageEdited => "message_edited",
            Self::MessageDeleted => "message_deleted",
            Self::MessageDelivery => "message_delivery",
            Self::ReactionAdded => "reaction_added",
            Self::ReactionRemoved => "reaction_removed",
            Self::ConversationNew => "conversation_new",
            Self::MemberAdded => "member_added",
            Self::MemberRemoved => "member_removed",
            Self::CallSignal => "call_signal",
            Self::CallUpdated => "call_updated",
        }
    }

    /// The kind of that name. None for one that only a newer release knows.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Notes in the log that something happened, in the transaction in which it does.
pub async fn record(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    kind: EventKind,
    subject_id: Uuid,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into events (conversation_id, kind, subject_id) values ($1, $2, $3)",
        conversation_id.as_uuid(),
        kind.as_str(),
        subject_id,
    )
    .execute(conn)
    .await?;
    Ok(())
}
