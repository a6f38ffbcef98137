//! The steps of a trace, in words.
use std::fmt;

use super::api::Deleted;
use super::state::{Content, MessageId, Outcome, Seq, WorkerId};

/// What a trace is made of.
#[derive(Clone, Copy)]
pub(super) enum Action {
    Post { message: MessageId, seq: Seq },
    Edit { message: MessageId, revision: u8 },
    Delete { message: MessageId, answer: Deleted },
    SetMember { is_member: bool },
    SnapshotClaim { worker: WorkerId, rows: u8 },
    Claim { worker: WorkerId, first: Seq, rows: u8 },
    ClaimInVain { worker: WorkerId },
    Send { worker: WorkerId, seq: Seq, content: Content },
    SendNothing { worker: WorkerId, seq: Seq, outcome: Outcome },
    HandBack { worker: WorkerId },
    Hear { worker: WorkerId, seq: Seq, answer: Outcome },
    HearNothing { worker: WorkerId, seq: Seq, travels: bool },
    SnapshotSettle { worker: WorkerId },
    Settle { worker: WorkerId, current: bool },
    Crash { worker: WorkerId },
    Lapse { dead: bool },
    RenewLapsed { worker: WorkerId },
    Store { seq: Seq, content: Content, travelled: bool },
    Recognise { seq: Seq },
    Refuse { seq: Seq, answer: Outcome },
    NeverArrive { seq: Seq },
    Echo { seq: Seq },
    EndBackoff,
    Forget,
    Requeue { seq: Seq },
    Discard { seq: Seq },
    Hold,
    Resume,
}

impl Action {
    /// The same action, done by the other worker.
    pub(super) fn with_workers_renamed(mut self) -> Self {
        match &mut self {
            Self::SnapshotClaim { worker, .. }
            | Self::Claim { worker, .. }
            | Self::ClaimInVain { worker }
            | Self::Send { worker, .. }
            | Self::SendNothing { worker, .. }
            | Self::HandBack { worker }
            | Self::Hear { worker, .. }
            | Self::HearNothing { worker, .. }
            | Self::SnapshotSettle { worker }
            | Self::Settle { worker, .. }
            | Self::Crash { worker }
            | Self::RenewLapsed { worker } => *worker = 1 - *worker,
            _ => {}
        }
        self
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Post { message, seq } => write!(f, "API: message {message} is posted as #{seq}"),
            Self::Edit { message, revision } => write!(f, "API: message {message} is edited to revision {revision}"),
            Self::Delete { message, answer } => {
                write!(f, "API: message {message} is deleted, the answer is {answer:?}")
            }
            Self::SetMember { is_member: true } => write!(f, "API: the member is invited"),
            Self::SetMember { is_member: false } => write!(f, "API: the member is removed"),
            Self::SnapshotClaim { worker, rows } => {
                write!(f, "worker {worker} begins to claim: its statement sees {rows} row(s)")
            }
            Self::Claim { worker, first, rows } => write!(f, "worker {worker} claims {rows} row(s) from #{first} on"),
            Self::ClaimInVain { worker } => write!(f, "worker {worker} finds the lane taken"),
            Self::Send { worker, seq, content } => write!(f, "worker {worker} starts the PUT of #{seq} ({content})"),
            Self::SendNothing { worker, seq, outcome } => {
                write!(f, "worker {worker} sends nothing for #{seq}: {outcome:?}")
            }
            Self::HandBack { worker } => write!(f, "worker {worker} stops sending, with rows untried"),
            Self::Hear { worker, seq, answer } => write!(f, "worker {worker} hears about #{seq}: {answer:?}"),
            Self::HearNothing { worker, seq, travels: true } => {
                write!(f, "worker {worker} times out, and its PUT for #{seq} travels on")
            }
            Self::HearNothing { worker, seq, travels: false } => {
                write!(f, "the answer is lost: worker {worker} times out with #{seq}")
            }
            Self::SnapshotSettle { worker } => {
                write!(f, "worker {worker} begins to settle: its statement's snapshot is taken")
            }
            Self::Settle { worker, current: true } => write!(f, "worker {worker} settles"),
            Self::Settle { worker, current: false } => write!(f, "worker {worker} settles, but its epoch is gone"),
            Self::Crash { worker } => write!(f, "worker {worker} crashes"),
            Self::Lapse { dead: true } => write!(f, "the lease of a dead worker lapses"),
            Self::Lapse { dead: false } => write!(f, "the lease lapses, though its owner lives"),
            Self::RenewLapsed { worker } => write!(f, "worker {worker} renews its lapsed lease"),
            Self::Store { seq, content, travelled: false } => write!(f, "the homeserver stores #{seq} ({content})"),
            Self::Store { seq, content, travelled: true } => {
                write!(f, "the homeserver stores #{seq} ({content}), for which nobody waits any more")
            }
            Self::Recognise { seq } => write!(f, "the homeserver recognises #{seq} by its transaction id"),
            Self::Refuse { seq, answer } => write!(f, "the homeserver refuses #{seq}: {answer:?}"),
            Self::NeverArrive { seq } => write!(f, "a PUT of #{seq} that still travelled is lost"),
            Self::Echo { seq } => write!(f, "the sync sees #{seq}"),
            Self::EndBackoff => write!(f, "all backoffs end"),
            Self::Forget => write!(f, "25 hours pass: the homeserver forgets its transaction ids"),
            Self::Requeue { seq } => write!(f, "operator: #{seq} is requeued"),
            Self::Discard { seq } => write!(f, "operator: #{seq} is discarded"),
            Self::Hold => write!(f, "operator: the lane is held"),
            Self::Resume => write!(f, "operator: the lane is resumed"),
        }
    }
}
