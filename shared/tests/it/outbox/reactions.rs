//! What reacting, taking a reaction back, and deleting its message do, by where the operations stand.
use shared::{
    chat::{self, ChatError, MAX_REACTIONS_OF_ONE, Reacted, Unreacted},
    ids::{OutboxId, UserId},
    outbox::{Deletion, Evidence, Kind, Mode, Requeued},
};

use super::world::{End, Lane, Posted, Worker, World, event_of, room};

const KEY: &str = "\u{1f44d}";

/// Where an operation stands when somebody changes their mind.
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

/// Brings the lane's first operation to where it shall stand.
async fn bring(lane: &Lane, place: Stands, dead: impl AsyncFnOnce() -> OutboxId) {
    let worker = Worker::new();
    let ends: &[End] = match place {
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
    if matches!(place, Stands::DiscardedNeverSent | Stands::DiscardedMaybeSent) {
        assert_eq!(lane.discard(dead().await).await, 1);
    }
}

async fn message(lane: &Lane, stands: Stands) -> Posted {
    if stands == Stands::NeverEnqueued {
        return lane.post_here_only("one").await;
    }
    let posted = lane.post("one").await;
    bring(lane, stands, async || posted.outbox_id).await;
    posted
}

/// A delivered message, and a reaction of its author that stands there.
async fn reacted(lane: &Lane, stands: Stands) -> Posted {
    let posted = message(lane, Stands::Delivered).await;
    react(lane, &posted, lane.world.author, KEY).await.unwrap();
    bring(lane, stands, async || lane.only("dead_letters", Kind::React).await).await;
    posted
}

pub(super) async fn react(lane: &Lane, posted: &Posted, who: UserId, key: &str) -> Result<Reacted, ChatError> {
    let mut tx = lane.world.begin().await;
    let turn = lane.turn(&mut tx).await?;
    let reacted = chat::add_reaction(&mut tx, &turn, &lane.world.keys, posted.message_id, who, key, true).await?;
    tx.commit().await?;
    lane.sound().await;
    Ok(reacted)
}

pub(super) async fn unreact(lane: &Lane, posted: &Posted, who: UserId, key: &str) -> Unreacted {
    let mut tx = lane.world.begin().await;
    let mut turn = lane.turn(&mut tx).await.unwrap();
    let keys = &lane.world.keys;
    let removed = chat::remove_reaction(&mut tx, &mut turn, keys, posted.message_id, who, key).await.unwrap();
    tx.commit().await.unwrap();
    lane.sound().await;
    removed
}

async fn keys_left(lane: &Lane) -> i64 {
    lane.number("select count(*) from message_reactions where conversation_id = $1 and key is not null").await
}

#[tokio::test]
async fn a_reaction_follows_its_message_and_is_parked_with_one_that_is_dead() {
    let world = World::new().await;
    for (stands, after) in [
        (Stands::Waiting, "live: message 1, react"),
        (Stands::InFlight, "live: message 1, react"),
        (Stands::RefusedOnce, "live: message 1, react"),
        (Stands::Ambiguous, "live: message 1?, react"),
        (Stands::Delivered, "live: react; sent: message 1"),
        (Stands::DeadNeverSent, "dead: message 1, react"),
        (Stands::DeadMaybeSent, "dead: message 1?, react"),
        (Stands::DiscardedNeverSent, ""),
        (Stands::DiscardedMaybeSent, "given up: message 1?"),
        (Stands::NeverEnqueued, ""),
    ] {
        let lane = world.lane().await;
        let posted = message(&lane, stands).await;
        let first = react(&lane, &posted, world.author, KEY).await.unwrap();
        assert!(matches!(first, Reacted::Added { .. }), "{stands:?}");
        assert_eq!(lane.picture().await, after, "{stands:?}");
        assert_eq!(react(&lane, &posted, world.author, KEY).await.unwrap(), Reacted::Already, "{stands:?}");
        assert_eq!(lane.picture().await, after, "{stands:?}, twice");
        assert_eq!(keys_left(&lane).await, 1);
        lane.forget().await;
    }
}

#[tokio::test]
async fn taking_a_reaction_back_cancels_what_waits_and_redacts_what_was_handed() {
    let world = World::new().await;
    for (stands, to_send, after) in [
        (Stands::Waiting, false, "sent: message 1"),
        (Stands::InFlight, true, "live: react, redact react; sent: message 1"),
        (Stands::RefusedOnce, false, "sent: message 1"),
        (Stands::Ambiguous, true, "live: react?, redact react; sent: message 1"),
        (Stands::Delivered, true, "live: redact react; sent: message 1, react"),
        (Stands::DeadNeverSent, false, "sent: message 1"),
        (Stands::DeadMaybeSent, true, "live: redact react; given up: react?; sent: message 1"),
        (Stands::DiscardedNeverSent, false, "sent: message 1"),
        (Stands::DiscardedMaybeSent, true, "live: redact react; given up: react?; sent: message 1"),
    ] {
        let lane = world.lane().await;
        let posted = reacted(&lane, stands).await;
        let removed = unreact(&lane, &posted, world.author, KEY).await;
        assert!(matches!(removed, Unreacted::Removed { to_send: told, .. } if told == to_send), "{stands:?}");
        assert_eq!(lane.picture().await, after, "{stands:?}");
        assert_eq!(unreact(&lane, &posted, world.author, KEY).await, Unreacted::NotThere, "{stands:?}: twice");
        assert_eq!(lane.picture().await, after, "{stands:?}, twice");
        assert_eq!(keys_left(&lane).await, 0);
        lane.forget().await;
    }
}

#[tokio::test]
async fn a_deleted_message_takes_its_reactions_with_it() {
    let world = World::new().await;
    for (stands, after) in [
        (Stands::Waiting, "live: redact message 1; sent: message 1"),
        (Stands::InFlight, "live: react, redact message 1; sent: message 1"),
        (Stands::RefusedOnce, "live: redact message 1; sent: message 1"),
        (Stands::Ambiguous, "live: react?, redact message 1; sent: message 1"),
        (Stands::Delivered, "live: redact message 1; sent: message 1, react"),
        (Stands::DeadNeverSent, "live: redact message 1; sent: message 1"),
        (Stands::DeadMaybeSent, "live: redact message 1; given up: react?; sent: message 1"),
        (Stands::DiscardedMaybeSent, "live: redact message 1; given up: react?; sent: message 1"),
    ] {
        let lane = world.lane().await;
        let posted = reacted(&lane, stands).await;
        assert_eq!(lane.delete(&posted).await, Some(Deletion::Redacting), "{stands:?}");
        assert_eq!(lane.picture().await, after, "{stands:?}");
        assert_eq!(keys_left(&lane).await, 0);
        let refused = react(&lane, &posted, world.author, KEY).await;
        assert!(matches!(refused, Err(ChatError::Deleted)), "{stands:?}: {refused:?}");
        lane.forget().await;
    }
}

#[tokio::test]
async fn a_message_that_never_left_is_cancelled_with_its_reactions() {
    let lane = World::with_lane().await;
    let posted = message(&lane, Stands::Waiting).await;
    react(&lane, &posted, lane.world.author, KEY).await.unwrap();
    assert_eq!(lane.delete(&posted).await, Some(Deletion::Cancelled));
    assert_eq!(lane.picture().await, "");
}

#[tokio::test]
async fn a_message_that_dies_takes_its_reactions_along_and_brings_them_back() {
    let lane = World::with_lane().await;
    let posted = message(&lane, Stands::Waiting).await;
    react(&lane, &posted, lane.world.author, KEY).await.unwrap();
    lane.step(&Worker::new(), End::OwnFault).await;
    assert_eq!(lane.picture().await, "dead: message 1, react");
    let reaction = lane.only("dead_letters", Kind::React).await;
    assert_eq!(lane.requeue(reaction).await, Requeued::ParentDead);
    assert_eq!(lane.requeue(posted.outbox_id).await, Requeued::Back(2));
    assert_eq!(lane.picture().await, "live: message 1, react");
    lane.drain().await;
    assert_eq!(lane.picture().await, "sent: message 1, react");
}

#[tokio::test]
async fn a_discarded_message_takes_its_parked_reactions_with_it() {
    let lane = World::with_lane().await;
    let posted = message(&lane, Stands::DeadNeverSent).await;
    react(&lane, &posted, lane.world.author, KEY).await.unwrap();
    assert_eq!(lane.discard(posted.outbox_id).await, 2);
    assert_eq!(lane.picture().await, "");
}

#[tokio::test]
async fn what_is_delivered_is_written_onto_the_reaction() {
    let lane = World::with_lane().await;
    reacted(&lane, Stands::Delivered).await;
    let row: (Option<String>, Option<String>) =
        sqlx::query_as("select matrix_event_id, matrix_room_id from message_reactions where conversation_id = $1")
            .bind(lane.id.as_uuid())
            .fetch_one(&lane.world.pool)
            .await
            .unwrap();
    let reaction = lane.only("sent_events", Kind::React).await;
    assert_eq!(row, (Some(event_of(reaction).to_string()), Some(room().to_string())));
}

#[tokio::test]
async fn a_claim_says_whose_reaction_it_is_and_to_which_event() {
    let lane = World::with_lane().await;
    let posted = reacted(&lane, Stands::Waiting).await;
    let operation = lane.step(&Worker::new(), End::Delivered).await;
    assert_eq!(operation.mode, Mode::Put);
    assert_eq!(operation.original, Some((event_of(posted.outbox_id), room())));
    let reaction = operation.reaction.unwrap();
    let sealed = reaction.key.unwrap();
    let key = chat::open_reaction_key(&lane.world.keys, lane.id, reaction.reaction_id, &sealed).unwrap();
    assert_eq!((reaction.reactor_id, key.as_str()), (lane.world.author, KEY));
}

#[tokio::test]
async fn what_was_taken_back_after_it_was_handed_out_is_closed_and_never_put() {
    for deleted in [false, true] {
        let lane = World::with_lane().await;
        let posted = reacted(&lane, Stands::Ambiguous).await;
        if deleted {
            lane.delete(&posted).await;
        } else {
            unreact(&lane, &posted, lane.world.author, KEY).await;
        }
        let closed = lane.step(&Worker::new(), End::Delivered).await;
        assert_eq!((closed.kind, closed.mode), (Kind::React, Mode::Close { look_up: false }), "deleted: {deleted}");
        assert!(closed.reaction.unwrap().key.is_none());
        assert_eq!(lane.drain().await.len(), 1);
        assert_eq!(lane.number("select count(*) from outbox where conversation_id = $1").await, 0);
    }
}

#[tokio::test]
async fn what_is_refused_for_good_after_it_was_taken_back_leaves_no_dead_letter() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = reacted(&lane, Stands::Waiting).await;
    let claimed = lane.claim(&worker, 1).await;
    unreact(&lane, &posted, lane.world.author, KEY).await;
    lane.settle(&worker, &claimed, &[End::OwnFault]).await;
    assert_eq!(lane.picture().await, "live: redact; sent: message 1");
    lane.step(&worker, End::NotThere).await;
    assert_eq!(lane.picture().await, "sent: message 1");
}

