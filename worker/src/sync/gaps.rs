//! What a sync left out: a timeline that says it is limited has lost its beginning. It is fetched from where the sync
//! began, page by page and in order, before anything later of that room is applied.

use shared::inbound::Leadership;

use super::{
    SyncError,
    ask::Asker,
    intake::{Intake, Room},
};
use crate::homeserver::Homeserver;

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
    metrics::counter!("matrix_sync_gaps_total").increment(1);
    let mut from = gap.from.map(str::to_owned);
    loop {
        let (events, next) = homeserver.events_after(&gap.room.room_id, from.as_deref(), gap.to).await?;
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
