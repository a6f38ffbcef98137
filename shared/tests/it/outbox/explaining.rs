//! Why something waits or how it ended, in a sentence.
use std::time::Duration;

use shared::{
    ids::OutboxId,
    operator::{self, Scope},
    outbox::{self, Attempt, Blame, Explanation, HOLD_NOT_IN_ROOM, LaneClass, OperationResult, Outcome, Repair},
};

use super::world::{End, Lane, Posted, Worker, World};

const OPERATOR: &str = "ada";

impl Lane {
    async fn explain(&self, outbox_id: OutboxId) -> Explanation {
        let mut tx = self.world.begin().await;
        outbox::explain(&mut tx, self.id, outbox_id).await.unwrap()
    }

    async fn fail(&self, worker: &Worker, outcome: Outcome, errcode: &str) {
        let claimed = self.claim(worker, 1).await;
        let attempt = Attempt { errcode: Some(errcode.to_owned()), ..Attempt::default() };
        let result = OperationResult {
            operation: claimed.operations[0].clone(),
            outcome,
            attempt: Some(attempt),
            found: Vec::new(),
            anew: false,
        };
        self.settle_results(worker, claimed.claim, vec![result]).await;
    }
}

fn limited(retry_in: Duration) -> Outcome {
    Outcome::Refused { retry_in, blame: Blame::Nobody }
}

/// What is said of each of three messages, for operators, once something was done to their lane.
async fn said(lane: &Lane, posted: &[Posted]) -> Vec<String> {
    let mut sentences = Vec::new();
    for posted in posted {
        sentences.push(lane.explain(posted.outbox_id).await.sentence);
    }
    sentences
}

#[track_caller]
fn has(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
    }
}

#[tokio::test]
async fn what_waits_says_for_what_until_when_and_how_many_are_behind_it() {
    let lane = World::with_lane().await;
    lane.world.db.stop_clock().await;
    let worker = Worker::new();
    let posted = [lane.post("one").await, lane.post("two").await, lane.post("three").await];
    lane.world.advance(Duration::from_secs(41)).await;
    let sentences = said(&lane, &posted).await;
    has(&sentences[0], &["waiting 41 s: a worker takes it next; 2 behind it"]);
    has(
        &sentences[1],
        &["is behind message", &posted[0].outbox_id.to_string(), "(not tried yet); then it goes; 1 behind"],
    );

    // Rate limits are no failures, but attempts.
    for _ in 0..2 {
        lane.fail(&worker, limited(Duration::ZERO), "M_LIMIT_EXCEEDED").await;
    }
    lane.fail(&worker, limited(Duration::from_hours(1)), "M_LIMIT_EXCEEDED").await;
    let sentences = said(&lane, &posted).await;
    has(
        &sentences[0],
        &["waiting 41 s: attempt 3 failed with M_LIMIT_EXCEEDED; it is tried again at", "; 2 behind it"],
    );
    let id = posted[0].outbox_id.to_string();
    let lane_id = lane.lane_id().to_string();
    let behind =
        ["lane", &lane_id, "is behind message", &id, "(attempt 3, M_LIMIT_EXCEEDED until ", "); then it goes; 1"];
    has(&sentences[1], &behind);
    has(&sentences[2], &["then 1 more, then it goes"]);
    let explained = lane.explain(posted[1].outbox_id).await;
    assert_eq!(explained.waited, Some(41));
    let members = explained.for_members();
    has(&members.sentence, &["waiting 41 s: 1 is before it until", "then it goes"]);
    assert!(!members.sentence.contains(&id), "{}", members.sentence);

    lane.world.advance(Duration::from_hours(1)).await;
    lane.claim(&worker, 1).await;
    let sentences = said(&lane, &posted).await;
    has(&sentences[0], &["under way", "attempt 4 is at the homeserver"]);
    has(&sentences[1], &["waiting 1 h 0 min", "(attempt 4 is at the homeserver)"]);
}

#[tokio::test]
async fn a_pause_or_a_hold_is_said_with_its_reason_its_end_and_what_to_do() {
    let lane = World::with_lane().await;
    let world = &lane.world;
    let posted = [lane.post("one").await];
    let until: time::OffsetDateTime =
        sqlx::query_scalar("select outbox_now() + interval '1 hour'").fetch_one(&world.pool).await.unwrap();
    let pause = async |scope, until| {
        let mut tx = world.begin().await;
        operator::pause(&mut tx, OPERATOR, scope, until, "snooze").await.unwrap();
        tx.commit().await.unwrap();
    };
    let resume = async |scope| {
        let mut tx = world.begin().await;
        operator::resume(&mut tx, OPERATOR, scope, None).await.unwrap();
        tx.commit().await.unwrap();
    };
    for (scope, until, expected) in [
        (Scope::All, None, "everything is paused until somebody resumes it (snooze)"),
        (Scope::Class(LaneClass::Chat), Some(until), "chats are paused until "),
        (Scope::Conversation(lane.id), Some(until), "its lane is paused until "),
        (Scope::Conversation(lane.id), None, "its lane is held (snooze); mend it, then `outboxctl resume --lane"),
    ] {
        pause(scope, until).await;
        has(&said(&lane, &posted).await[0], &[expected, "snooze"]);
        resume(scope).await;
    }
    let worker = Worker::new();
    lane.fail(&worker, Outcome::RoomFault { reason: HOLD_NOT_IN_ROOM.to_owned() }, "M_FORBIDDEN").await;
    let explained = lane.explain(posted[0].outbox_id).await;
    has(&explained.sentence, &[HOLD_NOT_IN_ROOM, "repair: rejoin"]);
    assert_eq!(explained.repair, Some(Repair::Rejoin));
    let members = explained.for_members();
    has(&members.sentence, &["its lane is held; an operator has to look at it"]);
    assert_eq!(members.waiting_for.as_deref(), Some("an operator: its lane is held"));
    assert_eq!(members.repair, None);
    let mut tx = world.begin().await;
    let held = outbox::held_lanes(&mut tx, None, None, 10).await.unwrap();
    assert_eq!(held[0].repair, Some(Repair::Rejoin));
}

#[tokio::test]
async fn what_ended_says_how_when_and_what_can_be_done() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let dead = lane.post("dead").await;
    lane.fail(&worker, Outcome::OwnFault { hint: "?" }, "M_TOO_LARGE").await;
    let doubtful = lane.post("in doubt").await;
    lane.step(&worker, End::Ambiguous).await;
    lane.step(&worker, End::OwnFault).await;
    lane.discard(doubtful.outbox_id).await;
    let sent = lane.post("sent").await;
    let cancelled = lane.post("cancelled").await;
    lane.delete(&cancelled).await;
    lane.drain().await;
    let sentences = said(&lane, &[dead, doubtful, sent, cancelled]).await;
    has(&sentences[0], &["dead since", "it cannot be sent as it is (M_TOO_LARGE); have the message shortened"]);
    has(&sentences[1], &["given up at", "although it may stand in the room: an operator discarded it"]);
    has(&sentences[2], &["delivered at", &format!("as ${}", sent.outbox_id)]);
    has(&sentences[3], &["cancelled"]);
    assert_eq!(lane.explain(dead.outbox_id).await.waited, None);
    has(&lane.explain(dead.outbox_id).await.for_members().sentence, &["dead", "an operator has to look at it"]);
}
