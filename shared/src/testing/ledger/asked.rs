//! What clients asked of the API, and what they were answered.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use uuid::Uuid;

/// A record of everything that was asked, to be shared among all clients of a test.
///
/// A request is entered *before* it is made. Its handle then takes the answer; one that is dropped without an answer leaves
/// the request open: it may have been committed or not, and the ledger accepts both.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    book: Arc<Mutex<Book>>,
}

/// What a `DELETE` was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It had not been handed to a sender: it never leaves.
    Cancelled,
    /// It was handed out or delivered: a redaction follows.
    Redacting,
}

/// How far a request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome<T> {
    /// No answer, so far or ever.
    Unknown,
    Refused,
    Answered(T),
}

#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) conversations: BTreeMap<Uuid, Conversation>,
    pub(super) posts: Vec<PostRecord>,
    /// By message, key and user.
    pub(super) reactions: BTreeMap<(Uuid, String, Uuid), Wanted>,
    /// Events that others than us sent on Matrix.
    pub(super) outside_events: BTreeSet<String>,
    /// Matrix users whose membership is nobody's business here.
    pub(super) outsiders: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) members: BTreeMap<Uuid, Wanted>,
}

/// Where a member, or a reaction, should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    In,
    Out,
    Either,
}

#[derive(Debug)]
pub(super) struct PostRecord {
    pub(super) conversation: Uuid,
    pub(super) author: Uuid,
    pub(super) text: String,
    pub(super) reply_to: Option<Uuid>,
    pub(super) outcome: Outcome<Committed>,
    pub(super) edits: Vec<EditRecord>,
    pub(super) deletion: Option<Outcome<Deletion>>,
    pub(super) event_id: Option<String>,
    pub(super) may_be_missing: bool,
    pub(super) may_be_late: bool,
}

/// What the API said of a message that it committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) message_id: Uuid,
    pub(super) seq: i64,
}

#[derive(Debug)]
pub(super) struct EditRecord {
    pub(super) text: String,
    /// Answered with the revision that it made.
    pub(super) outcome: Outcome<i64>,
}

impl PostRecord {
    pub(super) fn committed(&self) -> Option<Committed> {
        match self.outcome {
            Outcome::Answered(committed) => Some(committed),
            Outcome::Unknown | Outcome::Refused => None,
        }
    }

    /// All texts that it may ever have had.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let edits = self.edits.iter().filter(|edit| edit.outcome != Outcome::Refused);
        std::iter::once(self.text.as_str()).chain(edits.map(|edit| edit.text.as_str()))
    }

    /// The revision and text that the API last confirmed.
    pub(super) fn confirmed(&self) -> (i64, &str) {
        let edits = self.edits.iter().filter_map(|edit| match edit.outcome {
            Outcome::Answered(revision) => Some((revision, edit.text.as_str())),
            Outcome::Unknown | Outcome::Refused => None,
        });
        edits.chain([(1, self.text.as_str())]).max_by_key(|(revision, _)| *revision).unwrap_or_default()
    }

    /// Edits of which nobody knows whether they were committed.
    pub(super) fn open_edits(&self) -> impl Iterator<Item = &str> {
        self.edits.iter().filter(|edit| edit.outcome == Outcome::Unknown).map(|edit| edit.text.as_str())
    }
}

impl Asked {
    /// An empty record.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// A conversation was created with these members, the creator among them.
    pub fn conversation(&self, conversation: impl Into<Uuid>, members: &[Uuid]) {
        let members = members.iter().map(|&member| (member, Wanted::In)).collect();
        self.book().conversations.insert(conversation.into(), Conversation { members });
    }

    /// A message is about to be posted.
    pub fn post(&self, conversation: impl Into<Uuid>, author: impl Into<Uuid>, text: &str) -> Post {
        let mut book = self.book();
        book.posts.push(PostRecord {
            conversation: conversation.into(),
            author: author.into(),
            text: text.to_owned(),
            reply_to: None,
            outcome: Outcome::Unknown,
            edits: Vec::new(),
            deletion: None,
            event_id: None,
            may_be_missing: false,
            may_be_late: false,
        });
        Post { asked: self.clone(), index: book.posts.len() - 1 }
    }

