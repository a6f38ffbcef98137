//! Messages of others, their edits and reactions.

use sqlx::PgConnection;

use super::{
    Applied, InboundError, Inbox, Incoming, Record, What, author, parked, people, refuse, remember,
    targets::{self, ReceivedKind, Target},
};
use crate::{
    chat::{self, Content, Turn},
    events::{self, EventKind},
    ids::{ConversationId, EventId, MatrixUserId, MessageId, ReactionId},
    seal::Place,
};

/// The longest reaction that is kept, in bytes: beyond it, it is no reaction.
const MAX_KEY_BYTES: usize = 256;

fn with_mentions(inbox: Inbox<'_>, content: &Content, mentioned: &[MatrixUserId]) -> Content {
    let mut content = content.clone();
    content.mentions.users = people::mentioned(inbox, mentioned);
    content
}

pub(super) async fn message(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
) -> Result<Applied, InboundError> {
    let What::Message { kind, content, reply_to, thread_of, mentioned } = &event.what else {
        return Ok(Applied::Unchanged);
    };
    let Some(author_id) = author(conn, turn, inbox, event).await? else {
        return refuse(conn, turn, event, "user_format").await;
    };
    let answers = match reply_to {
        Some(target) => targets::find(conn, turn.conversation_id, target).await?.message_or_edited(),
        None => None,
    };
    let begins = match thread_of {
        Some(target) => match targets::find(conn, turn.conversation_id, target).await?.message() {
            Some(message_id) => Some(first_of_thread(conn, turn.conversation_id, message_id).await?),
            None => None,
        },
        None => None,
    };
    turn.advance(conn).await?;
    let message_id = MessageId::generate();
    let inserted = sqlx::query!(
        r#"
        insert into messages (conversation_id, message_id, seq, author_id, origin, kind, revision, reply_to, thread_of,
            matrix_event_id, matrix_room_id, created_at)
        values ($1, $2, $3, $4, 'matrix', $5, 1, $6, $7, $8, $9,
            least(to_timestamp($10::bigint / 1000.0), $11))
        on conflict (conversation_id, matrix_event_id) where matrix_event_id is not null do nothing
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        turn.seq,
        author_id.as_uuid(),
        kind.as_str(),
        answers.map(MessageId::as_uuid),
        begins.map(MessageId::as_uuid),
        event.event_id.as_str(),
        event.room_id.as_str(),
        event.sent_at_ms,
        turn.at,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if inserted == 0 {
        return Ok(Applied::Duplicate);
    }
    let content = with_mentions(inbox, content, mentioned);
    chat::write_revision(conn, turn, inbox.keys, message_id, 1, &content).await?;
    // A target that is not here yet is remembered: it may still come.
    let record = Record {
        relates_to: reply_to.as_ref().filter(|_| answers.is_none()),
        thread_root: thread_of.as_ref().filter(|_| begins.is_none()),
        ..Record::new("message", message_id.as_uuid())
    };
    remember(conn, turn, event, &record).await?;
    let first = begins.unwrap_or(message_id);
    join_those_before(conn, turn.conversation_id, &event.event_id, message_id, Some(first)).await?;
    events::record(conn, turn.conversation_id, EventKind::MessageNew, message_id.as_uuid()).await?;
    Ok(Applied::Changed)
}

/// The message that begins a message's thread: the message itself, unless it is in a thread. Matrix has no threads within
/// threads, but a homeserver elsewhere may pass one on.
async fn first_of_thread(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    message_id: MessageId,
) -> Result<MessageId, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select coalesce(thread_of, message_id) as "first!: MessageId" from messages
        where conversation_id = $1 and message_id = $2
        "#,
        conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Messages that came before the event that they answer, or that begins their thread, are joined to the message that it is
/// and to the `first` of the thread; without one, it begins none.
async fn join_those_before(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    event_id: &EventId,
    message_id: MessageId,
    first: Option<MessageId>,
) -> Result<(), sqlx::Error> {
    // None is joined to itself, whatever its event says.
    let joined = sqlx::query!(
        r#"
        update messages m
        set reply_to = case when r.relates_to = $2 then nullif($3, m.message_id) else m.reply_to end,
            thread_of = case when r.thread_root = $2 then nullif($4, m.message_id) else m.thread_of end
        from received_events r
        where r.conversation_id = $1 and r.kind = 'message' and (r.relates_to = $2 or r.thread_root = $2)
            and m.conversation_id = $1 and m.message_id = r.subject_id
        returning m.message_id as "message_id: MessageId", coalesce(r.thread_root = $2, false) as "threaded!"
        "#,
        conversation_id.as_uuid(),
        event_id.as_str(),
        message_id.as_uuid(),
        first.map(MessageId::as_uuid),
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut changed: Vec<MessageId> = joined.iter().map(|row| row.message_id).collect();
    let threaded: Vec<MessageId> = joined.iter().filter(|row| row.threaded).map(|row| row.message_id).collect();
    if let Some(first) = first.filter(|_| !threaded.is_empty()) {
        changed.extend(move_threads(conn, conversation_id, &threaded, first).await?);
    }
    for message_id in changed {
        events::record(conn, conversation_id, EventKind::MessageEdited, message_id.as_uuid()).await?;
    }
    Ok(())
}

/// Messages that seemed to begin threads are in one: what is in theirs goes along. Returns what did.
async fn move_threads(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    from: &[MessageId],
    first: MessageId,
) -> Result<Vec<MessageId>, sqlx::Error> {
    let from: Vec<uuid::Uuid> = from.iter().map(|message_id| message_id.as_uuid()).collect();
    sqlx::query_scalar!(
        r#"
        update messages set thread_of = $3
        where conversation_id = $1 and thread_of = any($2) and thread_of <> $3
        returning message_id as "message_id: MessageId"
        "#,
        conversation_id.as_uuid(),
        &from,
        first.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// An edit counts if it is by the sender of the message, and if what it edits is a message and no edit. The newest counts,
/// by the homeserver's clock and then by its id, whichever came last.
pub(super) async fn edit(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
) -> Result<Applied, InboundError> {
    let What::Edit { target, content, mentioned } = &event.what else { return Ok(Applied::Unchanged) };
    let message_id = match targets::find(conn, turn.conversation_id, target).await? {
        Target::Unknown => return parked::wait_for(conn, turn, inbox.keys, event, target).await,
        Target::Received { kind: ReceivedKind::Message, room_id, .. } if room_id != event.room_id => {
            return refuse(conn, turn, event, "edit_from_another_room").await;
        }
        Target::Received { kind: ReceivedKind::Message, subject_id, sender, .. } if sender == event.sender.as_str() => {
            MessageId::from(subject_id)
        }
        Target::Received { kind: ReceivedKind::Message, .. } | Target::Sent { .. } => {
            return refuse(conn, turn, event, "edit_by_another").await;
        }
        Target::Received { .. } | Target::Void => return refuse(conn, turn, event, "edit_of_no_message").await,
    };
    if is_deleted(conn, turn.conversation_id, message_id).await? {
        remember(conn, turn, event, &Record::void(Some(target))).await?;
        return Ok(Applied::Unchanged);
    }
    let revision = sqlx::query_scalar!(
        r#"
        select coalesce(max(revision), 1) + 1 as "next!" from received_events
        where conversation_id = $1 and subject_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_one(&mut *conn)
    .await?;
    let content = with_mentions(inbox, content, mentioned);
    chat::write_revision(conn, turn, inbox.keys, message_id, revision, &content).await?;
    let record =
        Record { revision: Some(revision), relates_to: Some(target), ..Record::new("edit", message_id.as_uuid()) };
    remember(conn, turn, event, &record).await?;
    join_those_before(conn, turn.conversation_id, &event.event_id, message_id, None).await?;
    let changed = show_newest(conn, turn, message_id).await?;
    Ok(if changed { Applied::Changed } else { Applied::Unchanged })
}

/// The message says what its newest edit says that was not redacted, or what it said at first. True when that changed.
pub(super) async fn show_newest(
    conn: &mut PgConnection,
    turn: &Turn,
    message_id: MessageId,
) -> Result<bool, sqlx::Error> {
    let changed = sqlx::query!(
        r#"
        with newest as (
            select revision, sent_at_ms from received_events
            where conversation_id = $1 and subject_id = $2 and kind = 'edit' and not redacted
            order by sent_at_ms desc, event_id desc
            limit 1
        )
        update messages m
        set revision = coalesce((select revision from newest), 1),
            edited_at = (select least(to_timestamp(sent_at_ms / 1000.0), $3) from newest)
        where m.conversation_id = $1 and m.message_id = $2 and m.deleted_at is null
            and m.revision <> coalesce((select revision from newest), 1)
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        turn.at,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if changed == 1 {
        events::record(conn, turn.conversation_id, EventKind::MessageEdited, message_id.as_uuid()).await?;
    }
    Ok(changed == 1)
}

pub(super) async fn is_deleted(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    message_id: MessageId,
) -> Result<bool, sqlx::Error> {
    let deleted = sqlx::query_scalar!(
        r#"
        select deleted_at is not null as "deleted!" from messages
        where conversation_id = $1 and message_id = $2
        "#,
        conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(deleted.unwrap_or(true))
}

pub(super) async fn reaction(
    conn: &mut PgConnection,
    turn: &mut Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
) -> Result<Applied, InboundError> {
    let What::Reaction { target, key } = &event.what else { return Ok(Applied::Unchanged) };
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return refuse(conn, turn, event, "reaction_key").await;
    }
    let found = targets::find(conn, turn.conversation_id, target).await?;
    if let Target::Unknown = found {
        return parked::wait_for(conn, turn, inbox.keys, event, target).await;
    }
    let Some(message_id) = found.message_or_edited() else {
        return refuse(conn, turn, event, "reaction_to_no_message").await;
    };
    let Some(reactor_id) = author(conn, turn, inbox, event).await? else {
        return refuse(conn, turn, event, "user_format").await;
    };
    if is_deleted(conn, turn.conversation_id, message_id).await? {
        remember(conn, turn, event, &Record::void(Some(target))).await?;
        return Ok(Applied::Unchanged);
    }
    let reaction_id = ReactionId::generate();
    let place = Place {
        conversation_id: turn.conversation_id,
        message_id: MessageId::from(reaction_id.as_uuid()),
        revision: 1,
    };
    sqlx::query!(
        r#"
        insert into message_reactions (conversation_id, reaction_id, message_id, reactor_id, origin, key,
            matrix_event_id, matrix_room_id, created_at)
        values ($1, $2, $3, $4, 'matrix', $5, $6, $7, $8)
        "#,
        turn.conversation_id.as_uuid(),
        reaction_id.as_uuid(),
        message_id.as_uuid(),
        reactor_id.as_uuid(),
        inbox.keys.seal(place, key)?,
        event.event_id.as_str(),
        event.room_id.as_str(),
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    let record = Record { relates_to: Some(target), ..Record::new("reaction", reaction_id.as_uuid()) };
    remember(conn, turn, event, &record).await?;
    events::record(conn, turn.conversation_id, EventKind::ReactionAdded, reaction_id.as_uuid()).await?;
    Ok(Applied::Changed)
}
