//! What tests, drills and benchmarks are made of. Behind the feature `testing`, never part of a release.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "test support: a failure here is a failed test")]
pub mod homeserver;
pub mod ledger;
pub mod matrix_client;
