//! A phone never rings late, and never for ever.

use std::time::Duration;

use shared::{
    calls::{CallError, Saying, SignalKind, Status},
    ids::UserId,
    outbox::Delivery,
};

use super::{Answer, RING, Scene, answer, candidates, hangup, kinds};

#[tokio::test]
async fn a_call_rings_is_answered_and_ends_and_its_history_says_so() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    let call = scene.call_as(call_id, scene.grace).await;
    assert_eq!(
        (call.status, call.invitee_id, call.delivery),
        (Status::Ringing, Some(scene.grace), Some(Delivery::Pending))
    );
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Invite]));
    assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Delivered));
    assert!(scene.call(call_id).await.event_id.is_some());
    scene.say(call_id, scene.grace, Some("TABLET"), answer()).await.unwrap();
    let call = scene.call(call_id).await;
    assert_eq!(call.answered_by.map(|by| (by.user_id, by.party_id)), Some((Some(scene.grace), "TABLET".to_owned())));
    // What rang on Matrix stops when she answers here, and hears of the end.
    assert_eq!(scene.drain().await, kinds(&[SignalKind::SelectAnswer]));
    scene.say(call_id, scene.grace, None, hangup()).await.unwrap();
    assert_eq!(scene.state(call_id).await, "ended user_hangup");
    let call = scene.call(call_id).await;
    assert!(call.answered_at.is_some() && call.ended_by == Some(scene.grace) && !call.missed);
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
    let expected = ["invite", "call_updated", "answer", "call_updated", "hangup", "call_updated"];
    assert_eq!(scene.events().await, expected);
}

#[tokio::test]
async fn a_hangup_before_the_invite_left_takes_everything_back() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.say(call_id, scene.ada, None, candidates(0..3)).await.unwrap();
    scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
    assert_eq!(scene.waiting().await, [""; 0], "at once, whenever a worker comes");
    assert_eq!(scene.drain().await, []);
    let call = scene.call_as(call_id, scene.grace).await;
    assert_eq!((call.delivery, call.missed), (Some(Delivery::Cancelled), true));
}

#[tokio::test]
async fn a_hangup_after_the_invite_left_follows_it_and_late_candidates_do_not() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Invite]));
    scene.say(call_id, scene.ada, None, candidates(0..3)).await.unwrap();
    scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
    let late = scene.say(call_id, scene.ada, None, candidates(3..6)).await;
    assert!(matches!(late, Err(CallError::Ended)), "{late:?}");
    assert_eq!(scene.drain().await, []);
}

#[tokio::test]
async fn an_invite_that_may_have_been_heard_gets_its_hangup_whatever_became_of_it() {
    for lost in [Answer::TakenSilently, Answer::Lost] {
        let scene = Scene::new().await;
        let call_id = scene.place().await;
        let claimed = scene.claim().await.remove(0);
        scene.settle(claimed, &mut |_| lost).await;
        scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
        scene.database.advance(Duration::from_secs(2)).await;
        // Its transaction is closed, so that it cannot arrive any more; whoever heard it hears the end of it.
        let mut closed = false;
        let sent = scene
            .drain_with(|operation| {
                closed |= super::closes(operation);
                Answer::Taken
            })
            .await;
        assert_eq!((sent, closed), (kinds(&[SignalKind::Hangup]), true), "{lost:?}");
    }
}

#[tokio::test]
async fn an_invite_that_was_certainly_refused_is_taken_back_like_one_that_never_left() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    let claimed = scene.claim().await.remove(0);
    scene.settle(claimed, &mut |_| Answer::Refused).await;
    scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
    scene.database.advance(Duration::from_secs(2)).await;
    assert_eq!(scene.drain().await, []);
}

