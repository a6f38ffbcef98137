//! Conversations, members and messages: their rows and rules, one transaction's worth each.
//!
//! Every write takes its [`Turn`] first: the conversation's row lock and the next sequence number in one statement. So
//! the order of commits is the order of sequence numbers, and nothing ever has to be read "since the last seen id".

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId},
    outbox::{Delivery, LaneClass},
    seal::{KeyRing, Place, SealError},
};

/// Why a write or a read of chat was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// There is no such conversation.
    #[error("no such conversation")]
    NoSuchConversation,
    /// There is no such message.
    #[error("no such message")]
    NoSuchMessage,
    /// The caller does not belong to the conversation.
    #[error("not a member of the conversation")]
    NotAMember,
    /// The message that is answered is not in the conversation.
    #[error("the message that is answered is not in this conversation")]
    NoSuchReplyTarget,
    /// Content could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The database refused or did not answer.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// A locked conversation and the sequence number of this write. It exists only inside of a transaction that holds the
/// lock.
#[derive(Debug)]
pub struct Turn {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// This write's place.
    pub seq: i64,
    /// When the turn was taken, by the database's clock.
    pub at: OffsetDateTime,
}

/// Locks a conversation and takes its next sequence number. None when there is no such conversation.
pub async fn lock_conversation(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
) -> Result<Option<Turn>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        update conversations set last_seq = last_seq + 1
        where conversation_id = $1
        returning last_seq, outbox_now() as "at!"
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Turn { conversation_id, seq: row.last_seq, at: row.at }))
}

/// Locks a conversation for a member's write.
pub async fn take_turn(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    user_id: UserId,
) -> Result<Turn, ChatError> {
    let turn = lock_conversation(conn, conversation_id).await?.ok_or(ChatError::NoSuchConversation)?;
    if is_member(conn, conversation_id, user_id).await? { Ok(turn) } else { Err(ChatError::NotAMember) }
}

/// Whether a user belongs to a conversation now.
pub async fn is_member(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    user_id: UserId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select 1 from conversation_members
            where conversation_id = $1 and user_id = $2 and removed_seq is null
        ) as "is_member!"
        "#,
        conversation_id.as_uuid(),
        user_id.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// A conversation as its members see it.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Its id.
    pub conversation_id: ConversationId,
    /// What people call it.
    pub name: Option<String>,
    /// Who created it.
    pub created_by: UserId,
    /// When.
    pub created_at: OffsetDateTime,
    /// Who belongs to it now, in the order in which they came.
    pub members: Vec<UserId>,
    /// Its Matrix room, once there is one.
    pub room_id: Option<RoomId>,
}

