//! `Idempotency-Key`: a request that is repeated is answered with what it made, as that is now.

use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use shared::{
    ids::UserId,
    testing::{
        database::TestDatabase,
        eventually,
        nova::{Answer, NovaUser, Program, api_environment},
        proxy::PgProxy,
    },
};

struct Scene {
    database: TestDatabase,
    api: Program,
    ada: NovaUser,
    grace: NovaUser,
    conversation: String,
}

async fn scene() -> Scene {
    let database = TestDatabase::create().await;
    let api = Program::start("api", &api_environment(&database.url)).await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    Scene { database, api, ada, grace, conversation }
}

async fn keyed(user: &NovaUser, key: &str, conversation: &str, text: &str) -> Answer {
    let body = json!({"conversation_id": conversation, "plaintext": text});
    user.call_with("POST", "/messages", &[("Idempotency-Key", key)], Some(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_makes_nothing_new_and_is_answered_with_what_it_made_as_that_is_now() {
    let Scene { database, ada, conversation, .. } = &scene().await;
    let first = keyed(ada, "k1", conversation, "words").await.expect(201);
    assert_eq!(keyed(ada, "k1", conversation, "words").await.expect(201), first);
    let id = first["id"].as_str().unwrap();
    ada.edit(id, "other words").await.expect(200);
    // The same request, whose message says something else by now.
    let again = keyed(ada, "k1", conversation, "words").await.expect(201);
    assert_eq!((&again["id"], &again["plaintext"], &again["revision"]), (&json!(id), &json!("other words"), &json!(2)));
    assert_eq!(database.count("select count(*) from messages").await, 1);
    assert_eq!(database.count("select count(*) from outbox").await, 1);
    // Spaces and the order of fields are not what makes it another request.
    let body = format!("{{ \"plaintext\": \"words\",\n \"conversation_id\": \"{conversation}\" }}");
    let value: Value = serde_json::from_str(&body).unwrap();
    let again = ada.call_with("POST", "/messages", &[("Idempotency-Key", "k1")], Some(&value)).await.expect(201);
    assert_eq!(again["id"], json!(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_message_is_repeated_as_a_tombstone() {
    let Scene { ada, conversation, .. } = &scene().await;
    let first = keyed(ada, "k1", conversation, "words").await.expect(201);
    ada.delete(first["id"].as_str().unwrap()).await.expect(200);
    let again = keyed(ada, "k1", conversation, "words").await.expect(201);
    assert_eq!((&again["id"], &again["plaintext"]), (&first["id"], &Value::Null));
    assert!(again["deleted_at"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_one_request_of_one_user_for_a_day() {
    let Scene { database, ada, grace, conversation, .. } = &scene().await;
    let first = keyed(ada, "k1", conversation, "words").await.expect(201);
    let other = ada.create_conversation(&[grace.user_id]).await;
    // Also at once after a refusal: nothing of that is under way any more.
    for _ in 0..20 {
        for answer in [keyed(ada, "k1", conversation, "other words").await, keyed(ada, "k1", &other, "words").await] {
            assert_eq!((answer.status, answer.code()), (422, "idempotency_key_reused"));
        }
    }
    let hers = keyed(grace, "k1", conversation, "words").await.expect(201);
    assert_ne!(hers["id"], first["id"]);
    // Another path is another matter.
    let body = json!({"members": [grace.user_id]});
    ada.call_with("POST", "/conversations", &[("Idempotency-Key", "k1")], Some(&body)).await.expect(201);
    for key in ["", &"k".repeat(256)] {
        let answer = keyed(ada, key, conversation, "words").await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{}", answer.body);
        assert_eq!(answer.body["errors"][0]["field"], "Idempotency-Key");
    }
    keyed(ada, &"k".repeat(255), conversation, "words").await.expect(201);
    database.advance(Duration::from_hours(23)).await;
    assert_eq!(keyed(ada, "k1", conversation, "words").await.expect(201)["id"], first["id"]);
    database.advance(Duration::from_hours(2)).await;
    assert_ne!(keyed(ada, "k1", conversation, "words").await.expect(201)["id"], first["id"]);
    assert_eq!(database.count("select count(*) from idempotency_keys where fingerprint::text like '%words%'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_created_once_for_a_key() {
    let Scene { database, ada, grace, .. } = &scene().await;
    let create = async |members: Value| {
        let body = json!({"members": members});
        ada.call_with("POST", "/conversations", &[("Idempotency-Key", "k1")], Some(&body)).await
    };
    let first = create(json!([grace.user_id])).await.expect(201);
    assert_eq!(create(json!([grace.user_id])).await.expect(201), first);
    let other = create(json!([UserId::generate()])).await;
    assert_eq!((other.status, other.code()), (422, "idempotency_key_reused"));
    assert_eq!(database.count("select count(*) from conversations").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_leaves_its_key_free() {
    let Scene { database, ada, api, conversation, .. } = &scene().await;
    let alan = NovaUser::new(api);
    assert_eq!(keyed(&alan, "k1", conversation, "words").await.status, 403);
    assert_eq!(database.count("select count(*) from idempotency_keys").await, 0);
    let path = format!("/conversations/{conversation}/members/{}", alan.user_id);
    ada.call("PUT", &path, None).await.expect(200);
    keyed(&alan, "k1", conversation, "words").await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_request_is_under_way_its_repetition_is_told_so_and_waits_for_nothing() {
    let Scene { database, ada, conversation, .. } = &scene().await;
    let mut holder = database.pool.begin().await.unwrap();
    sqlx::query("select 1 from conversations for no key update").execute(&mut *holder).await.unwrap();
    let first = tokio::spawn({
        let (ada, conversation) = (ada.clone(), conversation.clone());
        async move { keyed(&ada, "k1", &conversation, "words").await }
    });
    eventually("the request has its key", || async {
        let locks = "select count(*) from pg_locks where locktype = 'advisory'
            and database = (select oid from pg_database where datname = current_database())";
        (database.count(locks).await > 0).then_some(())
    })
    .await;
    for text in ["words", "other words"] {
        let second = keyed(ada, "k1", conversation, text).await;
        assert_eq!((second.status, second.code()), (409, "idempotency_key_in_flight"));
    }
    holder.commit().await.unwrap();
    let first = first.await.unwrap().expect(201);
    assert_eq!(keyed(ada, "k1", conversation, "words").await.expect(201)["id"], first["id"]);
    assert_eq!(database.count("select count(*) from messages").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_statement_a_repetition_finds_what_was_committed_or_does_it_once() {
    let database = TestDatabase::create().await;
    let (mut survived, mut statement) = (false, 0);
    while !survived {
        statement += 1;
        assert!(statement < 40, "a POST never got through");
        let proxy = PgProxy::start(&database.url).await;
        let api = Program::start("api", &api_environment(proxy.url())).await;
        let ada = NovaUser::new(&api);
        let conversation = ada.create_conversation(&[UserId::generate()]).await;
        keyed(&ada, "warm", &conversation, "warm").await.expect(201);
        let pid = api.pid();
        proxy.on_statement(move |number| {
            if number == statement {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let key = format!("killed at {statement}");
        let body = json!({"conversation_id": conversation, "plaintext": key});
        let headers = [("Idempotency-Key", key.as_str())];
        let answered = match ada.try_call_with("POST", "/messages", &headers, Some(&body)).await {
            Ok(answer) => Some(answer.expect(201)["id"].clone()),
            Err(_) => None,
        };
        survived = answered.is_some() && proxy.statements() < statement;
        drop(api);
        let committed: Option<uuid::Uuid> = eventually("the dead request is over", || async {
            let idle = "select count(*) from pg_locks where locktype = 'advisory'
                and database = (select oid from pg_database where datname = current_database())";
            if database.count(idle).await > 0 {
                return None;
            }
            let found = sqlx::query_scalar("select resource_id from idempotency_keys where idempotency_key = $1");
            Some(found.bind(&key).fetch_optional(&database.pool).await.unwrap())
        })
        .await;
        let next = Program::start("api", &api_environment(&database.url)).await;
        let ada = ada.via(&next);
        let again = keyed(&ada, &key, &conversation, &key).await.expect(201);
        for known in committed.map(|id| json!(id)).into_iter().chain(answered) {
            assert_eq!(again["id"], known, "killed at {statement}");
        }
        let page = ada.get(&format!("/conversations/{conversation}/messages")).await;
        assert_eq!(page["messages"].as_array().unwrap().len(), 2, "killed at {statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_the_commit_and_the_answer_a_repetition_finds_what_was_committed() {
    let database = TestDatabase::create().await;
    let proxy = PgProxy::start(&database.url).await;
    let api = Program::start("api", &api_environment(proxy.url())).await;
    let ada = NovaUser::new(&api);
    let conversation = ada.create_conversation(&[UserId::generate()]).await;
    let pid = api.pid();
    proxy.on_commit(move || {
        let _ = kill_process(pid, Signal::KILL);
    });
    let body = json!({"conversation_id": conversation, "plaintext": "once"});
    let unanswered = ada.try_call_with("POST", "/messages", &[("Idempotency-Key", "key")], Some(&body)).await;
    assert!(unanswered.is_err());
    let committed: uuid::Uuid = eventually("the commit arrives", || async {
        let found = sqlx::query_scalar("select resource_id from idempotency_keys where idempotency_key = 'key'");
        found.fetch_optional(&database.pool).await.unwrap()
    })
    .await;
    let next = Program::start("api", &api_environment(&database.url)).await;
    let again = keyed(&ada.via(&next), "key", &conversation, "once").await.expect(201);
    assert_eq!(again["id"], json!(committed));
    assert_eq!(database.count("select count(*) from messages").await, 1);
}
