//! The outbox on a real database: each test is a law, and fails without what upholds it.
mod chance;
mod cost;
mod histories;
mod idempotency;
mod lanes;
mod late;
mod races;
mod room;
mod sound;
mod storm;
mod table;
mod takeover;
mod world;
