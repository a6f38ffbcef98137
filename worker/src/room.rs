//! The room of a conversation: a step before any send, cheap once the room is known to be whole.
//!
//! The alias `#nova-conv-<conversation id>` is the room's idempotency key. Creating a room is not atomic on the
//! homeserver and its answer may be lost, so whatever a failed creation says, the alias is asked: a room that has it and
//! is ours is repaired and adopted.

use std::{collections::HashMap, time::Duration};

use moka::future::Cache;
use serde_json::{Value, json};
use shared::{
    chat::{self, RoomPlan},
    failpoint::{Point, reach},
    ids::{ConversationId, MatrixUserId, RoomId, UserId},
    metric,
    outbox::{
        HOLD_ALIAS_NOT_OURS, HOLD_ALIAS_SHUT, HOLD_NEVER_IN_ROOM, HOLD_NOT_IN_REPLACEMENT, HOLD_NOT_IN_ROOM, Kind,
    },
};
use sqlx::PgPool;
use tokio::sync::Semaphore;

use crate::{
    homeserver::{Failure, Homeserver, NewRoom, Refusal, StateEvent},
    members::{self, Change, Changed},
};

mod mend;

pub(crate) use mend::Aliased;

/// Rooms kept in memory: about 200 bytes each.
const CACHED_ROOMS: u64 = 100_000;

/// How many rooms this process creates at once.
const CREATIONS_AT_ONCE: usize = 8;

/// How many replacements of a room in a row are followed: more than anybody makes.
const MAX_REPLACEMENTS: usize = 8;

/// After so many looks in a row a room that stands under its alias and is not open to us never will be.
const ROOM_PATIENCE: u32 = 8;

/// How long that is remembered of a conversation that nobody asks for.
const PATIENCE_REMEMBERED: Duration = Duration::from_hours(1);

/// How often a room is looked at for a tombstone: whoever rules it may still write to a room that all others have left.
const LOOK_FOR_TOMBSTONE_EVERY: Duration = Duration::from_mins(10);

/// Marks a room as that of a conversation.
pub(crate) const MARKER: &str = "com.nova.conversation";

/// The state events of a room, by type and key.
type RoomState = HashMap<(String, String), StateEvent>;

/// Why there is no room to send to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoomError {
    /// The homeserver failed or refused.
    #[error(transparent)]
    Homeserver(#[from] Failure),
    /// A room stands under the alias, but we are not in it: its creation is still under way, or never ended.
    #[error("the room under the alias is not open to us (yet)")]
    NotYet,
    /// The lease would not last until the end of the next request.
    #[error("the lease ends before the room is whole")]
    Late,
    /// The room does not take our events, and why.
    #[error("{0}")]
    Shut(&'static str),
    /// The alias belongs to a room that is not ours.
    #[error("the alias {0} {tail}", tail = HOLD_ALIAS_NOT_OURS)]
    NotOurs(String),
    /// The database did not answer.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The conversation is gone.
    #[error("the conversation is gone")]
    Gone,
}

/// For which conversation a room is needed, and what may be done for it.
pub(crate) struct RoomStep<'a> {
    pub(crate) conversation_id: ConversationId,
    /// Whether another request may be started: it would end before the lease does.
    pub(crate) may_ask: &'a (dyn Fn() -> bool + Send + Sync),
}

/// Finds or makes rooms.
#[derive(Debug)]
pub(crate) struct Rooms {
    pool: PgPool,
    homeserver: Homeserver,
    whole: Cache<ConversationId, RoomId>,
    /// Rooms that had no tombstone a little while ago.
    standing: Cache<RoomId, ()>,
    /// How often in a row a room was not open to us yet.
    not_yet: Cache<ConversationId, u32>,
    creating: Semaphore,
}

impl Rooms {
    pub(crate) fn new(pool: PgPool, homeserver: Homeserver) -> Self {
        Self {
            pool,
            homeserver,
            whole: Cache::new(CACHED_ROOMS),
            standing: Cache::builder().max_capacity(CACHED_ROOMS).time_to_live(LOOK_FOR_TOMBSTONE_EVERY).build(),
            not_yet: Cache::builder().max_capacity(CACHED_ROOMS).time_to_live(PATIENCE_REMEMBERED).build(),
            creating: Semaphore::new(CREATIONS_AT_ONCE),
        }
    }

    /// Remembers a room that the database knows to be whole.
    pub(crate) async fn learn(&self, conversation_id: ConversationId, room_id: &RoomId) {
        self.whole.insert(conversation_id, room_id.clone()).await;
    }

