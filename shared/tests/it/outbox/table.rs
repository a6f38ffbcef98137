//! What an edit and a delete do to each operation of a message, by where it stands.
use shared::outbox::{Deletion, Kind};

use super::world::{End, Lane, Posted, Worker, World};

/// Where the message's own operation stands when its author changes their mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Waiting,
    InFlight,
    RefusedOnce,
    Ambiguous,
    Delivered,
    DeadNeverSent,
    DeadMaybeSent,
    DiscardedNeverSent,
    DiscardedMaybeSent,
    NeverEnqueued,
}

async fn message(lane: &Lane, stands: Stands) -> Posted {
    if stands == Stands::NeverEnqueued {
        return lane.post_here_only("one").await;
    }
    let posted = lane.post("one").await;
    bring(lane, posted, Kind::Message, stands).await;
    posted
}

/// Brings the lane's first operation to where it shall stand.
async fn bring(lane: &Lane, posted: Posted, kind: Kind, stands: Stands) {
    let worker = Worker::new();
    let ends: &[End] = match stands {
        Stands::Waiting | Stands::NeverEnqueued => &[],
        Stands::InFlight => {
            lane.claim(&worker, 1).await;
            &[]
        }
        Stands::RefusedOnce => &[End::Refused],
        Stands::Ambiguous => &[End::Ambiguous],
        Stands::Delivered => &[End::Delivered],
        Stands::DeadNeverSent | Stands::DiscardedNeverSent => &[End::OwnFault],
        Stands::DeadMaybeSent | Stands::DiscardedMaybeSent => &[End::Ambiguous, End::OwnFault],
    };
    for end in ends {
        lane.step(&worker, *end).await;
    }
    if matches!(stands, Stands::DiscardedNeverSent | Stands::DiscardedMaybeSent) {
        let dead = if kind == Kind::Message { posted.outbox_id } else { lane.only("dead_letters", kind).await };
        assert_eq!(lane.discard(dead).await, 1);
    }
}

#[tokio::test]
async fn an_edit_changes_what_waits_and_follows_what_was_handed() {
    let world = World::new().await;
    for (stands, after_one, after_two) in [
        (Stands::Waiting, "live: message 2", "live: message 3"),
        (Stands::InFlight, "live: message 1, edit 2", "live: message 1, edit 3"),
        (Stands::RefusedOnce, "live: message 2", "live: message 3"),
        (Stands::Ambiguous, "live: message 1?, edit 2", "live: message 1?, edit 3"),
        (Stands::Delivered, "live: edit 2; sent: message 1", "live: edit 3; sent: message 1"),
        (Stands::DeadNeverSent, "dead: message 2", "dead: message 3"),
        (Stands::DeadMaybeSent, "dead: message 1?, edit 2", "dead: message 1?, edit 3"),
        (Stands::DiscardedNeverSent, "", ""),
        (Stands::DiscardedMaybeSent, "given up: message 1?", "given up: message 1?"),
        (Stands::NeverEnqueued, "", ""),
    ] {
        let lane = world.lane().await;
        let posted = message(&lane, stands).await;
        lane.edit(&posted, "two").await;
        assert_eq!(lane.picture().await, after_one, "{stands:?}, edited once");
        lane.edit(&posted, "three").await;
        assert_eq!(lane.picture().await, after_two, "{stands:?}, edited twice");
        assert_eq!(lane.number("select count(*) from message_revisions where conversation_id = $1").await, 3);
        lane.forget().await;
    }
}

#[tokio::test]
async fn a_delete_cancels_what_waits_and_redacts_what_was_handed() {
    use Deletion::{Cancelled, Redacting};
    let world = World::new().await;
    let redacted_in_flight = "live: message 1, redact message 1";
    let redacted_unknown = "live: message 1?, redact message 1";
    let redacted_sent = "live: redact message 1; sent: message 1";
    let redacted_given_up = "live: redact message 1; given up: message 1?";
    for (stands, deletion, after) in [
        (Stands::Waiting, Cancelled, ""),
        (Stands::InFlight, Redacting, redacted_in_flight),
        (Stands::RefusedOnce, Cancelled, ""),
        (Stands::Ambiguous, Redacting, redacted_unknown),
        (Stands::Delivered, Redacting, redacted_sent),
        (Stands::DeadNeverSent, Cancelled, ""),
        (Stands::DeadMaybeSent, Redacting, redacted_given_up),
        (Stands::DiscardedNeverSent, Cancelled, ""),
        (Stands::DiscardedMaybeSent, Redacting, redacted_given_up),
        (Stands::NeverEnqueued, Cancelled, ""),
    ] {
        for edited in [false, true] {
            let lane = world.lane().await;
            let posted = message(&lane, stands).await;
            if edited {
                lane.edit(&posted, "two").await;
            }
            assert_eq!(lane.delete(&posted).await, Some(deletion), "{stands:?}, edited {edited}");
            assert_eq!(lane.picture().await, after, "{stands:?}, edited {edited}");
            assert_eq!(lane.number("select count(*) from message_revisions where conversation_id = $1").await, 0);
            assert_eq!(lane.delete(&posted).await, None, "{stands:?}: deleted twice");
            lane.forget().await;
        }
    }
}

