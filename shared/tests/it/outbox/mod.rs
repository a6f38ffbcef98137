//! The outbox on a real database: each test is a law, and fails without what upholds it.
#![expect(clippy::expect_used, reason = "a failure here is a failed test")]
mod ailing;
mod by_hand;
mod chance;
mod cost;
mod explaining;
mod histories;
mod idempotency;
mod lanes;
mod late;
mod membership;
mod mending;
mod operators;
mod races;
mod reactions;
mod room;
mod search;
mod sound;
mod storm;
mod table;
mod takeover;
mod tasks;
mod timeline;
mod world;
