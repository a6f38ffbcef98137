//! What one transaction sees of another that holds the lock it needs.
use std::time::Duration;

use shared::{
    chat::{self, Content, MessageKind},
    inbound::{self, Applied, Inbox, Incoming, What},
    outbox::{self, Settlement},
    testing::PATIENCE,
};
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use super::world::{End, Lane, SENDER, Worker, World, event_of, pid, room, settlement};

/// From now on `outbox_now()` waits, in sessions that set `test.stalls`, for the lock that is returned. Volatile, so that
/// the planner does not call it: it is called when the statement has its snapshot, and has locked nothing yet.
async fn stall_point(world: &World) -> PgConnection {
    sqlx::raw_sql(
        "create or replace function outbox_now() returns timestamptz language plpgsql volatile as $$
         begin
             if current_setting('test.stalls', true) = 'on' then
                 perform pg_advisory_xact_lock_shared(1);
             end if;
             return statement_timestamp() + (select ahead from test_clock);
         end $$",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    closed_gate(world).await
}

/// Whoever stalls waits until this connection is closed.
async fn closed_gate(world: &World) -> PgConnection {
    let mut gate = PgConnection::connect(&world.db.url).await.unwrap();
    sqlx::query("select pg_advisory_lock(1)").execute(&mut gate).await.unwrap();
    gate
}

/// A claim whose statement has its snapshot already while `meanwhile` goes on and commits; returns the texts that it hands
/// out.
async fn claim_around(lane: &Lane, gate: PgConnection, meanwhile: impl AsyncFnOnce()) -> Vec<String> {
    let mut tx = lane.world.begin().await;
    sqlx::query("set local test.stalls = 'on'").execute(&mut *tx).await.unwrap();
    let claimer = pid(&mut tx).await;
    let claim = tokio::spawn(async move {
        let claim = outbox::claim(&mut tx, &Worker::new().request(1, 5)).await.unwrap();
        tx.commit().await.unwrap();
        claim
    });
    lane.world.until_blocked(claimer).await;
    meanwhile().await;
    gate.close().await.unwrap();
    let claim = claim.await.unwrap();
    lane.sound().await;
    claim.batches.iter().flat_map(|batch| &batch.operations).map(|operation| text(lane, operation)).collect()
}

fn text(lane: &Lane, operation: &outbox::ClaimedOperation) -> String {
    let (place, body) = (operation.place(lane.id).unwrap(), operation.body.as_ref().unwrap());
    lane.world.keys.open(place, body).unwrap()
}

#[tokio::test]
async fn a_claim_that_raced_a_delete_hands_out_nothing_of_it() {
    let lane = World::with_lane().await;
    lane.post("first").await;
    let secret = lane.post("secret").await;
    let gate = stall_point(&lane.world).await;
    // The turn is taken before the claim begins, so that the lane that it leaves is due for that claim.
    let mut deleting = lane.world.begin().await;
    let mut turn = lane.turn(&mut deleting).await.unwrap();
    let handed = claim_around(&lane, gate, async || {
        let deletion = chat::delete_message(&mut deleting, &mut turn, secret.message_id, lane.world.author).await;
        assert_eq!(deletion.unwrap(), Some(outbox::Deletion::Cancelled));
        deleting.commit().await.unwrap();
    })
    .await;
    assert_eq!(handed, ["first"]);
}

#[tokio::test]
async fn a_claim_that_raced_an_edit_hands_out_the_new_text() {
    let lane = World::with_lane().await;
    let posted = lane.post("wrong").await;
    let gate = stall_point(&lane.world).await;
    let handed = claim_around(&lane, gate, async || {
        lane.edit(&posted, "right").await;
    })
    .await;
    assert_eq!(handed, ["right"]);
}

#[tokio::test]
async fn a_claim_passes_by_a_lane_that_is_being_written() {
    let lane = World::with_lane().await;
    let secret = lane.post("secret").await;
    let mut tx = lane.world.begin().await;
    lane.delete_in(&mut tx, &secret).await.unwrap();
    assert!(lane.try_claim(&Worker::new(), 5).await.is_none(), "the lane is locked");
    tx.rollback().await.unwrap();
    assert_eq!(lane.claim(&Worker::new(), 5).await.operations.len(), 1);
}

/// The settle's first statement has its snapshot already when the post commits. If what follows did not look again, the
/// lane would go to sleep with an operation in it.
#[tokio::test]
async fn a_settle_sleeps_through_no_post() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.post("first").await;
    let claimed = lane.claim(&worker, 1).await;
    // Policies are asked row by row, after the snapshot and before the lock; they bind no superuser.
    sqlx::raw_sql(
        "create function stall() returns boolean language plpgsql volatile as $$
         begin
             if current_setting('test.stalls', true) = 'on' then
                 perform pg_advisory_xact_lock_shared(1);
             end if;
             return true;
         end $$;
         alter table lanes enable row level security;
         create policy stall on lanes using (stall());
         grant select on all tables in schema public to pg_write_all_data",
    )
    .execute(&lane.world.pool)
    .await
    .unwrap();
    let gate = closed_gate(&lane.world).await;
    let mut tx = lane.world.begin().await;
    let settler = pid(&mut tx).await;
    sqlx::raw_sql("set local role pg_write_all_data; set local test.stalls = 'on'").execute(&mut *tx).await.unwrap();
    let settling = tokio::spawn(async move {
        let settlements = [settlement(&claimed, End::Delivered)];
        let settled = outbox::settle(&mut tx, worker.id, &settlements).await.unwrap();
        tx.commit().await.unwrap();
        settled
    });
    lane.world.until_blocked(settler).await;
    let second = lane.post("second").await;
    gate.close().await.unwrap();
    assert_eq!(settling.await.unwrap().finished, 1);
    lane.sound().await;
    assert_eq!(lane.claim(&worker, 1).await.operations[0].outbox_id, second.outbox_id);
}

