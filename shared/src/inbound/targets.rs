//! What an event relates to: the row that its target became.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    ids::{ConversationId, EventId, MessageId, OutboxId, RoomId},
    outbox::Kind,
};

/// What stands here for an event.
#[derive(Debug)]
pub(super) enum Target {
    /// Somebody else's event.
    Received { kind: ReceivedKind, subject_id: Uuid, revision: Option<i32>, sender: String, room_id: RoomId },
    /// One that we sent.
    Sent { outbox_id: OutboxId, kind: Kind, subject_id: Uuid },
    /// It never counted.
    Void,
    /// It is not here yet.
    Unknown,
}

/// What somebody else's event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReceivedKind {
    Message,
    Edit,
    Reaction,
    Call,
    /// A redaction, a membership: nothing relates to them.
    Other,
}

/// Finds what stands here for an event.
pub(super) async fn find(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    event_id: &EventId,
) -> Result<Target, sqlx::Error> {
    let received = sqlx::query!(
        r#"
        select kind, subject_id, revision, sender, room_id as "room_id: RoomId" from received_events
        where conversation_id = $1 and event_id = $2
        "#,
        conversation_id.as_uuid(),
        event_id.as_str(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(row) = received {
        let kind = match row.kind.as_str() {
            "message" => ReceivedKind::Message,
            "edit" => ReceivedKind::Edit,
            "reaction" => ReceivedKind::Reaction,
            "call" => ReceivedKind::Call,
            "void" => return Ok(Target::Void),
            _ => ReceivedKind::Other,
        };
        return Ok(match row.subject_id {
            Some(subject_id) => {
                let (revision, sender, room_id) = (row.revision, row.sender, row.room_id);
                Target::Received { kind, subject_id, revision, sender, room_id }
            }
            None => Target::Void,
        });
    }
    let sent = sqlx::query!(
        r#"
        select outbox_id as "outbox_id: OutboxId", kind, subject_id from sent_events
        where conversation_id = $1 and event_id = $2
        "#,
        conversation_id.as_uuid(),
        event_id.as_str(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(match sent {
        Some(row) => Kind::parse(&row.kind).map_or(Target::Void, |kind| Target::Sent {
            outbox_id: row.outbox_id,
            kind,
            subject_id: row.subject_id,
        }),
        None => Target::Unknown,
    })
}

impl Target {
    /// The message that it is, whoever sent it; an edit is none.
    pub(super) fn message(&self) -> Option<MessageId> {
        match self {
            Self::Received { kind: ReceivedKind::Message, subject_id, .. }
            | Self::Sent { kind: Kind::Message, subject_id, .. } => Some(MessageId::from(*subject_id)),
            _ => None,
        }
    }

    /// The message that it is or edits.
    pub(super) fn message_or_edited(&self) -> Option<MessageId> {
        match self {
            Self::Received { kind: ReceivedKind::Edit, subject_id, .. }
            | Self::Sent { kind: Kind::Edit, subject_id, .. } => Some(MessageId::from(*subject_id)),
            _ => self.message(),
        }
    }
}
