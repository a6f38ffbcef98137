//! Several who do something at once: two who call each other, two devices of one user.

use serde_json::{Value, json};
use shared::testing::nova::NovaUser;

use super::{ANSWER, Scene, id, read, say};

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_call_each_other_one_call_stays_in_both_orders() {
    for ada_first in [true, false] {
        let scene = Scene::new().await;
        let (first, second) = if ada_first { (&scene.ada, &scene.grace) } else { (&scene.grace, &scene.ada) };
        let one = id(&scene.initiate(first, json!({})).await.expect(201));
        let other = id(&scene.initiate(second, json!({})).await.expect(201));
        let calls = [read(first, &one).await, read(first, &other).await];
        let (lost, stays): (Vec<&Value>, Vec<&Value>) = calls.iter().partition(|call| call["status"] == "ended");
        assert_eq!((lost.len(), stays.len()), (1, 1), "{calls:?}");
        assert_eq!((&lost[0]["reason"], &lost[0]["replaced_by"]), (&json!("glare"), &stays[0]["id"]));
        assert_eq!(stays[0]["status"], "ringing");
        // The smaller call id counts, as on Matrix: that of the call placed first.
        assert_eq!(stays[0]["id"], json!(one));
        say(second, &one, "answer", json!({"sdp_answer": ANSWER})).await.expect(200);
        // Neither has missed anything.
        for user in [first, second] {
            assert_eq!(user.get("/calls?missed=true").await["calls"], json!([]));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_call_each_other_at_once_end_up_in_one_call() {
    let scene = Scene::new().await;
    let (one, other) = tokio::join!(scene.initiate(&scene.ada, json!({})), scene.initiate(&scene.grace, json!({})));
    let calls = [read(&scene.ada, &id(&one.expect(201))).await, read(&scene.ada, &id(&other.expect(201))).await];
    let ringing: Vec<&Value> = calls.iter().filter(|call| call["status"] == "ringing").collect();
    assert_eq!(ringing.len(), 1, "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_devices_that_answer_the_first_counts() {
    let scene = Scene::new().await;
    let call = scene.ring().await;
    let answer = |party: &str| json!({"sdp_answer": ANSWER, "party_id": party});
    say(&scene.grace, &call, "answer", answer("phone")).await.expect(200);
    // That it is repeated changes nothing; another device learns that it came too late.
    say(&scene.grace, &call, "answer", answer("phone")).await.expect(200);
    let refused = say(&scene.grace, &call, "answer", answer("tablet")).await;
    assert_eq!((refused.status, refused.code()), (409, "answered_elsewhere"));
    let now = read(&scene.ada, &call).await;
    assert_eq!(now["answered_by"], json!({"user_id": scene.grace.user_id, "party_id": "phone"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_devices_that_answer_at_once_one_counts() {
    const DEVICES: usize = 6;
    let scene = Scene::new().await;
    let call = scene.ring().await;
    let answering: Vec<_> = (0..DEVICES)
        .map(|n| {
            let (grace, call) = (scene.grace.clone(), call.clone());
            let body = json!({"sdp_answer": ANSWER, "party_id": format!("device-{n}")});
            tokio::spawn(async move { say(&grace, &call, "answer", body).await })
        })
        .collect();
    let mut counted = Vec::new();
    for (n, answer) in answering.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        if answer.status == 200 {
            counted.push(format!("device-{n}"));
        } else {
            assert_eq!((answer.status, answer.code()), (409, "answered_elsewhere"));
        }
    }
    assert_eq!(counted.len(), 1, "{counted:?}");
    assert_eq!(read(&scene.ada, &call).await["answered_by"]["party_id"], json!(counted[0]));
    assert_eq!(scene.database.count("select count(*) from call_signals where kind = 'answer'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_a_whole_conversation_rings_until_one_answers() {
    let scene = Scene::new().await;
    let alan = NovaUser::new(&scene.api);
    let member = format!("/conversations/{}/members/{}", scene.conversation, alan.user_id);
    scene.ada.call("PUT", &member, None).await.expect(200);
    let call = scene.initiate(&scene.ada, json!({})).await.expect(201);
    assert_eq!(call["invitee_id"], json!(null));
    let call = id(&call);
    // One who does not want to leaves the other ringing.
    let declined = say(&scene.grace, &call, "reject", json!({})).await.expect(200);
    assert_eq!(declined["status"], "ringing");
    let answered = say(&alan, &call, "answer", json!({"sdp_answer": ANSWER})).await.expect(200);
    assert_eq!(answered["answered_by"]["user_id"], json!(alan.user_id));
    let refused = say(&scene.grace, &call, "answer", json!({"sdp_answer": ANSWER})).await;
    assert_eq!((refused.status, refused.code()), (409, "answered_elsewhere"));
}
