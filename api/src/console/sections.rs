//! A page of a heading, what can be done, and sections.

use askama::Template;
use axum::response::Response;

use super::{
    html::Markup,
    session::Session,
    shell::{self, Shell},
};

/// Such a page.
#[derive(Template)]
#[template(path = "sections.html")]
pub(super) struct Sections {
    shell: Shell,
    heading: Markup,
    /// What to know first.
    lead: Option<Markup>,
    actions: Vec<Markup>,
    parts: Vec<Markup>,
    /// Whether the script renews it.
    live: bool,
}

impl Sections {
    pub(super) fn new(session: &Session, section: &'static str, title: impl Into<String>) -> Self {
        let shell = Shell::new(session, section, title);
        let heading = super::html::text(&shell.title);
        Self { shell, heading, lead: None, actions: Vec::new(), parts: Vec::new(), live: false }
    }

    pub(super) fn heading(mut self, heading: Markup) -> Self {
        self.heading = heading;
        self
    }

    pub(super) fn note(mut self, note: Option<String>) -> Self {
        self.shell = self.shell.with_note(note);
        self
    }

    pub(super) fn lead(mut self, lead: Markup) -> Self {
        self.lead = Some(lead);
        self
    }

    pub(super) fn action(mut self, action: Markup) -> Self {
        self.actions.push(action);
        self
    }

    pub(super) fn section(mut self, section: Markup) -> Self {
        if !section.0.is_empty() {
            self.parts.push(section);
        }
        self
    }

    pub(super) fn live(mut self) -> Self {
        self.live = true;
        self
    }

    pub(super) fn page(&self) -> Response {
        shell::page(self)
    }
}
