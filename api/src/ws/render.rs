//! From events to frames: what they refer to is read as it is now.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use shared::{
    calls::{self, CallError},
    chat,
    events::{Entry, EventKind},
    ids::{CallId, ConversationId, MessageId, ReactionId, SignalId, UserId},
    metric,
    seal::KeyRing,
};
use sqlx::PgConnection;

use super::{
    calls::CallFrame,
    frames::{Frame, ReactionFrame},
};
use crate::{
    calls::{CallBody, takes_part},
    messages::{MatrixBody, MessageBody, ReactionBody},
};

/// Renders events, in their order, for one reader. To be called in the transaction that has read them: what the reader may
/// see was decided by its snapshot. What cannot be shown any more is left out.
pub(crate) async fn render(
    conn: &mut PgConnection,
    keys: &KeyRing,
    reader: UserId,
    entries: &[Entry],
) -> Result<Vec<Frame>, sqlx::Error> {
    let mut rows = Rows::default();
    for (conversation_id, wanted) in Wanted::of(entries) {
        rows.read(conn, keys, reader, conversation_id, wanted).await?;
    }
    Ok(entries.iter().filter_map(|entry| rows.frame(reader, entry)).collect())
}

/// What events of one conversation refer to.
#[derive(Default)]
struct Wanted {
    messages: BTreeSet<MessageId>,
    reactions: BTreeSet<ReactionId>,
    signals: BTreeSet<SignalId>,
    calls: BTreeSet<CallId>,
    conversation: bool,
}

impl Wanted {
    fn of(entries: &[Entry]) -> BTreeMap<ConversationId, Self> {
        let mut all: BTreeMap<ConversationId, Self> = BTreeMap::new();
        for entry in entries {
            let wanted = all.entry(entry.conversation_id).or_default();
            match entry.kind {
                Some(
                    EventKind::MessageNew
                    | EventKind::MessageEdited
                    | EventKind::MessageDeleted
                    | EventKind::MessageDelivery,
                ) => {
                    wanted.messages.insert(entry.subject_id.into());
                }
                Some(EventKind::ReactionAdded | EventKind::ReactionRemoved) => {
                    wanted.reactions.insert(entry.subject_id.into());
                }
                Some(EventKind::CallSignal) => {
                    wanted.signals.insert(entry.subject_id.into());
                }
                Some(EventKind::ConversationNew) => wanted.conversation = true,
                Some(EventKind::CallUpdated) => {
                    wanted.calls.insert(entry.subject_id.into());
                }
                Some(EventKind::MemberAdded | EventKind::MemberRemoved) | None => {}
            }
        }
        all
    }
}

/// What events refer to, as it is now.
#[derive(Default)]
struct Rows {
    messages: HashMap<MessageId, chat::Message>,
    reactions: HashMap<ReactionId, chat::StoredReaction>,
    signals: HashMap<SignalId, calls::StoredSignal>,
    calls: HashMap<CallId, calls::Call>,
    conversations: HashMap<ConversationId, chat::Conversation>,
}

impl Rows {
    async fn read(
        &mut self,
        conn: &mut PgConnection,
        keys: &KeyRing,
        reader: UserId,
        conversation_id: ConversationId,
        mut wanted: Wanted,
    ) -> Result<(), sqlx::Error> {
        if !wanted.reactions.is_empty() {
            let ids: Vec<ReactionId> = wanted.reactions.into_iter().collect();
            for reaction in chat::reactions_of(conn, keys, conversation_id, &ids).await? {
                let Some(reaction) = readable(reaction) else { continue };
                wanted.messages.insert(reaction.message_id);
                self.reactions.insert(reaction.reaction_id, reaction);
            }
        }
        if !wanted.messages.is_empty() {
            let ids: Vec<MessageId> = wanted.messages.into_iter().collect();
            let messages = chat::messages_of(conn, keys, conversation_id, &ids).await?;
            let messages = messages.into_iter().filter_map(readable);
            self.messages.extend(messages.map(|message| (message.message_id, message)));
        }
        for signal_id in wanted.signals {
            match calls::signal(conn, keys, conversation_id, signal_id).await {
                Err(CallError::Database(error)) => return Err(error),
                signal => {
                    let signal = readable(signal).flatten().filter(|signal| signal.is_for(reader));
                    self.signals.extend(signal.map(|signal| (signal_id, signal)));
                }
            }
        }
        if !wanted.calls.is_empty() {
            let ids: Vec<CallId> = wanted.calls.into_iter().collect();
            let found = calls::calls_of(conn, conversation_id, &ids, reader).await?.into_iter();
            self.calls.extend(found.filter(|call| takes_part(call, reader)).map(|call| (call.call_id, call)));
        }
        if wanted.conversation {
            let found = chat::conversations_of(conn, &[conversation_id]).await?;
            self.conversations.extend(found.into_iter().map(|found| (conversation_id, found)));
        }
        Ok(())
    }

