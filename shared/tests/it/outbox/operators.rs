//! What operators do, on a real database: requeue, discard, pause, resume, the trail of it, and what they are shown.
use std::time::Duration;

use serde_json::{Value, json};
use shared::{
    audit, chat,
    ids::{ConversationId, LaneId, OutboxId, UserId},
    operator::{self, Scope},
    outbox::{self, Discard, Kind, LaneClass, Place, Refusal, Requeue, Requeued, Selection},
};
use sqlx::{AssertSqlSafe, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    cost::{filled, pages, statement},
    world::{DEDUPE_WINDOW as WINDOW, End, Lane, Posted, Worker, World, echo},
};

const WAIT: Duration = Duration::from_mins(10);
const OPERATOR: &str = "ada";
const ALL: Selection<'static> = Selection::Matching { cause: None, errcode: None };

impl Lane {
    async fn pause_for(&self, duration: Duration) {
        let until = self.world.now().await + duration;
        self.pause_until(Some(until)).await;
    }

    async fn pause_until(&self, until: Option<OffsetDateTime>) {
        let mut tx = self.world.begin().await;
        let lanes = operator::pause(&mut tx, OPERATOR, Scope::Conversation(self.id), until, "why").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(lanes, 1);
        self.sound().await;
    }

    async fn requeue_selected(&self, selection: Selection<'_>) -> Requeue {
        let mut tx = self.world.begin().await;
        let done = operator::requeue(&mut tx, OPERATOR, self.id, selection, None).await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        done
    }

    async fn preview(&self, selection: Selection<'_>) -> Requeue {
        let mut tx = self.world.begin().await;
        outbox::preview_requeue(&mut tx, self.id, selection).await.unwrap()
    }

    async fn dead(&self, worker: &Worker) -> Posted {
        let posted = self.post("dead").await;
        self.step(worker, End::OwnFault).await;
        posted
    }
}

impl World {
    async fn now(&self) -> OffsetDateTime {
        sqlx::query_scalar("select outbox_now()").fetch_one(&self.pool).await.unwrap()
    }

    async fn trail(&self) -> Vec<audit::Entry> {
        let mut tx = self.begin().await;
        audit::entries(&mut tx, &audit::AuditFilter::default(), None, 1000).await.unwrap()
    }
}

fn refusals(requeue: &Requeue) -> Vec<(Uuid, Refusal)> {
    requeue.refused.iter().map(|refused| (refused.id, refused.reason)).collect()
}

fn ids(requeue: &Requeue) -> Vec<OutboxId> {
    requeue.back.iter().map(|letter| letter.outbox_id).collect()
}

// --- Pauses of lanes -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_posted_into_an_empty_lane_waits_for_the_end_of_its_pause_and_burns_nothing() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.pause_for(WAIT).await;
    lane.post("one").await;
    lane.post("two").await;
    assert!(lane.try_claim(&worker, 1).await.is_none());
    lane.world.advance(WAIT * 9 / 10).await;
    assert!(lane.try_claim(&worker, 1).await.is_none());
    lane.world.advance(WAIT / 10).await;
    let operation = lane.step(&worker, End::Delivered).await;
    assert_eq!((operation.attempts, operation.failures), (0, 0));
    assert_eq!(lane.drain().await.len(), 1);
    assert_eq!(lane.number("select count(*) from attempts where conversation_id = $1").await, 2);
}

/// Wherever a due time is set, it keeps to the pause; `sound` checks that after each step.
#[tokio::test]
async fn whatever_happens_to_a_paused_lane_it_stays_paused() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let dead = lane.dead(&worker).await;
    let sent = lane.post("on the wire").await;
    let (refused, deleted) = (lane.post("handed").await, lane.post("deleted").await);
    let claimed = lane.claim(&worker, 2).await;
    lane.pause_for(WAIT).await;
    // What is on the wire is finished and counts; what follows it waits.
    lane.settle(&worker, &claimed, &[End::Delivered, End::Refused]).await;
    assert!(lane.ids("sent_events", Kind::Message).await.contains(&sent.outbox_id));
    lane.delete(&deleted).await;
    lane.edit(&refused, "other words").await;
    lane.post("another").await;
    assert_eq!(lane.requeue(dead.outbox_id).await, Requeued::Back(1));
    let evidence = echo(Kind::Message, dead.message_id, 1, dead.outbox_id);
    assert!(lane.late_evidence(&evidence).await);
    assert!(lane.try_claim(&worker, 1).await.is_none());
    lane.world.advance(WAIT).await;
    assert_eq!(lane.drain().await.len(), 2);
}

