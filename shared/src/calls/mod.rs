//! Calls: placed, answered, changed and ended, here or on Matrix, by one state machine.
//!
//! A call is a row; what is said in it are signals; its devices are parties. What goes to Matrix goes through a lane of
//! the call's own, ahead of chat. Every write here wants the conversation's [turn](crate::chat::Turn).
//!
//! All of our users speak through one account on Matrix. So:
//!
//! * A call that one of us places rings for the members over our WebSocket, and on Matrix by an invite to the room.
//!   Whoever answers first, in the order of commits, is who counts; Matrix devices learn of that by `select_answer`,
//!   which also ends the ringing of all others.
//! * A call from Matrix is answered there by us in the name of the device that answered.
//! * Between two of us everything goes over the WebSocket; nothing but the end of the ringing concerns Matrix.
//!
//! # A phone never rings late
//!
//! An invite that still waits [`RING_MARGIN`] before its time is over never leaves; its `lifetime` is what is left when it
//! does. A call that ends before its invite was handed to a sender takes everything back: Matrix hears nothing. If the
//! invite may have been heard, a hangup follows it, whatever else happens.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::seal::SealError;

mod candidates;
mod carry;
mod clock;
mod ending;
mod glare;
mod heard;
mod machine;
mod read;
mod row;
mod say;
mod signals;

pub(crate) use carry::invite_arrived_late;
pub use clock::{time_out, wipe};
pub(crate) use ending::leave;
pub use heard::announce;
pub(crate) use heard::{Heard, call_of, detail, hear, hold_back, is_held_back};
pub use machine::{EndReason, Illegal, Move, Next, State, Status};
pub use read::{Answerer, Call, CallsRequest, Named, Session, call, calls, calls_of, conversation_of_call, session};
pub use say::{NewCall, Saying, initiate, say};
pub use signals::{CallSignal, SignalKind, StoredSignal, open, signal};
pub(crate) use signals::{NewSignal, insert as insert_signal, place};

/// The longest that a call may ring: what claims more rings for as long.
pub const MAX_RING: Duration = Duration::from_mins(5);

/// The longest that a call may last: one that goes on for longer has lost its devices.
pub const MAX_CALL: Duration = Duration::from_hours(24);

/// An invite with less than this left is not sent: whoever picks up would meet a call that is over. `call_details` has the
/// same.
pub const RING_MARGIN: Duration = Duration::from_secs(10);

/// The most candidates of one device in one call.
pub const MAX_CANDIDATES: usize = 300;

/// The largest content of a signal, in bytes of JSON: with what is added to it, and encrypted, it fits an event.
pub const MAX_SIGNAL_BYTES: usize = 40 * 1024;

/// Where something was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Origin {
    /// Through our API.
    Nova,
    /// On Matrix.
    Matrix,
}

impl Origin {
    /// As in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nova => "nova",
            Self::Matrix => "matrix",
        }
    }
}

/// Why something about a call was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no such call.
    #[error("no such call")]
    NoSuchCall,
    /// The caller does not belong to the conversation.
    #[error("not a member of the conversation")]
    NotAMember,
    /// The caller takes no part in the call.
    #[error("the call is between others")]
    NotInCall,
    /// The call is over.
    #[error("the call is over")]
    Ended,
    /// Another device's answer counts.
    #[error("the call was answered by another device")]
    AnsweredElsewhere,
    /// Not at this moment, or not by this one of the two.
    #[error("not possible in the call's present state")]
    IllegalState,
    /// The party id is another user's.
    #[error("the party id is another user's")]
    PartyTaken,
    /// The party id is none of the user's in this call.
    #[error("the party id is none of yours in this call")]
    NoSuchParty,
    /// Whoever is to be called is not in the conversation, or nobody is.
    #[error("there is nobody to call")]
    NoSuchInvitee,
    /// The device has named as many candidates as are taken.
    #[error("there are too many candidates")]
    TooManyCandidates,
    /// It does not fit an event.
    #[error("it is too large")]
    TooLarge,
    /// What a signal says cannot be read again.
    #[error("a call signal is damaged")]
    Damaged,
    /// It could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The database refused or did not answer.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl From<Illegal> for CallError {
    fn from(illegal: Illegal) -> Self {
        match illegal {
            Illegal::NotInCall => Self::NotInCall,
            Illegal::Ended => Self::Ended,
            Illegal::AnsweredElsewhere => Self::AnsweredElsewhere,
            Illegal::NotNow => Self::IllegalState,
        }
    }
}