    /// A message was posted, and answered with this id and sequence number.
    pub fn posted(
        &self,
        conversation: impl Into<Uuid>,
        author: impl Into<Uuid>,
        message_id: impl Into<Uuid>,
        seq: i64,
        text: &str,
    ) {
        self.post(conversation, author, text).answered(message_id, seq);
    }

    /// A message is about to be edited.
    pub fn edit(&self, message_id: impl Into<Uuid>, text: &str) -> Edit {
        let (post, index) = self.of_message(message_id.into(), |index, post| {
            post.edits.push(EditRecord { text: text.to_owned(), outcome: Outcome::Unknown });
            (index, post.edits.len() - 1)
        });
        Edit { asked: self.clone(), post, index }
    }

    /// A message is about to be deleted.
    pub fn delete(&self, message_id: impl Into<Uuid>) -> Delete {
        let (post, before) = self.of_message(message_id.into(), |index, post| {
            let before = post.deletion;
            post.deletion = before.or(Some(Outcome::Unknown));
            (index, before)
        });
        Delete { asked: self.clone(), post, before }
    }

    /// A user is about to react to a message.
    pub fn react(&self, message_id: impl Into<Uuid>, user: impl Into<Uuid>, key: &str) -> ReactionChange {
        self.change_reaction((message_id.into(), key.to_owned(), user.into()), Wanted::In)
    }

    /// A user is about to take a reaction back.
    pub fn unreact(&self, message_id: impl Into<Uuid>, user: impl Into<Uuid>, key: &str) -> ReactionChange {
        self.change_reaction((message_id.into(), key.to_owned(), user.into()), Wanted::Out)
    }

    fn change_reaction(&self, reaction: (Uuid, String, Uuid), wanted: Wanted) -> ReactionChange {
        let before = self.book().reactions.insert(reaction.clone(), Wanted::Either);
        ReactionChange { asked: self.clone(), reaction, before, wanted }
    }

    /// A member is about to be added.
    pub fn add_member(&self, conversation: impl Into<Uuid>, member: impl Into<Uuid>) -> MemberChange {
        self.change_member(conversation.into(), member.into(), Wanted::In)
    }

    /// A member is about to be removed.
    pub fn remove_member(&self, conversation: impl Into<Uuid>, member: impl Into<Uuid>) -> MemberChange {
        self.change_member(conversation.into(), member.into(), Wanted::Out)
    }

    fn change_member(&self, conversation: Uuid, member: Uuid, wanted: Wanted) -> MemberChange {
        let mut book = self.book();
        let members = &mut book.conversations.entry(conversation).or_default().members;
        let before = members.insert(member, Wanted::Either);
        MemberChange { asked: self.clone(), conversation, member, before, wanted }
    }

    /// A member may have left on Matrix, or come back: the ledger no longer minds.
    pub fn member_went_own_way(&self, conversation: impl Into<Uuid>, member: impl Into<Uuid>) {
        let mut book = self.book();
        book.conversations.entry(conversation.into()).or_default().members.insert(member.into(), Wanted::Either);
    }

    /// The API told the Matrix event of a message.
    pub fn event_id(&self, message_id: impl Into<Uuid>, event_id: &str) {
        self.of_message(message_id.into(), |_, post| post.event_id = Some(event_id.to_owned()));
    }

    /// The API told the Matrix events of these messages.
    pub fn event_ids(&self, told: impl IntoIterator<Item = (Uuid, String)>) {
        let mut told: BTreeMap<Uuid, String> = told.into_iter().collect();
        for post in &mut self.book().posts {
            let event_id = post.committed().and_then(|committed| told.remove(&committed.message_id));
            post.event_id = event_id.or(post.event_id.take());
        }
    }

    /// A message may be missing: it was given up, and an operator knows.
    pub fn given_up(&self, message_id: impl Into<Uuid>) {
        self.of_message(message_id.into(), |_, post| post.may_be_missing = true);
    }

    /// A message was given up and requeued: it is there, but what was delivered meanwhile stays ahead of it.
    pub fn requeued(&self, message_id: impl Into<Uuid>) {
        self.of_message(message_id.into(), |_, post| {
            post.may_be_missing = false;
            post.may_be_late = true;
        });
    }

