//! What operators do over the API, each act in the trail under the caller's `sub`.

use serde_json::{Value, json};
use uuid::Uuid;

use super::scene::Scene;

impl Scene {
    async fn act_on(&self, id: &str, verb: &str, body: &Value) -> shared::testing::nova::Answer {
        self.operator.call("POST", &format!("/admin/outbox/{id}/{verb}"), Some(body)).await
    }

    async fn counts(&self) -> (i64, i64) {
        let live = self.database.count("select count(*) from outbox").await;
        (live, self.database.count("select count(*) from dead_letters").await)
    }
}

fn back(report: &Value) -> Vec<&str> {
    let conversations = report["conversations"].as_array().unwrap().iter();
    let letters = conversations.flat_map(|conversation| conversation["operations"].as_array().unwrap());
    letters.map(|letter| letter["outbox_id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_the_requeue_then_does() {
    let scene = Scene::new().await;
    let (message, operation) = scene.dead("M_TOO_LARGE").await;
    let dry = scene.act_on(&message, "requeue?dry_run=true", &json!({})).await.expect(200);
    assert_eq!((scene.counts().await, &dry["dry_run"]), ((0, 1), &json!(true)));
    assert!(scene.trail().await.is_empty());
    let done = scene.act_on(&message, "requeue", &json!({"reason": "the limit was raised"})).await.expect(200);
    assert_eq!((back(&dry), back(&done)), (vec![operation.to_string().as_str()], vec![operation.to_string().as_str()]));
    assert_eq!((scene.counts().await, &done["requeued"]), ((1, 0), &json!(1)));
    let by = scene.operator.user_id;
    let act = Scene::act(by, "requeue", "operations", 1, Some("the limit was raised"));
    assert_eq!(scene.last_act().await, act);
    // Once more, it is no dead letter, and nothing happens.
    let again = scene.act_on(&message, "requeue", &json!({})).await;
    assert_eq!((again.status, again.code()), (409, "refused"));
    assert_eq!(again.body["refused"][0]["reason"], "not_dead");
    assert_eq!(scene.trail().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ids_come_back_at_once_and_those_that_cannot_are_told_one_by_one() {
    let scene = Scene::new().await;
    let dead = [scene.dead("M_A").await.1, scene.dead("M_B").await.1];
    let (_, live) = scene.write().await;
    let unknown = Uuid::now_v7();
    let body = json!({"ids": [dead[0], live, dead[1], unknown]});
    let done = scene.operator.call("POST", "/admin/outbox/requeue", Some(&body)).await.expect(200);
    assert_eq!(back(&done).len(), 2);
    let refused = done["refused"].as_array().unwrap().iter();
    let refused: Vec<_> = refused.map(|refused| (refused["id"].clone(), refused["reason"].clone())).collect();
    assert_eq!(refused, [(json!(live), json!("not_dead")), (json!(unknown), json!("unknown"))]);
    for ids in [Vec::new(), vec![unknown; 501]] {
        let answer = scene.operator.call("POST", "/admin/outbox/requeue", Some(&json!({"ids": ids}))).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!("ids")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_needs_a_reason_and_is_for_good() {
    let scene = Scene::new().await;
    let (message, _) = scene.dead("M_TOO_LARGE").await;
    for body in [json!({}), json!({"reason": " "}), json!({"reason": "two\nlines"}), json!({"reason": "x".repeat(501)})]
    {
        let answer = scene.act_on(&message, "discard", &body).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{body}");
    }
    assert_eq!(scene.counts().await, (0, 1));
    let done = scene.act_on(&message, "discard", &json!({"reason": "spam"})).await.expect(200);
    assert_eq!((scene.counts().await, &done["discarded"]), ((0, 0), &json!(1)));
    assert_eq!(scene.last_act().await, Scene::act(scene.operator.user_id, "discard", "operations", 1, Some("spam")));
    let unknown = scene.act_on(&Uuid::now_v7().to_string(), "discard", &json!({"reason": "spam"})).await;
    assert_eq!((unknown.status, unknown.code()), (404, "not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_a_class_a_conversation_and_a_lane_are_paused_and_resumed() {
    let scene = Scene::new().await;
    scene.write().await;
    let here = &scene.conversation;
    for (scope, name) in [
        (json!({"scope": "all"}), "all"),
        (json!({"scope": "class", "class": "chat"}), "class"),
        (json!({"scope": "conversation", "conversation_id": here}), "conversation"),
        (json!({"scope": "lane", "conversation_id": here, "lane_id": here}), "lane"),
    ] {
        let with = |more: Value| {
            let mut body = scope.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let pause = with(json!({"until": "2099-01-01T00:00:00Z", "reason": "moving"}));
        let paused = scene.operator.call("POST", "/admin/pauses", Some(&pause)).await.expect(200);
        assert_eq!((&paused["scope"], &paused["until"]), (&json!(name), &json!("2099-01-01T00:00:00Z")));
        let by = scene.operator.user_id;
        assert_eq!(scene.last_act().await, Scene::act(by, "pause", name, 1, Some("moving")));
        let list = scene.reader.get("/admin/pauses").await;
        let listed = list["pauses"].as_array().unwrap().len() + list["lanes"]["items"].as_array().unwrap().len();
        assert_eq!(listed, 1, "{list}");
        let resumed = scene.operator.call("POST", "/admin/resume", Some(&with(json!({})))).await.expect(200);
        assert_eq!((&resumed["ended"], &resumed["lanes_going_on"]), (&json!(1), &json!(1)), "{name}");
        assert_eq!(scene.last_act().await, Scene::act(by, "resume", name, 1, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_makes_no_sense_is_refused_by_field() {
    let scene = Scene::new().await;
    for (body, field) in [
        (json!({"scope": "all"}), "reason"),
        (json!({"scope": "class", "reason": "why"}), "class"),
        (json!({"scope": "all", "class": "chat", "reason": "why"}), "class"),
        (json!({"scope": "lane", "lane_id": Uuid::now_v7(), "reason": "why"}), "conversation_id"),
        (json!({"scope": "held", "reason": "why"}), "scope"),
        (json!({"scope": "all", "for": "long", "reason": "why"}), "for"),
        (json!({"scope": "all", "for": "1h", "until": "2099-01-01T00:00:00Z", "reason": "why"}), "for"),
        (json!({"scope": "all", "until": "2001-01-01T00:00:00Z", "reason": "why"}), "until"),
        (json!({"scope": "all", "until": "tomorrow", "reason": "why"}), "until"),
    ] {
        let answer = scene.operator.call("POST", "/admin/pauses", Some(&body)).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{body}");
        assert!(answer.body["detail"].as_str().unwrap().contains(field), "{body}: {}", answer.body);
    }
    let nowhere = json!({"scope": "conversation", "conversation_id": Uuid::now_v7(), "reason": "why"});
    assert_eq!(scene.operator.call("POST", "/admin/pauses", Some(&nowhere)).await.status, 404);
    assert!(scene.trail().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_held_for_one_reason_goes_on_at_once() {
    let scene = Scene::new().await;
    scene.write().await;
    scene.held("the room is gone").await;
    let resume = |because: &str| json!({"scope": "held", "because": because, "reason": "mended"});
    let other = scene.operator.call("POST", "/admin/resume", Some(&resume("another"))).await.expect(200);
    assert_eq!((&other["ended"], &other["complete"]), (&json!(0), &json!(true)));
    let done = scene.operator.call("POST", "/admin/resume", Some(&resume("the room is gone"))).await.expect(200);
    assert_eq!((&done["ended"], &done["locked"]), (&json!(1), &json!(0)));
    assert_eq!(scene.last_act().await, Scene::act(scene.operator.user_id, "resume", "held", 1, Some("mended")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_expired_with_a_reason_and_what_is_dead_is_not() {
    let scene = Scene::new().await;
    let (message, operation) = scene.write().await;
    let (dead, _) = scene.dead("M_TOO_LARGE").await;
    let answer = scene.act_on(&message, "expire", &json!({})).await;
    assert_eq!((answer.status, answer.code()), (422, "invalid"));
    let done = scene.act_on(&message, "expire", &json!({"reason": "too late"})).await.expect(200);
    assert_eq!((&done["expired"], &done["operations"]), (&json!(1), &json!([operation])));
    assert_eq!(scene.last_act().await, Scene::act(scene.operator.user_id, "expire", "operations", 1, Some("too late")));
    assert_eq!(scene.counts().await, (0, 1));
    let again = scene.act_on(&message, "expire", &json!({"reason": "too late"})).await;
    assert!(matches!(again.status, 404 | 409), "{}", again.body);
    let refused = scene.act_on(&dead, "expire", &json!({"reason": "too late"})).await;
    assert!(matches!(refused.status, 404 | 409), "{}", refused.body);
    assert_eq!((scene.trail().await.len(), scene.counts().await), (1, (0, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_completed_with_the_event_that_it_became() {
    let scene = Scene::new().await;
    let (message, operation) = scene.dead("M_TOO_LARGE").await;
    let operation = operation.to_string();
    for event_id in ["", "event", "$", "$with space", &format!("${}", "x".repeat(255))] {
        let body = json!({"event_id": event_id, "reason": "seen there"});
        let answer = scene.act_on(&operation, "complete", &body).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!("event_id")), "{event_id}");
    }
    let body = json!({"event_id": "$event", "reason": "seen there"});
    let by_message = scene.act_on(&message, "complete", &body).await;
    assert_eq!((by_message.status, by_message.code()), (404, "not_found"), "only by its own id");
    // What was never handed to anybody can have become no event.
    let refused = scene.act_on(&operation, "complete", &body).await;
    assert_eq!((refused.status, refused.code()), (409, "refused"), "{}", refused.body);
    scene.was_handed(&operation).await;
    let done = scene.act_on(&operation, "complete", &body).await.expect(200);
    assert_eq!(done["event_id"], "$event");
    assert_eq!(
        scene.last_act().await,
        Scene::act(scene.operator.user_id, "complete", "operations", 1, Some("seen there"))
    );
    assert_eq!(scene.ada.get(&format!("/messages/{message}")).await["matrix"]["delivery"], "delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_by_filter_takes_just_what_its_dry_run_counted() {
    let scene = Scene::new().await;
    for n in 0..5 {
        scene.dead(if n < 3 { "M_A" } else { "M_B" }).await;
    }
    let filter = json!({"errcode": "M_A"});
    let requeue = async |body: &Value| scene.operator.call("POST", "/admin/outbox/requeue", Some(body)).await;
    let dry = requeue(&json!({"filter": filter, "dry_run": true})).await.expect(200);
    assert_eq!((&dry["back"], &dry["conversations"], &dry["refused"]), (&json!(3), &json!(1), &json!([])));
    assert!(scene.trail().await.is_empty());
    // This one dies after the dry run, and is not taken.
    scene.dead("M_A").await;
    let begun = requeue(&json!({"filter": filter, "as_of": dry["as_of"], "reason": "mended"})).await;
    assert_eq!(begun.status, 202, "{}", begun.body);
    let location = begun.headers["location"].clone();
    assert_eq!(location, format!("/admin/tasks/{}", begun.body["task_id"].as_str().unwrap()));
    assert_eq!((&begun.body["expected"], &begun.body["status"]), (&json!(3), &json!("running")));
    assert_eq!(scene.last_act().await, Scene::act(scene.operator.user_id, "requeue", "filter", 0, Some("mended")));
    while shared::tasks::step(&scene.database.pool, None).await.unwrap() != shared::tasks::Step::Idle {}
    let task = scene.reader.get(&location).await;
    assert_eq!((&task["done"], &task["status"]), (&json!(3), &json!("done")));
    assert_eq!(scene.counts().await, (3, 3));
    assert_eq!(scene.reader.get("/admin/tasks").await["items"][0]["task_id"], task["task_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_requeue_that_makes_no_sense_is_refused_by_field() {
    let scene = Scene::new().await;
    for (body, field) in [
        (json!({}), "filter"),
        (json!({"filter": {}, "ids": [Uuid::now_v7()]}), "filter"),
        (json!({"filter": {"text": "ab"}, "dry_run": true}), "text"),
        (json!({"filter": {"colour": "red"}}), "colour"),
        (json!({"filter": {}, "as_of": "yesterday"}), "as_of"),
        (json!({"filter": {}, "rate": 0}), "rate"),
        (json!({"ids": [Uuid::now_v7()], "rate": 5}), "rate"),
    ] {
        let answer = scene.operator.call("POST", "/admin/outbox/requeue", Some(&body)).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{body}");
        assert!(answer.body["detail"].as_str().unwrap().contains(field), "{body}: {}", answer.body);
    }
    assert!(scene.trail().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_begun_once_under_its_key_and_ends_when_it_is_cancelled() {
    let scene = Scene::new().await;
    let path = format!("/admin/conversations/{}/repair", scene.conversation);
    let body = json!({"repair": "rejoin", "reason": "invited again"});
    let key = [("Idempotency-Key", "once")];
    let first = scene.operator.call_with("POST", &path, &key, Some(&body)).await.expect(202);
    let again = scene.operator.call_with("POST", &path, &key, Some(&body)).await.expect(202);
    assert_eq!((&first["task_id"], &first["kind"]), (&again["task_id"], &json!("repair")));
    assert_eq!(scene.trail().await.len(), 1);
    let other = json!({"repair": "reinvite", "reason": "invited again"});
    let reused = scene.operator.call_with("POST", &path, &key, Some(&other)).await;
    assert_eq!((reused.status, reused.code()), (422, "idempotency_key_reused"));
    let cancel = format!("/admin/tasks/{}/cancel", first["task_id"].as_str().unwrap());
    for _ in 0..2 {
        let ended = scene.operator.call("POST", &cancel, Some(&json!({"reason": "not needed"}))).await.expect(200);
        assert_eq!((&ended["status"], &ended["ended_by"]), (&json!("cancelled"), &json!(scene.operator.user_id)));
    }
    let acts: Vec<_> = scene.trail().await.iter().map(|act| act["verb"].clone()).collect();
    assert_eq!(acts, [json!("cancel"), json!("repair")]);
    let nowhere = format!("/admin/conversations/{}/repair", Uuid::now_v7());
    assert_eq!(scene.operator.call("POST", &nowhere, Some(&body)).await.status, 404);
    let verify = json!({"conversation_id": Uuid::now_v7()});
    assert_eq!(scene.operator.call("POST", "/admin/verify", Some(&verify)).await.status, 404);
    let all = scene.operator.call("POST", "/admin/verify", Some(&json!({"reason": "why"}))).await.expect(202);
    assert_eq!((&all["kind"], &all["status"]), (&json!("verify"), &json!("done")), "no conversation has a room yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_all_is_counted_first_then_a_task_and_refused_by_field() {
    let scene = Scene::new().await;
    scene.write().await;
    scene.held(shared::outbox::HOLD_NOT_IN_ROOM).await;
    let ask = async |body: &Value| scene.operator.call("POST", "/admin/repair", Some(body)).await;
    for (body, field) in [
        (json!({"reason": "why"}), "repair"),
        (json!({"repair": "restart", "reason": "why"}), "repair"),
        (json!({"repair": "rejoin"}), "reason"),
        (json!({"repair": "rejoin", "reason": " "}), "reason"),
        (json!({"repair": "rejoin", "errcode": "M_FORBIDDEN", "reason": "why"}), "errcode"),
        (json!({"repair": "rejoin", "errcode": "M_FORBIDDEN", "dry_run": true}), "errcode"),
        (json!({"repair": "reinvite", "errcode": "\0", "dry_run": true}), "errcode"),
        (json!({"repair": "reinvite", "errcode": "\n", "reason": "why"}), "errcode"),
    ] {
        let answer = ask(&body).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{body}: {}", answer.body);
        assert!(answer.body.to_string().contains(field), "{body}: {}", answer.body);
    }
    let counted = ask(&json!({"repair": "rejoin", "dry_run": true})).await.expect(200);
    assert_eq!(counted, json!({"conversations": {"count": 1, "more": false}}));
    assert!(scene.trail().await.is_empty(), "nothing was begun");
    let body = json!({"repair": "rejoin", "reason": "invited again"});
    let key = [("Idempotency-Key", "once")];
    let first = scene.operator.call_with("POST", "/admin/repair", &key, Some(&body)).await.expect(202);
    let again = scene.operator.call_with("POST", "/admin/repair", &key, Some(&body)).await.expect(202);
    assert_eq!((&first["task_id"], &first["expected"]), (&again["task_id"], &json!(1)));
    let nothing = ask(&json!({"repair": "reinvite", "reason": "why"})).await.expect(202);
    assert_eq!((&nothing["expected"], &nothing["status"]), (&json!(0), &json!("done")));
    let acts: Vec<_> = scene.trail().await.iter().map(|act| (act["verb"].clone(), act["scope"].clone())).collect();
    assert_eq!(acts, [(json!("repair"), json!("all")), (json!("repair"), json!("all"))]);
}
