//! What goes to Matrix during a call, in which order, and how often.

use std::time::Duration;

use serde_json::json;
use shared::{
    calls::{CallError, MAX_CANDIDATES, Saying, SignalKind},
    ids::UserId,
};

use super::{Answer, Scene, answer, candidates, hangup, kinds};

fn end_of_candidates() -> Saying {
    Saying::Candidates(vec![json!({"candidate": ""})])
}

#[tokio::test]
async fn forty_candidates_go_in_two_events_each_once_and_the_last_hurries_them() {
    let scene = Scene::new().await;
    scene.database.stop_clock().await;
    let call_id = scene.place().await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Invite]));
    for n in 0..40 {
        scene.say(call_id, scene.ada, None, candidates(n..n + 1)).await.unwrap();
        scene.say(call_id, scene.ada, None, candidates(n..n + 1)).await.unwrap();
        if n == 20 {
            assert_eq!(scene.drain().await, [], "they are collected");
            scene.database.advance(Duration::from_millis(1999)).await;
            assert_eq!(scene.drain().await, []);
            scene.database.advance(Duration::from_millis(1)).await;
            assert_eq!(scene.drain().await, kinds(&[SignalKind::Candidates]));
        }
    }
    assert_eq!(scene.drain().await, []);
    scene.say(call_id, scene.ada, None, end_of_candidates()).await.unwrap();
    let mut batches = Vec::new();
    let sent = scene
        .drain_with(|operation| {
            batches.push(operation.call.as_ref().unwrap().signals.len());
            Answer::Taken
        })
        .await;
    assert_eq!(sent, kinds(&[SignalKind::Candidates]));
    assert_eq!(batches, [20], "19 candidates, and the last word");
    assert_eq!(scene.database.count("select count(*) from call_signals where kind = 'candidates'").await, 41);
}

#[tokio::test]
async fn candidates_of_who_answered_are_collected_for_half_a_second_only() {
    let scene = Scene::new().await;
    scene.database.stop_clock().await;
    let call_id = scene.is_called("1").await;
    scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
    scene.say(call_id, scene.ada, Some("PHONE"), candidates(0..2)).await.unwrap();
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Answer]));
    scene.database.advance(Duration::from_millis(499)).await;
    assert_eq!(scene.drain().await, []);
    scene.database.advance(Duration::from_millis(1)).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Candidates]));
}

#[tokio::test]
async fn what_comes_after_candidates_does_not_wait_for_them_and_does_not_overtake_them() {
    let scene = Scene::new().await;
    scene.database.stop_clock().await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.say(call_id, scene.ada, None, candidates(0..2)).await.unwrap();
    scene.say(call_id, scene.ada, None, Saying::Metadata { sdp_stream_metadata: json!({}) }).await.unwrap();
    let expected = kinds(&[SignalKind::Candidates, SignalKind::SdpStreamMetadataChanged]);
    assert_eq!(scene.drain().await, expected);
}

#[tokio::test]
async fn a_batch_that_was_handed_out_takes_no_more() {
    let scene = Scene::new().await;
    scene.database.stop_clock().await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.say(call_id, scene.ada, None, candidates(0..2)).await.unwrap();
    scene.database.advance(Duration::from_secs(2)).await;
    let claimed = scene.claim().await.remove(0);
    scene.say(call_id, scene.ada, None, candidates(2..4)).await.unwrap();
    scene.settle(claimed, &mut |_| Answer::TakenSilently).await;
    scene.database.advance(Duration::from_secs(3)).await;
    let mut sizes = Vec::new();
    let again = scene
        .drain_with(|operation| {
            sizes.push(operation.call.as_ref().unwrap().signals.len());
            Answer::Taken
        })
        .await;
    assert_eq!(again, kinds(&[SignalKind::Candidates]), "the first stood in the room already");
    assert_eq!(sizes, [1, 1], "what is repeated is what was sent");
}

#[tokio::test]
async fn a_device_names_so_many_candidates_and_no_more() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.say(call_id, scene.ada, None, candidates(0..MAX_CANDIDATES)).await.unwrap();
    let refused = scene.say(call_id, scene.ada, None, candidates(0..MAX_CANDIDATES + 1)).await;
    assert!(matches!(refused, Err(CallError::TooManyCandidates)), "{refused:?}");
}

#[tokio::test]
async fn candidates_beyond_an_event_go_in_another() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    let large = |n: usize| Saying::Candidates(vec![json!({"candidate": format!("{n}{}", "x".repeat(4000))})]);
    for n in 0..12 {
        scene.say(call_id, scene.ada, None, large(n)).await.unwrap();
    }
    assert_eq!(scene.waiting().await, ["call_candidates", "call_candidates"]);
    let one = Saying::Candidates(vec![json!({"candidate": "x".repeat(41_000)})]);
    let refused = scene.say(call_id, scene.ada, None, one).await;
    assert!(matches!(refused, Err(CallError::TooLarge)), "{refused:?}");
}

#[tokio::test]
async fn an_end_of_candidates_that_is_the_first_to_be_said_does_not_wait() {
    let scene = Scene::new().await;
    scene.database.stop_clock().await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.say(call_id, scene.ada, None, end_of_candidates()).await.unwrap();
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Candidates]));
}

#[tokio::test]
async fn candidates_that_were_refused_wait_as_long_as_they_have_to_whatever_comes_after_them() {
    let scene = Scene::new().await;
    scene.database.stop_clock().await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.say(call_id, scene.ada, None, candidates(0..2)).await.unwrap();
    scene.database.advance(Duration::from_secs(2)).await;
    assert_eq!(scene.drain_with(|_| Answer::Refused).await, []);
    scene.say(call_id, scene.ada, None, Saying::Metadata { sdp_stream_metadata: json!({}) }).await.unwrap();
    assert_eq!(scene.drain().await, []);
    scene.database.advance(Duration::from_secs(1)).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Candidates, SignalKind::SdpStreamMetadataChanged]));
}

