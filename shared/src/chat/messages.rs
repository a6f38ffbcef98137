//! Messages: written, read, edited, deleted.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{ChatError, Turn, is_member};
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
    /// What it says.
    pub text: &'a str,
    /// The message that it answers.
    pub reply_to: Option<MessageId>,
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
    if let Some(reply_to) = message.reply_to {
        sqlx::query!(
            "select 1 as found from messages where conversation_id = $1 and message_id = $2",
            turn.conversation_id.as_uuid(),
            reply_to.as_uuid(),
        )
        .fetch_optional(&mut *conn)
        .await?
        .ok_or(ChatError::NoSuchReplyTarget)?;
    }
    let place = Place { conversation_id: turn.conversation_id, message_id: message.message_id, revision: 1 };
    let body = keys.seal(place, message.text)?;
    sqlx::query!(
        r#"
        insert into messages (conversation_id, message_id, seq, author_id, origin, kind, revision, reply_to,
            send_outbox_id, created_at)
        values ($1, $2, $3, $4, 'nova', 'text', 1, $5, $6, $7)
        "#,
        turn.conversation_id.as_uuid(),
        message.message_id.as_uuid(),
        turn.seq,
        message.author_id.as_uuid(),
        message.reply_to.map(MessageId::as_uuid),
        message.send_outbox_id.map(OutboxId::as_uuid),
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        r#"
        insert into message_revisions (conversation_id, message_id, revision, body, created_at)
        values ($1, $2, 1, $3, $4)
        "#,
        turn.conversation_id.as_uuid(),
        message.message_id.as_uuid(),
        body,
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    events::record(conn, turn.conversation_id, EventKind::MessageNew, message.message_id.as_uuid()).await?;
    Ok(())
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
    /// What it says; none once it is deleted.
    pub text: Option<String>,
    /// Its newest revision, from 1.
    pub revision: i32,
    /// The message that it answers.
    pub reply_to: Option<MessageId>,
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
            matrix_room_id as "room_id: RoomId", body
        from message_details
        where conversation_id = $1 and message_id = $2
        "#,
        head.conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_one(conn)
    .await?;
    row.open(keys)
}

/// Reads messages wherever they are, in no order, for whoever has made sure of the reader's right to them. Those that are
/// not there are left out; one whose text cannot be opened is an error beside the others.
pub async fn messages_of(
    conn: &mut PgConnection,
    keys: &KeyRing,
    ids: &[(ConversationId, MessageId)],
) -> Result<Vec<Result<Message, ChatError>>, sqlx::Error> {
    let conversations: Vec<Uuid> = ids.iter().map(|(conversation_id, _)| conversation_id.as_uuid()).collect();
    let messages: Vec<Uuid> = ids.iter().map(|(_, message_id)| message_id.as_uuid()).collect();
    let rows = sqlx::query_as!(
        DetailRow,
        r#"
        select d.conversation_id as "conversation_id!: ConversationId", d.message_id as "message_id!: MessageId",
            d.seq as "seq!", d.author_id as "author_id!: UserId", d.revision as "revision!",
            d.reply_to as "reply_to: MessageId", d.created_at as "created_at!", d.edited_at, d.deleted_at,
            d.delivery as "delivery: Delivery", d.matrix_event_id as "event_id: EventId",
            d.matrix_room_id as "room_id: RoomId", d.body
        from unnest($1::uuid[], $2::uuid[]) as w (conversation_id, message_id)
        join message_details d on d.conversation_id = w.conversation_id and d.message_id = w.message_id
        "#,
        &conversations,
        &messages,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.open(keys)).collect())
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
            matrix_room_id as "room_id: RoomId", body
        from message_details
        where conversation_id = $1 and seq < coalesce($2, 9223372036854775807)
        order by seq desc
        limit $3
        "#,
        conversation_id.as_uuid(),
        page.before,
        page.limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(|row| row.open(keys)).collect()
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
}

impl DetailRow {
    fn open(self, keys: &KeyRing) -> Result<Message, ChatError> {
        let place =
            Place { conversation_id: self.conversation_id, message_id: self.message_id, revision: self.revision };
        Ok(Message {
            message_id: self.message_id,
            conversation_id: self.conversation_id,
            seq: self.seq,
            author_id: self.author_id,
            text: self.body.map(|body| keys.open(place, &body)).transpose()?,
            revision: self.revision,
            reply_to: self.reply_to,
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
    body: Option<Vec<u8>>,
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
            m.send_outbox_id as "send_outbox_id: OutboxId", r.body as "body?"
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

/// Gives a message a new text. `expected` is the revision that the caller thinks it has, if the caller cares.
pub async fn edit_message(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    message_id: MessageId,
    author_id: UserId,
    text: &str,
    expected: Option<i32>,
) -> Result<Edited, ChatError> {
    let message = locked(conn, turn, message_id, author_id).await?;
    if message.deleted {
        return Err(ChatError::Deleted);
    }
    let mut place = Place { conversation_id: turn.conversation_id, message_id, revision: message.revision };
    if let Some(body) = &message.body
        && keys.open(place, body)? == text
    {
        return Ok(Edited::Unchanged);
    }
    if expected.is_some_and(|expected| expected != message.revision) {
        return Err(ChatError::AnotherRevision(message.revision));
    }
    lock_before_writing(conn, turn, &message).await?;
    place.revision += 1;
    let body = keys.seal(place, text)?;
    sqlx::query!(
        r#"
        insert into message_revisions (conversation_id, message_id, revision, body, created_at)
        values ($1, $2, $3, $4, $5)
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        place.revision,
        body,
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        r#"
        update messages set revision = $3, edited_at = $4
        where conversation_id = $1 and message_id = $2 and revision = $3 - 1 and deleted_at is null
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        place.revision,
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    events::record(conn, turn.conversation_id, EventKind::MessageEdited, message_id.as_uuid()).await?;
    let to_send = match message.send_outbox_id {
        Some(send) => outbox::edit(conn, turn, message_id, send, place.revision, None).await?,
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
    lock_before_writing(conn, turn, &message).await?;
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
    events::record(conn, turn.conversation_id, EventKind::MessageDeleted, message_id.as_uuid()).await?;
    Ok(Some(outbox::delete(conn, turn, message_id, None).await?))
}
