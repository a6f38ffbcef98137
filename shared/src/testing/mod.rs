//! What tests, drills and benchmarks are made of. Behind the feature `testing`, never part of a release.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "test support: a failure here is a failed test")]

use std::{future::Future, time::Duration};

pub mod database;
pub mod drill;
pub mod homeserver;
pub mod ledger;
pub mod matrix_client;
pub mod mutation;
pub mod nova;
pub mod private;
pub mod proxy;
pub mod traces;
pub mod traffic;
pub mod websocket;

/// How long tests wait for what must come: far longer than it ever takes, so that a busy machine fails no test.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Asks again and again until there is an answer; panics when there is none within [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl FnMut() -> F) -> T {
    eventually_within(PATIENCE, what, ask).await
}

/// Asks again and again until there is an answer; panics when there is none within the limit.
pub async fn eventually_within<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, asking).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// A variable of the environment that `make test` sets.
pub fn test_variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests with `make test`"))
}
