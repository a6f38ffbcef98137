//! Tables: one shape for all of them, which a narrow screen shows as cards.

use askama::Template;

use super::html::Markup;

/// A row.
#[derive(Debug)]
pub(super) struct Row {
    /// What it is about, for tests and scripts: an id.
    pub(super) key: String,
    pub(super) cells: Vec<Markup>,
}

/// A table, or what to say in its place.
#[derive(Debug, Template)]
#[template(path = "table.html")]
pub(super) struct Table {
    /// Names it in the page.
    id: &'static str,
    caption: String,
    heads: &'static [&'static str],
    rows: Vec<Row>,
    nothing: String,
    /// The next page.
    more: Option<String>,
}

impl Table {
    pub(super) fn new(id: &'static str, caption: impl Into<String>, heads: &'static [&'static str]) -> Self {
        Self { id, caption: caption.into(), heads, rows: Vec::new(), nothing: "nothing".to_owned(), more: None }
    }

    /// What to say when there are no rows.
    pub(super) fn or(mut self, nothing: impl Into<String>) -> Self {
        self.nothing = nothing.into();
        self
    }

    pub(super) fn more(mut self, link: Option<String>) -> Self {
        self.more = link;
        self
    }

    #[expect(clippy::needless_pass_by_value, reason = "what is passed are ids and numbers, which are copied")]
    pub(super) fn row(&mut self, key: impl ToString, cells: Vec<Markup>) {
        debug_assert_eq!(cells.len(), self.heads.len(), "a cell for each head of {}", self.id);
        self.rows.push(Row { key: key.to_string(), cells });
    }

    /// As part of a page.
    pub(super) fn markup(&self) -> Markup {
        Markup(self.render().unwrap_or_default())
    }
}
