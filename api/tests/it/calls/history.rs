//! The history of calls, and which were missed.

use std::time::Duration;

use serde_json::{Value, json};
use shared::testing::nova::NovaUser;

use super::{ANSWER, Scene, id, offer, read, say};

fn ids(page: &Value) -> Vec<&str> {
    page["calls"].as_array().unwrap().iter().map(|call| call["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_read_page_by_page_newest_first() {
    let scene = Scene::with(&[("CALLS_PER_CALLER", "0"), ("CALLS_PER_CALLEE", "0")]).await;
    let mut placed = Vec::new();
    for _ in 0..5 {
        let call = scene.ring().await;
        say(&scene.ada, &call, "hangup", json!({})).await.expect(200);
        placed.insert(0, call);
    }
    let other = scene.ada.create_conversation(&[scene.grace.user_id]).await;
    let body = offer(&other, json!({}));
    let elsewhere = id(&scene.ada.call("POST", "/calls/initiate", Some(&body)).await.expect(201));
    let all = scene.grace.get("/calls").await;
    assert_eq!(
        (ids(&all)[0], &ids(&all)[1..]),
        (elsewhere.as_str(), placed.iter().map(String::as_str).collect::<Vec<_>>().as_slice())
    );
    assert_eq!(all["next_cursor"], json!(null));
    let (mut read, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = format!("/calls?conversation_id={}&limit=2&cursor={cursor}", scene.conversation);
        let page = scene.grace.get(&page).await;
        assert!(ids(&page).len() <= 2);
        read.extend(ids(&page).into_iter().map(str::to_owned));
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(read, placed);
    assert_eq!(NovaUser::new(&scene.api).get("/calls").await["calls"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_is_what_one_was_called_for_and_neither_answered_nor_declined() {
    let scene = Scene::new().await;
    let cancelled = scene.ring().await;
    say(&scene.ada, &cancelled, "hangup", json!({})).await.expect(200);
    let declined = scene.ring().await;
    say(&scene.grace, &declined, "reject", json!({})).await.expect(200);
    let answered = scene.talk().await;
    say(&scene.ada, &answered, "hangup", json!({})).await.expect(200);
    let ringing = scene.ring().await;
    for (user, expected) in [(&scene.grace, vec![cancelled.as_str()]), (&scene.ada, vec![])] {
        assert_eq!(ids(&user.get("/calls?missed=true").await), expected);
    }
    assert_eq!(read(&scene.grace, &cancelled).await["missed"], true);
    for (user, call) in
        [(&scene.ada, &cancelled), (&scene.grace, &declined), (&scene.grace, &answered), (&scene.grace, &ringing)]
    {
        assert_eq!(read(user, call).await["missed"], false, "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_rang_out_is_not_answered_any_more() {
    let scene = Scene::new().await;
    let call = id(&scene.initiate(&scene.ada, json!({"lifetime_ms": 30_000})).await.expect(201));
    scene.database.advance(Duration::from_secs(31)).await;
    let refused = say(&scene.grace, &call, "answer", json!({"sdp_answer": ANSWER})).await;
    assert_eq!((refused.status, refused.code()), (409, "call_ended"), "{}", refused.body);
}