#[tokio::test]
async fn an_invite_is_not_sent_with_less_than_ten_seconds_left_and_the_caller_is_told() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.database.advance(Duration::from_secs(79)).await;
    assert_eq!(scene.time_out().await, 0);
    scene.database.advance(Duration::from_secs(2)).await;
    // A worker that claims before anybody looks at the time finds out too.
    assert_eq!(scene.drain().await, []);
    assert_eq!(scene.waiting().await, [""; 0]);
    assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Expired));
    assert_eq!(scene.events().await, ["invite", "call_updated"]);
    // Our own clients may still answer.
    assert_eq!(scene.state(call_id).await, "ringing");
    scene.database.advance(Duration::from_secs(9)).await;
    assert_eq!(scene.time_out().await, 1);
    assert_eq!(scene.state(call_id).await, "ended invite_timeout");
    assert!(scene.call_as(call_id, scene.grace).await.missed);
    assert!(!scene.call(call_id).await.missed);
    assert_eq!(scene.drain().await, []);
}

#[tokio::test]
async fn an_invite_expires_while_everything_is_paused() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    shared::outbox::pause(&scene.database.pool, None, None, "maintenance", "test").await.unwrap();
    scene.database.advance(RING).await;
    // The invite expires, and the call is over.
    assert_eq!(scene.time_out().await, 2);
    assert_eq!(scene.events().await, ["invite", "call_updated", "call_updated"]);
    shared::outbox::unpause(&scene.database.pool, None).await.unwrap();
    assert_eq!(scene.drain().await, []);
    assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Expired));
}

#[tokio::test]
async fn a_call_that_nobody_answers_is_hung_up_on_matrix_when_its_time_is_over() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Invite]));
    scene.database.advance(Duration::from_secs(89)).await;
    assert_eq!(scene.time_out().await, 0);
    scene.database.advance(Duration::from_secs(1)).await;
    assert_eq!(scene.time_out().await, 1);
    assert_eq!(scene.time_out().await, 0);
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
    let late = scene.say(call_id, scene.grace, None, answer()).await;
    assert!(matches!(late, Err(CallError::Ended)), "{late:?}");
}

#[tokio::test]
async fn an_answer_after_the_time_is_over_comes_too_late_also_before_anybody_noticed() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.database.advance(RING).await;
    let late = scene.say(call_id, scene.grace, None, answer()).await;
    assert!(matches!(late, Err(CallError::Ended)), "{late:?}");
}

#[tokio::test]
async fn an_invite_that_was_answered_here_before_it_left_does_not_ring_elsewhere() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.say(call_id, scene.grace, Some("TABLET"), answer()).await.unwrap();
    assert_eq!(scene.waiting().await, [""; 0], "at once, whenever a worker comes");
    assert_eq!(scene.drain().await, []);
    assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Cancelled));
    scene.say(call_id, scene.grace, None, candidates(0..3)).await.unwrap();
    scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
    assert_eq!(scene.drain().await, [], "it is between two of us");
}

#[tokio::test]
async fn a_second_device_that_answers_comes_too_late_and_the_first_may_repeat_itself() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.say(call_id, scene.grace, Some("TABLET"), answer()).await.unwrap();
    let second = scene.say(call_id, scene.grace, Some("DESK"), answer()).await;
    assert!(matches!(second, Err(CallError::AnsweredElsewhere)), "{second:?}");
    scene.say(call_id, scene.grace, Some("TABLET"), answer()).await.unwrap();
    let stolen = scene.say(call_id, scene.ada, Some("TABLET"), hangup()).await;
    assert!(matches!(stolen, Err(CallError::PartyTaken)), "{stolen:?}");
    let answers = "select count(*) from call_signals where kind = 'answer'";
    assert_eq!(scene.database.count(answers).await, 1);
}

#[tokio::test]
async fn who_takes_no_part_in_a_call_has_no_say_in_it() {
    let third = UserId::generate();
    let scene = Scene::of(&[third]).await;
    let mut new = scene.new_call("PHONE");
    new.invitee_id = Some(scene.grace);
    let call_id = scene.try_place(&new).await.unwrap();
    for saying in [answer(), candidates(0..1), Saying::Reject, hangup()] {
        let refused = scene.say(call_id, third, None, saying).await;
        assert!(matches!(refused, Err(CallError::NotInCall)), "{refused:?}");
    }
    new.call_id = shared::ids::CallId::generate();
    new.invitee_id = Some(UserId::generate());
    assert!(matches!(scene.try_place(&new).await, Err(CallError::NoSuchInvitee)));
    let own = scene.say(call_id, scene.ada, None, answer()).await;
    assert!(matches!(own, Err(CallError::IllegalState)), "{own:?}");
}

