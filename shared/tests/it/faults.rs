//! The fake homeserver's faults, clock and memories: what cannot be asked of a real one.
use std::time::Duration;

use serde_json::json;
use shared::testing::homeserver::{Appservice, FakeHomeserver, Kind};
use shared::testing::matrix_client::{HomeserverAddress, MatrixClient, MatrixError};
use tokio::task::JoinHandle;

const TYPE: &str = "m.room.message";

fn text(body: &str) -> serde_json::Value {
    json!({ "msgtype": "m.text", "body": body })
}

async fn start() -> (FakeHomeserver, MatrixClient, String) {
    let hs = FakeHomeserver::start().await;
    let user = MatrixClient::register(&(&hs).into(), "user", "password").await.unwrap();
    let room = user.create_room(&json!({})).await.unwrap();
    (hs, user, room)
}

fn bodies(hs: &FakeHomeserver, room: &str) -> Vec<String> {
    hs.timeline(room).iter().filter_map(|event| event.body().map(str::to_owned)).collect()
}

fn send(user: &MatrixClient, room: &str, txn: &str) -> JoinHandle<Result<String, MatrixError>> {
    let (user, room, txn) = (user.clone(), room.to_owned(), txn.to_owned());
    tokio::spawn(async move { user.send(&room, TYPE, &txn, &text(&txn)).await })
}

#[tokio::test]
async fn a_refusal_stores_nothing_and_says_when_to_come_again() {
    let (hs, user, room) = start().await;
    hs.on_send().fail(429).retry_after(Duration::from_millis(1500)).once();
    let url = format!("{}/_matrix/client/v3/rooms/{room}/send/{TYPE}/t", hs.url());
    let put = || reqwest::Client::new().put(&url).bearer_auth(user.access_token()).body(text("x").to_string()).send();
    let refused = put().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "2");
    let body: serde_json::Value = refused.json().await.unwrap();
    assert_eq!((&body["errcode"], &body["retry_after_ms"]), (&json!("M_LIMIT_EXCEEDED"), &json!(1500)));
    assert!(bodies(&hs, &room).is_empty());
    assert_eq!(put().await.unwrap().status(), 200);
    assert_eq!(bodies(&hs, &room), ["x"]);
}

#[tokio::test]
async fn a_proxy_may_answer_with_a_page() {
    let (hs, user, room) = start().await;
    hs.on_send().fail(520).html("<html>Web server is returning an unknown error</html>").once();
    let error = user.say(&room, "x").await.unwrap_err();
    assert_eq!((error.status(), error.errcode()), (Some(520), ""));
    assert!(error.to_string().contains("<html>"));
}

#[tokio::test]
async fn a_connection_dropped_before_stores_nothing() {
    let (hs, user, room) = start().await;
    hs.on_send().drop_before().once();
    assert_eq!(user.send(&room, TYPE, "t", &text("x")).await.unwrap_err().status(), None);
    assert!(bodies(&hs, &room).is_empty());
    user.send(&room, TYPE, "t", &text("x")).await.unwrap();
    assert_eq!(bodies(&hs, &room), ["x"]);
}

#[tokio::test]
async fn what_was_accepted_before_a_drop_is_remembered() {
    let (hs, user, room) = start().await;
    hs.on_send().drop_after_accept().once();
    assert_eq!(user.send(&room, TYPE, "t", &text("x")).await.unwrap_err().status(), None);
    assert_eq!(bodies(&hs, &room), ["x"]);
    let again = user.send(&room, TYPE, "t", &text("x")).await.unwrap();
    assert_eq!(hs.timeline(&room).last().unwrap().event_id, again);
}

#[tokio::test]
async fn a_held_request_is_stored_when_it_is_released() {
    let (hs, user, room) = start().await;
    let fault = hs.on_send().hold().once();
    let held = send(&user, &room, "held");
    fault.arrived().await;
    user.say(&room, "overtakes").await.unwrap();
    fault.release();
    held.await.unwrap().unwrap();
    assert_eq!(bodies(&hs, &room), ["overtakes", "held"]);
}