    /// The room of a conversation, whole: ours, marked, with its settings, and everyone invited who belongs in it as of
    /// the changes of membership that were carried out. The one that replaced it, if one did.
    ///
    /// No connection or lock is held while the homeserver is asked.
    pub(crate) async fn ensure(&self, step: &RoomStep<'_>) -> Result<RoomId, RoomError> {
        let conversation_id = step.conversation_id;
        if let Some(room_id) = self.whole.get(&conversation_id).await {
            metric::ROOM_CACHE.with(["hit"]).increment(1);
            return self.still_standing(step, room_id).await;
        }
        metric::ROOM_CACHE.with(["miss"]).increment(1);
        let (known, plan) = self.load(conversation_id).await?;
        let room_id = match known {
            Some((room_id, true)) => room_id,
            Some((room_id, false)) => match self.make_whole(step, room_id, &plan).await {
                Err(RoomError::NotYet) if self.is_out_of_patience(conversation_id).await => {
                    return Err(RoomError::Shut(HOLD_NEVER_IN_ROOM));
                }
                made => made?,
            },
            None => self.create(step, &plan).await?,
        };
        self.not_yet.invalidate(&conversation_id).await;
        self.whole.insert(conversation_id, room_id.clone()).await;
        self.still_standing(step, room_id).await
    }

    /// The room, or the one that replaced it: looked at now and then, since we may be the only ones who could still write
    /// to a room that was replaced.
    async fn still_standing(&self, step: &RoomStep<'_>, room_id: RoomId) -> Result<RoomId, RoomError> {
        if self.standing.contains_key(&room_id) {
            return Ok(room_id);
        }
        let Some(next) = self.homeserver.tombstone(&room_id).await? else {
            self.standing.insert(room_id.clone(), ()).await;
            return Ok(room_id);
        };
        let conversation_id = step.conversation_id;
        self.whole.invalidate(&conversation_id).await;
        let (known, plan) = self.load(conversation_id).await?;
        if known.is_some_and(|(known, _)| known != room_id) {
            // Another worker has followed it already; that room is looked at in its turn.
            return Err(RoomError::NotYet);
        }
        let room_id = self.follow(step, &room_id, next, &plan).await?;
        self.whole.insert(conversation_id, room_id.clone()).await;
        Ok(room_id)
    }

    /// Whether a room that is not open to us has been looked at often enough. Counts the look.
    async fn is_out_of_patience(&self, conversation_id: ConversationId) -> bool {
        let looks = self.not_yet.get(&conversation_id).await.unwrap_or(0) + 1;
        if looks > ROOM_PATIENCE {
            self.not_yet.invalidate(&conversation_id).await;
            return true;
        }
        self.not_yet.insert(conversation_id, looks).await;
        false
    }

    /// The room that the database knows, if any, and who belongs there.
    async fn load(&self, conversation_id: ConversationId) -> Result<(Option<(RoomId, bool)>, RoomPlan), RoomError> {
        let mut conn = self.pool.acquire().await?;
        let known = chat::load_room_mapping(&mut conn, conversation_id).await?;
        let plan = chat::room_plan(&mut conn, conversation_id).await?;
        Ok((known, plan.ok_or(RoomError::Gone)?))
    }

