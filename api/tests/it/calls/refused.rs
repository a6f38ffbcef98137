//! What is refused, and how.

use serde_json::{Value, json};
use shared::{ids::UserId, testing::nova::NovaUser};

use super::{ANSWER, OFFER, Scene, id, offer, read, say};

/// Every step, with a body that is right.
fn steps() -> [(&'static str, Value); 7] {
    [
        ("answer", json!({"sdp_answer": ANSWER})),
        ("candidates", json!({"candidates": [{"candidate": ""}]})),
        ("select_answer", json!({"selected_party_id": "phone"})),
        ("negotiate", json!({"description": {"type": "offer", "sdp": OFFER}})),
        ("metadata", json!({"sdp_stream_metadata": {}})),
        ("hangup", json!({})),
        ("reject", json!({})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_neither_call_nor_speak_nor_read() {
    let scene = Scene::new().await;
    let call = scene.ring().await;
    let stranger = NovaUser::new(&scene.api);
    let refused = scene.initiate(&stranger, json!({})).await;
    assert_eq!((refused.status, refused.code()), (403, "not_a_member"));
    for (what, body) in steps() {
        let refused = say(&stranger, &call, what, body).await;
        assert_eq!((refused.status, refused.code()), (403, "not_a_member"), "{what}");
    }
    for path in [
        format!("/calls/{call}"),
        format!("/calls/ice_servers?call_id={call}"),
        format!("/calls?conversation_id={}", scene.conversation),
    ] {
        let refused = stranger.call("GET", &path, None).await;
        assert_eq!((refused.status, refused.code()), (403, "not_a_member"), "{path}");
    }
    assert_eq!(stranger.get("/calls").await["calls"], json!([]));
    for path in ["/calls", "/calls/ice_servers"] {
        assert_eq!(scene.ada.get_as(path, None).await.status, 401, "{path}");
    }
    assert_eq!(scene.database.count("select count(*) from calls").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_who_are_not_called_neither_speak_nor_read() {
    let scene = Scene::new().await;
    let alan = NovaUser::new(&scene.api);
    let path = format!("/conversations/{}/members/{}", scene.conversation, alan.user_id);
    scene.ada.call("PUT", &path, None).await.expect(200);
    let call = id(&scene.initiate(&scene.ada, json!({"invitee": scene.grace.user_id})).await.expect(201));
    for (what, body) in steps() {
        let refused = say(&alan, &call, what, body).await;
        assert_eq!((refused.status, refused.code()), (403, "not_in_call"), "{what}");
    }
    for path in [format!("/calls/{call}"), format!("/calls/ice_servers?call_id={call}")] {
        let refused = alan.call("GET", &path, None).await;
        assert_eq!((refused.status, refused.code()), (403, "not_in_call"), "{path}");
    }
    assert_eq!(alan.get("/calls").await["calls"], json!([]));
    assert_eq!(read(&scene.grace, &call).await["status"], "ringing");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_called_who_is_not_there() {
    let scene = Scene::new().await;
    for invitee in [UserId::generate(), scene.ada.user_id] {
        let refused = scene.initiate(&scene.ada, json!({"invitee": invitee})).await;
        assert_eq!((refused.status, refused.code()), (422, "invalid"));
        assert_eq!(refused.body["errors"][0]["field"], "invitee");
    }
    let member = format!("/conversations/{}/members/{}", scene.conversation, scene.grace.user_id);
    scene.ada.call("DELETE", &member, None).await.expect(204);
    let refused = scene.initiate(&scene.ada, json!({})).await;
    assert_eq!((refused.status, refused.code()), (422, "invalid"));
    let nowhere = offer(&uuid::Uuid::new_v4().to_string(), json!({}));
    let refused = scene.ada.call("POST", "/calls/initiate", Some(&nowhere)).await;
    assert_eq!((refused.status, refused.code()), (404, "not_found"));
    let none = uuid::Uuid::new_v4().to_string();
    for (what, body) in steps() {
        let refused = say(&scene.ada, &none, what, body).await;
        assert_eq!((refused.status, refused.code()), (404, "not_found"), "{what}");
    }
    assert_eq!(scene.ada.call("GET", &format!("/calls/{none}"), None).await.status, 404);
    assert_eq!(scene.ada.call("GET", "/calls/nonsense", None).await.code(), "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_in_a_call_that_is_over() {
    let scene = Scene::new().await;
    let call = scene.talk().await;
    say(&scene.ada, &call, "hangup", json!({})).await.expect(200);
    for user in [&scene.ada, &scene.grace] {
        for (what, body) in steps() {
            let refused = say(user, &call, what, body).await;
            assert_eq!((refused.status, refused.code()), (409, "call_ended"), "{what}");
        }
        let refused = user.call("GET", &format!("/calls/ice_servers?call_id={call}"), None).await;
        assert_eq!((refused.status, refused.code()), (409, "call_ended"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_state_of_a_call_does_not_allow_is_refused() {
    let scene = Scene::new().await;
    let call = scene.ring().await;
    for (user, what) in [
        (&scene.ada, "answer"),
        (&scene.ada, "reject"),
        (&scene.ada, "select_answer"),
        (&scene.ada, "negotiate"),
        (&scene.grace, "negotiate"),
        (&scene.grace, "candidates"),
    ] {
        let body = steps().into_iter().find(|(name, _)| *name == what).unwrap().1;
        let refused = say(user, &call, what, body).await;
        assert_eq!((refused.status, refused.code()), (409, "illegal_call_state"), "{what}");
    }
    assert_eq!(read(&scene.ada, &call).await["status"], "ringing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_party_id_belongs_to_one_user_of_a_call() {
    let scene = Scene::new().await;
    let call = id(&scene.initiate(&scene.ada, json!({"party_id": "phone"})).await.expect(201));
    let refused = say(&scene.grace, &call, "answer", json!({"sdp_answer": ANSWER, "party_id": "phone"})).await;
    assert_eq!((refused.status, refused.code()), (409, "party_taken"));
    assert_eq!(read(&scene.ada, &call).await["status"], "ringing");
    // In another call it is free.
    let other = id(&scene.initiate(&scene.ada, json!({"party_id": "tablet"})).await.expect(201));
    say(&scene.grace, &other, "answer", json!({"sdp_answer": ANSWER, "party_id": "phone"})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_field_is_named() {
    let scene = Scene::new().await;
    let long = "x".repeat(256);
    let none = "";
    for (fields, status, field) in [
        (json!({"sdp_offer": none}), 422, "sdp_offer"),
        (json!({"sdp_offer": "a\u{0}b"}), 422, "sdp_offer"),
        (json!({"sdp_offer": 5}), 422, "sdp_offer"),
        (json!({"sdp_offer": "x".repeat(41_000)}), 413, "sdp_offer"),
        (
            json!({"sdp_offer": "x".repeat(40_000), "sdp_stream_metadata": {"a": "x".repeat(2_000)}}),
            413,
            "sdp_stream_metadata",
        ),
        (json!({"sdp_stream_metadata": []}), 422, "sdp_stream_metadata"),
        (json!({"sdp_stream_metadata": {"a": {"b": 1.5}}}), 422, "sdp_stream_metadata"),
        (json!({"sdp_stream_metadata": {"a": 9_007_199_254_740_992_u64}}), 422, "sdp_stream_metadata"),
        (json!({"party_id": none}), 422, "party_id"),
        (json!({"party_id": long}), 422, "party_id"),
        (json!({"party_id": "a b"}), 422, "party_id"),
        (json!({"party_id": "ü"}), 422, "party_id"),
        (json!({"lifetime_ms": 29_999}), 422, "lifetime_ms"),
        (json!({"lifetime_ms": 300_001}), 422, "lifetime_ms"),
        (json!({"lifetime_ms": -1}), 422, "lifetime_ms"),
        (json!({"invitee": "nobody"}), 422, "invitee"),
        (json!({"colour": "red"}), 422, "colour"),
    ] {
        let refused = scene.initiate(&scene.ada, fields.clone()).await;
        let shown = fields.to_string();
        let shown = &shown[..shown.len().min(80)];
        assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (status, &json!(field)), "{shown}");
    }
    let call = scene.talk().await;
    let many: Vec<Value> = (0..101).map(|n| json!({"candidate": format!("candidate:{n}")})).collect();
    for (what, body, status, field) in [
        ("candidates", json!({"candidates": []}), 422, "candidates"),
        ("candidates", json!({"candidates": many}), 422, "candidates"),
        ("candidates", json!({"candidates": [{"candidate": ""}, {}]}), 422, "candidates[1].candidate"),
        ("candidates", json!({"candidates": ["text"]}), 422, "candidates[0]"),
        ("candidates", json!({"candidates": [{"candidate": "", "sdpMid": 0}]}), 422, "candidates[0].sdpMid"),
        (
            "candidates",
            json!({"candidates": [{"candidate": "", "sdpMLineIndex": 65_536}]}),
            422,
            "candidates[0].sdpMLineIndex",
        ),
        ("candidates", json!({"candidates": [{"candidate": "", "other": 0.5}]}), 422, "candidates[0]"),
        ("candidates", json!({"candidates": [{"candidate": "x".repeat(4_096)}]}), 413, "candidates[0]"),
        ("answer", json!({}), 422, "body"),
        ("answer", json!({"sdp_answer": ""}), 422, "sdp_answer"),
        ("select_answer", json!({"selected_party_id": "a b"}), 422, "selected_party_id"),
        ("negotiate", json!({"description": {"type": "rollback", "sdp": "x"}}), 422, "description.type"),
        ("negotiate", json!({"description": {"type": "offer", "sdp": ""}}), 422, "description.sdp"),
        ("negotiate", json!({"description": {"type": "offer", "sdp": "x"}, "lifetime_ms": 0}), 422, "lifetime_ms"),
        ("metadata", json!({"sdp_stream_metadata": null}), 422, "sdp_stream_metadata"),
        ("hangup", json!({"reason": "boredom"}), 422, "reason"),
        ("hangup", json!({"reason": "glare"}), 422, "reason"),
        ("reject", json!({"party_id": "a/b"}), 422, "party_id"),
    ] {
        let refused = say(&scene.ada, &call, what, body.clone()).await;
        let shown = body.to_string();
        let shown = &shown[..shown.len().min(80)];
        assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (status, &json!(field)), "{what} {shown}");
    }
    // Each fits; together they would not fit an event.
    let together: Vec<Value> = (0..15).map(|n| json!({"candidate": format!("{n}{}", "x".repeat(4_000))})).collect();
    let refused = say(&scene.ada, &call, "candidates", json!({"candidates": together})).await;
    assert_eq!((refused.status, refused.code()), (413, "too_large"));
    for path in ["/calls?missed=perhaps", "/calls?conversation_id=x", "/calls/ice_servers?call_id=x", "/calls?cursor=x"]
    {
        assert_eq!(scene.ada.call("GET", path, None).await.code(), "invalid", "{path}");
    }
    assert_eq!(read(&scene.ada, &call).await["status"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_that_is_taken_comes_out_again() {
    let scene = Scene::new().await;
    // As JSON it has its quotes.
    let (largest, larger) = ("x".repeat(40_862), "x".repeat(40_863));
    let call = id(&scene.initiate(&scene.ada, json!({"sdp_offer": largest})).await.expect(201));
    assert_eq!(read(&scene.grace, &call).await["sdp_offer"], largest);
    say(&scene.grace, &call, "answer", json!({"sdp_answer": largest})).await.expect(200);
    assert_eq!(read(&scene.ada, &call).await["sdp_answer"], largest);
    let negotiate = |sdp: &str, metadata: Value| {
        let description = json!({"type": "answer", "sdp": sdp});
        json!({"description": description, "lifetime_ms": 300_000, "sdp_stream_metadata": metadata})
    };
    let less = &largest[2..];
    say(&scene.ada, &call, "negotiate", negotiate(less, json!({}))).await.expect(200);
    for (body, field) in
        [(negotiate(&larger, json!(null)), "description.sdp"), (negotiate(&largest, json!({})), "sdp_stream_metadata")]
    {
        let refused = say(&scene.ada, &call, "negotiate", body).await;
        assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (413, &json!(field)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_conversation_ends_the_call_and_has_no_more_to_do_with_it() {
    let scene = Scene::new().await;
    let call = scene.talk().await;
    let member = format!("/conversations/{}/members/{}", scene.conversation, scene.grace.user_id);
    scene.ada.call("DELETE", &member, None).await.expect(204);
    let refused = say(&scene.grace, &call, "hangup", json!({})).await;
    assert_eq!((refused.status, refused.code()), (403, "not_a_member"));
    let ended = read(&scene.ada, &call).await;
    assert_eq!((&ended["status"], &ended["reason"]), (&json!("ended"), &json!("left")));
}
