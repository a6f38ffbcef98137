//! What Matrix hears of the end of a call, and of an invite whose fate was not known.

use std::time::Duration;

use serde_json::json;
use shared::{
    calls::{Saying, SignalKind},
    ids::MatrixUserId,
    inbound::{Asked, Incoming, Membership, What},
    operator,
    outbox::{self, Delivery},
};

use super::{Answer, RING, Scene, answer, candidates, hangup, kinds, room};

fn spoken(kind: &str, party: &str, detail: Option<&str>) -> Vec<(String, Option<String>, Option<String>)> {
    vec![(kind.to_owned(), Some(party.to_owned()), detail.map(str::to_owned))]
}

/// An invite whose first attempt nobody answered, and of which the homeserver says later that it has it not.
async fn not_found(scene: &Scene, then: Saying) -> shared::ids::CallId {
    let call_id = scene.place().await;
    let claimed = scene.claim().await.remove(0);
    scene.settle(claimed, &mut |_| Answer::Lost).await;
    let speaker = if matches!(then, Saying::Answer { .. }) { scene.grace } else { scene.ada };
    scene.say(call_id, speaker, None, then).await.unwrap();
    scene.database.advance(Duration::from_secs(2)).await;
    assert_eq!(scene.drain_with(|_| Answer::NotThere).await, []);
    assert_eq!(scene.waiting().await, [""; 0]);
    call_id
}

#[tokio::test]
async fn nobody_speaks_for_who_let_it_ring_or_had_not_answered_when_the_caller_left() {
    let scene = Scene::new().await;
    let call_id = scene.is_called("1").await;
    scene.database.advance(RING).await;
    assert_eq!(scene.time_out().await, 1);
    assert_eq!(scene.state(call_id).await, "ended invite_timeout");
    assert_eq!(scene.drain().await, []);
    let call_id = scene.is_called("2").await;
    scene.remove(scene.grace).await;
    assert_eq!(scene.state(call_id).await, "ended left");
    assert_eq!(scene.drain().await, []);
}

#[tokio::test]
async fn who_answered_here_and_leaves_hangs_up_by_the_device_that_answered() {
    let scene = Scene::new().await;
    let call_id = scene.is_called("1").await;
    scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
    scene.drain().await;
    scene.remove(scene.ada).await;
    assert_eq!(scene.call_as(call_id, scene.grace).await.reason.map(shared::calls::EndReason::as_str), Some("left"));
    assert_eq!(scene.drain_spoken().await, spoken("call_hangup", "PHONE", Some("user_hangup")));
}

#[tokio::test]
async fn a_call_in_which_only_matrix_devices_talk_is_not_ours_to_hang_up() {
    let scene = Scene::new().await;
    let call_id = scene.is_called("1").await;
    let fields = json!({"party_id": "SOFA", "answer": {"type": "answer", "sdp": "v=0"}});
    scene.hear(&Scene::matrix(scene.ada), "1", SignalKind::Answer, fields).await;
    assert_eq!(scene.state(call_id).await, "active");
    assert_eq!(scene.drain().await, [], "the caller selects");
    scene.remove(scene.grace).await;
    assert_eq!(scene.state(call_id).await, "ended left");
    assert_eq!(scene.drain().await, []);
}

#[tokio::test]
async fn on_matrix_a_call_has_two_devices_whoever_ends_it_here() {
    let scene = Scene::new().await;
    let ours = scene.place().await;
    scene.drain().await;
    scene.say(ours, scene.ada, Some("LAPTOP"), hangup()).await.unwrap();
    assert_eq!(scene.drain_spoken().await, spoken("call_hangup", "PHONE", Some("user_hangup")));
    let theirs = scene.is_called("1").await;
    scene.say(theirs, scene.ada, Some("PHONE"), answer()).await.unwrap();
    scene.drain().await;
    scene.say(theirs, scene.ada, Some("LAPTOP"), hangup()).await.unwrap();
    assert_eq!(scene.drain_spoken().await, spoken("call_hangup", "PHONE", Some("user_hangup")));
    let theirs = scene.is_called("2").await;
    scene.say(theirs, scene.ada, Some("LAPTOP"), Saying::Reject).await.unwrap();
    assert_eq!(scene.drain_spoken().await, spoken("call_reject", "LAPTOP", None));
}

#[tokio::test]
async fn an_invite_that_died_is_followed_by_nothing_unless_it_may_have_been_heard() {
    for (first, follows) in [(Answer::Never, &[][..]), (Answer::TakenSilently, &[SignalKind::Hangup])] {
        let scene = Scene::new().await;
        let call_id = scene.place().await;
        scene.say(call_id, scene.ada, None, candidates(0..3)).await.unwrap();
        let claimed = scene.claim().await.remove(0);
        scene.settle(claimed, &mut |_| first).await;
        scene.database.advance(Duration::from_secs(2)).await;
        let sent = scene
            .drain_with(|operation| match operation.kind {
                outbox::Kind::Call(SignalKind::Invite) => Answer::Never,
                _ => Answer::Taken,
            })
            .await;
        let candidates = if follows.is_empty() { &[][..] } else { &[SignalKind::Candidates] };
        assert_eq!(sent, kinds(candidates), "{first:?}");
        assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Dead));
        assert_eq!(scene.events().await, ["invite", "candidates", "call_updated"], "the caller sees that it is dead");
        scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
        assert_eq!(scene.waiting().await.len(), follows.len(), "{first:?}");
        assert_eq!(scene.drain().await, kinds(follows), "{first:?}");
    }
}

