//! Who reads for an account: one worker at a time, and nobody by a lead that is another's by now.

use std::time::Duration;

use shared::{
    ids::{MatrixUserId, WorkerId},
    inbound,
    testing::database::TestDatabase,
};

const LEASE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn who_has_lost_the_lead_to_another_moves_no_token_and_takes_no_lead_away() {
    let database = TestDatabase::create().await;
    let mut conn = database.pool.acquire().await.unwrap();
    let user: MatrixUserId = "@service:nova.test".parse().unwrap();
    let (first, second) = (WorkerId::generate(), WorkerId::generate());
    let old = inbound::lead(&mut conn, &user, first, LEASE).await.unwrap().unwrap();
    assert_eq!(old.next_batch, None);
    assert!(old.advance(&mut conn, "s1").await.unwrap());
    assert!(inbound::lead(&mut conn, &user, second, LEASE).await.unwrap().is_none(), "one at a time");
    assert!(old.renew(&mut conn, LEASE).await.unwrap());
    database.advance(LEASE * 2).await;
    assert!(!old.renew(&mut conn, LEASE).await.unwrap(), "a lapsed lease is not revived");
    // Nobody else leads: what was under way may still end.
    assert!(old.fence(&mut conn).await.unwrap());

    let new = inbound::lead(&mut conn, &user, second, LEASE).await.unwrap().unwrap();
    assert_eq!((new.next_batch.as_deref(), new.epoch), (Some("s1"), old.epoch + 1));
    assert!(!old.fence(&mut conn).await.unwrap());
    assert!(!old.advance(&mut conn, "s0").await.unwrap());
    assert!(!old.renew(&mut conn, LEASE).await.unwrap());
    old.resign(&mut conn).await.unwrap();
    assert!(new.fence(&mut conn).await.unwrap());
    assert!(new.renew(&mut conn, LEASE).await.unwrap());
    let token = async || {
        let token: Option<String> =
            sqlx::query_scalar("select next_batch from sync_state").fetch_one(&database.pool).await.unwrap();
        token
    };
    assert_eq!(token().await.as_deref(), Some("s1"));
    assert!(new.advance(&mut conn, "s2").await.unwrap());
    new.resign(&mut conn).await.unwrap();
    // It was given away: nobody has to wait for the end of the lease.
    let next = inbound::lead(&mut conn, &user, first, LEASE).await.unwrap().unwrap();
    assert_eq!(next.next_batch.as_deref(), Some("s2"));
}
