//! What may happen to a call, and what comes of it. Pure: no clock, no database.
//!
//! ```text
//!            answer                    hangup, leave
//!  ringing ──────────▶ active ─────────────────────────▶ ended (reason)
//!     └───────────────────────────────────────────────────▲
//!            reject, hangup, time-out, leave, glare
//! ```

use serde::{Deserialize, Serialize};

use crate::ids::UserId;

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Status {
    /// Nobody has answered yet.
    Ringing,
    /// Somebody answered.
    Active,
    /// It is over.
    Ended,
}

impl Status {
    /// As in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ringing => "ringing",
            Self::Active => "active",
            Self::Ended => "ended",
        }
    }
}

/// Why a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum EndReason {
    /// Somebody hung up.
    UserHangup,
    /// Who was called does not want to answer.
    Rejected,
    /// Nobody answered in time.
    InviteTimeout,
    /// The devices found no way to each other.
    IceFailed,
    /// They lost it.
    IceTimeout,
    /// Camera or microphone could not be used.
    UserMediaFailed,
    /// Who was called is in another call.
    UserBusy,
    /// Something else.
    UnknownError,
    /// The two called each other at once, and the other call counts.
    Glare,
    /// One of the two left the conversation.
    Left,
}

impl EndReason {
    const ALL: [Self; 10] = [
        Self::UserHangup,
        Self::Rejected,
        Self::InviteTimeout,
        Self::IceFailed,
        Self::IceTimeout,
        Self::UserMediaFailed,
        Self::UserBusy,
        Self::UnknownError,
        Self::Glare,
        Self::Left,
    ];

    /// As in the database and for clients.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UserHangup => "user_hangup",
            Self::Rejected => "rejected",
            Self::InviteTimeout => "invite_timeout",
            Self::IceFailed => "ice_failed",
            Self::IceTimeout => "ice_timeout",
            Self::UserMediaFailed => "user_media_failed",
            Self::UserBusy => "user_busy",
            Self::UnknownError => "unknown_error",
            Self::Glare => "glare",
            Self::Left => "left",
        }
    }

    /// The reason that a hangup of Matrix names. One that is not known is an unknown error; none at all is what clients
    /// before version 1 say when somebody hangs up.
    pub fn of_hangup(name: Option<&str>) -> Self {
        match name {
            None => Self::UserHangup,
            Some(name) => Self::ALL
                .into_iter()
                .find(|reason| reason.as_str() == name && reason.is_of_a_hangup())
                .unwrap_or(Self::UnknownError),
        }
    }

    /// Whether a hangup may name it.
    pub const fn is_of_a_hangup(self) -> bool {
        !matches!(self, Self::Rejected | Self::Glare | Self::Left)
    }

    /// As a hangup on Matrix names it.
    pub const fn on_matrix(self) -> &'static str {
        match self {
            Self::Rejected | Self::Glare | Self::Left => "user_hangup",
            named => named.as_str(),
        }
    }
}

/// What the machine has to know of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Where it stands.
    pub status: Status,
    /// Who calls.
    pub initiator: UserId,
    /// Who is called; none for everybody in the conversation.
    pub invitee: Option<UserId>,
    /// Who answered, once somebody did and if it is known.
    pub answered_by: Option<UserId>,
    /// The device whose answer counts.
    pub answered_party: Option<String>,
}

/// Something that happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move<'a> {
    /// A device answers.
    Answer {
        /// Whose device.
        user: UserId,
        /// Which device.
        party: &'a str,
    },
    /// The caller says whose answer counts.
    Select {
        /// Who says so.
        user: UserId,
        /// Which device.
        party: &'a str,
    },
    /// Candidates, or what the streams are: while it rings the caller's, then of both.
    Tell {
        /// Who.
        user: UserId,
    },
    /// A renegotiation.
    Negotiate {
        /// Who.
        user: UserId,
    },
    /// Somebody does not want to answer.
    Reject {
        /// Who.
        user: UserId,
    },
    /// Somebody hangs up.
    Hangup {
        /// Who.
        user: UserId,
        /// Why.
        reason: EndReason,
    },
    /// Somebody is not in the conversation any more.
    Leave {
        /// Who.
        user: UserId,
    },
    /// The time in which it may ring is over.
    TimeOut,
    /// It has gone on for longer than anybody talks: its devices are gone.
    Abandon,
    /// Another call between the two counts.
    Lose,
}

