//! By what clients reach each other: servers, and credentials for them.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use shared::{
    database::unix_time,
    ids::MatrixUserId,
    seal::KeyRing,
    testing::nova::CONTENT_KEYS,
    turn::{self, Answer, Credentials},
};

use super::{Scene, say};

const TURN: (&str, &str) = ("TURN_SERVER_URL", "turn:turn.example:3478?transport=udp,turns:turn.example:5349");
const STUN: (&str, &str) = ("STUN_SERVER_URL", "stun:turn.example:3478");

async fn servers(scene: &Scene, call: Option<&str>) -> Value {
    let asked = call.map(|call| format!("?call_id={call}")).unwrap_or_default();
    scene.ada.get(&format!("/calls/ice_servers{asked}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_servers_there_are_none() {
    let scene = Scene::new().await;
    let answer = scene.ada.call("GET", "/calls/ice_servers", None).await;
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.expect(200), json!({"ice_servers": [], "ttl_seconds": null, "expires_at": null}));
    let scene = Scene::with(&[STUN]).await;
    let expected = json!({"ice_servers": [{"urls": [STUN.1]}], "ttl_seconds": null, "expires_at": null});
    assert_eq!(servers(&scene, None).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn static_credentials_are_as_configured_and_do_not_expire() {
    let scene = Scene::with(&[STUN, TURN, ("TURN_USERNAME", "name"), ("TURN_PASSWORD", "password")]).await;
    let urls: Vec<&str> = TURN.1.split(',').collect();
    let expected = json!({
        "ice_servers": [{"urls": [STUN.1]}, {"urls": urls, "username": "name", "credential": "password"}],
        "ttl_seconds": null,
        "expires_at": null,
    });
    assert_eq!(servers(&scene, None).await, expected);
}

/// When credentials end, and what follows in their name.
fn parts(server: &Value) -> (i64, String) {
    let (until, rest) = server["username"].as_str().unwrap().split_once(':').unwrap();
    (until.parse().unwrap(), rest.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_expire_and_are_of_one_user_and_one_call() {
    let scene = Scene::with(&[TURN, ("TURN_SHARED_SECRET", "secret"), ("TURN_CREDENTIAL_TTL", "20m")]).await;
    let answer = servers(&scene, None).await;
    assert_eq!(answer["ttl_seconds"], 1200);
    let server = &answer["ice_servers"][0];
    let (until, name) = parts(server);
    assert!((until - unix_time() - 1200).abs() < 60, "{until}");
    assert_eq!(name, scene.ada.user_id.to_string());
    let call = scene.ring().await;
    let other = scene.ring().await;
    let mut credentials = BTreeSet::from([server["credential"].as_str().unwrap().to_owned()]);
    for (user, call) in [(&scene.ada, &call), (&scene.grace, &call), (&scene.ada, &other)] {
        let answer = user.get(&format!("/calls/ice_servers?call_id={call}")).await;
        let server = &answer["ice_servers"][0];
        assert_eq!(parts(server).1, format!("{}:{call}", user.user_id));
        credentials.insert(server["credential"].as_str().unwrap().to_owned());
    }
    assert_eq!(credentials.len(), 4, "no two are the same");
}

/// What a TURN server that has this secret makes of a name.
fn made_by(secret: &str, server: &Value) -> String {
    let (until, name) = parts(server);
    let until = time::OffsetDateTime::from_unix_timestamp(until).unwrap();
    let mut ids = name.split(':');
    let user_id = ids.next().unwrap().parse().unwrap();
    let call_id = ids.next().map(|id| id.parse().unwrap());
    let made = turn::credentials(&secrecy::SecretString::from(secret), until, user_id, call_id);
    secrecy::ExposeSecret::expose_secret(&made.password).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_secret_is_replaced_clients_get_credentials_of_both() {
    let scene = Scene::with(&[TURN, ("TURN_SHARED_SECRET", "old")]).await;
    // The API first or the TURN server first: at each step the server knows one of those that clients are given.
    for (configured, known_to_server) in [("old", "old"), ("new,old", "old"), ("new,old", "new"), ("new", "new")] {
        let options = [TURN, ("TURN_SHARED_SECRET", configured)];
        let api = shared::testing::nova::Program::start("api", &super::with(&scene.database.url, &options)).await;
        let answer = scene.ada.via(&api).get("/calls/ice_servers").await;
        let servers = answer["ice_servers"].as_array().unwrap();
        assert_eq!(servers.len(), configured.split(',').count());
        let fit = servers.iter().filter(|server| server["credential"] == made_by(known_to_server, server)).count();
        assert_eq!(fit, 1, "{configured} where the server has {known_to_server}");
        let newest = configured.split(',').next().unwrap();
        assert_eq!(servers[0]["credential"], made_by(newest, &servers[0]), "the newest comes first");
        let log = api.log().join("\n");
        assert!(!servers.iter().any(|server| log.contains(server["credential"].as_str().unwrap())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_homeservers_servers_are_given_while_their_credentials_are_good() {
    let scene = Scene::with(&[TURN, ("TURN_SHARED_SECRET", "secret"), ("TURN_FROM_HOMESERVER", "true")]).await;
    let keys = KeyRing::parse(CONTENT_KEYS).unwrap();
    let account: MatrixUserId = "@nova-service:nova.test".parse().unwrap();
    assert_eq!(servers(&scene, None).await["ice_servers"].as_array().unwrap().len(), 1);
    assert!(turn::may_ask(&scene.database.pool, &account).await.unwrap());
    let credentials = Credentials { username: "their name".into(), password: "their password".to_owned().into() };
    let fetched = Answer {
        uris: vec!["turn:turn.nova.test".to_owned()],
        credentials: Some(credentials),
        ttl: Duration::from_mins(10),
    };
    turn::keep(&scene.database.pool, &keys, &account, &fetched).await.unwrap();
    let answer = servers(&scene, None).await;
    let expected = json!({"urls": ["turn:turn.nova.test"], "username": "their name", "credential": "their password"});
    assert_eq!(answer["ice_servers"][1], expected);
    let ttl = answer["ttl_seconds"].as_i64().unwrap();
    assert!((540..=600).contains(&ttl), "all can be used for {ttl} s");
    let sealed = "select count(*) from turn_servers where encode(password, 'escape') like '%their%'";
    assert_eq!(scene.database.count(sealed).await, 0);
    scene.database.advance(Duration::from_secs(9 * 60 + 5)).await;
    assert_eq!(servers(&scene, None).await["ice_servers"].as_array().unwrap().len(), 1, "too old to be of use");
    // Nor where that is not configured.
    turn::keep(&scene.database.pool, &keys, &account, &fetched).await.unwrap();
    assert_eq!(servers(&scene, None).await["ice_servers"].as_array().unwrap().len(), 2);
    let api = shared::testing::nova::Program::start("api", &super::with(&scene.database.url, &[])).await;
    assert_eq!(scene.ada.via(&api).get("/calls/ice_servers").await["ice_servers"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_call_are_for_as_long_as_it_is_not_over() {
    let scene = Scene::with(&[TURN, ("TURN_SHARED_SECRET", "secret")]).await;
    let call = scene.talk().await;
    servers(&scene, Some(&call)).await;
    say(&scene.ada, &call, "hangup", json!({})).await.expect(200);
    let refused = scene.ada.call("GET", &format!("/calls/ice_servers?call_id={call}"), None).await;
    assert_eq!((refused.status, refused.code()), (409, "call_ended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_does_not_start_with_servers_that_clients_could_not_use_and_shows_no_secret() {
    let database = shared::testing::database::TestDatabase::create().await;
    for (options, named) in [
        (vec![TURN], "TURN_SERVER_URL"),
        (vec![TURN, ("TURN_SHARED_SECRET", "hunter2"), ("TURN_PASSWORD", "hunter2")], "TURN_SHARED_SECRET"),
        (vec![("TURN_SERVER_URL", "turn:name:hunter2@turn.example")], "TURN_SERVER_URL"),
        (vec![("MATRIX_VOIP_VERSION", "2")], "MATRIX_VOIP_VERSION"),
        (vec![("CALLS_PER_CALLER", "many")], "CALLS_PER_CALLER"),
    ] {
        let mut api = shared::testing::nova::Program::spawn("api", &super::with(&database.url, &options));
        assert_eq!(api.ended().await.code(), Some(2));
        let log = api.log().join("\n");
        assert!(log.contains(&format!("{named}: ")), "{log}");
        assert!(!log.contains("hunter2"), "{log}");
    }
}