#[tokio::test]
async fn a_lane_whose_owner_is_gone_is_taken_over_after_its_pause() {
    let lane = World::with_lane().await;
    let posted = lane.post("one").await;
    lane.claim(&Worker::new(), 1).await;
    lane.pause_for(WAIT).await;
    lane.world.lapse().await;
    let next = Worker::new();
    assert!(lane.try_claim(&next, 1).await.is_none());
    lane.world.advance(WAIT).await;
    let operation = lane.step(&next, End::Delivered).await;
    assert!(operation.outbox_id == posted.outbox_id && operation.maybe_sent_at.is_some());
}

#[tokio::test]
async fn a_pause_is_shortened_lengthened_and_ended_by_hand() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.post("one").await;
    lane.pause_for(WAIT * 10).await;
    lane.pause_for(WAIT).await;
    lane.world.advance(WAIT).await;
    let claimed = lane.claim(&worker, 1).await;
    lane.settle(&worker, &claimed, &[End::RefusedFor(WAIT)]).await;
    lane.pause_for(WAIT * 10).await;
    lane.world.advance(WAIT / 2).await;
    let mut tx = lane.world.begin().await;
    let resumed = operator::resume(&mut tx, OPERATOR, Scope::Lane(lane.id, lane.lane_id()), None).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((resumed.ended, resumed.lanes), (1, 1));
    lane.sound().await;
    assert!(lane.try_claim(&worker, 1).await.is_none(), "it still backs off");
    lane.world.advance(WAIT / 2).await;
    assert_eq!(lane.drain().await.len(), 1);
}

#[tokio::test]
async fn a_lane_that_is_held_stays_held_when_its_pause_ends_and_resuming_ends_both() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.post("one").await;
    lane.step(&worker, End::RoomFault).await;
    lane.pause_for(WAIT).await;
    lane.world.advance(WAIT).await;
    assert!(lane.try_claim(&worker, 1).await.is_none());
    lane.pause_for(WAIT).await;
    lane.pause_until(None).await;
    let mut tx = lane.world.begin().await;
    let held = outbox::held_lanes(&mut tx, None, None, 10).await.unwrap();
    assert_eq!(held[0].reason, "why; held before: forbidden", "what is still to be mended is not forgotten");
    drop(tx);
    assert!(lane.resume().await);
    assert!(!lane.resume().await);
    assert_eq!(lane.drain().await.len(), 1);
}

#[tokio::test]
async fn a_pause_reaches_every_lane_of_its_conversation_or_the_one_that_was_named() {
    let world = World::new().await;
    let (lane, other) = (world.lane().await, world.lane().await);
    let call = LaneId::from(Uuid::now_v7());
    sqlx::query("insert into lanes values ($1, $2, 'call', 0, 0, null, null, null, null, null, 0)")
        .bind(lane.id.as_uuid())
        .bind(call.as_uuid())
        .execute(&world.pool)
        .await
        .unwrap();
    let held = async || world.db.count("select count(*) from lanes where hold is not null").await;
    let act = async |scope, pause: bool| {
        let mut tx = world.begin().await;
        let lanes = if pause {
            operator::pause(&mut tx, OPERATOR, scope, None, "why").await.unwrap()
        } else {
            operator::resume(&mut tx, OPERATOR, scope, None).await.unwrap().ended
        };
        tx.commit().await.unwrap();
        lanes
    };
    assert_eq!(act(Scope::Conversation(lane.id), true).await, 2);
    assert_eq!(held().await, 2);
    assert_eq!(act(Scope::Lane(lane.id, call), false).await, 1);
    assert_eq!(held().await, 1);
    assert_eq!(act(Scope::Conversation(lane.id), false).await, 1);
    assert_eq!(act(Scope::Lane(other.id, other.lane_id()), true).await, 1);
    assert_eq!(held().await, 1);
    assert_eq!(act(Scope::Lane(other.id, call), true).await, 0, "there is no such lane");
}

#[tokio::test]
async fn all_held_lanes_are_resumed_in_batches_or_those_of_one_reason_and_the_due_are_counted() {
    let world = World::new().await;
    let mut lanes = Vec::new();
    for n in 0..7 {
        let lane = world.lane().await;
        if n < 4 {
            lane.post("one").await;
        }
        let mut tx = world.begin().await;
        outbox::hold(&mut tx, lane.id, lane.lane_id(), if n < 5 { "one reason" } else { "another" }).await.unwrap();
        tx.commit().await.unwrap();
        lanes.push(lane);
    }
    let batch = async |because, after| {
        let mut tx = world.begin().await;
        let batch = outbox::resume_held(&mut tx, because, after, 3).await.unwrap();
        tx.commit().await.unwrap();
        world.sound().await;
        batch
    };
    let first = batch(Some("one reason"), None).await;
    let second = batch(Some("one reason"), first.next).await;
    assert_eq!((first.resumed.ended, second.resumed.ended), (3, 2));
    assert_eq!(first.resumed.lanes + second.resumed.lanes, 4);
    assert_eq!((first.locked, second.locked, second.next), (0, 0, None));
    assert_eq!(batch(Some("one reason"), None).await.resumed.ended, 0);
    assert_eq!(batch(None, None).await.resumed.ended, 2);
    assert_eq!(world.claim_lanes(&Worker::new(), 10, 1).await.len(), 4);
}

