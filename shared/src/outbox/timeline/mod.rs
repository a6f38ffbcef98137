//! What happened, by time: to one operation, and in one conversation. References only, never a text.
//!
//! A conversation's timeline is merged from many tables, a page at a time. Each is read by an index that has its times, or
//! by its ids, which are UUIDs v7. Moments of one time stand in the order of where they come from and of their ids, so
//! that a page ends exactly where the next begins.

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Cursor, Found, words};
use crate::ids::{ConversationId, EventId, OutboxId};

mod merge;
mod operation;
mod sources;

pub use operation::operation_timeline;

/// After so many rounds a page is given out as it is: it may have few moments, but says where to go on.
const MOST_ROUNDS: usize = 10;

/// What a moment tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MomentKind {
    /// A message was written by the API.
    Written,
    /// A message was edited by the API; the last time.
    Edited,
    /// A message was deleted.
    Deleted,
    /// An operation was enqueued.
    Enqueued,
    /// An operation was tried.
    Attempt,
    /// An operation stood in its room.
    Delivered,
    /// An operation died.
    Died,
    /// An operation was given up although it may have been sent.
    Withdrawn,
    /// An event came from Matrix.
    Received,
    /// A call was placed.
    CallPlaced,
    /// A call ended.
    CallEnded,
    /// An operator did something.
    Act,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub kind: MomentKind,
    /// The operation that it is about.
    pub outbox_id: Option<OutboxId>,
    /// The message, the member or the call.
    pub subject_id: Option<Uuid>,
    /// What the operation does.
    pub operation_kind: Option<String>,
    /// Who: a user, an operator, or a sender on Matrix.
    pub by: Option<String>,
    /// What happened, for people.
    pub words: String,
    /// Why, in an operator's words.
    pub reason: Option<String>,
    /// The homeserver's status, of an attempt.
    pub http_status: Option<i32>,
    /// The Matrix error code, of an attempt or a death.
    pub errcode: Option<String>,
    /// How long it took, of an attempt.
    pub duration_ms: Option<i32>,
    /// The event.
    pub event_id: Option<EventId>,
}

impl Moment {
    /// Of which only time and kind are known.
    fn new(at: OffsetDateTime, kind: MomentKind, words: impl Into<String>) -> Self {
        Self {
            at,
            kind,
            outbox_id: None,
            subject_id: None,
            operation_kind: None,
            by: None,
            words: words.into(),
            reason: None,
            http_status: None,
            errcode: None,
            duration_ms: None,
            event_id: None,
        }
    }
}

/// A page of a timeline.
#[derive(Debug, Clone, Serialize)]
pub struct Timeline {
    /// What happened, newest first.
    pub moments: Vec<Moment>,
    /// Where to go on; none at the end. A page may have few moments, or none, and the next one more.
    #[serde(rename = "next_cursor", serialize_with = "as_text")]
    pub next: Option<Cursor>,
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn as_text<S: serde::Serializer>(cursor: &Option<Cursor>, serializer: S) -> Result<S::Ok, S::Error> {
    cursor.map(|cursor| cursor.to_string()).serialize(serializer)
}

/// What happened in a conversation, newest first. In a transaction.
pub async fn conversation_timeline(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Timeline, sqlx::Error> {
    crate::database::plan_as_asked(conn).await?;
    let limit = usize::try_from(limit).unwrap_or(1).max(1);
    let mut timeline = Timeline { moments: Vec::new(), next: before };
    for _ in 0..MOST_ROUNDS {
        let wanted = limit - timeline.moments.len();
        let sources = sources::read(conn, conversation_id, timeline.next, wanted).await?;
        let page = merge::page(sources, wanted);
        timeline.moments.extend(page.moments);
        timeline.next = page.next;
        if timeline.moments.len() == limit || timeline.next.is_none() {
            break;
        }
    }
    Ok(timeline)
}