    fn frame(&self, reader: UserId, entry: &Entry) -> Option<Frame> {
        let Entry { position: cursor, conversation_id, kind, subject_id } = *entry;
        let kind = kind?;
        let message = || {
            let message = self.messages.get(&subject_id.into())?;
            Some(Box::new(MessageBody::read_by(reader, message.clone())))
        };
        Some(match kind {
            EventKind::MessageNew => Frame::MessageNew { cursor, conversation_id, message: message()? },
            EventKind::MessageEdited => Frame::MessageEdited { cursor, conversation_id, message: message()? },
            EventKind::MessageDeleted => Frame::MessageDeleted { cursor, conversation_id, message: message()? },
            EventKind::MessageDelivery => {
                let message = self.messages.get(&subject_id.into())?;
                let matrix = MatrixBody::of(message);
                Frame::MessageDelivery { cursor, conversation_id, message_id: message.message_id, matrix }
            }
            EventKind::ConversationNew => {
                let conversation = Box::new(self.conversations.get(&conversation_id)?.clone().into());
                Frame::ConversationNew { cursor, conversation_id, conversation }
            }
            EventKind::MemberAdded => Frame::MemberAdded { cursor, conversation_id, user_id: subject_id.into() },
            EventKind::MemberRemoved => Frame::MemberRemoved { cursor, conversation_id, user_id: subject_id.into() },
            EventKind::ReactionAdded => Frame::ReactionAdded(self.reaction(reader, entry)?),
            EventKind::ReactionRemoved => Frame::ReactionRemoved(self.reaction(reader, entry)?),
            EventKind::CallSignal => {
                let call = CallFrame::of(self.signals.get(&subject_id.into())?.clone())?;
                Frame::Call { call, cursor, conversation_id }
            }
            EventKind::CallUpdated => {
                let call = self.calls.get(&subject_id.into())?.clone();
                Frame::CallUpdated { cursor, conversation_id, call: Box::new(CallBody::read_by(reader, call)) }
            }
        })
    }

    fn reaction(&self, reader: UserId, entry: &Entry) -> Option<ReactionFrame> {
        let reaction = self.reactions.get(&entry.subject_id.into())?;
        let tallies = self.messages.get(&reaction.message_id).map(|message| message.reactions.clone());
        let tallies = tallies.unwrap_or_default().into_iter();
        Some(ReactionFrame {
            cursor: entry.position,
            conversation_id: entry.conversation_id,
            message_id: reaction.message_id,
            reaction_id: reaction.reaction_id,
            user_id: reaction.reactor_id,
            key: reaction.key.clone(),
            reactions: tallies.map(|tally| ReactionBody::read_by(reader, tally)).collect(),
        })
    }
}

/// One damaged content must not keep a client from all that follows.
fn readable<T, E: std::fmt::Display>(read: Result<T, E>) -> Option<T> {
    read.inspect_err(|error| {
        metric::WS_FRAMES_UNREADABLE.increment(1);
        tracing::error!(%error, "an event is not shown: its content cannot be opened");
    })
    .ok()
}
