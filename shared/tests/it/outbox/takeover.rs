//! Leases that lapse, workers that finish late, and what the next owner must assume.
use std::time::Duration;

use shared::outbox::{self, Deletion, Kind, Mode, Requeued};
use time::OffsetDateTime;

use super::world::{End, LEASE, Lane, Worker, World, echo, event_of, result};

/// Each live row: when it may first have been sent, by whom.
async fn marks(lane: &Lane) -> Vec<(Option<OffsetDateTime>, Option<String>, Option<String>)> {
    sqlx::query_as("select maybe_sent_at, sender, device from outbox where conversation_id = $1 order by seq")
        .bind(lane.id.as_uuid())
        .fetch_all(&lane.world.pool)
        .await
        .unwrap()
}

async fn claimed_at(lane: &Lane) -> OffsetDateTime {
    sqlx::query_scalar("select claimed_at from lanes where conversation_id = $1")
        .bind(lane.id.as_uuid())
        .fetch_one(&lane.world.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn whatever_a_lapsed_owner_was_handed_may_have_been_sent_since_its_claim() {
    let lane = World::with_lane().await;
    for text in ["one", "two", "three"] {
        lane.post(text).await;
    }
    lane.claim(&Worker::with_device("FIRST"), 2).await;
    let since = claimed_at(&lane).await;
    lane.world.lapse().await;
    let taken_over = lane.claim(&Worker::with_device("SECOND"), 1).await;
    let marks = marks(&lane).await;
    for mark in &marks[..2] {
        let (at, sender, device) = mark;
        assert_eq!(*at, Some(since));
        assert_eq!((sender.as_deref(), device.as_deref()), (Some("@service:nova.test"), Some("FIRST")));
    }
    assert_eq!(marks[2], (None, None, None));
    let operation = &taken_over.operations[0];
    assert_eq!((operation.maybe_sent_at, operation.device.as_str()), (Some(since), "FIRST"));
    // Another device: the homeserver does not know the transaction by it.
    assert_eq!(operation.mode, Mode::LookUp);
}

#[tokio::test]
async fn what_a_lapsed_owner_was_handed_is_redacted_and_not_cancelled() {
    let lane = World::with_lane().await;
    let posted = lane.post("one").await;
    lane.claim(&Worker::new(), 1).await;
    lane.world.lapse().await;
    lane.step(&Worker::new(), End::Refused).await;
    assert_eq!(lane.picture().await, "live: message 1?");
    assert_eq!(lane.delete(&posted).await, Some(Deletion::Redacting));
}

#[tokio::test]
async fn what_a_lapsed_owner_was_handed_is_followed_by_its_edit() {
    let lane = World::with_lane().await;
    let posted = lane.post("one").await;
    lane.claim(&Worker::new(), 1).await;
    lane.world.lapse().await;
    lane.step(&Worker::new(), End::Refused).await;
    lane.edit(&posted, "two").await;
    assert_eq!(lane.picture().await, "live: message 1?, edit 2");
}

#[tokio::test]
async fn what_may_have_been_sent_a_day_ago_is_looked_up() {
    let lane = World::with_lane().await;
    lane.post("one").await;
    let worker = Worker::new();
    lane.claim(&worker, 1).await;
    lane.world.lapse().await;
    assert_eq!(lane.step(&worker, End::Refused).await.mode, Mode::Put, "within the homeserver's memory");
    lane.world.advance(Duration::from_hours(25)).await;
    assert_eq!(lane.step(&worker, End::Refused).await.mode, Mode::LookUp);
    assert_eq!(lane.step(&Worker::with_device(""), End::Refused).await.mode, Mode::LookUp);
}

/// The database was away for a day after the attempt: its age counts from the attempt, not from the settle.
#[tokio::test]
async fn an_attempt_that_is_settled_a_day_late_is_looked_up() {
    let lane = World::with_lane().await;
    lane.post("one").await;
    let worker = Worker::new();
    let claimed = lane.claim(&worker, 1).await;
    lane.world.advance(Duration::from_hours(25)).await;
    let settled = lane.settle(&worker, &claimed, &[End::Ambiguous]).await;
    assert!(settled.fenced.is_empty(), "nobody took the lane over");
    assert_eq!(lane.claim(&worker, 1).await.operations[0].mode, Mode::LookUp);
}

#[tokio::test]
async fn a_lane_that_somebody_has_locked_keeps_no_other_lease_from_being_renewed() {
    let world = World::new().await;
    let (locked, free) = (world.lane().await, world.lane().await);
    let worker = Worker::new();
    let mut claims = Vec::new();
    for lane in [&locked, &free] {
        lane.post("one").await;
        claims.push(lane.claim(&worker, 1).await.claim);
    }
    let mut slow = world.begin().await;
    locked.turn(&mut slow).await.unwrap();
    sqlx::query("select 1 from lanes where conversation_id = $1 for update")
        .bind(locked.id.as_uuid())
        .execute(&mut *slow)
        .await
        .unwrap();
    world.advance(LEASE / 2).await;
    let mut conn = world.pool.acquire().await.unwrap();
    sqlx::query("set lock_timeout = '5s'").execute(&mut *conn).await.unwrap();
    assert_eq!(outbox::renew(&mut conn, worker.id, &claims, LEASE).await.unwrap(), claims[..1]);
    slow.commit().await.unwrap();
    assert_eq!(outbox::renew(&mut conn, worker.id, &claims, LEASE).await.unwrap(), []);
}

#[tokio::test]
async fn only_a_release_lowers_what_is_frozen() {
    let lane = World::with_lane().await;
    let (first, second) = (lane.post("one").await, lane.post("two").await);
    lane.claim(&Worker::new(), 2).await;
    assert_eq!(lane.frozen_through().await, second.seq);
    lane.world.lapse().await;
    let worker = Worker::new();
    let smaller = lane.claim(&worker, 1).await;
    assert_eq!(lane.frozen_through().await, second.seq, "a smaller claim does not thaw what the first one handed out");
    assert_eq!(lane.delete(&second).await, Some(Deletion::Redacting));
    lane.settle(&worker, &smaller, &[End::OwnFault]).await;
    assert_eq!(lane.requeue(first.outbox_id).await, Requeued::Back(1));
    assert_eq!(lane.frozen_through().await, second.seq, "nor does a requeue");
    assert_eq!(lane.delete(&first).await, Some(Deletion::Redacting));
}

/// The first died, the second is under way while the first is requeued.
#[tokio::test]
async fn a_requeue_thaws_nothing_that_is_under_way() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let (first, second) = (lane.post("one").await, lane.post("two").await);
    lane.step(&worker, End::OwnFault).await;
    let claimed = lane.claim(&worker, 1).await;
    assert_eq!(lane.requeue(first.outbox_id).await, Requeued::Back(1));
    assert_eq!(lane.delete(&second).await, Some(Deletion::Redacting));
    lane.settle(&worker, &claimed, &[End::Delivered]).await;
    assert_eq!(lane.picture().await, "live: message 1, redact message 1; sent: message 1");
}

#[tokio::test]
async fn what_may_have_been_sent_is_never_changed_in_place_again() {
    for delete in [false, true] {
        let lane = World::with_lane().await;
        let worker = Worker::new();
        let posted = lane.post("one").await;
        lane.step(&worker, End::Ambiguous).await;
        lane.step(&worker, End::OwnFault).await;
        assert_eq!(lane.requeue(posted.outbox_id).await, Requeued::Back(1));
        assert!(lane.frozen_through().await < posted.seq, "only its own mark says that it may have been sent");
        if delete {
            assert_eq!(lane.delete(&posted).await, Some(Deletion::Redacting));
            assert_eq!(lane.picture().await, "live: message 1?, redact message 1");
        } else {
            lane.edit(&posted, "two").await;
            assert_eq!(lane.picture().await, "live: message 1?, edit 2");
        }
    }
}

/// What was requeued unsent stands before what is frozen, and a lapsed owner may not have come to it.
#[tokio::test]
async fn what_nobody_was_handed_cannot_have_been_sent() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.edit(&posted, "two").await;
    lane.settle(&worker, &claimed, &[End::OwnFault]).await;
    lane.post("later").await;
    lane.step(&worker, End::Delivered).await;
    assert_eq!(lane.requeue(posted.outbox_id).await, Requeued::Back(2));
    lane.claim(&worker, 1).await;
    lane.world.lapse().await;
    lane.step(&worker, End::OwnFault).await;
    assert_eq!(lane.picture().await, "dead: message 1?, edit 2; sent: message 1");
    assert_eq!(lane.delete(&posted).await, Some(Deletion::Redacting));
}

