//! Reactions: who answers a message with an emoji or a short word.
//!
//! One account speaks for all our users, and a homeserver takes each key from an account only once for a message
//! (`M_DUPLICATE_ANNOTATION`). So of our users' reactions with one key to one message one has an operation: it stands in
//! the room for all of them. When it is removed, the next of them gets an operation of its own, behind the redaction.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{ChatError, Turn};
use crate::{
    events::{self, EventKind},
    ids::{ConversationId, LaneId, MessageId, OutboxId, ReactionId, UserId},
    outbox::{self, Sending},
    seal::{KeyRing, Place, SealError},
};

/// How many reactions a message takes through the API, and how many are shown of it. Reading a page of messages opens
/// them all.
pub const MAX_REACTIONS: usize = 500;

/// How many of them may be one user's.
pub const MAX_REACTIONS_OF_ONE: usize = 20;

/// The reactions to a message, as many as [`MAX_REACTIONS`]: a tally for each key, in the order in which keys came.
pub type Reactions = Vec<Tally>;

/// Who reacted with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The emoji or word.
    pub key: String,
    /// Who reacted with it, in the order in which they did.
    pub reactors: Vec<UserId>,
}

/// What a wish to react did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reacted {
    /// The user had reacted with this key before.
    Already,
    /// The reaction is there.
    Added {
        /// Its id.
        reaction_id: ReactionId,
        /// How many live operations the lane has now, when one was enqueued.
        open: Option<i32>,
    },
}

/// What a wish to take a reaction back did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreacted {
    /// There was none.
    NotThere,
    /// It is gone.
    Removed {
        /// Its id.
        reaction_id: ReactionId,
        /// True when a worker has something to send for it.
        to_send: bool,
    },
}

/// Where a reaction's key is sealed to.
pub(crate) fn place(conversation_id: ConversationId, reaction_id: ReactionId) -> Place {
    Place { conversation_id, message_id: MessageId::from(reaction_id.as_uuid()), revision: 1 }
}

/// Opens the key of a reaction.
pub fn open_reaction_key(
    keys: &KeyRing,
    conversation_id: ConversationId,
    reaction_id: ReactionId,
    sealed: &[u8],
) -> Result<String, SealError> {
    keys.open(place(conversation_id, reaction_id), sealed)
}

/// A reaction that was not removed.
struct Present {
    reaction_id: ReactionId,
    reactor_id: UserId,
    from_matrix: bool,
    key: String,
    send_outbox_id: Option<OutboxId>,
}

struct PresentRow {
    message_id: MessageId,
    reaction_id: ReactionId,
    reactor_id: UserId,
    from_matrix: bool,
    key: Option<Vec<u8>>,
    send_outbox_id: Option<OutboxId>,
}

/// The reactions to messages that were not removed, each message's oldest first.
async fn present(
    conn: &mut PgConnection,
    keys: &KeyRing,
    conversation_id: ConversationId,
    messages: &[Uuid],
) -> Result<Vec<(MessageId, Present)>, ChatError> {
    let rows = sqlx::query_as!(
        PresentRow,
        r#"
        select r.message_id as "message_id!: MessageId", r.reaction_id as "reaction_id!: ReactionId",
            r.reactor_id as "reactor_id!: UserId", r.origin = 'matrix' as "from_matrix!", r.key,
            r.send_outbox_id as "send_outbox_id: OutboxId"
        from unnest($2::uuid[]) as m (message_id)
        cross join lateral (
            select * from message_reactions
            where message_reactions.conversation_id = $1 and message_reactions.message_id = m.message_id
                and message_reactions.removed_at is null
            order by message_reactions.reaction_id
            limit $3
        ) r
        "#,
        conversation_id.as_uuid(),
        messages,
        i64::try_from(MAX_REACTIONS).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let sealed = row.key.ok_or(SealError::Damaged)?;
            let present = Present {
                reaction_id: row.reaction_id,
                reactor_id: row.reactor_id,
                from_matrix: row.from_matrix,
                key: open_reaction_key(keys, conversation_id, row.reaction_id, &sealed)?,
                send_outbox_id: row.send_outbox_id,
            };
            Ok((row.message_id, present))
        })
        .collect()
}

