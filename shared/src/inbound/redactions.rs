//! Redactions by others: of what they sent, or, by those who rule the room, of what we sent.

use sqlx::PgConnection;

use super::{
    Applied, InboundError, Inbox, Incoming, Record, messages, parked, remember,
    targets::{self, ReceivedKind, Target},
};
use crate::{
    chat::{self, Turn},
    ids::{EventId, MessageId, ReactionId},
    outbox::Kind,
};

/// The homeserver has decided who may redact what: an event that it passes on is so.
pub(super) async fn redaction(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
    target: &EventId,
) -> Result<Applied, InboundError> {
    let changed = match targets::find(conn, turn.conversation_id, target).await? {
        Target::Unknown => return parked::wait_for(conn, turn, inbox.keys, event, target).await,
        Target::Received { kind, subject_id, revision, .. } => {
            sqlx::query!(
                "update received_events set redacted = true where conversation_id = $1 and event_id = $2",
                turn.conversation_id.as_uuid(),
                target.as_str(),
            )
            .execute(&mut *conn)
            .await?;
            match kind {
                ReceivedKind::Message => chat::delete_redacted(conn, turn, MessageId::from(subject_id), None).await?,
                ReceivedKind::Edit => {
                    let message_id = MessageId::from(subject_id);
                    wipe_revision(conn, turn, message_id, revision).await?;
                    messages::show_newest(conn, turn, message_id).await?
                }
                ReceivedKind::Reaction => chat::delete_reaction(conn, turn, ReactionId::from(subject_id)).await?,
                ReceivedKind::Call => wipe_signal(conn, turn, subject_id).await?,
                ReceivedKind::Other => false,
            }
        }
        Target::Sent { outbox_id, kind: Kind::Message, subject_id } => {
            chat::delete_redacted(conn, turn, MessageId::from(subject_id), Some(outbox_id)).await?
        }
        Target::Sent { outbox_id, kind: Kind::React, subject_id } => {
            let message_id = MessageId::from(subject_id);
            chat::delete_redacted_reactions(conn, turn, inbox.keys, message_id, outbox_id).await?
        }
        // What our own author wrote stands in the database, whatever a room's rulers make of one of its events.
        Target::Sent { .. } | Target::Void => false,
    };
    remember(conn, turn, event, &Record { relates_to: Some(target), ..Record::void(None) }).await?;
    Ok(if changed { Applied::Changed } else { Applied::Unchanged })
}

async fn wipe_revision(
    conn: &mut PgConnection,
    turn: &Turn,
    message_id: MessageId,
    revision: Option<i32>,
) -> Result<(), sqlx::Error> {
    // The message's pointer leaves it in the same transaction.
    sqlx::query!(
        "delete from message_revisions where conversation_id = $1 and message_id = $2 and revision = $3",
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        revision,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn wipe_signal(conn: &mut PgConnection, turn: &Turn, signal_id: uuid::Uuid) -> Result<bool, sqlx::Error> {
    sqlx::query!(
        "update call_signals set payload = null where conversation_id = $1 and signal_id = $2",
        turn.conversation_id.as_uuid(),
        signal_id,
    )
    .execute(conn)
    .await?;
    Ok(false)
}
