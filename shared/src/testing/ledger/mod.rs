//! The ledger: what clients were answered, against what stands in the rooms.
//!
//! It knows two things only: the API's answers as its clients got them ([`Asked`]), and the rooms as a Matrix client reads
//! them, page by page. The outbox's tables are not asked, so that they cannot vouch for themselves.
//!
//! It promises to find, each by name ([`Discrepancy`]): messages that are missing, doubled or out of order; texts that are
//! not the last ones; reactions and replies that are missing, doubled or aimed at something else; what was deleted and can still be read, in an original, an edit or anywhere else; what nobody asked
//! for; members who are not as asked; conversations without a room or with several.
//!
//! A request without an answer may have been committed or not: both are accepted, once. A redacted event no longer says what
//! it was, so of those only the number is checked. Call events are checked for being there once; their content is not.
mod asked;
mod audit;
mod related;

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use uuid::Uuid;

pub use asked::{Asked, Delete, Deletion, Edit, MemberChange, Post, ReactionChange};

use super::matrix_client::{MatrixClient, MatrixEvent, MatrixResult};
use asked::{Book, Deletion as Deleted, Outcome};
use audit::{Audit, RoomReading};

/// Between two looks of [`Ledger::settled_within`].
const PAUSE: Duration = Duration::from_millis(50);

/// How many of a room's events a report shows.
const SHOWN_EVENTS: usize = 60;

/// The Matrix user of a Nova user.
pub fn matrix_user(user: Uuid, server_name: &str) -> String {
    format!("@nova-{}:{server_name}", user.simple())
}

/// The alias of a conversation's room.
pub fn conversation_alias(conversation: Uuid, server_name: &str) -> String {
    format!("#nova-conv-{conversation}:{server_name}")
}

/// Who sends for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Senders {
    /// One account sends everything: its full user id.
    ServiceAccount(String),
    /// Each Nova user has an account; the service's own full user id.
    Ghosts(String),
}

impl Senders {
    fn service_user(&self) -> &str {
        match self {
            Self::ServiceAccount(user) | Self::Ghosts(user) => user,
        }
    }

    fn is_ours(&self, sender: &str) -> bool {
        sender == self.service_user() || (matches!(self, Self::Ghosts(_)) && sender.starts_with("@nova-"))
    }

    fn of(&self, author: Uuid, server_name: &str) -> String {
        match self {
            Self::ServiceAccount(user) => user.clone(),
            Self::Ghosts(_) => matrix_user(author, server_name),
        }
    }
}

