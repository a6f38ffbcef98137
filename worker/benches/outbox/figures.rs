//! Figures and tables, as Markdown.

use std::time::Duration;

/// A line of the summary: what was measured, and its limit in the same run.
#[derive(Debug)]
pub(crate) struct Figure {
    what: String,
    measured: String,
    limit: String,
    ratio: f64,
    goal: Option<f64>,
}

impl Figure {
    /// `ratio` is measured to limit.
    pub(crate) fn new(what: impl Into<String>, measured: String, limit: String, ratio: f64) -> Self {
        Self { what: what.into(), measured, limit, ratio, goal: None }
    }

    /// Its ratio should be at most this.
    pub(crate) fn at_most(self, goal: f64) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// As a row; goals are judged at full size only.
    pub(crate) fn cells(self, quick: bool) -> Vec<String> {
        let goal = match self.goal {
            Some(goal) if quick => format!("≤ {goal} at full size"),
            Some(goal) if self.ratio <= goal => format!("≤ {goal}: met"),
            Some(goal) => format!("≤ {goal}: **missed**"),
            None => String::new(),
        };
        vec![self.what, self.measured, self.limit, format!("{:.2}", self.ratio), goal]
    }
}

/// A table that reads well as it is and as Markdown.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        Self { title: title.to_owned(), rows: vec![columns] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn print(&self) {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        println!("\n## {}\n", self.title);
        for (n, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> =
                row.iter().enumerate().map(|(column, cell)| format!("{:<1$}", cell, width(column))).collect();
            println!("| {} |", cells.join(" | "));
            if n == 0 {
                let rules: Vec<String> = (0..row.len()).map(|column| "-".repeat(width(column) + 2)).collect();
                println!("|{}|", rules.join("|"));
            }
        }
    }
}

/// Durations of one kind, to be asked for their percentiles.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    /// The time that this part of them does not exceed; `part` from 0 to 1.
    pub(crate) fn percentile(&self, part: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
    }

    /// p50 and p99.
    pub(crate) fn shown(&self) -> String {
        format!("{} / {}", ms(self.percentile(0.5)), ms(self.percentile(0.99)))
    }
}

/// `1.4 ms`.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// `12,345`.
pub(crate) fn number(n: f64) -> String {
    let digits = format!("{n:.0}");
    let mut shown = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// `12,345/s`.
pub(crate) fn rate(n: f64) -> String {
    format!("{}/s", number(n))
}
