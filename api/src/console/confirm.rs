//! Pages that say in words what an act will do, and ask for a reason, before it is done.

use askama::Template;
use axum::response::Response;

use super::{
    html::Markup,
    session::Session,
    shell::{self, Shell},
};

/// A field that somebody fills in.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) hint: &'static str,
    pub(super) value: String,
    pub(super) required: bool,
    /// The type of the input.
    pub(super) kind: &'static str,
}

impl Field {
    pub(super) fn text(name: &'static str, label: &'static str, hint: &'static str) -> Self {
        Self { name, label, hint, value: String::new(), required: false, kind: "text" }
    }
}

/// Such a page.
#[derive(Template)]
#[template(path = "confirm.html")]
pub(super) struct Confirm {
    shell: Shell,
    heading: String,
    /// What it will do, a paragraph each.
    sentences: Vec<String>,
    /// What must be minded.
    warning: Option<String>,
    /// More to look at first.
    sections: Vec<Markup>,
    action: String,
    hidden: Vec<(&'static str, String)>,
    fields: Vec<Field>,
    /// Boxes to tick: names and labels.
    boxes: Vec<(&'static str, &'static str)>,
    reason_required: bool,
    button: String,
    danger: bool,
    back: String,
}

impl Confirm {
    pub(super) fn new(session: &Session, section: &'static str, heading: impl Into<String>) -> Self {
        let heading = heading.into();
        Self {
            shell: Shell::new(session, section, heading.clone()),
            button: heading.clone(),
            heading,
            sentences: Vec::new(),
            warning: None,
            sections: Vec::new(),
            action: String::new(),
            hidden: Vec::new(),
            fields: Vec::new(),
            boxes: Vec::new(),
            reason_required: false,
            danger: false,
            back: "/console".to_owned(),
        }
    }

    pub(super) fn says(mut self, sentence: impl Into<String>) -> Self {
        self.sentences.push(sentence.into());
        self
    }

    pub(super) fn warns(mut self, warning: impl Into<String>) -> Self {
        self.warning = Some(warning.into());
        self
    }

    pub(super) fn shows(mut self, section: Markup) -> Self {
        self.sections.push(section);
        self
    }

    pub(super) fn sends(mut self, action: impl Into<String>, button: impl Into<String>) -> Self {
        self.action = action.into();
        self.button = button.into();
        self
    }

    #[expect(clippy::needless_pass_by_value, reason = "what is passed are ids and numbers, which are copied")]
    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.hidden.push((name, value.to_string()));
        self
    }

    pub(super) fn asks(mut self, field: Field) -> Self {
        self.fields.push(field);
        self
    }

    pub(super) fn checks(mut self, name: &'static str, label: &'static str) -> Self {
        self.boxes.push((name, label));
        self
    }

    pub(super) fn must_say_why(mut self) -> Self {
        self.reason_required = true;
        self
    }

    pub(super) fn dangerous(mut self) -> Self {
        self.danger = true;
        self
    }

    pub(super) fn back_to(mut self, path: impl Into<String>) -> Self {
        self.back = path.into();
        self
    }

    pub(super) fn page(&self) -> Response {
        shell::page(self)
    }
}
