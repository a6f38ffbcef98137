//! The language that `api` and `worker` both speak: ids, configuration, sealed content, the rows of chat, and the
//! outbox with all of its SQL.
//!
//! Dependencies point one way. This crate knows no web framework, no job runtime and no HTTP client, but for the one by
//! which [`trace`] hands its spans over; what tests are made of is in `testing`, behind the feature of that name.

pub mod audit;
pub mod call_limits;
pub mod calls;
pub mod chat;
pub mod config;
pub mod database;
pub mod events;
pub mod failpoint;
pub mod html;
pub mod idempotency;
pub mod ids;
pub mod inbound;
pub mod metric;
pub mod operator;
pub mod outbox;
pub mod postgres;
pub mod reason;
pub mod seal;
pub mod tasks;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod token;
pub mod trace;
pub mod turn;
pub mod verify;
pub mod wake;
pub mod workers;
