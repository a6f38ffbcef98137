//! Evidence that comes late, verdicts that were wrong, and what the room lacks then.
use shared::{
    ids::OutboxId,
    outbox::{Deletion, Kind, Mode, OperationResult, Outcome, Requeued},
};

use super::world::{End, Lane, Posted, Worker, World, echo, event_of, result, room};

/// A message that may have been sent, and died.
async fn dead_maybe_sent(lane: &Lane) -> Posted {
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    assert_eq!(lane.picture().await, "dead: message 1?");
    posted
}

/// A delivered message, and an edit of it that may have been sent, and died.
async fn dead_edit_maybe_sent(lane: &Lane) -> (Posted, OutboxId) {
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.step(&worker, End::Delivered).await;
    lane.edit(&posted, "two").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    (posted, lane.only("dead_letters", Kind::Edit).await)
}

async fn message_arrives(lane: &Lane, posted: &Posted) -> bool {
    lane.late_evidence(&echo(Kind::Message, posted.message_id, 1, posted.outbox_id)).await
}

// --- What the room lacks ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_arrives_after_its_lookup_found_nothing_is_redacted() {
    let lane = World::with_lane().await;
    let worker = Worker::with_device("");
    let posted = lane.post("one").await;
    lane.step(&worker, End::Ambiguous).await;
    assert_eq!(lane.delete(&posted).await, Some(Deletion::Redacting));
    let looked_up = lane.step(&worker, End::NotThere).await;
    assert_eq!(looked_up.mode, Mode::Close { look_up: true });
    let redaction = lane.step(&worker, End::NotThere).await;
    assert!(redaction.target.is_some_and(|target| target.event.is_none() && target.maybe_sent.is_some()));
    assert_eq!(lane.picture().await, "given up: message 1?");

    assert!(message_arrives(&lane, &posted).await);
    assert_eq!(lane.picture().await, "live: redact message 1; sent: message 1");
    let redaction = lane.step(&worker, End::Delivered).await;
    assert_eq!(redaction.target.unwrap().event, Some((event_of(posted.outbox_id), room())));
    assert!(!message_arrives(&lane, &posted).await, "once");
    assert_eq!(lane.picture().await, "sent: message 1, redact message 1");
}

#[tokio::test]
async fn what_arrives_with_its_redaction_under_way_is_redacted_once() {
    let lane = World::with_lane().await;
    let posted = dead_maybe_sent(&lane).await;
    lane.delete(&posted).await;
    assert!(message_arrives(&lane, &posted).await);
    assert_eq!(lane.picture().await, "live: redact message 1; sent: message 1");
}

#[tokio::test]
async fn a_discarded_message_that_arrives_after_its_delete_is_redacted_once() {
    let lane = World::with_lane().await;
    let posted = dead_maybe_sent(&lane).await;
    assert_eq!(lane.discard(posted.outbox_id).await, 1);
    assert_eq!(lane.delete(&posted).await, Some(Deletion::Redacting));
    assert!(message_arrives(&lane, &posted).await);
    assert_eq!(lane.picture().await, "live: redact message 1; sent: message 1");
}

#[tokio::test]
async fn a_discarded_message_that_arrives_is_followed_by_its_newest_text() {
    let lane = World::with_lane().await;
    let posted = dead_maybe_sent(&lane).await;
    lane.discard(posted.outbox_id).await;
    lane.edit(&posted, "two").await;
    assert_eq!(lane.picture().await, "given up: message 1?");
    assert!(message_arrives(&lane, &posted).await);
    assert_eq!(lane.picture().await, "live: edit 2; sent: message 1");
}

#[tokio::test]
async fn a_dead_message_that_arrives_is_dead_no_longer() {
    let lane = World::with_lane().await;
    let posted = dead_maybe_sent(&lane).await;
    assert!(message_arrives(&lane, &posted).await);
    assert_eq!(lane.picture().await, "sent: message 1");
    assert_eq!(lane.requeue(posted.outbox_id).await, Requeued::NotDead);
}

#[tokio::test]
async fn a_dead_edit_that_arrives_after_a_newer_one_is_followed_by_the_newest() {
    let lane = World::with_lane().await;
    let (posted, dead) = dead_edit_maybe_sent(&lane).await;
    lane.edit(&posted, "three").await;
    lane.step(&Worker::new(), End::Delivered).await;
    assert_eq!(lane.picture().await, "dead: edit 2?; sent: message 1, edit 3");
    lane.late_evidence(&echo(Kind::Edit, posted.message_id, 2, dead)).await;
    let picture = lane.picture().await;
    assert!(picture.starts_with("live: edit 3; sent: "), "{picture}");
}