/// One thing that is not as it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what the messages print")]
pub enum Discrepancy {
    /// An acknowledged message is not in the room.
    #[error("missing: message {message_id} {text:?} of conversation {conversation}")]
    Missing { conversation: Uuid, message_id: Uuid, text: String },
    /// A message or one revision of it is there twice.
    #[error("doubled: message {message_id} as {first} and {second}")]
    Doubled { message_id: Uuid, first: String, second: String },
    /// Two events carry the same operation's marker.
    #[error("doubled: operation {outbox_id} as {first} and {second}")]
    DoubledOperation { outbox_id: Uuid, first: String, second: String },
    /// A message stands behind one that was posted after it.
    #[error("reordered: message {message_id} (seq {seq}) stands behind {ahead} (seq {ahead_seq})")]
    Reordered { message_id: Uuid, seq: i64, ahead: Uuid, ahead_seq: i64 },
    /// What is shown is not the last confirmed text.
    #[error("wrong text: message {message_id} shows {found:?} ({event_id}), not revision {revision} {expected:?}")]
    WrongText { message_id: Uuid, event_id: String, found: String, expected: String, revision: i64 },
    /// A text that nobody gave the message, whether it is shown or not.
    #[error("unasked text: {event_id} of message {message_id} says {found:?}")]
    UnaskedText { message_id: Uuid, event_id: String, found: String },
    /// An edit of something else than the message's own original, or by another sender.
    #[error("misaimed edit: {event_id} of message {message_id} does not replace its original")]
    MisaimedEdit { message_id: Uuid, event_id: String },
    /// The sender or the author in the content is another.
    #[error("wrong author: {event_id} of message {message_id} is not by {author}")]
    WrongAuthor { message_id: Uuid, event_id: String, author: Uuid },
    /// The API told another event id than the one in the room.
    #[error("wrong event id: message {message_id} is {found}, the API says {told}")]
    WrongEventId { message_id: Uuid, told: String, found: String },
    /// A message whose deletion was answered `cancelled` is in the room.
    #[error("leaked after cancel: message {message_id} as {event_id}")]
    LeakedAfterCancel { message_id: Uuid, event_id: String },
    /// A message whose deletion was answered `redacting` can still be read.
    #[error("unredacted: {event_id} of deleted message {message_id}{}", if *.is_edit { " (an edit)" } else { "" })]
    Unredacted { message_id: Uuid, event_id: String, is_edit: bool },
    /// The text of a deleted message stands in an event that is not the message's.
    #[error("leaked text: {event_id} contains the text of deleted message {message_id}")]
    LeakedText { message_id: Uuid, event_id: String },
    /// More was redacted than deletions explain: something had leaked, or a message was destroyed.
    #[error("redacted unasked: {redacted} messages of conversation {conversation}, where {allowed} were to be")]
    RedactedUnasked { conversation: Uuid, redacted: usize, allowed: usize },
    /// A confirmed reaction is not in the room.
    #[error("reaction missing: {key:?} to message {message_id}")]
    ReactionMissing { message_id: Uuid, key: String },
    /// A reaction that was taken back still stands.
    #[error("reaction remains: {event_id} is {key:?} to message {message_id}")]
    ReactionRemains { message_id: Uuid, key: String, event_id: String },
    /// A reply does not name the event of what it answers.
    #[error("misaimed reply: {event_id} of message {message_id} names {found:?}, not {expected:?}")]
    MisaimedReply { message_id: Uuid, event_id: String, found: Option<String>, expected: Option<String> },
    /// An event that nobody asked for.
    #[error("foreign: {event_type} {event_id} by {sender} in conversation {conversation}: {why}")]
    Foreign { conversation: Uuid, event_id: String, event_type: String, sender: String, why: &'static str },
    /// A member is neither invited nor joined.
    #[error("member missing: {user_id} of conversation {conversation} (membership: {membership})")]
    MemberMissing { conversation: Uuid, user_id: String, membership: String },
    /// A removed member is still invited or joined.
    #[error("member remains: {user_id} in conversation {conversation}")]
    MemberRemains { conversation: Uuid, user_id: String },
    /// Somebody is in the room whom nobody added.
    #[error("member unasked: {user_id} in conversation {conversation}")]
    MemberUnasked { conversation: Uuid, user_id: String },
    /// A conversation with messages has no room.
    #[error("no room: conversation {conversation}")]
    NoRoom { conversation: Uuid },
    /// A conversation has more than one room.
    #[error("several rooms: conversation {conversation}: {rooms:?}")]
    SeveralRooms { conversation: Uuid, rooms: Vec<String> },
    /// A conversation's alias does not point to its room.
    #[error("misaimed alias: {alias} points to {found:?}, the room is {room}")]
    MisaimedAlias { alias: String, room: String, found: Option<String> },
    /// A room carries no marker of a conversation that was asked for.
    #[error("unasked room: {room} (marker: {marker:?})")]
    UnaskedRoom { room: String, marker: Option<String> },
    /// A room could not be read.
    #[error("unreadable: {what}: {error}")]
    Unreadable { what: String, error: String },
}

/// Which promise a discrepancy breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Something that was confirmed is not there.
    Lost,
    /// Something is there twice.
    Doubled,
    /// Something stands behind what came after it.
    Reordered,
    /// Something can be read, or somebody can read, that should not.
    Leaked,
    /// Something else is not as it was asked.
    Wrong,
}

