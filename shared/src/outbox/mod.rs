//! The outbox: what is still to be done on Matrix, and all SQL that touches it.
//!
//! # The mechanism
//!
//! A *lane* is the scope of order: a conversation's chat, or one call's signalling. It is one row of `lanes`; its live
//! *operations* are rows of `outbox`, in order of `seq`. The lane is due when its first operation is. That is all the
//! state there is: where the row of an operation stands says what became of it.
//!
//! | the row stands in | the operation is |
//! |---|---|
//! | `outbox`, after `frozen_through` and never sent perhaps | waiting: the API may still change or remove it |
//! | `outbox`, otherwise | handed to a sender: it can only be followed, by an edit or a redaction |
//! | `sent_events` | delivered, whatever else is said of it |
//! | `dead_letters` | dead: not tried again until somebody requeues it |
//! | `withdrawn_operations` | given up, although it may have been sent |
//! | nowhere | cancelled or expired: it never left |
//!
//! ```text
//!                 enqueue                    claim                     settle
//!   API ─────────────────────▶ waiting ───────────────▶ handed ───────────────────▶ delivered
//!                                 ▲ └── edit, delete       │ │
//!                                 │     change in place    │ └─ refused: waiting again, due later
//!                                 │                        │    unknown end: stays handed, due later
//!                                 └───────── requeue ── dead
//! ```
//!
//! * A worker **claims** lanes: it takes a lease, raises the lane's *epoch*, and freezes the operations that it is handed.
//!   What comes back is a [`Claimed`] batch of one lane.
//! * It sends them in order, one at a time, and stops at the first that was not delivered.
//! * It **settles** the batch: every write-back is tied to the epoch, so a late finisher changes nothing. Only its
//!   evidence (the homeserver did answer with an event id) is kept.
//!
//! Claim and settle lock lanes in a statement of their own that reads nothing else. The statements after it have newer
//! snapshots than every transaction that held those lanes before; in one statement a claim would hand out a text that
//! was just deleted, and a settle would miss an operation that was just enqueued and put the lane to sleep for ever.
//!
//! Lock order, everywhere: conversation, its chat lane, call lanes by id, rows.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    calls::SignalKind,
    ids::{ConversationId, LaneId},
};

mod ailing;
mod bulk;
mod claim;
mod complete;
mod cursor;
mod discard;
mod enqueue;
mod evidence;
mod expire;
mod gauges;
mod groups;
mod list;
mod neighbours;
mod outcome;
mod park;
mod pause;
mod proofs;
mod related;
mod renew;
mod revise;
mod search;
mod sentence;
mod settle;
mod show;
mod signalling;
mod stats;
mod targets;
mod timeline;
mod view;
mod words;

pub use ailing::{Ailment, ailing, count_ailing};
pub use bulk::RefusedCount;
pub(crate) use bulk::{judge, requeue_of, write_parts};
pub use claim::{
    Claim, ClaimRequest, Claimed, ClaimedOperation, LaneClaim, MaybeSent, Mode, Target, claim, oldest_due,
};
pub use complete::{Completed, Completion, complete};
pub use cursor::{Cursor, NoCursor};
pub use discard::{Discard, Discarded, discard, discard_all};
pub use enqueue::{Operation, enqueue};
pub use evidence::{Evidence, late_evidence, membership_echo};
pub(crate) use evidence::{evidence_in_turn, membership_echo_in_turn};
pub use expire::{Expire, Expired, expire, expire_all};
pub use gauges::{ClassGauges, Gauges, beyond_the_window, gauges, limit_patience};
pub use groups::{DeadGroup, dead_groups};
pub use list::{
    HeldLane, LiveFilter, LiveOperation, PauseOfClass, PausedLane, SentFilter, SentOperation, held_lanes,
    live_operations, paused_lanes, pauses, sent_operations,
};
pub use neighbours::{Neighbour, is_conversation, neighbours};
pub use outcome::{Attempt, Blame, OperationResult, Outcome};
pub use park::{
    LaneAhead, Letter, MOST_LETTERS, Refusal, Refused, Requeue, Requeued, Selection, preview_requeue, requeue,
    requeue_all,
};
pub use pause::{
    COUNTED_LANES, GoingOn, HeldBatch, hold, holds_of, lanes_due, lift_hold, pause, pause_lanes, resume, resume_held,
    resume_lanes, unpause,
};
pub use related::{Previous, ReactionToSend, Related};
pub use renew::renew;
pub use revise::{Deletion, Sending, delete, edit, react, unreact};
pub use search::{COUNTED_LETTERS, Counted, DeadFilter, DeadLetter, SHORTEST_TEXT, count_dead, dead_letters};
pub use settle::{Settled, Settlement, settle};
pub use show::{Death, Found, MessageFacts, Place, Shown, Withdrawal, find, message_facts, show};
pub use signalling::{CallToSend, SignalToSend, open_signal};
pub use stats::{ClassStats, Stats, stats};
pub use targets::{Targets, Wanted, resolve};
pub use timeline::{Moment, MomentKind, Timeline, conversation_timeline, operation_timeline};
pub use view::{AttemptView, Delivery, Explanation, explain};
pub use words::{
    HOLD_ALIAS_NOT_OURS, HOLD_ALIAS_SHUT, HOLD_NEVER_IN_ROOM, HOLD_NOT_IN_REPLACEMENT, HOLD_NOT_IN_ROOM, Repair,
    cause_in_words, hint, left_undone, repair, repair_of_hold, said_in_hold,
};

