//! What programs read, and what wrong use is told.

use serde_json::{Value, json};
use shared::testing::homeserver::FakeHomeserver;

use super::{keys, type_in};
use crate::scene::{Home, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn programs_read_the_same_shapes_of_dead_letters_for_ever() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let (one, two) = (scene.dead(&fake, &conversation, "one").await, scene.dead(&fake, &conversation, "two").await);
    let dead = scene.outboxctl(&["list", "--limit", "1", "--json"]).await.json(0);
    assert_eq!(keys(&dead), "count items next_cursor state");
    assert_eq!(
        keys(&dead["items"][0]),
        "attempts cause cause_in_words conversation_id detail died_at enqueued_at errcode hint kind lane_id maybe_sent \
         outbox_id repair revision seq subject_id user_id"
    );
    assert_eq!(dead["items"][0]["subject_id"], json!(two), "newest first");
    let cursor = dead["next_cursor"].as_str().unwrap();
    let rest = scene.outboxctl(&["list", "--cursor", cursor, "--json"]).await.json(0);
    assert_eq!((&rest["items"][0]["subject_id"], &rest["next_cursor"]), (&json!(one), &Value::Null));
    assert_eq!(rest["items"].as_array().unwrap().len(), 1);

    let shown = scene.outboxctl(&["show", &one, "--json"]).await.json(0);
    assert_eq!(keys(&shown), "id message operations");
    assert_eq!(
        keys(&shown["message"]),
        "author_id conversation_id created_at deleted_at disabled edited_at message_id revision seq"
    );
    let operation = &shown["operations"][0];
    assert_eq!(
        keys(operation),
        "ahead attempts attempts_total behind conversation_id dead due_at event_id first_error kind lane_id \
         last_error maybe_sent_at outbox_id place revision sentence seq state subject_id timeline waited \
         waiting_for withdrawn"
    );
    assert_eq!(keys(&operation["dead"]), "cause cause_in_words died_at errcode hint");
    assert_eq!(keys(&operation["first_error"]), "at detail duration_ms errcode http_status outcome");

    let requeue = scene.outboxctl(&["requeue", &one, "--dry-run", "--json"]).await.json(0);
    assert_eq!(keys(&requeue), "conversations dry_run refused requeued");
    let of_conversation = &requeue["conversations"][0];
    assert_eq!(keys(of_conversation), "conversation_id lanes operations");
    assert_eq!(keys(&of_conversation["lanes"][0]), "after back before delivered_meanwhile lane_id waits waits_until");
    assert_eq!(
        keys(&of_conversation["operations"][0]),
        "cause conversation_id errcode kind lane_id outbox_id seq subject_id"
    );
    let refused = scene.outboxctl(&["requeue", &conversation, "--json"]).await.json(1);
    assert_eq!(keys(&refused["refused"][0]), "id reason reason_in_words");
    let discarded = scene.outboxctl(&["discard", &one, "--reason", "why", "--json"]).await.json(0);
    assert_eq!(keys(&discarded), "conversations discarded refused");
    assert_eq!(keys(&discarded["conversations"][0]), "conversation_id live operations");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_read_the_same_shapes_of_pauses_and_of_the_trail_for_ever() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let conversation = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let lane = format!("{conversation}/{conversation}");
    let json = async |arguments: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        scene.outboxctl(&arguments).await.json(0)
    };
    let paused = json(&["pause", "--all", "--for", "1h", "--reason", "why"]).await;
    assert_eq!(keys(&paused), "class conversation_id lane_id lanes scope until");
    json(&["pause", "--lane", &lane, "--for", "1h", "--reason", "why"]).await;
    let list = json(&["list", "--state", "paused"]).await;
    assert_eq!(keys(&list), "items next_cursor pauses state");
    assert_eq!(keys(&list["pauses"][0]), "paused_at paused_by reason scope until");
    assert_eq!(keys(&list["items"][0]), "conversation_id lane_class lane_id reason until waiting");
    json(&["pause", "--lane", &lane, "--reason", "why"]).await;
    scene.ada.post(&conversation, "live").await.expect(201);
    let list = json(&["list", "--state", "held"]).await;
    assert_eq!(keys(&list), "items next_cursor state");
    assert_eq!(keys(&list["items"][0]), "conversation_id lane_class lane_id oldest_at reason repair waiting");
    let list = json(&["list", "--state", "live"]).await;
    assert_eq!(
        keys(&list["items"][0]),
        "conversation_id enqueued_at failures first hold kind lane_due_at lane_id last_errcode maybe_sent outbox_id seq \
         subject_id user_id"
    );
    let resumed = json(&["resume", "--lane", &lane]).await;
    assert_eq!(keys(&resumed), "class conversation_id ended lane_id lanes_going_on scope still_paused");
    assert_eq!(resumed["still_paused"][0]["scope"], "all");
    let trail = json(&["audit"]).await;
    assert_eq!(keys(&trail), "items next_cursor");
    assert_eq!(
        keys(&trail["items"][0]),
        "acted_at acted_by affected arguments audit_id conversation_id reason scope task_id verb"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_is_told_apart_from_failure_and_changes_nothing() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let somebody = uuid::Uuid::now_v7().to_string();
    for wrong in [
        vec!["pause", "--all"],
        vec!["pause", "--reason", "why"],
        vec!["pause", "--all", "--class", "chat", "--reason", "why"],
        vec!["pause", "--all", "--reason", " "],
        vec!["pause", "--all", "--reason", "why", "--until", "2020-01-01T00:00:00Z"],
        vec!["pause", "--all", "--reason", "why", "--until", "tomorrow"],
        vec!["pause", "--all", "--reason", "why", "--for", "0s"],
        vec!["pause", "--all", "--reason", "why", "--for", "1h", "--until", "2099-01-01T00:00:00Z"],
        vec!["pause", "--lane", &somebody, "--reason", "why"],
        vec!["resume"],
        vec!["resume", "--held", "--all"],
        vec!["resume", "--all", "--because", "why"],
        vec!["requeue"],
        vec!["requeue", &somebody, "--cause", "own_fault"],
        vec!["requeue", &somebody, "--conversation", &somebody],
        vec!["discard", &somebody],
        vec!["show", "not-an-id"],
        vec!["list", "--cursor", "not-a-cursor"],
        vec!["list", "--limit", "0"],
        vec!["list", "--state", "held", "--cause", "own_fault"],
        vec!["list", "--state", "held", "--kind", "edit"],
        vec!["list", "--state", "delivered", "--errcode", "M_UNKNOWN"],
        vec!["list", "--groups", "--kind", "edit"],
        vec!["list", "--text", "ab"],
        vec!["list", "--since", "soon"],
        vec!["list", "--since", "1h", "--until", "2h"],
        vec!["requeue", &somebody, "--all"],
        vec!["requeue", &somebody, "--rate", "5"],
        vec!["requeue", "--all", "--kind", "edit"],
        vec!["requeue", "--all", "--rate", "0"],
        vec!["requeue", "--all", "--dry-run", "--detach"],
        vec!["expire", &somebody],
        vec!["complete", &somebody],
        vec!["complete", &somebody, "--event-id", "nonsense", "--reason", "why"],
        vec!["explain"],
        vec!["timeline"],
        vec!["tasks", "--reason", "why"],
        vec!["tasks", &somebody, "--cancel", &somebody],
        vec!["repair", "rejoin", "--reason", "why"],
        vec!["repair", "rejoin", "--all"],
        vec!["repair", "rejoin", "--all", "--conversation", &somebody, "--reason", "why"],
        vec!["repair", "rejoin", "--conversation", &somebody, "--dry-run"],
        vec!["repair", "rejoin", "--all", "--errcode", "M_FORBIDDEN", "--reason", "why"],
        vec!["repair", "reinvite", "--conversation", &somebody, "--errcode", "M_FORBIDDEN", "--reason", "why"],
        vec!["completion"],
        vec!["pause", "--all", "--reason", "why", "--as", ""],
    ] {
        let said = scene.outboxctl(&wrong).await;
        assert!(!said.complaint(2).is_empty(), "{wrong:?}");
    }
    for nothing in [
        vec!["requeue", somebody.as_str()],
        vec!["discard", &somebody, "--reason", "why"],
        vec!["expire", &somebody, "--reason", "why"],
    ] {
        assert!(scene.outboxctl(&nothing).await.text(1).contains("nothing is known"));
    }
    assert!(type_in("postgres://127.0.0.1:1/x", &["list"]).await.complaint(1).len() > 1);
    assert!(type_in("nonsense", &["list"]).await.complaint(2).contains("DATABASE_URL"));
    assert_eq!(scene.database.count("select count(*) from audit_log").await, 0);
    assert_eq!(scene.database.count("select count(*) from pauses").await, 0);
    assert!(
        scene.outboxctl(&["complete", &somebody, "--reason", "why"]).await.complaint(1).contains("nothing is known")
    );
    for verb in [
        "stats",
        "list",
        "show",
        "explain",
        "timeline",
        "requeue",
        "discard",
        "expire",
        "complete",
        "tasks",
        "pause",
        "resume",
        "audit",
        "completion",
    ] {
        let help = scene.outboxctl(&[verb, "--help"]).await;
        assert!(help.text(0).contains("Examples:"), "{}", help.out);
    }
}
