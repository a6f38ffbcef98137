//! Metrics: one table of all there are, and the only way to write one.
//!
//! What is not in the [`table`] has no name to be written by, and a label's value that the table does not list counts as
//! `other`: however much goes through, the number of series stays the same. No label names a room, a user, a message, a
//! conversation or an operation; who is affected is in the logs and in `outboxctl`.
//!
//! Whoever starts a program [`begin`]s its metrics: each has its description from then on, and what counts stands at zero,
//! so that no panel is empty and no alert blind before something first happens. A gauge is there when it is first known.

use metrics::{Counter as Count, Gauge as Level, Histogram as Samples, Key, KeyName, Label, Metadata, SharedString};

mod docs;
mod table;

pub use docs::tables;
pub use table::*;

/// Where in a program a metric is written does not matter to anybody.
static ANYWHERE: Metadata<'static> = Metadata::new("matrix_outbox", metrics::Level::INFO, None);

/// What a label's value is called that the table does not list.
pub const OTHER: &str = "other";

/// So many series a metric has from the start at most: more labels than that would say nothing for a long time.
const SERIES_FROM_THE_START: usize = 32;

/// Which program reports a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The API, of itself.
    Api,
    /// The worker, of itself.
    Worker,
    /// Both, each of itself.
    Both,
    /// Every worker, of the one database: the maximum over the workers is the figure, not the sum.
    Database,
}

/// A program that reports metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The API.
    Api,
    /// The worker.
    Worker,
}

impl Source {
    /// Whether a program reports it.
    pub const fn is_of(self, program: Program) -> bool {
        match self {
            Self::Api => matches!(program, Program::Api),
            Self::Worker | Self::Database => matches!(program, Program::Worker),
            Self::Both => true,
        }
    }
}

/// What sort of figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// It only rises.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How many fell into which bucket.
    Histogram,
}

impl Type {
    /// In Prometheus' words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The values that a label may have.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// These.
    Of(&'static [&'static str]),
    /// These, of which only the first so many are there from the start.
    Rare(&'static [&'static str], usize),
    /// The patterns of the API's routes, and `none`.
    Routes,
}

impl Values {
    /// Those that are listed.
    pub const fn listed(&self) -> &'static [&'static str] {
        match self {
            Self::Of(values) | Self::Rare(values, _) => values,
            Self::Routes => &[],
        }
    }

    /// The listed value that stands for this one; [`OTHER`] where it has no place of its own.
    pub fn of(&self, value: &str) -> &'static str {
        self.listed().iter().find(|listed| **listed == value).copied().unwrap_or(OTHER)
    }

    fn at_start(&self) -> &'static [&'static str] {
        match self {
            Self::Of(values) => values,
            Self::Rare(values, first) => values.get(..*first).unwrap_or(values),
            Self::Routes => &[],
        }
    }

    /// The value as it is written.
    fn bounded(&self, name: &str, value: &str) -> SharedString {
        if let Self::Routes = self {
            return value.to_owned().into();
        }
        let listed = self.of(value);
        debug_assert!(self.listed().contains(&listed), "the table of metrics has no {value:?} for {name}");
        listed.into()
    }
}

/// A label.
#[derive(Debug, Clone, Copy)]
pub struct LabelOf {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: Values,
}

/// A line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name; what it counts in ends it.
    pub name: &'static str,
    /// What sort of figure it is.
    pub kind: Type,
    /// Who reports it.
    pub source: Source,
    /// Its labels.
    pub labels: &'static [LabelOf],
    /// What it says, for people.
    pub help: &'static str,
    /// The upper bounds of its buckets; empty for what is no histogram.
    pub buckets: &'static [f64],
    /// Whether it stands at zero from the start. A gauge that is not known yet does not: it would say what is not so.
    pub starts: bool,
}

