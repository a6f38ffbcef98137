//! Events into the database: in the order of their room, in transactions that are short, and whatever one of them does,
//! the others are applied.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use shared::{
    calls::{self, SignalKind},
    chat,
    failpoint::{Point, reach},
    ids::{ConversationId, EventId, RoomId},
    inbound::{self, Applied, InboundError, Inbox, Incoming, Leadership, What},
    metric,
    seal::KeyRing,
    wake::Wake,
};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::sync::Notify;

use super::{
    SyncError,
    ask::Asker,
    read::{self, Read},
};
use crate::homeserver::Homeserver;

/// How many events one transaction applies: readers of the event log wait for every open transaction.
const MOST_A_TRANSACTION: usize = 100;

/// Why events were not applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum IntakeError {
    /// Another worker leads.
    #[error("another worker leads")]
    NotLeading,
    /// An event failed.
    #[error(transparent)]
    Inbound(#[from] InboundError),
}

impl From<sqlx::Error> for IntakeError {
    fn from(error: sqlx::Error) -> Self {
        Self::Inbound(InboundError::Database(error))
    }
}

/// A room of a conversation.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) conversation_id: ConversationId,
    pub(super) room_id: RoomId,
}

/// What events are applied with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Intake<'a> {
    pub(super) pool: &'a PgPool,
    pub(super) keys: &'a KeyRing,
    pub(super) homeserver: &'a Homeserver,
    pub(super) tell: &'a Wake,
    pub(super) look: &'a Notify,
    /// Whether calls over Matrix are taken.
    pub(super) calls: bool,
}

/// What applying led to.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// How old the newest event was when it was applied, by the homeserver's clock and ours.
    pub(super) lag: Duration,
}

/// An event to apply, or one that makes no sense.
enum Item {
    Event(Box<Incoming>),
    Poison { event_id: EventId, json: String, detail: String },
}