#[tokio::test]
async fn of_several_who_are_called_one_who_declines_leaves_the_others_ringing() {
    let third = UserId::generate();
    let scene = Scene::of(&[third]).await;
    let call_id = scene.place().await;
    assert_eq!(scene.call(call_id).await.invitee_id, None);
    scene.say(call_id, third, None, Saying::Reject).await.unwrap();
    assert_eq!(scene.state(call_id).await, "ringing");
    assert!(!scene.call_as(call_id, third).await.missed);
    scene.say(call_id, scene.grace, None, answer()).await.unwrap();
    let late = scene.say(call_id, third, None, hangup()).await;
    assert!(matches!(late, Err(CallError::AnsweredElsewhere)), "{late:?}");
    assert_eq!(scene.state(call_id).await, "active");
}

#[tokio::test]
async fn who_is_called_alone_and_declines_ends_the_call_and_whatever_rings_on_matrix() {
    for decline in [Saying::Reject, hangup()] {
        let scene = Scene::new().await;
        let call_id = scene.place().await;
        scene.drain().await;
        scene.say(call_id, scene.grace, None, decline).await.unwrap();
        assert_eq!(scene.state(call_id).await, "ended rejected");
        assert!(!scene.call_as(call_id, scene.grace).await.missed, "she declined");
        assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
        assert_eq!(scene.events().await, ["invite", "call_updated", "reject", "call_updated"]);
    }
}

#[tokio::test]
async fn who_leaves_the_conversation_leaves_the_call() {
    for answered in [false, true] {
        for leaves in [0, 1] {
            let scene = Scene::new().await;
            let call_id = scene.place().await;
            scene.drain().await;
            if answered {
                scene.say(call_id, scene.grace, None, answer()).await.unwrap();
                scene.drain().await;
            }
            let user = [scene.ada, scene.grace][leaves];
            let stays = [scene.grace, scene.ada][leaves];
            let (mut tx, mut turn) = scene.begin().await;
            shared::chat::remove_member(&mut tx, &mut turn, user).await.unwrap();
            tx.commit().await.unwrap();
            let call = scene.call_as(call_id, stays).await;
            assert_eq!(call.reason.map(shared::calls::EndReason::as_str), Some("left"));
            assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]), "it was placed before the removal");
        }
    }
}

#[tokio::test]
async fn a_call_is_heard_by_nobody_who_is_still_to_be_removed() {
    let third = UserId::generate();
    let scene = Scene::of(&[third]).await;
    let (mut tx, mut turn) = scene.begin().await;
    shared::chat::remove_member(&mut tx, &mut turn, third).await.unwrap();
    tx.commit().await.unwrap();
    scene.place().await;
    assert_eq!(scene.drain().await, []);
    assert_eq!(scene.waiting().await, ["remove", "call_invite"]);
    // As if the removal was done.
    sqlx::query("delete from outbox where kind = 'remove'").execute(&scene.database.pool).await.unwrap();
    scene.database.advance(Duration::from_secs(2)).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Invite]));
}

#[tokio::test]
async fn a_call_waits_for_what_its_conversation_waits_for() {
    let scene = Scene::new().await;
    let pause = async |reason: &str| {
        let mut tx = scene.database.pool.begin().await.unwrap();
        shared::outbox::pause_lanes(&mut tx, scene.conversation_id, None, None, reason).await.unwrap();
        tx.commit().await.unwrap();
    };
    pause("looking into it").await;
    scene.place().await;
    assert_eq!(scene.drain().await, []);
    let mut tx = scene.database.pool.begin().await.unwrap();
    shared::outbox::resume_lanes(&mut tx, scene.conversation_id, None).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Invite]));
}