fn arrival(posted: &Posted, reaction: OutboxId) -> Evidence {
    Evidence {
        outbox_id: reaction,
        kind: Kind::React,
        subject_id: posted.message_id.as_uuid(),
        revision: None,
        target_outbox_id: None,
        event_id: event_of(reaction),
        room_id: room(),
        sender: super::world::SENDER.to_owned(),
    }
}

#[tokio::test]
async fn a_reaction_that_arrives_after_it_was_taken_back_is_redacted_once() {
    let lane = World::with_lane().await;
    let worker = Worker::with_device("");
    let posted = reacted(&lane, Stands::Waiting).await;
    let reaction = lane.only("outbox", Kind::React).await;
    lane.step(&worker, End::Ambiguous).await;
    unreact(&lane, &posted, lane.world.author, KEY).await;
    lane.step(&worker, End::NotThere).await;
    lane.step(&worker, End::NotThere).await;
    assert_eq!(lane.picture().await, "given up: react?; sent: message 1");
    assert!(lane.late_evidence(&arrival(&posted, reaction)).await);
    assert_eq!(lane.picture().await, "live: redact react; sent: message 1, react");
    assert!(!lane.late_evidence(&arrival(&posted, reaction)).await);
    lane.drain().await;
    assert!(!lane.late_evidence(&arrival(&posted, reaction)).await);
    assert_eq!(lane.picture().await, "sent: message 1, react, redact react");
}