#[tokio::test]
async fn a_lapsed_lease_is_never_renewed() {
    let lane = World::with_lane().await;
    lane.post("one").await;
    let worker = Worker::new();
    let claim = lane.claim(&worker, 1).await.claim;
    let renew = async || {
        let mut conn = lane.world.pool.acquire().await.unwrap();
        outbox::renew(&mut conn, worker.id, &[claim], super::world::LEASE).await.unwrap()
    };
    lane.world.advance(super::world::LEASE / 2).await;
    assert!(renew().await.is_empty(), "a lease that lasts is renewed");
    lane.world.advance(super::world::LEASE * 3 / 4).await;
    assert!(lane.try_claim(&Worker::new(), 1).await.is_none(), "it was renewed");
    lane.world.lapse().await;
    assert_eq!(renew().await, [claim]);
    assert!(lane.try_claim(&Worker::new(), 1).await.is_some());
    assert_eq!(renew().await, [claim], "nor when it is another's");
}

#[tokio::test]
async fn a_late_finisher_changes_nothing_but_its_evidence_is_kept() {
    let lane = World::with_lane().await;
    let (slow, quick) = (Worker::new(), Worker::new());
    let posted = lane.post("one").await;
    lane.post("two").await;
    let overdue = lane.claim(&slow, 2).await;
    lane.world.lapse().await;
    let current = lane.claim(&quick, 2).await;
    for end in [End::Delivered, End::OwnFault, End::RoomFault, End::Ambiguous, End::RefusedFor(super::world::LEASE)] {
        let before = everything(&lane).await;
        let settled = lane.settle(&slow, &overdue, &[end, End::Delivered]).await;
        assert_eq!((settled.fenced, settled.deferred), (vec![0], vec![]), "{end:?}");
        assert_eq!((settled.finished, settled.died), (0, 0), "{end:?}");
        assert_eq!(everything(&lane).await, before, "{end:?}");
    }
    let evidence = result(&overdue.operations[0], End::Delivered).evidence().unwrap();
    assert!(lane.late_evidence(&evidence).await);
    assert!(!lane.late_evidence(&evidence).await, "known");
    assert_eq!(lane.picture().await, "live: message 1?; sent: message 1");

    let settled = lane.settle(&quick, &current, &[End::OwnFault, End::Delivered]).await;
    assert_eq!((settled.fenced, settled.died), (vec![], 0), "evidence beats the verdict");
    assert_eq!(lane.picture().await, "sent: message 1, message 1");
    let event: String = sqlx::query_scalar("select matrix_event_id from messages where message_id = $1")
        .bind(posted.message_id.as_uuid())
        .fetch_one(&lane.world.pool)
        .await
        .unwrap();
    assert_eq!(event, event_of(posted.outbox_id).as_str());
}

