//! What operators read.

use serde_json::{Value, json};
use shared::testing::nova::Answer;

use super::scene::{CANARY, Scene};

fn ids(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().unwrap().iter();
    items.map(|item| item["outbox_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_found_by_what_is_known_of_them_and_read_page_by_page() {
    let scene = Scene::new().await;
    let mut dead = Vec::new();
    for n in 0..5 {
        dead.push(scene.dead(if n < 3 { "M_TOO_LARGE" } else { "M_FORBIDDEN" }).await.1.to_string());
    }
    dead.reverse();
    let all = scene.reader.get("/admin/outbox").await;
    assert_eq!((ids(&all), &all["state"], &all["next_cursor"]), (dead.clone(), &json!("dead"), &Value::Null));
    assert!(all["items"][0]["hint"].as_str().unwrap().len() > 10, "{all}");
    let some = scene.reader.get("/admin/outbox?errcode=M_TOO_LARGE&kind=message&cause=own_fault").await;
    assert_eq!(ids(&some), dead[2..]);
    let elsewhere = format!("/admin/outbox?conversation_id={}", uuid::Uuid::now_v7());
    assert_eq!(ids(&scene.reader.get(&elsewhere).await), Vec::<String>::new());
    let (mut read, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = scene.reader.get(&format!("/admin/outbox?limit=2&cursor={cursor}")).await;
        read.extend(ids(&page));
        let Some(next) = page["next_cursor"].as_str() else { break };
        next.clone_into(&mut cursor);
        assert!(read.len() < 6, "no end");
    }
    assert_eq!(read, dead);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_cannot_be_is_refused_by_its_name() {
    let scene = Scene::new().await;
    let fields = |answer: &Answer| -> Vec<String> {
        let errors = answer.body["errors"].as_array().unwrap().iter();
        errors.map(|error| error["field"].as_str().unwrap().to_owned()).collect()
    };
    for (query, wrong) in [
        ("kind=letter", &["kind"][..]),
        ("state=gone", &["state"]),
        ("limit=0", &["limit"]),
        ("limit=201", &["limit"]),
        ("cursor=x", &["cursor"]),
        ("conversation_id=here&cause=bad_luck", &["conversation_id", "cause"]),
        ("state=held&cause=own_fault", &["cause"]),
        ("colour=red", &["colour"]),
        ("kind=edit&kind=message", &["kind"]),
        ("errcode=%00", &["errcode"]),
        ("text=ab", &["text"]),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", &["until"]),
        ("since=yesterday&user_id=ada", &["user_id", "since"]),
        ("state=live&text=abc", &["text"]),
    ] {
        let answer = scene.reader.call("GET", &format!("/admin/outbox?{query}"), None).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{query}");
        assert_eq!(fields(&answer), wrong, "{query}");
    }
    let answer = scene.reader.call("GET", "/admin/outbox/everything", None).await;
    assert_eq!((answer.status, answer.code()), (422, "invalid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_what_is_held_and_what_is_paused_are_lists_too() {
    let scene = Scene::new().await;
    let (_, first) = scene.write().await;
    let (_, second) = scene.write().await;
    let live = scene.reader.get("/admin/outbox?state=live").await;
    assert_eq!(ids(&live), [first.to_string(), second.to_string()]);
    scene.held("the room is gone").await;
    let held = scene.reader.get("/admin/outbox?state=held").await;
    assert_eq!((&held["items"][0]["reason"], &held["items"][0]["waiting"]), (&json!("the room is gone"), &json!(2)));
    let pause = json!({"scope": "conversation", "conversation_id": scene.conversation, "for": "1h", "reason": "why"});
    scene.operator.call("POST", "/admin/pauses", Some(&pause)).await.expect(200);
    let paused = scene.reader.get("/admin/outbox?state=paused").await;
    assert_eq!((&paused["items"][0]["reason"], &paused["pauses"]), (&json!("why"), &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_and_its_message_tell_the_same_story() {
    let scene = Scene::new().await;
    let (message, operation) = scene.dead("M_TOO_LARGE").await;
    let by_operation = scene.reader.get(&format!("/admin/outbox/{operation}")).await;
    let by_message = scene.reader.get(&format!("/admin/outbox/{message}")).await;
    assert_eq!(by_operation["operations"], by_message["operations"]);
    let shown = &by_operation["operations"][0];
    assert_eq!((&shown["state"], &shown["dead"]["errcode"]), (&json!("dead"), &json!("M_TOO_LARGE")));
    assert_eq!(by_operation["message"]["author_id"], json!(scene.ada.user_id));
    let unknown = scene.reader.call("GET", &format!("/admin/outbox/{}", uuid::Uuid::now_v7()), None).await;
    assert_eq!((unknown.status, unknown.code()), (404, "not_found"));
}

/// What may be asked of a route.
fn asked(path: &str, id: &str) -> Value {
    match path {
        "/admin/outbox/requeue" => json!({"filter": {}, "dry_run": true}),
        "/admin/outbox/discard" => json!({"ids": [id], "reason": "why"}),
        "/admin/outbox/{id}/complete" => json!({"event_id": "$event", "reason": "why"}),
        "/admin/conversations/{id}/repair" => json!({"repair": "rejoin", "reason": "why"}),
        "/admin/repair" => json!({"repair": "reinvite", "errcode": "M_FORBIDDEN", "reason": "why"}),
        "/admin/pauses" => json!({"scope": "all", "reason": "why"}),
        "/admin/resume" => json!({"scope": "all"}),
        _ => json!({"reason": "why"}),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_shows_a_text_a_reaction_or_what_the_devices_of_a_call_say() {
    let scene = Scene::new().await;
    let ids = scene.said().await;
    scene.held("why").await;
    for route in api::admin::ROUTES {
        let mut well = 0;
        // What acts may be the end of what it acts on: that is another one each time.
        let mut ids = ids.clone();
        if route.method == "POST" {
            let (_, operation) = scene.dead("M_TOO_LARGE").await;
            let (_, waiting) = scene.write().await;
            let task = scene.operator.call("POST", "/admin/verify", None).await.expect(202);
            ids = vec![operation.to_string(), waiting.to_string(), scene.conversation.clone()];
            ids.push(task["task_id"].as_str().unwrap().to_owned());
        }
        for id in &ids {
            let path = route.path.replace("{id}", id);
            let body = (route.method == "POST").then(|| asked(route.path, id));
            let answer = scene.operator.call(route.method, &path, body.as_ref()).await;
            assert!(!answer.body.to_string().contains(CANARY), "{} {path}: {}", route.method, answer.body);
            assert!(answer.status != 400 && answer.status < 500, "{} {path}: {}", route.method, answer.body);
            well += usize::from(answer.status < 300);
        }
        let is_told_no = ["/admin/outbox/{id}/complete", "/admin/tasks/{id}", "/admin/tasks/{id}/cancel"];
        assert!(well > 0 || is_told_no.contains(&route.path), "{} {}", route.method, route.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_counted_and_grouped_by_what_they_died_of() {
    let scene = Scene::new().await;
    for n in 0..3 {
        scene.dead(if n < 2 { "M_A" } else { "M_B" }).await;
    }
    let counted = scene.reader.get("/admin/outbox?errcode=M_A&count=true").await;
    assert_eq!(counted["count"], json!({"count": 2, "more": false}));
    let by_user = format!("/admin/outbox?user_id={}&count=true", scene.grace.user_id);
    assert_eq!(scene.reader.get(&by_user).await["count"]["count"], 0);
    let groups = scene.reader.get("/admin/outbox/groups").await;
    let groups: Vec<_> = groups["items"].as_array().unwrap().iter().map(|group| &group["errcode"]).collect();
    assert_eq!(groups, [&json!("M_A"), &json!("M_B")]);
    let stats = scene.reader.get("/admin/stats").await;
    assert_eq!((&stats["dead_letters"]["count"], &stats["workers"]), (&json!(3), &json!([])));
    assert_eq!(stats["groups"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_tells_what_happened_by_time_and_who_did_it() {
    let scene = Scene::new().await;
    let (message, operation) = scene.dead("M_TOO_LARGE").await;
    let requeue = format!("/admin/outbox/{operation}/requeue");
    scene.operator.call("POST", &requeue, Some(&json!({"reason": "the limit was raised"}))).await.expect(200);
    let told = scene.reader.get(&format!("/admin/outbox/{message}/timeline")).await;
    let kinds: Vec<_> = told["items"].as_array().unwrap().iter().map(|moment| moment["kind"].clone()).collect();
    assert!(kinds.contains(&json!("enqueued")) && kinds.contains(&json!("act")), "{told}");
    let here = format!("/admin/conversations/{}/timeline", scene.conversation);
    let newest = scene.reader.get(&here).await;
    let act = newest["items"].as_array().unwrap().iter().find(|moment| moment["kind"] == "act").unwrap();
    assert_eq!((&act["by"], &act["reason"]), (&json!(scene.operator.user_id), &json!("the limit was raised")));
    let (mut read, mut cursor) = (0, String::new());
    loop {
        let page = scene.reader.get(&format!("{here}?limit=1&cursor={cursor}")).await;
        read += page["items"].as_array().unwrap().len();
        let Some(next) = page["next_cursor"].as_str() else { break };
        next.clone_into(&mut cursor);
        assert!(read < 50, "no end");
    }
    assert_eq!(read, newest["items"].as_array().unwrap().len());
    let nowhere = format!("/admin/conversations/{}/timeline", uuid::Uuid::now_v7());
    assert_eq!(scene.reader.call("GET", &nowhere, None).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_is_searched_by_who_what_and_when() {
    let scene = Scene::new().await;
    let pause = json!({"scope": "all", "reason": "why"});
    scene.operator.call("POST", "/admin/pauses", Some(&pause)).await.expect(200);
    scene.operator.call("POST", "/admin/resume", Some(&json!({"scope": "all"}))).await.expect(200);
    let verbs = async |query: &str| {
        let page = scene.reader.get(&format!("/admin/audit?{query}")).await;
        let items = page["items"].as_array().unwrap().iter();
        items.map(|act| act["verb"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(verbs("").await, ["resume", "pause"]);
    assert_eq!(verbs("verb=pause").await, ["pause"]);
    assert_eq!(verbs(&format!("by={}", scene.operator.user_id)).await.len(), 2);
    assert_eq!(verbs("by=nobody").await.len(), 0);
    assert_eq!(verbs("until=2001-01-01").await.len(), 0);
    let wrong = scene.reader.call("GET", "/admin/audit?verb=dance", None).await;
    assert_eq!((wrong.status, &wrong.body["errors"][0]["field"]), (422, &json!("verb")));
}
