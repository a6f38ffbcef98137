//! Repairs by cause: what an operator asks for when a lane is held for its room, or members are missing.
//!
//! Each says in words what it did, or what a person has to do where Matrix refuses.

use std::sync::Arc;

use serde_json::json;
use shared::{
    audit::Verb,
    ids::{ConversationId, RoomId},
    outbox::{self, HOLD_ALIAS_NOT_OURS, Repair},
    tasks::{self, Task},
    verify as compared,
};
use sqlx::PgPool;

use crate::{
    errands::Lease,
    homeserver::Failure,
    room::{Aliased, RoomError, RoomStep, Rooms},
    verify::{Verifier, VerifyError},
};

/// How the reasons begin and end for which a worker holds a lane for its room's sake. What operators hold, they resume.
const OF_THE_ROOM: [(&str, &str); 5] = [
    ("the service account is ", "then resume the lane"),
    ("the room was replaced ", ""),
    ("the room under the alias ", "then resume the lane"),
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
    NotNow(String),
    /// The task is no longer ours.
    #[error("the task was taken over or cancelled")]
    Lost,
}

impl From<sqlx::Error> for RepairError {
    fn from(error: sqlx::Error) -> Self {
        Self::NotNow(format!("database: {error}"))
    }
}

impl From<RoomError> for RepairError {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Homeserver(failure) => failure.into(),
            RoomError::NotOurs(_) => Self::Refused(format!("{error}: repair it with adopt-alias")),
            RoomError::Shut(_) | RoomError::Gone => Self::Refused(error.to_string()),
            RoomError::NotYet | RoomError::Late | RoomError::Database(_) => Self::NotNow(error.to_string()),
        }
    }
}

impl From<Failure> for RepairError {
    fn from(failure: Failure) -> Self {
        match &failure {
            Failure::Refused(refusal) if refusal.status < 500 && refusal.status != 429 => {
                Self::Refused(format!("the homeserver refuses it: {failure}"))
            }
            _ => Self::NotNow(format!("homeserver: {failure}")),
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
    ) -> Result<String, RepairError> {
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

    async fn rejoin(&self, task: &Task, conversation_id: ConversationId) -> Result<String, RepairError> {
        let step = RoomStep { conversation_id, may_ask: &|| true };
        let (room_id, anew) = self.rooms.rejoin(&step).await?;
        let resumed = self.resume(task, conversation_id, Repair::Rejoin, Some(&room_id)).await?;
        let joined = if anew { "joined the room again" } else { "the service account is in the room" };
        Ok(format!("{joined}, and it is whole; {}", goes_on(resumed)))
    }

    async fn reinvite(
        &self,
        task: &Task,
        conversation_id: ConversationId,
        lease: &Lease,
    ) -> Result<String, RepairError> {
        let room_id = self.rooms.find(conversation_id).await?;
        let room_id = room_id.ok_or_else(|| {
            RepairError::Refused("there is no room yet: all members are invited when it is made".to_owned())
        })?;
        let absent = self.verifier.absent(conversation_id, &room_id, lease).await?.ok_or_else(|| {
            RepairError::Refused("the service account is not in the room: repair that first (rejoin)".to_owned())
        })?;
        let mut tx = self.pool.begin().await?;
        let done = compared::reinvite(&mut tx, task, conversation_id, &absent).await?;
        tx.commit().await?;
        let back =
            if done.back == 1 { "1 dead invitation".to_owned() } else { format!("{} dead invitations", done.back) };
        let invited = match done.invited {
            1 => "1 member who was not in the room is invited".to_owned(),
            n => format!("{n} members who were not in the room are invited"),
        };
        Ok(format!("{back} came back, {invited}; what becomes of that is shown with the conversation"))
    }

    async fn adopt_alias(&self, task: &Task, conversation_id: ConversationId) -> Result<String, RepairError> {
        let step = RoomStep { conversation_id, may_ask: &|| true };
        let aliased = self.rooms.adopt_alias(&step).await?;
        let room_id = if let Aliased::Adopted(room_id) = &aliased { Some(room_id) } else { None };
        let resumed = self.resume(task, conversation_id, Repair::AdoptAlias, room_id).await?;
        let did = match &aliased {
            Aliased::Adopted(room_id) => format!("the room {room_id} is the conversation's now, marked and whole"),
            Aliased::Freed => "the alias was taken from a room that cannot be had: another room is made".to_owned(),
            Aliased::Free => "the alias belongs to no room: one is made, or goes on, without it".to_owned(),
        };
        Ok(format!("{did}; {}", goes_on(resumed)))
    }

    /// Lets the lanes go on that are held for the room's sake, and writes the repair into the trail.
    async fn resume(
        &self,
        task: &Task,
        conversation_id: ConversationId,
        repair: Repair,
        room_id: Option<&RoomId>,
    ) -> Result<bool, RepairError> {
        let mut tx = self.pool.begin().await?;
        let mut resumed = false;
        for (lane_id, hold) in outbox::holds_of(&mut tx, conversation_id).await? {
            if OF_THE_ROOM.iter().any(|(begins, ends)| hold.starts_with(begins) && hold.ends_with(ends)) {
                resumed |= outbox::release_hold(&mut tx, conversation_id, lane_id, &hold).await?;
            }
        }
        let arguments = json!({"repair": repair.as_str(), "room_id": room_id, "resumed": resumed});
        tasks::record_step(&mut tx, task, Verb::Repair, Some(conversation_id), arguments, 1).await?;
        tx.commit().await?;
        Ok(resumed)
    }
}

const fn goes_on(resumed: bool) -> &'static str {
    if resumed { "its lane goes on" } else { "its lane was not held for that" }
}
