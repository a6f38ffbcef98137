//! Rooms as operators have them mended: joined again, or taken from under an alias.

use serde_json::json;
use shared::{
    chat,
    ids::{ConversationId, RoomId},
    metric,
};

use super::{MARKER, RoomError, RoomStep, Rooms};
use crate::homeserver::{Failure, Refusal};

/// What became of the alias of a conversation.
#[derive(Debug)]
pub(crate) enum Aliased {
    /// Its room is the conversation's now.
    Adopted(RoomId),
    /// It was taken from a room that cannot be had.
    Freed,
    /// It belonged to no room.
    Free,
}

impl Rooms {
    /// Goes to a conversation's room at an operator's word, whatever was known of it: joins it again if we may, follows it
    /// where it was replaced, and makes it whole. True when it was joined anew.
    pub(crate) async fn rejoin(&self, step: &RoomStep<'_>) -> Result<(RoomId, bool), RoomError> {
        let conversation_id = step.conversation_id;
        self.whole.invalidate(&conversation_id).await;
        self.not_yet.invalidate(&conversation_id).await;
        let (known, plan) = self.load(conversation_id).await?;
        let Some((room_id, _)) = known else { return Ok((self.ensure(step).await?, false)) };
        if !self.is_joined(&room_id).await? {
            return Ok((self.reopen(step, &room_id).await?, true));
        }
        self.standing.invalidate(&room_id).await;
        let standing = self.still_standing(step, room_id.clone()).await?;
        let room_id = if standing == room_id { self.make_whole(step, room_id, &plan).await? } else { standing };
        self.whole.insert(conversation_id, room_id.clone()).await;
        Ok((room_id, false))
    }

    /// Takes the room that stands under a conversation's alias for the conversation, at an operator's word: whoever made
    /// it, if it is marked for no other conversation and we may set its state. If it cannot be had, the alias is taken from
    /// it, so that another room is made.
    pub(crate) async fn adopt_alias(&self, step: &RoomStep<'_>) -> Result<Aliased, RoomError> {
        let conversation_id = step.conversation_id;
        let alias = self.alias(conversation_id);
        self.whole.invalidate(&conversation_id).await;
        self.not_yet.invalidate(&conversation_id).await;
        let Some(room_id) = self.homeserver.resolve_alias(&alias).await? else { return Ok(Aliased::Free) };
        let (known, plan) = self.load(conversation_id).await?;
        match known {
            Some((known, _)) if known != room_id => {
                return Err(RoomError::Shut(
                    "the conversation has another room: it goes on there, whatever its alias says",
                ));
            }
            Some(_) => {}
            None => {
                if let Some(why) = self.mark_foreign(conversation_id, &room_id).await? {
                    return if self.abandon(&alias).await? { Ok(Aliased::Freed) } else { Err(RoomError::Shut(why)) };
                }
                let saved = self.save(conversation_id, &room_id, false, &[]).await?;
                if saved != room_id {
                    return Err(RoomError::NotYet);
                }
            }
        }
        let room_id = self.make_whole(step, room_id, &plan).await?;
        self.whole.insert(conversation_id, room_id.clone()).await;
        metric::ROOM_CREATION.with(["adopted"]).increment(1);
        Ok(Aliased::Adopted(room_id))
    }

    /// Marks a room that others made for a conversation. Says why not, where that cannot be.
    async fn mark_foreign(
        &self,
        conversation_id: ConversationId,
        room_id: &RoomId,
    ) -> Result<Option<&'static str>, RoomError> {
        let state = match self.state(room_id).await {
            Err(RoomError::NotYet) => {
                return Ok(Some(
                    "the room under the alias is not open to us, nor the alias ours to take: have the service account \
                     invited there, or the alias deleted; then repair this again",
                ));
            }
            state => state?,
        };
        let marker = state.get(&(MARKER.to_owned(), String::new())).map(|marker| &marker.content["conversation_id"]);
        let others = {
            let mut conn = self.pool.acquire().await?;
            chat::lookup_conversation_by_room_id(&mut conn, room_id).await?.is_some_and(|id| id != conversation_id)
        };
        if others || marker.is_some_and(|marked| *marked != json!(conversation_id)) {
            return Ok(Some(
                "the room under the alias is another conversation's, and the alias not ours to take: have the alias \
                 deleted on the homeserver; then repair this again",
            ));
        }
        match self.homeserver.set_state(room_id, MARKER, &json!({"conversation_id": conversation_id})).await {
            Ok(()) => Ok(None),
            Err(Failure::Refused(Refusal { status: 403 | 404, .. })) => Ok(Some(
                "the service account may not set the state of the room under the alias, nor take the alias: give it the \
                 power there, or have the alias deleted; then repair this again",
            )),
            Err(failure) => Err(failure.into()),
        }
    }
}