/// A pass ends, however often a lane whose fault is not mended is held again.
#[tokio::test]
async fn a_lane_that_is_held_again_during_a_pass_over_the_held_is_not_met_twice() {
    let world = World::new().await;
    let mut lanes = Vec::new();
    for _ in 0..5 {
        let lane = world.lane().await;
        lane.hold().await;
        lanes.push(lane);
    }
    let (mut after, mut batches) = (None, Vec::new());
    for _ in 0..10 {
        let mut tx = world.begin().await;
        let batch = outbox::resume_held(&mut tx, None, after, 2).await.unwrap();
        tx.commit().await.unwrap();
        batches.push(batch.resumed.ended);
        after = batch.next;
        if after.is_none() {
            break;
        }
        lanes[0].hold().await;
    }
    assert_eq!(batches, [2, 2, 1]);
    assert_eq!(world.db.count("select count(*) from lanes where hold is not null").await, 1);
}

#[tokio::test]
async fn a_pass_over_the_held_waits_for_no_lane_that_somebody_has_locked_and_counts_it() {
    let world = World::new().await;
    let (free, locked, resumed) = (world.lane().await, world.lane().await, world.lane().await);
    for lane in [&free, &locked, &resumed] {
        lane.hold().await;
    }
    let mut stranger = world.begin().await;
    sqlx::query("select 1 from lanes where conversation_id = $1 for no key update")
        .bind(locked.id.as_uuid())
        .execute(&mut *stranger)
        .await
        .unwrap();
    assert!(resumed.resume().await);
    let mut tx = world.begin().await;
    sqlx::query("set local lock_timeout = '2s'").execute(&mut *tx).await.unwrap();
    let batch = outbox::resume_held(&mut tx, None, None, 10).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((batch.resumed.ended, batch.locked, batch.next), (1, 1, None), "what nobody holds is not counted");
    stranger.rollback().await.unwrap();
    let mut tx = world.begin().await;
    let again = outbox::resume_held(&mut tx, None, None, 10).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((again.resumed.ended, again.locked), (1, 0));
}

// --- Discarding what holds a lane ------------------------------------------------------------------------------------

impl Lane {
    async fn discard_named(&self, ids: &[OutboxId]) -> Discard {
        let mut tx = self.world.begin().await;
        let done = operator::discard(&mut tx, OPERATOR, self.id, ids, "the room is gone").await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        done
    }

    /// Why an operation is not discarded; nothing is changed by that.
    async fn refusal(&self, outbox_id: OutboxId) -> Refusal {
        let before = self.picture().await;
        let acts = self.world.trail().await.len();
        let done = self.discard_named(&[outbox_id]).await;
        assert_eq!((self.picture().await, self.world.trail().await.len()), (before, acts));
        assert_eq!((done.gone.as_slice(), done.refused.len(), done.refused[0].id), (&[][..], 1, outbox_id.as_uuid()));
        done.refused[0].reason
    }

    async fn remove_a_guest(&self) -> OutboxId {
        let guest = UserId::generate();
        let mut tx = self.world.begin().await;
        let turn = self.turn(&mut tx).await.unwrap();
        chat::enqueue_membership(&mut tx, &turn, guest, Kind::Remove).await.unwrap();
        tx.commit().await.unwrap();
        self.only("outbox", Kind::Remove).await
    }

    async fn is_held(&self) -> bool {
        self.number("select count(*) from lanes where conversation_id = $1 and hold is not null").await == 1
    }
}

