//! Status and error code of what goes wrong.
use reqwest::Method;
use serde_json::json;
use shared::testing::matrix_client::MatrixClient;

use super::{Target, assert_refused, edit_of, laws, random, text};

laws!(
    sends_by_whom_is_not_in_the_room_are_forbidden,
    sends_to_unknown_rooms_are_forbidden,
    too_large_events_are_413,
    the_limit_counts_bytes,
    nul_reads_back_intact,
    numbers_outside_canonical_json_are_bad_json,
    what_is_no_json_is_not_json,
    a_lone_surrogate_is_500,
    malformed_messages_are_400,
    call_events_are_taken_as_they_come,
    bad_tokens_are_401,
    deactivated_accounts_lose_their_tokens_and_can_be_invited,
    unknown_paths_and_methods_are_unrecognized,
    redacting_takes_power_or_ownership,
    redacting_an_unknown_event_is_accepted,
    login_with_a_wrong_password_is_forbidden,
    registration_refuses_names_in_use,
    versions_go_up_to_v1_15,
    whoami_names_user_and_device,
    unknown_state_and_events_are_not_found,
);

async fn sends_by_whom_is_not_in_the_room_are_forbidden(hs: &Target) {
    let (owner, invited, stranger) = (hs.user().await, hs.user().await, hs.user().await);
    let room = hs.room(&owner, &[]).await;
    owner.invite(&room, invited.user_id()).await.unwrap();
    assert_refused!(stranger.say(&room, "x").await, 403, "M_FORBIDDEN");
    assert_refused!(invited.say(&room, "x").await, 403, "M_FORBIDDEN");
    assert_refused!(stranger.put_state(&room, "com.nova.x", "", &json!({})).await, 403, "M_FORBIDDEN");
    assert_refused!(stranger.redact(&room, "$x", "t", &json!({})).await, 403, "M_FORBIDDEN");
    invited.join(&room).await.unwrap();
    owner.kick(&room, invited.user_id()).await.unwrap();
    assert_refused!(invited.say(&room, "x").await, 403, "M_FORBIDDEN");
}

async fn sends_to_unknown_rooms_are_forbidden(hs: &Target) {
    let user = hs.user().await;
    for room in ["!0000000000000000000000000000000000000000000", "!unknown:nowhere.invalid", "nonsense"] {
        assert_refused!(user.say(room, "x").await, 403, "M_FORBIDDEN");
        assert_refused!(user.redact(room, "$x", "t", &json!({})).await, 404, "M_NOT_FOUND");
    }
}

async fn too_large_events_are_413(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    user.say(&room, &"x".repeat(64_850)).await.unwrap();
    assert_refused!(user.say(&room, &"x".repeat(65_000)).await, 413, "M_TOO_LARGE");
}

async fn the_limit_counts_bytes(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    user.say(&room, &"é".repeat(32_000)).await.unwrap();
    assert_refused!(user.say(&room, &"é".repeat(32_600)).await, 413, "M_TOO_LARGE");
}

async fn nul_reads_back_intact(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let sent = user.say(&room, "a\0b").await.unwrap();
    assert_eq!(user.event(&room, &sent).await.unwrap().body(), Some("a\0b"));
}

async fn numbers_outside_canonical_json_are_bad_json(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    for number in [json!(1.0), json!(1.5), json!(9_007_199_254_740_992_u64), json!(-9_007_199_254_740_992_i64)] {
        let content = json!({ "msgtype": "m.text", "body": "x", "deep": [{ "number": number }] });
        assert_refused!(user.send(&room, "m.room.message", "t", &content).await, 400, "M_BAD_JSON");
        assert_refused!(user.put_state(&room, "com.nova.x", "", &content).await, 400, "M_BAD_JSON");
    }
    let content = json!({ "msgtype": "m.text", "body": "x", "number": 9_007_199_254_740_991_u64 });
    user.send(&room, "m.room.message", "t", &content).await.unwrap();
}

