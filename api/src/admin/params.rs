//! What stands in a query or a form: read by name, each fault told with its name, nothing unknown passed over.

use std::{collections::BTreeMap, convert::Infallible, str::FromStr, sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, http::request::Parts};
use shared::{outbox::Kind, reason};
use time::{
    Date, OffsetDateTime, PrimitiveDateTime, format_description::well_known::Rfc3339, macros::format_description,
};
use url::form_urlencoded;

use crate::{
    State,
    problem::{ApiError, FieldProblem},
};

/// The longest value that is searched for.
const LONGEST: usize = 200;

/// A pause for longer than this is one without an end.
const LONGEST_PAUSE: Duration = Duration::from_hours(24 * 365);

/// Why operations die.
pub(crate) const CAUSES: [&str; 3] = ["own_fault", "parent_dead", "gave_up"];

/// The values of a query or a form. An empty one is as good as none: that is how forms say it.
#[derive(Debug, Default)]
pub(crate) struct Params {
    values: BTreeMap<String, String>,
    problems: Vec<FieldProblem>,
}

impl Params {
    pub(crate) fn parse(text: &[u8]) -> Self {
        let mut params = Self::default();
        for (name, value) in form_urlencoded::parse(text) {
            let value = value.trim();
            if value.is_empty() {
                continue;
            }
            if params.values.insert(name.clone().into_owned(), value.to_owned()).is_some() {
                params.problem(&name, "must be given once");
            }
        }
        params
    }

    pub(crate) fn problem(&mut self, field: &str, reason: impl Into<String>) {
        self.problems.push(FieldProblem { field: field.to_owned(), reason: reason.into() });
    }

    /// All values as they were given, for a form that shows them again.
    pub(crate) fn given(&self) -> BTreeMap<String, String> {
        self.values.clone()
    }

    /// A value that is no filter: it is taken as it is.
    pub(crate) fn raw(&mut self, name: &str) -> Option<String> {
        self.values.remove(name)
    }

    /// Some text.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let text = self.values.remove(name)?;
        if text.chars().count() > LONGEST || text.chars().any(char::is_control) {
            self.problem(name, format!("must be at most {LONGEST} characters on one line"));
            return None;
        }
        Some(text)
    }

    pub(crate) fn parsed<T: FromStr>(&mut self, name: &str, must: &str) -> Option<T> {
        let text = self.text(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.problem(name, must);
        }
        parsed
    }

    pub(crate) fn id<T: FromStr>(&mut self, name: &str) -> Option<T> {
        self.parsed(name, "must be a UUID")
    }

    pub(crate) fn one_of(&mut self, name: &str, choices: &[&'static str]) -> Option<&'static str> {
        let text = self.text(name)?;
        let choice = choices.iter().find(|choice| **choice == text).copied();
        if choice.is_none() {
            self.problem(name, format!("must be one of {}", choices.join(", ")));
        }
        choice
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        match self.one_of(name, &["true", "false"]) {
            Some(word) => word == "true",
            None => false,
        }
    }

    pub(crate) fn kind(&mut self, name: &str) -> Option<String> {
        let kind = self.text(name)?;
        if Kind::parse(&kind).is_none() {
            self.problem(name, "must be message, edit, redact, react, invite, remove, or call_ and a step of a call");
            return None;
        }
        Some(kind)
    }

    pub(crate) fn cause(&mut self, name: &str) -> Option<String> {
        self.one_of(name, &CAUSES).map(str::to_owned)
    }

    /// A number of items.
    pub(crate) fn limit(&mut self, default: i64, most: i64) -> i64 {
        let range = format!("must be from 1 to {most}");
        let Some(limit) = self.parsed("limit", &range) else { return default };
        if !(1..=most).contains(&limit) {
            self.problem("limit", range);
            return default;
        }
        limit
    }

    pub(crate) fn cursor<T: FromStr>(&mut self) -> Option<T> {
        self.parsed("cursor", "must be the next_cursor of such a page")
    }

    pub(crate) fn time(&mut self, name: &str) -> Option<OffsetDateTime> {
        let text = self.text(name)?;
        let time = parse_time(&text);
        if time.is_none() {
            self.problem(name, "must be a time such as 2026-01-31T06:00:00Z");
        }
        time
    }

    pub(crate) fn duration(&mut self, name: &str) -> Option<Duration> {
        let text = self.text(name)?;
        parse_duration(&text).map_err(|must| self.problem(name, must)).ok()
    }

    /// Why somebody acts.
    pub(crate) fn reason(&mut self, name: &str, required: bool) -> Option<String> {
        let text = self.values.remove(name).unwrap_or_default();
        match reason::parse(&text) {
            Ok(reason) => Some(reason.to_owned()),
            Err(reason::NoReason::Empty) if !required => None,
            Err(error) => {
                self.problem(name, error.to_string());
                None
            }
        }
    }

    /// Refuses what was wrong, and what nobody asked for.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        for name in std::mem::take(&mut self.values).into_keys() {
            self.problem(&name, "is not known here");
        }
        if self.problems.is_empty() { Ok(()) } else { Err(ApiError::Invalid(self.problems)) }
    }
}

