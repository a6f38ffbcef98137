//! Conversations and messages as clients see them.

use serde_json::json;
use shared::testing::{
    database::TestDatabase,
    nova::{NovaUser, Program, api_environment},
};

async fn api() -> (TestDatabase, Program) {
    let database = TestDatabase::create().await;
    let api = Program::start("api", &api_environment(&database.url)).await;
    (database, api)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_answered_with_its_place_and_reads_the_same_to_every_member() {
    let (_database, api) = api().await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    let first = ada.post(&conversation, "one").await.expect(201);
    let second = grace.post(&conversation, "two").await.expect(201);
    assert!(second["seq"].as_i64() > first["seq"].as_i64());
    assert_eq!(first["plaintext"], "one");
    assert_eq!(first["author_id"], json!(ada.user_id));
    assert_eq!(first["revision"], 1);
    assert_eq!(first["matrix"], json!({"delivery": "pending", "event_id": null, "room_id": null}));
    let id = first["id"].as_str().unwrap();
    for reader in [&ada, &grace] {
        assert_eq!(reader.call("GET", &format!("/messages/{id}"), None).await.expect(200), first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_creator_is_a_member_and_nobody_is_one_twice() {
    let (_database, api) = api().await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let body = json!({"members": [grace.user_id, ada.user_id, grace.user_id], "name": "Engines"});
    let created = ada.call("POST", "/conversations", Some(&body)).await.expect(201);
    let mut members = vec![json!(ada.user_id), json!(grace.user_id)];
    members.sort_by_key(ToString::to_string);
    assert_eq!(created["members"], json!(members));
    assert_eq!(created["name"], "Engines");
    let id = created["id"].as_str().unwrap();
    assert_eq!(grace.call("GET", &format!("/conversations/{id}"), None).await.expect(200), created);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_matrix_nothing_is_enqueued_and_the_message_says_so() {
    let database = TestDatabase::create().await;
    let mut environment = api_environment(&database.url);
    environment.insert("MATRIX_ENABLED".into(), "false".into());
    let api = Program::start("api", &environment).await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    let message = ada.post(&conversation, "only here").await.expect(201);
    assert_eq!(message["matrix"]["delivery"], "disabled");
    assert_eq!(database.count("select count(*) from outbox").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_lane_refuses_new_messages_and_keeps_what_it_has() {
    let database = TestDatabase::create().await;
    let mut environment = api_environment(&database.url);
    environment.insert("OUTBOX_LANE_LIMIT".into(), "3".into());
    let api = Program::start("api", &environment).await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    for n in 0..3 {
        ada.post(&conversation, &format!("{n}")).await.expect(201);
    }
    let refused = ada.post(&conversation, "one too many").await;
    assert_eq!((refused.status, refused.code()), (429, "lane_full"));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(database.count("select count(*) from messages").await, 3);
    assert_eq!(database.count("select open::bigint from lanes").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_nowhere_in_the_database_as_it_was_typed() {
    let (database, api) = api().await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    ada.post(&conversation, "a canary called Vasquez").await.expect(201);
    let tables: Vec<String> = sqlx::query_scalar(
        "select tablename::text from pg_tables where schemaname = 'public' and tablename not like '\\_sqlx%'",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert!(tables.len() > 8);
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select t::text from {table} t")))
            .fetch_all(&database.pool)
            .await
            .unwrap();
        // bytea columns show as hex.
        let hex = "5661737175657a";
        assert!(rows.iter().all(|row| !row.contains("Vasquez") && !row.contains(hex)), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_send_no_notification_inside_their_transaction() {
    let (database, _api) = api().await;
    let triggers = "select count(*) from pg_trigger where not tgisinternal and tgrelid <> 'audit_log'::regclass";
    assert_eq!(database.count(triggers).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests_by_route_and_never_by_id() {
    let (_database, api) = api().await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    ada.call("GET", &format!("/conversations/{conversation}"), None).await.expect(200);
    let text = reqwest::get(format!("{}/metrics", api.url())).await.unwrap().text().await.unwrap();
    assert!(text.contains(r#"http_requests_total{route="/conversations/{id}",method="GET",status="200"} 1"#), "{text}");
    assert!(!text.contains(&conversation));
}
