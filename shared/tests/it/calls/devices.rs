//! Several devices in one call: whose name is whose, which of them speaks, and whose answer counts.

use std::time::Duration;

use serde_json::{Value, json};
use shared::{
    calls::{CallError, MAX_RING, Saying, SignalKind, Status},
    ids::{CallId, MatrixUserId, UserId},
};

use super::{Answer, RING, Scene, answer, candidates, hangup, kinds};

fn answered_by(party: &str) -> Value {
    json!({"party_id": party, "answer": {"type": "answer", "sdp": format!("v=0 {party}")}})
}

fn offer() -> Value {
    json!({"party_id": "DESK", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0 theirs"}})
}

#[tokio::test]
async fn a_name_of_a_device_is_that_devices_here_and_on_matrix() {
    let scene = Scene::new().await;
    let theirs = scene.is_called("1").await;
    let taken = scene.say(theirs, scene.grace, Some("DESK"), hangup()).await;
    assert!(matches!(taken, Err(CallError::PartyTaken)), "her device on Matrix is not hers here: {taken:?}");
    let taken = scene.say(theirs, scene.ada, Some("DESK"), answer()).await;
    assert!(matches!(taken, Err(CallError::PartyTaken)), "{taken:?}");
    let unknown = scene.say(theirs, scene.grace, Some("NEW"), candidates(0..1)).await;
    assert!(matches!(unknown, Err(CallError::NoSuchParty)), "{unknown:?}");

    let ours = scene.place().await;
    scene.hear(&Scene::matrix(scene.grace), &ours.to_string(), SignalKind::Answer, answered_by("PHONE")).await;
    assert_eq!(scene.state(ours).await, "ringing", "nobody answers in the caller's name");
}

#[tokio::test]
async fn the_caller_hangs_up_by_whatever_device() {
    let scene = Scene::new().await;
    let call_id = scene.is_called("1").await;
    scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
    let fields = json!({"party_id": "SOFA", "reason": "user_hangup"});
    scene.hear(&Scene::matrix(scene.grace), "1", SignalKind::Hangup, fields).await;
    assert_eq!(scene.state(call_id).await, "ended user_hangup");
}

#[tokio::test]
async fn a_device_without_a_name_answers_and_is_selected_by_nobody() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    let fields = json!({"answer": {"type": "answer", "sdp": "v=0"}});
    scene.hear(&Scene::matrix(scene.grace), &call_id.to_string(), SignalKind::Answer, fields).await;
    assert_eq!(scene.state(call_id).await, "active");
    assert_eq!(scene.drain().await, []);
    assert_eq!(scene.events().await, ["invite", "call_updated", "call_updated", "answer"]);
}

#[tokio::test]
async fn whose_answer_counts_is_for_a_caller_on_matrix_to_say_and_to_change() {
    let scene = Scene::new().await;
    let (ada, grace) = (Scene::matrix(scene.ada), Scene::matrix(scene.grace));
    let call_id = scene.is_called("1").await;
    scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
    scene.hear(&ada, "1", SignalKind::Answer, answered_by("SOFA")).await;
    scene.drain().await;
    let select = async |party: &str| {
        let fields = json!({"party_id": "DESK", "selected_party_id": party});
        scene.hear(&grace, "1", SignalKind::SelectAnswer, fields).await;
        let by = scene.call(call_id).await.answered_by.unwrap();
        (by.user_id, by.party_id)
    };
    let told = scene.events().await.len();
    assert_eq!(select("SOFA").await, (Some(scene.ada), "SOFA".to_owned()));
    assert_eq!(scene.events().await[told..], ["call_updated", "select_answer"]);
    let mut conn = scene.database.pool.acquire().await.unwrap();
    let session = shared::calls::session(&mut conn, &scene.keys, &scene.call(call_id).await).await.unwrap();
    assert_eq!(session.answer.unwrap().0, "v=0 SOFA", "what counts is what a late client is shown");
    // What her choice excluded has no part in it any more; once it is chosen it has.
    assert_eq!(select("PHONE").await, (Some(scene.ada), "PHONE".to_owned()));
    scene.say(call_id, scene.ada, Some("PHONE"), candidates(0..2)).await.unwrap();
    scene.database.advance(Duration::from_secs(2)).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Candidates]));
}

#[tokio::test]
async fn our_caller_does_not_choose_another_answer_than_the_first() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.say(call_id, scene.grace, Some("TABLET"), answer()).await.unwrap();
    let select = async |party: &str| {
        let saying = Saying::SelectAnswer { party_id: party.to_owned() };
        scene.say(call_id, scene.ada, None, saying).await
    };
    select("TABLET").await.unwrap();
    let refused = select("DESK").await;
    assert!(matches!(refused, Err(CallError::AnsweredElsewhere)), "{refused:?}");
    assert_eq!(scene.call(call_id).await.answered_by.unwrap().party_id, "TABLET");
}

