//! What has to be asked of the homeserver before events are applied: no connection and no lock is held meanwhile.

use std::time::Duration;

use moka::future::Cache;
use ruma::api::client::sync::sync_events::v3::InvitedRoom;
use serde::Deserialize;
use shared::{
    chat,
    config::InvitePolicy,
    ids::{ConversationId, RoomId},
    inbound::{self, Asked, Incoming, Membership, What},
    metric,
};
use sqlx::PgPool;

use super::{SyncError, intake::Room};
use crate::{
    homeserver::{Failure, Homeserver, Refusal},
    room::{MARKER, RoomError, Rooms},
};

/// Rooms of nobody's conversation are remembered for this long: one of ours is written down within a request or two of
/// its creation.
const STRANGE_FOR: Duration = Duration::from_mins(1);

/// How many such rooms are remembered.
const MOST_STRANGE: u64 = 10_000;

/// How many rooms are remembered of which something is applied: about 200 bytes each.
const MOST_SEEN: u64 = 100_000;

/// How often a tombstone is followed while the homeserver fails, before all other rooms have waited long enough.
const MOST_TRIES: u32 = 5;

/// How long that is remembered.
const FOLLOWED_FOR: Duration = Duration::from_mins(10);

/// Asks the homeserver, and remembers what need not be asked again.
#[derive(Debug)]
pub(super) struct Asker<'a> {
    pool: &'a PgPool,
    homeserver: &'a Homeserver,
    rooms: &'a Rooms,
    invites: InvitePolicy,
    strange: Cache<RoomId, ()>,
    /// Rooms of which something is applied.
    seen: Cache<RoomId, ()>,
    /// How often the homeserver failed when a tombstone was followed.
    followed: Cache<RoomId, u32>,
}

/// A stripped state event of an invitation.
#[derive(Deserialize)]
struct Stripped {
    r#type: String,
    #[serde(default)]
    content: serde_json::Value,
}

impl<'a> Asker<'a> {
    pub(super) fn new(pool: &'a PgPool, homeserver: &'a Homeserver, rooms: &'a Rooms, invites: InvitePolicy) -> Self {
        let strange = Cache::builder().max_capacity(MOST_STRANGE).time_to_live(STRANGE_FOR).build();
        let followed = Cache::builder().max_capacity(MOST_STRANGE).time_to_live(FOLLOWED_FOR).build();
        let seen = Cache::new(MOST_SEEN);
        Self { pool, homeserver, rooms, invites, strange, seen, followed }
    }

    /// The conversation of a room. One that we have just made may not be written down yet, and somebody may speak in it
    /// already: its mark tells.
    pub(super) async fn conversation(&self, room_id: &RoomId) -> Result<Option<ConversationId>, SyncError> {
        if self.strange.contains_key(room_id) {
            return Ok(None);
        }
        if let Some(known) = self.mapped(room_id).await? {
            return Ok(Some(known));
        }
        let marked = self.homeserver.marked_conversation(room_id, MARKER).await?;
        let Some(conversation_id) = marked.and_then(|id| id.parse::<ConversationId>().ok()) else {
            self.strange.insert(room_id.clone(), ()).await;
            return Ok(None);
        };
        // Another room may have become the conversation's meanwhile.
        let mapped = {
            let mut conn = self.pool.acquire().await?;
            chat::load_room_mapping(&mut conn, conversation_id).await?
        };
        Ok(mapped.is_none_or(|(mapped, _)| mapped == *room_id).then_some(conversation_id))
    }

    /// The conversation that has this room in the database.
    pub(super) async fn mapped(&self, room_id: &RoomId) -> Result<Option<ConversationId>, SyncError> {
        let mut conn = self.pool.acquire().await?;
        Ok(inbound::conversation_of_room(&mut conn, room_id).await?)
    }

    /// Whether nothing of a room was ever applied or sent: we have just come into it.
    pub(super) async fn is_new(&self, room: &Room) -> Result<bool, SyncError> {
        if self.seen.contains_key(&room.room_id) {
            return Ok(false);
        }
        let is_new = {
            let mut conn = self.pool.acquire().await?;
            inbound::is_new_room(&mut conn, room.conversation_id, &room.room_id).await?
        };
        if !is_new {
            self.seen.insert(room.room_id.clone(), ()).await;
        }
        Ok(is_new)
    }

