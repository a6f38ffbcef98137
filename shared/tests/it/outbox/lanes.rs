//! What a lane waits for: backoffs, holds, pauses, expiry, and dead letters that come back.
use std::time::Duration;

use shared::{
    chat,
    ids::UserId,
    outbox::{self, Deletion, Kind, LaneClass, Requeued},
};
use time::OffsetDateTime;

use super::world::{End, Lane, Worker, World, room};

const WAIT: Duration = Duration::from_mins(5);

async fn due_at(lane: &Lane) -> Option<OffsetDateTime> {
    sqlx::query_scalar("select due_at from lanes where conversation_id = $1")
        .bind(lane.id.as_uuid())
        .fetch_one(&lane.world.pool)
        .await
        .unwrap()
}

async fn is_held(lane: &Lane) -> bool {
    lane.number("select count(hold) from lanes where conversation_id = $1").await == 1
}

/// Removes a member who was in the room.
async fn remove_somebody(lane: &Lane) {
    let guest = UserId::generate();
    let mut tx = lane.world.begin().await;
    chat::save_room_mapping(&mut tx, lane.id, &room(), true).await.unwrap();
    let turn = lane.turn(&mut tx).await.unwrap();
    chat::add_member(&mut tx, &turn, guest).await.unwrap();
    tx.commit().await.unwrap();
    lane.drain().await;
    let mut tx = lane.world.begin().await;
    let mut turn = lane.turn(&mut tx).await.unwrap();
    assert_eq!(chat::remove_member(&mut tx, &mut turn, guest).await.unwrap(), chat::Membership::Changed(true));
    tx.commit().await.unwrap();
}

// --- Backing off -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_failing_head_is_not_re_armed_by_new_messages() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let first = lane.post("one").await;
    lane.step(&worker, End::RefusedFor(WAIT)).await;
    let due = due_at(&lane).await;
    let later = lane.post("two").await;
    lane.edit(&later, "two, edited").await;
    lane.edit(&first, "one, edited").await;
    lane.delete(&later).await;
    lane.post("three").await;
    assert_eq!(due_at(&lane).await, due);
    assert!(lane.try_claim(&worker, 5).await.is_none());
    lane.world.advance(WAIT).await;
    assert_eq!(lane.claim(&worker, 5).await.operations.len(), 2);
}

#[tokio::test]
async fn when_a_failing_head_goes_the_next_one_is_due() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let first = lane.post("one").await;
    lane.step(&worker, End::RefusedFor(WAIT)).await;
    let second = lane.post("two").await;
    assert_eq!(lane.delete(&first).await, Some(Deletion::Cancelled));
    assert_eq!(lane.claim(&worker, 5).await.operations[0].outbox_id, second.outbox_id);
}

#[tokio::test]
async fn a_batch_ends_before_the_first_that_is_not_due() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let first = lane.post("one").await;
    lane.step(&worker, End::OwnFault).await;
    lane.post("two").await;
    lane.step(&worker, End::RefusedFor(WAIT)).await;
    lane.post("three").await;
    lane.requeue(first.outbox_id).await;
    let claimed = lane.claim(&worker, 5).await;
    assert_eq!(claimed.operations.iter().map(|operation| operation.outbox_id).collect::<Vec<_>>(), [first.outbox_id]);
    lane.settle(&worker, &claimed, &[End::Delivered]).await;
    assert!(lane.try_claim(&worker, 5).await.is_none(), "the second backs off");
}

#[tokio::test]
async fn a_failing_lane_delays_no_other() {
    let world = World::new().await;
    let (failing, other) = (world.lane().await, world.lane().await);
    let worker = Worker::new();
    failing.post("one").await;
    failing.step(&worker, End::RefusedFor(WAIT)).await;
    other.post("one").await;
    other.step(&worker, End::Delivered).await;
    assert_eq!(other.picture().await, "sent: message 1");
}

// --- Holding ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_redaction_or_a_removal_that_fails_for_good_holds_its_lane_and_no_other() {
    for kind in [Kind::Redact, Kind::Remove] {
        let world = World::new().await;
        let (held, other) = (world.lane().await, world.lane().await);
        let worker = Worker::new();
        if kind == Kind::Redact {
            let posted = held.post("secret").await;
            held.step(&worker, End::Delivered).await;
            held.delete(&posted).await;
        } else {
            remove_somebody(&held).await;
        }
        held.post("later words").await;
        let settled = {
            let claimed = held.claim(&worker, 1).await;
            assert_eq!(claimed.operations[0].kind, kind);
            held.settle(&worker, &claimed, &[End::OwnFault]).await
        };
        assert_eq!(settled.died, 0);
        assert!(is_held(&held).await);
        assert_eq!(held.ids("outbox", kind).await.len(), 1, "it is still to be done");
        other.post("one").await;
        other.step(&worker, End::Delivered).await;
        assert!(world.claim_lanes(&worker, 5, 5).await.is_empty(), "nothing of the held lane goes");
        assert!(held.resume().await);
        let kinds: Vec<Kind> = held.drain().await.iter().map(|operation| operation.kind).collect();
        assert_eq!(kinds, [kind, Kind::Message]);
    }
}

