//! What clients are told of calls, and who is.

use std::time::Duration;

use serde_json::{Value, json};
use shared::testing::{
    nova::NovaUser,
    websocket::{Heard, Socket},
};

use super::{ANSWER, OFFER, Scene, call_frame, id, read, say, without_cursor};

/// The names of what comes about calls up to the one that is to come last.
async fn until(socket: &mut Socket, last: &str, call: &str) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let frame = call_frame(socket).await;
        let name = frame["type"].as_str().unwrap().to_owned();
        let ended = frame["call"]["id"] == call && frame["call"]["status"] == last;
        names.push(name);
        if ended {
            return names;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_has_exactly_these_fields() {
    let scene = Scene::with(&[("MATRIX_ENABLED", "false")]).await;
    let (ada, grace, conversation) = (&scene.ada, &scene.grace, &scene.conversation);
    let (mut of_ada, mut of_grace) = (ada.listen(None).await, grace.listen(None).await);
    let metadata = json!({"stream": {"purpose": "m.usermedia"}});
    let body = json!({"party_id": "ada-phone", "sdp_stream_metadata": metadata, "lifetime_ms": 60_000});
    let call = scene.initiate(ada, body).await.expect(201);
    let call_id = call["id"].clone();
    let expected = json!({
        "type": "CallInvite",
        "cursor": null,
        "conversation_id": conversation,
        "call_id": call_id,
        "initiator_id": ada.user_id,
        "party_id": "ada-phone",
        "invitee_id": grace.user_id,
        "sdp_offer": OFFER,
        "sdp_stream_metadata": metadata,
        "ring_until": call["ring_until"],
    });
    for socket in [&mut of_ada, &mut of_grace] {
        assert_eq!(without_cursor(call_frame(socket).await), expected);
    }

    let candidates = json!([
        {"candidate": "candidate:1 1 UDP 1 192.0.2.1 9 typ host", "sdpMid": "0", "sdpMLineIndex": 0, "more": [1, "x"]},
        {"candidate": ""},
    ]);
    let from = |name: &str, user: &NovaUser, party: &str, fields: Value| {
        let frame = json!({
            "type": name,
            "cursor": null,
            "conversation_id": conversation,
            "call_id": call_id,
            "participant_id": user.user_id,
            "party_id": party,
        });
        super::merged(frame, fields)
    };
    let call = call_id.as_str().unwrap();
    let body = json!({"candidates": candidates, "party_id": "ada-phone"});
    say(ada, call, "candidates", body).await.expect(200);
    let expected = from("CallCandidates", ada, "ada-phone", json!({"candidates": candidates}));
    assert_eq!(without_cursor(call_frame(&mut of_grace).await), expected);
    call_frame(&mut of_ada).await;

    let body = json!({"sdp_answer": ANSWER, "party_id": "grace-phone", "sdp_stream_metadata": metadata});
    say(grace, call, "answer", body).await.expect(200);
    let answer = json!({"sdp_answer": ANSWER, "sdp_stream_metadata": metadata});
    let expected = from("CallAnswer", grace, "grace-phone", answer);
    let mut told = [call_frame(&mut of_ada).await, call_frame(&mut of_ada).await].map(without_cursor);
    told.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!(told[0], expected);
    let mut shown = read(ada, call).await;
    for name in ["sdp_offer", "sdp_offer_stream_metadata", "sdp_answer", "sdp_answer_stream_metadata", "candidates"] {
        shown.as_object_mut().unwrap().remove(name);
    }
    let expected = json!({"type": "CallUpdated", "cursor": null, "conversation_id": conversation, "call": shown});
    assert_eq!(told[1], expected);

    let description = json!({"type": "offer", "sdp": OFFER});
    let body = json!({"description": description, "party_id": "ada-phone", "lifetime_ms": 5_000});
    say(ada, call, "negotiate", body).await.expect(200);
    let frame = loop {
        let frame = call_frame(&mut of_grace).await;
        if frame["kind"] == "negotiate" {
            break without_cursor(frame);
        }
    };
    let content = json!({"description": description, "lifetime": 5_000});
    assert_eq!(frame, from("CallSignal", ada, "ada-phone", json!({"kind": "negotiate", "content": content})));
    let body = json!({"sdp_stream_metadata": metadata, "party_id": "ada-phone"});
    say(ada, call, "metadata", body).await.expect(200);
    let content = json!({"sdp_stream_metadata": metadata});
    let expected =
        from("CallSignal", ada, "ada-phone", json!({"kind": "sdp_stream_metadata_changed", "content": content}));
    assert_eq!(without_cursor(call_frame(&mut of_grace).await), expected);

    say(ada, call, "hangup", json!({"party_id": "ada-phone", "reason": "ice_failed"})).await.expect(200);
    let mut told = [call_frame(&mut of_grace).await, call_frame(&mut of_grace).await].map(without_cursor);
    told.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!(told[0], from("CallHangup", ada, "ada-phone", json!({"reason": "ice_failed"})));
    assert_eq!(told[1]["call"]["reason"], "ice_failed");

    let call = scene.initiate(ada, json!({})).await.expect(201);
    let body = json!({"party_id": "grace-phone"});
    say(grace, call["id"].as_str().unwrap(), "reject", body).await.expect(200);
    let frame = loop {
        let frame = call_frame(&mut of_grace).await;
        if frame["type"] == "CallReject" {
            break without_cursor(frame);
        }
    };
    let mut expected = from("CallReject", grace, "grace-phone", json!({}));
    expected["call_id"] = call["id"].clone();
    assert_eq!(frame, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_take_part_are_told() {
    let scene = Scene::new().await;
    let (alan, stranger) = (NovaUser::new(&scene.api), NovaUser::new(&scene.api));
    let member = format!("/conversations/{}/members/{}", scene.conversation, alan.user_id);
    scene.ada.call("PUT", &member, None).await.expect(200);
    let (mut of_alan, mut of_stranger) = (alan.listen(None).await, stranger.listen(None).await);
    let call = id(&scene.initiate(&scene.ada, json!({"invitee": scene.grace.user_id})).await.expect(201));
    say(&scene.grace, &call, "answer", json!({"sdp_answer": ANSWER})).await.expect(200);
    say(&scene.grace, &call, "hangup", json!({})).await.expect(200);
    let everybody = id(&scene.initiate(&scene.ada, json!({})).await.expect(201));
    // Of the first call Alan, who is a member, hears nothing; the second is for him too.
    let frame = call_frame(&mut of_alan).await;
    assert_eq!((&frame["type"], &frame["call_id"]), (&json!("CallInvite"), &json!(everybody)));
    let heard = String::from_utf8_lossy(&of_alan.bytes()).into_owned();
    assert!(!heard.contains(&call), "{heard}");
    while let Some(Heard::Frame(frame)) = of_stranger.hear_within(Duration::from_millis(300)).await {
        assert_eq!(frame["type"], "heartbeat", "a stranger was told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_phone_rings_for_a_call_that_does_not() {
    let scene = Scene::new().await;
    let begin = scene.grace.listen(None).await.cursor().to_owned();
    let ended = scene.ring().await;
    say(&scene.ada, &ended, "hangup", json!({})).await.expect(200);
    let answered = scene.talk().await;
    let late = id(&scene.initiate(&scene.ada, json!({"lifetime_ms": 30_000})).await.expect(201));
    scene.database.advance(Duration::from_secs(31)).await;
    let rings = id(&scene.initiate(&scene.ada, json!({"lifetime_ms": 90_000})).await.expect(201));
    let mut back = scene.grace.listen(Some(&begin)).await;
    let mut rung = Vec::new();
    while rung.is_empty() {
        let frame = call_frame(&mut back).await;
        if frame["type"] == "CallInvite" {
            rung.push(frame["call_id"].clone());
        }
    }
    assert_eq!(rung, [json!(rings)], "neither {ended} nor {answered} nor {late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_its_whole_way_over_two_sockets_without_a_homeserver() {
    let scene = Scene::new().await;
    let (mut of_ada, mut of_grace) = (scene.ada.listen(None).await, scene.grace.listen(None).await);
    let call = scene.ring().await;
    let ring = call_frame(&mut of_grace).await;
    assert_eq!((&ring["type"], &ring["sdp_offer"]), (&json!("CallInvite"), &json!(OFFER)));
    let candidates = json!({"candidates": [{"candidate": "candidate:1", "sdpMid": "0"}]});
    say(&scene.ada, &call, "candidates", candidates.clone()).await.expect(200);
    say(&scene.grace, &call, "answer", json!({"sdp_answer": ANSWER, "party_id": "phone"})).await.expect(200);
    say(&scene.grace, &call, "candidates", super::merged(candidates, json!({"party_id": "phone"}))).await.expect(200);
    say(&scene.grace, &call, "hangup", json!({"party_id": "phone"})).await.expect(200);
    for socket in [&mut of_ada, &mut of_grace] {
        let names = until(socket, "ended", &call).await;
        let count = |name: &str| names.iter().filter(|told| *told == name).count();
        assert_eq!((count("CallCandidates"), count("CallAnswer"), count("CallHangup")), (2, 1, 1), "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_named_again_is_told_once_however_it_comes() {
    let scene = Scene::new().await;
    let (mut of_ada, mut of_grace) = (scene.ada.listen(None).await, scene.grace.listen(None).await);
    let call = id(&scene.initiate(&scene.ada, json!({"party_id": "phone"})).await.expect(201));
    let candidate = |n: u32| json!({"candidate": format!("candidate:{n}"), "sdpMid": "0", "sdpMLineIndex": 0});
    let said = |candidates: Value| json!({"candidates": candidates, "party_id": "phone"});
    say(&scene.ada, &call, "candidates", said(json!([candidate(1), candidate(1), candidate(2)]))).await.expect(200);
    say(&scene.ada, &call, "candidates", said(json!([candidate(2)]))).await.expect(200);
    let over_the_socket = json!({"type": "CallCandidates", "request_id": "r", "call_id": call});
    of_ada.say(&super::merged(over_the_socket, said(json!([candidate(1), candidate(3), {"candidate": ""}])))).await;
    let mut told = Vec::new();
    while told.last() != Some(&json!({"candidate": ""})) {
        let frame = call_frame(&mut of_grace).await;
        told.extend(frame["candidates"].as_array().into_iter().flatten().cloned());
    }
    assert_eq!(told, [candidate(1), candidate(2), candidate(3), json!({"candidate": ""})]);
}
