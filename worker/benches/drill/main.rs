//! Drills: one fault after another against the whole product, with a ledger at the end. `make drill` runs them.
//!
//! `DRILL` names one (`crash`, `outage`, `flaky`, `database`, `zombie`, `restart`, `deploy`) or `all`, `SEED` and
//! `OPERATIONS` say what clients do in each, `KILLS` how often `crash` kills. The reports go to standard output in words,
//! and as JSON into the target folder. The exit code is 1 when a promise was broken.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed drill")]

use std::{path::PathBuf, process::ExitCode, str::FromStr};

use shared::testing::drill::{Drill, Report, Scenario};

/// Clients' requests in each scenario.
const OPERATIONS: usize = 2_400;

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is not to be read: {value:?}")))
}

fn scenarios() -> Vec<Scenario> {
    match std::env::var("DRILL").as_deref() {
        Ok("" | "all") | Err(_) => Scenario::ALL.to_vec(),
        Ok(name) => vec![name.parse().unwrap()],
    }
}

/// Beside the programs that were drilled.
fn report_path() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().and_then(|deps| deps.parent()).unwrap().join("drill-report.json")
}

#[tokio::main]
async fn main() -> ExitCode {
    // `cargo test` runs every target that it finds.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing is drilled but by `cargo bench`: see `make drill`");
        return ExitCode::SUCCESS;
    }
    let seed = variable("SEED").unwrap_or(4);
    let operations = variable("OPERATIONS").unwrap_or(OPERATIONS);
    let mut reports: Vec<Report> = Vec::new();
    for scenario in scenarios() {
        let faults = variable("KILLS").filter(|_| scenario == Scenario::Crash);
        let report = Drill { scenario, seed, operations, faults }.play().await;
        println!("{report}");
        reports.push(report);
    }
    let path = report_path();
    std::fs::write(&path, serde_json::to_vec_pretty(&reports).unwrap()).unwrap();
    println!("The same as JSON: {}", path.display());
    if reports.iter().all(Report::is_clean) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
