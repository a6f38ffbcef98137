//! Repairs by cause: what an operator asks for when a lane is held for its room, or members are missing.
//!
//! Each says in words what it did, or what a person has to do where Matrix refuses.

use std::sync::Arc;

use serde_json::json;
use shared::{
    audit::Verb,
    ids::{ConversationId, RoomId},
    outbox::{self, HOLD_ALIAS_NOT_OURS, HOLD_ALIAS_SHUT, Repair},
    tasks::{self, Task},
    verify as compared,
};
use sqlx::PgPool;

use crate::{
    errands::{Lease, Setback},
    homeserver::Failure,
    room::{Aliased, RoomError, RoomStep, Rooms},
    verify::{Verifier, VerifyError},
};

/// How the reasons begin and end for which a worker holds a lane for its room's sake. What operators hold, they resume.
const OF_THE_ROOM: [(&str, &str); 5] = [
    ("the service account is ", "then resume the lane"),
    ("the room was replaced ", ""),
    (HOLD_ALIAS_SHUT, ""),
    ("the alias #nova-conv-", HOLD_ALIAS_NOT_OURS),
    ("the homeserver forbids it in this room", ""),
];

/// Why a repair was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepairError {
    /// It cannot be done as things stand: what a person has to do.
    #[error("{0}")]
    Refused(String),
    /// Not now: it is tried again.
    #[error("{0}")]
    NotNow(Setback),
    /// The task is no longer ours.
    #[error("the task was taken over or cancelled")]
    Lost,
}

impl From<sqlx::Error> for RepairError {
    fn from(error: sqlx::Error) -> Self {
        Self::NotNow(error.into())
    }
}

impl From<RoomError> for RepairError {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Homeserver(failure) => failure.into(),
            RoomError::NotOurs(_) => Self::Refused(format!("{error}: repair it with adopt-alias")),
            RoomError::Shut(_) | RoomError::Gone => Self::Refused(error.to_string()),
            RoomError::Database(error) => error.into(),
            RoomError::NotYet | RoomError::Late => Self::NotNow(Setback::its_own(error.to_string())),
        }
    }
}

impl From<Failure> for RepairError {
    fn from(failure: Failure) -> Self {
        match Setback::of(&failure) {
            Some(setback) => Self::NotNow(setback),
            None => Self::Refused(format!("the homeserver refuses it: {failure}")),
        }
    }
}

impl From<VerifyError> for RepairError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Homeserver(failure) => failure.into(),
            VerifyError::Database(error) => error.into(),
            VerifyError::Lost => Self::Lost,
        }
    }
}

/// What a repair did.
#[derive(Debug)]
pub(crate) struct Mended {
    /// In words.
    pub(crate) words: String,
    /// Whether a lane of the conversation is held still, for something else.
    pub(crate) is_held: bool,
}

/// Repairs conversations.
#[derive(Debug, Clone)]
pub(crate) struct Repairer {
    pub(crate) pool: PgPool,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) verifier: Verifier,
}

impl Repairer {
    /// Does what a task asks for, and says what it did.
    pub(crate) async fn repair(
        &self,
        task: &Task,
        conversation_id: ConversationId,
        lease: &Lease,
    ) -> Result<Mended, RepairError> {
        let repair: Repair = serde_json::from_value(task.arguments["repair"].clone())
            .map_err(|_| RepairError::Refused("this release does not know that repair".to_owned()))?;
        if !lease.go_on().await? {
            return Err(RepairError::Lost);
        }
        match repair {
            Repair::Rejoin => self.rejoin(task, conversation_id).await,
            Repair::Reinvite => self.reinvite(task, conversation_id, lease).await,
            Repair::AdoptAlias => self.adopt_alias(task, conversation_id).await,
        }
    }

    async fn rejoin(&self, task: &Task, conversation_id: ConversationId) -> Result<Mended, RepairError> {
        let step = RoomStep { conversation_id, may_ask: &|| true };
        let (room_id, anew) = self.rooms.rejoin(&step).await?;
        let lanes = self.resume(task, conversation_id, Repair::Rejoin, Some(&room_id)).await?;
        let joined = if anew { "joined the room again" } else { "the service account is in the room" };
        Ok(lanes.mended(&format!("{joined}, and it is whole")))
    }

