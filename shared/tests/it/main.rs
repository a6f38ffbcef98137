//! Tests of what `shared` offers to others, from outside.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod call_limits;
mod calls;
mod conformance;
mod events;
mod faults;
mod inbound;
mod ledger;
mod model;
mod outbox;
mod statements;
mod turn;