impl Discrepancy {
    /// Which promise it breaks.
    pub const fn harm(&self) -> Harm {
        match self {
            Self::Missing { .. }
            | Self::WrongText { .. }
            | Self::ReactionMissing { .. }
            | Self::MemberMissing { .. }
            | Self::NoRoom { .. } => Harm::Lost,
            Self::Doubled { .. } | Self::DoubledOperation { .. } | Self::SeveralRooms { .. } => Harm::Doubled,
            Self::Reordered { .. } => Harm::Reordered,
            // What was redacted although nobody was told so had been cancelled, and yet left.
            Self::LeakedAfterCancel { .. }
            | Self::Unredacted { .. }
            | Self::LeakedText { .. }
            | Self::RedactedUnasked { .. }
            | Self::ReactionRemains { .. }
            | Self::MemberRemains { .. } => Harm::Leaked,
            Self::UnaskedText { .. }
            | Self::MisaimedEdit { .. }
            | Self::WrongAuthor { .. }
            | Self::MisaimedReply { .. }
            | Self::WrongEventId { .. }
            | Self::Foreign { .. }
            | Self::MemberUnasked { .. }
            | Self::MisaimedAlias { .. }
            | Self::UnaskedRoom { .. }
            | Self::Unreadable { .. } => Harm::Wrong,
        }
    }
}

/// What was found in good order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Conversations that were asked for.
    pub conversations: usize,
    /// Rooms that were read.
    pub rooms: usize,
    /// Events in them.
    pub events: usize,
    /// Acknowledged messages that stand in them.
    pub messages: usize,
    /// Edits of those.
    pub edits: usize,
    /// Messages and edits that are redacted.
    pub redacted: usize,
    /// Reactions that stand there.
    pub reactions: usize,
    /// Messages there whose post had got no answer.
    pub unanswered: usize,
}

/// What was found, and the rooms in which it was found.
#[derive(Debug, Clone)]
pub struct Report {
    /// All that is not as asked.
    pub discrepancies: Vec<Discrepancy>,
    /// What is.
    pub summary: Summary,
    /// The end of each room that is concerned, a line for each event.
    pub rooms: String,
}

impl Report {
    /// How many discrepancies do this harm.
    pub fn count(&self, harm: Harm) -> usize {
        self.discrepancies.iter().filter(|discrepancy| discrepancy.harm() == harm).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the rooms differ from what was asked in {} places:", self.discrepancies.len())?;
        for discrepancy in &self.discrepancies {
            writeln!(f, "- {discrepancy}")?;
        }
        writeln!(f, "{:?}", self.summary)?;
        f.write_str(&self.rooms)
    }
}

impl std::error::Error for Report {}

/// Reads rooms and compares. See the [module](self).
#[derive(Debug)]
pub struct Ledger {
    asked: Asked,
    reader: MatrixClient,
    senders: Senders,
    is_exclusive: bool,
}

impl Ledger {
    /// Reads as this account, which must be in all the rooms: the service account, or a member who was there from the start.
    pub fn new(asked: &Asked, reader: &MatrixClient, senders: Senders) -> Self {
        Self { asked: asked.clone(), reader: reader.clone(), senders, is_exclusive: false }
    }

    /// The reader is in no rooms but those of the conversations asked for: any other is a discrepancy, above all one that was
    /// left half-made.
    #[must_use]
    pub fn exclusive(mut self) -> Self {
        self.is_exclusive = true;
        self
    }

    /// Compares now.
    pub async fn check(&self) -> Result<Summary, Report> {
        let server_name = self.reader.home().server_name.clone();
        let (mut found, mut summary) = (Vec::new(), Summary::default());
        let by_conversation = match self.rooms_by_marker().await {
            Ok(rooms) => rooms,
            Err(error) => {
                let what = "the list of rooms".to_owned();
                found.push(Discrepancy::Unreadable { what, error: error.to_string() });
                BTreeMap::new()
            }
        };
        let conversations: Vec<Uuid> = self.asked.book().conversations.keys().copied().collect();
        let mut excerpts = String::new();
        for &conversation in &conversations {
            summary.conversations += 1;
            let marker = conversation.to_string();
            let rooms = by_conversation.get(&Some(marker)).cloned().unwrap_or_default();
            let before = found.len();
            match rooms.as_slice() {
                [] if needs_room(&self.asked.book(), conversation) => found.push(Discrepancy::NoRoom { conversation }),
                [] | [_] => {}
                _ => found.push(Discrepancy::SeveralRooms { conversation, rooms: rooms.clone() }),
            }
            for room in &rooms {
                self.alias(conversation, room, &mut found).await;
                match self.read(room).await {
                    Ok(reading) => {
                        let book = self.asked.book();
                        Audit {
                            book: &book,
                            conversation,
                            senders: &self.senders,
                            server_name: &server_name,
                            found: &mut found,
                            summary: &mut summary,
                        }
                        .room(&reading);
                        if found.len() > before {
                            excerpt(&mut excerpts, conversation, room, &reading.events);
                        }
                    }
                    Err(error) => {
                        found.push(Discrepancy::Unreadable { what: room.clone(), error: error.to_string() });
                    }
                }
            }
        }
        if self.is_exclusive {
            for (marker, rooms) in by_conversation {
                let is_asked =
                    marker.as_deref().is_some_and(|marker| conversations.iter().any(|one| one.to_string() == marker));
                let unasked = rooms.into_iter().filter(|_| !is_asked);
                found.extend(unasked.map(|room| Discrepancy::UnaskedRoom { room, marker: marker.clone() }));
            }
        }
        if found.is_empty() {
            return Ok(summary);
        }
        Err(Report { discrepancies: found, summary, rooms: excerpts })
    }