#[tokio::test]
async fn a_redaction_that_is_refused_for_good_is_discarded_and_its_lane_goes_on_after_a_resume() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.step(&worker, End::Delivered).await;
    lane.delete(&posted).await;
    let next = lane.post("next").await;
    lane.step(&worker, End::OwnFault).await;
    let redaction = lane.only("outbox", Kind::Redact).await;
    assert!(lane.resume().await);
    lane.step(&worker, End::OwnFault).await;
    assert!(lane.is_held().await, "resuming alone is no way out");

    let done = lane.discard_named(&[redaction]).await;
    assert_eq!((done.gone.as_slice(), done.refused.as_slice()), (&[redaction][..], &[][..]));
    let live = &done.live[0];
    assert_eq!((live.outbox_id, live.subject_id), (redaction, posted.message_id.as_uuid()));
    assert_eq!(live.target_outbox_id, Some(posted.outbox_id));
    assert!(live.left_undone.contains("stays readable"), "{}", live.left_undone);
    assert_eq!(lane.picture().await, "live: message 1; sent: message 1", "a redaction is not remembered");
    assert!(lane.is_held().await, "somebody has still to resume it");
    assert!(lane.try_claim(&worker, 1).await.is_none());
    let trail = lane.world.trail().await;
    assert_eq!((trail[0].verb.as_str(), trail[0].affected), ("discard", 1));
    assert_eq!(trail[0].reason.as_deref(), Some("the room is gone"));
    assert_eq!(trail[0].arguments["live"][0]["kind"], "redact");
    assert_eq!(trail[0].arguments["live"][0]["target_outbox_id"], json!(posted.outbox_id));
    assert!(lane.resume().await);
    let sent: Vec<_> = lane.drain().await.iter().map(|operation| operation.outbox_id).collect();
    assert_eq!(sent, [next.outbox_id]);
}

#[tokio::test]
async fn a_removal_and_an_invitation_that_hold_their_lane_are_discarded() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let removal = lane.remove_a_guest().await;
    lane.step(&worker, End::OwnFault).await;
    let done = lane.discard_named(&[removal]).await;
    assert!(done.live[0].left_undone.contains("stays in the room"));
    assert!(lane.resume().await);
    let mut tx = lane.world.begin().await;
    let turn = lane.turn(&mut tx).await.unwrap();
    chat::enqueue_membership(&mut tx, &turn, UserId::generate(), Kind::Invite).await.unwrap();
    tx.commit().await.unwrap();
    lane.step(&worker, End::RoomFault).await;
    let invitation = lane.only("outbox", Kind::Invite).await;
    assert_eq!(lane.discard_named(&[invitation]).await.gone, [invitation]);
    assert!(lane.resume().await);
    let next = lane.post("next").await;
    assert_eq!(lane.drain().await[0].outbox_id, next.outbox_id);
    assert_eq!(lane.picture().await, "sent: message 1");
}

#[tokio::test]
async fn a_deleted_message_that_may_have_been_sent_is_remembered_when_it_is_discarded() {
    let world = World::new().await;
    let worker = Worker::new();
    // By an attempt of unknown end, or by an owner that is gone: nobody has taken its held lane over.
    for owner_is_gone in [false, true] {
        let lane = world.lane().await;
        let posted = lane.post("one").await;
        if owner_is_gone {
            lane.claim(&worker, 1).await;
        } else {
            lane.step(&worker, End::Ambiguous).await;
        }
        lane.delete(&posted).await;
        lane.hold().await;
        if owner_is_gone {
            assert_eq!(lane.refusal(posted.outbox_id).await, Refusal::Leased);
            world.lapse().await;
        }
        let done = lane.discard_named(&[posted.outbox_id]).await;
        assert!(done.live[0].left_undone.contains("its redaction is still to be done"));
        assert_eq!(lane.picture().await, "live: redact message 1; given up: message 1?");
        // Its redaction still finds it, and may in turn be discarded. What then turns up is redacted all the same.
        let redaction = lane.only("outbox", Kind::Redact).await;
        assert_eq!(lane.discard_named(&[redaction]).await.gone, [redaction]);
        assert!(lane.late_evidence(&echo(Kind::Message, posted.message_id, 1, posted.outbox_id)).await);
        assert_eq!(lane.picture().await, "live: redact message 1; sent: message 1");
        lane.forget().await;
    }
}

#[tokio::test]
async fn what_is_live_is_discarded_only_where_it_holds_a_lane_that_nobody_has_and_nobody_wants_its_text() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let deleted = lane.post("one").await;
    lane.step(&worker, End::Delivered).await;
    assert_eq!(lane.refusal(deleted.outbox_id).await, Refusal::NotDead, "it is delivered");
    lane.delete(&deleted).await;
    let redaction = lane.only("outbox", Kind::Redact).await;
    assert_eq!(lane.refusal(redaction).await, Refusal::NotHeld);
    let claimed = lane.claim(&worker, 1).await;
    lane.hold().await;
    assert_eq!(lane.refusal(redaction).await, Refusal::Leased);
    lane.settle(&worker, &claimed, &[End::Delivered]).await;

    assert!(lane.resume().await);
    let wanted = lane.post("wanted").await;
    lane.step(&worker, End::RoomFault).await;
    let removal = lane.remove_a_guest().await;
    assert_eq!(lane.refusal(wanted.outbox_id).await, Refusal::Wanted);
    assert_eq!(lane.refusal(removal).await, Refusal::NotFirst);
    assert_eq!(lane.refusal(OutboxId::generate()).await, Refusal::NotDead);

    // Once its message is deleted, nothing is before the removal any more.
    lane.delete(&wanted).await;
    assert_eq!(lane.discard_named(&[removal, removal]).await.gone, [removal]);
    for reason in [Refusal::NotHeld, Refusal::Leased, Refusal::NotFirst, Refusal::Wanted, Refusal::Unnamed] {
        assert!(reason.in_words().contains("live"), "{}", reason.in_words());
    }
}