#[tokio::test]
async fn candidates_that_were_refused_are_not_tried_again_once_the_call_is_over() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.say(call_id, scene.ada, None, candidates(0..2)).await.unwrap();
    scene.database.advance(Duration::from_secs(2)).await;
    let claimed = scene.claim().await.remove(0);
    scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
    scene.settle(claimed, &mut |_| Answer::Refused).await;
    scene.database.advance(Duration::from_secs(2)).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
}

#[tokio::test]
async fn what_is_said_after_a_removal_does_not_go_with_what_was_said_before_it() {
    let third = UserId::generate();
    let scene = Scene::of(&[third]).await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.say(call_id, scene.ada, None, candidates(0..2)).await.unwrap();
    let (mut tx, mut turn) = scene.begin().await;
    shared::chat::remove_member(&mut tx, &mut turn, third).await.unwrap();
    tx.commit().await.unwrap();
    scene.say(call_id, scene.ada, None, candidates(2..4)).await.unwrap();
    scene.database.advance(Duration::from_secs(5)).await;
    let mut sizes = Vec::new();
    let sent = scene
        .drain_with(|operation| {
            sizes.push(operation.call.as_ref().unwrap().signals.len());
            Answer::Taken
        })
        .await;
    assert_eq!((sent, sizes), (kinds(&[SignalKind::Candidates]), vec![1]));
    assert_eq!(scene.waiting().await, ["remove", "call_candidates"]);
}

#[tokio::test]
async fn an_unanswered_hangup_is_repeated_until_it_is_heard() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
    let mut answers = [Answer::Refused, Answer::Lost, Answer::Taken].into_iter();
    for expected in [&[][..], &[], &[SignalKind::Hangup]] {
        assert_eq!(scene.drain_with(|_| answers.next().unwrap()).await, kinds(expected));
        scene.database.advance(Duration::from_mins(10)).await;
    }
    assert_eq!(scene.waiting().await, [""; 0]);
}

#[tokio::test]
async fn an_invite_that_was_given_up_and_arrived_all_the_same_is_hung_up() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    let claimed = scene.claim().await.remove(0);
    // The homeserver's answer never comes, and an operator does away with what is doubtful.
    scene.settle(claimed, &mut |_| Answer::TakenSilently).await;
    let gone = "with gone as (delete from outbox returning *)
        insert into withdrawn_operations (conversation_id, lane_id, outbox_id, kind, subject_id, maybe_sent_at, sender,
            device, reason, withdrawn_at)
        select conversation_id, lane_id, outbox_id, kind, subject_id, maybe_sent_at, sender, device, 'not_found', now()
        from gone";
    sqlx::query(gone).execute(&scene.database.pool).await.unwrap();
    sqlx::query("update lanes set open = 0, due_at = null where lane_class = 'call'")
        .execute(&scene.database.pool)
        .await
        .unwrap();
    // As if nobody had known that it may ring.
    sqlx::query("update calls set status = 'ended', reason = 'user_hangup', ended_at = now()")
        .execute(&scene.database.pool)
        .await
        .unwrap();
    scene.invite_turns_up(call_id).await;
    assert_eq!(scene.call(call_id).await.event_id.unwrap().as_str(), "$late");
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
}

#[tokio::test]
async fn what_was_said_in_a_call_is_wiped_when_it_has_been_over_for_long() {
    let scene = Scene::new().await;
    let (over, goes_on) = (scene.place().await, scene.new_call("OTHER"));
    scene.say(over, scene.ada, None, candidates(0..2)).await.unwrap();
    scene.drain().await;
    scene.say(over, scene.ada, None, hangup()).await.unwrap();
    let goes_on = scene.try_place(&goes_on).await.unwrap();
    scene.drain().await;
    let day = Duration::from_hours(24);
    let kept = || scene.database.count("select count(*) from call_signals where payload is not null");
    assert_eq!(shared::calls::wipe(&scene.database.pool, day, 10).await.unwrap(), 0);
    assert_eq!(kept().await, 3);
    scene.database.advance(day + Duration::from_mins(1)).await;
    assert_eq!(shared::calls::wipe(&scene.database.pool, day, 10).await.unwrap(), 1);
    assert_eq!(shared::calls::wipe(&scene.database.pool, day, 10).await.unwrap(), 0);
    assert_eq!(kept().await, 1, "the other call is not over");
    let lanes = "select count(*) from lanes where lane_class = 'call'";
    assert_eq!(scene.database.count(lanes).await, 1, "and has its lane");
    assert_eq!(scene.state(over).await, "ended user_hangup");
    assert_eq!(scene.state(goes_on).await, "ringing");
}

#[tokio::test]
async fn nothing_of_a_call_is_stored_as_it_was_said() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.say(call_id, scene.ada, None, candidates(0..2)).await.unwrap();
    scene.say(call_id, scene.grace, None, answer()).await.unwrap();
    let dump: String = sqlx::query_scalar("select string_agg(s::text, ' ') from call_signals s")
        .fetch_one(&scene.database.pool)
        .await
        .unwrap();
    for said in ["v=0 offer", "v=0 answer", "candidate:1"] {
        assert!(!dump.contains(said));
        let hex = said.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert!(!dump.contains(&hex));
    }
    let mut conn = scene.database.pool.acquire().await.unwrap();
    let call = scene.call(call_id).await;
    let session = shared::calls::session(&mut conn, &scene.keys, &call).await.unwrap();
    assert_eq!(session.offer.unwrap().0, "v=0 offer");
    assert_eq!(session.answer.unwrap().0, "v=0 answer");
}
