//! The table of metrics for people.

use std::fmt::Write as _;

use super::{ALL, LabelOf, Source, Values};

/// Labels with more values than this are explained below the tables.
const VALUES_IN_A_CELL: usize = 10;

/// What is said before the metrics of each source.
const SECTIONS: [(Source, &str); 4] = [
    (Source::Api, "Of the API:"),
    (Source::Worker, "Of the worker:"),
    (Source::Both, "Of both:"),
    (
        Source::Database,
        "Of the database, which each worker reads every 5 seconds. All report the same, so take `max`, not `sum`, over the\n\
         workers:",
    ),
];

/// The tables of all metrics, as Markdown.
pub fn tables() -> String {
    let mut page = String::new();
    for (source, heading) in SECTIONS {
        let _ = write!(page, "{heading}\n\n| metric | type | labels | |\n|---|---|---|---|\n");
        for metric in ALL.iter().filter(|metric| metric.source == source) {
            let labels: Vec<String> = metric.labels.iter().map(cell).collect();
            let labels = if labels.is_empty() { String::new() } else { format!(" {}", labels.join("; ")) };
            let _ = writeln!(page, "| `{}` | {} |{labels} | {} |", metric.name, metric.kind.as_str(), metric.help);
        }
        page.push('\n');
    }
    page.push_str("Labels of many values:\n\n| label | values |\n|---|---|\n");
    let mut told: Vec<(&str, String)> = Vec::new();
    for label in ALL.iter().flat_map(|metric| metric.labels).filter(|label| is_long(label)) {
        let line = (label.name, values(label));
        if !told.contains(&line) {
            told.push(line);
        }
    }
    for (name, values) in told {
        let _ = writeln!(page, "| `{name}` | {values} |");
    }
    page.push_str("\nBuckets of the histograms, upper bounds in seconds:\n\n| metric | buckets |\n|---|---|\n");
    for metric in ALL.iter().filter(|metric| !metric.buckets.is_empty()) {
        let bounds: Vec<String> = metric.buckets.iter().map(f64::to_string).collect();
        let _ = writeln!(page, "| `{}` | {} |", metric.name, bounds.join(", "));
    }
    page
}

fn is_long(label: &LabelOf) -> bool {
    match label.values {
        Values::Routes => true,
        Values::Of(values) | Values::Rare(values, _) => values.len() > VALUES_IN_A_CELL,
    }
}

fn cell(label: &LabelOf) -> String {
    if is_long(label) { format!("`{}`", label.name) } else { format!("`{}`: {}", label.name, values(label)) }
}

fn values(label: &LabelOf) -> String {
    match label.values {
        Values::Routes => "the patterns of the API's routes, such as `/messages/{id}`, and `none`".to_owned(),
        Values::Of(values) | Values::Rare(values, _) => {
            values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use std::{fs, path::Path};

    use super::tables;

    const BEGIN: &str = "<!-- From shared/src/metric/table.rs, by `make docs`. -->\n\n";
    const END: &str = "\n<!-- Until here. -->\n";

    #[test]
    fn the_documentation_has_the_metrics_of_the_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/OPERATING.md");
        let page = fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (stands, after) = rest.split_once(END).unwrap();
        let tables = tables();
        if std::env::var_os("RENEW_DOCS").is_some() {
            fs::write(&path, [before, BEGIN, &tables, END, after].concat()).unwrap();
            return;
        }
        for (n, (stands, made)) in stands.lines().zip(tables.lines()).enumerate() {
            assert_eq!(stands, made, "line {n} of the metrics in worker/OPERATING.md: run `make docs`");
        }
        assert!(stands == tables, "the metrics in worker/OPERATING.md are not those of the table: run `make docs`");
    }
}
