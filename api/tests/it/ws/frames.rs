//! What is in each frame, and who gets it.

use serde_json::json;
use shared::testing::nova::NovaUser;

use super::{Scene, all_for_now, frames, types, without_cursor};

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_has_exactly_these_fields() {
    let scene = Scene::with(&[("WS_HEARTBEAT", "3s")]).await;
    let (ada, conversation) = (&scene.ada, &scene.conversation);
    let mut socket = ada.try_listen(None).await.unwrap();
    let ready = socket.frame().await;
    assert_eq!(without_cursor(&ready), json!({"type": "ready", "cursor": null}));

    let id = scene.post("one").await;
    let frame = socket.frame().await;
    let message = ada.get(&format!("/messages/{id}")).await;
    let expected = json!({"type": "MessageNew", "cursor": null, "conversation_id": conversation, "message": message});
    assert_eq!(without_cursor(&frame), expected);

    ada.edit(&id, "two").await.expect(200);
    let frame = socket.frame().await;
    let message = ada.get(&format!("/messages/{id}")).await;
    assert_eq!(message["plaintext"], "two");
    let expected =
        json!({"type": "MessageEdited", "cursor": null, "conversation_id": conversation, "message": message});
    assert_eq!(without_cursor(&frame), expected);

    let path = format!("/messages/{id}/reactions/%F0%9F%91%8D");
    for (method, name, key, count) in
        [("PUT", "ReactionAdded", json!("👍"), 1), ("DELETE", "ReactionRemoved", json!(null), 0)]
    {
        ada.call(method, &path, None).await;
        let mut frame = without_cursor(&socket.frame().await);
        assert!(frame["reaction_id"].take().is_string());
        let reactions = ada.get(&format!("/messages/{id}")).await["reactions"].clone();
        assert_eq!(reactions.as_array().unwrap().len(), count);
        let expected = json!({
            "type": name,
            "cursor": null,
            "conversation_id": conversation,
            "message_id": id,
            "reaction_id": null,
            "user_id": ada.user_id,
            "key": key,
            "reactions": reactions,
        });
        assert_eq!(frame, expected);
    }

    ada.delete(&id).await.expect(200);
    let frame = socket.frame().await;
    let message = ada.get(&format!("/messages/{id}")).await;
    assert_eq!((&message["plaintext"], message["deleted_at"].is_string()), (&json!(null), true));
    let expected =
        json!({"type": "MessageDeleted", "cursor": null, "conversation_id": conversation, "message": message});
    assert_eq!(without_cursor(&frame), expected);

    let created = ada.create_conversation(&[scene.grace.user_id]).await;
    let frame = socket.frame().await;
    let body = ada.get(&format!("/conversations/{created}")).await;
    let expected = json!({"type": "ConversationNew", "cursor": null, "conversation_id": created, "conversation": body});
    assert_eq!(without_cursor(&frame), expected);

    let other = NovaUser::new(&scene.api).user_id;
    for (method, name) in [("PUT", "MemberAdded"), ("DELETE", "MemberRemoved")] {
        ada.call(method, &format!("/conversations/{created}/members/{other}"), None).await;
        let frame = socket.frame().await;
        let expected = json!({"type": name, "cursor": null, "conversation_id": created, "user_id": other});
        assert_eq!(without_cursor(&frame), expected);
    }

    let heartbeat = loop {
        if let shared::testing::websocket::Heard::Frame(frame) = socket.hear().await {
            break frame;
        }
    };
    assert_eq!(without_cursor(&heartbeat), json!({"type": "heartbeat", "cursor": null}));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_hear_and_who_is_removed_hears_of_that_and_of_nothing_later() {
    let scene = Scene::new().await;
    let stranger = NovaUser::new(&scene.api);
    let (mut of_ada, mut of_grace) = (scene.ada.listen(None).await, scene.grace.listen(None).await);
    let mut of_stranger = stranger.listen(None).await;
    scene.post("for both").await;
    // Before she is removed: afterwards it would not be shown to her any more.
    let first = frames(&mut of_grace, 1).await;
    assert_eq!(types(&first), ["MessageNew"]);
    let member = format!("/conversations/{}/members/{}", scene.conversation, scene.grace.user_id);
    scene.ada.call("DELETE", &member, None).await.expect(204);
    scene.post("for Ada alone").await;
    assert_eq!(types(&frames(&mut of_ada, 3).await), ["MessageNew", "MemberRemoved", "MessageNew"]);
    let heard = frames(&mut of_grace, 1).await;
    assert_eq!(types(&heard), ["MemberRemoved"]);
    assert_eq!(types(&all_for_now(&mut of_grace).await), [""; 0]);
    assert_eq!(heard[0]["user_id"], json!(scene.grace.user_id));
    assert_eq!(types(&all_for_now(&mut of_stranger).await), [""; 0]);
    // Nor does she when she comes back for it.
    let mut again = scene.grace.listen(Some(first[0]["cursor"].as_str().unwrap())).await;
    assert_eq!(types(&frames(&mut again, 1).await), ["MemberRemoved"]);
    assert_eq!(types(&all_for_now(&mut again).await), [""; 0]);

    // Who comes hears of it, and of what is said from then on.
    scene.ada.call("PUT", &member, None).await.expect(200);
    scene.post("for both again").await;
    assert_eq!(types(&frames(&mut of_grace, 2).await), ["MemberAdded", "MessageNew"]);
    assert!(of_stranger.bytes().len() < 1000, "a stranger was sent something");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_a_conversation_come_in_the_order_of_its_messages() {
    const WRITERS: usize = 8;
    const EACH: usize = 25;
    let scene = Scene::new().await;
    let mut socket = scene.grace.listen(None).await;
    let writing = (0..WRITERS).map(|writer| {
        let (ada, conversation) = (scene.ada.clone(), scene.conversation.clone());
        tokio::spawn(async move {
            for n in 0..EACH {
                ada.post(&conversation, &format!("{writer}: {n}")).await.expect(201);
            }
        })
    });
    let writing: Vec<_> = writing.collect();
    let heard = frames(&mut socket, WRITERS * EACH).await;
    for writer in writing {
        writer.await.unwrap();
    }
    let seqs: Vec<i64> = heard.iter().map(|frame| frame["message"]["seq"].as_i64().unwrap()).collect();
    assert!(seqs.is_sorted(), "{seqs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_or_replaced_text_is_in_no_replay() {
    let scene = Scene::new().await;
    let cursor = scene.ada.listen(None).await.cursor().to_owned();
    let deleted = scene.post("the secret that was deleted").await;
    scene.ada.edit(&deleted, "the secret that it was before").await.expect(200);
    scene.ada.delete(&deleted).await.expect(200);
    let edited = scene.post("the first wording").await;
    scene.ada.edit(&edited, "the last wording").await.expect(200);
    let mut socket = scene.grace.listen(Some(&cursor)).await;
    let heard = frames(&mut socket, 5).await;
    assert_eq!(
        types(&heard),
        ["MessageNew", "MessageEdited", "MessageDeleted", "MessageNew", "MessageEdited"],
        "each cursor comes, as what it is by now"
    );
    for frame in &heard[..3] {
        assert_eq!(frame["message"]["plaintext"], json!(null));
        assert!(frame["message"]["deleted_at"].is_string());
    }
    let bytes = String::from_utf8_lossy(&socket.bytes()).into_owned();
    assert!(bytes.contains("the last wording"), "what is compared is what was sent");
    for gone in ["the secret", "the first wording"] {
        assert!(!bytes.contains(gone), "{gone:?} was sent");
    }
    let kept: i64 = scene.database.count("select count(*) from events e where e::text like '%secret%'").await;
    assert_eq!(kept, 0);
}