#[tokio::test]
async fn a_dead_edit_that_arrives_before_a_newer_one_left_needs_nothing_more() {
    let lane = World::with_lane().await;
    let (posted, dead) = dead_edit_maybe_sent(&lane).await;
    lane.edit(&posted, "three").await;
    lane.late_evidence(&echo(Kind::Edit, posted.message_id, 2, dead)).await;
    assert_eq!(lane.picture().await, "live: edit 3; sent: message 1, edit 2");
}

// --- Evidence beats every verdict ------------------------------------------------------------------------------------

#[tokio::test]
async fn evidence_beats_every_verdict() {
    let world = World::new().await;
    for end in [End::OwnFault, End::Refused, End::Ambiguous, End::RoomFault, End::NotThere, End::ParentDead] {
        let lane = world.lane().await;
        let worker = Worker::new();
        let posted = lane.post("one").await;
        lane.post("two").await;
        let claimed = lane.claim(&worker, 1).await;
        // Another transaction wrote the evidence down, and left the row to whoever leases the lane.
        let mut tx = world.begin().await;
        sqlx::query(
            "insert into sent_events (conversation_id, outbox_id, event_id, kind, subject_id, revision, room_id, sender,
                sent_at)
             values ($1, $2, $3, 'message', $4, 1, '!room', '@service:nova.test', outbox_now())",
        )
        .bind(lane.id.as_uuid())
        .bind(posted.outbox_id.as_uuid())
        .bind(event_of(posted.outbox_id).as_str())
        .bind(posted.message_id.as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
        let settled = lane.settle(&worker, &claimed, &[end]).await;
        assert_eq!((settled.finished, settled.died), (1, 0), "{end:?}");
        assert_eq!(lane.picture().await, "live: message 1; sent: message 1", "{end:?}");
        assert_eq!(lane.number("select count(hold) from lanes where conversation_id = $1").await, 0, "{end:?}");
        lane.forget().await;
    }
}

#[tokio::test]
async fn a_redaction_without_a_target_looks_once_more_before_it_goes() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = dead_maybe_sent(&lane).await;
    lane.delete(&posted).await;
    let claimed = lane.claim(&worker, 1).await;
    // Between the worker's look and its settle.
    message_arrives(&lane, &posted).await;
    let settled = lane.settle(&worker, &claimed, &[End::NotThere]).await;
    assert_eq!(settled.finished, 0);
    assert_eq!(lane.picture().await, "live: redact message 1; sent: message 1");
    assert_eq!(
        lane.step(&worker, End::Delivered).await.target.unwrap().event,
        Some((event_of(posted.outbox_id), room()))
    );
}

#[tokio::test]
async fn a_redaction_whose_target_was_never_sent_is_done() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.delete(&posted).await;
    lane.settle(&worker, &claimed, &[End::OwnFault]).await;
    assert_eq!(lane.picture().await, "live: redact", "the refused operation is gone");
    let redaction = lane.step(&worker, End::NotThere).await;
    assert!(redaction.target.is_some_and(|target| target.event.is_none() && target.maybe_sent.is_none()));
    assert_eq!(lane.picture().await, "");
}

/// A redaction closes the transaction of a target that may have been sent: it learns the event, and redacts it.
#[tokio::test]
async fn what_a_redaction_learns_of_its_target_is_written_down() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = dead_maybe_sent(&lane).await;
    lane.delete(&posted).await;
    let claimed = lane.claim(&worker, 1).await;
    let target = claimed.operations[0].target.as_ref().unwrap();
    let maybe_sent = target.maybe_sent.as_ref().expect("the target may have been sent");
    assert_eq!((maybe_sent.kind, maybe_sent.revision, maybe_sent.forgotten), (Kind::Message, Some(1), false));
    let closed = echo(Kind::Message, posted.message_id, 1, posted.outbox_id);
    let refused = OperationResult { found: vec![closed], ..result(&claimed.operations[0], End::Refused) };
    lane.settle_results(&worker, claimed.claim, vec![refused]).await;
    assert_eq!(lane.picture().await, "live: redact message 1; sent: message 1");
    assert_eq!(
        lane.step(&worker, End::Delivered).await.target.unwrap().event,
        Some((event_of(posted.outbox_id), room()))
    );
    assert_eq!(lane.picture().await, "sent: message 1, redact message 1");
}

#[tokio::test]
async fn only_what_is_delivered_lets_the_next_go() {
    let lane = World::with_lane().await;
    lane.post("one").await;
    let operation = &lane.claim(&Worker::new(), 1).await.operations[0];
    for end in [End::Delivered, End::Done] {
        assert!(end.of(operation).lets_the_next_go());
    }
    for end in [End::Refused, End::Ambiguous, End::RoomFault, End::OwnFault, End::ParentDead, End::NotThere] {
        assert!(!end.of(operation).lets_the_next_go(), "{end:?}");
    }
    assert!(matches!(End::Delivered.of(operation), Outcome::Delivered { .. }));
}