    /// Compares until all is as asked, or until the limit: the last report then.
    pub async fn settled_within(&self, limit: Duration) -> Result<Summary, Report> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            match self.check().await {
                Ok(summary) => return Ok(summary),
                Err(report) if tokio::time::Instant::now() >= deadline => return Err(report),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Panics with the report unless all is as asked now.
    pub async fn assert_settled(&self) -> Summary {
        self.check().await.unwrap_or_else(|report| panic!("{report}"))
    }

    /// Panics with the report unless all is as asked before the limit.
    pub async fn assert_settled_within(&self, limit: Duration) -> Summary {
        self.settled_within(limit).await.unwrap_or_else(|report| panic!("within {limit:?}, {report}"))
    }

    /// The reader's rooms by the conversation that their marker names.
    async fn rooms_by_marker(&self) -> MatrixResult<BTreeMap<Option<String>, Vec<String>>> {
        let mut by_marker: BTreeMap<Option<String>, Vec<String>> = BTreeMap::new();
        for room in self.reader.joined_rooms().await? {
            let marker = match self.reader.state(&room, "com.nova.conversation", "").await {
                Ok(content) => content["conversation_id"].as_str().map(str::to_owned),
                Err(error) if error.status() == Some(404) => None,
                Err(error) => return Err(error),
            };
            by_marker.entry(marker).or_default().push(room);
        }
        Ok(by_marker)
    }

    async fn alias(&self, conversation: Uuid, room: &str, found: &mut Vec<Discrepancy>) {
        let alias = conversation_alias(conversation, &self.reader.home().server_name);
        let target = match self.reader.resolve_alias(&alias).await {
            Ok(target) => Some(target),
            Err(error) if error.status() == Some(404) => None,
            Err(error) => {
                found.push(Discrepancy::Unreadable { what: alias, error: error.to_string() });
                return;
            }
        };
        if target.as_deref() != Some(room) {
            found.push(Discrepancy::MisaimedAlias { alias, room: room.to_owned(), found: target });
        }
    }

    async fn read(&self, room: &str) -> MatrixResult<RoomReading> {
        Ok(RoomReading { events: self.reader.timeline(room).await?, members: self.reader.members(room).await? })
    }
}

/// A room is made for the first send: a conversation in which nothing had to be sent needs none.
fn needs_room(book: &Book, conversation: Uuid) -> bool {
    book.posts.iter().any(|post| {
        let stays = !matches!(post.deletion, Some(Outcome::Unknown | Outcome::Answered(Deleted::Cancelled)));
        post.conversation == conversation && post.committed().is_some() && stays && !post.may_be_missing
    })
}

fn excerpt(out: &mut String, conversation: Uuid, room: &str, events: &[MatrixEvent]) {
    let skipped = events.len().saturating_sub(SHOWN_EVENTS);
    let line = writeln!(out, "conversation {conversation}, room {room}, {} events:", events.len());
    line.expect("a string takes all");
    for event in &events[skipped..] {
        let text = match event.replaces() {
            _ if event.is_redacted() => "(redacted)".to_owned(),
            Some(original) => format!("{:?} replaces {original}", event.content["m.new_content"]["body"].as_str()),
            None => event.body().map_or_else(|| event.content.to_string(), |body| format!("{body:?}")),
        };
        let short: String = text.chars().take(160).collect();
        writeln!(out, "  {} {} {} {short}", event.event_id, event.event_type, event.sender)
            .expect("a string takes all");
    }
}