#[tokio::test]
async fn each_device_has_its_own_candidates_and_its_own_events() {
    let third = UserId::generate();
    let scene = Scene::of(&[third]).await;
    scene.database.stop_clock().await;
    let call_id = scene.is_called("1").await;
    scene.say(call_id, scene.ada, Some("TABLET"), Saying::Reject).await.unwrap();
    scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
    scene.drain().await;
    for party in ["PHONE", "TABLET"] {
        scene.say(call_id, scene.ada, Some(party), candidates(0..2)).await.unwrap();
    }
    let mut said = Vec::new();
    scene.database.advance(Duration::from_secs(2)).await;
    scene
        .drain_with(|operation| {
            let signals = &operation.call.as_ref().unwrap().signals;
            said.push(signals.iter().map(|signal| signal.party_id.clone().unwrap()).collect::<Vec<_>>());
            Answer::Taken
        })
        .await;
    assert_eq!(said, [["PHONE"], ["TABLET"]]);
}

#[tokio::test]
async fn whom_an_invite_of_matrix_calls_is_whom_it_names_but_our_own_account_is_nobody() {
    let third = UserId::generate();
    let stranger: MatrixUserId = "@bob:example.org".parse().unwrap();
    for group in [false, true] {
        let scene = if group { Scene::of(&[third]).await } else { Scene::new().await };
        let anybody = (!group).then_some(scene.ada);
        let cases = [
            (None, anybody),
            (Some(scene.service.to_string()), anybody),
            (Some(Scene::matrix(scene.ada).to_string()), Some(scene.ada)),
            (Some(stranger.to_string()), Some(stranger.contact_id())),
        ];
        for (n, (invitee, expected)) in cases.into_iter().enumerate() {
            let mut fields = offer();
            if let Some(invitee) = &invitee {
                fields["invitee"] = json!(invitee);
            }
            let name = format!("call-{n}");
            scene.hear(&Scene::matrix(scene.grace), &name, SignalKind::Invite, fields).await;
            let call = scene.call(CallId::of_matrix(scene.conversation_id, &name)).await;
            assert_eq!(call.invitee_id, expected, "{invitee:?} in a group: {group}");
        }
    }
}

#[tokio::test]
async fn what_was_heard_before_the_invite_counts_in_the_order_in_which_it_came() {
    let scene = Scene::new().await;
    let (ada, grace) = (Scene::matrix(scene.ada), Scene::matrix(scene.grace));
    scene.hear(&ada, "1", SignalKind::Answer, answered_by("SOFA")).await;
    scene.hear(&grace, "1", SignalKind::Hangup, json!({"party_id": "DESK"})).await;
    let call_id = scene.is_called("1").await;
    let call = scene.call(call_id).await;
    assert_eq!(call.status, Status::Ended);
    assert_eq!(call.answered_by.unwrap().party_id, "SOFA", "it was answered before it ended");
}

#[tokio::test]
async fn a_call_that_was_over_before_its_invite_came_takes_no_other_calls_place() {
    let scene = Scene::new().await;
    let ours = scene.place().await;
    let grace = Scene::matrix(scene.grace);
    // Its id is less than any of ours: it would win if it rang.
    scene.hear(&grace, "!1", SignalKind::Hangup, json!({"party_id": "DESK"})).await;
    scene.hear(&grace, "!1", SignalKind::Invite, offer()).await;
    assert_eq!(scene.state(ours).await, "ringing");
}

#[tokio::test]
async fn a_clock_that_is_ahead_and_a_lifetime_that_is_absurd_ring_no_longer_than_any_other_call() {
    let scene = Scene::new().await;
    scene.database.stop_clock().await;
    let mut fields = offer();
    fields["lifetime"] = json!(1_000_000_000_u64);
    let mut invite = scene.event(&Scene::matrix(scene.grace), "1", SignalKind::Invite, fields).await;
    invite.sent_at_ms += 3_600_000;
    let (tx, turn) = scene.begin().await;
    let now = turn.at;
    tx.rollback().await.unwrap();
    scene.apply(&invite).await;
    let call = scene.call(CallId::of_matrix(scene.conversation_id, "1")).await;
    assert_eq!((call.created_at, call.ring_until), (now, now + MAX_RING));
    assert!(MAX_RING > RING);
}

#[tokio::test]
async fn a_reason_that_cannot_be_stored_ends_a_call_all_the_same() {
    for reason in ["x".repeat(300), "user\0hangup".to_owned()] {
        let scene = Scene::new().await;
        let call_id = scene.is_called("1").await;
        let fields = json!({"party_id": "DESK", "reason": reason});
        scene.hear(&Scene::matrix(scene.grace), "1", SignalKind::Hangup, fields).await;
        assert_eq!(scene.call(call_id).await.status, Status::Ended);
        assert_eq!(scene.database.count("select count(*) from call_signals where detail is not null").await, 0);
    }
}