async fn put_raw(user: &MatrixClient, room: &str, body: &[u8]) -> (u16, String) {
    let path = ["_matrix", "client", "v3", "rooms", room, "send", "m.room.message", "t"];
    super::refusal(user.call_raw(Method::PUT, &path, &[], Some(body.to_vec())).await)
}

async fn what_is_no_json_is_not_json(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    for broken in [b"{\"body\":".as_slice(), b"", b"{\"body\":\"\xff\"}", b"{'body':'x'}"] {
        assert_eq!(put_raw(&user, &room, broken).await, (400, "M_NOT_JSON".to_owned()), "{broken:?}");
    }
    assert_eq!(put_raw(&user, &room, b"[]").await, (400, "M_BAD_JSON".to_owned()));
}

async fn a_lone_surrogate_is_500(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    for lone in [r"\ud800", r"\ud800 x", r"\udc00", r"\ud800\ud800"] {
        let body = format!(r#"{{"msgtype":"m.text","body":"{lone}"}}"#);
        assert_eq!(put_raw(&user, &room, body.as_bytes()).await, (500, "M_UNKNOWN".to_owned()), "{lone}");
    }
}

async fn malformed_messages_are_400(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    for content in [json!({}), json!({ "msgtype": "m.text" }), json!({ "msgtype": "m.text", "body": 1 })] {
        assert_refused!(user.send(&room, "m.room.message", "t", &content).await, 400, "M_UNKNOWN");
    }
    assert_refused!(user.send(&room, "m.room.name", "t", &json!({ "name": "x" })).await, 400, "M_UNKNOWN");
    let edit = edit_of("$0000000000000000000000000000000000000000000", "x");
    assert_refused!(user.send(&room, "m.room.message", "t", &edit).await, 400, "M_UNKNOWN");
}

async fn call_events_are_taken_as_they_come(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let types = ["invite", "candidates", "answer", "select_answer", "negotiate", "reject", "hangup"];
    for name in types {
        user.send(&room, &format!("m.call.{name}"), name, &json!({ "nonsense": true })).await.unwrap();
    }
    let events = user.timeline(&room).await.unwrap();
    let calls: Vec<&str> = events.iter().filter_map(|event| event.event_type.strip_prefix("m.call.")).collect();
    assert_eq!(calls, types);
    let content = json!({ "lifetime": 1.0 });
    assert_refused!(user.send(&room, "m.call.invite", "float", &content).await, 400, "M_BAD_JSON");
}

async fn bad_tokens_are_401(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let nobody = MatrixClient::with_token(&hs.home, user.user_id(), "X", "nonsense");
    let body = match nobody.say(&room, "x").await.unwrap_err() {
        shared::testing::matrix_client::MatrixError::Refused { status: 401, body, .. } => body,
        error => panic!("{error}"),
    };
    assert_eq!((&body["errcode"], &body["soft_logout"]), (&json!("M_UNKNOWN_TOKEN"), &json!(false)));
    let silent = MatrixClient::with_token(&hs.home, user.user_id(), "X", "");
    assert_refused!(silent.say(&room, "x").await, 401, "M_MISSING_TOKEN");
    user.logout().await.unwrap();
    assert_refused!(user.say(&room, "x").await, 401, "M_UNKNOWN_TOKEN");
}

async fn deactivated_accounts_lose_their_tokens_and_can_be_invited(hs: &Target) {
    let admin = MatrixClient::register_admin(&hs.home, &random("admin"), "password").await.unwrap();
    let (user, gone) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[]).await;
    let path = ["_synapse", "admin", "v1", "deactivate", gone.user_id()];
    assert_refused!(user.call_path(Method::POST, &path, &[], Some(&json!({}))).await, 403, "M_FORBIDDEN");
    admin.call_path(Method::POST, &path, &[], Some(&json!({}))).await.unwrap();
    assert_refused!(gone.whoami().await, 401, "M_UNKNOWN_TOKEN");
    user.invite(&room, gone.user_id()).await.unwrap();
}

