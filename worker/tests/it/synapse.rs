//! A Synapse of a test's own: it restarts while clients write, and it limits the rate as it does by default.

use shared::testing::{
    eventually_within,
    ledger::{Asked, Ledger, Senders, Summary},
    nova::Front,
    private::{PrivateSynapse, RateLimits},
    traffic::{Traffic, Work, drained, note_event_ids, undelivered},
};

use crate::scene::{Home, Scene};

/// Several times what Synapse' own limits come to.
const WITHIN: std::time::Duration = std::time::Duration::from_mins(15);

/// The operations of the issue, as clients ask for them.
const OPERATIONS: usize = 40;

struct Stage {
    synapse: PrivateSynapse,
    home: Home,
    scene: Scene,
    asked: Asked,
}

impl Stage {
    async fn set(limits: RateLimits) -> Self {
        let synapse = tokio::task::spawn_blocking(move || PrivateSynapse::start(limits)).await.unwrap();
        let home = Home::at(synapse.address.clone()).await;
        let scene = Scene::new(&home).await;
        Self { synapse, home, scene, asked: Asked::new() }
    }

    async fn clients(&self, seed: u64, clients: usize, conversations: usize, ahead: usize, guests: bool) -> Work {
        let traffic = Traffic { seed, clients, operations: OPERATIONS, conversations, ahead, guests };
        println!("{traffic:?}");
        traffic.begin(&Front::at(&self.scene.api.url()), &self.asked).await
    }

    async fn assert_exact(&self) -> Summary {
        let database = &self.scene.database;
        drained(database).await;
        assert_eq!(database.count("select count(*) from dead_letters").await, 0);
        assert_eq!(undelivered(database).await, 0);
        note_event_ids(database, &self.asked).await;
        let senders = Senders::ServiceAccount(self.home.account.user_id().to_owned());
        Ledger::new(&self.asked, &self.home.account, senders).exclusive().assert_settled().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn synapse_restarts_while_clients_write_and_all_arrives_in_order_and_once() {
    let stage = Stage::set(RateLimits::Lifted).await;
    let _workers = (stage.scene.worker().await, stage.scene.worker().await);
    // They wait after every second operation, so that all but the last few have to be delivered before they are done.
    let work = stage.clients(4, 4, 3, 2, true).await;
    for restart in 1..=2_i64 {
        let sent = restart * i64::try_from(OPERATIONS).unwrap() / 6;
        eventually_within(WITHIN, "the clients come that far", || async {
            (stage.scene.database.count("select count(*) from sent_events").await >= sent).then_some(())
        })
        .await;
        assert!(!work.is_done(), "nothing was under way when Synapse was stopped");
        let synapse = &stage.synapse;
        tokio::task::block_in_place(|| {
            synapse.stop();
            synapse.start_again();
        });
    }
    work.done().await;
    stage.assert_exact().await;
}

/// Ten events at once, then one in five seconds, and rooms and messages draw from the same: three minutes. Nobody is invited
/// to a room that is there already: each try that meets this limit would count against the five invitations that one user
/// may get, of which the next comes after five minutes.
#[tokio::test(flavor = "multi_thread")]
async fn forty_operations_under_synapses_own_rate_limits_arrive_in_order_and_cost_no_attempt() {
    let stage = Stage::set(RateLimits::Default).await;
    let _worker = stage.scene.worker().await;
    // Nobody waits for a delivery: what clients may do is not limited.
    let work = stage.clients(5, 1, 2, usize::MAX, false).await;
    work.done().await;
    let database = &stage.scene.database;
    eventually_within(WITHIN, "everything is delivered", || async {
        let burnt = database.count("select coalesce(sum(attempts), 0)::bigint from outbox").await;
        assert_eq!(burnt, 0, "an attempt was burnt for a rate limit");
        (database.count("select coalesce(sum(open), 0)::bigint from lanes").await == 0).then_some(())
    })
    .await;
    let summary = stage.assert_exact().await;
    let limited = database.count("select count(*) from attempts where http_status = 429").await;
    println!("{limited} attempts met the limit: {summary:?}");
    assert!(limited > 0, "Synapse limited nothing");
}
