//! Times as people type them: of the clock, or so long ago.

use std::time::Duration;

use shared::database;
use sqlx::PgConnection;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::Failed;

/// Nobody means anything longer ago.
const LONGEST: Duration = Duration::from_hours(24 * 366 * 10);

/// A time, or how long ago it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    At(OffsetDateTime),
    Ago(Duration),
}

/// `2026-01-31T06:00:00Z`, or `2h` for two hours ago.
pub(crate) fn parse_when(text: &str) -> Result<When, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(When::At(at));
    }
    let ago = humantime::parse_duration(text).ok().filter(|ago| *ago <= LONGEST);
    ago.map(When::Ago).ok_or_else(|| "must be a time such as 2026-01-31T06:00:00Z, or an age such as 2h".to_owned())
}

/// A span of time, by the database's clock. That it ends before it begins is wrong use.
pub(crate) async fn span(
    conn: &mut PgConnection,
    since: Option<When>,
    until: Option<When>,
) -> Result<(Option<OffsetDateTime>, Option<OffsetDateTime>), Failed> {
    if since.is_none() && until.is_none() {
        return Ok((None, None));
    }
    let now = database::now(conn).await?;
    let at = |when: When| match when {
        When::At(at) => at,
        When::Ago(ago) => now - ago,
    };
    let (since, until) = (since.map(at), until.map(at));
    if since.zip(until).is_some_and(|(since, until)| since >= until) {
        return Err(Failed::Usage("--until: must be after --since".to_owned()));
    }
    Ok((since, until))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_time_or_an_age_is_understood_and_nothing_else() {
        assert_eq!(parse_when("2026-01-31T06:00:00Z"), Ok(When::At(datetime!(2026-01-31 06:00 UTC))));
        assert_eq!(parse_when("1h 30m"), Ok(When::Ago(Duration::from_mins(90))));
        for wrong in ["", "yesterday", "2026-01-31", "99999 years"] {
            assert!(parse_when(wrong).is_err(), "{wrong}");
        }
    }
}