#[tokio::test]
async fn a_call_waits_as_long_as_its_conversation_is_paused() {
    let scene = Scene::new().await;
    scene.database.stop_clock().await;
    let (mut tx, turn) = scene.begin().await;
    let until = Some(turn.at + Duration::from_secs(30));
    shared::outbox::pause_lanes(&mut tx, scene.conversation_id, None, until, "a while").await.unwrap();
    tx.commit().await.unwrap();
    scene.place().await;
    scene.database.advance(Duration::from_secs(29)).await;
    assert_eq!(scene.drain().await, []);
    scene.database.advance(Duration::from_secs(1)).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Invite]));
}

#[tokio::test]
async fn a_call_that_is_over_without_its_invite_says_whether_that_was_taken_back_or_came_too_late() {
    for (seconds, expected) in [(79, Delivery::Cancelled), (81, Delivery::Expired)] {
        let scene = Scene::new().await;
        scene.database.stop_clock().await;
        let call_id = scene.place().await;
        scene.database.advance(Duration::from_secs(seconds)).await;
        scene.say(call_id, scene.ada, None, hangup()).await.unwrap();
        assert_eq!(scene.call(call_id).await.delivery, Some(expected), "{seconds} s");
    }
}

#[tokio::test]
async fn an_invite_that_is_in_somebodys_hands_or_may_be_there_is_being_delivered_and_does_not_expire() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    let claimed = scene.claim().await.remove(0);
    scene.database.advance(Duration::from_secs(85)).await;
    assert_eq!(scene.time_out().await, 0);
    assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Delivering));
    scene.settle(claimed, &mut |_| Answer::TakenSilently).await;
    assert_eq!(scene.time_out().await, 0);
    assert_eq!(scene.call(call_id).await.delivery, Some(Delivery::Delivering));
    assert_eq!(scene.waiting().await, ["call_invite"]);
}

#[tokio::test]
async fn a_call_that_is_answered_or_out_of_time_or_of_others_is_no_rival_of_a_new_one() {
    let third = UserId::generate();
    for case in ["answered", "out of time", "to a third", "from a third", "on to a third"] {
        let scene = Scene::of(&[third]).await;
        let mut first = scene.new_call("PHONE");
        first.invitee_id = Some(if case == "to a third" { third } else { scene.grace });
        let first_id = scene.try_place(&first).await.unwrap();
        match case {
            "answered" => scene.say(first_id, scene.grace, Some("DESK"), answer()).await.unwrap(),
            "out of time" => scene.database.advance(RING).await,
            _ => {}
        }
        let mut second = scene.new_call("TABLET");
        second.initiator_id = if case == "from a third" { third } else { scene.grace };
        second.invitee_id = Some(if case == "on to a third" { third } else { scene.ada });
        let second_id = scene.try_place(&second).await.unwrap();
        assert_eq!(scene.state(second_id).await, "ringing", "{case}");
        let expected = if case == "answered" { "active" } else { "ringing" };
        assert_eq!(scene.state(first_id).await, expected, "{case}");
    }
}

#[tokio::test]
async fn nobody_missed_a_call_that_another_took_the_place_of() {
    let scene = Scene::new().await;
    let first = scene.place().await;
    let mut second = scene.new_call("TABLET");
    second.initiator_id = scene.grace;
    let lost = scene.try_place(&second).await.unwrap().max(first);
    for reader in [scene.ada, scene.grace] {
        assert!(!scene.call_as(lost, reader).await.missed);
    }
}

