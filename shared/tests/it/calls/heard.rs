//! Calls in which somebody speaks on Matrix.

use serde_json::json;
use shared::{
    calls::{CallError, Saying, SignalKind, Status},
    ids::{CallId, MatrixUserId, UserId},
};

use super::{Scene, answer, hangup, kinds};

#[tokio::test]
async fn a_call_from_matrix_is_answered_there_and_hung_up_there() {
    let scene = Scene::new().await;
    let call_id = scene.is_called("glare-free").await;
    let call = scene.call(call_id).await;
    assert_eq!((call.status, call.initiator_id, call.invitee_id), (Status::Ringing, scene.grace, Some(scene.ada)));
    assert_eq!((call.delivery, call.matrix_party_id.as_deref()), (None, Some("DESK")));
    scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Answer]));
    let grace = Scene::matrix(scene.grace);
    let fields = json!({"party_id": "DESK", "selected_party_id": "PHONE"});
    scene.hear(&grace, "glare-free", SignalKind::SelectAnswer, fields).await;
    assert_eq!(scene.state(call_id).await, "active");
    scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
    assert_eq!(scene.state(call_id).await, "ended user_hangup");
}

#[tokio::test]
async fn a_call_from_matrix_is_rejected_there_also_by_who_hangs_up_before_the_answer_left() {
    for answered in [false, true] {
        let scene = Scene::new().await;
        let call_id = scene.is_called("1").await;
        if answered {
            scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
            scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
        } else {
            scene.say(call_id, scene.ada, Some("PHONE"), Saying::Reject).await.unwrap();
        }
        assert_eq!(scene.drain().await, kinds(&[SignalKind::Reject]));
    }
}

#[tokio::test]
async fn a_call_of_ours_that_matrix_answers_is_selected_at_once_and_the_next_answer_is_not() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    let (grace, id) = (Scene::matrix(scene.grace), call_id.to_string());
    let answered = |party: &str| json!({"party_id": party, "answer": {"type": "answer", "sdp": "v=0"}});
    scene.hear(&grace, &id, SignalKind::Answer, answered("DESK")).await;
    scene.hear(&grace, &id, SignalKind::Answer, answered("SOFA")).await;
    let call = scene.call(call_id).await;
    assert_eq!(call.answered_by.unwrap().party_id, "DESK");
    let mut selected = Vec::new();
    let sent = scene
        .drain_with(|operation| {
            selected.extend(operation.call.as_ref().unwrap().signals[0].detail.clone());
            super::Answer::Taken
        })
        .await;
    assert_eq!((sent, selected), (kinds(&[SignalKind::SelectAnswer]), vec!["DESK".to_owned()]));
    let late = scene.say(call_id, scene.grace, Some("TABLET"), answer()).await;
    assert!(matches!(late, Err(CallError::AnsweredElsewhere)), "{late:?}");
    // The other device of hers has nothing to hang up; that which answered has.
    scene.hear(&grace, &id, SignalKind::Hangup, json!({"party_id": "SOFA", "reason": "user_hangup"})).await;
    assert_eq!(scene.state(call_id).await, "active");
    scene.hear(&grace, &id, SignalKind::Hangup, json!({"party_id": "DESK", "reason": "ice_failed"})).await;
    assert_eq!(scene.state(call_id).await, "ended ice_failed");
    assert_eq!(scene.drain().await, [], "it is known there");
}

#[tokio::test]
async fn a_matrix_user_who_rejects_ends_our_call() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    let fields = json!({"party_id": "DESK"});
    scene.hear(&Scene::matrix(scene.grace), &call_id.to_string(), SignalKind::Reject, fields).await;
    assert_eq!(scene.state(call_id).await, "ended rejected");
    assert_eq!(scene.drain().await, []);
}

#[tokio::test]
async fn whoever_is_not_called_cannot_answer_reject_or_hang_up() {
    let scene = Scene::new().await;
    let mut new = scene.new_call("PHONE");
    new.invitee_id = Some(scene.grace);
    let call_id = scene.try_place(&new).await.unwrap();
    scene.drain().await;
    let stranger: MatrixUserId = "@mallory:evil.example".parse().unwrap();
    let unknown = Scene::matrix(UserId::generate());
    for who in [&stranger, &unknown] {
        for kind in [SignalKind::Answer, SignalKind::Reject, SignalKind::Hangup] {
            scene.hear(who, &call_id.to_string(), kind, json!({"party_id": "X"})).await;
            assert_eq!(scene.state(call_id).await, "ringing", "{who} {kind:?}");
        }
        for kind in [SignalKind::Candidates, SignalKind::Negotiate, SignalKind::SdpStreamMetadataChanged] {
            scene.hear(who, &call_id.to_string(), kind, json!({"party_id": "PHONE"})).await;
        }
    }
    assert_eq!(scene.drain().await, []);
    assert_eq!(scene.events().await, ["invite", "call_updated"], "and nobody hears of it");
}

