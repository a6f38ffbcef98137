//! What comes from Matrix: applied once, in the order of its room, and never sent out again.
//!
//! The worker reads events off the homeserver and hands them in as [`Incoming`]; here they become rows. One transaction
//! applies events of several conversations and moves the sync's token ([`Leadership::advance`]); what it applied stands in
//! `received_events`, so that reading the same again changes nothing.
//!
//! * What our own account sent is an **echo**: evidence that an operation arrived, settled under the lane's lock whoever
//!   leases it. It is told by our marker, by its event id, or by its transaction id. Nothing else of that account is ever
//!   stored. A marker in somebody else's event means nothing.
//! * What others sent becomes messages, revisions, reactions, call signals, members. The result does not depend on the
//!   order in which they come: what relates to an event that is not here yet is parked, sealed, until that comes; the
//!   newest edit counts, by the homeserver's clock and then by its id; what is redacted stays so.
//! * What is of no sense is **refused**: remembered as seen, and counted.
//!
//! Every function here wants the conversation's [`Turn`]: lock conversations in the order of their ids.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    calls::{CallError, CallSignal},
    chat::{ChatError, Content, MessageKind, Turn},
    ids::{ConversationId, EventId, MatrixUserId, OutboxId, RoomId, UserId},
    seal::{KeyRing, SealError},
};

mod calls;
mod echo;
mod gauges;
mod leader;
mod members;
mod messages;
mod parked;
mod people;
mod redactions;
mod targets;

pub use gauges::{InboxGauges, gauges};
pub use leader::{Leadership, lead};
pub use members::change_under_way;
pub use parked::{forget_parked, park_poison};
pub use people::{conversation_of_room, is_new_room};

/// Why an event could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum InboundError {
    /// Content could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A parked event could not be read again.
    #[error("a parked event is damaged")]
    Parked,
    /// The database refused or did not answer.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl From<ChatError> for InboundError {
    fn from(error: ChatError) -> Self {
        match error {
            ChatError::Seal(error) => Self::Seal(error),
            ChatError::Database(error) => Self::Database(error),
            // What members may do is not asked of what already happened.
            other => Self::Database(sqlx::Error::Protocol(other.to_string())),
        }
    }
}

impl From<CallError> for InboundError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Seal(error) => Self::Seal(error),
            CallError::Database(error) => Self::Database(error),
            // What members may do is not asked of what already happened.
            other => Self::Database(sqlx::Error::Protocol(other.to_string())),
        }
    }
}

/// An event of a room, read but not judged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Incoming {
    /// The event.
    pub event_id: EventId,
    /// The room that has it.
    pub room_id: RoomId,
    /// Who sent it.
    pub sender: MatrixUserId,
    /// When, by the homeserver, in milliseconds since 1970.
    pub sent_at_ms: i64,
    /// Our marker in its content, whoever put it there.
    pub marker: Option<OutboxId>,
    /// The transaction id, which the homeserver tells only the device that sent it.
    pub transaction_id: Option<String>,
    /// What it says.
    pub what: What,
}

/// What an event says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum What {
    /// A message.
    Message {
        /// What it is.
        kind: MessageKind,
        /// What it says.
        content: Content,
        /// The event that it answers.
        reply_to: Option<EventId>,
        /// The event that begins its thread.
        thread_of: Option<EventId>,
        /// Matrix users whom it mentions.
        mentioned: Vec<MatrixUserId>,
    },
    /// A message's new text.
    Edit {
        /// The event that it replaces.
        target: EventId,
        /// What it says now.
        content: Content,
        /// Matrix users whom it mentions.
        mentioned: Vec<MatrixUserId>,
    },
    /// A redaction.
    Redaction {
        /// The event whose content goes.
        target: EventId,
    },
    /// A reaction.
    Reaction {
        /// The event that it is about.
        target: EventId,
        /// What it says, an emoji as a rule.
        key: String,
    },
    /// Part of a call's signalling.
    Call(CallSignal),
    /// A change of membership.
    Member {
        /// Whose.
        user: MatrixUserId,
        /// What it became.
        membership: Membership,
        /// What they call themselves.
        display_name: Option<String>,
        /// What the room said when it was asked just before this is applied; none if it was not asked.
        now: Option<Asked>,
    },
    /// Of no consequence: it came without its content, since it was redacted before; or it is of a type that means
    /// something only when we sent it.
    Nothing,
}

