//! What is known of one thing: names and values.

use askama::Template;

use super::html::Markup;

/// Such a list.
#[derive(Debug, Template)]
#[template(path = "facts.html")]
pub(super) struct Facts {
    id: &'static str,
    caption: String,
    items: Vec<(&'static str, Markup)>,
}

impl Facts {
    pub(super) fn new(id: &'static str, caption: impl Into<String>) -> Self {
        Self { id, caption: caption.into(), items: Vec::new() }
    }

    pub(super) fn add(&mut self, name: &'static str, value: Markup) {
        self.items.push((name, value));
    }

    pub(super) fn markup(&self) -> Markup {
        Markup(self.render().unwrap_or_default())
    }
}
