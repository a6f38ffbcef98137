//! What operators end by hand: operations that they know to be done, and those that are not worth sending any more.
use std::time::Duration;

use shared::{
    audit::{self, AuditFilter},
    chat, database,
    ids::{EventId, OutboxId, UserId},
    operator,
    outbox::{self, Completed, Completion, Expire, Kind, Refusal},
};

use super::{
    reactions::react,
    world::{End, Lane, Worker, World, echo, event_of, room},
};

const OPERATOR: &str = "ada";

impl Lane {
    async fn with_room(&self) {
        let mut tx = self.world.begin().await;
        chat::save_room_mapping(&mut tx, self.id, &room(), true).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn complete(&self, outbox_id: OutboxId, event_id: Option<&EventId>) -> Completion {
        let mut tx = self.world.begin().await;
        let completion = operator::complete(&mut tx, OPERATOR, self.id, outbox_id, event_id, "I saw it").await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        completion
    }

    async fn completed(&self, outbox_id: OutboxId, event_id: Option<&EventId>) -> Completed {
        match self.complete(outbox_id, event_id).await {
            Completion::Completed(completed) => completed,
            Completion::Refused(refused) => panic!("{refused:?}"),
        }
    }

    async fn refused(&self, outbox_id: OutboxId, event_id: Option<&EventId>) -> Refusal {
        let before = self.picture().await;
        match self.complete(outbox_id, event_id).await {
            Completion::Completed(completed) => panic!("{completed:?}"),
            Completion::Refused(refused) => {
                assert_eq!(self.picture().await, before, "it is as it was");
                refused.reason
            }
        }
    }

    async fn expire(&self, ids: &[OutboxId]) -> Expire {
        let mut tx = self.world.begin().await;
        let expire = operator::expire(&mut tx, OPERATOR, self.id, ids, "too late").await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        expire
    }

    async fn acts(&self) -> Vec<(String, i64)> {
        let mut tx = self.world.begin().await;
        let trail = audit::entries(&mut tx, &AuditFilter::default(), None, 100).await.unwrap();
        trail.into_iter().map(|act| (act.verb, act.affected)).collect()
    }

    async fn member(&self, kind: Kind) -> OutboxId {
        let mut tx = self.world.begin().await;
        let mut turn = self.turn(&mut tx).await.unwrap();
        turn.advance(&mut tx).await.unwrap();
        let user = UserId::generate();
        chat::enqueue_membership(&mut tx, &turn, user, kind).await.unwrap();
        tx.commit().await.unwrap();
        self.ids("outbox", kind).await.pop().unwrap()
    }
}

fn event(name: &str) -> EventId {
    EventId::from(name.to_owned())
}

#[tokio::test]
async fn a_dead_letter_is_completed_with_its_event() {
    let lane = World::with_lane().await;
    lane.with_room().await;
    let worker = Worker::new();
    let posted = lane.post("1").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    let completed = lane.completed(posted.outbox_id, Some(&event("$seen"))).await;
    assert_eq!((completed.kind.as_str(), completed.parked), ("message", 0));
    assert_eq!(lane.picture().await, "sent: message 1");
    assert_eq!(lane.acts().await, [("complete".to_owned(), 1)]);

    let posted = lane.post("1").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    lane.edit(&posted, "2").await;
    let completed = lane.completed(posted.outbox_id, Some(&event("$edited"))).await;
    assert_eq!(completed.parked, 1, "its edit may be requeued now");
}

#[tokio::test]
async fn an_operation_that_was_given_up_and_is_completed_brings_the_newest_text() {
    let lane = World::with_lane().await;
    lane.with_room().await;
    let worker = Worker::new();
    let posted = lane.post("1").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    lane.discard(posted.outbox_id).await;
    lane.edit(&posted, "2").await;
    lane.completed(posted.outbox_id, Some(&event("$given-up"))).await;
    assert_eq!(lane.picture().await, "live: edit 2; sent: message 1");
}

#[tokio::test]
async fn a_held_lane_whose_first_is_completed_stays_held_and_then_goes_on() {
    let lane = World::with_lane().await;
    lane.with_room().await;
    let worker = Worker::new();
    let posted = lane.post("1").await;
    lane.step(&worker, End::Delivered).await;
    lane.delete(&posted).await;
    lane.step(&worker, End::OwnFault).await;
    let redact = lane.only("outbox", Kind::Redact).await;
    lane.post("2").await;
    assert!(lane.try_claim(&worker, 1).await.is_none(), "it holds its lane");
    assert_eq!(lane.refused(redact, None).await, Refusal::EventMissing);
    lane.completed(redact, Some(&event("$redaction"))).await;
    assert!(lane.try_claim(&worker, 1).await.is_none());
    lane.resume().await;
    assert_eq!(lane.drain().await.len(), 1);
}

#[tokio::test]
async fn what_a_worker_tries_just_now_is_not_completed_but_after_its_lease() {
    let lane = World::with_lane().await;
    lane.with_room().await;
    let posted = lane.post("1").await;
    let waits = lane.post("2").await;
    lane.claim(&Worker::new(), 1).await;
    assert_eq!(lane.refused(posted.outbox_id, Some(&event("$one"))).await, Refusal::Leased);
    assert_eq!(lane.refused(waits.outbox_id, Some(&event("$two"))).await, Refusal::NeverSent);
    lane.world.lapse().await;
    lane.completed(posted.outbox_id, Some(&event("$one"))).await;
    assert_eq!(lane.drain().await.len(), 1);
}

#[tokio::test]
async fn a_change_of_membership_is_completed_without_an_event_live_or_dead() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let invite = lane.member(Kind::Invite).await;
    assert_eq!(lane.refused(invite, Some(&event("$join"))).await, Refusal::EventNotWanted);
    lane.step(&worker, End::OwnFault).await;
    assert_eq!(lane.only("dead_letters", Kind::Invite).await, invite);
    lane.completed(invite, None).await;
    let remove = lane.member(Kind::Remove).await;
    assert_eq!(lane.refused(remove, None).await, Refusal::MustNotBeLost, "a worker removes them by itself");
    lane.hold().await;
    lane.completed(remove, None).await;
    assert!(lane.resume().await);
    assert_eq!(lane.picture().await, "");
    assert_eq!(lane.refused(remove, None).await, Refusal::Unknown);
}

