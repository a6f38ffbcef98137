//! Conversations, members and messages: their rows and rules, one transaction's worth each.
//!
//! Every write takes its [`Turn`] first: the conversation's row lock and the next sequence number in one statement. So
//! the order of commits is the order of sequence numbers, and nothing ever has to be read "since the last seen id".

use std::collections::HashMap;

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    events::{self, EventKind},
    ids::{ConversationId, LaneId, RoomId, UserId},
    outbox::LaneClass,
    seal::SealError,
    trace::TraceParent,
};

pub(crate) mod content;
mod members;
mod messages;
pub(crate) mod reactions;
mod rooms;

pub(crate) use content::write_revision;
pub use content::{Content, MAX_MENTIONS, MAX_WEIGHT, Media, Mentions, MessageKind};
pub use members::{Membership, add_member, enqueue_membership, remove_member};
pub(crate) use members::{begin_stay, end_stay};
pub(crate) use messages::delete_redacted;
pub use messages::{
    Edited, Message, MessageHead, NewMessage, PageRequest, delete_message, edit_message, find_message, insert_message,
    message, messages, messages_of,
};
pub use reactions::{
    MAX_REACTIONS, MAX_REACTIONS_OF_ONE, Reacted, Reactions, StoredReaction, Tally, Unreacted, add_reaction,
    open_reaction_key, reactions_of, remove_reaction,
};
pub(crate) use reactions::{delete_reaction, delete_redacted_reactions};
pub use rooms::{
    RoomPlan, contacts, load_room_mapping, lookup_conversation_by_room_id, replace_room, room_plan, save_room_mapping,
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
    /// Only its author may change a message.
    #[error("only the author of a message may change it")]
    NotTheAuthor,
    /// The message is deleted.
    #[error("the message is deleted")]
    Deleted,
    /// The message has another revision than the caller thinks.
    #[error("the message has revision {0} by now")]
    AnotherRevision(i32),
    /// The message that is answered is not in the conversation.
    #[error("the message that is answered is not in this conversation")]
    NoSuchReplyTarget,
    /// The message whose thread is meant is not in the conversation.
    #[error("the message whose thread is meant is not in this conversation")]
    NoSuchThread,
    /// There are as many reactions as are taken.
    #[error("there are too many reactions to this message")]
    TooManyReactions,
    /// It was written on Matrix, by an account of its own: it can only be changed or removed there.
    #[error("it was written on Matrix: change or remove it there")]
    MadeOnMatrix,
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
    /// The trace of the request whose write this is: what it enqueues goes on in it.
    pub trace: Option<TraceParent>,
}

impl Turn {
    /// As a part of a request's trace.
    #[must_use]
    pub fn traced(self, trace: Option<TraceParent>) -> Self {
        Self { trace, ..self }
    }

    /// Takes one more sequence number, for a write that enqueues more than one operation.
    pub async fn advance(&mut self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        self.seq = sqlx::query_scalar!(
            "update conversations set last_seq = last_seq + 1 where conversation_id = $1 returning last_seq",
            self.conversation_id.as_uuid(),
        )
        .fetch_one(conn)
        .await?;
        Ok(())
    }
}

/// Locks a conversation and takes its next sequence number. None when there is no such conversation.
///
/// Who comes next is decided by the advisory lock, before the row is touched: to wait for a row's lock with an UPDATE, a
/// transaction takes its id first, and the event log is read in the order of these ids. A transaction that has written
/// something before, or that needs several conversations, calls [`line_up`] before all else.
pub async fn lock_conversation(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
) -> Result<Option<Turn>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        update conversations set last_seq = last_seq + 1
        where conversation_id = (select $1::uuid from pg_advisory_xact_lock(uuid_hash_extended($1, 0)))
        returning last_seq, outbox_now() as "at!"
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Turn { conversation_id, seq: row.last_seq, at: row.at, trace: None }))
}