/// Creates a conversation with its members and its chat lane. The creator becomes a member too.
pub async fn create_conversation(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    name: Option<&str>,
    creator: UserId,
    members: &[UserId],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into conversations (conversation_id, name, created_by, created_at, last_seq)
        values ($1, $2, $3, outbox_now(), 1)
        "#,
        conversation_id.as_uuid(),
        name,
        creator.as_uuid(),
    )
    .execute(&mut *conn)
    .await?;
    let mut everyone = vec![creator.as_uuid()];
    for member in members {
        if !everyone.contains(&member.as_uuid()) {
            everyone.push(member.as_uuid());
        }
    }
    sqlx::query!(
        r#"
        insert into conversation_members (conversation_id, user_id, added_seq)
        select $1, user_id, 1 from unnest($2::uuid[]) as m (user_id)
        "#,
        conversation_id.as_uuid(),
        &everyone,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        r#"
        insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, epoch)
        values ($1, $2, $3, 0, 0, 0)
        "#,
        conversation_id.as_uuid(),
        LaneId::from(conversation_id).as_uuid(),
        LaneClass::Chat.as_str(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Reads a conversation for one of its members.
pub async fn conversation(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    reader: UserId,
) -> Result<Conversation, ChatError> {
    let row = sqlx::query!(
        r#"
        select c.name, c.created_by as "created_by: UserId", c.created_at, r.matrix_room_id as "room_id?: RoomId",
            array(
                select m.user_id from conversation_members m
                where m.conversation_id = c.conversation_id and m.removed_seq is null
                order by m.added_seq, m.user_id
            ) as "members!: Vec<UserId>"
        from conversations c
        left join matrix_room_mappings r on r.conversation_id = c.conversation_id
        where c.conversation_id = $1
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?
    .ok_or(ChatError::NoSuchConversation)?;
    if !row.members.contains(&reader) {
        return Err(ChatError::NotAMember);
    }
    Ok(Conversation {
        conversation_id,
        name: row.name,
        created_by: row.created_by,
        created_at: row.created_at,
        members: row.members,
        room_id: row.room_id,
    })
}

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
    .execute(conn)
    .await?;
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

/// Reads a message for a member of its conversation.
pub async fn message(
    conn: &mut PgConnection,
    keys: &KeyRing,
    message_id: MessageId,
    reader: UserId,
) -> Result<Message, ChatError> {
    let row = sqlx::query!(
        r#"
        select m.conversation_id as "conversation_id: ConversationId", m.seq, m.author_id as "author_id: UserId",
            m.revision, m.reply_to as "reply_to: MessageId", m.created_at, m.edited_at, m.deleted_at,
            m.matrix_event_id as "event_id: EventId", r.matrix_room_id as "room_id?: RoomId", b.body as "body?",
            case
                when m.origin = 'matrix' then null
                when m.send_outbox_id is null then 'disabled'
                when s.outbox_id is not null then 'delivered'
                when d.outbox_id is not null then 'dead'
                when o.outbox_id is null then 'cancelled'
                when o.seq <= l.frozen_through or o.maybe_sent_at is not null then 'delivering'
                else 'pending'
            end as "delivery: Delivery",
            exists (
                select 1 from conversation_members c
                where c.conversation_id = m.conversation_id and c.user_id = $2 and c.removed_seq is null
            ) as "is_member!"
        from messages m
        left join message_revisions b on b.conversation_id = m.conversation_id and b.message_id = m.message_id
            and b.revision = m.revision
        left join sent_events s on s.conversation_id = m.conversation_id and s.outbox_id = m.send_outbox_id
        left join dead_letters d on d.conversation_id = m.conversation_id and d.outbox_id = m.send_outbox_id
        left join outbox o on o.conversation_id = m.conversation_id and o.outbox_id = m.send_outbox_id
        left join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
        left join matrix_room_mappings r on r.conversation_id = m.conversation_id
        where m.message_id = $1
        "#,
        message_id.as_uuid(),
        reader.as_uuid(),
    )
    .fetch_optional(conn)
    .await?
    .ok_or(ChatError::NoSuchMessage)?;
    if !row.is_member {
        return Err(ChatError::NotAMember);
    }
    let place = Place { conversation_id: row.conversation_id, message_id, revision: row.revision };
    let text = row.body.map(|body| keys.open(place, &body)).transpose()?;
    Ok(Message {
        message_id,
        conversation_id: row.conversation_id,
        seq: row.seq,
        author_id: row.author_id,
        text,
        revision: row.revision,
        reply_to: row.reply_to,
        created_at: row.created_at,
        edited_at: row.edited_at,
        deleted_at: row.deleted_at,
        delivery: row.delivery,
        event_id: row.event_id,
        room_id: row.room_id,
    })
}

/// Where a conversation's operations are sent: its room and who belongs there.
#[derive(Debug, Clone)]
pub struct RoomPlan {
    /// What people call the conversation.
    pub name: Option<String>,
    /// Who belongs to it as of an operation.
    pub members: Vec<UserId>,
}

/// Who belonged to a conversation at a sequence number: whom its room is created with for that operation.
pub async fn room_plan(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    seq: i64,
) -> Result<Option<RoomPlan>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select c.name, array(
            select m.user_id from conversation_members m
            where m.conversation_id = c.conversation_id and m.added_seq <= $2
                and (m.removed_seq is null or m.removed_seq > $2)
            order by m.added_seq, m.user_id
        ) as "members!: Vec<UserId>"
        from conversations c
        where c.conversation_id = $1
        "#,
        conversation_id.as_uuid(),
        seq,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| RoomPlan { name: row.name, members: row.members }))
}

/// Remembers the room of a conversation. The first to say so is right: returns the room that counts.
pub async fn save_room_mapping(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    room_id: &RoomId,
    ready: bool,
) -> Result<RoomId, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        insert into matrix_room_mappings (conversation_id, matrix_room_id, created_at, ready_at)
        values ($1, $2, outbox_now(), case when $3 then outbox_now() end)
        on conflict (conversation_id) do update
        set ready_at = case when matrix_room_mappings.matrix_room_id = excluded.matrix_room_id
            then coalesce(matrix_room_mappings.ready_at, excluded.ready_at)
            else matrix_room_mappings.ready_at end
        returning matrix_room_id as "room_id: RoomId"
        "#,
        conversation_id.as_uuid(),
        room_id.as_str(),
        ready,
    )
    .fetch_one(conn)
    .await
}

/// The room of a conversation, and whether it is known to be whole.
pub async fn load_room_mapping(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
) -> Result<Option<(RoomId, bool)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select matrix_room_id as "room_id: RoomId", ready_at is not null as "ready!"
        from matrix_room_mappings where conversation_id = $1
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.room_id, row.ready)))
}

/// The conversation of a room.
pub async fn lookup_conversation_by_room_id(
    conn: &mut PgConnection,
    room_id: &RoomId,
) -> Result<Option<ConversationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select conversation_id as "conversation_id: ConversationId"
        from matrix_room_mappings where matrix_room_id = $1
        "#,
        room_id.as_str(),
    )
    .fetch_optional(conn)
    .await
}