// --- Requeue ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_requeued_together_comes_first_in_its_original_order_and_a_preview_said_so() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push(lane.dead(&worker).await.outbox_id);
    }
    let delivered = lane.post("delivered meanwhile").await;
    lane.step(&worker, End::Delivered).await;
    let doubtful = lane.post("in doubt").await;
    lane.step(&worker, End::Ambiguous).await;
    for _ in 0..10 {
        lane.post("waiting").await;
    }
    let before = lane.picture().await;
    let preview = lane.preview(ALL).await;
    assert_eq!(lane.picture().await, before, "a preview changes nothing");
    assert_eq!(ids(&preview), expected);
    let ahead = &preview.lanes[0];
    assert_eq!((ahead.back, ahead.before, ahead.after, ahead.delivered_meanwhile), (3, 1, 10, 1));
    assert_eq!(lane.requeue_selected(ALL).await, preview, "the act does what the preview said");
    let sent: Vec<_> = lane.drain().await.iter().map(|operation| operation.outbox_id).collect();
    assert_eq!(sent[..3], expected);
    assert_eq!(sent.len(), 14);
    assert!(sent.contains(&doubtful.outbox_id) && !sent.contains(&delivered.outbox_id));
}

#[tokio::test]
async fn only_what_matches_comes_back_and_what_cannot_says_why() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    // A message with an edit that died with it.
    let parent = lane.post("one").await;
    let claimed = lane.claim(&worker, 1).await;
    lane.edit(&parent, "two").await;
    lane.settle(&worker, &claimed, &[End::OwnFault]).await;
    let parked = lane.only("dead_letters", Kind::Edit).await;
    // A message whose edit may have been sent, died, and was replaced.
    let edited = lane.post("one").await;
    lane.step(&worker, End::Delivered).await;
    lane.edit(&edited, "two").await;
    let superseded = lane.step(&worker, End::Ambiguous).await.outbox_id;
    lane.step(&worker, End::OwnFault).await;
    lane.edit(&edited, "three").await;
    lane.step(&worker, End::Delivered).await;
    let live = lane.post("live").await;

    let named = [parked, superseded, live.outbox_id];
    let done = lane.requeue_selected(Selection::Named(&named)).await;
    assert_eq!(ids(&done), []);
    let expected =
        [(parked, Refusal::ParentDead), (superseded, Refusal::Superseded), (live.outbox_id, Refusal::NotDead)];
    assert_eq!(refusals(&done), expected.map(|(id, reason)| (id.as_uuid(), reason)));
    assert_eq!(lane.world.trail().await.len(), 0, "an act that changes nothing leaves no row");

    let none = Selection::Matching { cause: Some("gave_up"), errcode: None };
    assert_eq!(ids(&lane.requeue_selected(none).await), []);
    let own = Selection::Matching { cause: Some("own_fault"), errcode: None };
    let done = lane.requeue_selected(own).await;
    assert_eq!(ids(&done), [parent.outbox_id, parked], "a message takes its edits along");
    assert_eq!(refusals(&done), [(superseded.as_uuid(), Refusal::Superseded)]);
    let last = lane.drain().await.iter().filter(|sent| sent.subject_id == parent.message_id.as_uuid()).count();
    assert_eq!(last, 2);
}

#[tokio::test]
async fn no_more_come_back_at_once_than_a_second_allows_and_those_are_the_first() {
    let lane = World::with_lane().await;
    sqlx::query(
        "insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
             attempts, cause, hint, died_at)
         select $1, $1, n, gen_random_uuid(), 'message', gen_random_uuid(), 1, outbox_now(), 1, 'own_fault', '',
             outbox_now()
         from generate_series(1, 5003) n",
    )
    .bind(lane.id.as_uuid())
    .execute(&lane.world.pool)
    .await
    .unwrap();
    let began = std::time::Instant::now();
    let done = lane.requeue_selected(ALL).await;
    println!("5,000 dead letters came back in {:?}", began.elapsed());
    assert_eq!((done.back.len(), done.lanes[0].back), (5_000, 5_000));
    assert!(done.back.iter().map(|letter| letter.seq).eq(1..=5_000));
    assert_eq!(lane.number("select count(*) from dead_letters where conversation_id = $1").await, 3);
}

