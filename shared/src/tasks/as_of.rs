//! As of when: a snapshot of the database, as a text that callers hand back.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// As of when something was counted: a snapshot of the database, and the time for people.
///
/// A time would not do. A letter that dies says when it does, not when that is committed: one that died before the
/// counting may come to light after it, and would then be taken without having been counted. A snapshot says exactly which
/// transactions had been committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(try_from = "String", into = "String")]
#[sqlx(transparent)]
pub struct AsOf(String);

/// Why a text is no [`AsOf`].
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("is no `as_of` of a dry run")]
pub struct NoAsOf;

impl AsOf {
    /// As of this statement.
    pub async fn now(conn: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = sqlx::query!(r#"select pg_current_snapshot()::text as "snapshot!", outbox_now() as "now!""#)
            .fetch_one(conn)
            .await?;
        Ok(Self(format!("{}@{}", row.snapshot, row.now.unix_timestamp_nanos() / 1000)))
    }

    /// The text that callers keep.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As the database writes a snapshot.
    pub(crate) fn snapshot(&self) -> &str {
        self.0.split_once('@').map_or("", |(snapshot, _)| snapshot)
    }

    /// When it was, by the database's clock.
    pub fn at(&self) -> OffsetDateTime {
        let micros = self.0.split_once('@').and_then(|(_, micros)| micros.parse::<i64>().ok()).unwrap_or(0);
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// `xmin:xmax:xip,xip`: increasing numbers, those in progress between the two. What the database would refuse is refused
/// here.
fn is_snapshot(text: &str) -> bool {
    let mut parts = text.splitn(3, ':');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (Some(xmin), Some(xmax)) = (number(), number()) else { return false };
    let Some(running) = parts.next() else { return false };
    if xmin == 0 || xmin > xmax {
        return false;
    }
    if running.is_empty() {
        return true;
    }
    let mut last = 0;
    running.split(',').all(|xid| {
        xid.parse::<u64>().is_ok_and(|xid| xid >= xmin && xid < xmax && xid > std::mem::replace(&mut last, xid))
    })
}

impl FromStr for AsOf {
    type Err = NoAsOf;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (snapshot, micros) = text.split_once('@').ok_or(NoAsOf)?;
        let plain = text.bytes().all(|byte| byte.is_ascii_digit() || b":,@".contains(&byte));
        let at = micros.parse::<i64>().ok().map(|micros| i128::from(micros) * 1000);
        let known = at.is_some_and(|at| OffsetDateTime::from_unix_timestamp_nanos(at).is_ok());
        if plain && known && is_snapshot(snapshot) { Ok(Self(text.to_owned())) } else { Err(NoAsOf) }
    }
}

impl TryFrom<String> for AsOf {
    type Error = NoAsOf;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AsOf> for String {
    fn from(as_of: AsOf) -> Self {
        as_of.0
    }
}

impl fmt::Display for AsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn an_as_of_is_a_snapshot_and_a_time() {
        for text in ["10:20:@0", "10:10:@1764500000000000", "10:20:10,14,19@5"] {
            assert_eq!(text.parse::<AsOf>().unwrap().to_string(), text);
        }
        let as_of: AsOf = "10:20:10,14@1764500000000000".parse().unwrap();
        assert_eq!((as_of.snapshot(), as_of.at().unix_timestamp()), ("10:20:10,14", 1_764_500_000));
    }

    #[test]
    fn what_the_database_would_refuse_is_no_as_of() {
        let texts = ["", "@", "10:20:", "10:20@5", "0:20:@5", "30:20:@5", "10:20:9@5", "10:20:20@5", "10:20:14,14@5"];
        for text in texts.into_iter().chain(["10:20:15,14@5", "10:20:@", "10:20:@x", "+10:20:@5", "10:20:'@5"]) {
            assert!(text.parse::<AsOf>().is_err(), "{text}");
        }
    }
}