#[tokio::test]
async fn a_held_answer_comes_after_the_event_is_seen() {
    let (hs, user, room) = start().await;
    let fault = hs.on_send().hold_answer().once();
    let since = user.sync(None, Duration::ZERO, None).await.unwrap()["next_batch"].as_str().unwrap().to_owned();
    let held = send(&user, &room, "held");
    let sync = user.sync(Some(&since), Duration::from_secs(30), None).await.unwrap();
    assert_eq!(sync["rooms"]["join"][&room]["timeline"]["events"][0]["unsigned"]["transaction_id"], "held");
    assert!(!held.is_finished());
    fault.release();
    held.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_whose_client_gave_up_still_arrives() {
    let (hs, user, room) = start().await;
    let fault = hs.on_send().hold().once();
    let held = send(&user, &room, "late");
    fault.arrived().await;
    held.abort();
    let stored = hs.on_sync().delay(Duration::ZERO).once();
    fault.release();
    let sync = user.sync(None, Duration::ZERO, None).await.unwrap();
    let since = sync["next_batch"].as_str().unwrap();
    if bodies(&hs, &room).is_empty() {
        user.sync(Some(since), Duration::from_secs(30), None).await.unwrap();
    }
    assert_eq!((bodies(&hs, &room), stored.hits()), (vec!["late".to_owned()], 1));
}

#[tokio::test]
async fn a_restart_ends_what_is_in_flight() {
    let (hs, user, room) = start().await;
    let (before, after) = (hs.on_send().txn("before").hold().once(), hs.on_send().txn("after").hold_answer().once());
    let (one, two) = (send(&user, &room, "before"), send(&user, &room, "after"));
    before.arrived().await;
    after.arrived().await;
    hs.restart();
    assert_eq!(one.await.unwrap().unwrap_err().status(), None);
    assert_eq!(two.await.unwrap().unwrap_err().status(), None);
    before.release();
    user.say(&room, "next").await.unwrap();
    assert_eq!(bodies(&hs, &room).iter().filter(|body| *body == "before").count(), 0);
}

#[tokio::test]
async fn a_closed_port_refuses_and_opens_again() {
    let (hs, user, room) = start().await;
    hs.set_down(true).await;
    let error = user.say(&room, "x").await.unwrap_err();
    assert!(matches!(&error, MatrixError::Unanswered(error) if error.is_connect()), "{error}");
    hs.set_down(false).await;
    user.say(&room, "y").await.unwrap();
    assert_eq!(bodies(&hs, &room), ["y"]);
}

#[tokio::test]
async fn a_black_hole_accepts_and_does_nothing() {
    let (hs, user, room) = start().await;
    hs.set_black_hole(true);
    let (sends, limit) = (hs.sends(), Duration::from_millis(100));
    assert!(tokio::time::timeout(limit, user.say(&room, "x")).await.is_err());
    assert_eq!(hs.sends(), sends + 1);
    hs.set_black_hole(false);
    user.say(&room, "y").await.unwrap();
    assert_eq!(bodies(&hs, &room), ["y"]);
}

#[tokio::test]
async fn a_hanging_request_may_have_been_accepted() {
    let (hs, user, room) = start().await;
    let (before, after) =
        (hs.on_send().txn("before").hang().once(), hs.on_send().txn("after").hang_after_accept().once());
    let (one, two) = (send(&user, &room, "before"), send(&user, &room, "after"));
    before.arrived().await;
    after.arrived().await;
    one.abort();
    two.abort();
    user.send(&room, TYPE, "after", &text("again")).await.unwrap();
    assert_eq!(bodies(&hs, &room), ["after"]);
}

#[tokio::test]
async fn faults_can_be_narrowed_and_counted() {
    let (hs, user, room) = start().await;
    let other = user.create_room(&json!({})).await.unwrap();
    hs.on_send().room(&other).fail(500).always();
    hs.on_send().event_type("com.nova.x").fail(400).always();
    hs.on_send().body_contains("secret").fail(403).errcode("M_FORBIDDEN").times(2);
    let second = hs.on_send().txn("nth").nth(2).fail(502).once();
    user.say(&room, "x").await.unwrap();
    assert_eq!(user.say(&other, "x").await.unwrap_err().status(), Some(500));
    assert_eq!(user.send(&room, "com.nova.x", "t", &json!({})).await.unwrap_err().status(), Some(400));
    for _ in 0..2 {
        assert_eq!(user.say(&room, "a secret").await.unwrap_err().errcode(), "M_FORBIDDEN");
    }
    user.say(&room, "a secret").await.unwrap();
    user.send(&room, TYPE, "nth", &text("x")).await.unwrap();
    assert_eq!(user.send(&room, TYPE, "nth", &text("x")).await.unwrap_err().status(), Some(502));
    user.send(&room, TYPE, "nth", &text("x")).await.unwrap();
    assert_eq!(second.hits(), 1);
    let logged: Vec<_> = hs.requests().into_iter().filter(|request| request.txn.as_deref() == Some("nth")).collect();
    assert_eq!(logged.iter().map(|request| request.status).collect::<Vec<_>>(), [Some(200), Some(502), Some(200)]);
    assert_eq!((logged[0].kind, logged[0].user.as_deref()), (Kind::Send, Some(user.user_id())));
}

#[tokio::test]
async fn a_chance_depends_on_its_seed_alone() {
    let (hs, user, room) = start().await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let fault = hs.on_send().chance(0.2, 7).fail(500).always();
        let mut run = Vec::new();
        for _ in 0..50 {
            run.push(user.say(&room, "x").await.is_ok());
        }
        fault.remove();
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
    let failed = runs[0].iter().filter(|ok| !**ok).count();
    assert!((3..=20).contains(&failed), "{failed} of 50");
}

#[tokio::test]
async fn a_room_can_be_left_half_made_after_any_event() {
    let (hs, user, _) = start().await;
    for events in 0..9 {
        let name = format!("room{events}");
        let body = json!({ "room_alias_name": name, "name": "A room", "invite": ["@b:nova.test"] });
        hs.on_create_room().stop_after(events).fail(502).once();
        assert_eq!(user.create_room(&body).await.unwrap_err().status(), Some(502));
        let room = hs.alias(&format!("#{name}:nova.test")).unwrap();
        assert_eq!(hs.timeline(&room).len(), events);
    }
    hs.on_create_room().stop_after(3).drop_after_accept().once();
    let made = user.create_room(&json!({ "room_alias_name": "cut" })).await;
    assert_eq!(made.unwrap_err().status(), None);
    assert_eq!(hs.timeline(&hs.alias("#cut:nova.test").unwrap()).len(), 3);
}

#[tokio::test]
async fn a_room_creation_that_lost_the_race_is_409() {
    let (hs, user, _) = start().await;
    let fault = hs.on_create_room().hold().once();
    let body = json!({ "room_alias_name": "room" });
    let (racing, content) = (user.clone(), body.clone());
    let held = tokio::spawn(async move { racing.create_room(&content).await });
    fault.arrived().await;
    user.create_room(&body).await.unwrap();
    fault.release();
    let error = held.await.unwrap().unwrap_err();
    assert_eq!((error.status(), error.errcode()), (Some(409), "M_UNKNOWN"));
}

#[tokio::test]
async fn a_device_remembers_across_a_restart_for_24_hours() {
    let (hs, user, room) = start().await;
    let first = user.send(&room, TYPE, "t", &text("x")).await.unwrap();
    hs.restart();
    assert_eq!(user.send(&room, TYPE, "t", &text("x")).await.unwrap(), first);
    hs.advance(Duration::from_hours(23));
    assert_eq!(user.send(&room, TYPE, "t", &text("x")).await.unwrap(), first);
    hs.restart();
    hs.advance(Duration::from_hours(2));
    assert_ne!(user.send(&room, TYPE, "t", &text("x")).await.unwrap(), first);
}

#[tokio::test]
async fn forgotten_transactions_make_duplicates() {
    let (hs, user, room) = start().await;
    let first = user.send(&room, TYPE, "t", &text("x")).await.unwrap();
    hs.forget_transactions();
    assert_ne!(user.send(&room, TYPE, "t", &text("x")).await.unwrap(), first);
}

#[tokio::test]
async fn a_revoked_token_is_dead_and_its_device_goes_on_with_the_next() {
    let (hs, user, room) = start().await;
    let device = MatrixClient::login(&(&hs).into(), "user", "password", "DEVICE").await.unwrap();
    let first = device.send(&room, TYPE, "t", &text("x")).await.unwrap();
    hs.revoke_token(user.user_id());
    assert_eq!(device.send(&room, TYPE, "t", &text("x")).await.unwrap_err().errcode(), "M_UNKNOWN_TOKEN");
    let again = MatrixClient::login(&(&hs).into(), "user", "password", "DEVICE").await.unwrap();
    assert_eq!(again.send(&room, TYPE, "t", &text("x")).await.unwrap(), first);
    hs.restart();
    hs.delete_device(user.user_id(), "DEVICE");
    let again = MatrixClient::login(&(&hs).into(), "user", "password", "DEVICE").await.unwrap();
    assert_ne!(again.send(&room, TYPE, "t", &text("x")).await.unwrap(), first);
}

struct Ghosts {
    hs: FakeHomeserver,
    service: MatrixClient,
    room: String,
}

impl Ghosts {
    async fn start() -> Self {
        let hs = FakeHomeserver::builder()
            .appservice(Appservice {
                id: "nova".to_owned(),
                as_token: "as-token".to_owned(),
                sender_localpart: "nova-service".to_owned(),
                user_prefix: "nova-".to_owned(),
            })
            .start()
            .await;
        let home = HomeserverAddress::from(&hs);
        let service = MatrixClient::with_token(&home, "@nova-service:nova.test", "", "as-token");
        let room = service.create_room(&json!({ "preset": "public_chat" })).await.unwrap();
        for ghost in ["nova-1", "nova-2"] {
            let body = json!({ "type": "m.login.application_service", "username": ghost, "inhibit_login": true });
            service.call(reqwest::Method::POST, &["register"], &[], Some(&body)).await.unwrap();
            service.speaking_for(&format!("@{ghost}:nova.test"), None).join(&room).await.unwrap();
        }
        Self { hs, service, room }
    }

    fn ghost(&self, n: u32, device: Option<&str>) -> MatrixClient {
        self.service.speaking_for(&format!("@nova-{n}:nova.test"), device)
    }

    async fn device(&self, n: u32, device: &str) -> MatrixClient {
        let body = json!({
            "type": "m.login.application_service",
            "identifier": { "type": "m.id.user", "user": format!("nova-{n}") },
            "device_id": device,
        });
        let session = self.service.call(reqwest::Method::POST, &["login"], &[], Some(&body)).await.unwrap();
        let user = session["user_id"].as_str().unwrap();
        MatrixClient::with_token(self.service.home(), user, device, session["access_token"].as_str().unwrap())
    }
}

#[tokio::test]
async fn an_appservice_token_swallows_the_second_ghost_of_a_path() {
    let ghosts = Ghosts::start().await;
    ghosts.device(1, "D").await;
    ghosts.device(2, "D").await;
    for device in [None, Some("D")] {
        let txn = format!("{device:?}");
        let first = ghosts.ghost(1, device).send(&ghosts.room, TYPE, &txn, &text("one")).await.unwrap();
        assert_eq!(ghosts.ghost(2, device).send(&ghosts.room, TYPE, &txn, &text("two")).await.unwrap(), first);
    }
    assert_eq!(bodies(&ghosts.hs, &ghosts.room), ["one", "one"]);
}

#[tokio::test]
async fn ghosts_with_tokens_of_their_own_are_told_apart() {
    let ghosts = Ghosts::start().await;
    for n in [1, 2] {
        ghosts.device(n, "D").await.send(&ghosts.room, TYPE, "t", &text(&n.to_string())).await.unwrap();
    }
    assert_eq!(bodies(&ghosts.hs, &ghosts.room), ["1", "2"]);
}

#[tokio::test]
async fn an_appservice_token_without_a_device_forgets_at_a_restart() {
    let ghosts = Ghosts::start().await;
    ghosts.device(1, "D").await;
    let (without, with) = (ghosts.ghost(1, None), ghosts.ghost(1, Some("D")));
    let first = without.send(&ghosts.room, TYPE, "without", &text("x")).await.unwrap();
    assert_eq!(without.send(&ghosts.room, TYPE, "without", &text("x")).await.unwrap(), first);
    let kept = with.send(&ghosts.room, TYPE, "with", &text("x")).await.unwrap();
    ghosts.hs.restart();
    assert_ne!(without.send(&ghosts.room, TYPE, "without", &text("x")).await.unwrap(), first);
    assert_eq!(with.send(&ghosts.room, TYPE, "with", &text("x")).await.unwrap(), kept);
}

#[tokio::test]
async fn the_memory_of_paths_lasts_between_30_and_60_minutes() {
    let ghosts = Ghosts::start().await;
    let ghost = ghosts.ghost(1, None);
    let first = ghost.send(&ghosts.room, TYPE, "t", &text("x")).await.unwrap();
    ghosts.hs.advance(Duration::from_mins(29));
    assert_eq!(ghost.send(&ghosts.room, TYPE, "t", &text("x")).await.unwrap(), first);
    ghosts.hs.advance(Duration::from_mins(32));
    assert_ne!(ghost.send(&ghosts.room, TYPE, "t", &text("x")).await.unwrap(), first);
}

#[tokio::test]
async fn an_appservice_speaks_only_for_its_own() {
    let ghosts = Ghosts::start().await;
    let refused = |user: &str, device| {
        let client = ghosts.service.speaking_for(user, device);
        async move {
            let error = client.whoami().await.unwrap_err();
            (error.status(), error.errcode().to_owned())
        }
    };
    let forbidden = (Some(403), "M_FORBIDDEN".to_owned());
    assert_eq!(refused("@nova-3:nova.test", None).await, forbidden);
    assert_eq!(refused("@someone:nova.test", None).await, forbidden);
    assert_eq!(refused("@nova-1:nova.test", Some("X")).await, (Some(400), "M_UNKNOWN_DEVICE".to_owned()));
    let home = HomeserverAddress::from(&ghosts.hs);
    let taken = MatrixClient::register(&home, "nova-4", "password").await.unwrap_err();
    assert_eq!(taken.errcode(), "M_EXCLUSIVE");
}
