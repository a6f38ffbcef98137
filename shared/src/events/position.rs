//! Where somebody is in the log.

use std::{fmt, str::FromStr};

/// A place in the event log: everything at or before it was read.
///
/// Clients get it as an opaque text, their cursor. The first of all is the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub(super) xid: u64,
    pub(super) event_id: i64,
}

impl Position {
    /// Before this transaction, and after all that are older.
    pub(super) const fn before(xid: u64) -> Self {
        Self { xid, event_id: 0 }
    }

    /// The transaction as the database reads it.
    pub(super) fn xid_text(self) -> String {
        self.xid.to_string()
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}", self.xid, self.event_id)
    }
}

impl serde::Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is no cursor of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor")]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (xid, event_id) = text.split_once('.').ok_or(NotAPosition)?;
        let is_hex = |part: &str| !part.is_empty() && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex(xid) || !is_hex(event_id) {
            return Err(NotAPosition);
        }
        Ok(Self {
            xid: u64::from_str_radix(xid, 16).map_err(|_| NotAPosition)?,
            event_id: i64::from_str_radix(event_id, 16).map_err(|_| NotAPosition)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        for (xid, event_id) in [(0, 0), (3, 1), (u64::MAX, i64::MAX)] {
            let position = Position { xid, event_id };
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for wrong in ["", ".", "1", "1.", ".1", "1.-1", "+1.1", "1.1.1", "G.1", "1.8000000000000000", "1 .1", "🦀.1"]
        {
            assert_eq!(wrong.parse::<Position>(), Err(NotAPosition), "{wrong:?}");
        }
    }

    #[test]
    fn positions_are_ordered_by_transaction_first() {
        let at = |xid, event_id| Position { xid, event_id };
        assert!(at(3, 900) < at(4, 0));
        assert!(at(4, 0) < at(4, 1));
    }
}
