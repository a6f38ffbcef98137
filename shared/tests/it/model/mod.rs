//! A model of the outbox's protocol, explored state by state. Change it before you change the mechanism.
//!
//! The protocol is a handful of short transactions, and each of them is easy. What is hard is everything that can come
//! between two of them: a crash, a lease that lapses under a worker that goes on, a request that arrives long after its
//! sender gave up, a delete at the wrong moment. Here all of it comes between, in every order, and each state that can
//! be reached is held against the laws of [`laws`].
//!
//! # What is modelled
//!
//! One conversation's lane with up to two messages and ten operations (messages, edits, redactions, a member's removal
//! and invitation); two workers that claim one or two rows at a time; the API; an operator who requeues, discards,
//! holds and resumes; a homeserver that remembers transaction ids for a day; the sync that sees our own events come
//! back.
//!
//! - Each transaction of the database is one step. Where the order of its statements matters, a switch takes it apart.
//! - A PUT is a request on the wire. When its sender times out or crashes, it *travels*: it may be stored at any later
//!   time, or never. At most three are on the wire.
//! - An answer is: delivered, refused for now, refused for good, the room's fault, or lost. A refusal may come although
//!   an earlier attempt was stored (a proxy knows nothing of transaction ids).
//! - 25 hours may pass. Backoffs and leases end, the homeserver forgets its transaction ids, and whatever was sent
//!   before is looked up from then on. No request takes that long.
//! - Epochs and times are not numbers: a worker's epoch is the lane's or it is not, a row is due or it is not.
//!
//! What users do and what goes wrong is rationed by each scenario (see [`chance::Chance`]); work, time and the
//! homeserver are not.
//!
//! # What is not
//!
//! A second lane (lanes share nothing but workers), calls and their expiry, rate limits, the making of rooms, pool
//! sizes, clocks that disagree. Nothing here is a proof beyond the bounds of the scenarios; within them nothing is left
//! out, and an exploration that could not be finished fails.
//!
//! # How to read a trace
//!
//! ```text
//! broken: what a delete withdrew as unsent never appears in the room (CancelledNeverLeaves)
//!    1. API: message 0 is posted as #0
//!    2. worker 0 claims 1 row(s) from #0 on
//!    3. worker 0 starts the PUT of #0 (revision 1)
//!    ...
//! ```
//!
//! `#0` is the operation with sequence number 0; each line is one step; after the last one the lane, the operations and
//! the room are as printed below it. The search goes breadth first, so that no shorter trace breaks a law: every line
//! is needed. Laws about the end ("in the end the room shows...") are held against states in which nothing more happens
//! by itself. That there is such an end, and no work in circles, is a law too.
//!
//! # How to change it
//!
//! - A scenario is a line in [`scenarios`]: what may happen, and how often. Start from the fault that worries you,
//!   once, and the least that users must do for it to matter; each further chance multiplies the states.
//! - A precaution is a switch of [`protocol::Protocol`] with a test that shows which law falls without it. A precaution
//!   that can be switched off without any law falling is either not needed, or wants a scenario.
//! - A new field of a state belongs into `State::fingerprint`, which does not compile without it.
//!
//! `cargo test -p shared --test it model:: -- --nocapture` prints how many states each scenario has; `--ignored` runs
//! the larger ones.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by a panic")]

mod action;
mod api;
mod chance;
mod delivery;
mod explore;
mod laws;
mod list;
mod protocol;
mod scenarios;
mod state;
mod steps;