#[tokio::test]
async fn an_invite_that_was_not_found_may_be_there_all_the_same_so_the_end_of_its_call_is_said() {
    let scene = Scene::new().await;
    let call_id = not_found(&scene, answer()).await;
    assert_eq!(scene.events().await, ["invite", "answer", "call_updated", "call_updated"]);
    scene.say(call_id, scene.grace, None, hangup()).await.unwrap();
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
    scene.invite_turns_up(call_id).await;
    assert_eq!(scene.drain().await, [], "that is said already");
}

#[tokio::test]
async fn an_invite_that_turns_up_once_its_call_was_answered_or_over_stops_ringing() {
    let scene = Scene::new().await;
    let answered = not_found(&scene, answer()).await;
    scene.invite_turns_up(answered).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::SelectAnswer]));
    let scene = Scene::new().await;
    let over = not_found(&scene, hangup()).await;
    scene.invite_turns_up(over).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
}

#[tokio::test]
async fn an_operator_who_discards_an_invite_that_may_ring_leaves_its_hangup_to_follow() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    let claimed = scene.claim().await.remove(0);
    let invite = claimed.operations[0].outbox_id;
    scene.settle(claimed, &mut |_| Answer::TakenSilently).await;
    let mut tx = scene.database.pool.begin().await.unwrap();
    outbox::pause_lanes(&mut tx, scene.conversation_id, None, None, "looking into it").await.unwrap();
    let done = operator::discard(&mut tx, "turing", scene.conversation_id, &[invite], "it is stuck").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(done.gone, [invite], "{:?}", done.refused);
    assert!(done.live[0].left_undone.contains("call"), "{}", done.live[0].left_undone);
    assert_eq!(scene.events().await, ["invite", "call_updated"]);
    scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
    let mut tx = scene.database.pool.begin().await.unwrap();
    outbox::resume_lanes(&mut tx, scene.conversation_id, None).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
}

#[tokio::test]
async fn a_dead_invite_is_found_by_its_call_requeued_and_discarded_and_its_caller_is_told_each_time() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain_with(|_| Answer::Never).await;
    let mut conn = scene.database.pool.acquire().await.unwrap();
    let found = outbox::find(&mut conn, call_id.as_uuid()).await.unwrap();
    let [invite] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((invite.kind.as_str(), invite.place), ("call_invite", outbox::Place::Dead));
    let requeue = async || {
        let mut tx = scene.database.pool.begin().await.unwrap();
        let back = outbox::requeue(&mut tx, scene.conversation_id, invite.outbox_id).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(back, outbox::Requeued::Back(1));
    };
    requeue().await;
    assert_eq!(scene.events().await, ["invite", "call_updated", "call_updated"]);
    assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Pending));
    scene.drain_with(|_| Answer::Never).await;
    // Whoever brings it back once its time is over has nobody rung.
    scene.database.advance(RING).await;
    scene.time_out().await;
    requeue().await;
    assert_eq!(scene.drain().await, []);
    assert_eq!(scene.waiting().await, [""; 0]);
    let call_id = scene.place().await;
    scene.drain_with(|_| Answer::Never).await;
    let dead = outbox::find(&mut conn, call_id.as_uuid()).await.unwrap()[0].outbox_id;
    let before = scene.events().await.len();
    let mut tx = scene.database.pool.begin().await.unwrap();
    outbox::discard(&mut tx, scene.conversation_id, dead).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(scene.events().await[before..], ["call_updated"]);
    assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Expired));
}

fn left(user: &MatrixUserId, now: Option<Asked>) -> Incoming {
    Incoming {
        event_id: format!("$left-{user}").into(),
        room_id: room(),
        sender: user.clone(),
        sent_at_ms: 0,
        marker: None,
        transaction_id: None,
        what: What::Member { user: user.clone(), membership: Membership::Leave, display_name: None, now },
    }
}

#[tokio::test]
async fn who_leaves_the_room_on_matrix_leaves_the_call_be_it_a_member_or_a_contact() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    let now = Asked { membership: Some(Membership::Leave), seq: i64::MAX };
    scene.apply(&left(&Scene::matrix(scene.grace), Some(now))).await;
    assert_eq!(scene.state(call_id).await, "ended left");
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));

    let scene = Scene::new().await;
    let bob: MatrixUserId = "@bob:example.org".parse().unwrap();
    let joined = What::Member { user: bob.clone(), membership: Membership::Join, display_name: None, now: None };
    scene.apply(&Incoming { event_id: "$joined".to_owned().into(), what: joined, ..left(&bob, None) }).await;
    let mut new = scene.new_call("PHONE");
    new.invitee_id = Some(bob.contact_id());
    let call_id = scene.try_place(&new).await.unwrap();
    scene.drain().await;
    scene.apply(&left(&bob, None)).await;
    assert_eq!(scene.state(call_id).await, "ended left");
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
    new.call_id = shared::ids::CallId::generate();
    assert!(scene.try_place(&new).await.is_err(), "who is gone is not called");
}