    /// An event that somebody else sent on Matrix.
    pub fn outside_event(&self, event_id: &str) {
        self.book().outside_events.insert(event_id.to_owned());
    }

    /// A Matrix user who may be in any room or not.
    pub fn outsider(&self, user_id: &str) {
        self.book().outsiders.insert(user_id.to_owned());
    }

    fn of_message<T>(&self, message_id: Uuid, change: impl FnOnce(usize, &mut PostRecord) -> T) -> T {
        let mut book = self.book();
        let is_it = |post: &PostRecord| post.committed().is_some_and(|committed| committed.message_id == message_id);
        let index = book.posts.iter().position(is_it);
        let index = index.unwrap_or_else(|| panic!("message {message_id} was never recorded as posted"));
        change(index, &mut book.posts[index])
    }
}

/// A message whose answer is to come. The same handle serves all tries with one idempotency key.
#[derive(Debug, Clone)]
pub struct Post {
    asked: Asked,
    index: usize,
}

impl Post {
    /// It answers this message.
    #[must_use]
    pub fn replying_to(self, message_id: impl Into<Uuid>) -> Self {
        self.asked.book().posts[self.index].reply_to = Some(message_id.into());
        self
    }

    /// It was committed under this id and sequence number.
    pub fn answered(&self, message_id: impl Into<Uuid>, seq: i64) {
        let committed = Committed { message_id: message_id.into(), seq };
        self.asked.book().posts[self.index].outcome = Outcome::Answered(committed);
    }

    /// It was refused for good: it must not be in the room.
    pub fn refused(&self) {
        self.asked.book().posts[self.index].outcome = Outcome::Refused;
    }
}

/// An edit whose answer is to come.
#[derive(Debug, Clone)]
pub struct Edit {
    asked: Asked,
    post: usize,
    index: usize,
}

impl Edit {
    /// It made this revision; the message as posted is revision 1.
    pub fn answered(&self, revision: i64) {
        self.asked.book().posts[self.post].edits[self.index].outcome = Outcome::Answered(revision);
    }

    /// It was refused: its text must not be in the room.
    pub fn refused(&self) {
        self.asked.book().posts[self.post].edits[self.index].outcome = Outcome::Refused;
    }
}

/// A deletion whose answer is to come.
#[derive(Debug, Clone)]
pub struct Delete {
    asked: Asked,
    post: usize,
    before: Option<Outcome<Deletion>>,
}

impl Delete {
    /// It was done, and this is what was said to happen.
    pub fn answered(&self, deletion: Deletion) {
        self.asked.book().posts[self.post].deletion = Some(Outcome::Answered(deletion));
    }

    /// It was refused: the message stands as it did.
    pub fn refused(&self) {
        self.asked.book().posts[self.post].deletion = self.before;
    }
}

/// A reaction that is made or taken back, and whose answer is to come.
#[derive(Debug, Clone)]
pub struct ReactionChange {
    asked: Asked,
    reaction: (Uuid, String, Uuid),
    before: Option<Wanted>,
    wanted: Wanted,
}

impl ReactionChange {
    /// It was done.
    pub fn answered(self) {
        self.asked.book().reactions.insert(self.reaction, self.wanted);
    }

    /// It was refused: all is as it was.
    pub fn refused(self) {
        let mut book = self.asked.book();
        match self.before {
            Some(before) => book.reactions.insert(self.reaction, before),
            None => book.reactions.remove(&self.reaction),
        };
    }
}

/// A change of membership whose answer is to come.
#[derive(Debug, Clone)]
pub struct MemberChange {
    asked: Asked,
    conversation: Uuid,
    member: Uuid,
    before: Option<Wanted>,
    wanted: Wanted,
}

impl MemberChange {
    /// It was done.
    pub fn answered(&self) {
        self.set(Some(self.wanted));
    }

    /// It was refused: the member is where it was.
    pub fn refused(&self) {
        self.set(self.before);
    }

    fn set(&self, wanted: Option<Wanted>) {
        let mut book = self.asked.book();
        let members = &mut book.conversations.entry(self.conversation).or_default().members;
        match wanted {
            Some(wanted) => members.insert(self.member, wanted),
            None => members.remove(&self.member),
        };
    }
}
