//! Forms that filter: a field for each filter, with what it has.

use std::collections::BTreeMap;

use askama::Template;
use url::form_urlencoded;

use super::html::Markup;

/// A choice of a field.
#[derive(Debug)]
struct Choice {
    value: &'static str,
    words: &'static str,
    chosen: bool,
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    label: &'static str,
    hint: &'static str,
    value: String,
    choices: Vec<Choice>,
}

/// A form that asks for a page again, with other filters.
#[derive(Debug, Template)]
#[template(path = "filters.html")]
pub(super) struct Filters {
    action: &'static str,
    given: BTreeMap<String, String>,
    fields: Vec<Field>,
}

impl Filters {
    pub(super) fn new(action: &'static str, given: BTreeMap<String, String>) -> Self {
        Self { action, given, fields: Vec::new() }
    }

    fn value(&self, name: &str) -> String {
        self.given.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn text(mut self, name: &'static str, label: &'static str, hint: &'static str) -> Self {
        let value = self.value(name);
        self.fields.push(Field { name, label, hint, value, choices: Vec::new() });
        self
    }

    pub(super) fn choice(
        mut self,
        name: &'static str,
        label: &'static str,
        choices: &[(&'static str, &'static str)],
    ) -> Self {
        let value = self.value(name);
        let choices =
            choices.iter().map(|(choice, words)| Choice { value: choice, words, chosen: *choice == value }).collect();
        self.fields.push(Field { name, label, hint: "", value, choices });
        self
    }

    pub(super) fn markup(&self) -> Markup {
        Markup(self.render().unwrap_or_default())
    }

    /// Another page with the same filters.
    pub(super) fn elsewhere(&self, path: &str) -> String {
        let given = self.given.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        query(path, given.filter(|(name, _)| !matches!(*name, "cursor" | "state")))
    }

    /// The same page from a place on.
    pub(super) fn next(&self, cursor: &str) -> String {
        let given = self.given.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        query(self.action, given.filter(|(name, _)| *name != "cursor").chain([("cursor", cursor)]))
    }
}

/// A path with a query.
pub(super) fn query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs {
        if !value.is_empty() {
            text.append_pair(name, value);
        }
    }
    let text = text.finish();
    if text.is_empty() { path.to_owned() } else { format!("{path}?{text}") }
}

/// What operations do, as a choice.
pub(super) const KINDS: &[(&str, &str)] = &[
    ("", "any"),
    ("message", "message"),
    ("edit", "edit"),
    ("redact", "redaction"),
    ("react", "reaction"),
    ("invite", "invitation"),
    ("remove", "removal"),
    ("call_invite", "call: invite"),
    ("call_candidates", "call: candidates"),
    ("call_answer", "call: answer"),
    ("call_select_answer", "call: select answer"),
    ("call_negotiate", "call: negotiate"),
    ("call_sdp_stream_metadata_changed", "call: stream metadata"),
    ("call_reject", "call: reject"),
    ("call_hangup", "call: hangup"),
];

/// Why operations die, as a choice.
pub(super) const CAUSES: &[(&str, &str)] = &[
    ("", "any"),
    ("own_fault", "cannot be sent as it is"),
    ("parent_dead", "its message did not arrive"),
    ("gave_up", "its time was up"),
];
