//! The worker, run as a program against a real Postgres, the fake homeserver and a real Synapse.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod blame;
mod calls;
mod canary;
mod clients;
mod configuration;
mod conversations;
mod delivery;
mod drill;
mod failpoints;
mod fairness;
mod hour;
mod inbound;
mod leader;
mod logs;
mod members;
mod metrics;
mod operators;
mod order;
mod outage;
mod people;
mod revisions;
mod rooms;
mod scene;
mod synapse;
mod takeover;
mod tasks;
mod thread;
mod toggling;
mod traces;
mod turn;
mod verify;
