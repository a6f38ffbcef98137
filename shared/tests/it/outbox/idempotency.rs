//! A request that is repeated under its key.
use std::time::Duration;

use shared::{
    idempotency::{self, Entry, IdempotencyError},
    ids::UserId,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::world::World;

const ROUTE: &str = "POST /messages";

async fn enter(
    world: &World,
    conn: &mut PgConnection,
    user: UserId,
    key: &str,
    body: &str,
) -> Result<Entry, IdempotencyError> {
    idempotency::enter(conn, &world.keys, user, ROUTE, key, body.as_bytes()).await
}

/// Does what a new request under the key would do.
async fn answer(world: &World, user: UserId, key: &str, body: &str, resource: Uuid) {
    let mut tx = world.begin().await;
    let Entry::New(pending) = enter(world, &mut tx, user, key, body).await.unwrap() else { panic!("it is new") };
    pending.record(&mut tx, 201, resource).await.unwrap();
    tx.commit().await.unwrap();
}

async fn replayed(world: &World, user: UserId, key: &str, body: &str) -> Option<(u16, Uuid)> {
    let mut tx = world.begin().await;
    let entry = enter(world, &mut tx, user, key, body).await.unwrap();
    tx.rollback().await.unwrap();
    match entry {
        Entry::Done { status, resource_id } => Some((status, resource_id)),
        Entry::New(_) => None,
    }
}

#[tokio::test]
async fn a_request_whose_like_is_under_way_is_refused_at_once() {
    let world = World::new().await;
    let user = world.author;
    let mut first = world.begin().await;
    let Entry::New(pending) = enter(&world, &mut first, user, "key", "body").await.unwrap() else {
        panic!("it is new")
    };
    let mut second = world.begin().await;
    sqlx::query("set local lock_timeout = '1ms'").execute(&mut *second).await.unwrap();
    let refused = enter(&world, &mut second, user, "key", "body").await;
    assert!(matches!(refused, Err(IdempotencyError::InFlight)), "{refused:?}");
    second.rollback().await.unwrap();
    let resource = Uuid::new_v4();
    pending.record(&mut first, 201, resource).await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(replayed(&world, user, "key", "body").await, Some((201, resource)));
}

#[tokio::test]
async fn a_request_that_failed_may_be_repeated() {
    let world = World::new().await;
    let mut first = world.begin().await;
    let Entry::New(pending) = enter(&world, &mut first, world.author, "key", "body").await.unwrap() else { panic!() };
    pending.record(&mut first, 201, Uuid::new_v4()).await.unwrap();
    first.rollback().await.unwrap();
    assert_eq!(replayed(&world, world.author, "key", "body").await, None);
}

#[tokio::test]
async fn a_key_serves_one_request_of_one_user() {
    let world = World::new().await;
    let (user, resource) = (world.author, Uuid::new_v4());
    answer(&world, user, "key", "body", resource).await;
    let mut tx = world.begin().await;
    let refused = enter(&world, &mut tx, user, "key", "another body").await;
    assert!(matches!(refused, Err(IdempotencyError::AnotherRequest)), "{refused:?}");
    tx.rollback().await.unwrap();
    assert_eq!(replayed(&world, user, "another key", "body").await, None);
    assert_eq!(replayed(&world, UserId::generate(), "key", "body").await, None);
    assert_eq!(replayed(&world, user, "key", "body").await, Some((201, resource)));
}

#[tokio::test]
async fn a_key_is_forgotten_after_a_day() {
    let world = World::new().await;
    let (user, resource) = (world.author, Uuid::new_v4());
    answer(&world, user, "key", "body", resource).await;
    world.advance(Duration::from_hours(23)).await;
    assert_eq!(replayed(&world, user, "key", "body").await, Some((201, resource)));
    assert_eq!(idempotency::forget(&world.pool, 10).await.unwrap(), 0);
    world.advance(Duration::from_hours(1)).await;
    assert_eq!(replayed(&world, user, "key", "another body").await, None);
    let newer = Uuid::new_v4();
    answer(&world, user, "key", "another body", newer).await;
    assert_eq!(replayed(&world, user, "key", "another body").await, Some((201, newer)));
    world.advance(Duration::from_hours(24)).await;
    assert_eq!(idempotency::forget(&world.pool, 10).await.unwrap(), 1);
    assert_eq!(world.db.count("select count(*) from idempotency_keys").await, 0);
}

#[tokio::test]
async fn what_is_remembered_of_a_request_does_not_show_its_text() {
    let world = World::new().await;
    answer(&world, world.author, "key", "secret", Uuid::new_v4()).await;
    let shown = world.db.count("select count(*) from idempotency_keys k where k::text like '%secret%'").await;
    let hex = world
        .db
        .count("select count(*) from idempotency_keys where position('secret'::bytea in fingerprint) > 0")
        .await;
    assert_eq!((shown, hex), (0, 0));
}
