//! The order of moments, and one page of many sources.

use time::{OffsetDateTime, macros::datetime};
use uuid::Uuid;

use super::{Cursor, Moment, Timeline};

/// Before everything: where the first page begins.
const START: OffsetDateTime = datetime!(9999-01-01 00:00:00 UTC);

/// The bits of an id that say where a moment comes from: the first four, which a UUID v7 does not use until the year 2527.
const RANK_SHIFT: u32 = 124;

/// Where a moment comes from; of one time, what stands later here is shown first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Written = 1,
    CallPlaced,
    Enqueued,
    Edited,
    Deleted,
    Attempt,
    Died,
    Withdrawn,
    Received,
    CallEnded,
    Act,
}

/// A place in a timeline: one of its own for each moment, and the same whenever it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) at: OffsetDateTime,
    key: u128,
}

impl Spot {
    pub(super) fn new(at: OffsetDateTime, rank: Rank, id: Uuid) -> Self {
        Self { at, key: (id.as_u128() & !(0xF << RANK_SHIFT)) | ((rank as u128) << RANK_SHIFT) }
    }

    /// Of a moment that has no id of its own: by all that makes it what it is.
    pub(super) fn named(at: OffsetDateTime, rank: Rank, name: &str) -> Self {
        Self::new(at, rank, Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
    }

    /// Where a page begins.
    pub(super) fn after(cursor: Option<Cursor>) -> Self {
        cursor.map_or(Self { at: START, key: u128::MAX }, |cursor| Self { at: cursor.at(), key: cursor.id().as_u128() })
    }

    fn cursor(self) -> Cursor {
        Cursor::new(self.at, Uuid::from_u128(self.key))
    }

    /// What the ids of a source have to be below, to come after this spot. They are UUIDs v7, and their times count.
    pub(super) fn ids_below(self, rank: Rank) -> Uuid {
        let micros = self.at.unix_timestamp_nanos() / 1_000;
        let ms = u128::try_from(micros / 1_000).unwrap_or(0);
        let (first, next) = (ms << 80, (ms + 1) << 80);
        let below = if micros % 1_000 == 0 {
            match (rank as u128).cmp(&(self.key >> RANK_SHIFT)) {
                std::cmp::Ordering::Less => next,
                std::cmp::Ordering::Equal => self.key & !(0xF << RANK_SHIFT),
                std::cmp::Ordering::Greater => first,
            }
        } else {
            next
        };
        Uuid::from_u128(below)
    }
}

/// When a UUID v7 was made, to the millisecond.
pub(super) fn made_at(id: Uuid) -> OffsetDateTime {
    let ms = i128::try_from(id.as_u128() >> 80).unwrap_or(0);
    OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000).unwrap_or(START)
}

/// What a source has next, newest first. What is not to be shown counts all the same: it says how far the source was read.
#[derive(Debug, Default)]
pub(super) struct Source {
    entries: Vec<(Spot, Option<Moment>)>,
    /// Whether there is more behind them.
    more: bool,
}

impl Source {
    /// Of what was read behind a spot. Alike entries, which nothing tells apart, are numbered.
    pub(super) fn new(mut entries: Vec<(Spot, Option<Moment>)>, after: Spot, more: bool) -> Self {
        entries.sort_by_key(|(spot, _)| std::cmp::Reverse(*spot));
        for n in 1..entries.len() {
            let (before, rest) = entries.split_at_mut(n);
            let last = before[n - 1].0;
            if rest[0].0 >= last {
                rest[0].0 = Spot { key: last.key.saturating_sub(1), ..last };
            }
        }
        entries.retain(|(spot, _)| *spot < after);
        Self { entries, more }
    }
}

/// The next so many moments of all sources.
pub(super) fn page(sources: Vec<Source>, limit: usize) -> Timeline {
    // Behind the last that was read of a source with more, nobody knows what comes next.
    let last = |source: &Source| source.entries.last().map(|(spot, _)| *spot).filter(|_| source.more);
    let horizon = sources.iter().filter_map(last).max();
    let mut entries: Vec<_> = sources.into_iter().flat_map(|source| source.entries).collect();
    entries.sort_by_key(|(spot, _)| std::cmp::Reverse(*spot));
    let (mut moments, mut end) = (Vec::new(), horizon);
    for (spot, moment) in entries {
        if horizon.is_some_and(|horizon| spot < horizon) {
            break;
        }
        let Some(moment) = moment else { continue };
        if moments.len() == limit {
            return Timeline { moments, next: end.map(Spot::cursor) };
        }
        moments.push(moment);
        if moments.len() == limit {
            end = Some(spot);
        }
    }
    let next = if moments.len() == limit && horizon.is_some() { end } else { horizon };
    Timeline { moments, next: next.map(Spot::cursor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_spot_is_exactly_what_has_lower_ids() {
        let ids: Vec<Uuid> = (0..20).map(|n: u128| Uuid::from_u128(((1_000 + n / 4) << 80) | (7 << 76) | n)).collect();
        for rank in [Rank::Written, Rank::Enqueued, Rank::Act] {
            for of_cursor in [Rank::Written, Rank::Enqueued, Rank::Act] {
                for id in &ids {
                    for more in [0, 500] {
                        let at = made_at(*id) + time::Duration::microseconds(more);
                        let spot = Spot::new(at, of_cursor, *id);
                        let below = spot.ids_below(rank);
                        for other in &ids {
                            let comes_after = Spot::new(made_at(*other), rank, *other) < spot;
                            assert_eq!(*other < below, comes_after, "{rank:?} {of_cursor:?} {id} {other}");
                        }
                    }
                }
            }
        }
    }
}