/// An edit and a delete write the message's row; a settle writes the event's id there. Both must have locked the lane
/// first, or each waits for the other.
#[tokio::test]
async fn an_edit_and_a_settle_take_their_locks_in_one_order() {
    for delete in [false, true] {
        let lane = World::with_lane().await;
        let worker = Worker::new();
        let posted = lane.post("one").await;
        let claimed = lane.claim(&worker, 1).await;

        let mut settling = lane.world.begin().await;
        sqlx::query("select 1 from lanes where lane_id = $1 for no key update")
            .bind(lane.lane_id().as_uuid())
            .execute(&mut *settling)
            .await
            .unwrap();
        let mut writing = lane.world.begin().await;
        let writer = pid(&mut writing).await;
        let written = tokio::spawn({
            let lane = lane.clone();
            async move {
                if delete {
                    lane.delete_in(&mut writing, &posted).await.unwrap();
                } else {
                    lane.edit_in(&mut writing, &posted, "two").await.unwrap();
                }
                writing.commit().await.unwrap();
            }
        });
        lane.world.until_blocked(writer).await;
        let settlements = [settlement(&claimed, End::Delivered)];
        let settled = outbox::settle(&mut settling, worker.id, &settlements).await;
        assert_eq!(settled.expect("no deadlock").finished, 1);
        settling.commit().await.unwrap();
        written.await.unwrap();
        lane.sound().await;
        let after = if delete { "live: redact message 1; sent: message 1" } else { "live: edit 2; sent: message 1" };
        assert_eq!(lane.picture().await, after);
    }
}

