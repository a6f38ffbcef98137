//! What people do in conversations: replies, threads, formatted text, mentions, reactions.

use serde_json::{Value, json};
use shared::{
    ids::{MessageId, UserId},
    testing::{
        database::TestDatabase,
        nova::{Answer, NovaUser, Program, api_environment},
    },
};

struct Scene {
    database: TestDatabase,
    _api: Program,
    ada: NovaUser,
    grace: NovaUser,
    stranger: NovaUser,
    conversation: String,
}

async fn scene() -> Scene {
    let database = TestDatabase::create().await;
    let api = Program::start("api", &api_environment(&database.url)).await;
    let (ada, grace, stranger) = (NovaUser::new(&api), NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    Scene { database, _api: api, ada, grace, stranger, conversation }
}

impl Scene {
    async fn try_post(&self, more: &Value) -> Answer {
        let mut body = json!({"conversation_id": self.conversation, "plaintext": "words"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ada.call("POST", "/messages", Some(&body)).await
    }

    async fn post(&self, more: &Value) -> Value {
        self.try_post(more).await.expect(201)
    }
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str, field: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.body);
    assert_eq!(answer.body["errors"][0]["field"], field, "{}", answer.body);
}

fn reaction(message: &Value, key: &str) -> String {
    format!("/messages/{}/reactions/{key}", message["id"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_read_as_it_was_written_with_its_html_sanitised() {
    let scene = scene().await;
    let plain = scene.post(&json!({})).await;
    assert_eq!(
        (&plain["kind"], &plain["formatted"], &plain["mentions"], &plain["mentions_room"], &plain["media"]),
        (&json!("text"), &Value::Null, &json!([]), &json!(false), &Value::Null)
    );
    let users = [scene.grace.user_id, UserId::generate(), scene.grace.user_id];
    let rich = json!({
        "formatted": "<b>words</b><img src=\"https://evil/x\"><script>x</script>",
        "mentions": users,
        "mentions_room": true,
        "kind": "notice",
    });
    let written = scene.post(&rich).await;
    for message in [&written, &scene.grace.get(&format!("/messages/{}", written["id"].as_str().unwrap())).await] {
        assert_eq!((&message["plaintext"], &message["kind"]), (&json!("words"), &json!("notice")));
        assert_eq!(message["formatted"], "<b>words</b><img>");
        assert_eq!((&message["mentions"], &message["mentions_room"]), (&json!(users[..2]), &json!(true)));
    }
    // An edit says all of it anew.
    let path = format!("/messages/{}", written["id"].as_str().unwrap());
    let edited = scene.ada.call("PATCH", &path, Some(&json!({"plaintext": "words"}))).await.expect(200);
    assert_eq!((&edited["revision"], &edited["formatted"], &edited["mentions"]), (&json!(2), &Value::Null, &json!([])));
    let edit = json!({"plaintext": "words", "formatted": "<i>words</i>"});
    for _ in 0..2 {
        let edited = scene.ada.call("PATCH", &path, Some(&edit)).await.expect(200);
        assert_eq!((&edited["revision"], &edited["formatted"]), (&json!(3), &json!("<i>words</i>")));
    }
    let deleted = scene.ada.call("DELETE", &path, None).await.expect(200);
    assert_eq!(
        (&deleted["plaintext"], &deleted["formatted"], &deleted["mentions"]),
        (&Value::Null, &Value::Null, &json!([]))
    );
    let kept = "select count(*) from message_revisions where rich";
    assert_eq!(scene.database.count(kept).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rich_is_sealed_and_stands_in_no_table() {
    let scene = scene().await;
    let message = scene.post(&json!({"formatted": "<b>unmistakable</b>"})).await;
    scene.ada.call("PUT", &reaction(&message, "unmistakable"), None).await.expect(201);
    for sql in [
        "select count(*) from message_revisions where position('unmistakable'::bytea in body) > 0",
        "select count(*) from message_reactions where position('unmistakable'::bytea in key) > 0",
        "select count(*) from outbox o where o::text like '%unmistakable%'",
    ] {
        assert_eq!(scene.database.count(sql).await, 0, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_said_is_refused_by_field() {
    let scene = scene().await;
    let many: Vec<UserId> = (0..51).map(|_| UserId::generate()).collect();
    for (body, field) in [
        (json!({"media": {"url": "mxc://a/b"}}), "media"),
        (json!({"media_id": MessageId::generate()}), "media_id"),
        (json!({"kind": "image"}), "kind"),
        (json!({"kind": "song"}), "kind"),
        (json!({"mentions": many}), "mentions"),
        (json!({"mentions": ["grace"]}), "mentions[0]"),
        (json!({"formatted": "<script>x</script>"}), "formatted"),
        (json!({"formatted": "<b>".repeat(2000)}), "formatted"),
        (json!({"formatted": "a\u{0}"}), "formatted"),
        (json!({"reply_to": MessageId::generate()}), "reply_to"),
        (json!({"thread_of": MessageId::generate()}), "thread_of"),
    ] {
        assert_refused(&scene.try_post(&body).await, 422, "invalid", field);
    }
    // Text and HTML together are what counts, as they are sent; and each mention has its weight.
    let half = "x".repeat(10 * 1024 - 2);
    scene.post(&json!({"plaintext": half, "formatted": half})).await;
    let larger = scene.try_post(&json!({"plaintext": half, "formatted": format!("{half}x")})).await;
    assert_refused(&larger, 413, "too_large", "plaintext");
    let grown = scene.try_post(&json!({"plaintext": half, "formatted": "& ".repeat(5000)})).await;
    assert_refused(&grown, 413, "too_large", "plaintext");
    let mentioning = json!({"plaintext": format!("{half}{half}"), "mentions": [scene.grace.user_id]});
    assert_refused(&scene.try_post(&mentioning).await, 413, "too_large", "plaintext");
    let elsewhere = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let body = json!({"conversation_id": elsewhere, "plaintext": "words"});
    let foreign = scene.ada.call("POST", "/messages", Some(&body)).await.expect(201);
    for field in ["reply_to", "thread_of"] {
        assert_refused(&scene.try_post(&json!({field: foreign["id"]})).await, 422, "invalid", field);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_within_a_thread_is_the_same_thread() {
    let scene = scene().await;
    let first = scene.post(&json!({})).await;
    let second = scene.post(&json!({"thread_of": first["id"]})).await;
    let third = scene.post(&json!({"thread_of": second["id"], "reply_to": second["id"]})).await;
    assert_eq!((&second["thread_of"], &third["thread_of"]), (&first["id"], &first["id"]));
    assert_eq!((&first["thread_of"], &third["reply_to"]), (&Value::Null, &second["id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_a_request_without_new_fields_is_good_for_the_same_request_only() {
    let scene = scene().await;
    let body = json!({"conversation_id": scene.conversation, "plaintext": "words"});
    let key = [("Idempotency-Key", "once")];
    let first = scene.ada.call_with("POST", "/messages", &key, Some(&body)).await.expect(201);
    let again = scene.ada.call_with("POST", "/messages", &key, Some(&body)).await.expect(201);
    assert_eq!(first["id"], again["id"]);
    let mut other = body.clone();
    other["formatted"] = json!("<b>words</b>");
    let answer = scene.ada.call_with("POST", "/messages", &key, Some(&other)).await;
    assert_eq!((answer.status, answer.code()), (422, "idempotency_key_reused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaction_is_made_once_and_taken_back_once() {
    let scene = scene().await;
    let message = scene.post(&json!({})).await;
    let thumb = reaction(&message, "%F0%9F%91%8D");
    assert_eq!(scene.grace.call("PUT", &thumb, None).await.status, 201);
    let again = scene.grace.call("PUT", &thumb, None).await.expect(200);
    let grace = json!([scene.grace.user_id]);
    assert_eq!(again["reactions"], json!([{"key": "\u{1f44d}", "count": 1, "user_ids": grace, "mine": true}]));
    let seen = scene.ada.get(&format!("/messages/{}", message["id"].as_str().unwrap())).await;
    assert_eq!(seen["reactions"], json!([{"key": "\u{1f44d}", "count": 1, "user_ids": grace, "mine": false}]));
    let slashed = scene.ada.call("PUT", &reaction(&message, "a%2Fb%3Fc"), None).await.expect(201);
    assert_eq!(slashed["reactions"][1]["key"], "a/b?c");
    assert_eq!(scene.ada.call("DELETE", &thumb, None).await.status, 204, "hers stays");
    for _ in 0..2 {
        assert_eq!(scene.grace.call("DELETE", &thumb, None).await.status, 204);
    }
    let seen = scene.ada.get(&format!("/messages/{}", message["id"].as_str().unwrap())).await;
    assert_eq!(seen["reactions"].as_array().unwrap().len(), 1);
    let told = "select count(*) from events where kind in ('reaction_added', 'reaction_removed')";
    assert_eq!(scene.database.count(told).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn reactions_that_cannot_be_are_refused() {
    let scene = scene().await;
    let message = scene.post(&json!({})).await;
    for key in ["%20", "%0A", "a%00", "x".repeat(65).as_str()] {
        for method in ["PUT", "DELETE"] {
            assert_refused(&scene.ada.call(method, &reaction(&message, key), None).await, 422, "invalid", "key");
        }
    }
    let nowhere = reaction(&json!({"id": MessageId::generate()}), "x");
    for method in ["PUT", "DELETE"] {
        let answer = scene.ada.call(method, &nowhere, None).await;
        assert_eq!((answer.status, answer.code()), (404, "not_found"));
        let answer = scene.stranger.call(method, &reaction(&message, "x"), None).await;
        assert_eq!((answer.status, answer.code()), (403, "not_a_member"));
    }
    scene.ada.delete(message["id"].as_str().unwrap()).await.expect(200);
    let answer = scene.ada.call("PUT", &reaction(&message, "x"), None).await;
    assert_eq!((answer.status, answer.code()), (409, "message_deleted"));
    assert_eq!(scene.database.count("select count(*) from message_reactions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_reacts_so_often_and_no_more() {
    let scene = scene().await;
    let message = scene.post(&json!({})).await;
    for n in 0..20 {
        scene.ada.call("PUT", &reaction(&message, &format!("k{n}")), None).await.expect(201);
    }
    let answer = scene.ada.call("PUT", &reaction(&message, "more"), None).await;
    assert_eq!((answer.status, answer.code()), (409, "too_many_reactions"));
    scene.ada.call("PUT", &reaction(&message, "k0"), None).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_the_reactions_to_each_message() {
    let scene = scene().await;
    let (first, second) = (scene.post(&json!({})).await, scene.post(&json!({})).await);
    scene.ada.call("PUT", &reaction(&first, "one"), None).await.expect(201);
    scene.grace.call("PUT", &reaction(&first, "one"), None).await.expect(201);
    scene.grace.call("PUT", &reaction(&second, "two"), None).await.expect(201);
    let page = scene.ada.get(&format!("/conversations/{}/messages", scene.conversation)).await;
    let shown = |n: usize| {
        let tally = &page["messages"][n]["reactions"][0];
        (tally["key"].as_str().unwrap().to_owned(), tally["count"].as_u64().unwrap(), tally["mine"] == true)
    };
    assert_eq!((shown(0), shown(1)), (("two".into(), 1, false), ("one".into(), 2, true)));
}
