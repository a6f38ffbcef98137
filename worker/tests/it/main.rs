//! The worker, run as a program against a real Postgres, the fake homeserver and a real Synapse.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod blame;
mod configuration;
mod delivery;
mod fairness;
mod members;
mod operators;
mod order;
mod outage;
mod private_postgres;
mod revisions;
mod rooms;
mod scene;
mod takeover;
mod thread;
mod toggling;
