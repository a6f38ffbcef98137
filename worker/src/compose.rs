//! From a claimed operation to what it says: opens what is sealed, and finds the events that it relates to.

use std::collections::HashMap;

use ruma::{OwnedUserId, events::Mentions};
use shared::{
    calls::{CallError, SignalKind},
    chat::{self, Content},
    ids::{ConversationId, EventId, MatrixUserId, MessageId, OutboxId, RoomId, UserId},
    outbox::{self, ClaimedOperation, Related},
    seal::{KeyRing, Place, SealError},
};

use crate::prepare::{self, Answers, Prepared, Reacting, Said, calls::Signalled};

/// Why there is nothing to send.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ComposeError {
    #[error("what the operation says is missing")]
    Missing,
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Content(#[from] serde_json::Error),
}

/// What composing works with: a batch's conversation, and the events that it has brought about so far.
#[derive(Debug)]
pub(crate) struct Composer<'a> {
    pub(crate) keys: &'a KeyRing,
    /// The server of our users' accounts.
    pub(crate) server: &'a str,
    pub(crate) conversation_id: ConversationId,
    pub(crate) events: &'a HashMap<OutboxId, EventId>,
    /// The names of those whom it mentions and who are no users of ours.
    pub(crate) contacts: HashMap<UserId, MatrixUserId>,
}

impl Composer<'_> {
    /// Whom an operation mentions.
    pub(crate) fn mentioned(&self, operation: &ClaimedOperation) -> Result<Vec<UserId>, ComposeError> {
        if !operation.rich {
            return Ok(Vec::new());
        }
        Ok(self.content(operation)?.mentions.users)
    }

    /// The event that an edit or a reaction is about.
    pub(crate) fn original<'o>(&'o self, operation: &'o ClaimedOperation) -> Option<&'o EventId> {
        let known = operation.original.as_ref().map(|(event_id, _)| event_id);
        known.or_else(|| self.events.get(operation.original_outbox_id.as_ref()?))
    }

    /// A message for that room.
    pub(crate) fn message(&self, operation: &ClaimedOperation, room_id: &RoomId) -> Result<Prepared, ComposeError> {
        let content = self.content(operation)?;
        let answers = Answers {
            thread: operation.thread_of.as_ref().and_then(|related| self.related(related, room_id)),
            reply_to: operation
                .reply_to
                .as_ref()
                .filter(|related| !related.deleted)
                .and_then(|related| self.related(related, room_id)),
        };
        Ok(prepare::message(&self.said(operation, &content)?, &answers)?)
    }

    /// An edit of that event.
    pub(crate) fn edit(&self, operation: &ClaimedOperation, original: &EventId) -> Result<Prepared, ComposeError> {
        let content = self.content(operation)?;
        let mut alerted = content.mentions.clone();
        if let Some(previous) = &operation.previous {
            let place = self.place(operation, previous.revision);
            alerted = alerted.beyond(&Content::open(self.keys, place, &previous.body, previous.rich)?.mentions);
        }
        Ok(prepare::edit(&self.said(operation, &content)?, original, self.mentions(&alerted))?)
    }

    /// A reaction to that event.
    pub(crate) fn reaction(&self, operation: &ClaimedOperation, to: &EventId) -> Result<Prepared, ComposeError> {
        let reaction = operation.reaction.as_ref().ok_or(ComposeError::Missing)?;
        let sealed = reaction.key.as_ref().ok_or(ComposeError::Missing)?;
        let reaction = Reacting {
            outbox_id: operation.outbox_id,
            reaction_id: reaction.reaction_id,
            reactor_id: reaction.reactor_id,
            key: &chat::open_reaction_key(self.keys, self.conversation_id, reaction.reaction_id, sealed)?,
        };
        Ok(prepare::reaction(&reaction, to)?)
    }

    /// What was said in a call. `None` for an invite that is not worth sending any more.
    pub(crate) fn call(
        &self,
        operation: &ClaimedOperation,
        kind: SignalKind,
    ) -> Result<Option<Prepared>, ComposeError> {
        let call = operation.call.as_ref().ok_or(ComposeError::Missing)?;
        let first = call.signals.first().ok_or(ComposeError::Missing)?;
        let lifetime = match (kind, call.rings_for()) {
            (SignalKind::Invite, None) => return Ok(None),
            (_, left) => left.unwrap_or_default(),
        };
        let mut contents = Vec::with_capacity(call.signals.len());
        for signal in &call.signals {
            contents.extend(outbox::open_signal(self.keys, self.conversation_id, signal)?);
        }
        let invitee = call.invitee.clone().or_else(|| Some(MatrixUserId::of(call.invitee_id?, self.server)));
        let signalled = Signalled {
            outbox_id: operation.outbox_id,
            call_id: &call.matrix_call_id,
            kind,
            party_id: first.party_id.as_deref().ok_or(ComposeError::Missing)?,
            author_id: first.author_id,
            contents,
            detail: first.detail.as_deref(),
            lifetime,
            invitee,
        };
        Ok(Some(prepare::calls::event(&signalled)?))
    }

    fn place(&self, operation: &ClaimedOperation, revision: i32) -> Place {
        let message_id = MessageId::from(operation.subject_id);
        Place { conversation_id: self.conversation_id, message_id, revision }
    }

    fn content(&self, operation: &ClaimedOperation) -> Result<Content, ComposeError> {
        let place = operation.place(self.conversation_id).ok_or(ComposeError::Missing)?;
        let body = operation.body.as_deref().ok_or(ComposeError::Missing)?;
        Ok(Content::open(self.keys, place, body, operation.rich)?)
    }

    fn said<'c>(&self, operation: &ClaimedOperation, content: &'c Content) -> Result<Said<'c>, ComposeError> {
        Ok(Said {
            outbox_id: operation.outbox_id,
            message_id: MessageId::from(operation.subject_id),
            author_id: operation.author_id.ok_or(ComposeError::Missing)?,
            revision: operation.revision.ok_or(ComposeError::Missing)?,
            kind: operation.message_kind.unwrap_or_default(),
            content,
            mentions: self.mentions(&content.mentions),
        })
    }

    fn mentions(&self, mentions: &chat::Mentions) -> Mentions {
        let name = |user| self.contacts.get(user).cloned().unwrap_or_else(|| MatrixUserId::of(*user, self.server));
        let users = mentions.users.iter().map(name);
        // A name that Matrix does not take alerts nobody.
        let mut named = Mentions::with_user_ids(users.filter_map(|user| OwnedUserId::try_from(user.as_str()).ok()));
        named.room = mentions.room;
        named
    }

    /// The event of a message that is related to, if it stands in this room: a relation does not reach into another. One of
    /// the same batch stands where this one goes.
    fn related(&self, related: &Related, room_id: &RoomId) -> Option<EventId> {
        match &related.event {
            Some((event_id, stands_in)) => (stands_in == room_id).then(|| event_id.clone()),
            None => self.events.get(related.outbox_id.as_ref()?).cloned(),
        }
    }
}