/// A user's membership of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Membership {
    /// Asked to come.
    Invite,
    /// In it.
    Join,
    /// Gone, by themselves or not, or never came.
    Leave,
    /// Gone, and not allowed back.
    Ban,
    /// Asks to be let in.
    Knock,
}

impl Membership {
    /// Reads it as Matrix writes it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "invite" => Self::Invite,
            "join" => Self::Join,
            "leave" => Self::Leave,
            "ban" => Self::Ban,
            "knock" => Self::Knock,
            _ => return None,
        })
    }

    /// Whether somebody belongs to the room: in it, or asked to come.
    pub const fn is_present(self) -> bool {
        matches!(self, Self::Invite | Self::Join)
    }
}

/// What a room answered when it was asked for a membership.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Asked {
    /// The membership; none for one who never had any.
    pub membership: Option<Membership>,
    /// The conversation's newest sequence number before it was asked: what came later is newer than the answer.
    pub seq: i64,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It changed something.
    Changed,
    /// It changed nothing, rightly.
    Unchanged,
    /// It was applied before.
    Duplicate,
    /// Our own account's: true when an operation is known by it that was not before.
    Echo(bool),
    /// Our own account's, and no operation's: counted, never stored.
    Unmatched,
    /// It waits for its target.
    Parked,
    /// It is of no sense, and why; remembered as seen.
    Refused(&'static str),
}

/// What is applied with.
#[derive(Debug, Clone, Copy)]
pub struct Inbox<'a> {
    /// Seals what is stored.
    pub keys: &'a KeyRing,
    /// The account that we send as: what it sends is ours.
    pub service_user: &'a MatrixUserId,
    /// Whether calls over Matrix are taken; what is said in them is passed over otherwise.
    pub calls: bool,
}

impl Inbox<'_> {
    fn server(&self) -> &str {
        self.service_user.server()
    }
}

/// How many events that waited for each other are applied with the one that came, at most: nobody edits an edit, so two
/// steps are the longest chain, and a chain that somebody forges must end.
const MOST_RELEASED: usize = 10_000;

/// Applies an event, and then what waited for it. Under the conversation's lock; what it writes takes places of its own.
pub async fn apply(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
) -> Result<Applied, InboundError> {
    let applied = apply_one(conn, turn, inbox, event).await?;
    let mut arrived = match applied {
        Applied::Changed | Applied::Unchanged | Applied::Echo(_) | Applied::Refused(_) => vec![event.event_id.clone()],
        _ => Vec::new(),
    };
    let mut released = 0;
    while let Some(event_id) = arrived.pop() {
        for waiting in parked::release(conn, turn, inbox.keys, &event_id).await? {
            released += 1;
            let followed = apply_one(conn, turn, inbox, &waiting).await?;
            // Also one that changes nothing is here now, and may be edited or redacted.
            if followed != Applied::Parked && released < MOST_RELEASED {
                arrived.push(waiting.event_id);
            }
        }
    }
    Ok(applied)
}

async fn apply_one(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
) -> Result<Applied, InboundError> {
    if event.sender == *inbox.service_user {
        return echo::echo(conn, turn, inbox, event).await;
    }
    if is_known(conn, turn.conversation_id, &event.event_id).await? {
        return Ok(Applied::Duplicate);
    }
    match &event.what {
        What::Message { .. } => messages::message(conn, turn, inbox, event).await,
        What::Edit { .. } => messages::edit(conn, turn, inbox, event).await,
        What::Reaction { .. } => messages::reaction(conn, turn, inbox, event).await,
        What::Redaction { target } => redactions::redaction(conn, turn, inbox, event, target).await,
        What::Call(_) if !inbox.calls => {
            remember(conn, turn, event, &Record::void(None)).await?;
            Ok(Applied::Unchanged)
        }
        What::Call(call) => calls::call(conn, turn, inbox, event, call).await,
        What::Member { .. } if !people::is_present_room(conn, turn.conversation_id, &event.room_id).await? => {
            remember(conn, turn, event, &Record::void(None)).await?;
            Ok(Applied::Unchanged)
        }
        What::Member { user, membership, display_name, now } => {
            let change =
                members::Change { user, membership: *membership, display_name: display_name.as_deref(), now: *now };
            members::member(conn, turn, inbox, event, &change).await
        }
        What::Nothing => {
            remember(conn, turn, event, &Record::void(None)).await?;
            Ok(Applied::Unchanged)
        }
    }
}

