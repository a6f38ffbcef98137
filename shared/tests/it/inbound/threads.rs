//! What messages answer, and which begins their thread, whichever comes first.

use shared::{
    chat,
    ids::MessageId,
    inbound::{Applied, Incoming, What},
};

use super::{Scene, orders};

impl Scene {
    /// A message that answers an event, is in the thread that an event begins, or both.
    fn related(&self, id: &str, answers: Option<&Incoming>, begins: Option<&Incoming>) -> Incoming {
        let mut event = self.said(id, id);
        if let What::Message { reply_to, thread_of, .. } = &mut event.what {
            *reply_to = answers.map(|event| event.event_id.clone());
            *thread_of = begins.map(|event| event.event_id.clone());
        }
        event
    }
}

/// What each message answers, and which begins its thread, by the ids that the test gave their events.
async fn relations(scene: &Scene) -> Vec<(String, Option<String>, Option<String>)> {
    let messages = scene.messages().await;
    let name = |message: &chat::Message| {
        let event_id = message.event_id.as_ref().unwrap().as_str().trim_start_matches('$');
        event_id.strip_suffix(&format!("-{}", scene.conversation_id)).unwrap().to_owned()
    };
    let named = |id: Option<MessageId>| id.and_then(|id| messages.iter().find(|m| m.message_id == id)).map(name);
    let mut all: Vec<_> = messages.iter().map(|m| (name(m), named(m.reply_to), named(m.thread_of))).collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_thread_and_the_answers_in_it_end_the_same_in_every_order_and_clients_are_told() {
    let mut scene = Scene::new().await;
    let some = |name: &str| Some(name.to_owned());
    let expected = [
        ("answer".to_owned(), some("threaded"), some("root")),
        // Matrix has no threads within threads.
        ("nested".to_owned(), None, some("root")),
        ("root".to_owned(), None, None),
        ("threaded".to_owned(), None, some("root")),
    ];
    for order in orders(4) {
        let root = scene.said("root", "root");
        let threaded = scene.related("threaded", None, Some(&root));
        let answer = scene.related("answer", Some(&threaded), Some(&root));
        let nested = scene.related("nested", None, Some(&threaded));
        let all = [root, threaded, answer, nested];
        for &n in &order {
            let before = relations(&scene).await;
            let told = scene.count("events").await;
            scene.apply(&all[n]).await;
            let after = relations(&scene).await;
            let changed = before.iter().filter(|message| !after.contains(message)).count();
            let told = scene.count("events").await - told;
            assert!(told > i64::try_from(changed).unwrap(), "not all changes were told, in the order {order:?}");
        }
        assert_eq!(relations(&scene).await, expected, "in the order {order:?}");
        for &n in &order {
            assert_eq!(scene.apply(&all[n]).await, Applied::Duplicate);
        }
        assert_eq!(relations(&scene).await, expected, "after a repetition, in the order {order:?}");
        scene.another().await;
    }
}

#[tokio::test]
async fn an_answer_to_an_edit_answers_its_message_in_every_order() {
    let mut scene = Scene::new().await;
    for order in orders(4) {
        let message = scene.said("message", "question");
        let edit = scene.edited("edit", 2000, &message, "better question");
        let answer = scene.related("answer", Some(&edit), None);
        // An edit begins no thread.
        let threaded = scene.related("threaded", None, Some(&edit));
        let all = [message, edit, answer, threaded];
        for &n in &order {
            scene.apply(&all[n]).await;
        }
        let expected = [
            ("answer".to_owned(), Some("message".to_owned()), None),
            ("message".to_owned(), None, None),
            ("threaded".to_owned(), None, None),
        ];
        assert_eq!(relations(&scene).await, expected, "in the order {order:?}");
        scene.another().await;
    }
}

#[tokio::test]
async fn no_message_is_joined_to_itself() {
    let scene = Scene::new().await;
    let (mut own, mut one) = (scene.said("own", "own"), scene.said("one", "one"));
    own = scene.related("own", Some(&own), Some(&own));
    let other = scene.related("other", None, Some(&one));
    one = scene.related("one", None, Some(&other));
    for event in [&own, &one, &other] {
        scene.apply(event).await;
    }
    let expected = [
        ("one".to_owned(), None, None),
        ("other".to_owned(), None, Some("one".to_owned())),
        ("own".to_owned(), None, None),
    ];
    assert_eq!(relations(&scene).await, expected);
}