/// What comes of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It stays as it is.
    Unchanged,
    /// It is active now: that answer counts.
    Answered,
    /// Another answer counts than the one that did.
    Reselected,
    /// It is over.
    Ended(EndReason),
}

/// Why a move is not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Illegal {
    /// Who makes it takes no part in the call.
    NotInCall,
    /// The call is over.
    Ended,
    /// Another device's answer counts.
    AnsweredElsewhere,
    /// Not at this moment, or not by this one of the two.
    NotNow,
}

impl State {
    /// Whether a user takes part: calls, or is called.
    pub fn takes_part(&self, user: UserId) -> bool {
        user == self.initiator || self.invitee.is_none_or(|invitee| invitee == user)
    }

    /// Whether a user is one of the two that talk.
    fn talks(&self, user: UserId) -> bool {
        user == self.initiator || self.answered_by == Some(user)
    }

    /// What comes of a move.
    pub fn next(&self, made: Move<'_>) -> Result<Next, Illegal> {
        let user = match made {
            Move::Answer { user, .. }
            | Move::Select { user, .. }
            | Move::Tell { user }
            | Move::Negotiate { user }
            | Move::Reject { user }
            | Move::Hangup { user, .. } => Some(user),
            Move::Leave { .. } | Move::TimeOut | Move::Abandon | Move::Lose => None,
        };
        if user.is_some_and(|user| !self.takes_part(user)) {
            return Err(Illegal::NotInCall);
        }
        match self.status {
            Status::Ringing => self.while_ringing(made),
            Status::Active => self.while_active(made),
            Status::Ended => match made {
                Move::Leave { .. } | Move::TimeOut | Move::Abandon | Move::Lose => Ok(Next::Unchanged),
                _ => Err(Illegal::Ended),
            },
        }
    }

    fn while_ringing(&self, made: Move<'_>) -> Result<Next, Illegal> {
        // Of several who are called, one who does not want to leaves the others ringing.
        let declined = if self.invitee.is_some() { Next::Ended(EndReason::Rejected) } else { Next::Unchanged };
        match made {
            Move::Answer { user, .. } if user == self.initiator => Err(Illegal::NotNow),
            Move::Answer { .. } => Ok(Next::Answered),
            Move::Tell { user } if user == self.initiator => Ok(Next::Unchanged),
            Move::Reject { user } if user == self.initiator => Err(Illegal::NotNow),
            Move::Hangup { user, reason } if user == self.initiator => Ok(Next::Ended(reason)),
            Move::Reject { .. } | Move::Hangup { .. } => Ok(declined),
            Move::Select { .. } | Move::Tell { .. } | Move::Negotiate { .. } => Err(Illegal::NotNow),
            Move::Leave { user } if user == self.initiator || self.invitee == Some(user) => {
                Ok(Next::Ended(EndReason::Left))
            }
            Move::Leave { .. } | Move::Abandon => Ok(Next::Unchanged),
            Move::TimeOut => Ok(Next::Ended(EndReason::InviteTimeout)),
            Move::Lose => Ok(Next::Ended(EndReason::Glare)),
        }
    }

    fn while_active(&self, made: Move<'_>) -> Result<Next, Illegal> {
        match made {
            Move::Answer { user, .. } if user == self.initiator => Err(Illegal::NotNow),
            Move::Answer { party, .. } if self.answered_party.as_deref() == Some(party) => Ok(Next::Unchanged),
            Move::Answer { .. } => Err(Illegal::AnsweredElsewhere),
            Move::Select { user, .. } if user != self.initiator => Err(Illegal::NotNow),
            Move::Select { party, .. } if self.answered_party.as_deref() == Some(party) => Ok(Next::Unchanged),
            Move::Select { .. } => Ok(Next::Reselected),
            Move::Tell { user } | Move::Negotiate { user } if self.talks(user) => Ok(Next::Unchanged),
            Move::Hangup { user, reason } if self.talks(user) => Ok(Next::Ended(reason)),
            Move::Reject { user } if self.talks(user) => Err(Illegal::NotNow),
            Move::Tell { .. } | Move::Negotiate { .. } | Move::Hangup { .. } | Move::Reject { .. } => {
                Err(Illegal::AnsweredElsewhere)
            }
            Move::Leave { user } if self.talks(user) => Ok(Next::Ended(EndReason::Left)),
            Move::Abandon => Ok(Next::Ended(EndReason::UnknownError)),
            Move::Leave { .. } | Move::TimeOut | Move::Lose => Ok(Next::Unchanged),
        }
    }
}