#[tokio::test]
async fn another_users_invite_of_a_known_call_changes_nothing() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    let before = scene.call(call_id).await;
    let fields = json!({"party_id": "X", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"}});
    scene.hear(&Scene::matrix(scene.grace), &call_id.to_string(), SignalKind::Invite, fields).await;
    let after = scene.call(call_id).await;
    assert_eq!((before.initiator_id, before.origin), (after.initiator_id, after.origin));
    assert_eq!(after.status, Status::Ringing);
    assert_eq!(scene.events().await, ["invite"], "it rings for nobody");
}

#[tokio::test]
async fn nobody_hears_of_an_invite_before_its_batch_is_applied_nor_of_what_follows_it() {
    let scene = Scene::new().await;
    let grace = Scene::matrix(scene.grace);
    let fields = json!({"party_id": "DESK", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"}});
    let invite = scene.event(&grace, "1", SignalKind::Invite, fields).await;
    let candidates = json!({"party_id": "DESK", "candidates": []});
    let candidates = scene.event(&grace, "1", SignalKind::Candidates, candidates).await;
    scene.apply(&invite).await;
    scene.apply(&candidates).await;
    assert_eq!(scene.events().await, [""; 0]);
    assert_eq!(scene.announce().await, 2);
    assert_eq!(scene.events().await, ["invite", "candidates"]);
    assert_eq!(scene.announce().await, 0);
}

#[tokio::test]
async fn an_old_invite_is_a_call_that_was_missed_and_does_not_ring() {
    let scene = Scene::new().await;
    let fields = json!({"party_id": "DESK", "lifetime": 60_000, "offer": {"type": "offer", "sdp": "v=0"}});
    let mut invite = scene.event(&Scene::matrix(scene.grace), "1", SignalKind::Invite, fields).await;
    invite.sent_at_ms -= 60_000;
    scene.apply(&invite).await;
    let call_id = CallId::of_matrix(scene.conversation_id, "1");
    assert_eq!(scene.state(call_id).await, "ended invite_timeout");
    assert!(scene.call(call_id).await.missed);
    assert_eq!(scene.drain().await, []);
}

#[tokio::test]
async fn a_call_from_matrix_to_somebody_else_is_not_ours_to_answer() {
    let third = UserId::generate();
    let scene = Scene::of(&[third]).await;
    let fields = json!({
        "party_id": "DESK", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"},
        "invitee": Scene::matrix(third).as_str(),
    });
    scene.hear(&Scene::matrix(scene.grace), "1", SignalKind::Invite, fields).await;
    let call_id = CallId::of_matrix(scene.conversation_id, "1");
    let refused = scene.say(call_id, scene.ada, None, answer()).await;
    assert!(matches!(refused, Err(CallError::NotInCall)), "{refused:?}");
    scene.say(call_id, third, None, answer()).await.unwrap();
}

#[tokio::test]
async fn glare_between_our_call_and_one_from_matrix_ends_in_the_lesser_id_in_both_orders() {
    // Ids of ours begin with a digit of time: "!" is less than all of them, "~" more.
    for (theirs, winner) in [("!1", "theirs"), ("~1", "ours")] {
        for ours_first in [true, false] {
            let scene = Scene::new().await;
            let (ours, their_call);
            if ours_first {
                ours = scene.place().await;
                scene.drain().await;
                their_call = scene.is_called(theirs).await;
            } else {
                their_call = scene.is_called(theirs).await;
                ours = scene.place().await;
            }
            let states = (scene.state(ours).await, scene.state(their_call).await);
            let sent = scene.drain().await;
            let (expected, closing) = match (winner, ours_first) {
                ("ours", true) => (("ringing", "ended glare"), kinds(&[SignalKind::Reject])),
                ("theirs", true) => (("ended glare", "ringing"), kinds(&[SignalKind::Hangup])),
                ("theirs", false) => (("ended glare", "ringing"), kinds(&[])),
                _ => (("ringing", "ended glare"), kinds(&[SignalKind::Reject, SignalKind::Invite])),
            };
            assert_eq!((states.0.as_str(), states.1.as_str()), expected, "{theirs} {ours_first}");
            let mut sent = sent.iter().map(|kind| kind.as_str()).collect::<Vec<_>>();
            let mut closing = closing.iter().map(|kind| kind.as_str()).collect::<Vec<_>>();
            sent.sort_unstable();
            closing.sort_unstable();
            assert_eq!(sent, closing, "{theirs} {ours_first}");
        }
    }
}

#[tokio::test]
async fn two_on_matrix_who_call_each_other_settle_it_themselves() {
    let scene = Scene::new().await;
    let theirs = scene.is_called("b").await;
    let fields = json!({"party_id": "SOFA", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"}});
    scene.hear(&Scene::matrix(scene.ada), "a", SignalKind::Invite, fields).await;
    let lesser = CallId::of_matrix(scene.conversation_id, "a");
    assert_eq!((scene.state(theirs).await.as_str(), scene.state(lesser).await.as_str()), ("ended glare", "ringing"));
    assert_eq!(scene.drain().await, []);
}

#[tokio::test]
async fn in_whatever_order_the_events_of_a_call_come_it_ends_the_same() {
    let steps = [
        (SignalKind::Invite, json!({"party_id": "DESK", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"}})),
        (SignalKind::Candidates, json!({"party_id": "DESK", "candidates": [{"candidate": ""}]})),
        (SignalKind::SelectAnswer, json!({"party_id": "DESK", "selected_party_id": "SOFA"})),
        (SignalKind::Hangup, json!({"party_id": "DESK", "reason": "user_hangup"})),
    ];
    let scene = Scene::new().await;
    for (n, order) in permutations(steps.len()).into_iter().enumerate() {
        let name = format!("call-{n}");
        let grace = Scene::matrix(scene.grace);
        let mut events = Vec::new();
        for step in &order {
            let (kind, fields) = steps[*step].clone();
            events.push(scene.hear(&grace, &name, kind, fields).await);
        }
        let call_id = CallId::of_matrix(scene.conversation_id, &name);
        assert_eq!(scene.state(call_id).await, "ended user_hangup", "{order:?}");
        assert_eq!(scene.drain().await, [], "{order:?}");
        for event in &events {
            assert_eq!(scene.apply(event).await, shared::inbound::Applied::Duplicate);
        }
    }
}

#[tokio::test]
async fn a_call_that_is_named_like_the_conversation_or_another_call_touches_neither() {
    let scene = Scene::new().await;
    let ours = scene.place().await;
    // As if messages waited: nothing of a call may take them back.
    let chat = "insert into outbox (conversation_id, lane_id, seq, outbox_id, kind, subject_id, enqueued_at, due_at,
            attempts, failures)
        select $1, $1, 1000, gen_random_uuid(), 'invite', gen_random_uuid(), now(), now(), 0, 0";
    sqlx::query(chat).bind(scene.conversation_id.as_uuid()).execute(&scene.database.pool).await.unwrap();
    let grace = Scene::matrix(scene.grace);
    let fields = json!({"party_id": "DESK", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"}});
    for name in [scene.conversation_id.to_string(), UserId::generate().to_string()] {
        scene.hear(&grace, &name, SignalKind::Invite, fields.clone()).await;
        scene.hear(&grace, &name, SignalKind::Hangup, json!({"party_id": "DESK"})).await;
        let call_id = CallId::of_matrix(scene.conversation_id, &name);
        assert_ne!(call_id.to_string(), name);
        assert!(scene.state(call_id).await.starts_with("ended"));
    }
    assert!(scene.waiting().await.contains(&"invite".to_owned()), "{:?}", scene.waiting().await);
    // In another conversation the id of a call of ours is a name like any other.
    let mut conn = scene.database.pool.acquire().await.unwrap();
    let found = shared::calls::conversation_of_call(&mut conn, ours).await.unwrap();
    assert_eq!(found, Some(scene.conversation_id));
}

#[tokio::test]
async fn who_is_removed_neither_calls_nor_answers_while_they_are_still_in_the_room() {
    let third = UserId::generate();
    let scene = Scene::of(&[third]).await;
    let call_id = scene.place().await;
    scene.drain().await;
    let (mut tx, mut turn) = scene.begin().await;
    shared::chat::remove_member(&mut tx, &mut turn, third).await.unwrap();
    tx.commit().await.unwrap();
    let answer = json!({"party_id": "X", "answer": {"type": "answer", "sdp": "v=0"}});
    scene.hear(&Scene::matrix(third), &call_id.to_string(), SignalKind::Answer, answer).await;
    assert_eq!(scene.state(call_id).await, "ringing");
    let fields = json!({"party_id": "X", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0"}});
    scene.hear(&Scene::matrix(third), "1", SignalKind::Invite, fields).await;
    assert_eq!(scene.database.count("select count(*) from calls").await, 1);
}

#[tokio::test]
async fn the_device_that_the_caller_chooses_may_hang_up_though_ours_answered_first() {
    for chosen_first in [false, true] {
        let scene = Scene::new().await;
        let call_id = scene.is_called("1").await;
        // Ada answers here, and by an account of her own; Grace chooses that.
        scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
        let (ada, grace) = (Scene::matrix(scene.ada), Scene::matrix(scene.grace));
        let answered = json!({"party_id": "ELEMENT", "answer": {"type": "answer", "sdp": "v=0"}});
        let chosen = json!({"party_id": "DESK", "selected_party_id": "ELEMENT"});
        if chosen_first {
            scene.hear(&grace, "1", SignalKind::SelectAnswer, chosen).await;
            scene.hear(&ada, "1", SignalKind::Answer, answered).await;
        } else {
            scene.hear(&ada, "1", SignalKind::Answer, answered).await;
            scene.hear(&grace, "1", SignalKind::SelectAnswer, chosen).await;
        }
        let by = scene.call(call_id).await.answered_by.unwrap();
        assert_eq!((by.user_id, by.party_id.as_str()), (Some(scene.ada), "ELEMENT"));
        scene.hear(&ada, "1", SignalKind::Hangup, json!({"party_id": "ELEMENT"})).await;
        assert_eq!(scene.state(call_id).await, "ended user_hangup");
    }
}

#[tokio::test]
async fn who_calls_by_us_and_ends_it_with_an_account_of_their_own_has_the_others_stop_ringing() {
    let scene = Scene::of(&[UserId::generate()]).await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.hear(&Scene::matrix(scene.ada), &call_id.to_string(), SignalKind::Hangup, json!({})).await;
    assert_eq!(scene.state(call_id).await, "ended user_hangup");
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
}

#[tokio::test]
async fn candidates_that_came_before_their_invite_are_told_after_it() {
    let scene = Scene::new().await;
    let grace = Scene::matrix(scene.grace);
    scene.hear(&grace, "1", SignalKind::Candidates, json!({"party_id": "DESK", "candidates": []})).await;
    assert_eq!(scene.events().await, [""; 0]);
    scene.is_called("1").await;
    assert_eq!(scene.events().await, ["invite", "candidates"]);
}

#[tokio::test]
async fn candidates_of_a_device_are_told_once_its_answer_counts_and_those_of_others_never() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    let (grace, id) = (Scene::matrix(scene.grace), call_id.to_string());
    for party in ["DESK", "SOFA"] {
        let fields = json!({"party_id": party, "candidates": [{"candidate": party}]});
        scene.hear(&grace, &id, SignalKind::Candidates, fields).await;
    }
    assert_eq!(scene.events().await, ["invite", "call_updated"]);
    for party in ["DESK", "SOFA"] {
        let answered = json!({"party_id": party, "answer": {"type": "answer", "sdp": "v=0"}});
        scene.hear(&grace, &id, SignalKind::Answer, answered).await;
    }
    assert_eq!(scene.events().await[2..], ["candidates", "answer", "call_updated"]);
    for party in ["SOFA", "DESK"] {
        let fields = json!({"party_id": party, "candidates": [{"candidate": "more"}]});
        scene.hear(&grace, &id, SignalKind::Candidates, fields).await;
    }
    assert_eq!(scene.events().await[5..], ["candidates"]);
}

#[tokio::test]
async fn who_comes_late_finds_the_candidates_of_the_two_that_talk_only() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.say(call_id, scene.ada, None, super::candidates(0..2)).await.unwrap();
    scene.drain().await;
    let (grace, id) = (Scene::matrix(scene.grace), call_id.to_string());
    scene
        .hear(&grace, &id, SignalKind::Candidates, json!({"party_id": "SOFA", "candidates": [{"candidate": "x"}]}))
        .await;
    let answered = json!({"party_id": "DESK", "answer": {"type": "answer", "sdp": "v=0 hers"}});
    scene.hear(&grace, &id, SignalKind::Answer, answered).await;
    let other = json!({"party_id": "SOFA", "answer": {"type": "answer", "sdp": "v=0 not hers"}});
    scene.hear(&grace, &id, SignalKind::Answer, other).await;
    scene
        .hear(&grace, &id, SignalKind::Candidates, json!({"party_id": "DESK", "candidates": [{"candidate": "y"}]}))
        .await;
    let call = scene.call(call_id).await;
    let mut conn = scene.database.pool.acquire().await.unwrap();
    let session = shared::calls::session(&mut conn, &scene.keys, &call).await.unwrap();
    assert_eq!(session.answer.unwrap().0, "v=0 hers");
    let named: Vec<_> = session.candidates.iter().map(|named| (named.user_id, named.candidates.len())).collect();
    assert_eq!(named, [(scene.ada, 2), (scene.grace, 1)]);
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in permutations(n - 1) {
        for place in 0..n {
            let mut order = shorter.clone();
            order.insert(place, n - 1);
            all.push(order);
        }
    }
    all
}