    /// Somebody invites the service account. Into a room of ours it comes back, and a room that replaced one of ours is
    /// followed; any other invitation is a stranger's. None of that may hold up what happens elsewhere.
    pub(super) async fn invited(&self, room_id: RoomId, room: &InvitedRoom) -> Result<(), SyncError> {
        let homeserver = self.homeserver.clone();
        if self.mapped(&room_id).await?.is_some() {
            tokio::spawn(async move {
                match homeserver.join(&room_id).await {
                    Ok(()) => tracing::info!(room.id = %room_id, "joined the room again, as invited"),
                    // Who sends there next tries again.
                    Err(failure) => tracing::warn!(room.id = %room_id, error = %failure, "could not join again"),
                }
            });
            return Ok(());
        }
        let create = room.invite_state.events.iter().find_map(|event| {
            serde_json::from_str::<Stripped>(event.json().get()).ok().filter(|event| event.r#type == "m.room.create")
        });
        if let Some(predecessor) = create.as_ref().and_then(|create| create.content["predecessor"]["room_id"].as_str())
        {
            let predecessor = RoomId::from(predecessor.to_owned());
            if let Some(conversation_id) = self.mapped(&predecessor).await? {
                return self.replaced(conversation_id, &predecessor).await;
            }
        }
        if self.invites == InvitePolicy::Ignore {
            metric::INVITES.with(["ignored"]).increment(1);
            return Ok(());
        }
        tokio::spawn(async move {
            match homeserver.leave(&room_id).await {
                // It is gone, or never was: nothing is left to turn down.
                Ok(()) | Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => {
                    tracing::info!(room.id = %room_id, "an invitation of the service account was turned down");
                    metric::INVITES.with(["rejected"]).increment(1);
                }
                Err(failure) => {
                    tracing::warn!(room.id = %room_id, error = %failure, "an invitation could not be turned down");
                    metric::INVITES.with(["failed"]).increment(1);
                }
            }
        });
        Ok(())
    }

    /// Asks what the room says of a user now, where an event contradicts the database: it may be old.
    pub(super) async fn look(&self, conversation_id: ConversationId, event: &mut Incoming) -> Result<(), SyncError> {
        let What::Member { user, membership, now, .. } = &mut event.what else { return Ok(()) };
        let server = self.homeserver.service_user().server();
        let Some(Ok(user_id)) = user.nova_user(server) else { return Ok(()) };
        // The number comes first: what changes after it is newer than the answer.
        let (is_member, seq, under_way) = {
            let mut conn = self.pool.acquire().await?;
            let seq = chat::last_seq(&mut conn, conversation_id).await?;
            let under_way = inbound::change_under_way(&mut conn, conversation_id, user_id).await?;
            (chat::is_member(&mut conn, conversation_id, user_id).await?, seq, under_way)
        };
        let contradicts = match membership {
            Membership::Join => !is_member,
            Membership::Invite => !is_member && event.sender == *self.homeserver.service_user(),
            Membership::Leave | Membership::Ban => is_member,
            Membership::Knock => false,
        };
        // Of a change of ours that is on its way, its echo tells.
        if !contradicts || under_way {
            return Ok(());
        }
        let membership = match self.homeserver.membership(&event.room_id, user).await {
            Ok(membership) => membership.as_deref().and_then(Membership::parse),
            // We are out ourselves: the event is the last that we know.
            Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => Some(*membership),
            Err(failure) => return Err(failure.into()),
        };
        *now = Some(Asked { membership, seq });
        Ok(())
    }

    /// The room has a tombstone: the conversation goes on where that points, if it may. A homeserver that does not answer is
    /// asked again, a few times; then, and for whatever else is wrong with that one room, who sends to it next looks again.
    pub(super) async fn replaced(&self, conversation_id: ConversationId, room_id: &RoomId) -> Result<(), SyncError> {
        let failed = match self.rooms.replaced(conversation_id, room_id).await {
            Ok(()) => return Ok(()),
            Err(RoomError::Database(error)) => return Err(error.into()),
            Err(failed) => failed,
        };
        if let RoomError::Homeserver(failure) = &failed {
            let passing = match failure {
                Failure::NotSent(_) | Failure::NoAnswer(_) => true,
                Failure::Refused(refusal) => matches!(refusal.status, 401 | 429 | 500..),
                Failure::NotBuilt(_) => false,
            };
            let tries = self.followed.get(room_id).await.unwrap_or(0) + 1;
            self.followed.insert(room_id.clone(), tries).await;
            if passing && tries < MOST_TRIES {
                return Err(failure.clone().into());
            }
        }
        self.followed.invalidate(room_id).await;
        tracing::warn!(conversation.id = %conversation_id, error = %failed, "the room was replaced, but not followed");
        Ok(())
    }
}
