//! Breadth first through all states, so that the first trace that breaks a law is a shortest one.
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use super::action::Action;
use super::chance::Budget;
use super::laws::{Law, broken, broken_at_rest};
use super::protocol::Protocol;
use super::state::State;
use super::steps::successors;

/// More than any scenario has; they take about 2 GB. Past it, an exploration ends as [`Report::truncated`].
const MOST_STATES: usize = 20_000_000;

/// What an exploration found.
#[derive(Default)]
pub(super) struct Report {
    /// Different states, not counting those that an equal state with as many chances left stands for.
    pub(super) states: usize,
    /// States in which nothing more happens by itself.
    pub(super) at_rest: usize,
    /// On some path, every chance of the scenario was taken.
    pub(super) spent_all: bool,
    pub(super) violation: Option<Violation>,
    /// There were more states than an exploration visits, or a step passed one of the model's bounds.
    pub(super) truncated: bool,
}

/// A law that does not hold, and how to get there.
pub(super) struct Violation {
    pub(super) law: Law,
    pub(super) trace: Vec<Action>,
    /// Where the trace ends. Not kept for a cycle.
    pub(super) state: Option<State>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broken: {} ({:?})", self.law, self.law)?;
        for (index, action) in self.trace.iter().enumerate() {
            writeln!(f, "  {:>2}. {action}", index + 1)?;
        }
        self.state.map_or(Ok(()), |state| write!(f, "{state}"))
    }
}

/// A visited state, as much of it as is needed later.
struct Node {
    parent: u32,
    /// What led here from the parent.
    action: Action,
    /// The workers changed their names in this step.
    renamed: bool,
    budget: Budget,
    /// Another visited state that differs only in its budget.
    sibling: Option<u32>,
}

#[derive(Default)]
struct Visited {
    nodes: Vec<Node>,
    by_fingerprint: HashMap<u64, u32, BuildHasherDefault<Identity>>,
}

impl Visited {
    /// The node that stands for this state, and whether it is new. A state that was seen with at least as many chances
    /// left need not be visited again: whatever can happen in it can happen there, in as many steps, and no law looks
    /// at chances.
    fn visit(&mut self, state: &State, parent: u32, action: Action, renamed: bool) -> (u32, bool) {
        let new = u32::try_from(self.nodes.len()).unwrap();
        let sibling = match self.by_fingerprint.entry(state.fingerprint()) {
            Entry::Vacant(entry) => {
                entry.insert(new);
                None
            }
            Entry::Occupied(mut entry) => {
                let mut next = Some(*entry.get());
                while let Some(seen) = next {
                    let node = &self.nodes[seen as usize];
                    if node.budget.covers(state.budget) {
                        return (seen, false);
                    }
                    next = node.sibling;
                }
                Some(entry.insert(new))
            }
        };
        self.nodes.push(Node { parent, action, renamed, budget: state.budget, sibling });
        (new, true)
    }

    /// The actions that lead to a node, with each worker under the name that it had at first.
    fn trace(&self, mut node: u32) -> Vec<Action> {
        let mut path = Vec::new();
        while node != 0 {
            path.push(&self.nodes[node as usize]);
            node = self.nodes[node as usize].parent;
        }
        let mut renamed = false;
        path.iter()
            .rev()
            .map(|node| {
                let action = if renamed { node.action.with_workers_renamed() } else { node.action };
                renamed ^= node.renamed;
                action
            })
            .collect()
    }
}

/// Visits every state that can be reached, or as many as it takes to break a law.
pub(super) fn explore(protocol: &Protocol, budget: Budget) -> Report {
    let start = State::initial(budget);
    let mut visited = Visited::default();
    let mut queue = VecDeque::from([(0, start)]);
    let mut effort = Effort::default();
    let mut report = Report::default();
    let mut steps = Vec::new();
    visited.visit(&start, 0, Action::Resume, false);

    while let Some((node, state)) = queue.pop_front() {
        steps.clear();
        successors(protocol, &state, &mut steps);
        if !steps.iter().any(|step| step.fair) {
            report.at_rest += 1;
            if let Some(law) = broken_at_rest(protocol, &state) {
                report.violation = Some(Violation { law, trace: visited.trace(node), state: Some(state) });
                break;
            }
        }
        effort.leave(node);
        for step in &mut steps {
            let next = &mut step.next;
            let renamed = next.canonicalise();
            if next.overflowed || visited.nodes.len() == MOST_STATES {
                report.truncated = true;
                continue;
            }
            let (target, is_new) = visited.visit(next, node, step.action, renamed);
            if next.budget == state.budget {
                effort.step_to(target);
            }
            if is_new {
                if let Some(law) = broken(protocol, next) {
                    report.violation = Some(Violation { law, trace: visited.trace(target), state: Some(*next) });
                    queue.clear();
                    break;
                }
                queue.push_back((target, *next));
            }
        }
    }

    report.states = visited.nodes.len();
    report.spent_all = visited.nodes.iter().any(|node| node.budget == Budget::default());
    if report.violation.is_none()
        && let Some(node) = effort.cycle()
    {
        report.violation = Some(Violation { law: Law::NoWorkWithoutEnd, trace: visited.trace(node), state: None });
    }
    report
}

/// The steps that cost no chance, as a graph. A cycle in it would be work without end: nothing else can happen for
/// ever.
#[derive(Default)]
struct Effort {
    /// Where the steps of each node begin in `targets`. Nodes are left in their order.
    starts: Vec<usize>,
    targets: Vec<u32>,
}

impl Effort {
    fn leave(&mut self, node: u32) {
        assert_eq!(self.starts.len(), node as usize, "nodes are left in the order in which they were found");
        self.starts.push(self.targets.len());
    }

    fn step_to(&mut self, node: u32) {
        self.targets.push(node);
    }

    fn steps_from(&self, node: usize) -> &[u32] {
        let end = self.starts.get(node + 1).copied().unwrap_or(self.targets.len());
        self.starts.get(node).map_or(&[], |&start| &self.targets[start..end])
    }

    /// A node on a cycle, or on the way from one: what remains after taking away, again and again, the nodes that no
    /// remaining step leads to.
    fn cycle(&self) -> Option<u32> {
        let mut arrivals = vec![0_u32; self.starts.len()];
        for &target in &self.targets {
            arrivals[target as usize] += 1;
        }
        let mut free: Vec<usize> = (0..arrivals.len()).filter(|&node| arrivals[node] == 0).collect();
        let mut taken = 0;
        while let Some(node) = free.pop() {
            taken += 1;
            for &target in self.steps_from(node) {
                arrivals[target as usize] -= 1;
                if arrivals[target as usize] == 0 {
                    free.push(target as usize);
                }
            }
        }
        let on_cycle = arrivals.iter().position(|&arrivals| arrivals > 0);
        debug_assert_eq!(on_cycle.is_none(), taken == arrivals.len());
        on_cycle.map(|node| u32::try_from(node).unwrap())
    }
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[test]
fn a_cycle_of_steps_is_found() {
    let graph = |edges: &[&[u32]]| {
        let mut effort = Effort::default();
        for (node, targets) in (0..).zip(edges) {
            effort.leave(node);
            targets.iter().for_each(|&target| effort.step_to(target));
        }
        effort
    };
    assert_eq!(graph(&[&[1, 2], &[2], &[]]).cycle(), None);
    assert_eq!(graph(&[&[1], &[2], &[1]]).cycle(), Some(1));
    assert_eq!(graph(&[&[1], &[1]]).cycle(), Some(1));
}