impl Metric {
    /// What it is counted in, where that is not just things: `seconds`, `bytes` or `ratio`.
    pub fn unit(&self) -> Option<&'static str> {
        let name = self.name.trim_end_matches("_total");
        ["seconds", "bytes", "ratio"].into_iter().find(|unit| name.ends_with(unit))
    }

    fn key(&self, values: &[&str]) -> Key {
        let labels = self.labels.iter().zip(values);
        let labels = labels.map(|(label, value)| Label::new(label.name, label.values.bounded(self.name, value)));
        Key::from_parts(self.name, labels.collect::<Vec<_>>())
    }

    /// The values of its labels that are there from the start: all combinations of them.
    fn at_start(&self) -> Vec<Vec<&'static str>> {
        if !self.starts {
            return Vec::new();
        }
        let mut series = vec![Vec::new()];
        for label in self.labels {
            let values = label.values.at_start();
            let longer = |before: &Vec<&'static str>, value: &'static str| [before.as_slice(), &[value]].concat();
            series = series.iter().flat_map(|before| values.iter().map(move |value| longer(before, value))).collect();
        }
        if series.len() > SERIES_FROM_THE_START { Vec::new() } else { series }
    }

    fn begin(&self) {
        metrics::with_recorder(|recorder| {
            let (name, help) = (KeyName::from_const_str(self.name), self.help.into());
            match self.kind {
                Type::Counter => recorder.describe_counter(name, None, help),
                Type::Gauge => recorder.describe_gauge(name, None, help),
                Type::Histogram => recorder.describe_histogram(name, None, help),
            }
            for values in self.at_start() {
                let key = self.key(&values);
                match self.kind {
                    Type::Counter => recorder.register_counter(&key, &ANYWHERE).increment(0),
                    Type::Gauge => recorder.register_gauge(&key, &ANYWHERE).set(0.0),
                    Type::Histogram => drop(recorder.register_histogram(&key, &ANYWHERE)),
                }
            }
        });
    }
}

/// Describes the metrics of a program, and sets those to zero that count and have few labels.
pub fn begin(program: Program) {
    for metric in ALL.iter().filter(|metric| metric.source.is_of(program)) {
        metric.begin();
    }
}

/// A counter with `N` labels.
#[derive(Debug)]
pub struct Counter<const N: usize>(Metric);

impl<const N: usize> Counter<N> {
    const KIND: Type = Type::Counter;

    const fn new(metric: Metric) -> Self {
        Self(metric)
    }

    const fn metric(&self) -> &Metric {
        &self.0
    }

    /// The counter of these values, in the order of the table.
    pub fn with(&self, values: [&str; N]) -> Count {
        let key = self.0.key(&values);
        metrics::with_recorder(|recorder| recorder.register_counter(&key, &ANYWHERE))
    }
}

impl Counter<0> {
    /// Counts so many more.
    pub fn increment(&self, by: u64) {
        self.with([]).increment(by);
    }

    /// Says how many there are by now, where that is counted elsewhere.
    pub fn absolute(&self, count: u64) {
        self.with([]).absolute(count);
    }
}

/// A gauge with `N` labels.
#[derive(Debug)]
pub struct Gauge<const N: usize>(Metric);

impl<const N: usize> Gauge<N> {
    const KIND: Type = Type::Gauge;

    const fn new(metric: Metric) -> Self {
        Self(metric)
    }

    const fn metric(&self) -> &Metric {
        &self.0
    }

    /// The gauge of these values, in the order of the table.
    pub fn with(&self, values: [&str; N]) -> Level {
        let key = self.0.key(&values);
        metrics::with_recorder(|recorder| recorder.register_gauge(&key, &ANYWHERE))
    }
}

impl Gauge<0> {
    /// Says how it stands.
    pub fn set(&self, value: f64) {
        self.with([]).set(value);
    }

    /// So much more.
    pub fn increment(&self, by: f64) {
        self.with([]).increment(by);
    }

    /// So much less.
    pub fn decrement(&self, by: f64) {
        self.with([]).decrement(by);
    }

    /// Says whether something is so: 1 or 0.
    pub fn set_bool(&self, value: bool) {
        self.set(if value { 1.0 } else { 0.0 });
    }
}

/// A histogram with `N` labels.
#[derive(Debug)]
pub struct Histogram<const N: usize>(Metric);

impl<const N: usize> Histogram<N> {
    const KIND: Type = Type::Histogram;

    const fn new(metric: Metric) -> Self {
        Self(metric)
    }

    const fn metric(&self) -> &Metric {
        &self.0
    }

