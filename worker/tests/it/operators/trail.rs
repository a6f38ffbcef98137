//! The trail of what operators did.

use std::collections::BTreeSet;

use serde_json::Value;
use shared::testing::homeserver::FakeHomeserver;

use super::reads;
use crate::scene::{Home, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn each_act_is_in_the_trail_once_with_who_and_why_and_is_counted() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    reads(&worker, "outbox_requeued_total", 0.0).await;
    let (one, two) = (scene.dead(&fake, &conversation, "one").await, scene.dead(&fake, &conversation, "two").await);
    scene.outboxctl(&["requeue", &one, "--as", "grace", "--reason", "mended"]).await.text(0);
    scene.outboxctl(&["discard", &two, "--reason", "spam"]).await.text(0);
    scene.outboxctl(&["pause", "--class", "call", "--reason", "quiet"]).await.text(0);
    scene.outboxctl(&["resume", "--class", "call"]).await.text(0);
    // None of these does anything.
    scene.outboxctl(&["requeue", &one]).await.text(1);
    scene.outboxctl(&["discard", &two, "--reason", "spam"]).await.text(1);
    scene.outboxctl(&["resume", "--all"]).await.complaint(1);
    scene.outboxctl(&["pause", "--conversation", &one, "--reason", "no conversation"]).await.complaint(1);
    let trail = scene.trail().await;
    let rows: Vec<_> = trail
        .iter()
        .map(|row| (row["acted_by"].as_str().unwrap(), row["verb"].as_str().unwrap(), row["reason"].as_str()))
        .collect();
    let expected = [
        ("ada", "resume", None),
        ("ada", "pause", Some("quiet")),
        ("ada", "discard", Some("spam")),
        ("grace", "requeue", Some("mended")),
    ];
    assert_eq!(rows, expected);
    let said = scene.outboxctl(&["audit", "--conversation", &conversation]).await;
    assert_eq!(said.text(0).lines().count(), 3, "{}", said.out);
    reads(&worker, "outbox_requeued_total", 1.0).await;
    reads(&worker, "outbox_discarded_total", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_is_read_by_who_what_and_when_and_exported_whole() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    sqlx::raw_sql(
        "insert into audit_log (audit_id, acted_at, acted_by, verb, scope, arguments, affected)
         select gen_random_uuid(), outbox_now() - make_interval(days => 1 + n % 3), 'grace', 'resume', 'all', '{}', 1
         from generate_series(1, 2500) n",
    )
    .execute(&scene.database.pool)
    .await
    .unwrap();
    scene.outboxctl(&["pause", "--all", "--reason", "now"]).await.text(0);
    let many = async |words: &[&str]| {
        let words: Vec<&str> =
            ["audit", "--json", "--limit", "1000"].into_iter().chain(words.iter().copied()).collect();
        scene.outboxctl(&words).await.json(0)["items"].as_array().unwrap().len()
    };
    for words in [&["--by", "ada"] as &[&str], &["--verb", "pause"], &["--since", "1h"]] {
        assert_eq!(many(words).await, 1, "{words:?}");
    }
    assert_eq!(many(&["--by", "grace", "--verb", "pause"]).await, 0);
    assert_eq!(many(&["--by", "grace", "--verb", "resume", "--since", "36h"]).await, 833);
    assert!(scene.outboxctl(&["audit", "--by", "nobody"]).await.text(0).contains("nobody did such a thing"));

    let exported = scene.outboxctl(&["audit", "--export"]).await;
    let lines: Vec<Value> = exported.text(0).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: BTreeSet<_> = lines.iter().map(|line| line["audit_id"].as_str().unwrap()).collect();
    assert_eq!((lines.len(), ids.len()), (2501, 2501), "each once, over several pages");
    assert_eq!((&lines[0]["verb"], &lines[0]["reason"]), (&"pause".into(), &"now".into()), "the newest first");
    let of_ada = scene.outboxctl(&["audit", "--export", "--by", "ada"]).await;
    assert_eq!(of_ada.text(0).lines().count(), 1);
    for wrong in
        [vec!["audit", "--verb", "explode"], vec!["audit", "--export", "--json"], vec!["audit", "--since", "soon"]]
    {
        assert!(!scene.outboxctl(&wrong).await.complaint(2).is_empty(), "{wrong:?}");
    }
}