#[tokio::test]
async fn a_call_is_missed_by_those_whom_it_was_for_and_only_if_nobody_answered() {
    let third = UserId::generate();
    let scene = Scene::of(&[third]).await;
    let to_all = scene.place().await;
    let mut new = scene.new_call("PHONE");
    new.invitee_id = Some(scene.grace);
    let to_grace = scene.try_place(&new).await.unwrap();
    assert_eq!(scene.state(to_all).await, "ringing", "nobody is their own rival");
    scene.database.advance(RING).await;
    scene.time_out().await;
    new.call_id = shared::ids::CallId::generate();
    let answered = scene.try_place(&new).await.unwrap();
    scene.say(answered, scene.grace, None, answer()).await.unwrap();
    scene.say(answered, scene.ada, None, hangup()).await.unwrap();
    for (call_id, missed) in [(to_all, [false, true, true]), (to_grace, [false, true, false]), (answered, [false; 3])] {
        for (reader, missed) in [scene.ada, scene.grace, third].into_iter().zip(missed) {
            assert_eq!(scene.call_as(call_id, reader).await.missed, missed);
        }
    }
}

#[tokio::test]
async fn what_two_of_us_say_to_each_other_is_not_said_on_matrix_where_it_rang() {
    let scene = Scene::new().await;
    let call_id = scene.place().await;
    scene.drain().await;
    scene.say(call_id, scene.grace, Some("TABLET"), answer()).await.unwrap();
    scene.say(call_id, scene.grace, Some("TABLET"), candidates(0..2)).await.unwrap();
    scene.database.advance(Duration::from_secs(3)).await;
    assert_eq!(scene.drain().await, kinds(&[SignalKind::SelectAnswer]));
}

#[tokio::test]
async fn who_is_alone_has_nobody_to_call() {
    let scene = Scene::new().await;
    scene.remove(scene.grace).await;
    let refused = scene.try_place(&scene.new_call("PHONE")).await;
    assert!(matches!(refused, Err(CallError::NoSuchInvitee)), "{refused:?}");
}

#[tokio::test]
async fn a_call_whose_devices_are_gone_ends_after_a_day() {
    let scene = Scene::new().await;
    let call_id = scene.is_called("1").await;
    scene.say(call_id, scene.ada, Some("PHONE"), answer()).await.unwrap();
    scene.drain().await;
    scene.database.advance(Duration::from_hours(23)).await;
    assert_eq!(scene.time_out().await, 0);
    scene.database.advance(Duration::from_hours(2)).await;
    assert_eq!(scene.time_out().await, 1);
    assert_eq!(scene.state(call_id).await, "ended unknown_error");
    assert_eq!(scene.drain().await, kinds(&[SignalKind::Hangup]));
}

#[tokio::test]
async fn of_several_devices_that_call_none_rings_on_after_glare() {
    let scene = Scene::new().await;
    let mut theirs = scene.new_call("HERS");
    theirs.initiator_id = scene.grace;
    let (one, two) = (scene.place().await, scene.place().await);
    scene.try_place(&theirs).await.unwrap();
    assert!(theirs.call_id < one && one < two);
    for call_id in [one, two] {
        assert_eq!(scene.state(call_id).await, "ended glare");
    }
    assert_eq!(scene.state(theirs.call_id).await, "ringing");
}

#[tokio::test]
async fn two_who_call_each_other_at_once_end_in_one_call_whoever_is_first() {
    for swapped in [false, true] {
        let scene = Scene::new().await;
        let first = scene.new_call("PHONE");
        let mut second = scene.new_call("TABLET");
        second.initiator_id = scene.grace;
        let mut calls = [first, second];
        // Ids are in the order of time, so the first counts; unless it was made earlier and comes later.
        if swapped {
            calls.swap(0, 1);
        }
        let lesser = calls.iter().map(|call| call.call_id).min().unwrap();
        for call in &calls {
            scene.try_place(call).await.unwrap();
        }
        let rang = scene.database.count("select count(*) from call_signals where kind = 'invite'").await;
        assert_eq!(rang, if swapped { 2 } else { 1 }, "what lost at once rings nowhere");
        for call in &calls {
            let expected = if call.call_id == lesser { "ringing" } else { "ended glare" };
            assert_eq!(scene.state(call.call_id).await, expected);
            let replaced_by = scene.call(call.call_id).await.replaced_by;
            assert_eq!(replaced_by, (call.call_id != lesser).then_some(lesser));
        }
        assert_eq!(scene.drain().await, kinds(&[SignalKind::Invite]));
    }
}