// --- Dead letters that could never be sent ---------------------------------------------------------------------------

#[tokio::test]
async fn a_deleted_message_leaves_no_dead_letter() {
    for edited in [false, true] {
        let lane = World::with_lane().await;
        let worker = Worker::new();
        let posted = lane.post("one").await;
        let claimed = lane.claim(&worker, 1).await;
        if edited {
            lane.edit(&posted, "two").await;
        }
        assert_eq!(lane.delete(&posted).await, Some(Deletion::Redacting));
        let settled = lane.settle(&worker, &claimed, &[End::OwnFault]).await;
        assert_eq!(settled.died, 0);
        assert_eq!(lane.picture().await, "live: redact");
        assert_eq!(lane.requeue(posted.outbox_id).await, Requeued::NotDead);
    }
}

#[tokio::test]
async fn a_text_is_not_put_again_once_its_message_is_deleted() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.delete(&posted).await;
    let closing = lane.claim(&worker, 1).await;
    assert_eq!(closing.operations[0].mode, Mode::Close { look_up: false });
    assert_eq!(closing.operations[0].body, None);
    // What cannot be closed for good holds its lane: the text might still arrive.
    lane.settle(&worker, &closing, &[End::OwnFault]).await;
    assert_eq!(lane.number("select count(hold) from lanes where conversation_id = $1").await, 1);
    assert_eq!(lane.picture().await, "live: message 1?, redact message 1");
}

#[tokio::test]
async fn a_discard_takes_the_edits_that_were_parked_with_the_message() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.edit(&posted, "two").await;
    let settled = lane.settle(&worker, &claimed, &[End::OwnFault]).await;
    assert_eq!(settled.died, 2);
    assert_eq!(lane.picture().await, "dead: message 1, edit 2");
    assert_eq!(lane.discard(posted.outbox_id).await, 2);
    assert_eq!(lane.picture().await, "");
    assert_eq!(lane.discard(posted.outbox_id).await, 0);
}

// --- Edits that were superseded --------------------------------------------------------------------------------------

#[tokio::test]
async fn a_requeued_edit_brings_the_newest_text_or_none() {
    let lane = World::with_lane().await;
    let (posted, dead) = dead_edit_maybe_sent(&lane).await;
    lane.edit(&posted, "three").await;
    lane.step(&Worker::new(), End::Delivered).await;
    assert_eq!(lane.requeue(dead).await, Requeued::Superseded);
    assert_eq!(lane.picture().await, "dead: edit 2?; sent: message 1, edit 3");
}

#[tokio::test]
async fn a_dead_edit_that_was_never_sent_goes_when_a_newer_one_is_written() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.step(&worker, End::Delivered).await;
    lane.edit(&posted, "two").await;
    lane.step(&worker, End::OwnFault).await;
    let dead = lane.only("dead_letters", Kind::Edit).await;
    lane.edit(&posted, "three").await;
    assert_eq!(lane.picture().await, "live: edit 3; sent: message 1");
    assert_eq!(lane.requeue(dead).await, Requeued::NotDead);
}

/// The newer edit was enqueued while the older one was under way, which then died.
#[tokio::test]
async fn a_dead_edit_that_was_never_sent_comes_back_with_the_newest_text() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.step(&worker, End::Delivered).await;
    lane.edit(&posted, "two").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.edit(&posted, "three").await;
    lane.settle(&worker, &claimed, &[End::OwnFault]).await;
    assert_eq!(lane.picture().await, "live: edit 3; dead: edit 2; sent: message 1");
    let dead = lane.only("dead_letters", Kind::Edit).await;
    assert_eq!(lane.requeue(dead).await, Requeued::Back(1));
    assert_eq!(lane.picture().await, "live: edit 3, edit 3; sent: message 1");
    lane.edit(&posted, "four").await;
    assert_eq!(lane.picture().await, "live: edit 4; sent: message 1");
}

#[tokio::test]
async fn an_edit_comes_back_with_its_message_only() {
    let lane = World::with_lane().await;
    let posted = dead_maybe_sent(&lane).await;
    lane.edit(&posted, "two").await;
    let parked = lane.only("dead_letters", Kind::Edit).await;
    assert_eq!(lane.requeue(parked).await, Requeued::ParentDead);
    assert_eq!(lane.requeue(posted.outbox_id).await, Requeued::Back(2));
    assert_eq!(lane.picture().await, "live: message 1?, edit 2");
}