use words::PARENT_DEAD_HINT;

/// Which of the two kinds of lane: calls are claimed first, and each class has reserved room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum LaneClass {
    /// One call's signalling.
    Call,
    /// A conversation's messages and membership.
    Chat,
}

impl LaneClass {
    /// Every class, in the order in which they are claimed.
    pub const ALL: [Self; 2] = [Self::Call, Self::Chat];

    /// As in the database, in metrics and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Chat => "chat",
        }
    }
}

/// What an operation does.
///
/// Sends carry their transaction id and our marker; state operations have neither, since Matrix offers none: they look,
/// and act only if the room differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Sends a message.
    Message,
    /// Replaces a message's text. Always relates to the original event.
    Edit,
    /// Redacts the event of another operation.
    Redact,
    /// Sends a reaction to a message.
    React,
    /// Invites a member (state).
    Invite,
    /// Removes a member (state).
    Remove,
    /// Sends a step of a call's signalling.
    Call(SignalKind),
}

impl Kind {
    const CHAT: [Self; 6] = [Self::Message, Self::Edit, Self::Redact, Self::React, Self::Invite, Self::Remove];

    /// As in the database, in metrics and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Edit => "edit",
            Self::Redact => "redact",
            Self::React => "react",
            Self::Invite => "invite",
            Self::Remove => "remove",
            Self::Call(SignalKind::Invite) => "call_invite",
            Self::Call(SignalKind::Candidates) => "call_candidates",
            Self::Call(SignalKind::Answer) => "call_answer",
            Self::Call(SignalKind::SelectAnswer) => "call_select_answer",
            Self::Call(SignalKind::Negotiate) => "call_negotiate",
            Self::Call(SignalKind::SdpStreamMetadataChanged) => "call_sdp_stream_metadata_changed",
            Self::Call(SignalKind::Reject) => "call_reject",
            Self::Call(SignalKind::Hangup) => "call_hangup",
        }
    }

    /// The kind of that name. None for one that only a newer release knows: its operations are left to that release.
    pub fn parse(name: &str) -> Option<Self> {
        let call = || SignalKind::parse(name.strip_prefix("call_")?).map(Self::Call);
        Self::CHAT.into_iter().find(|kind| kind.as_str() == name).or_else(call)
    }

    /// True for what carries a message's text.
    pub const fn carries_text(self) -> bool {
        matches!(self, Self::Message | Self::Edit)
    }

    /// True for what carries somebody's words, be it a message's text or a reaction's key: once those are gone, it must
    /// not be sent any more.
    pub const fn carries_words(self) -> bool {
        self.carries_text() || matches!(self, Self::React)
    }

    /// True for what changes membership: it looks, and acts only if the room differs.
    pub const fn is_state(self) -> bool {
        matches!(self, Self::Invite | Self::Remove)
    }

    /// True for what must not be overtaken when it fails: later words would reach whom they must not.
    pub const fn holds_its_lane(self) -> bool {
        matches!(self, Self::Redact | Self::Remove)
    }
}

/// Locks a lane. A statement of its own that reads nothing else: what follows sees what was committed under the lock.
pub(crate) async fn lock_lane(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "select 1 as locked from lanes where conversation_id = $1 and lane_id = $2 for no key update",
        conversation_id.as_uuid(),
        lane_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(())
}

/// So many live operations of a locked lane have gone: counts them out, and the lane is due with what is first now.
pub(crate) async fn leave_lane(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    lane_id: LaneId,
    gone: u64,
    at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    if gone == 0 {
        return Ok(());
    }
    sqlx::query!(
        r#"
        update lanes
        set open = open - $3,
            due_at = outbox_due(conversation_id, lane_id, $4, hold, paused_until)
        where conversation_id = $1 and lane_id = $2
        "#,
        conversation_id.as_uuid(),
        lane_id.as_uuid(),
        i32::try_from(gone).unwrap_or(i32::MAX),
        at,
    )
    .execute(conn)
    .await?;
    Ok(())
}
