//! What came of a drill, in words and for programs.

use std::fmt;

use serde::Serialize;

use super::Scenario;

/// What came of a drill.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What happened.
    pub scenario: Scenario,
    /// The seed of the first round; that of each other is one more.
    pub seed: u64,
    /// How many rounds were played.
    pub rounds: usize,
    /// Requests of clients that posted, edited or deleted.
    pub operations: usize,
    /// How often harm was done: kills, cuts, stops, refused or unanswered requests, as the scenario has it.
    pub faults: u64,
    /// How long it took.
    pub seconds: f64,
    /// Messages or texts that were confirmed and are not in their room.
    pub lost: usize,
    /// What stands in a room twice.
    pub doubled: usize,
    /// What stands behind something that came later.
    pub reordered: usize,
    /// What was deleted and can still be read, or left although that was denied.
    pub leaked: usize,
    /// What else is not as it was asked.
    pub wrong: usize,
    /// What the database says is still to be done, when nothing is.
    pub undelivered: i64,
    /// Operations that were given up.
    pub dead_letters: i64,
    /// Attempts of all operations.
    pub attempts: i64,
    /// Probes of an open circuit, as far as the workers lived to tell.
    pub probes: u64,
    /// Tries of clients that the API did not answer. They tried again.
    pub unanswered: u64,
    /// Everything that breaks a promise, in words.
    pub broken: Vec<String>,
}

impl Report {
    pub(super) const fn new(scenario: Scenario, seed: u64) -> Self {
        Self {
            scenario,
            seed,
            rounds: 0,
            operations: 0,
            faults: 0,
            seconds: 0.0,
            lost: 0,
            doubled: 0,
            reordered: 0,
            leaked: 0,
            wrong: 0,
            undelivered: 0,
            dead_letters: 0,
            attempts: 0,
            probes: 0,
            unanswered: 0,
            broken: Vec::new(),
        }
    }

    /// True when every promise was kept.
    pub const fn is_clean(&self) -> bool {
        self.broken.is_empty() && self.undelivered == 0 && self.dead_letters == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, rounds, operations, faults, seconds, attempts, probes, unanswered, .. } = self;
        writeln!(
            f,
            "{:<9} seed {seed}, {operations} operations in {rounds} rounds, {faults} faults, {seconds:.0} s: {}",
            self.scenario.as_str(),
            if self.is_clean() { "clean" } else { "BROKEN" },
        )?;
        let Self { lost, doubled, reordered, leaked, wrong, undelivered, dead_letters, .. } = self;
        writeln!(
            f,
            "          {lost} lost, {doubled} doubled, {reordered} reordered, {leaked} leaked, {wrong} otherwise wrong, \
             {undelivered} undelivered, {dead_letters} dead letters"
        )?;
        writeln!(f, "          {attempts} attempts, {probes} probes, {unanswered} tries that the API did not answer")?;
        self.broken.iter().try_for_each(|broken| writeln!(f, "{broken}"))
    }
}