/// Which of these events change nothing any more: they are applied, or evidence that is known, and nothing waits for them.
/// That stays so, which is why no turn is needed to ask.
pub async fn known_events(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    events: &[EventId],
) -> Result<HashSet<EventId>, sqlx::Error> {
    let events: Vec<String> = events.iter().map(|event_id| event_id.as_str().to_owned()).collect();
    let known = sqlx::query_scalar!(
        r#"
        select e.event_id as "event_id!: EventId" from unnest($2::text[]) as e (event_id)
        where (
                exists (select 1 from sent_events s where s.conversation_id = $1 and s.event_id = e.event_id)
                or exists (select 1 from received_events r where r.conversation_id = $1 and r.event_id = e.event_id)
            ) and not exists (
                select 1 from sync_parked p
                where p.conversation_id = $1 and p.relates_to = e.event_id and p.cause = 'awaits_target'
            )
        "#,
        conversation_id.as_uuid(),
        &events,
    )
    .fetch_all(conn)
    .await?;
    Ok(known.into_iter().collect())
}

/// Whether an event was applied, or waits, already.
async fn is_known(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    event_id: &EventId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (select 1 from received_events where conversation_id = $1 and event_id = $2)
            or exists (select 1 from sync_parked where conversation_id = $1 and event_id = $2)
            or exists (select 1 from messages where conversation_id = $1 and matrix_event_id = $2) as "known!"
        "#,
        conversation_id.as_uuid(),
        event_id.as_str(),
    )
    .fetch_one(conn)
    .await
}

/// What is remembered of an event.
struct Record<'a> {
    kind: &'static str,
    subject_id: Option<Uuid>,
    revision: Option<i32>,
    relates_to: Option<&'a EventId>,
    thread_root: Option<&'a EventId>,
}

impl<'a> Record<'a> {
    fn new(kind: &'static str, subject_id: Uuid) -> Self {
        Self { kind, subject_id: Some(subject_id), revision: None, relates_to: None, thread_root: None }
    }

    /// Of what never counts.
    fn void(relates_to: Option<&'a EventId>) -> Self {
        Self { kind: "void", subject_id: None, revision: None, relates_to, thread_root: None }
    }
}

async fn remember(
    conn: &mut PgConnection,
    turn: &Turn,
    event: &Incoming,
    record: &Record<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into received_events (conversation_id, event_id, kind, subject_id, revision, relates_to, thread_root,
            room_id, sender, sent_at_ms, received_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        on conflict do nothing
        "#,
        turn.conversation_id.as_uuid(),
        event.event_id.as_str(),
        record.kind,
        record.subject_id,
        record.revision,
        record.relates_to.map(EventId::as_str),
        record.thread_root.map(EventId::as_str),
        event.room_id.as_str(),
        event.sender.as_str(),
        event.sent_at_ms,
        turn.at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// An event of no sense is remembered as such: what relates to it is of no sense either.
async fn refuse(
    conn: &mut PgConnection,
    turn: &Turn,
    event: &Incoming,
    why: &'static str,
) -> Result<Applied, InboundError> {
    remember(conn, turn, event, &Record::void(None)).await?;
    Ok(Applied::Refused(why))
}

/// Who sent an event: a user of ours or a contact. None for a name of our namespace that is no user's.
async fn author(
    conn: &mut PgConnection,
    turn: &Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
) -> Result<Option<UserId>, sqlx::Error> {
    people::person(conn, turn, inbox, &event.sender, true).await
}