/// Waits for the turn in several conversations, to be called before a transaction writes anything: it has no id yet, so
/// it comes after all that it waited for in the event log too. [`lock_conversation`] then does not wait.
pub async fn line_up(conn: &mut PgConnection, conversations: &[ConversationId]) -> Result<(), sqlx::Error> {
    let conversations: Vec<_> = conversations.iter().map(|id| id.as_uuid()).collect();
    // In the order of the keys, or two that need the same two would wait for each other.
    sqlx::query!(
        r#"
        select count(pg_advisory_xact_lock(key)) as locked
        from (select distinct uuid_hash_extended(c, 0) as key from unnest($1::uuid[]) c order by 1) keys
        "#,
        &conversations,
    )
    .fetch_one(conn)
    .await?;
    Ok(())
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

/// The newest sequence number of a conversation; 0 when there is no such conversation.
pub async fn last_seq(conn: &mut PgConnection, conversation_id: ConversationId) -> Result<i64, sqlx::Error> {
    let seq = sqlx::query_scalar!(
        "select last_seq from conversations where conversation_id = $1",
        conversation_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(seq.unwrap_or(0))
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

/// Somebody in a conversation's room who is no user of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// The id under which they appear as authors.
    pub contact_id: UserId,
    /// Who they are on Matrix.
    pub matrix_user_id: String,
    /// What they call themselves there.
    pub display_name: Option<String>,
}

/// How many contacts of a conversation are shown.
const MAX_CONTACTS: i64 = 500;

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
    /// Members whom the homeserver would not have invited.
    pub not_invited: Vec<UserId>,
    /// Who else is in its room, in the order in which we heard of them.
    pub contacts: Vec<Contact>,
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
    .execute(&mut *conn)
    .await?;
    events::record(conn, conversation_id, EventKind::ConversationNew, conversation_id.as_uuid()).await
}

/// Reads a conversation for one of its members.
pub async fn conversation(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    reader: UserId,
) -> Result<Conversation, ChatError> {
    let found = read_conversations(conn, &[conversation_id]).await?.pop().ok_or(ChatError::NoSuchConversation)?;
    if found.members.contains(&reader) { Ok(found) } else { Err(ChatError::NotAMember) }
}

/// The conversations that a user belongs to, newest first, those created before `before` only.
pub async fn conversations(
    conn: &mut PgConnection,
    user_id: UserId,
    before: Option<ConversationId>,
    limit: i64,
) -> Result<Vec<Conversation>, sqlx::Error> {
    let ids = sqlx::query_scalar!(
        r#"
        select conversation_id as "conversation_id: ConversationId" from conversation_members
        where user_id = $1 and removed_seq is null and ($2::uuid is null or conversation_id < $2)
        order by conversation_id desc
        limit $3
        "#,
        user_id.as_uuid(),
        before.map(ConversationId::as_uuid),
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    read_conversations(conn, &ids).await
}

/// Reads conversations, newest first, for whoever has made sure of the reader's right to them. Those that are not there are
/// left out.
pub async fn conversations_of(
    conn: &mut PgConnection,
    ids: &[ConversationId],
) -> Result<Vec<Conversation>, sqlx::Error> {
    read_conversations(conn, ids).await
}

async fn read_conversations(conn: &mut PgConnection, ids: &[ConversationId]) -> Result<Vec<Conversation>, sqlx::Error> {
    struct Row {
        conversation_id: ConversationId,
        name: Option<String>,
        created_by: UserId,
        created_at: OffsetDateTime,
        room_id: Option<RoomId>,
        members: Vec<UserId>,
        not_invited: Vec<UserId>,
    }
    let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"
        select c.conversation_id as "conversation_id: ConversationId", c.name, c.created_by as "created_by: UserId",
            c.created_at, r.matrix_room_id as "room_id?: RoomId",
            array(
                select m.user_id from conversation_members m
                where m.conversation_id = c.conversation_id and m.removed_seq is null
                order by m.added_seq, m.user_id
            ) as "members!: Vec<UserId>",
            array(
                select d.subject_id from dead_letters d
                join conversation_members m on m.conversation_id = d.conversation_id and m.user_id = d.subject_id
                    and m.removed_seq is null
                where d.conversation_id = c.conversation_id and d.kind = 'invite'
            ) as "not_invited!: Vec<UserId>"
        from conversations c
        left join matrix_room_mappings r on r.conversation_id = c.conversation_id
        where c.conversation_id = any($1)
        order by c.conversation_id desc
        "#,
        &ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut contacts: HashMap<ConversationId, Vec<Contact>> = HashMap::new();
    for row in sqlx::query!(
        r#"
        select x.conversation_id as "conversation_id!: ConversationId", x.contact_id as "contact_id!: UserId",
            x.matrix_user_id as "matrix_user_id!", x.display_name
        from unnest($1::uuid[]) as c (conversation_id)
        cross join lateral (
            select * from conversation_contacts k
            where k.conversation_id = c.conversation_id and k.present
            order by k.first_seen_at, k.contact_id
            limit $2
        ) x
        "#,
        &ids,
        MAX_CONTACTS,
    )
    .fetch_all(conn)
    .await?
    {
        contacts.entry(row.conversation_id).or_default().push(Contact {
            contact_id: row.contact_id,
            matrix_user_id: row.matrix_user_id,
            display_name: row.display_name,
        });
    }
    let conversation = |row: Row| Conversation {
        contacts: contacts.remove(&row.conversation_id).unwrap_or_default(),
        conversation_id: row.conversation_id,
        name: row.name,
        created_by: row.created_by,
        created_at: row.created_at,
        members: row.members,
        room_id: row.room_id,
        not_invited: row.not_invited,
    };
    Ok(rows.into_iter().map(conversation).collect())
}
