//! What operators are shown.

use std::time::Duration;

use serde_json::{Value, json};
use shared::testing::{eventually, homeserver::FakeHomeserver};

use super::{CANARY, keys};
use crate::scene::{Home, Scene, id};

#[tokio::test(flavor = "multi_thread")]
async fn show_says_why_what_to_do_what_happened_and_what_waits_behind() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    fake.on_send().fail(503).times(2);
    fake.on_send().fail(413).once();
    let message = id(&scene.ada.post(&conversation, CANARY).await.expect(201));
    scene.becomes(&message, "dead").await;
    scene.outboxctl(&["pause", "--all", "--reason", "why"]).await.text(0);
    for _ in 0..2 {
        scene.ada.post(&conversation, CANARY).await.expect(201);
    }
    let said = scene.outboxctl(&["show", &message]).await;
    for words in [
        "state        dead",
        "cause        it cannot be sent as it is (M_TOO_LARGE)",
        "what to do   have the message shortened",
        "in its lane  0 before it, 2 behind it",
        "3 attempts",
    ] {
        assert!(said.text(0).contains(words), "{words} in\n{}", said.out);
    }
    let errors: Vec<_> = said.out.lines().filter(|line| line.contains(" error  ")).collect();
    assert!(errors[0].starts_with("first error") && errors[0].contains("503"), "{errors:?}");
    assert!(errors[1].starts_with("last error") && errors[1].contains("413 M_TOO_LARGE"), "{errors:?}");
    let shown = scene.outboxctl(&["show", &message, "--json"]).await.json(0);
    let operation = shown["operations"][0]["outbox_id"].as_str().unwrap();
    let same = scene.outboxctl(&["show", operation, "--json"]).await.json(0);
    assert_eq!(same["operations"], shown["operations"]);
    assert!(!said.out.contains(CANARY) && !shown.to_string().contains(CANARY));
    let nobody = uuid::Uuid::now_v7().to_string();
    assert!(scene.outboxctl(&["show", &nobody]).await.complaint(1).contains("nothing is known"));
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_in_a_sentence_what_something_is_behind_until_when_and_what_is_behind_it() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    fake.on_send().fail(429).errcode("M_LIMIT_EXCEEDED").retry_after(Duration::from_mins(3)).once();
    let first = id(&scene.ada.post(&conversation, CANARY).await.expect(201));
    scene.attempted("refused", 1).await;
    let second = id(&scene.ada.post(&conversation, CANARY).await.expect(201));
    for _ in 0..2 {
        scene.ada.post(&conversation, CANARY).await.expect(201);
    }
    let said = scene.outboxctl(&["explain", &second]).await;
    let words = ["waiting ", "s: lane ", "is behind message ", "(attempt 1, M_LIMIT_EXCEEDED until "];
    for words in words.into_iter().chain(["; then it goes; 2 behind it"]) {
        assert!(said.text(0).contains(words), "{words} in\n{}", said.out);
    }
    let explained = scene.outboxctl(&["explain", &first, "--json"]).await.json(0);
    assert_eq!(keys(&explained), "id operations");
    assert_eq!(
        keys(&explained["operations"][0]),
        "ahead attempts conversation_id due_at event_id kind outbox_id sentence state waited waiting_for"
    );
    let sentence = explained["operations"][0]["sentence"].as_str().unwrap();
    assert!(sentence.contains("attempt 1 failed with M_LIMIT_EXCEEDED; it is tried again at "), "{sentence}");
    let member = scene.ada.get(&format!("/messages/{second}/delivery")).await;
    assert!(member["sentence"].as_str().unwrap().starts_with("waiting "), "{member}");
    assert!(!member.to_string().contains(&first), "{member}");
    let nobody = uuid::Uuid::now_v7().to_string();
    assert!(scene.outboxctl(&["explain", &nobody]).await.complaint(1).contains("nothing is known"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dead_waits_or_is_delivered_is_found_by_whose_it_is_what_it_does_and_when() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let dead = scene.dead(&fake, &conversation, CANARY).await;
    scene.outboxctl(&["pause", "--conversation", &conversation, "--reason", "to look"]).await.text(0);
    let live = id(&scene.ada.post(&conversation, CANARY).await.expect(201));
    let (ada, grace) = (scene.ada.user_id.to_string(), scene.grace.user_id.to_string());
    let found = async |words: &[&str]| {
        let words: Vec<&str> = ["list", "--json"].into_iter().chain(words.iter().copied()).collect();
        let page = scene.outboxctl(&words).await.json(0);
        let subjects = page["items"].as_array().unwrap().iter().map(|item| item["subject_id"].clone());
        subjects.map(|subject| subject.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let past = "2020-01-01T00:00:00Z";
    for words in [
        &[] as &[&str],
        &["--user", &ada],
        &["--kind", "message", "--errcode", "M_BAD_JSON", "--cause", "own_fault"],
        &["--conversation", &conversation, "--since", "1h"],
        &["--text", "m_bad"],
    ] {
        assert_eq!(found(words).await, std::slice::from_ref(&dead), "{words:?}");
    }
    for words in [
        &["--user", &grace] as &[&str],
        &["--kind", "edit"],
        &["--until", past],
        &["--text", "never said"],
        &["--state", "live", "--user", &grace],
        &["--state", "live", "--errcode", "M_BAD_JSON"],
        &["--state", "delivered", "--until", past],
    ] {
        assert!(found(words).await.is_empty(), "{words:?}");
    }
    assert_eq!(found(&["--state", "live", "--user", &ada, "--since", "1h"]).await, [live]);
    assert_eq!(found(&["--state", "delivered", "--conversation", &conversation, "--kind", "message"]).await.len(), 1);
    let said = scene.outboxctl(&["list"]).await;
    assert!(said.text(0).ends_with("1 in all\n"), "{}", said.out);
    let groups = scene.outboxctl(&["list", "--groups", "--json"]).await.json(0);
    assert_eq!(
        keys(&groups["groups"][0]),
        "cause cause_in_words count errcode hint kind newest newest_at oldest_at repair"
    );
    assert_eq!(groups["groups"][0]["count"], json!({"count": 1, "more": false}));
    let said = scene.outboxctl(&["list", "--groups"]).await;
    assert!(said.text(0).contains("M_BAD_JSON") && said.out.contains("a fault of this program"), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timelines_tell_all_that_happened_but_never_a_text() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    let message = scene.dead(&fake, &conversation, CANARY).await;
    scene.outboxctl(&["requeue", &message, "--reason", "mended"]).await.text(0);
    scene.ada.delivered(&message).await;
    scene.ada.edit(&message, &format!("{CANARY}, edited")).await.expect(200);
    scene.drained().await;
    scene.attempted("delivered", 3).await;
    let shown = scene.outboxctl(&["show", &message, "--json"]).await.json(0);
    let kinds = |moments: &Value| {
        let moments = moments.as_array().unwrap().iter();
        moments.map(|moment| moment["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&shown["operations"][0]["timeline"]), ["enqueued", "attempt", "act", "attempt", "delivered"]);
    assert_eq!(
        keys(&shown["operations"][0]["timeline"][0]),
        "at by duration_ms errcode event_id http_status kind operation_kind outbox_id reason subject_id words"
    );
    let whole = scene.outboxctl(&["timeline", "--conversation", &conversation, "--json"]).await.json(0);
    assert_eq!(keys(&whole), "moments next_cursor");
    let happened = kinds(&whole["moments"]);
    for kind in ["written", "attempt", "act", "delivered", "edited", "enqueued"] {
        assert!(happened.iter().any(|moment| moment == kind), "{kind} in {happened:?}");
    }
    let page = ["timeline", "--conversation", &conversation, "--limit", "2", "--json"];
    let first = scene.outboxctl(&page).await.json(0);
    let cursor = first["next_cursor"].as_str().unwrap();
    let next: Vec<&str> = page.into_iter().chain(["--cursor", cursor]).collect();
    let next = scene.outboxctl(&next).await.json(0);
    let both: Vec<_> = [&first, &next].into_iter().flat_map(|page| page["moments"].as_array().unwrap()).collect();
    assert_eq!(both, whole["moments"].as_array().unwrap()[..4].iter().collect::<Vec<_>>());
    let said = scene.outboxctl(&["timeline", "--conversation", &conversation]).await;
    assert!(said.text(0).contains("mended") && said.out.contains("M_BAD_JSON"), "{}", said.out);
    for text in [&said.out, &whole.to_string(), &shown.to_string()] {
        assert!(!text.contains(CANARY), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_say_what_waits_what_is_stuck_and_who_works() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    assert!(scene.outboxctl(&["stats"]).await.text(0).contains("no worker"));
    let _worker = scene.worker().await;
    let (conversation, _) = scene.begun().await;
    scene.dead(&fake, &conversation, "dead").await;
    scene.outboxctl(&["pause", "--class", "chat", "--reason", "quiet"]).await.text(0);
    scene.ada.post(&conversation, "waits").await.expect(201);
    let stats = eventually("a worker tells of itself", async || {
        let stats = scene.outboxctl(&["stats", "--json"]).await.json(0);
        (stats["workers"].as_array()?.len() == 1).then_some(stats)
    })
    .await;
    assert_eq!(
        keys(&stats),
        "classes dead_letters delivered_per_minute groups held_lanes paused_lanes pauses tasks_running workers"
    );
    assert_eq!(stats["dead_letters"], json!({"count": 1, "more": false}));
    let chat = stats["classes"].as_array().unwrap().iter().find(|class| class["lane_class"] == "chat").unwrap();
    assert_eq!((&chat["depth"], &chat["paused"]), (&json!(1), &json!(true)));
    let said = scene.outboxctl(&["stats"]).await;
    for words in ["1 dead, 0 held and 0 paused lanes", "`chat` is paused until it is resumed, by ada (quiet)", "closed"]
    {
        assert!(said.text(0).contains(words), "{words} in\n{}", said.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_completes_every_command() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = scene.outboxctl(&["completion", shell]).await;
        for command in ["requeue", "explain", "--as-of"] {
            let command = if shell == "fish" { command.trim_start_matches('-') } else { command };
            assert!(script.text(0).contains(command), "{command} in that of {shell}");
        }
    }
    assert!(!scene.outboxctl(&["completion", "cmd"]).await.complaint(2).is_empty());
}