#[tokio::test]
async fn a_held_lane_keeps_all_that_is_written_and_resumes_with_it() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.hold().await;
    let first = lane.post("one").await;
    let second = lane.post("two").await;
    lane.delete(&first).await;
    assert_eq!(due_at(&lane).await, None);
    assert!(lane.try_claim(&worker, 5).await.is_none());
    assert!(lane.resume().await);
    assert!(!lane.resume().await, "it is held no longer");
    assert_eq!(lane.step(&worker, End::Delivered).await.outbox_id, second.outbox_id);
}

#[tokio::test]
async fn a_hold_outlives_the_settle_of_what_was_under_way() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.post("one").await;
    lane.post("two").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.hold().await;
    lane.settle(&worker, &claimed, &[End::Delivered]).await;
    assert_eq!(lane.picture().await, "live: message 1; sent: message 1");
    assert!(is_held(&lane).await);
    let third = lane.post("three").await;
    lane.delete(&third).await;
    assert!(lane.resume().await);
    assert_eq!(lane.drain().await.len(), 1);
}

#[tokio::test]
async fn a_dead_letter_that_is_requeued_into_a_held_lane_waits() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.step(&worker, End::OwnFault).await;
    lane.hold().await;
    assert_eq!(lane.requeue(posted.outbox_id).await, Requeued::Back(1));
    assert!(lane.try_claim(&worker, 1).await.is_none());
    lane.resume().await;
    lane.step(&worker, End::Delivered).await;
}

#[tokio::test]
async fn a_fault_of_the_room_holds_the_lane_and_burns_no_attempt() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.post("one").await;
    lane.step(&worker, End::RoomFault).await;
    assert!(is_held(&lane).await);
    lane.resume().await;
    let operation = lane.step(&worker, End::Delivered).await;
    assert_eq!((operation.attempts, operation.failures), (0, 0));
}

#[tokio::test]
async fn a_batch_that_is_handed_back_costs_no_attempt() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.post("two").await;
    let claimed = lane.claim(&worker, 2).await;
    lane.settle(&worker, &claimed, &[]).await;
    assert_eq!(lane.picture().await, "live: message 1, message 1");
    assert_eq!(lane.number("select count(*) from attempts where conversation_id = $1").await, 0);
    assert_eq!(lane.delete(&posted).await, Some(Deletion::Cancelled), "it was not sent, and waits again");
    let operation = lane.step(&worker, End::Delivered).await;
    assert_eq!((operation.attempts, operation.failures), (0, 0));
}

// --- Requeue ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn requeued_operations_come_first_and_in_their_original_order() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push(lane.post("dead").await.outbox_id);
        lane.step(&worker, End::OwnFault).await;
    }
    let dead = expected.clone();
    for _ in 0..10 {
        expected.push(lane.post("waiting").await.outbox_id);
    }
    for n in [2, 0, 1] {
        assert_eq!(lane.requeue(dead[n]).await, Requeued::Back(1));
    }
    let sent: Vec<_> = lane.drain().await.iter().map(|operation| operation.outbox_id).collect();
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn a_requeued_operation_does_not_wait_for_the_backoff_of_what_follows_it() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let dead = lane.post("dead").await;
    lane.step(&worker, End::OwnFault).await;
    lane.post("waiting").await;
    lane.step(&worker, End::RefusedFor(WAIT)).await;
    lane.requeue(dead.outbox_id).await;
    let back = lane.step(&worker, End::Delivered).await;
    assert_eq!((back.outbox_id, back.attempts, back.failures), (dead.outbox_id, 0, 0));
    assert!(lane.try_claim(&worker, 1).await.is_none(), "the other still backs off");
}

#[tokio::test]
async fn nothing_of_a_deleted_message_can_be_requeued_or_discarded() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.edit(&posted, "two").await;
    lane.settle(&worker, &claimed, &[End::OwnFault]).await;
    let edit = lane.only("dead_letters", Kind::Edit).await;
    assert_eq!(lane.delete(&posted).await, Some(Deletion::Cancelled));
    for outbox_id in [posted.outbox_id, edit] {
        assert_eq!(lane.requeue(outbox_id).await, Requeued::NotDead);
        assert_eq!(lane.discard(outbox_id).await, 0);
    }
    assert_eq!(lane.picture().await, "");
}

