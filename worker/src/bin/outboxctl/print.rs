//! Tables for people, JSON for programs.

use std::io::Write as _;

use serde::Serialize;
use shared::{ids::ConversationId, outbox::Repair};
use time::{OffsetDateTime, UtcOffset, macros::format_description};

use crate::Failed;

/// Prints text; that nobody reads it to the end (`| head`) is no failure.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

/// Prints JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failed> {
    say(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A time to the second, UTC.
pub(crate) fn at(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    at.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// A time, or a dash.
pub(crate) fn at_or_dash(time: Option<OffsetDateTime>) -> String {
    time.map_or_else(|| "-".to_owned(), at)
}

/// Text of others, or a dash.
pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), clean)
}

/// Text of others, on one line: what a homeserver answers must not steer the terminal.
pub(crate) fn clean(text: &str) -> String {
    // Neither does what turns the direction of writing.
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if steers(c) { ' ' } else { c }).collect()
}

/// What is typed for a repair.
pub(crate) fn repair_command(repair: Repair, conversation_id: ConversationId) -> String {
    format!("outboxctl repair --conversation {conversation_id} {}", repair.as_str().replace('_', "-"))
}

/// What is typed for a repair of all conversations that need it, or of those with dead letters of a code.
pub(crate) fn repair_all_command(repair: Repair, errcode: Option<&str>) -> String {
    let code = errcode.map_or_else(String::new, |code| format!(" --errcode {}", clean(code)));
    format!("outboxctl repair --all {}{code}", repair.as_str().replace('_', "-"))
}

/// A table with aligned columns.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heads.map(|head| head.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let cells: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(heads)];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// `1 lane`, `2 lanes`.
pub(crate) fn count(n: impl Into<i128>, one: &str) -> String {
    let n = n.into();
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "long cell".to_owned()], ["ää".to_owned(), "b".to_owned()]];
        assert_eq!(table(["x", "y"], &rows), "x   y\na   long cell\nää  b");
    }

    #[test]
    fn nothing_of_others_steers_the_terminal() {
        assert_eq!(clean("red\u{1b}[31m\nalert\u{9b}2J\u{202e}"), "red [31m alert 2J ");
    }
}