#[tokio::test]
async fn a_locked_lane_waits_for_the_next_round_and_holds_up_no_other() {
    let world = World::new().await;
    let (slow, quick) = (world.lane().await, world.lane().await);
    slow.post("slow").await;
    quick.post("quick").await;
    let worker = Worker::new();
    let claimed = world.claim_lanes(&worker, 2, 1).await;
    let settlements: Vec<Settlement> = claimed.iter().map(|claimed| settlement(claimed, End::Delivered)).collect();
    let slow_at = settlements.iter().position(|s| s.claim.conversation_id == slow.id).unwrap();

    let mut writing = world.begin().await;
    slow.post_in(&mut writing, "written slowly").await.unwrap();
    let settled = timeout(PATIENCE, world.settle_all(&worker, &settlements)).await.expect("nothing is waited for");
    assert_eq!((settled.deferred, settled.fenced, settled.finished), (vec![slow_at], vec![], 1));
    assert_eq!(quick.picture().await, "sent: message 1");
    assert_eq!(slow.picture().await, "live: message 1");

    writing.commit().await.unwrap();
    let settled = world.settle_all(&worker, &settlements[slow_at..=slow_at]).await;
    assert_eq!((settled.deferred, settled.finished), (vec![], 1));
    assert_eq!(slow.picture().await, "live: message 1; sent: message 1");
    world.sound().await;
}

/// Evidence refers to its conversation, so writing it down locks that row a little. A request that has taken its turn,
/// and nothing else yet, must not stand in its way.
#[tokio::test]
async fn a_settle_does_not_wait_for_a_locked_conversation() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    lane.post("one").await;
    lane.post("two").await;
    for strongest in [false, true] {
        let claimed = lane.claim(&worker, 1).await;
        let mut writing = lane.world.begin().await;
        if strongest {
            sqlx::query("select 1 from conversations where conversation_id = $1 for no key update")
                .bind(lane.id.as_uuid())
                .execute(&mut *writing)
                .await
                .unwrap();
        } else {
            lane.turn(&mut writing).await.unwrap();
        }
        let mut settling = lane.world.begin().await;
        sqlx::query("set local lock_timeout = '1s'").execute(&mut *settling).await.unwrap();
        let settlements = [settlement(&claimed, End::Delivered)];
        let settled = outbox::settle(&mut settling, worker.id, &settlements).await.expect("nothing is waited for");
        settling.commit().await.unwrap();
        assert_eq!((settled.finished, settled.deferred), (1, vec![]));
        writing.rollback().await.unwrap();
    }
    assert_eq!(lane.picture().await, "sent: message 1, message 1");
    lane.sound().await;
}

/// Two writers whose transactions begin and end in any order, and a worker that claims all the while. Were a sequence
/// number taken before the lock, the worker would see one after a greater one.
#[tokio::test]
async fn claims_hand_out_in_the_order_in_which_crossing_transactions_commit() {
    const POSTS: usize = 500;
    let lane = World::with_lane().await;
    let writers: Vec<_> = (0..2)
        .map(|_| {
            let lane = lane.clone();
            tokio::spawn(async move {
                let mut turns = Vec::with_capacity(POSTS);
                for n in 0..POSTS {
                    let mut tx = lane.world.begin().await;
                    if n % 3 == 0 {
                        // Begins, and takes its snapshot, well before it takes its turn.
                        pid(&mut tx).await;
                        tokio::task::yield_now().await;
                    }
                    let posted = lane.post_in(&mut tx, "text").await.unwrap();
                    let taken = tokio::time::Instant::now();
                    if n % 5 == 0 {
                        tokio::task::yield_now().await;
                    }
                    let committing = tokio::time::Instant::now();
                    tx.commit().await.unwrap();
                    turns.push((posted.seq, taken, committing));
                }
                turns
            })
        })
        .collect();
    let worker = Worker::new();
    let mut handed = Vec::new();
    while handed.len() < 2 * POSTS {
        for claimed in lane.world.claim_lanes(&worker, 1, 16).await {
            handed.extend(claimed.operations.iter().map(|operation| operation.seq));
            let settlements = [settlement(&claimed, End::Delivered)];
            while !lane.world.settle_all(&worker, &settlements).await.deferred.is_empty() {}
        }
    }
    assert!(handed.is_sorted(), "handed out in the order of sequence numbers");
    let mut turns = Vec::new();
    for writer in writers {
        turns.extend(writer.await.unwrap());
    }
    turns.sort_by_key(|(seq, ..)| *seq);
    for pair in turns.windows(2) {
        let ((_, _, committing), (_, taken, _)) = (pair[0], pair[1]);
        assert!(committing < taken, "a turn is taken only when the one before it is being committed");
    }
    assert_eq!(handed, turns.iter().map(|(seq, ..)| *seq).collect::<Vec<_>>());
    lane.sound().await;
}