    async fn reinvite(
        &self,
        task: &Task,
        conversation_id: ConversationId,
        lease: &Lease,
    ) -> Result<Mended, RepairError> {
        let room_id = self.rooms.find(conversation_id).await?;
        let room_id = room_id.ok_or_else(|| {
            RepairError::Refused("there is no room yet: all members are invited when it is made".to_owned())
        })?;
        let absent = self.verifier.absent(conversation_id, &room_id, lease).await?.ok_or_else(|| {
            RepairError::Refused("the service account is not in the room: repair that first (rejoin)".to_owned())
        })?;
        // Of one code, whoever is absent for another reason is left alone.
        let errcode = task.arguments["errcode"].as_str();
        let absent = if errcode.is_some() { Vec::new() } else { absent };
        let mut tx = self.pool.begin().await?;
        let done = compared::reinvite(&mut tx, task, conversation_id, errcode, &absent).await?;
        tx.commit().await?;
        let back =
            if done.back == 1 { "1 dead invitation".to_owned() } else { format!("{} dead invitations", done.back) };
        let invited = match done.invited {
            1 => "1 member who was not in the room is invited".to_owned(),
            n => format!("{n} members who were not in the room are invited"),
        };
        let words = format!("{back} came back, {invited}; what becomes of that is shown with the conversation");
        Ok(Mended { words, is_held: false })
    }

    async fn adopt_alias(&self, task: &Task, conversation_id: ConversationId) -> Result<Mended, RepairError> {
        let step = RoomStep { conversation_id, may_ask: &|| true };
        let aliased = self.rooms.adopt_alias(&step).await?;
        let room_id = if let Aliased::Adopted(room_id) = &aliased { Some(room_id) } else { None };
        let lanes = self.resume(task, conversation_id, Repair::AdoptAlias, room_id).await?;
        let did = match &aliased {
            Aliased::Adopted(room_id) => format!("the room {room_id} is the conversation's now, marked and whole"),
            Aliased::Freed => "the alias was taken from a room that cannot be had: another room is made".to_owned(),
            Aliased::Free => "the alias belongs to no room: one is made, or goes on, without it".to_owned(),
        };
        Ok(lanes.mended(&did))
    }

    /// Lets the lanes go on that are held for the room's sake alone, and writes the repair into the trail.
    async fn resume(
        &self,
        task: &Task,
        conversation_id: ConversationId,
        repair: Repair,
        room_id: Option<&RoomId>,
    ) -> Result<Lanes, RepairError> {
        let of_the_room =
            |said: &str| OF_THE_ROOM.iter().any(|(begins, ends)| said.starts_with(begins) && said.ends_with(ends));
        let mut tx = self.pool.begin().await?;
        let mut lanes = Lanes::default();
        for (lane_id, hold) in outbox::holds_of(&mut tx, conversation_id).await? {
            let (mended, left): (Vec<&str>, Vec<&str>) =
                outbox::said_in_hold(&hold).partition(|said| of_the_room(said));
            let left = (!left.is_empty()).then(|| left.join("; and: "));
            if !mended.is_empty() {
                outbox::lift_hold(&mut tx, conversation_id, lane_id, &hold, left.as_deref()).await?;
                lanes.resumed |= left.is_none();
            }
            lanes.held = left.or(lanes.held);
        }
        let arguments = json!({"repair": repair.as_str(), "room_id": room_id, "resumed": lanes.resumed});
        tasks::record_step(&mut tx, task, Verb::Repair, Some(conversation_id), arguments, 1).await?;
        tx.commit().await?;
        Ok(lanes)
    }
}

/// What became of the lanes of a room.
#[derive(Debug, Default)]
struct Lanes {
    /// Whether one goes on.
    resumed: bool,
    /// What holds one still.
    held: Option<String>,
}

impl Lanes {
    fn mended(self, did: &str) -> Mended {
        let lane = match &self.held {
            Some(why) => format!("its lane is held still: {why}"),
            None if self.resumed => "its lane goes on".to_owned(),
            None => "its lane was not held for that".to_owned(),
        };
        Mended { words: format!("{did}; {lane}"), is_held: self.held.is_some() }
    }
}
