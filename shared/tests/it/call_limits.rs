//! How many calls may be placed in a minute, by whom and to whom.
use std::time::Duration;

use shared::{
    call_limits::{self, Callee, LimitError, Role},
    config::CallLimits,
    ids::{ConversationId, UserId},
    testing::database::TestDatabase,
};

const LIMITS: CallLimits = CallLimits { by_one: Some(3), to_one: Some(4) };

/// Counts a call in a transaction of its own; when refused, whose calls were too many and for how long.
async fn place(database: &TestDatabase, user_id: UserId, callee: Callee) -> Result<(), (Role, Duration)> {
    let mut tx = database.pool.begin().await.unwrap();
    match call_limits::count(&mut tx, LIMITS, user_id, callee).await {
        Ok(()) => {
            tx.commit().await.unwrap();
            Ok(())
        }
        Err(LimitError::Reached { role, retry_after, .. }) => {
            tx.rollback().await.unwrap();
            Err((role, retry_after))
        }
        Err(LimitError::Database(error)) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_minutes_calls_may_be_placed_at_once_and_then_one_at_a_time() {
    let database = TestDatabase::create().await;
    let caller = UserId::generate();
    for _ in 0..3 {
        place(&database, caller, Callee::One(UserId::generate())).await.unwrap();
    }
    let (role, wait) = place(&database, caller, Callee::One(UserId::generate())).await.unwrap_err();
    assert_eq!(role, Role::Caller);
    assert!(wait <= Duration::from_secs(20) && wait > Duration::from_secs(10), "{wait:?}");
    // What was refused was not counted.
    database.advance(wait).await;
    place(&database, caller, Callee::One(UserId::generate())).await.unwrap();
    assert!(place(&database, caller, Callee::One(UserId::generate())).await.is_err());
    // However long it was quiet, a bucket holds a minute's calls.
    database.advance(Duration::from_hours(5)).await;
    for _ in 0..3 {
        place(&database, caller, Callee::One(UserId::generate())).await.unwrap();
    }
    assert!(place(&database, caller, Callee::One(UserId::generate())).await.is_err());
}

#[tokio::test]
async fn whoever_is_rung_by_many_is_spared_and_others_are_not_affected() {
    let database = TestDatabase::create().await;
    let (target, conversation) = (UserId::generate(), ConversationId::generate());
    for callee in [Callee::One(target), Callee::All(conversation)] {
        for _ in 0..4 {
            place(&database, UserId::generate(), callee).await.unwrap();
        }
        let (role, _) = place(&database, UserId::generate(), callee).await.unwrap_err();
        assert_eq!(role, Role::Callee);
    }
    place(&database, UserId::generate(), Callee::One(UserId::generate())).await.unwrap();
    // Who is called too often may call.
    place(&database, target, Callee::One(UserId::generate())).await.unwrap();
}

#[tokio::test]
async fn a_refusal_for_the_one_called_costs_the_caller_nothing() {
    let database = TestDatabase::create().await;
    let (caller, target) = (UserId::generate(), UserId::generate());
    for _ in 0..4 {
        place(&database, UserId::generate(), Callee::One(target)).await.unwrap();
    }
    for _ in 0..10 {
        assert_eq!(place(&database, caller, Callee::One(target)).await.unwrap_err().0, Role::Callee);
    }
    for _ in 0..3 {
        place(&database, caller, Callee::One(UserId::generate())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_placed_at_once_are_all_counted() {
    let database = TestDatabase::create().await;
    let caller = UserId::generate();
    let placing: Vec<_> = (0..12)
        .map(|_| {
            let database = database.clone();
            tokio::spawn(async move { place(&database, caller, Callee::One(UserId::generate())).await.is_ok() })
        })
        .collect();
    let mut placed = 0;
    for task in placing {
        placed += u32::from(task.await.unwrap());
    }
    assert_eq!(placed, 3);
}

#[tokio::test]
async fn buckets_that_are_full_again_are_forgotten() {
    let database = TestDatabase::create().await;
    place(&database, UserId::generate(), Callee::One(UserId::generate())).await.unwrap();
    assert_eq!(call_limits::forget(&database.pool, 10).await.unwrap(), 0);
    database.advance(Duration::from_mins(3)).await;
    assert_eq!(call_limits::forget(&database.pool, 10).await.unwrap(), 2);
    assert_eq!(database.count("select count(*) from call_allowances").await, 0);
}
