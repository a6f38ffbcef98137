//! Messages: written, read, edited, deleted.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    ChatError, Contact, Content, MessageKind, Turn,
    content::write_revision,
    is_member,
    reactions::{self, Reactions},
};
use crate::{
    events::{self, EventKind},
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId},
    outbox::{self, Deletion, Delivery},
    seal::{KeyRing, Place},
};

/// A message to be written.
#[derive(Debug, Clone)]
pub struct NewMessage<'a> {
    /// Its id.
    pub message_id: MessageId,
    /// Who writes it.
    pub author_id: UserId,
    /// What kind of message it is.
    pub kind: MessageKind,
    /// What it says.
    pub content: &'a Content,
    /// The message that it answers.
    pub reply_to: Option<MessageId>,
    /// A message of the thread that it belongs to: the first one, or any other.
    pub thread_of: Option<MessageId>,
    /// The operation that will send it; none when it is not meant for Matrix.
    pub send_outbox_id: Option<OutboxId>,
}

/// Writes a message and its first revision.
pub async fn insert_message(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    message: &NewMessage<'_>,
) -> Result<(), ChatError> {
    let thread_of = place_in_talk(conn, turn, message).await?;
    sqlx::query!(
        r#"
        insert into messages (conversation_id, message_id, seq, author_id, origin, kind, revision, reply_to,
            thread_of, send_outbox_id, created_at)
        values ($1, $2, $3, $4, 'nova', $5, 1, $6, $7, $8, $9)
        "#,
        turn.conversation_id.as_uuid(),
        message.message_id.as_uuid(),
        turn.seq,
        message.author_id.as_uuid(),
        message.kind.as_str(),
        message.reply_to.map(MessageId::as_uuid),
        thread_of.map(MessageId::as_uuid),
        message.send_outbox_id.map(OutboxId::as_uuid),
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    write_revision(conn, turn, keys, message.message_id, 1, message.content).await?;
    events::record(conn, turn.conversation_id, EventKind::MessageNew, message.message_id.as_uuid()).await?;
    Ok(())
}

/// Checks what a message relates to. Returns the first message of its thread: Matrix knows no threads within threads, so
/// one that is begun at a message of a thread is that thread.
async fn place_in_talk(
    conn: &mut PgConnection,
    turn: &Turn,
    message: &NewMessage<'_>,
) -> Result<Option<MessageId>, ChatError> {
    if message.reply_to.is_none() && message.thread_of.is_none() {
        return Ok(None);
    }
    let found = sqlx::query!(
        r#"
        select r.message_id is not null as "answered!", t.message_id is not null as "threaded!",
            coalesce(t.thread_of, t.message_id) as "thread_of: MessageId"
        from (select $1::uuid as conversation_id) c
        left join messages r on r.conversation_id = c.conversation_id and r.message_id = $2
        left join messages t on t.conversation_id = c.conversation_id and t.message_id = $3
        "#,
        turn.conversation_id.as_uuid(),
        message.reply_to.map(MessageId::as_uuid),
        message.thread_of.map(MessageId::as_uuid),
    )
    .fetch_one(conn)
    .await?;
    if message.reply_to.is_some() && !found.answered {
        return Err(ChatError::NoSuchReplyTarget);
    }
    if message.thread_of.is_some() && !found.threaded {
        return Err(ChatError::NoSuchThread);
    }
    Ok(found.thread_of)
}

/// A message as members see it.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id.
    pub message_id: MessageId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// Its place there.
    pub seq: i64,
    /// Who wrote it.
    pub author_id: UserId,
    /// Who that is, when it is no user of ours.
    pub contact: Option<Contact>,
    /// What kind of message it is.
    pub kind: MessageKind,
    /// What it says; none once it is deleted.
    pub content: Option<Content>,
    /// Its newest revision, from 1.
    pub revision: i32,
    /// The message that it answers.
    pub reply_to: Option<MessageId>,
    /// The first message of the thread that it belongs to.
    pub thread_of: Option<MessageId>,
    /// The reactions to it.
    pub reactions: Reactions,
    /// When it was written.
    pub created_at: OffsetDateTime,
    /// When it was last edited.
    pub edited_at: Option<OffsetDateTime>,
    /// When it was deleted.
    pub deleted_at: Option<OffsetDateTime>,
    /// How far its first revision has come; none for what came from Matrix.
    pub delivery: Option<Delivery>,
    /// Its Matrix event, once known.
    pub event_id: Option<EventId>,
    /// Its Matrix room, once known.
    pub room_id: Option<RoomId>,
}