async fn unknown_paths_and_methods_are_unrecognized(hs: &Target) {
    let user = hs.user().await;
    assert_refused!(user.call(Method::GET, &["nonsense"], &[], None).await, 404, "M_UNRECOGNIZED");
    assert_refused!(user.call(Method::DELETE, &["createRoom"], &[], None).await, 405, "M_UNRECOGNIZED");
}

async fn redacting_takes_power_or_ownership(hs: &Target) {
    let (owner, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&owner, &[&guest]).await;
    let (by_owner, by_guest) = (owner.say(&room, "a").await.unwrap(), guest.say(&room, "b").await.unwrap());
    assert_refused!(guest.redact(&room, &by_owner, "t1", &json!({})).await, 403, "M_FORBIDDEN");
    owner.redact(&room, &by_guest, "t2", &json!({})).await.unwrap();
    let own = guest.say(&room, "c").await.unwrap();
    guest.redact(&room, &own, "t3", &json!({})).await.unwrap();
    assert_eq!(super::bodies(&owner, &room).await, ["a"]);
}

async fn redacting_an_unknown_event_is_accepted(hs: &Target) {
    let (owner, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&owner, &[&guest]).await;
    let unknown = "$0000000000000000000000000000000000000000000";
    owner.redact(&room, unknown, "t1", &json!({})).await.unwrap();
    // Without power over others' events it must be one's own, and that cannot be known.
    assert_refused!(guest.redact(&room, unknown, "t2", &json!({})).await, 404, "M_NOT_FOUND");
}

async fn login_with_a_wrong_password_is_forbidden(hs: &Target) {
    let name = random("user");
    MatrixClient::register(&hs.home, &name, "password").await.unwrap();
    assert_refused!(MatrixClient::login(&hs.home, &name, "wrong", "X").await, 403, "M_FORBIDDEN");
    assert_refused!(MatrixClient::login(&hs.home, &random("user"), "password", "X").await, 403, "M_FORBIDDEN");
}

async fn registration_refuses_names_in_use(hs: &Target) {
    let name = random("user");
    MatrixClient::register(&hs.home, &name, "password").await.unwrap();
    assert_refused!(MatrixClient::register(&hs.home, &name, "password").await, 400, "M_USER_IN_USE");
    let mut wrong = hs.home.clone();
    "wrong".clone_into(&mut wrong.registration_secret);
    assert_refused!(MatrixClient::register(&wrong, &random("user"), "password").await, 403, "M_UNKNOWN");
}

async fn versions_go_up_to_v1_15(hs: &Target) {
    let nobody = MatrixClient::with_token(&hs.home, "", "", "");
    let answer = nobody.call_path(Method::GET, &["_matrix", "client", "versions"], &[], None).await.unwrap();
    assert_eq!(answer["versions"].as_array().unwrap().last().unwrap(), "v1.15");
}

async fn whoami_names_user_and_device(hs: &Target) {
    let user = hs.login(&hs.user().await, "DEVICE").await;
    let answer = user.whoami().await.unwrap();
    assert_eq!((answer["user_id"].as_str(), answer["device_id"].as_str()), (Some(user.user_id()), Some("DEVICE")));
}

async fn unknown_state_and_events_are_not_found(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    assert_refused!(user.state(&room, "com.nova.conversation", "").await, 404, "M_NOT_FOUND");
    let unknown = "$0000000000000000000000000000000000000000000";
    assert_refused!(user.event(&room, unknown).await, 404, "M_NOT_FOUND");
    let stranger = hs.user().await;
    assert_refused!(stranger.state(&room, "m.room.create", "").await, 403, "M_FORBIDDEN");
    assert_refused!(stranger.timeline(&room).await, 403, "M_FORBIDDEN");
    assert_refused!(stranger.members(&room).await, 403, "M_FORBIDDEN");
    let sent = user.send(&room, "m.room.message", "t", &text("x")).await.unwrap();
    assert_refused!(stranger.event(&room, &sent).await, 404, "M_NOT_FOUND");
}
