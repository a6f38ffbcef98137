//! What devices say to each other is nobody else's: it lies sealed, and is in no log, metric or problem.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::json;
use shared::testing::{
    database::TestDatabase,
    nova::{NovaUser, Program},
};
use sqlx::AssertSqlSafe;

use super::{Scene, id, merged, offer, say, with};

const CANARY: &str = "canary-5d1f-in-a-session";

/// Every table of a database, as text.
async fn tables(database: &TestDatabase) -> Vec<(String, String)> {
    let names = "select tablename::text from pg_tables where schemaname = 'public'";
    let names: Vec<String> = sqlx::query_scalar(names).fetch_all(&database.pool).await.unwrap();
    let mut tables = Vec::new();
    for name in names {
        let rows = format!("select coalesce(string_agg(t::text, e'\\n'), '') from {name} t");
        let rows: String = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_one(&database.pool).await.unwrap();
        tables.push((name, rows));
    }
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_candidates_are_sealed_and_in_no_log_or_metric_or_problem_and_secrets_are_nowhere() {
    let secret = "canary-turn-secret";
    let options = [
        ("RUST_LOG", "trace"),
        ("TURN_SERVER_URL", "turn:turn.example"),
        ("TURN_SHARED_SECRET", secret),
        ("CALLS_PER_CALLER", "2"),
    ];
    let scene = Scene::with(&options).await;
    let second = Program::start("api", &with(&scene.database.url, &options)).await;
    let stranger = NovaUser::new(&scene.api);
    let mut socket = scene.grace.listen(None).await;
    let key = [("Idempotency-Key", "k")];
    let metadata = json!({"sdp_stream_metadata": {(CANARY): {"purpose": CANARY}}});
    let body = merged(offer(&scene.conversation, json!({"sdp_offer": CANARY})), metadata.clone());
    let call = id(&scene.ada.call_with("POST", "/calls/initiate", &key, Some(&body)).await.expect(201));
    let candidates = json!({"candidates": [{"candidate": CANARY, "usernameFragment": CANARY}]});
    let answer = json!({"sdp_answer": CANARY});
    let negotiate = json!({"description": {"type": "offer", "sdp": CANARY}});
    let mut problems = Vec::new();
    for (user, what, body) in [
        (&stranger, "answer", &answer),
        (&scene.ada, "answer", &answer),
        (&scene.ada, "candidates", &candidates),
        (&scene.grace, "answer", &answer),
        (&scene.grace, "negotiate", &negotiate),
        (&scene.ada, "metadata", &metadata),
    ] {
        let answered = say(user, &call, what, body.clone()).await;
        if answered.status != 200 {
            problems.push(answered.body.to_string());
        }
    }
    scene.ada.get(&format!("/calls/ice_servers?call_id={call}")).await;
    for _ in 0..2 {
        let refused = scene.ada.via(&second).call("POST", "/calls/initiate", Some(&body)).await;
        if refused.status != 201 {
            problems.push(refused.body.to_string());
        }
    }
    let too_large = json!({"sdp_answer": CANARY.repeat(2_000)});
    problems.push(say(&scene.grace, &call, "answer", too_large).await.body.to_string());
    while socket.frame().await["kind"] != "sdp_stream_metadata_changed" {}
    assert_eq!(problems.len(), 4, "{problems:?}");

    let mut places = tables(&scene.database).await;
    for (name, api) in [("first", &scene.api), ("second", &second)] {
        places.push((format!("the log of the {name}"), api.log().join("\n")));
        let metrics = reqwest::get(format!("{}/metrics", api.url())).await.unwrap().text().await.unwrap();
        places.push((format!("the metrics of the {name}"), metrics));
    }
    places.extend(problems.into_iter().map(|problem| ("a problem".to_owned(), problem)));
    let looked_into = places.iter().map(|(_, content)| content.len()).sum::<usize>();
    assert!(looked_into > 20_000, "it is there that it would be: {looked_into} bytes");
    for needle in [CANARY, secret] {
        let hex = needle.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        for form in [needle.to_owned(), hex, BASE64.encode(needle)] {
            let found: Vec<&str> =
                places.iter().filter(|(_, content)| content.contains(&form)).map(|(name, _)| name.as_str()).collect();
            assert_eq!(found, [""; 0], "{form}");
        }
    }
    let heard = String::from_utf8_lossy(&socket.bytes()).into_owned();
    assert!(heard.contains(CANARY), "it was said");
}