#[tokio::test]
async fn a_reaction_that_arrives_after_its_message_was_deleted_is_left_to_it() {
    let lane = World::with_lane().await;
    let posted = reacted(&lane, Stands::DeadMaybeSent).await;
    let reaction = lane.only("dead_letters", Kind::React).await;
    lane.delete(&posted).await;
    lane.drain().await;
    assert!(lane.late_evidence(&arrival(&posted, reaction)).await);
    assert_eq!(lane.number("select count(*) from outbox where conversation_id = $1").await, 0);
}

#[tokio::test]
async fn a_reaction_that_stands_and_arrives_needs_nothing_more() {
    let lane = World::with_lane().await;
    let posted = reacted(&lane, Stands::Ambiguous).await;
    let reaction = lane.only("outbox", Kind::React).await;
    assert!(lane.late_evidence(&arrival(&posted, reaction)).await);
    assert_eq!(lane.picture().await, "sent: message 1, react");
}

/// One account speaks for all, and a homeserver takes a key from an account once.
#[tokio::test]
async fn reactions_with_one_key_share_an_operation_and_the_next_takes_over() {
    let world = World::new().await;
    let (first, second) = (world.author, UserId::generate());
    for (stands, after) in [
        (Stands::Waiting, "live: react; sent: message 1"),
        (Stands::InFlight, "live: react, redact react, react; sent: message 1"),
        (Stands::Ambiguous, "live: react?, redact react, react; sent: message 1"),
        (Stands::Delivered, "live: redact react, react; sent: message 1, react"),
        (Stands::DeadNeverSent, "live: react; sent: message 1"),
        (Stands::DeadMaybeSent, "live: redact react, react; given up: react?; sent: message 1"),
    ] {
        let lane = world.lane().await;
        let posted = reacted(&lane, stands).await;
        let before = lane.picture().await;
        let shared = react(&lane, &posted, second, KEY).await.unwrap();
        assert!(matches!(shared, Reacted::Added { open: None, .. }), "{stands:?}");
        assert_eq!(lane.picture().await, before, "{stands:?}: it stands for both");
        unreact(&lane, &posted, first, KEY).await;
        assert_eq!(lane.picture().await, after, "{stands:?}");
        assert_eq!(keys_left(&lane).await, 1);
        lane.forget().await;
    }
}

