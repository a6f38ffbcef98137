//! Looking for an operation by its marker: what is asked when the homeserver no longer remembers transactions.

use shared::ids::{EventId, OutboxId, RoomId};
use time::OffsetDateTime;

use crate::homeserver::{Failure, HistoryEvent, Homeserver};

/// The homeserver's clock may be this far behind the database's, and an event's time this much before our attempt's.
const CLOCK_SLACK: time::Duration = time::Duration::minutes(10);

/// How many pages of a hundred events are read at most: one sender's events of a room, not everybody's.
const MAX_PAGES: usize = 1000;

/// The event of an operation, looked for backwards in its room to the time when it may first have arrived.
pub(crate) async fn find(
    homeserver: &Homeserver,
    room_id: &RoomId,
    outbox_id: OutboxId,
    sender: &str,
    since: Option<OffsetDateTime>,
) -> Result<Option<EventId>, Failure> {
    let earliest = since.map_or(i64::MIN, |since| {
        i64::try_from((since - CLOCK_SLACK).unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MIN)
    });
    let marker = outbox_id.to_string();
    let mut from: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let page = homeserver.events_before(room_id, sender, from.as_deref()).await?;
        for event in &page.events {
            if is_marked(event, &marker) && event.sender == sender {
                return Ok(Some(EventId::from(event.event_id.clone())));
            }
            if event.origin_server_ts < earliest {
                return Ok(None);
            }
        }
        match page.next {
            // A page may be empty although more follows: the homeserver filters after it has counted.
            Some(next) if from.as_deref() != Some(next.as_str()) => from = Some(next),
            _ => return Ok(None),
        }
    }
    // Not knowing is not the same as "it is not there".
    Err(Failure::NotSent("the room's history is longer than a look-up reads".to_owned()))
}

/// Whether an event is an operation's: by our marker, or, once somebody has redacted its content, by the transaction id
/// that the homeserver still tells the device that sent it.
fn is_marked(event: &HistoryEvent, marker: &str) -> bool {
    event.content["com.nova.outbox_id"] == marker || event.unsigned["transaction_id"] == marker
}