#[tokio::test]
async fn a_requeue_into_a_paused_lane_waits_and_its_preview_says_for_what() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.dead(&worker).await;
    lane.pause_for(WAIT).await;
    let done = lane.requeue_selected(ALL).await;
    assert_eq!(done.lanes[0].waits.as_deref(), Some("why"));
    assert!(done.lanes[0].waits_until.is_some());
    assert!(lane.try_claim(&worker, 1).await.is_none());
    lane.world.advance(WAIT).await;
    assert_eq!(lane.drain().await.len(), 1);
}

#[tokio::test]
async fn what_was_discarded_in_doubt_and_turns_up_is_brought_up_to_date_and_redacted_with_its_message() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let (edited, deleted) = (lane.post("one").await, lane.post("one").await);
    for posted in [&edited, &deleted] {
        lane.step(&worker, End::Ambiguous).await;
        lane.step(&worker, End::OwnFault).await;
        let mut tx = lane.world.begin().await;
        let gone = operator::discard(&mut tx, OPERATOR, lane.id, &[posted.outbox_id], "why").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(gone.gone, [posted.outbox_id]);
    }
    lane.edit(&edited, "two").await;
    lane.delete(&deleted).await;
    for posted in [&edited, &deleted] {
        assert!(lane.late_evidence(&echo(Kind::Message, posted.message_id, 1, posted.outbox_id)).await);
    }
    let kinds: Vec<_> = lane.drain().await.iter().map(|operation| (operation.kind, operation.subject_id)).collect();
    assert!(kinds.contains(&(Kind::Edit, edited.message_id.as_uuid())), "{kinds:?}");
    assert!(kinds.contains(&(Kind::Redact, deleted.message_id.as_uuid())), "{kinds:?}");
}

// --- The trail -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn each_act_has_one_row_in_the_trail_and_one_that_fails_or_changes_nothing_has_none() {
    let lane = World::with_lane().await;
    let world = &lane.world;
    let worker = Worker::new();
    let scopes = [
        (Scope::All, "all", None),
        (Scope::Class(LaneClass::Chat), "class", None),
        (Scope::Conversation(lane.id), "conversation", Some(lane.id)),
        (Scope::Lane(lane.id, lane.lane_id()), "lane", Some(lane.id)),
    ];
    let mut expected = Vec::new();
    for (scope, name, conversation_id) in scopes {
        for until in [None, Some(world.now().await + WAIT)] {
            let mut tx = world.begin().await;
            operator::pause(&mut tx, OPERATOR, scope, until, "why").await.unwrap();
            tx.commit().await.unwrap();
            expected.push(("pause", name, conversation_id));
        }
        for (reason, ended) in [(Some("mended"), 1), (None, 0)] {
            let mut tx = world.begin().await;
            assert_eq!(operator::resume(&mut tx, OPERATOR, scope, reason).await.unwrap().ended, ended);
            tx.commit().await.unwrap();
        }
        expected.push(("resume", name, conversation_id));
    }
    let (kept, gone) = (lane.dead(&worker).await, lane.dead(&worker).await);
    for outbox_id in [gone.outbox_id, gone.outbox_id, OutboxId::generate()] {
        let mut tx = world.begin().await;
        operator::discard(&mut tx, OPERATOR, lane.id, &[outbox_id], "spam").await.unwrap();
        tx.commit().await.unwrap();
    }
    expected.push(("discard", "operations", Some(lane.id)));
    let mut tx = world.begin().await;
    operator::requeue(&mut tx, OPERATOR, lane.id, ALL, None).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(lane.only("dead_letters", Kind::Message).await, kept.outbox_id);
    lane.requeue_selected(ALL).await;
    expected.push(("requeue", "conversation", Some(lane.id)));
    lane.hold().await;
    for _ in 0..2 {
        let mut tx = world.begin().await;
        operator::resume_held(&mut tx, OPERATOR, None, None, None).await.unwrap();
        tx.commit().await.unwrap();
    }
    expected.push(("resume", "held", None));
    let mut tx = world.begin().await;
    let nowhere = Scope::Conversation(ConversationId::generate());
    assert_eq!(operator::pause(&mut tx, OPERATOR, nowhere, None, "why").await.unwrap(), 0);
    tx.commit().await.unwrap();

    let mut trail = world.trail().await;
    trail.reverse();
    let found: Vec<_> =
        trail.iter().map(|entry| (entry.verb.as_str(), entry.scope.as_str(), entry.conversation_id)).collect();
    assert_eq!(found, expected);
    assert!(trail.iter().all(|entry| entry.acted_by == OPERATOR && entry.affected == 1));
    assert_eq!(trail[0].arguments, json!({"until": null}));
    let discarded = trail.iter().find(|entry| entry.verb == "discard").unwrap();
    assert_eq!(
        (&discarded.arguments, discarded.reason.as_deref()),
        (&json!({"outbox_ids": [gone.outbox_id]}), Some("spam"))
    );
}