/// Reads the reactions to messages of one conversation, in one statement.
pub(super) async fn attach(
    conn: &mut PgConnection,
    keys: &KeyRing,
    conversation_id: ConversationId,
    messages: &mut [super::Message],
) -> Result<(), ChatError> {
    let ids: Vec<Uuid> = messages.iter().map(|message| message.message_id.as_uuid()).collect();
    let mut tallies: HashMap<MessageId, Reactions> = HashMap::new();
    for (message_id, reaction) in present(conn, keys, conversation_id, &ids).await? {
        let of_message = tallies.entry(message_id).or_default();
        match of_message.iter_mut().find(|tally| tally.key == reaction.key) {
            Some(tally) => tally.reactors.push(reaction.reactor_id),
            None => of_message.push(Tally { key: reaction.key, reactors: vec![reaction.reactor_id] }),
        }
    }
    for message in messages {
        message.reactions = tallies.remove(&message.message_id).unwrap_or_default();
    }
    Ok(())
}

/// A reaction, as it stands in the database.
#[derive(Debug, Clone)]
pub struct StoredReaction {
    /// Its id.
    pub reaction_id: ReactionId,
    /// The message.
    pub message_id: MessageId,
    /// The user or contact whose it is.
    pub reactor_id: UserId,
    /// The emoji or word; none once it was removed.
    pub key: Option<String>,
}

/// Reads some reactions of a conversation, removed ones too, for whoever has made sure of the reader's right to them. Those
/// that are not there are left out; one whose key cannot be opened is an error beside the others.
pub async fn reactions_of(
    conn: &mut PgConnection,
    keys: &KeyRing,
    conversation_id: ConversationId,
    ids: &[ReactionId],
) -> Result<Vec<Result<StoredReaction, ChatError>>, sqlx::Error> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
    let rows = sqlx::query!(
        r#"
        select reaction_id as "reaction_id: ReactionId", message_id as "message_id: MessageId",
            reactor_id as "reactor_id: UserId", key
        from message_reactions
        where conversation_id = $1 and reaction_id = any($2)
        "#,
        conversation_id.as_uuid(),
        &ids,
    )
    .fetch_all(conn)
    .await?;
    let opened = rows.into_iter().map(|row| {
        let open = |sealed: Vec<u8>| open_reaction_key(keys, conversation_id, row.reaction_id, &sealed);
        Ok(StoredReaction {
            reaction_id: row.reaction_id,
            message_id: row.message_id,
            reactor_id: row.reactor_id,
            key: row.key.map(open).transpose()?,
        })
    });
    Ok(opened.collect())
}