#[tokio::test]
async fn a_delete_redacts_each_operation_that_was_handed() {
    let world = World::new().await;
    for (stands, after) in [
        (Stands::Waiting, "live: redact message 1; sent: message 1"),
        (Stands::InFlight, "live: edit 2, redact message 1, redact edit 2; sent: message 1"),
        (Stands::RefusedOnce, "live: redact message 1; sent: message 1"),
        (Stands::Ambiguous, "live: edit 2?, redact message 1, redact edit 2; sent: message 1"),
        (Stands::Delivered, "live: redact message 1, redact edit 2; sent: message 1, edit 2"),
        (Stands::DeadNeverSent, "live: redact message 1; sent: message 1"),
        (Stands::DeadMaybeSent, "live: redact message 1, redact edit 2; given up: edit 2?; sent: message 1"),
        (Stands::DiscardedNeverSent, "live: redact message 1; sent: message 1"),
        (Stands::DiscardedMaybeSent, "live: redact message 1, redact edit 2; given up: edit 2?; sent: message 1"),
    ] {
        let lane = world.lane().await;
        let posted = message(&lane, Stands::Delivered).await;
        lane.edit(&posted, "two").await;
        bring(&lane, posted, Kind::Edit, stands).await;
        assert_eq!(lane.delete(&posted).await, Some(Deletion::Redacting), "{stands:?}");
        let picture = lane.picture().await;
        // Which operation is redacted first is all the same.
        let swapped = picture.replace("redact edit 2, redact message 1", "redact message 1, redact edit 2");
        assert_eq!(swapped, after, "{stands:?}");
        let ids = lane.number("select count(distinct outbox_id) from outbox where conversation_id = $1").await;
        assert_eq!(ids, lane.number("select count(*) from outbox where conversation_id = $1").await, "{stands:?}");
        lane.forget().await;
    }
}

#[tokio::test]
async fn an_edit_that_was_handed_is_followed_by_the_next_one() {
    let world = World::new().await;
    for (stands, after) in [
        (Stands::Waiting, "live: edit 3; sent: message 1"),
        (Stands::InFlight, "live: edit 2, edit 3; sent: message 1"),
        (Stands::RefusedOnce, "live: edit 3; sent: message 1"),
        (Stands::Ambiguous, "live: edit 2?, edit 3; sent: message 1"),
        (Stands::Delivered, "live: edit 3; sent: message 1, edit 2"),
        (Stands::DeadNeverSent, "live: edit 3; sent: message 1"),
        (Stands::DeadMaybeSent, "live: edit 3; dead: edit 2?; sent: message 1"),
        (Stands::DiscardedNeverSent, "live: edit 3; sent: message 1"),
        (Stands::DiscardedMaybeSent, "live: edit 3; given up: edit 2?; sent: message 1"),
    ] {
        let lane = world.lane().await;
        let posted = message(&lane, Stands::Delivered).await;
        lane.edit(&posted, "two").await;
        bring(&lane, posted, Kind::Edit, stands).await;
        lane.edit(&posted, "three").await;
        assert_eq!(lane.picture().await, after, "{stands:?}");
        lane.forget().await;
    }
}

/// The message was handed, so that an edit follows it; then it waits again, so that the next edit goes into itself.
#[tokio::test]
async fn an_edit_of_a_message_that_waits_again_takes_its_waiting_edits_away() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.edit(&posted, "two").await;
    lane.settle(&worker, &claimed, &[End::Refused]).await;
    assert_eq!(lane.picture().await, "live: message 1, edit 2");
    lane.edit(&posted, "three").await;
    assert_eq!(lane.picture().await, "live: message 3");
}

#[tokio::test]
async fn a_delete_of_a_message_that_waits_again_takes_its_waiting_edits_away() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.edit(&posted, "two").await;
    lane.settle(&worker, &claimed, &[End::Refused]).await;
    assert_eq!(lane.delete(&posted).await, Some(Deletion::Cancelled));
    assert_eq!(lane.picture().await, "");
}

/// The same among edits: two of them wait after one was handed and refused, and the newest text must not stand in the
/// first of them only, or the second would bring the older one back.
#[tokio::test]
async fn of_several_edits_that_wait_the_last_to_leave_carries_the_newest_text() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = message(&lane, Stands::Delivered).await;
    lane.edit(&posted, "two").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.edit(&posted, "three").await;
    lane.settle(&worker, &claimed, &[End::Refused]).await;
    assert_eq!(lane.picture().await, "live: edit 2, edit 3; sent: message 1");
    lane.edit(&posted, "four").await;
    assert_eq!(lane.picture().await, "live: edit 4; sent: message 1");
}
