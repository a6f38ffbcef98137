//! Where the next page of a list begins.

use std::{fmt, str::FromStr};

use time::OffsetDateTime;
use uuid::Uuid;

/// Where the next page begins: after this time and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    at: OffsetDateTime,
    id: Uuid,
}

impl Cursor {
    /// After this time and id.
    pub(crate) const fn new(at: OffsetDateTime, id: Uuid) -> Self {
        Self { at, id }
    }

    pub(crate) const fn at(self) -> OffsetDateTime {
        self.at
    }

    pub(crate) const fn id(self) -> Uuid {
        self.id
    }
}

/// Why a text is no cursor.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("is no cursor of an earlier page")]
pub struct NoCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at.unix_timestamp_nanos() / 1000, self.id.simple())
    }
}

impl FromStr for Cursor {
    type Err = NoCursor;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (at, id) = text.split_once('.').ok_or(NoCursor)?;
        let micros: i64 = at.parse().map_err(|_| NoCursor)?;
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(|_| NoCursor)?;
        Ok(Self { at, id: id.parse().map_err(|_| NoCursor)? })
    }
}
