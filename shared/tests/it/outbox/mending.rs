//! Repairs of what a comparison found: each looks once more, in its transaction, whether there still is something to mend.

use std::time::Duration;

use shared::{
    ids::{EventId, OutboxId},
    outbox::Kind,
    tasks::{self, Task},
    verify::{self, Finding, FindingKind, Found, Mend},
};
use time::OffsetDateTime;

use super::world::{End, Lane, Posted, Worker, World, event_of, room};

impl Lane {
    async fn comparison(&self) -> Task {
        let mut tx = self.world.begin().await;
        let task = tasks::start_verify(&mut tx, "ada", Some(self.id), true, Some("a test")).await.unwrap();
        tx.commit().await.unwrap();
        task
    }

    fn found(&self, kind: FindingKind, outbox_id: OutboxId, event_id: EventId, mend: Mend) -> Found {
        let finding = Finding {
            kind,
            conversation_id: self.id,
            outbox_id: Some(outbox_id),
            subject_id: None,
            room_id: Some(room()),
            event_id: Some(event_id),
            words: String::new(),
            repairable: true,
            repaired: false,
        };
        Found { finding, mend }
    }

    async fn repair(&self, task: &Task, found: &Found, since: OffsetDateTime) -> bool {
        let mut tx = self.world.begin().await;
        let done = verify::repair(&mut tx, task, found, since).await.unwrap();
        tx.commit().await.unwrap();
        done
    }

    /// Long after all that was done.
    async fn much_later(&self) -> OffsetDateTime {
        self.world.advance(Duration::from_hours(1)).await;
        shared::database::now(&mut *self.world.begin().await).await.unwrap()
    }

    async fn delivered(&self, text: &str) -> Posted {
        let posted = self.post(text).await;
        self.step(&Worker::new(), End::Delivered).await;
        posted
    }
}

const REPAIRS: &str = "select count(*) from audit_log where conversation_id = $1 and verb = 'repair'";

#[tokio::test]
async fn of_two_events_the_one_that_counts_by_now_is_not_redacted() {
    let lane = World::with_lane().await;
    let posted = lane.delivered("twice").await;
    let (task, since) = (lane.comparison().await, lane.much_later().await);
    let spare = |event_id: EventId| {
        let mend = Mend::RedactSpare { outbox_id: posted.outbox_id, room_id: room(), event_id: event_id.clone() };
        lane.found(FindingKind::Doubled, posted.outbox_id, event_id, mend)
    };
    assert!(!lane.repair(&task, &spare(event_of(posted.outbox_id)), since).await);
    assert_eq!(lane.number(REPAIRS).await, 0);
    assert!(lane.repair(&task, &spare(EventId::from("$spare".to_owned())), since).await);
    assert_eq!(lane.number(REPAIRS).await, 1);
}

#[tokio::test]
async fn what_is_missing_is_not_sent_again_behind_edits_of_it_that_wait_but_once_they_are_through_and_once() {
    let lane = World::with_lane().await;
    let posted = lane.delivered("first").await;
    let task = lane.comparison().await;
    lane.edit(&posted, "newest").await;
    let since = lane.much_later().await;
    let mend = Mend::Resend(posted.outbox_id);
    let missing = lane.found(FindingKind::Missing, posted.outbox_id, event_of(posted.outbox_id), mend);
    assert!(!lane.repair(&task, &missing, since).await, "the edit would go by an event that is not there");
    assert_eq!(lane.ids("outbox", Kind::Message).await, []);

    lane.drain().await;
    assert!(lane.repair(&task, &missing, since).await);
    let again = lane.only("outbox", Kind::Message).await;
    assert_ne!(again, posted.outbox_id, "a new operation, under a transaction of its own");
    assert!(!lane.repair(&task, &missing, since).await, "it is on its way");
    lane.world.sound().await;
    lane.drain().await;
    assert!(!lane.repair(&task, &missing, since).await, "it was sent again");
    assert_eq!(lane.number(REPAIRS).await, 1);
}
