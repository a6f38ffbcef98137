//! The homeserver's TURN servers: who asks for them and when, and for how long what it said is of use.
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use shared::{
    ids::MatrixUserId,
    seal::KeyRing,
    testing::{database::TestDatabase, nova::CONTENT_KEYS},
    turn::{self, Answer, Credentials},
};

fn account() -> MatrixUserId {
    "@nova-service:nova.test".parse().unwrap()
}

/// How many of several workers that look at the same moment ask.
async fn asking(database: &TestDatabase) -> usize {
    let looking: Vec<_> = (0..8)
        .map(|_| {
            let pool = database.pool.clone();
            tokio::spawn(async move { turn::may_ask(&pool, &account()).await.unwrap() })
        })
        .collect();
    let mut asking = 0;
    for worker in looking {
        asking += usize::from(worker.await.unwrap());
    }
    asking
}

async fn keep(database: &TestDatabase, ttl: Duration) {
    let credentials = Credentials { username: "name".into(), password: SecretString::from("password") };
    let answer = Answer { uris: vec!["turn:turn.nova.test".into()], credentials: Some(credentials), ttl };
    turn::keep(&database.pool, &KeyRing::parse(CONTENT_KEYS).unwrap(), &account(), &answer).await.unwrap();
}

async fn is_of_use(database: &TestDatabase) -> bool {
    let mut conn = database.pool.acquire().await.unwrap();
    let found = turn::of_homeserver(&mut conn, &KeyRing::parse(CONTENT_KEYS).unwrap()).await.unwrap();
    found.is_some_and(|found| found.credentials.password.expose_secret() == "password")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_workers_one_asks_and_another_when_that_came_to_nothing() {
    let database = TestDatabase::create().await;
    assert_eq!(asking(&database).await, 1);
    assert_eq!(asking(&database).await, 0);
    database.advance(Duration::from_secs(31)).await;
    assert_eq!(asking(&database).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_asked_again_at_half_of_the_time_and_at_ten_minutes_at_least() {
    for (ttl, again) in
        [(Duration::from_mins(10), Duration::from_mins(5)), (Duration::from_hours(24), Duration::from_mins(10))]
    {
        let database = TestDatabase::create().await;
        assert_eq!(asking(&database).await, 1);
        keep(&database, ttl).await;
        database.advance(again.checked_sub(Duration::from_secs(5)).unwrap()).await;
        assert_eq!(asking(&database).await, 0);
        database.advance(Duration::from_secs(6)).await;
        assert_eq!(asking(&database).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_of_use_until_their_last_minute() {
    let database = TestDatabase::create().await;
    assert!(!is_of_use(&database).await);
    assert_eq!(asking(&database).await, 1);
    assert!(!is_of_use(&database).await);
    keep(&database, Duration::from_mins(10)).await;
    assert!(is_of_use(&database).await);
    database.advance(Duration::from_secs(8 * 60 + 50)).await;
    assert!(is_of_use(&database).await);
    database.advance(Duration::from_secs(11)).await;
    assert!(!is_of_use(&database).await);
}
