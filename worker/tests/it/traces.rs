//! One trace from a request to the API to the request to the homeserver, and nothing of it in anybody's way.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use shared::{
    outbox,
    testing::{
        database::TestDatabase,
        eventually,
        homeserver::FakeHomeserver,
        nova::{Environment, NovaUser, Program, api_environment, worker_environment},
        traces::{ToldSpan, TraceCollector},
    },
};
use sqlx::AssertSqlSafe;

use crate::scene::{Home, Scene, dead, id, metric};

/// A trace that somebody began before us.
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

struct Stage {
    fake: FakeHomeserver,
    scene: Scene,
}

impl Stage {
    async fn set(options: &[(String, String)]) -> Self {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let database = TestDatabase::create().await;
        let with = |mut environment: Environment| {
            environment.extend(options.iter().cloned());
            environment
        };
        let api = Program::start("api", &with(api_environment(&database.url))).await;
        let worker_environment = with(worker_environment(&database.url, &home.account));
        let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
        Self { fake, scene: Scene { database, api, worker_environment, ada, grace } }
    }

    /// Posts a message as a part of somebody's trace.
    async fn post(&self, conversation: &str, flags: &str) -> String {
        let parent = format!("00-{TRACE_ID}-{CALLER}-{flags}");
        let body = json!({"conversation_id": conversation, "plaintext": "traced"});
        id(&self.scene.ada.call_with("POST", "/messages", &[("traceparent", &parent)], Some(&body)).await.expect(201))
    }

    async fn stored(&self, table: &str) -> i64 {
        let sql = format!("select count(*) from {table} where trace is not null");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.scene.database.pool).await.unwrap()
    }
}

/// The spans of the caller's trace, once there are so many, in the order in which they began.
async fn traced(collector: &TraceCollector, count: usize) -> Vec<ToldSpan> {
    eventually(&format!("{count} spans"), || async {
        let mut spans = collector.spans();
        spans.retain(|span| span.trace_id == TRACE_ID);
        spans.sort_by_key(|span| span.time);
        (spans.len() >= count).then_some(spans)
    })
    .await
}