#[tokio::test]
async fn what_is_delivered_unknown_or_named_with_an_event_that_is_none_of_its_own_is_refused() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let sent = lane.post("1").await;
    lane.step(&worker, End::Delivered).await;
    let posted = lane.post("2").await;
    lane.step(&worker, End::Ambiguous).await;
    assert_eq!(lane.refused(posted.outbox_id, Some(&event("$new"))).await, Refusal::NoRoom);
    lane.with_room().await;
    assert_eq!(lane.refused(sent.outbox_id, Some(&event("$new"))).await, Refusal::Delivered);
    assert_eq!(lane.refused(OutboxId::generate(), Some(&event("$new"))).await, Refusal::Unknown);
    assert_eq!(lane.refused(posted.outbox_id, Some(&event_of(sent.outbox_id))).await, Refusal::EventTaken);
    assert_eq!(lane.refused(posted.outbox_id, Some(&event("new"))).await, Refusal::NoEventId);
    assert_eq!(lane.refused(posted.outbox_id, None).await, Refusal::EventMissing);
    assert!(lane.acts().await.is_empty(), "what changes nothing leaves no row");
    lane.completed(posted.outbox_id, Some(&event("$new"))).await;
    assert!(!lane.late_evidence(&echo(Kind::Message, posted.message_id, 1, posted.outbox_id)).await);
}