async fn everything(lane: &Lane) -> String {
    sqlx::query_scalar(
        "select concat_ws(' | ',
            (select string_agg(l::text, ',') from lanes l where l.conversation_id = $1),
            (select string_agg(o::text, ',' order by o.seq) from outbox o where o.conversation_id = $1),
            (select string_agg(m::text, ',' order by m.seq) from messages m where m.conversation_id = $1),
            (select string_agg(s::text, ',') from sent_events s where s.conversation_id = $1),
            (select string_agg(d::text, ',') from dead_letters d where d.conversation_id = $1),
            (select count(*) from attempts where conversation_id = $1))",
    )
    .bind(lane.id.as_uuid())
    .fetch_one(&lane.world.pool)
    .await
    .unwrap()
}

/// An echo may come before the answer, and settles at once; the answer then finds nothing left to do.
#[tokio::test]
async fn an_echo_settles_once_although_the_lane_is_leased() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.post("two").await;
    let claimed = lane.claim(&worker, 2).await;
    assert!(lane.late_evidence(&echo(Kind::Message, posted.message_id, 1, posted.outbox_id)).await);
    assert_eq!(lane.picture().await, "live: message 1; sent: message 1");
    assert!(lane.try_claim(&Worker::new(), 1).await.is_none(), "the lease lasts");
    lane.settle(&worker, &claimed, &[End::Delivered, End::Delivered]).await;
    assert_eq!(lane.picture().await, "sent: message 1, message 1");
}

/// The first attempt's sender and device are those of every later one, unless it certainly never arrived.
#[tokio::test]
async fn sender_and_device_stay_those_of_what_may_have_been_sent() {
    let lane = World::with_lane().await;
    lane.post("one").await;
    let (first, second) = (Worker::with_device("FIRST"), Worker::with_device("SECOND"));
    assert_eq!(lane.step(&first, End::Refused).await.device, "FIRST");
    assert_eq!(lane.step(&second, End::Ambiguous).await.device, "SECOND");
    assert_eq!(marks(&lane).await[0].2.as_deref(), Some("SECOND"));
    assert_eq!(lane.step(&first, End::Refused).await.device, "SECOND");
    assert_eq!(marks(&lane).await[0].2.as_deref(), Some("SECOND"));
}