impl Intake<'_> {
    /// Applies the events of rooms, each room's in order, and then moves the token if there is one.
    pub(super) async fn take(
        &self,
        leadership: &Leadership,
        asker: &Asker<'_>,
        rooms: Vec<(Room, Vec<String>)>,
        next_batch: Option<&str>,
    ) -> Result<Taken, SyncError> {
        let mut taken = Taken::default();
        let mut items: BTreeMap<ConversationId, Vec<(RoomId, Item)>> = BTreeMap::new();
        let mut tombstones = Vec::new();
        for (room, events) in rooms {
            let received = u64::try_from(events.len()).unwrap_or(u64::MAX);
            metric::SYNC_EVENTS_RECEIVED.increment(received);
            if events.iter().any(|event| is_tombstone(event)) {
                tombstones.push(room.clone());
            }
            let read: Vec<Item> = events.into_iter().filter_map(|json| item(&room.room_id, json)).collect();
            for mut item in self.unknown(room.conversation_id, read).await? {
                if let Item::Event(event) = &mut item {
                    asker.look(room.conversation_id, event).await?;
                    taken.lag = age_of(event);
                }
                items.entry(room.conversation_id).or_default().push((room.room_id.clone(), item));
            }
        }
        let mut flat: Vec<(ConversationId, RoomId, Item)> = items
            .into_iter()
            .flat_map(|(id, events)| events.into_iter().map(move |(room_id, item)| (id, room_id, item)))
            .collect();
        // The first without the token, the last with it. Conversations come in the order of their ids in each.
        while flat.len() > MOST_A_TRANSACTION {
            let rest = flat.split_off(MOST_A_TRANSACTION);
            self.apply(leadership, &flat, None).await?;
            flat = rest;
        }
        if next_batch.is_some() && tombstones.is_empty() || !flat.is_empty() {
            self.apply(leadership, &flat, next_batch.filter(|_| tombstones.is_empty())).await?;
        }
        if tombstones.is_empty() {
            return Ok(taken);
        }
        // A worker that dies before the token has moved sees the tombstone again.
        for room in tombstones {
            asker.replaced(room.conversation_id, &room.room_id).await?;
        }
        if next_batch.is_some() {
            self.apply(leadership, &[], next_batch).await?;
        }
        Ok(taken)
    }

    /// Leaves out what is known already, most echoes among it: a conversation need not be locked for them.
    async fn unknown(&self, conversation_id: ConversationId, items: Vec<Item>) -> Result<Vec<Item>, SyncError> {
        let ids: Vec<EventId> = items
            .iter()
            .filter_map(|item| match item {
                Item::Event(event) => Some(event.event_id.clone()),
                Item::Poison { .. } => None,
            })
            .collect();
        if ids.is_empty() {
            return Ok(items);
        }
        let known = {
            let mut conn = self.pool.acquire().await?;
            inbound::known_events(&mut conn, conversation_id, &ids).await?
        };
        let is_new = |item: &Item| match item {
            Item::Event(event) if known.contains(&event.event_id) => {
                let ours = event.sender == *self.homeserver.service_user();
                count(if ours { Applied::Echo(false) } else { Applied::Duplicate });
                false
            }
            _ => true,
        };
        Ok(items.into_iter().filter(is_new).collect())
    }

    /// Applies events in one transaction. If that fails by one of them, once more, each on its own feet.
    async fn apply(
        &self,
        leadership: &Leadership,
        items: &[(ConversationId, RoomId, Item)],
        next_batch: Option<&str>,
    ) -> Result<(), IntakeError> {
        let quickly = AssertUnwindSafe(self.transaction(leadership, items, next_batch, false)).catch_unwind().await;
        match quickly {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if !is_about_data(&error) => return Err(error),
            Ok(Err(error)) => tracing::warn!(%error, "an event could not be applied; the others are, one by one"),
            Err(_) => tracing::error!("an event made the sync panic; the others are applied, one by one"),
        }
        self.transaction(leadership, items, next_batch, true).await
    }

    async fn transaction(
        &self,
        leadership: &Leadership,
        items: &[(ConversationId, RoomId, Item)],
        next_batch: Option<&str>,
        carefully: bool,
    ) -> Result<(), IntakeError> {
        let inbox = Inbox { keys: self.keys, service_user: self.homeserver.service_user(), calls: self.calls };
        let mut tx = self.pool.begin().await?;
        let conversations: Vec<ConversationId> = items.iter().map(|(conversation_id, ..)| *conversation_id).collect();
        chat::line_up(&mut tx, &conversations).await?;
        let mut turn: Option<chat::Turn> = None;
        let mut applied = Vec::new();
        let mut answers = 0;
        for (conversation_id, room_id, item) in items {
            if turn.as_ref().is_none_or(|turn| turn.conversation_id != *conversation_id) {
                turn = chat::lock_conversation(&mut tx, *conversation_id).await?;
            }
            // A conversation that is gone has nobody to tell.
            let Some(turn) = &mut turn else { continue };
            reach(Point::EventApplies);
            match item {
                Item::Event(event) => {
                    let now = if carefully {
                        one_carefully(&mut tx, turn, inbox, event).await?
                    } else {
                        inbound::apply(&mut tx, turn, inbox, event).await?
                    };
                    answers += u64::from(now == Applied::Changed && is_answer(event));
                    applied.push(now);
                }
                Item::Poison { event_id, json, detail } => {
                    if inbound::park_poison(&mut tx, turn, self.keys, room_id, event_id, json, detail).await? {
                        tracing::warn!(event.id = %event_id, detail, "an event makes no sense; it is parked");
                        applied.push(Applied::Refused("poison"));
                    }
                }
            }
        }
        // Nobody rings for a call that the rest of its batch ends.
        let told = if next_batch.is_some() { calls::announce(&mut tx).await? } else { 0 };
        let ours = match next_batch {
            Some(next_batch) => leadership.advance(&mut tx, next_batch).await?,
            None => leadership.fence(&mut tx).await?,
        };
        if !ours {
            return Err(IntakeError::NotLeading);
        }
        reach(Point::EventsWritten);
        tx.commit().await?;
        reach(Point::EventsCommitted);
        if told > 0 || applied.contains(&Applied::Changed) {
            self.tell.committed();
            // What was said in a call may be answered.
            self.look.notify_one();
        }
        if applied.contains(&Applied::Echo(true)) {
            self.tell.committed();
            self.look.notify_one();
        }
        metric::VOIP_ANSWER_RECEIVED.increment(answers);
        for applied in applied {
            count(applied);
        }
        Ok(())
    }
}