#[tokio::test]
async fn a_rolled_back_write_leaves_nothing_behind() {
    let lane = World::with_lane().await;
    let mut tx = lane.world.begin().await;
    lane.post_in(&mut tx, "never said").await.unwrap();
    tx.rollback().await.unwrap();
    lane.sound().await;
    assert_eq!(lane.picture().await, "");
    assert!(lane.try_claim(&Worker::new(), 1).await.is_none());
    assert_eq!(lane.number("select count(*) from messages where conversation_id = $1").await, 0);
}

/// Whoever writes second waits until the first has committed, and comes after it.
#[tokio::test]
async fn a_write_waits_for_another_of_its_conversation() {
    let lane = World::with_lane().await;
    let mut first = lane.world.begin().await;
    let earlier = lane.post_in(&mut first, "first").await.unwrap();
    let mut second = lane.world.begin().await;
    let waiting = pid(&mut second).await;
    let later = tokio::spawn({
        let lane = lane.clone();
        async move {
            let posted = lane.post_in(&mut second, "second").await.unwrap();
            second.commit().await.unwrap();
            posted
        }
    });
    lane.world.until_blocked(waiting).await;
    assert!(!later.is_finished());
    first.commit().await.unwrap();
    let later = timeout(Duration::from_mins(1), later).await.unwrap().unwrap();
    assert!(earlier.seq < later.seq);
}

#[tokio::test]
async fn an_echo_whose_operation_is_settled_while_it_looks_is_known_as_ours() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("words").await;
    let claimed = lane.claim(&worker, 1).await;
    let what = What::Message {
        kind: MessageKind::Text,
        content: Content::plain("words"),
        reply_to: None,
        thread_of: None,
        mentioned: Vec::new(),
    };
    let echo = Incoming {
        event_id: event_of(posted.outbox_id),
        room_id: room(),
        sender: SENDER.parse().unwrap(),
        sent_at_ms: 1000,
        marker: Some(posted.outbox_id),
        transaction_id: None,
        what,
    };
    // The echo finds no evidence, and then waits for this before it looks for the operation.
    let mut settling = lane.world.begin().await;
    sqlx::query("lock table withdrawn_operations in access exclusive mode").execute(&mut *settling).await.unwrap();
    let mut tx = lane.world.begin().await;
    let reader = pid(&mut tx).await;
    let (keys, conversation_id) = (lane.world.keys.clone(), lane.id);
    let applied = tokio::spawn(async move {
        let mut turn = chat::lock_conversation(&mut tx, conversation_id).await.unwrap().unwrap();
        let service_user = SENDER.parse().unwrap();
        let inbox = Inbox { keys: &keys, service_user: &service_user, calls: true };
        let applied = inbound::apply(&mut tx, &mut turn, inbox, &echo).await.unwrap();
        tx.commit().await.unwrap();
        applied
    });
    lane.world.until_blocked(reader).await;
    let settled = outbox::settle(&mut settling, worker.id, &[settlement(&claimed, End::Delivered)]).await.unwrap();
    assert_eq!(settled.finished, 1);
    settling.commit().await.unwrap();
    assert_eq!(applied.await.unwrap(), Applied::Echo(false));
    lane.sound().await;
}