/// What is known of a message before anything of it is locked.
#[derive(Debug, Clone, Copy)]
pub struct MessageHead {
    /// The message.
    pub message_id: MessageId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// The operation that sends it; none when it was never meant for Matrix.
    pub send_outbox_id: Option<OutboxId>,
}

/// Finds the conversation of a message, for one of its members.
pub async fn find_message(
    conn: &mut PgConnection,
    message_id: MessageId,
    reader: UserId,
) -> Result<MessageHead, ChatError> {
    let head = sqlx::query_as!(
        MessageHead,
        r#"
        select message_id as "message_id: MessageId", conversation_id as "conversation_id: ConversationId",
            send_outbox_id as "send_outbox_id: OutboxId"
        from messages where message_id = $1
        "#,
        message_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?
    .ok_or(ChatError::NoSuchMessage)?;
    if is_member(conn, head.conversation_id, reader).await? { Ok(head) } else { Err(ChatError::NotAMember) }
}

/// Reads a message for a member of its conversation.
pub async fn message(
    conn: &mut PgConnection,
    keys: &KeyRing,
    message_id: MessageId,
    reader: UserId,
) -> Result<Message, ChatError> {
    let head = find_message(conn, message_id, reader).await?;
    let row = sqlx::query_as!(
        DetailRow,
        r#"
        select conversation_id as "conversation_id!: ConversationId", message_id as "message_id!: MessageId",
            seq as "seq!", author_id as "author_id!: UserId", revision as "revision!",
            reply_to as "reply_to: MessageId", created_at as "created_at!", edited_at, deleted_at,
            delivery as "delivery: Delivery", matrix_event_id as "event_id: EventId",
            matrix_room_id as "room_id: RoomId", body, rich as "rich?", kind as "kind!: MessageKind",
            thread_of as "thread_of: MessageId", contact_matrix_user_id, contact_display_name
        from message_details
        where conversation_id = $1 and message_id = $2
        "#,
        head.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_one(&mut *conn)
    .await?;
    let mut message = [row.open(keys)?];
    reactions::attach(conn, keys, head.conversation_id, &mut message).await?;
    let [message] = message;
    Ok(message)
}

/// Reads some messages of a conversation, in no order, for whoever has made sure of the reader's right to them. Those that
/// are not there are left out; one whose text cannot be opened is an error beside the others.
pub async fn messages_of(
    conn: &mut PgConnection,
    keys: &KeyRing,
    conversation_id: ConversationId,
    ids: &[MessageId],
) -> Result<Vec<Result<Message, ChatError>>, sqlx::Error> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
    let rows = sqlx::query_as!(
        DetailRow,
        r#"
        select conversation_id as "conversation_id!: ConversationId", message_id as "message_id!: MessageId",
            seq as "seq!", author_id as "author_id!: UserId", revision as "revision!",
            reply_to as "reply_to: MessageId", created_at as "created_at!", edited_at, deleted_at,
            delivery as "delivery: Delivery", matrix_event_id as "event_id: EventId",
            matrix_room_id as "room_id: RoomId", body, rich as "rich?", kind as "kind!: MessageKind",
            thread_of as "thread_of: MessageId", contact_matrix_user_id, contact_display_name
        from message_details
        where conversation_id = $1 and message_id = any($2)
        "#,
        conversation_id.as_uuid(),
        &ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    let (mut messages, mut failed) = (Vec::new(), Vec::new());
    for row in rows {
        match row.open(keys) {
            Ok(message) => messages.push(message),
            Err(error) => failed.push(Err(error)),
        }
    }
    match reactions::attach(conn, keys, conversation_id, &mut messages).await {
        Ok(()) => {}
        Err(ChatError::Database(error)) => return Err(error),
        Err(error) => failed.push(Err(error)),
    }
    failed.extend(messages.into_iter().map(Ok));
    Ok(failed)
}

/// Which messages of a conversation to list.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest {
    /// Only those before this place; none for the newest.
    pub before: Option<i64>,
    /// How many at most.
    pub limit: i64,
}

/// Lists messages of a conversation for one of its members, newest first.
pub async fn messages(
    conn: &mut PgConnection,
    keys: &KeyRing,
    conversation_id: ConversationId,
    reader: UserId,
    page: PageRequest,
) -> Result<Vec<Message>, ChatError> {
    super::conversation(conn, conversation_id, reader).await?;
    let rows = sqlx::query_as!(
        DetailRow,
        r#"
        select conversation_id as "conversation_id!: ConversationId", message_id as "message_id!: MessageId",
            seq as "seq!", author_id as "author_id!: UserId", revision as "revision!",
            reply_to as "reply_to: MessageId", created_at as "created_at!", edited_at, deleted_at,
            delivery as "delivery: Delivery", matrix_event_id as "event_id: EventId",
            matrix_room_id as "room_id: RoomId", body, rich as "rich?", kind as "kind!: MessageKind",
            thread_of as "thread_of: MessageId", contact_matrix_user_id, contact_display_name
        from message_details
        where conversation_id = $1 and seq < coalesce($2, 9223372036854775807)
        order by seq desc
        limit $3
        "#,
        conversation_id.as_uuid(),
        page.before,
        page.limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut messages = rows.into_iter().map(|row| row.open(keys)).collect::<Result<Vec<_>, _>>()?;
    reactions::attach(conn, keys, conversation_id, &mut messages).await?;
    Ok(messages)
}

struct DetailRow {
    conversation_id: ConversationId,
    message_id: MessageId,
    seq: i64,
    author_id: UserId,
    revision: i32,
    reply_to: Option<MessageId>,
    created_at: OffsetDateTime,
    edited_at: Option<OffsetDateTime>,
    deleted_at: Option<OffsetDateTime>,
    delivery: Option<Delivery>,
    event_id: Option<EventId>,
    room_id: Option<RoomId>,
    body: Option<Vec<u8>>,
    rich: Option<bool>,
    kind: MessageKind,
    thread_of: Option<MessageId>,
    contact_matrix_user_id: Option<String>,
    contact_display_name: Option<String>,
}

impl DetailRow {
    fn open(self, keys: &KeyRing) -> Result<Message, ChatError> {
        let place =
            Place { conversation_id: self.conversation_id, message_id: self.message_id, revision: self.revision };
        let rich = self.rich.unwrap_or_default();
        let content = self.body.map(|body| Content::open(keys, place, &body, rich)).transpose()?;
        Ok(Message {
            message_id: self.message_id,
            conversation_id: self.conversation_id,
            seq: self.seq,
            author_id: self.author_id,
            contact: self.contact_matrix_user_id.map(|matrix_user_id| Contact {
                contact_id: self.author_id,
                matrix_user_id,
                display_name: self.contact_display_name,
            }),
            kind: self.kind,
            content,
            revision: self.revision,
            reply_to: self.reply_to,
            thread_of: self.thread_of,
            reactions: Reactions::default(),
            created_at: self.created_at,
            edited_at: self.edited_at,
            deleted_at: self.deleted_at,
            delivery: self.delivery,
            event_id: self.event_id,
            room_id: self.room_id,
        })
    }
}

/// A message whose conversation is locked, as a change of it finds it.
struct Locked {
    author_id: UserId,
    revision: i32,
    deleted: bool,
    send_outbox_id: Option<OutboxId>,
    from_matrix: bool,
    body: Option<Vec<u8>>,
    rich: Option<bool>,
}

async fn locked(
    conn: &mut PgConnection,
    turn: &Turn,
    message_id: MessageId,
    author_id: UserId,
) -> Result<Locked, ChatError> {
    let message = sqlx::query_as!(
        Locked,
        r#"
        select m.author_id as "author_id: UserId", m.revision, m.deleted_at is not null as "deleted!",
            m.send_outbox_id as "send_outbox_id: OutboxId", m.origin = 'matrix' as "from_matrix!", r.body as "body?",
            r.rich as "rich?"
        from messages m
        left join message_revisions r on r.conversation_id = m.conversation_id and r.message_id = m.message_id
            and r.revision = m.revision
        where m.conversation_id = $1 and m.message_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?
    .ok_or(ChatError::NoSuchMessage)?;
    if message.author_id == author_id { Ok(message) } else { Err(ChatError::NotTheAuthor) }
}

/// The lane comes before the message's row: a settle locks in this order, and writes the event's id onto the message.
async fn lock_before_writing(conn: &mut PgConnection, turn: &Turn, message: &Locked) -> Result<(), sqlx::Error> {
    if message.send_outbox_id.is_none() {
        return Ok(());
    }
    outbox::lock_lane(conn, turn.conversation_id, LaneId::from(turn.conversation_id)).await
}

/// What an edit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edited {
    /// The message says this already.
    Unchanged,
    /// There is a new revision; true when a worker has something to send for it.
    Changed(bool),
}

/// Gives a message a new text, formatted text and mentions; its medium stays. `expected` is the revision that the caller
/// thinks it has, if the caller cares.
pub async fn edit_message(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    message_id: MessageId,
    author_id: UserId,
    content: &Content,
    expected: Option<i32>,
) -> Result<Edited, ChatError> {
    let message = locked(conn, turn, message_id, author_id).await?;
    if message.deleted {
        return Err(ChatError::Deleted);
    }
    if message.from_matrix {
        return Err(ChatError::MadeOnMatrix);
    }
    let mut content = content.clone();
    if let Some(body) = &message.body {
        let place = Place { conversation_id: turn.conversation_id, message_id, revision: message.revision };
        let before = Content::open(keys, place, body, message.rich.unwrap_or_default())?;
        content.media.clone_from(&before.media);
        if before == content {
            return Ok(Edited::Unchanged);
        }
    }
    if expected.is_some_and(|expected| expected != message.revision) {
        return Err(ChatError::AnotherRevision(message.revision));
    }
    lock_before_writing(conn, turn, &message).await?;
    let revision = message.revision + 1;
    write_revision(conn, turn, keys, message_id, revision, &content).await?;
    sqlx::query!(
        r#"
        update messages set revision = $3, edited_at = $4
        where conversation_id = $1 and message_id = $2 and revision = $3 - 1 and deleted_at is null
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        revision,
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    events::record(conn, turn.conversation_id, EventKind::MessageEdited, message_id.as_uuid()).await?;
    let to_send = match message.send_outbox_id {
        Some(send) => outbox::edit(conn, turn, message_id, send, revision).await?,
        None => false,
    };
    Ok(Edited::Changed(to_send))
}

/// Deletes a message: its texts are wiped at once, everywhere. None when it was deleted before.
pub async fn delete_message(
    conn: &mut PgConnection,
    turn: &mut Turn,
    message_id: MessageId,
    author_id: UserId,
) -> Result<Option<Deletion>, ChatError> {
    let message = locked(conn, turn, message_id, author_id).await?;
    if message.deleted {
        return Ok(None);
    }
    if message.from_matrix {
        return Err(ChatError::MadeOnMatrix);
    }
    Ok(Some(erase(conn, turn, message_id, None).await?))
}

/// A message is deleted because its event was redacted on Matrix: `redacted` is the operation that had sent it, if one had.
/// False when it was deleted before.
pub(crate) async fn delete_redacted(
    conn: &mut PgConnection,
    turn: &mut Turn,
    message_id: MessageId,
    redacted: Option<OutboxId>,
) -> Result<bool, sqlx::Error> {
    let deleted = sqlx::query_scalar!(
        r#"
        select deleted_at is not null as "deleted!" from messages
        where conversation_id = $1 and message_id = $2
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    if deleted.unwrap_or(true) {
        return Ok(false);
    }
    // Its redaction has no place of its own, what follows has.
    turn.advance(conn).await?;
    erase(conn, turn, message_id, redacted).await?;
    Ok(true)
}

/// Wipes what a message says, everywhere, and takes back or redacts what may stand of it on Matrix.
///
/// The lane comes before the message's row: a settle locks in this order, and writes the event's id onto the message.
async fn erase(
    conn: &mut PgConnection,
    turn: &mut Turn,
    message_id: MessageId,
    redacted: Option<OutboxId>,
) -> Result<Deletion, sqlx::Error> {
    outbox::lock_lane(conn, turn.conversation_id, LaneId::from(turn.conversation_id)).await?;
    sqlx::query!(
        "delete from message_revisions where conversation_id = $1 and message_id = $2",
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        r#"
        update messages set deleted_at = $3
        where conversation_id = $1 and message_id = $2 and deleted_at is null
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    reactions::wipe(conn, turn, message_id).await?;
    events::record(conn, turn.conversation_id, EventKind::MessageDeleted, message_id.as_uuid()).await?;
    outbox::delete(conn, turn, message_id, redacted).await
}