// --- What operators are shown ----------------------------------------------------------------------------------------

/// Statements, as they stand in their sources.
const GAUGES: &str = include_str!("../../../src/outbox/gauges.rs");

#[tokio::test]
async fn an_id_leads_to_its_operation_or_to_all_of_its_message_wherever_they_stand() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    lane.step(&worker, End::Refused).await;
    lane.step(&worker, End::Delivered).await;
    lane.edit(&posted, "two").await;
    let edit = lane.step(&worker, End::OwnFault).await.outbox_id;
    for text in ["waiting", "waiting too"] {
        lane.post(text).await;
    }
    let mut tx = lane.world.begin().await;
    let found = outbox::find(&mut tx, posted.message_id.as_uuid()).await.unwrap();
    let places: Vec<_> = found.iter().map(|found| (found.outbox_id, found.place)).collect();
    assert_eq!(places, [(posted.outbox_id, Place::Sent), (edit, Place::Dead)]);
    let found = outbox::find(&mut tx, edit.as_uuid()).await.unwrap();
    assert_eq!(found.len(), 1);
    let shown = outbox::show(&mut tx, found[0].clone()).await.unwrap();
    let dead = shown.dead.as_ref().unwrap();
    assert_eq!((dead.cause.as_str(), dead.hint.as_str()), ("own_fault", "too large"));
    assert_eq!((shown.behind, shown.attempts_total), (2, 1));
    assert_eq!(shown.first_error.as_ref().unwrap().outcome, "own_fault");
    let sent = outbox::find(&mut tx, posted.outbox_id.as_uuid()).await.unwrap();
    let sent = outbox::show(&mut tx, sent[0].clone()).await.unwrap();
    assert_eq!((sent.attempts_total, sent.last_error.unwrap().outcome.as_str()), (2, "refused"));
    assert!(outbox::find(&mut tx, Uuid::now_v7()).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_gauges_say_what_waits_and_since_when() {
    let world = World::new().await;
    let worker = Worker::new();
    let (lane, held, paused) = (world.lane().await, world.lane().await, world.lane().await);
    let read = async || {
        let mut tx = world.begin().await;
        outbox::gauges(&mut tx).await.unwrap()
    };
    let empty = read().await;
    assert!(empty.classes.iter().all(|class| class.depth == 0 && class.oldest_age.is_zero() && !class.paused));
    lane.dead(&worker).await;
    held.post("oldest").await;
    held.hold().await;
    world.advance(WAIT).await;
    for _ in 0..3 {
        lane.post("one").await;
    }
    paused.pause_for(WAIT).await;
    outbox::pause(&world.pool, Some(LaneClass::Call), None, "why", OPERATOR).await.unwrap();
    let gauges = read().await;
    let [call, chat] = gauges.classes.as_slice() else { panic!("two classes") };
    assert_eq!((call.class, call.depth, call.paused), (LaneClass::Call, 0, true));
    assert_eq!((chat.class, chat.depth, chat.paused), (LaneClass::Chat, 4, false));
    assert!(chat.oldest_age >= WAIT && chat.oldest_age < WAIT * 2, "{:?}", chat.oldest_age);
    assert_eq!((gauges.dead_letters, gauges.held_lanes, gauges.paused_lanes, gauges.all_paused), (1, 1, 1, false));
    assert_eq!(gauges.blocked_conversations, 1, "the one that is held, not the paused");
}

#[tokio::test]
async fn the_gauges_say_which_conversations_wait_after_a_failure_and_what_is_in_doubt_for_too_long() {
    let world = World::new().await;
    let worker = Worker::new();
    let (doubtful, refused) = (world.lane().await, world.lane().await);
    let read = async || {
        let mut tx = world.begin().await;
        let gauges = outbox::gauges(&mut tx).await.unwrap();
        (gauges.blocked_conversations, outbox::beyond_the_window(&mut tx, WINDOW).await.unwrap())
    };
    doubtful.post("doubtful").await;
    refused.post("refused").await;
    assert_eq!(read().await, (0, 0), "what only waits for a worker is not blocked");
    doubtful.step(&worker, End::Ambiguous).await;
    refused.step(&worker, End::RefusedFor(WAIT)).await;
    assert_eq!(read().await, (1, 0));
    world.advance(WINDOW).await;
    assert_eq!(read().await, (0, 1), "what is due again waits for a worker");
    doubtful.step(&worker, End::Delivered).await;
    assert_eq!(read().await, (0, 0));
}

#[tokio::test]
async fn the_gauges_read_no_more_when_far_more_is_dead_or_was_sent_or_waits_in_one_lane() {
    let mut costs = Vec::new();
    for many in [12_000, 36_000] {
        let world = filled(many).await;
        let mut tx = world.begin().await;
        let gauges = outbox::gauges(&mut tx).await.unwrap();
        assert_eq!(gauges.dead_letters, outbox::COUNTED_LETTERS);
        let explain =
            |after| AssertSqlSafe(format!("explain (analyze, buffers, format json) {}", statement(GAUGES, after)));
        let counts: Value = sqlx::query_scalar(explain("statement_timeout"))
            .bind(outbox::COUNTED_LETTERS)
            .bind(outbox::COUNTED_LANES)
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        let depth: Value = sqlx::query_scalar(explain("async fn depth"))
            .bind("chat")
            .bind(outbox::COUNTED_LANES)
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        let oldest: Value = sqlx::query_scalar(explain("LaneClass::Chat =>")).fetch_one(&mut *tx).await.unwrap();
        let blocked: Value = sqlx::query_scalar(explain("async fn blocked"))
            .bind(outbox::COUNTED_LANES)
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        let doubtful: Value = sqlx::query_scalar(explain("async fn beyond_the_window"))
            .bind(WINDOW.as_secs_f64())
            .bind(outbox::COUNTED_LETTERS)
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        costs.push([pages(&counts), pages(&depth), pages(&oldest), pages(&blocked), pages(&doubtful)]);
    }
    println!("pages read for counts, depth, the oldest, what is blocked and what is in doubt: {costs:?}");
    let [few, many] = costs.as_slice() else { panic!("two sizes") };
    assert!(2 * many[0] <= 3 * few[0], "the counts end at their bounds");
    assert!(many[1] <= 2 * outbox::COUNTED_LANES, "the depth is that of so many lanes at most");
    assert!(many[2] <= 20, "the oldest is the first of an index");
    assert!(many[3] <= 3 * outbox::COUNTED_LANES, "blocked are so many lanes of each sort at most");
    assert!(many[4] <= 10, "what is in doubt is apart from all that merely waits");
}

/// An update that touches a column of an index writes to every index of the table.
#[tokio::test]
async fn what_is_indexed_for_operators_costs_the_updates_of_claims_and_settles_nothing() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.post("one").await;
    let hot = async |tx: &mut sqlx::PgConnection, table: &str| -> (i64, i64) {
        let row = sqlx::query(
            "select pg_stat_get_xact_tuples_updated($1::regclass) as updated,
                 pg_stat_get_xact_tuples_hot_updated($1::regclass) as hot",
        )
        .bind(table)
        .fetch_one(tx)
        .await
        .unwrap();
        (row.get("updated"), row.get("hot"))
    };
    // The figures are the session's, of earlier transactions too.
    let mut tx = lane.world.begin().await;
    let (outbox_before, lanes_before) = (hot(&mut tx, "outbox").await, hot(&mut tx, "lanes").await);
    let claim = outbox::claim(&mut tx, &worker.request(1, 1)).await.unwrap();
    for (table, before) in [("outbox", outbox_before), ("lanes", lanes_before)] {
        let (updated, hot) = hot(&mut tx, table).await;
        assert_eq!((updated - before.0, hot - before.1), (1, 1), "a claim's update of {table}");
    }
    tx.commit().await.unwrap();
    let mut tx = lane.world.begin().await;
    let before = hot(&mut tx, "outbox").await;
    let settlement = super::world::settlement(&claim.batches[0], End::Refused);
    outbox::settle(&mut tx, worker.id, &[settlement]).await.unwrap();
    let (updated, is_hot) = hot(&mut tx, "outbox").await;
    assert_eq!((updated - before.0, is_hot - before.1), (1, 1), "a settle's update of outbox");
    tx.commit().await.unwrap();
    // What is in doubt is found by an index, which it enters once.
    for entered in [1, 0] {
        lane.world.advance(WAIT).await;
        let mut tx = lane.world.begin().await;
        let claim = outbox::claim(&mut tx, &worker.request(1, 1)).await.unwrap();
        let before = hot(&mut tx, "outbox").await;
        let settlement = super::world::settlement(&claim.batches[0], End::Ambiguous);
        outbox::settle(&mut tx, worker.id, &[settlement]).await.unwrap();
        let (updated, is_hot) = hot(&mut tx, "outbox").await;
        assert_eq!((updated - before.0, is_hot - before.1), (1, 1 - entered), "a settle that leaves it in doubt");
        tx.commit().await.unwrap();
    }
}