/// Applies an event in a savepoint of its own. One that fails, for whatever reason that is its own, is parked.
async fn one_carefully(
    conn: &mut PgConnection,
    turn: &mut chat::Turn,
    inbox: Inbox<'_>,
    event: &Incoming,
) -> Result<Applied, IntakeError> {
    let detail = {
        let mut savepoint = conn.begin().await?;
        match AssertUnwindSafe(inbound::apply(&mut savepoint, turn, inbox, event)).catch_unwind().await {
            Ok(Ok(applied)) => {
                savepoint.commit().await?;
                return Ok(applied);
            }
            Ok(Err(error)) => {
                savepoint.rollback().await?;
                let error = IntakeError::from(error);
                if !is_about_data(&error) {
                    return Err(error);
                }
                // What a database says of a value may show it.
                "it could not be stored".to_owned()
            }
            Err(_) => {
                savepoint.rollback().await?;
                "it made the sync panic".to_owned()
            }
        }
    };
    // The savepoint took the number with it.
    turn.advance(conn).await?;
    tracing::warn!(event.id = %event.event_id, detail, "an event cannot be applied; it is parked");
    let json = serde_json::to_string(event).unwrap_or_default();
    inbound::park_poison(conn, turn, inbox.keys, &event.room_id, &event.event_id, &json, &detail).await?;
    Ok(Applied::Refused("poison"))
}

fn is_answer(event: &Incoming) -> bool {
    matches!(&event.what, What::Call(signal) if signal.kind == SignalKind::Answer)
}

/// Whether a failure is an event's own: the database is well and does not take what it says.
fn is_about_data(error: &IntakeError) -> bool {
    match error {
        IntakeError::NotLeading => false,
        IntakeError::Inbound(InboundError::Seal(_) | InboundError::Parked) => true,
        IntakeError::Inbound(InboundError::Database(error)) => error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            // Data exceptions, constraints, limits of a row: classes 22, 23 and 54.
            .is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class))),
    }
}

fn item(room_id: &RoomId, json: String) -> Option<Item> {
    match read::read(room_id, &json) {
        Read::Event(event) => Some(Item::Event(event)),
        Read::Skip => None,
        Read::Poison { event_id: Some(event_id), detail } => Some(Item::Poison { event_id, json, detail }),
        Read::Poison { event_id: None, detail } => {
            tracing::warn!(room.id = %room_id, detail, "an event without an id makes no sense; it is skipped");
            count(Applied::Refused("poison"));
            None
        }
    }
}

fn is_tombstone(json: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Typed {
        r#type: String,
        state_key: Option<String>,
    }
    serde_json::from_str::<Typed>(json)
        .is_ok_and(|event| event.r#type == "m.room.tombstone" && event.state_key.as_deref() == Some(""))
}

/// How old an event is, by the homeserver's clock and ours.
fn age_of(event: &Incoming) -> Duration {
    let now = shared::database::unix_time() * 1000;
    Duration::from_millis(u64::try_from(now - event.sent_at_ms).unwrap_or(0))
}

fn count(applied: Applied) {
    match applied {
        Applied::Changed | Applied::Unchanged => {
            metric::SYNC_EVENTS_APPLIED.increment(1);
        }
        Applied::Duplicate => {
            metric::DUPLICATE_EVENTS.with(["redelivery"]).increment(1);
        }
        Applied::Echo(true) => metric::SYNC_ECHOES.with(["true"]).increment(1),
        Applied::Echo(false) => {
            metric::SYNC_ECHOES.with(["false"]).increment(1);
            metric::DUPLICATE_EVENTS.with(["echo"]).increment(1);
        }
        Applied::Unmatched => {
            metric::SYNC_EVENTS_SKIPPED.with(["own_without_operation"]).increment(1);
        }
        Applied::Parked => metric::SYNC_EVENTS_PARKED.increment(1),
        Applied::Refused(reason) => {
            metric::SYNC_EVENTS_SKIPPED.with([reason]).increment(1);
        }
    }
}