fn named<'a>(spans: &'a [ToldSpan], name: &str) -> Vec<&'a ToldSpan> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_its_commit_the_wait_every_attempt_and_its_put_are_one_trace() {
    let collector = TraceCollector::start().await;
    let stage = Stage::set(&collector.environment()).await;
    let worker = stage.scene.worker().await;
    reqwest::get(format!("{}/health/live", stage.scene.api.url())).await.unwrap();
    let (conversation, _) = stage.scene.begun().await;
    stage.fake.on_send().fail(500).errcode("M_UNKNOWN").once();
    let message = stage.post(&conversation, "01").await;
    stage.scene.ada.delivered(&message).await;
    let spans = traced(&collector, 8).await;
    let [request] = named(&spans, "POST /messages")[..] else { panic!("one request: {spans:?}") };
    assert_eq!((request.service.as_str(), request.parent_id.as_str()), ("matrix-outbox-api", CALLER));
    assert_eq!(request.attributes["http.response.status_code"], "201");
    let [commit] = named(&spans, "commit")[..] else { panic!("one commit: {spans:?}") };
    assert_eq!(commit.parent_id, request.span_id);
    let (waits, attempts, puts) = (named(&spans, "wait"), named(&spans, "attempt"), named(&spans, "PUT"));
    assert_eq!((spans.len(), waits.len(), attempts.len(), puts.len()), (8, 2, 2, 2), "{spans:?}");
    for (attempt, put) in attempts.iter().zip(&puts) {
        assert_eq!((attempt.service.as_str(), &attempt.parent_id), ("matrix-outbox-worker", &request.span_id));
        assert_eq!(put.parent_id, attempt.span_id);
        assert_eq!(
            (&attempt.attributes["outbox.kind"], &attempt.attributes["lane.class"]),
            (&"message".into(), &"chat".into())
        );
    }
    assert!(waits.iter().all(|wait| wait.parent_id == request.span_id && wait.time.0 <= wait.time.1));
    assert_eq!((attempts[0].failed.as_deref(), attempts[1].failed.as_deref()), (Some("ambiguous"), None));
    assert_eq!((puts[0].failed.as_deref(), puts[1].failed.as_deref()), (Some("server_error"), None));
    assert_eq!(puts[0].attributes["matrix.errcode"], "M_UNKNOWN");
    assert_eq!(attempts[1].attributes["outcome"], "delivered");
    assert!(metric(&worker, "trace_exports_total{result=\"ok\"}").await >= 1.0);
    assert!(!collector.spans().iter().any(|span| span.name.contains("/health")), "nobody looks at those");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_survives_a_dead_letter_and_its_requeue() {
    let collector = TraceCollector::start().await;
    let stage = Stage::set(&collector.environment()).await;
    let _worker = stage.scene.worker().await;
    let (conversation, _) = stage.scene.begun().await;
    stage.fake.on_send().fail(413).once();
    let message = stage.post(&conversation, "01").await;
    dead(&stage.scene, &message).await;
    assert_eq!(stage.stored("dead_letters").await, 1);
    let letter = sqlx::query_scalar("select outbox_id from dead_letters").fetch_one(&stage.scene.database.pool).await;
    let mut tx = stage.scene.database.pool.begin().await.unwrap();
    let back = outbox::requeue(&mut tx, conversation.parse().unwrap(), letter.unwrap()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(back, outbox::Requeued::Back(1));
    stage.scene.ada.delivered(&message).await;
    let spans = traced(&collector, 8).await;
    let outcomes: Vec<&str> = named(&spans, "attempt").iter().map(|span| span.attributes["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["own_fault", "delivered"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_deletes_reactions_members_and_calls_are_parts_of_their_requests_too() {
    let collector = TraceCollector::start().await;
    let stage = Stage::set(&collector.environment()).await;
    let worker = stage.scene.worker().await;
    let (conversation, _) = stage.scene.begun().await;
    let ada = &stage.scene.ada;
    let message = id(&ada.post(&conversation, "first").await.expect(201));
    ada.delivered(&message).await;
    // One after the other, since what has not left is taken back with its message.
    ada.edit(&message, "second").await.expect(200);
    stage.scene.drained().await;
    ada.call("PUT", &format!("/messages/{message}/reactions/+"), None).await.expect(201);
    stage.scene.drained().await;
    ada.call("DELETE", &format!("/messages/{message}/reactions/+"), None).await.expect(204);
    stage.scene.drained().await;
    ada.delete(&message).await.expect(200);
    let another = NovaUser::new(&stage.scene.api);
    ada.call("PUT", &format!("/conversations/{conversation}/members/{}", another.user_id), None).await.expect(200);
    let call =
        json!({"conversation_id": conversation, "sdp_offer": "v=0", "party_id": "PHONE", "invitee": another.user_id});
    ada.call("POST", "/calls/initiate", Some(&call)).await.expect(201);
    stage.scene.drained().await;
    for (request, kind) in [
        ("PATCH /messages/{id}", "edit"),
        ("PUT /messages/{id}/reactions/{key}", "react"),
        ("DELETE /messages/{id}/reactions/{key}", "redact"),
        ("DELETE /messages/{id}", "redact"),
        ("PUT /conversations/{id}/members/{user_id}", "invite"),
        ("POST /calls/initiate", "call_invite"),
    ] {
        eventually(&format!("an attempt of {kind}, a part of {request}"), || async {
            let spans = collector.spans();
            let request = spans.iter().find(|span| span.name == request)?;
            spans.iter().find(|span| {
                let is_part = span.parent_id == request.span_id && span.trace_id == request.trace_id;
                is_part && span.name == "attempt" && span.attributes["outbox.kind"] == kind
            })?;
            Some(())
        })
        .await;
    }
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_and_for_what_nobody_looks_at_nothing_is_stored() {
    let collector = TraceCollector::start().await;
    let mut few = collector.environment().to_vec();
    few.push(("TRACES_RATIO".to_owned(), "0".to_owned()));
    for options in [Vec::new(), few] {
        let stage = Stage::set(&options).await;
        let conversation = stage.scene.ada.create_conversation(&[stage.scene.grace.user_id]).await;
        stage.scene.ada.post(&conversation, "untraced").await.expect(201);
        stage.post(&conversation, "00").await;
        assert_eq!(stage.stored("outbox").await, 0);
        // Whoever began a trace looks at it, whatever part of ours is kept.
        stage.post(&conversation, "01").await;
        assert_eq!(stage.stored("outbox").await, 1);
        let worker = stage.scene.worker().await;
        stage.scene.drained().await;
        drop(worker);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_delays_no_request_and_no_end() {
    let collector = TraceCollector::silent().await;
    let stage = Stage::set(&collector.environment()).await;
    let mut worker = stage.scene.worker().await;
    let (conversation, _) = stage.scene.begun().await;
    for _ in 0..20 {
        // Shorter than a batch is waited for.
        let message = tokio::time::timeout(Duration::from_secs(4), stage.post(&conversation, "01")).await.unwrap();
        stage.scene.ada.delivered(&message).await;
    }
    worker.signal(Signal::TERM);
    let ended = tokio::time::timeout(Duration::from_secs(15), worker.ended()).await;
    assert!(ended.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_told_when_the_process_ends() {
    let collector = TraceCollector::start().await;
    let mut late = collector.environment().to_vec();
    late[1].1 = "600000".to_owned();
    let stage = Stage::set(&late).await;
    let mut worker = stage.scene.worker().await;
    let (conversation, _) = stage.scene.begun().await;
    let message = stage.post(&conversation, "01").await;
    stage.scene.ada.delivered(&message).await;
    assert!(collector.spans().is_empty());
    worker.signal(Signal::TERM);
    assert!(worker.ended().await.success());
    let spans = traced(&collector, 3).await;
    assert_eq!(spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["wait", "attempt", "PUT"]);
}
