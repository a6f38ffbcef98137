//! Invitations and removals: state operations. Matrix has no transaction ids for them, so they look first and act only if
//! the room differs. "Already there" and "not allowed" share an error code, so after a refusal they look again.

use shared::{
    failpoint::{Point, reach},
    ids::{MatrixUserId, RoomId},
    outbox::Outcome,
};

use crate::homeserver::{Failure, Homeserver};

/// What a change of membership came to.
pub(crate) enum Changed {
    /// The room is as it should be.
    Done,
    /// The homeserver will not have it.
    Refused(Outcome, Failure),
    /// Nobody knows, or not now.
    Failed(Failure),
    /// The lease would not last until the end of the next request.
    Late,
}

/// Which way a membership is to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Invite,
    Remove,
}

impl Change {
    /// Whether a membership is as this change wants it.
    pub(crate) fn is_done(self, membership: Option<&str>) -> bool {
        let present = matches!(membership, Some("invite" | "join"));
        match self {
            Self::Invite => present,
            Self::Remove => !present && membership != Some("knock"),
        }
    }
}

/// Makes the room agree. `may_ask` is asked before each request: none is started that could outlive the lease.
pub(crate) async fn change(
    homeserver: &Homeserver,
    room_id: &RoomId,
    member: &MatrixUserId,
    change: Change,
    may_ask: &(dyn Fn() -> bool + Send + Sync),
) -> Changed {
    if !may_ask() {
        return Changed::Late;
    }
    match homeserver.membership(room_id, member).await {
        Ok(membership) if change.is_done(membership.as_deref()) => return Changed::Done,
        Ok(_) => {}
        Err(failure) => return Changed::Failed(failure),
    }
    reach(Point::MemberLooked);
    if !may_ask() {
        return Changed::Late;
    }
    let answer = match change {
        Change::Invite => homeserver.invite(room_id, member).await,
        Change::Remove => homeserver.kick(room_id, member).await,
    };
    reach(Point::MemberChanged);
    let refusal = match answer {
        Ok(()) => return Changed::Done,
        Err(failure @ Failure::Refused(_)) => failure,
        Err(failure) => return Changed::Failed(failure),
    };
    let Failure::Refused(refused) = &refusal else { return Changed::Failed(refusal) };
    if !(400..=404).contains(&refused.status) || refused.status == 401 {
        return Changed::Failed(refusal);
    }
    match homeserver.membership(room_id, member).await {
        Ok(membership) if change.is_done(membership.as_deref()) => Changed::Done,
        Ok(_) => {
            let outcome = match change {
                Change::Invite => {
                    Outcome::OwnFault { hint: "the homeserver will not invite this user (banned?): then requeue it" }
                }
                Change::Remove => {
                    Outcome::OwnFault { hint: "the service account may not remove this user: check its power level" }
                }
            };
            Changed::Refused(outcome, refusal)
        }
        Err(failure) => Changed::Failed(failure),
    }
}
