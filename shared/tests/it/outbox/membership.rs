//! Membership has no transaction ids: what arrives late is repaired.

use shared::{
    chat,
    ids::{ConversationId, RoomId, UserId},
    outbox,
    testing::database::TestDatabase,
};

struct Scene {
    database: TestDatabase,
    conversation_id: ConversationId,
    ada: UserId,
    grace: UserId,
}

impl Scene {
    /// A conversation that has a room.
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        let (conversation_id, ada, grace) = (ConversationId::generate(), UserId::generate(), UserId::generate());
        let mut tx = database.pool.begin().await.unwrap();
        chat::create_conversation(&mut tx, conversation_id, None, ada, &[grace]).await.unwrap();
        chat::save_room_mapping(&mut tx, conversation_id, &RoomId::from("!room".to_owned()), true).await.unwrap();
        tx.commit().await.unwrap();
        Self { database, conversation_id, ada, grace }
    }

    async fn set_member(&self, present: bool) {
        let mut tx = self.database.pool.begin().await.unwrap();
        let mut turn = chat::take_turn(&mut tx, self.conversation_id, self.ada).await.unwrap();
        if present {
            chat::add_member(&mut tx, &turn, self.grace).await.unwrap();
        } else {
            chat::remove_member(&mut tx, &mut turn, self.grace).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    /// As if the lane's operations had been done.
    async fn drain(&self) {
        sqlx::raw_sql("delete from outbox; update lanes set open = 0, due_at = null")
            .execute(&self.database.pool)
            .await
            .unwrap();
    }

    async fn echo(&self, present: bool) -> bool {
        let mut tx = self.database.pool.begin().await.unwrap();
        let enqueued = outbox::membership_echo(&mut tx, self.conversation_id, self.grace, present).await.unwrap();
        tx.commit().await.unwrap();
        enqueued
    }

    async fn kinds(&self) -> Vec<String> {
        sqlx::query_scalar("select kind from outbox order by seq").fetch_all(&self.database.pool).await.unwrap()
    }
}

#[tokio::test]
async fn a_removal_that_arrives_after_the_invitation_that_followed_it_is_undone() {
    let scene = Scene::new().await;
    scene.set_member(false).await;
    scene.set_member(true).await;
    scene.drain().await;
    assert!(scene.echo(false).await);
    assert_eq!(scene.kinds().await, ["invite"]);
    assert!(!scene.echo(false).await, "one that waits is enough");
    assert_eq!(scene.kinds().await, ["invite"]);
}

#[tokio::test]
async fn an_invitation_that_arrives_after_the_removal_that_followed_it_is_undone() {
    let scene = Scene::new().await;
    scene.set_member(false).await;
    scene.drain().await;
    assert!(scene.echo(true).await);
    assert_eq!(scene.kinds().await, ["remove"]);
}

#[tokio::test]
async fn an_echo_that_agrees_with_the_database_enqueues_nothing() {
    let scene = Scene::new().await;
    assert!(!scene.echo(true).await);
    scene.set_member(false).await;
    scene.drain().await;
    assert!(!scene.echo(false).await);
    assert_eq!(scene.kinds().await, Vec::<String>::new());
}

#[tokio::test]
async fn one_that_was_handed_out_may_have_been_the_one_that_arrived_so_another_follows() {
    let scene = Scene::new().await;
    scene.set_member(false).await;
    sqlx::raw_sql("update lanes set frozen_through = (select max(seq) from outbox)")
        .execute(&scene.database.pool)
        .await
        .unwrap();
    assert!(scene.echo(true).await);
    assert_eq!(scene.kinds().await, ["remove", "remove"]);
}