/// A user reacts to a message. `to_matrix` is false when nothing new is meant for Matrix.
pub async fn add_reaction(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    message_id: MessageId,
    reactor_id: UserId,
    key: &str,
    to_matrix: bool,
) -> Result<Reacted, ChatError> {
    let conversation_id = turn.conversation_id;
    let deleted = sqlx::query_scalar!(
        r#"
        select deleted_at is not null as "deleted!" from messages where conversation_id = $1 and message_id = $2
        "#,
        conversation_id.as_uuid(),
        message_id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?
    .ok_or(ChatError::NoSuchMessage)?;
    if deleted {
        return Err(ChatError::Deleted);
    }
    let present = present(conn, keys, conversation_id, &[message_id.as_uuid()]).await?;
    let of_reactor = || present.iter().filter(|(_, reaction)| reaction.reactor_id == reactor_id);
    if of_reactor().any(|(_, reaction)| reaction.key == key) {
        return Ok(Reacted::Already);
    }
    if present.len() >= MAX_REACTIONS || of_reactor().count() >= MAX_REACTIONS_OF_ONE {
        return Err(ChatError::TooManyReactions);
    }
    let with_key = present.iter().filter(|(_, reaction)| !reaction.from_matrix && reaction.key == key);
    let standing: Vec<OutboxId> = with_key.filter_map(|(_, reaction)| reaction.send_outbox_id).collect();
    let sending =
        if to_matrix { outbox::react(conn, turn, message_id, reactor_id, &standing).await? } else { Sending::Nothing };
    let reaction_id = ReactionId::generate();
    sqlx::query!(
        r#"
        insert into message_reactions (conversation_id, reaction_id, message_id, reactor_id, origin, key,
            send_outbox_id, created_at)
        values ($1, $2, $3, $4, 'nova', $5, $6, $7)
        "#,
        conversation_id.as_uuid(),
        reaction_id.as_uuid(),
        message_id.as_uuid(),
        reactor_id.as_uuid(),
        keys.seal(place(conversation_id, reaction_id), key)?,
        sending.outbox_id().map(OutboxId::as_uuid),
        turn.at,
    )
    .execute(&mut *conn)
    .await?;
    events::record(conn, conversation_id, EventKind::ReactionAdded, reaction_id.as_uuid()).await?;
    Ok(Reacted::Added { reaction_id, open: sending.open() })
}

/// A user takes a reaction back.
pub async fn remove_reaction(
    conn: &mut PgConnection,
    turn: &mut Turn,
    keys: &KeyRing,
    message_id: MessageId,
    reactor_id: UserId,
    key: &str,
) -> Result<Unreacted, ChatError> {
    let present = present(conn, keys, turn.conversation_id, &[message_id.as_uuid()]).await?;
    let with_key = || present.iter().map(|(_, reaction)| reaction).filter(|reaction| reaction.key == key);
    let mut mine = with_key().filter(|reaction| reaction.reactor_id == reactor_id);
    let Some(reaction) = mine.next() else { return Ok(Unreacted::NotThere) };
    if reaction.from_matrix {
        return Err(ChatError::MadeOnMatrix);
    }
    // A settle writes event ids onto reactions with the lane locked: in the same order here.
    outbox::lock_lane(conn, turn.conversation_id, LaneId::from(turn.conversation_id)).await?;
    delete_reaction(conn, turn, reaction.reaction_id).await?;
    let removed = |to_send| Unreacted::Removed { reaction_id: reaction.reaction_id, to_send };
    let Some(outbox_id) = reaction.send_outbox_id else { return Ok(removed(false)) };
    let redacting = outbox::unreact(conn, turn, message_id, outbox_id).await?;
    let next = with_key().find(|other| {
        !other.from_matrix && other.send_outbox_id.is_none() && other.reaction_id != reaction.reaction_id
    });
    let Some(next) = next else { return Ok(removed(redacting)) };
    if redacting {
        turn.advance(conn).await?;
    }
    let sending = outbox::react(conn, turn, message_id, next.reactor_id, &[]).await?;
    sqlx::query!(
        r#"
        update message_reactions set send_outbox_id = $3
        where conversation_id = $1 and reaction_id = $2 and send_outbox_id is null
        "#,
        turn.conversation_id.as_uuid(),
        next.reaction_id.as_uuid(),
        sending.outbox_id().map(OutboxId::as_uuid),
    )
    .execute(conn)
    .await?;
    Ok(removed(redacting || sending.open().is_some()))
}

/// The reactions to a message that is deleted go with it. Before what becomes of their operations is decided.
pub(crate) async fn wipe(conn: &mut PgConnection, turn: &Turn, message_id: MessageId) -> Result<(), sqlx::Error> {
    outbox::lock_lane(conn, turn.conversation_id, LaneId::from(turn.conversation_id)).await?;
    sqlx::query!(
        r#"
        update message_reactions set key = null, removed_at = $3
        where conversation_id = $1 and message_id = $2 and removed_at is null
        "#,
        turn.conversation_id.as_uuid(),
        message_id.as_uuid(),
        turn.at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The event of an operation was redacted by somebody else: the reactions for which it stood, all with its key, are gone.
pub(crate) async fn delete_redacted_reactions(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    message_id: MessageId,
    outbox_id: OutboxId,
) -> Result<bool, ChatError> {
    outbox::lock_lane(conn, turn.conversation_id, LaneId::from(turn.conversation_id)).await?;
    let present = present(conn, keys, turn.conversation_id, &[message_id.as_uuid()]).await?;
    let Some(key) = present.iter().find(|(_, reaction)| reaction.send_outbox_id == Some(outbox_id)) else {
        return Ok(false);
    };
    let key = key.1.key.clone();
    let with_key = present.iter().filter(|(_, reaction)| !reaction.from_matrix && reaction.key == key);
    for reaction_id in with_key.map(|(_, reaction)| reaction.reaction_id) {
        delete_reaction(conn, turn, reaction_id).await?;
    }
    Ok(true)
}

/// A reaction goes, if it is still there.
pub(crate) async fn delete_reaction(
    conn: &mut PgConnection,
    turn: &Turn,
    reaction_id: ReactionId,
) -> Result<bool, sqlx::Error> {
    let removed = sqlx::query!(
        r#"
        update message_reactions set key = null, removed_at = $3
        where conversation_id = $1 and reaction_id = $2 and removed_at is null
        "#,
        turn.conversation_id.as_uuid(),
        reaction_id.as_uuid(),
        turn.at,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if removed == 1 {
        events::record(conn, turn.conversation_id, EventKind::ReactionRemoved, reaction_id.as_uuid()).await?;
    }
    Ok(removed == 1)
}