#[tokio::test]
async fn what_waits_is_ended_by_hand_with_what_belongs_to_it_and_nothing_else_is() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let dead = lane.post("0").await;
    lane.step(&worker, End::OwnFault).await;
    let handed = lane.post("1").await;
    let waits = lane.post("2").await;
    react(&lane, &waits, lane.world.author, "+").await.unwrap();
    let stays = lane.post("3").await;
    let claimed = lane.claim(&worker, 1).await;
    let unknown = OutboxId::generate();
    let expire = lane.expire(&[dead.outbox_id, handed.outbox_id, waits.outbox_id, unknown]).await;
    let reaction = expire.gone.iter().filter(|id| **id != waits.outbox_id).count();
    assert_eq!((expire.gone.len(), reaction), (2, 1));
    let mut refused: Vec<_> = expire.refused.iter().map(|refused| (refused.id, refused.reason)).collect();
    refused.sort_by_key(|(id, _)| *id != dead.outbox_id.as_uuid());
    assert_eq!(
        refused,
        [
            (dead.outbox_id.as_uuid(), Refusal::NotWaiting),
            (handed.outbox_id.as_uuid(), Refusal::NotWaiting),
            (unknown.as_uuid(), Refusal::Unknown)
        ]
    );
    assert_eq!(lane.acts().await, [("expire".to_owned(), 2)]);
    lane.settle(&worker, &claimed, &[End::Delivered]).await;
    let drained: Vec<_> = lane.drain().await.iter().map(|operation| operation.outbox_id).collect();
    assert_eq!(drained, [stays.outbox_id]);
}

#[tokio::test]
async fn a_redaction_or_a_removal_is_not_ended_by_hand() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("1").await;
    lane.step(&worker, End::Delivered).await;
    lane.delete(&posted).await;
    let redact = lane.only("outbox", Kind::Redact).await;
    let remove = lane.member(Kind::Remove).await;
    let expire = lane.expire(&[redact, remove, posted.outbox_id]).await;
    let reasons: Vec<_> = expire.refused.iter().map(|refused| refused.reason).collect();
    assert_eq!(reasons, [Refusal::MustNotBeLost, Refusal::MustNotBeLost, Refusal::Delivered]);
    assert!(expire.gone.is_empty() && lane.acts().await.is_empty());
}

#[tokio::test]
async fn the_end_of_a_call_is_not_ended_by_hand() {
    let lane = World::with_lane().await;
    let posted = lane.post("1").await;
    let hangup = "update outbox set kind = 'call_hangup', revision = null where outbox_id = $1";
    sqlx::query(hangup).bind(posted.outbox_id.as_uuid()).execute(&lane.world.pool).await.unwrap();
    let expire = lane.expire(&[posted.outbox_id]).await;
    assert_eq!(expire.refused[0].reason, Refusal::MustNotBeLost, "whoever rings would ring on");
    assert!(expire.gone.is_empty());
}

#[tokio::test]
async fn a_hold_is_released_only_while_it_says_just_that_and_a_pause_until_a_time_stays() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.post("1").await;
    lane.hold().await;
    let release = async |hold: &str| {
        let mut tx = lane.world.begin().await;
        let released = outbox::lift_hold(&mut tx, lane.id, lane.lane_id(), hold, None).await.unwrap();
        tx.commit().await.unwrap();
        lane.sound().await;
        released
    };
    assert!(!release("the room does not take it").await, "it is held for something else");
    let mut tx = lane.world.begin().await;
    let until = database::now(&mut tx).await.unwrap() + Duration::from_hours(8);
    assert_eq!(outbox::pause_lanes(&mut tx, lane.id, None, Some(until), "snooze").await.unwrap(), 1);
    tx.commit().await.unwrap();
    let mut tx = lane.world.begin().await;
    let (id, lane_id) = (lane.id, lane.lane_id());
    assert!(outbox::lift_hold(&mut tx, id, lane_id, "an operator's wish", Some("the rest")).await.unwrap());
    assert_eq!(outbox::holds_of(&mut tx, id).await.unwrap(), [(lane_id, "the rest".to_owned())]);
    tx.commit().await.unwrap();
    lane.sound().await;
    assert!(release("the rest").await);
    assert!(lane.try_claim(&worker, 1).await.is_none(), "it is paused still");
    lane.world.advance(Duration::from_hours(9)).await;
    assert!(lane.try_claim(&worker, 1).await.is_some());
}