    /// Whether the service account is in a room.
    pub(crate) async fn is_joined(&self, room_id: &RoomId) -> Result<bool, RoomError> {
        match self.homeserver.membership(room_id, self.homeserver.service_user()).await {
            Ok(membership) => Ok(membership.as_deref() == Some("join")),
            Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Mends a room that does not take our events. Returns the one to try once more: the same, which we are in again, or
    /// the one that replaced it.
    pub(crate) async fn reopen(&self, step: &RoomStep<'_>, shut: &RoomId) -> Result<RoomId, RoomError> {
        let conversation_id = step.conversation_id;
        self.whole.invalidate(&conversation_id).await;
        let (known, plan) = self.load(conversation_id).await?;
        if known.is_some_and(|(room_id, _)| room_id != *shut) {
            // Another worker was here before.
            return self.ensure(step).await;
        }
        // Whoever left a room still reads its state as it was then.
        let state = match self.homeserver.state(shut).await {
            Ok(events) => by_key(events),
            Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => RoomState::new(),
            Err(failure) => return Err(failure.into()),
        };
        if let Some(next) = replacement(&state) {
            let room_id = self.follow(step, shut, next, &plan).await?;
            self.whole.insert(conversation_id, room_id.clone()).await;
            return Ok(room_id);
        }
        if membership(&state, self.homeserver.service_user()) == Some("join") {
            return Err(RoomError::Shut(
                "the service account is in the room, but may not speak there: give it the power, then resume the lane",
            ));
        }
        if !(step.may_ask)() {
            return Err(RoomError::Late);
        }
        match self.homeserver.join(shut).await {
            Ok(()) => {
                reach(Point::RoomRejoined);
                tracing::info!(conversation.id = %conversation_id, "joined the room again");
            }
            Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => {
                return Err(RoomError::Shut(HOLD_NOT_IN_ROOM));
            }
            Err(failure) => return Err(failure.into()),
        }
        let room_id = self.make_whole(step, shut.clone(), &plan).await?;
        self.whole.insert(conversation_id, room_id.clone()).await;
        Ok(room_id)
    }

    /// Somebody says that a room has a tombstone: if it is the conversation's, that goes on where the tombstone points.
    pub(crate) async fn replaced(&self, conversation_id: ConversationId, room_id: &RoomId) -> Result<(), RoomError> {
        let (known, plan) = self.load(conversation_id).await?;
        if known.is_none_or(|(known, _)| known != *room_id) {
            return Ok(());
        }
        let Some(next) = self.homeserver.tombstone(room_id).await? else { return Ok(()) };
        self.standing.invalidate(room_id).await;
        self.whole.invalidate(&conversation_id).await;
        let step = RoomStep { conversation_id, may_ask: &|| true };
        match self.follow(&step, room_id, next, &plan).await {
            // Who sends to it was faster.
            Err(RoomError::NotYet) => Ok(()),
            followed => followed.map(|_| ()),
        }
    }

    /// Goes where a room's tombstone points, and from there on, if each room names the one before it.
    async fn follow(
        &self,
        step: &RoomStep<'_>,
        from: &RoomId,
        to: RoomId,
        plan: &RoomPlan,
    ) -> Result<RoomId, RoomError> {
        let conversation_id = step.conversation_id;
        let (mut before, mut next) = (from.clone(), to);
        for _ in 0..MAX_REPLACEMENTS {
            if !(step.may_ask)() {
                return Err(RoomError::Late);
            }
            let state = match self.state(&next).await {
                Err(RoomError::NotYet) => {
                    return Err(RoomError::Shut(HOLD_NOT_IN_REPLACEMENT));
                }
                state => state?,
            };
            let predecessor = state
                .get(&("m.room.create".to_owned(), String::new()))
                .map(|create| &create.content["predecessor"]["room_id"]);
            if predecessor != Some(&json!(before.as_str())) {
                return Err(RoomError::Shut(
                    "the room was replaced by one that does not name it as its predecessor: nothing is sent there",
                ));
            }
            if let Some(further) = replacement(&state) {
                (before, next) = (next, further);
                continue;
            }
            tracing::info!(conversation.id = %conversation_id, "the room was replaced: going on in the new one");
            metric::ROOM_CREATION.with(["replaced"]).increment(1);
            {
                let mut conn = self.pool.acquire().await?;
                if !chat::replace_room(&mut conn, conversation_id, from, &next).await? {
                    return Err(RoomError::NotYet);
                }
            }
            reach(Point::RoomReplaced);
            return self.make_whole(step, next, plan).await;
        }
        Err(RoomError::Shut("the room was replaced again and again: nothing is sent there"))
    }

    /// Whether a user belongs to a conversation now.
    pub(crate) async fn is_member(&self, conversation_id: ConversationId, user_id: UserId) -> Result<bool, RoomError> {
        let mut conn = self.pool.acquire().await?;
        Ok(chat::is_member(&mut conn, conversation_id, user_id).await?)
    }

    /// The names on Matrix of those of these who are no users of ours.
    pub(crate) async fn contacts(
        &self,
        conversation_id: ConversationId,
        users: &[UserId],
    ) -> Result<HashMap<UserId, MatrixUserId>, RoomError> {
        let mut conn = self.pool.acquire().await?;
        Ok(chat::contacts(&mut conn, conversation_id, users).await?)
    }

    /// The room of a conversation if there is one; none is created.
    pub(crate) async fn find(&self, conversation_id: ConversationId) -> Result<Option<RoomId>, RoomError> {
        if let Some(room_id) = self.whole.get(&conversation_id).await {
            return Ok(Some(room_id));
        }
        let known = {
            let mut conn = self.pool.acquire().await?;
            chat::load_room_mapping(&mut conn, conversation_id).await?
        };
        if let Some((room_id, _)) = known {
            return Ok(Some(room_id));
        }
        // A creation whose answer was lost leaves a room that only its alias knows.
        let alias = self.alias(conversation_id);
        let Some(room_id) = self.homeserver.resolve_alias(&alias).await? else { return Ok(None) };
        self.state_of_ours(conversation_id, &alias, &room_id).await?;
        Ok(Some(room_id))
    }

    fn alias(&self, conversation_id: ConversationId) -> String {
        format!("#{}:{}", alias_localpart(conversation_id), self.homeserver.service_user().server())
    }

    async fn create(&self, step: &RoomStep<'_>, plan: &RoomPlan) -> Result<RoomId, RoomError> {
        let conversation_id = step.conversation_id;
        let alias = self.alias(conversation_id);
        // Asked first: after a crash the room usually stands, and a second creation would only be refused.
        if let Some(room_id) = self.homeserver.resolve_alias(&alias).await? {
            match self.adopt(step, &alias, room_id, plan).await {
                Err(RoomError::NotYet) if self.is_out_of_patience(conversation_id).await => {
                    if !self.abandon(&alias).await? {
                        return Err(RoomError::Shut(HOLD_ALIAS_SHUT));
                    }
                }
                ended => return ended,
            }
        }
        reach(Point::RoomSought);
        // Creations are the heaviest thing to ask for: a few at once, so that each is answered in time.
        let turn = self.creating.acquire().await.map_err(|_| RoomError::Late)?;
        if !(step.may_ask)() {
            return Err(RoomError::Late);
        }
        // Nobody is invited yet: homeservers limit how many may be at once, and refuse the whole room.
        let new = NewRoom {
            alias_localpart: alias_localpart(conversation_id),
            name: plan.name.clone(),
            state: settings(conversation_id).into_iter().collect(),
        };
        let created = self.homeserver.create_room(&new).await;
        drop(turn);
        match created {
            Ok(room_id) => {
                reach(Point::RoomCreated);
                metric::ROOM_CREATION.with(["created"]).increment(1);
                let room_id = self.save(conversation_id, &room_id, false, &[]).await?;
                reach(Point::RoomNoted);
                self.make_whole(step, room_id, plan).await
            }
            Err(failure @ (Failure::NotSent(_) | Failure::Refused(Refusal { status: 429, .. }))) => {
                metric::ROOM_CREATION.with(["failed"]).increment(1);
                Err(failure.into())
            }
            Err(failure) => {
                tracing::info!(conversation.id = %conversation_id, error = %failure, "room creation failed, asking its alias");
                if let Some(room_id) = self.homeserver.resolve_alias(&alias).await? {
                    return self.adopt(step, &alias, room_id, plan).await;
                }
                metric::ROOM_CREATION.with(["failed"]).increment(1);
                Err(failure.into())
            }
        }
    }

    /// Takes a room that stands under our alias, if it is ours.
    async fn adopt(
        &self,
        step: &RoomStep<'_>,
        alias: &str,
        room_id: RoomId,
        plan: &RoomPlan,
    ) -> Result<RoomId, RoomError> {
        let conversation_id = step.conversation_id;
        self.state_of_ours(conversation_id, alias, &room_id).await?;
        self.save(conversation_id, &room_id, false, &[]).await?;
        let room_id = self.make_whole(step, room_id, plan).await?;
        metric::ROOM_CREATION.with(["adopted"]).increment(1);
        Ok(room_id)
    }

    /// Takes our alias from a room that will never open to us: its creation ended before anybody was in it. False when the
    /// alias is not ours to take.
    async fn abandon(&self, alias: &str) -> Result<bool, RoomError> {
        match self.homeserver.delete_alias(alias).await {
            Ok(()) => {
                reach(Point::RoomAbandoned);
                metric::ROOM_CREATION.with(["abandoned"]).increment(1);
                tracing::warn!(alias, "the room under the alias never came to be: making another");
                Ok(true)
            }
            Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    /// The state of a room that stands under our alias, if we created it and it is marked for no other conversation.
    async fn state_of_ours(
        &self,
        conversation_id: ConversationId,
        alias: &str,
        room_id: &RoomId,
    ) -> Result<RoomState, RoomError> {
        let state = self.state(room_id).await?;
        let ours = state
            .get(&("m.room.create".to_owned(), String::new()))
            .is_some_and(|create| create.sender == self.homeserver.service_user().as_str());
        let marker = state.get(&(MARKER.to_owned(), String::new())).map(|marker| &marker.content["conversation_id"]);
        if !ours || marker.is_some_and(|marked| *marked != json!(conversation_id)) {
            return Err(RoomError::NotOurs(alias.to_owned()));
        }
        Ok(state)
    }

    /// Brings a room that is ours to what it should be: marker, settings, members.
    ///
    /// A member whom the homeserver will not have in the room keeps nobody from talking: their invitation becomes an
    /// operation of its own, which ends where such operations end, in sight.
    async fn make_whole(&self, step: &RoomStep<'_>, room_id: RoomId, plan: &RoomPlan) -> Result<RoomId, RoomError> {
        let conversation_id = step.conversation_id;
        let state = self.state(&room_id).await?;
        reach(Point::RoomRead);
        for (event_type, content) in settings(conversation_id) {
            let current = state.get(&(event_type.to_owned(), String::new())).map(|event| &event.content);
            if current != Some(&content) {
                if !(step.may_ask)() {
                    return Err(RoomError::Late);
                }
                self.homeserver.set_state(&room_id, event_type, &content).await?;
                reach(Point::RoomSet);
            }
        }
        let server = self.homeserver.service_user().server();
        let mut refused = Vec::new();
        let invited = plan.members.iter().map(|user_id| (*user_id, Change::Invite));
        // A creation that was answered late may have brought in who was removed meanwhile.
        let removed = plan.absent.iter().map(|user_id| (*user_id, Change::Remove));
        for (user_id, change) in removed.chain(invited) {
            let member = MatrixUserId::of(user_id, server);
            if change.is_done(membership(&state, &member)) {
                continue;
            }
            match members::change(&self.homeserver, &room_id, &member, change, step.may_ask).await {
                Changed::Done => reach(Point::RoomInvited),
                Changed::Late => return Err(RoomError::Late),
                Changed::Refused(..) if change == Change::Invite => refused.push(user_id),
                Changed::Refused(_, failure) | Changed::Failed(failure) => return Err(failure.into()),
            }
        }
        let room_id = self.save(conversation_id, &room_id, true, &refused).await?;
        reach(Point::RoomWhole);
        Ok(room_id)
    }

    /// The state of a room, by type and key. A room whose creation ended before we were in it is joined first.
    async fn state(&self, room_id: &RoomId) -> Result<RoomState, RoomError> {
        let events = match self.homeserver.state(room_id).await {
            Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => {
                // The alias stands before the room does: while its creation is under way we are not in it.
                match self.homeserver.join(room_id).await {
                    Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => return Err(RoomError::NotYet),
                    joined => joined?,
                }
                self.homeserver.state(room_id).await?
            }
            answer => answer?,
        };
        Ok(by_key(events))
    }

    async fn save(
        &self,
        conversation_id: ConversationId,
        room_id: &RoomId,
        ready: bool,
        refused: &[UserId],
    ) -> Result<RoomId, RoomError> {
        let mut tx = self.pool.begin().await?;
        for user_id in refused {
            if let Some(turn) = chat::lock_conversation(&mut tx, conversation_id).await?
                && chat::is_member(&mut tx, conversation_id, *user_id).await?
            {
                chat::enqueue_membership(&mut tx, &turn, *user_id, Kind::Invite).await?;
            }
        }
        let room_id = chat::save_room_mapping(&mut tx, conversation_id, room_id, ready).await?;
        reach(Point::RoomSaving);
        tx.commit().await?;
        Ok(room_id)
    }
}

fn by_key(events: Vec<StateEvent>) -> RoomState {
    events.into_iter().map(|event| ((event.r#type.clone(), event.state_key.clone()), event)).collect()
}

fn membership<'a>(state: &'a RoomState, member: &MatrixUserId) -> Option<&'a str> {
    let event = state.get(&("m.room.member".to_owned(), member.as_str().to_owned()))?;
    event.content["membership"].as_str()
}

/// The room that a tombstone points to.
fn replacement(state: &RoomState) -> Option<RoomId> {
    let tombstone = state.get(&("m.room.tombstone".to_owned(), String::new()))?;
    let room_id = tombstone.content["replacement_room"].as_str().filter(|room_id| !room_id.is_empty())?;
    Some(RoomId::from(room_id.to_owned()))
}

fn alias_localpart(conversation_id: ConversationId) -> String {
    format!("nova-conv-{conversation_id}")
}

/// What every room of ours has beside its preset. Who accepts an invitation later reads from the invitation on.
fn settings(conversation_id: ConversationId) -> [(&'static str, Value); 2] {
    [
        ("m.room.history_visibility", json!({"history_visibility": "invited"})),
        (MARKER, json!({"conversation_id": conversation_id})),
    ]
}
