//! Calls over REST: what each route does and answers.

use serde_json::{Value, json};

use super::{ANSWER, OFFER, Scene, id, offer, read, say};

/// What differs from call to call, taken out.
fn essence(call: &Value) -> Value {
    let mut call = call.clone();
    for name in ["id", "created_at", "ring_until", "answered_at", "ended_at"] {
        if call[name].is_string() {
            call[name] = json!("some");
        }
    }
    call
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_has_exactly_these_fields() {
    let scene = Scene::with(&[("MATRIX_ENABLED", "false")]).await;
    let (ada, grace) = (&scene.ada, &scene.grace);
    let call = scene.initiate(ada, json!({"party_id": "ada-phone"})).await.expect(201);
    let mut expected = json!({
        "id": "some",
        "conversation_id": scene.conversation,
        "status": "ringing",
        "reason": null,
        "direction": "outgoing",
        "missed": false,
        "origin": "nova",
        "initiator_id": ada.user_id,
        "external": null,
        "invitee_id": grace.user_id,
        "answered_by": null,
        "party_id": "ada-phone",
        "created_at": "some",
        "ring_until": "some",
        "answered_at": null,
        "ended_at": null,
        "ended_by": null,
        "replaced_by": null,
        "matrix": {"delivery": "disabled", "event_id": null, "party_id": "ada-phone", "room_id": null},
    });
    assert_eq!(essence(&call), expected);
    let path = format!("/calls/{}", id(&call));
    let mut joinable = expected.clone();
    for (name, value) in [
        ("sdp_offer", json!(OFFER)),
        ("sdp_offer_stream_metadata", json!(null)),
        ("sdp_answer", json!(null)),
        ("sdp_answer_stream_metadata", json!(null)),
        ("candidates", json!([])),
    ] {
        joinable[name] = value;
    }
    assert_eq!(essence(&ada.get(&path).await), joinable);
    joinable["direction"] = json!("incoming");
    joinable["party_id"] = json!(null);
    assert_eq!(essence(&grace.get(&path).await), joinable);

    let body = json!({"sdp_answer": ANSWER, "party_id": "grace-phone"});
    let answered = say(grace, &id(&call), "answer", body).await.expect(200);
    expected["status"] = json!("active");
    expected["direction"] = json!("incoming");
    expected["party_id"] = json!("grace-phone");
    expected["answered_at"] = json!("some");
    expected["answered_by"] = json!({"user_id": grace.user_id, "party_id": "grace-phone"});
    assert_eq!(essence(&answered), expected);
    assert_eq!(grace.get(&path).await["sdp_answer"], ANSWER);

    let ended = say(ada, &id(&call), "hangup", json!({"party_id": "ada-phone"})).await.expect(200);
    expected["status"] = json!("ended");
    expected["reason"] = json!("user_hangup");
    expected["direction"] = json!("outgoing");
    expected["party_id"] = json!("ada-phone");
    expected["ended_at"] = json!("some");
    expected["ended_by"] = json!(ada.user_id);
    assert_eq!(essence(&ended), expected);
    let over = ada.get(&path).await;
    for name in ["sdp_offer", "sdp_answer"] {
        assert_eq!(over[name], json!(null), "{name} of a call that is over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_to_ring_on_matrix_is_pending_and_waits_as_long_as_asked() {
    let scene = Scene::new().await;
    let headers = [("Prefer", "wait=1")];
    let body = offer(&scene.conversation, json!({}));
    let begun = std::time::Instant::now();
    let answer = scene.ada.call_with("POST", "/calls/initiate", &headers, Some(&body)).await;
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
    assert_eq!(answer.headers.get("preference-applied").map(String::as_str), Some("wait=1"));
    let call = answer.expect(201);
    assert_eq!(call["matrix"]["delivery"], "pending");
    assert_eq!((&call["matrix"]["event_id"], &call["matrix"]["room_id"]), (&json!(null), &json!(null)));
    let party = call["party_id"].as_str().unwrap();
    assert!(party.starts_with("nova-"), "{party}");
    assert_eq!(call["matrix"]["party_id"], party);
    assert_eq!(scene.database.count("select count(*) from outbox where kind = 'call_invite'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_stay_between_our_own_clients_where_matrix_voip_is_switched_off() {
    for option in ["MATRIX_VOIP_ENABLED", "MATRIX_ENABLED"] {
        let scene = Scene::with(&[(option, "false")]).await;
        let call = scene.initiate(&scene.ada, json!({})).await.expect(201);
        assert_eq!(call["matrix"]["delivery"], "disabled", "{option}");
        say(&scene.grace, &id(&call), "answer", json!({"sdp_answer": ANSWER})).await.expect(200);
        let ended = say(&scene.grace, &id(&call), "hangup", json!({})).await.expect(200);
        assert_eq!((&ended["status"], &ended["reason"]), (&json!("ended"), &json!("user_hangup")));
        assert_eq!(ended["matrix"]["delivery"], "disabled", "{option}");
        assert_eq!(scene.database.count("select count(*) from outbox where kind like 'call%'").await, 0, "{option}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptions_of_sessions_come_out_byte_for_byte() {
    let scene = Scene::new().await;
    let metadata = json!({"stream": {"purpose": "m.usermedia", "audio_muted": false, "unknown": [1, null]}});
    let body = json!({"sdp_stream_metadata": metadata});
    let call = id(&scene.initiate(&scene.ada, body).await.expect(201));
    let late = read(&scene.grace, &call).await;
    assert_eq!((&late["sdp_offer"], &late["sdp_offer_stream_metadata"]), (&json!(OFFER), &metadata));
    let body = json!({"sdp_answer": ANSWER, "sdp_stream_metadata": metadata});
    say(&scene.grace, &call, "answer", body).await.expect(200);
    let late = read(&scene.ada, &call).await;
    assert_eq!((&late["sdp_answer"], &late["sdp_answer_stream_metadata"]), (&json!(ANSWER), &metadata));
    for (table, column) in [("call_signals", "payload"), ("idempotency_keys", "fingerprint"), ("outbox", "trace")] {
        let leaked = format!("select count(*) from {table} where {column}::text like '%quotes%'");
        let leaked: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(leaked)).fetch_one(&scene.database.pool).await.unwrap();
        assert_eq!(leaked, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_is_answered_with_the_call() {
    let scene = Scene::new().await;
    let call = scene.ring().await;
    let candidate = json!({"candidate": "candidate:1 1 UDP 1 192.0.2.1 9 typ host", "sdpMid": "0", "sdpMLineIndex": 0});
    let steps = [
        (&scene.ada, "candidates", json!({"candidates": [candidate]}), "ringing"),
        (&scene.grace, "answer", json!({"sdp_answer": ANSWER, "party_id": "phone"}), "active"),
        (&scene.ada, "select_answer", json!({"selected_party_id": "phone"}), "active"),
        (&scene.grace, "candidates", json!({"candidates": [{"candidate": ""}], "party_id": "phone"}), "active"),
        (&scene.ada, "negotiate", json!({"description": {"type": "offer", "sdp": OFFER}}), "active"),
        (&scene.grace, "negotiate", json!({"description": {"type": "answer", "sdp": ANSWER}}), "active"),
        (&scene.ada, "metadata", json!({"sdp_stream_metadata": {"s": {"purpose": "m.usermedia"}}}), "active"),
        (&scene.ada, "hangup", json!({"reason": "ice_failed"}), "ended"),
    ];
    for (user, what, body, status) in steps {
        let answer = say(user, &call, what, body).await.expect(200);
        assert_eq!((&answer["id"], &answer["status"]), (&json!(call), &json!(status)), "{what}");
    }
    assert_eq!(read(&scene.ada, &call).await["reason"], "ice_failed");

    let call = scene.ring().await;
    let rejected = scene.grace.call("POST", &format!("/calls/{call}/reject"), None).await.expect(200);
    assert_eq!((&rejected["status"], &rejected["reason"]), (&json!("ended"), &json!("rejected")));
    let call = scene.ring().await;
    let cancelled = scene.ada.call("POST", &format!("/calls/{call}/hangup"), None).await.expect(200);
    assert_eq!((&cancelled["status"], &cancelled["reason"]), (&json!("ended"), &json!("user_hangup")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_repeated_under_its_key_is_done_once() {
    let scene = Scene::new().await;
    let body = offer(&scene.conversation, json!({}));
    let key = [("Idempotency-Key", "the key")];
    let first = scene.ada.call_with("POST", "/calls/initiate", &key, Some(&body)).await.expect(201);
    let again = scene.ada.call_with("POST", "/calls/initiate", &key, Some(&body)).await.expect(201);
    assert_eq!(again, first);
    assert_eq!(scene.database.count("select count(*) from calls").await, 1);
    let other = offer(&scene.conversation, json!({"lifetime_ms": 60_000}));
    let refused = scene.ada.call_with("POST", "/calls/initiate", &key, Some(&other)).await;
    assert_eq!((refused.status, refused.code()), (422, "idempotency_key_reused"));

    let call = id(&first);
    let candidates = json!({"candidates": [{"candidate": "candidate:1", "sdpMid": "0"}]});
    for (user, what, body) in [
        (&scene.ada, "candidates", candidates),
        (&scene.grace, "answer", json!({"sdp_answer": ANSWER, "party_id": "phone"})),
        (&scene.ada, "select_answer", json!({"selected_party_id": "phone"})),
        (&scene.ada, "negotiate", json!({"description": {"type": "offer", "sdp": OFFER}})),
        (&scene.ada, "metadata", json!({"sdp_stream_metadata": {}})),
        (&scene.grace, "hangup", json!({})),
    ] {
        let path = format!("/calls/{call}/{what}");
        let first = user.call_with("POST", &path, &key, Some(&body)).await.expect(200);
        let said = scene.database.count("select count(*) from call_signals").await;
        assert_eq!(user.call_with("POST", &path, &key, Some(&body)).await.expect(200), first, "{what}");
        assert_eq!(scene.database.count("select count(*) from call_signals").await, said, "{what}");
    }
    // Also what is over by now is answered with what it is.
    let again = scene.ada.call_with("POST", "/calls/initiate", &key, Some(&body)).await.expect(201);
    assert_eq!((&again["id"], &again["status"]), (&first["id"], &json!("ended")));
    // The same words in another call are another request.
    let second = scene.ring().await;
    let path = format!("/calls/{second}/hangup");
    let refused = scene.grace.call_with("POST", &path, &key, Some(&json!({}))).await;
    assert_eq!((refused.status, refused.code()), (422, "idempotency_key_reused"));
}
