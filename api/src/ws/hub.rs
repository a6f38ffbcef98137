//! Who is connected, and how much of the log concerns them that they have not read.
//!
//! Nothing that a client is shown passes through here: a connection reads its own part of the log, when it can take it. So
//! a slow client costs a set of ids, and delays nobody.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared::{
    events::Position,
    ids::{ConversationId, UserId},
    metric,
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::problem::ApiError;

/// More conversations than this are not kept apart: then all of the user's are looked into.
const KEPT_APART: usize = 64;

/// What a connection has not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread {
    /// Nothing before concerns it.
    pub(crate) from: Position,
    /// Where it is; none: anywhere.
    pub(crate) conversations: Option<BTreeSet<Uuid>>,
}

#[derive(Debug)]
struct Seat {
    unread: Option<Unread>,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    seats: HashMap<UserId, HashMap<u64, Seat>>,
    connections: usize,
    next: u64,
    /// How far the log was read for everyone.
    through: Option<Position>,
}

/// The connections of this process.
#[derive(Debug)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    most: usize,
    most_of_one: usize,
}

impl Hub {
    /// For so many connections in all, and of one user.
    pub(crate) fn new(most: usize, most_of_one: usize) -> Self {
        Self { inner: Mutex::default(), most, most_of_one }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection, if there is one. It is given back when dropped.
    pub(crate) fn join(self: &Arc<Self>, user_id: UserId) -> Result<Place, ApiError> {
        let mut inner = self.lock();
        if inner.connections >= self.most {
            return Err(ApiError::Full);
        }
        if inner.seats.get(&user_id).is_some_and(|seats| seats.len() >= self.most_of_one) {
            return Err(ApiError::TooManyConnections { limit: self.most_of_one });
        }
        let id = inner.next;
        inner.next += 1;
        inner.connections += 1;
        let wake = Arc::new(Notify::new());
        inner.seats.entry(user_id).or_default().insert(id, Seat { unread: None, wake: Arc::clone(&wake) });
        metric::WS_CONNECTIONS.increment(1.0);
        Ok(Place { hub: Arc::clone(self), user_id, id, wake })
    }

    /// Says that the log was read up to a position while nobody was connected. False when somebody is.
    pub(crate) fn skip_if_empty(&self, through: Position) -> bool {
        let mut inner = self.lock();
        if inner.connections > 0 {
            return false;
        }
        inner.through = Some(through);
        true
    }

    /// Says what was found between two positions, for whom.
    pub(crate) fn news(&self, from: Position, through: Position, found: &HashMap<UserId, BTreeSet<ConversationId>>) {
        let mut inner = self.lock();
        inner.through = Some(through);
        for (user_id, conversations) in found {
            let Some(seats) = inner.seats.get_mut(user_id) else { continue };
            for seat in seats.values_mut() {
                let unread = seat.unread.get_or_insert_with(|| Unread { from, conversations: Some(BTreeSet::new()) });
                if let Some(known) = &mut unread.conversations {
                    known.extend(conversations.iter().map(|id| id.as_uuid()));
                    if known.len() > KEPT_APART {
                        unread.conversations = None;
                    }
                }
                seat.wake.notify_one();
            }
        }
    }

    /// Says that what follows a position is not known: everyone looks for themselves.
    pub(crate) fn lost(&self, from: Position) {
        let mut inner = self.lock();
        for seat in inner.seats.values_mut().flat_map(HashMap::values_mut) {
            let from = seat.unread.as_ref().map_or(from, |unread| unread.from.min(from));
            seat.unread = Some(Unread { from, conversations: None });
            seat.wake.notify_one();
        }
    }
}

/// A connection's place in the hub.
#[derive(Debug)]
pub(crate) struct Place {
    hub: Arc<Hub>,
    user_id: UserId,
    id: u64,
    wake: Arc<Notify>,
}

impl Place {
    /// Waits for news. They may be taken already.
    pub(crate) async fn news(&self) {
        self.wake.notified().await;
    }

    /// What the connection has not read, which then counts as read; and how far the log was read for everyone.
    pub(crate) fn take(&self) -> (Option<Unread>, Option<Position>) {
        let mut inner = self.hub.lock();
        let through = inner.through;
        let seat = inner.seats.get_mut(&self.user_id).and_then(|seats| seats.get_mut(&self.id));
        (seat.and_then(|seat| seat.unread.take()), through)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.connections -= 1;
        if let Some(seats) = inner.seats.get_mut(&self.user_id) {
            seats.remove(&self.id);
            if seats.is_empty() {
                inner.seats.remove(&self.user_id);
            }
        }
        metric::WS_CONNECTIONS.decrement(1.0);
    }
}