impl FromRequestParts<Arc<State>> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Self::Rejection> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default().as_bytes()))
    }
}

/// A time as RFC 3339 writes it, or as forms do, without a zone: that is UTC.
pub(crate) fn parse_time(text: &str) -> Option<OffsetDateTime> {
    let minutes = format_description!("[year]-[month]-[day]T[hour]:[minute]");
    let seconds = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
    let day = format_description!("[year]-[month]-[day]");
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .or_else(|| PrimitiveDateTime::parse(text, minutes).ok().map(PrimitiveDateTime::assume_utc))
        .or_else(|| PrimitiveDateTime::parse(text, seconds).ok().map(PrimitiveDateTime::assume_utc))
        .or_else(|| Date::parse(text, day).ok().map(|day| day.midnight().assume_utc()))
        // The database knows times of these years only.
        .filter(|time| (1..=9999).contains(&time.year()))
}

/// For how long something is paused.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text)
        .ok()
        .filter(|duration| !duration.is_zero() && *duration <= LONGEST_PAUSE)
        .ok_or("must be a duration such as 30m or 2h, at most a year")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn every_fault_is_told_by_its_name_at_once() {
        let mut params =
            Params::parse(b"kind=letter&limit=0&since=yesterday&user_id=ada&other=1&cause=&cause=x&errcode=%00");
        assert_eq!((params.kind("kind"), params.limit(50, 200), params.time("since")), (None, 50, None));
        assert_eq!(
            (params.id::<uuid::Uuid>("user_id"), params.cause("cause"), params.text("errcode")),
            (None, None, None)
        );
        let Err(ApiError::Invalid(problems)) = params.finish() else { panic!("must be refused") };
        let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["kind", "limit", "since", "user_id", "cause", "errcode", "other"]);
    }

    #[test]
    fn what_is_empty_was_not_given_and_what_is_given_twice_is_refused() {
        let mut params = Params::parse(b"kind=&cause=gave_up");
        assert_eq!((params.kind("kind"), params.cause("cause").as_deref()), (None, Some("gave_up")));
        assert!(params.finish().is_ok());
        let mut params = Params::parse(b"kind=edit&kind=message");
        params.kind("kind");
        assert!(params.finish().is_err());
    }

    #[test]
    fn a_time_without_a_zone_is_utc() {
        let time = Some(datetime!(2026-01-31 06:00:00 UTC));
        for text in ["2026-01-31T06:00:00Z", "2026-01-31T06:00", "2026-01-31T06:00:00", "2026-01-31T07:00:00+01:00"] {
            assert_eq!(parse_time(text), time, "{text}");
        }
        assert_eq!(parse_time("2026-01-31").unwrap(), datetime!(2026-01-31 00:00:00 UTC));
        assert_eq!(parse_time("31.1.2026"), None);
    }
}