#[tokio::test]
async fn whoever_shares_an_operation_and_leaves_first_changes_nothing() {
    let lane = World::with_lane().await;
    let second = UserId::generate();
    let posted = reacted(&lane, Stands::Delivered).await;
    react(&lane, &posted, second, KEY).await.unwrap();
    let removed = unreact(&lane, &posted, second, KEY).await;
    assert!(matches!(removed, Unreacted::Removed { to_send: false, .. }));
    assert_eq!(lane.picture().await, "sent: message 1, react");
    unreact(&lane, &posted, lane.world.author, KEY).await;
    assert_eq!(lane.picture().await, "live: redact react; sent: message 1, react");
}

#[tokio::test]
async fn an_operation_that_was_given_up_stands_for_nobody() {
    let lane = World::with_lane().await;
    let posted = reacted(&lane, Stands::DiscardedNeverSent).await;
    react(&lane, &posted, UserId::generate(), KEY).await.unwrap();
    assert_eq!(lane.picture().await, "live: react; sent: message 1");
}

#[tokio::test]
async fn keys_do_not_stand_for_each_other_and_one_user_makes_so_many() {
    let lane = World::with_lane().await;
    let posted = message(&lane, Stands::Delivered).await;
    for n in 0..MAX_REACTIONS_OF_ONE {
        react(&lane, &posted, lane.world.author, &n.to_string()).await.unwrap();
    }
    let refused = react(&lane, &posted, lane.world.author, "one more").await;
    assert!(matches!(refused, Err(ChatError::TooManyReactions)), "{refused:?}");
    react(&lane, &posted, UserId::generate(), "one more").await.unwrap();
    let live = lane.number("select count(*) from outbox where conversation_id = $1").await;
    assert_eq!(live, 1 + i64::try_from(MAX_REACTIONS_OF_ONE).unwrap());
}
