//! What a sync left out: a timeline that says it is limited has lost its beginning. It is fetched from where the sync
//! began, page by page and in order, before anything later of that room is applied.

use shared::{inbound::Leadership, metric};
use tokio::time::sleep;

use super::{
    FIRST_WAIT, LONGEST_WAIT, SyncError,
    ask::Asker,
    intake::{Intake, Room},
};
use crate::homeserver::{Failure, Homeserver};

/// How often a page is asked for before the sync begins anew.
const TRIES: usize = 10;

/// A room's events that a sync left out.
pub(super) struct Gap<'a> {
    pub(super) room: &'a Room,
    /// The token that the sync began at; none: the room's beginning.
    pub(super) from: Option<&'a str>,
    /// The token that it ended at.
    pub(super) to: &'a str,
}

/// Applies what a sync left out of a room. Each page is a transaction of its own that leaves the sync's token alone: a
/// worker that dies here is followed by one that reads the same again, and knows what it has.
pub(super) async fn fill(
    homeserver: &Homeserver,
    leadership: &Leadership,
    intake: Intake<'_>,
    asker: &Asker<'_>,
    gap: &Gap<'_>,
) -> Result<(), SyncError> {
    metric::SYNC_GAPS.increment(1);
    let mut from = gap.from.map(str::to_owned);
    loop {
        let (events, next) = page(homeserver, gap, from.as_deref()).await?;
        let is_last = events.is_empty();
        if !is_last {
            let pages = vec![(gap.room.clone(), events)];
            intake.take(leadership, asker, pages, None).await?;
        }
        match next {
            // A page may be empty although more follows: the homeserver filters after it has counted.
            Some(next) if from.as_deref() != Some(next.as_str()) => from = Some(next),
            _ => return Ok(()),
        }
    }
}

/// One page, asked for again and again: what was fetched before it need not be fetched anew for one failure.
async fn page(
    homeserver: &Homeserver,
    gap: &Gap<'_>,
    from: Option<&str>,
) -> Result<(Vec<String>, Option<String>), Failure> {
    let mut wait = FIRST_WAIT;
    for _ in 1..TRIES {
        match homeserver.events_after(&gap.room.room_id, from, gap.to).await {
            Err(failure @ (Failure::NotSent(_) | Failure::NoAnswer(_) | Failure::Refused(_))) => {
                tracing::warn!(error = %failure, "a page of a room's history did not come; asking again");
                let asked = match &failure {
                    Failure::Refused(refusal) => refusal.retry_after,
                    _ => None,
                };
                sleep(asked.unwrap_or(wait).max(wait)).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            answer => return answer,
        }
    }
    homeserver.events_after(&gap.room.room_id, from, gap.to).await
}