// --- Pauses and expiry -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_pause_stops_the_claims_of_its_class_until_it_ends() {
    let lane = World::with_lane().await;
    let pool = &lane.world.pool;
    let worker = Worker::new();
    lane.post("one").await;
    let pause = async |class, until| outbox::pause(pool, class, until, "why", "operator").await.unwrap();
    pause(Some(LaneClass::Call), None).await;
    let claimed = lane.claim(&worker, 1).await;
    lane.settle(&worker, &claimed, &[End::Refused]).await;
    for class in [None, Some(LaneClass::Chat)] {
        pause(class, None).await;
        assert!(lane.try_claim(&worker, 1).await.is_none(), "{class:?}");
        lane.post("two").await;
        assert!(outbox::unpause(pool, class).await.unwrap());
        assert!(!outbox::unpause(pool, class).await.unwrap());
        let claimed = lane.claim(&worker, 1).await;
        lane.settle(&worker, &claimed, &[]).await;
    }
    let now: OffsetDateTime = sqlx::query_scalar("select outbox_now()").fetch_one(pool).await.unwrap();
    pause(None, Some(now + WAIT)).await;
    assert!(lane.try_claim(&worker, 1).await.is_none());
    lane.world.advance(WAIT).await;
    assert_eq!(lane.drain().await.len(), 3, "it ended by itself");
}

#[tokio::test]
async fn only_what_waits_expires_also_while_held_or_paused() {
    let world = World::new().await;
    let lane = world.lane().await;
    let worker = Worker::new();
    lane.post_for("handed", WAIT).await;
    let expiring = lane.post_for("waiting", WAIT).await;
    lane.post_for("longer", WAIT * 3).await;
    lane.post("for ever").await;
    let claimed = lane.claim(&worker, 1).await;
    assert_eq!(outbox::expire(&world.pool, 10).await.unwrap().operations, 0);
    lane.hold().await;
    outbox::pause(&world.pool, None, None, "why", "operator").await.unwrap();
    world.advance(WAIT).await;
    assert_eq!(outbox::expire(&world.pool, 10).await.unwrap().operations, 1);
    lane.sound().await;
    assert!(!lane.ids("outbox", Kind::Message).await.contains(&expiring.outbox_id));
    lane.settle(&worker, &claimed, &[End::Ambiguous]).await;
    assert_eq!(outbox::expire(&world.pool, 10).await.unwrap().operations, 0, "what may have been sent does not expire");
    world.advance(WAIT * 2).await;
    assert_eq!(outbox::expire(&world.pool, 10).await.unwrap().operations, 1);
    assert_eq!(lane.picture().await, "live: message 1?, message 1");
    outbox::unpause(&world.pool, None).await.unwrap();
    lane.resume().await;
    assert_eq!(lane.drain().await.len(), 2);
}

#[tokio::test]
async fn when_all_of_a_lane_expires_it_sleeps() {
    let lane = World::with_lane().await;
    lane.post_for("one", WAIT).await;
    lane.world.advance(WAIT).await;
    assert_eq!(outbox::expire(&lane.world.pool, 10).await.unwrap().operations, 1);
    lane.sound().await;
    assert_eq!(due_at(&lane).await, None);
    lane.post("two").await;
    assert_eq!(lane.drain().await.len(), 1);
}

#[tokio::test]
async fn the_budget_of_what_may_be_its_own_fault_is_time_in_which_it_is_tried() {
    const MINUTE: Duration = Duration::from_mins(1);
    let lane = World::with_lane().await;
    lane.post("one").await;
    let worker = Worker::new();
    assert_eq!(lane.step(&worker, End::Suspect).await.suspected_for, None);
    lane.world.advance(MINUTE).await;
    let tried = lane.step(&worker, End::Suspect).await.suspected_for.unwrap();
    assert!((MINUTE..2 * MINUTE).contains(&tried), "{tried:?}");
    // Paused, held, or an outage.
    lane.world.advance(Duration::from_hours(96)).await;
    assert_eq!(lane.step(&worker, End::Suspect).await.suspected_for, None);
    lane.world.advance(MINUTE).await;
    let tried = lane.step(&worker, End::Refused).await.suspected_for.unwrap();
    assert!((MINUTE..2 * MINUTE).contains(&tried), "{tried:?}");
    // A failure that is not its own ends the suspicion.
    lane.world.advance(MINUTE).await;
    assert_eq!(lane.step(&worker, End::Suspect).await.suspected_for, None);
}

#[tokio::test]
async fn a_room_fault_does_not_hide_why_an_operator_held_the_lane() {
    let lane = World::with_lane().await;
    lane.post("one").await;
    let worker = Worker::new();
    let claimed = lane.claim(&worker, 1).await;
    let mut tx = lane.world.begin().await;
    assert!(outbox::hold(&mut tx, lane.id, lane.lane_id(), "legal hold").await.unwrap());
    tx.commit().await.unwrap();
    lane.settle(&worker, &claimed, &[End::RoomFault]).await;
    let hold: String = sqlx::query_scalar("select hold from lanes where conversation_id = $1")
        .bind(lane.id.as_uuid())
        .fetch_one(&lane.world.pool)
        .await
        .unwrap();
    assert_eq!(hold, "legal hold; and: forbidden");
}