    /// The histogram of these values, in the order of the table.
    pub fn with(&self, values: [&str; N]) -> Samples {
        let key = self.0.key(&values);
        metrics::with_recorder(|recorder| recorder.register_histogram(&key, &ANYWHERE))
    }
}

impl Histogram<0> {
    /// Records one.
    pub fn record(&self, value: f64) {
        self.with([]).record(value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{
        calls::{EndReason, SignalKind},
        outbox::{Kind, LaneClass},
    };

    /// What would make as many series as there is traffic, or name somebody.
    const FORBIDDEN: [&str; 12] = [
        "room",
        "user",
        "sender",
        "member",
        "message",
        "conversation",
        "operation",
        "outbox",
        "call",
        "event",
        "id",
        "txn",
    ];

    #[test]
    fn no_label_names_a_room_a_user_a_message_a_conversation_or_an_operation() {
        for metric in ALL {
            for label in metric.labels {
                let named = label.name.split('_').find(|word| FORBIDDEN.contains(word));
                assert_eq!(named, None, "{} has the label {}", metric.name, label.name);
            }
        }
    }

    #[test]
    fn the_number_of_series_is_bounded_by_the_table() {
        let routes = 100;
        let series = |metric: &Metric| -> usize {
            let values = |label: &LabelOf| match label.values {
                Values::Routes => routes,
                Values::Of(values) | Values::Rare(values, _) => values.len(),
            };
            metric.labels.iter().map(values).product::<usize>() * (metric.buckets.len() + 3).max(1)
        };
        for metric in ALL {
            for label in metric.labels {
                let listed = label.values.listed();
                let distinct: HashSet<_> = listed.iter().collect();
                assert_eq!(distinct.len(), listed.len(), "{}: {}", metric.name, label.name);
                assert!(listed.len() <= 40, "{}: {}", metric.name, label.name);
            }
            assert!(series(metric) <= 100_000, "{}", metric.name);
        }
    }

    #[test]
    fn names_are_as_prometheus_would_have_them() {
        let mut names = HashSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Type::Counter, "{name}");
            assert!(!["_count", "_sum", "_bucket", "_info"].iter().any(|ending| name.ends_with(ending)), "{name}");
            assert!(!metric.help.is_empty() && !metric.help.ends_with('.') && !metric.help.contains('|'), "{name}");
            assert_eq!(metric.kind == Type::Histogram, !metric.buckets.is_empty(), "{name}");
            assert!(metric.buckets.is_sorted_by(|a, b| a < b), "{name}");
            if metric.kind == Type::Histogram {
                assert_eq!(metric.unit(), Some("seconds"), "{name}");
            }
            for abbreviated in ["_ms", "_millis", "_secs", "_mins", "_minutes", "_hours", "_kb", "_mb", "_percent"] {
                assert!(!name.contains(abbreviated), "{name}");
            }
        }
    }

    #[test]
    fn labels_have_the_words_of_the_code() {
        let kinds: Vec<&str> = KINDS.listed().to_vec();
        for kind in SignalKind::ALL {
            assert!(kinds.contains(&Kind::Call(kind).as_str()), "{kind:?}");
        }
        for kind in &kinds {
            assert!(Kind::parse(kind).is_some(), "{kind}");
        }
        assert_eq!(kinds.len(), 6 + SignalKind::ALL.len());
        assert_eq!(LANE_CLASSES.listed(), LaneClass::ALL.map(LaneClass::as_str));
        for reason in HANGUPS.listed() {
            assert_eq!(EndReason::of_hangup(Some(reason)).as_str(), *reason);
        }
    }

    #[test]
    fn what_counts_and_has_few_labels_is_there_from_the_start() {
        for metric in ALL {
            let routed = metric.labels.iter().any(|label| matches!(label.values, Values::Routes));
            assert_eq!(metric.at_start().is_empty(), routed || !metric.starts, "{}", metric.name);
            assert!(metric.starts || metric.kind == Type::Gauge, "{}", metric.name);
        }
    }

    #[test]
    fn a_value_that_nobody_listed_is_other() {
        assert_eq!(ERRCODES.bounded("m", "M_FORBIDDEN").as_ref(), "M_FORBIDDEN");
        assert_eq!(ERRCODES.bounded("m", "M_SOMETHING_OF_A_CLIENT").as_ref(), OTHER);
    }
}
