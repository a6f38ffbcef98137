//! One small drill, so that drills keep working and every run of the tests has a crash in it. `make drill` plays them all.

use shared::testing::drill::{Drill, Scenario};

#[tokio::test(flavor = "multi_thread")]
async fn workers_and_api_killed_at_any_moment_lose_double_reorder_and_leak_nothing() {
    let report = Drill { scenario: Scenario::Crash, seed: 4, operations: 320, faults: Some(9) }.play().await;
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.operations, report.faults), (320, 9));
}
