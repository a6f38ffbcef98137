//! The homeserver is down, limits the rate, or no longer knows our token: nothing of that is an operation's fault, and
//! nothing is asked more often than it takes to notice the end.

use std::time::{Duration, Instant};

use shared::testing::{
    eventually,
    homeserver::{FakeHomeserver, Kind, LoggedRequest},
};

use crate::scene::{Home, Scene, id, metric, room_of, sends};

/// A message in each of so many conversations, whose rooms stand already.
async fn one_each(scene: &Scene, conversations: &[String], text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    for conversation in conversations {
        messages.push(id(&scene.ada.post(conversation, text).await.expect(201)));
    }
    messages
}

async fn begun(scene: &Scene, many: usize) -> Vec<String> {
    let mut conversations = Vec::new();
    for _ in 0..many {
        conversations.push(scene.ada.create_conversation(&[scene.grace.user_id]).await);
    }
    for message in one_each(scene, &conversations, "begun").await {
        scene.ada.delivered(&message).await;
    }
    scene.drained().await;
    conversations
}

fn since(fake: &FakeHomeserver, moment: Instant) -> Vec<LoggedRequest> {
    fake.requests().into_iter().filter(|request| request.arrived > moment).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_is_down_is_probed_and_asked_nothing_else_until_it_answers() {
    const PROBE: Duration = Duration::from_millis(250);
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker_with(&[("OUTBOX_PROBE", "250ms")]).await;
    let conversations = begun(&scene, 20).await;
    fake.on_any().fail(502).html("<h1>Bad gateway</h1>").always();
    one_each(&scene, &conversations, "during the outage").await;
    eventually("the circuit is open", || async { (metric(&worker, "outbox_circuit_state").await > 1.5).then_some(()) })
        .await;
    // What was under way when it opened may still be on its way.
    eventually("nothing is under way", || async {
        let leased = "select count(*) from lanes where owner is not null";
        (scene.database.count(leased).await == 0).then_some(())
    })
    .await;
    let open = Instant::now();
    scene.database.advance(Duration::from_hours(1)).await;
    let last = one_each(&scene, &conversations, "an hour later").await;
    eventually("it was probed a few times", || async { (since(&fake, open).len() >= 6).then_some(()) }).await;
    let asked = since(&fake, open);
    let most = open.elapsed().as_millis() / PROBE.as_millis() + 1;
    assert!(asked.len() as u128 <= most, "{} requests in {:?}", asked.len(), open.elapsed());
    assert!(asked.iter().all(|request| request.path.ends_with("/whoami")), "{asked:?}");
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    assert_eq!(scene.database.count("select coalesce(sum(attempts), 0)::bigint from outbox").await, 0);

    fake.clear_faults();
    for message in last {
        let message = scene.ada.delivered(&message).await;
        let bodies: Vec<_> =
            fake.timeline(room_of(&message)).iter().filter_map(|event| event.body().map(str::to_owned)).collect();
        assert_eq!(bodies, ["begun", "during the outage", "an hour later"]);
    }
    eventually("the circuit is closed", || async {
        (metric(&worker, "outbox_circuit_state").await < 0.5).then_some(())
    })
    .await;
    assert!(metric(&worker, "outbox_circuit_probes_total").await >= 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_one_lane_goes_first() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    // It must not give up what is held here.
    let worker = scene.patient_worker().await;
    let conversations = begun(&scene, 20).await;
    fake.set_down(true).await;
    let messages = one_each(&scene, &conversations, "words").await;
    eventually("the circuit is open", || async { (metric(&worker, "outbox_circuit_state").await > 1.5).then_some(()) })
        .await;
    scene.later().await;
    let held = fake.on_send().hold().always();
    fake.set_down(false).await;
    held.arrived().await;
    // Polls go by, and the other lanes are due.
    let polls = worker.log().len();
    eventually("it was probed", || async { (metric(&worker, "outbox_circuit_state").await < 1.5).then_some(()) }).await;
    assert_eq!(held.hits(), 1, "{polls}");
    held.release();
    for message in messages {
        scene.ada.delivered(&message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_holds_everything_burns_nothing_and_is_told_until_it_is_accepted_again() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker().await;
    let conversations = begun(&scene, 10).await;
    assert!((metric(&worker, "matrix_token_accepted").await - 1.0).abs() < 0.1);
    fake.on_any().fail(401).always();
    let messages = one_each(&scene, &conversations, "words").await;
    eventually("the circuit is open", || async { (metric(&worker, "outbox_circuit_state").await > 1.5).then_some(()) })
        .await;
    assert!(metric(&worker, "matrix_token_accepted").await < 0.1);
    eventually("nothing is under way", || async {
        let leased = "select count(*) from lanes where owner is not null";
        (scene.database.count(leased).await == 0).then_some(())
    })
    .await;
    let tried = sends(&fake).len();
    let probed = fake.count(Kind::Account);
    scene.later().await;
    eventually("it asks who it is", || async { (fake.count(Kind::Account) >= probed + 3).then_some(()) }).await;
    assert_eq!(sends(&fake).len(), tried, "it went on sending");
    assert_eq!(scene.database.count("select coalesce(sum(attempts + failures), 0)::bigint from outbox").await, 0);
    let told = worker.log().iter().filter(|line| line.contains("does not accept our token")).count();
    assert_eq!(told, 1, "once, not with each probe");
    fake.clear_faults();
    for message in messages {
        scene.ada.delivered(&message).await;
    }
    assert!((metric(&worker, "matrix_token_accepted").await - 1.0).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_that_one_send_meets_is_kept_by_all_and_burns_nothing() {
    const LIMIT: Duration = Duration::from_millis(1_500);
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let worker = scene.worker().await;
    let conversations = begun(&scene, 10).await;
    let limited = fake.on_send().fail(429).retry_after(LIMIT).once();
    let first = id(&scene.ada.post(&conversations[0], "limited").await.expect(201));
    limited.arrived().await;
    let at = sends(&fake).last().unwrap().arrived;
    scene.attempted("refused", 1).await;
    let others = one_each(&scene, &conversations[1..], "words").await;
    for message in others.iter().chain([&first]) {
        scene.ada.delivered(message).await;
    }
    let next = sends(&fake).into_iter().map(|request| request.arrived).find(|arrived| *arrived > at).unwrap();
    assert!(next - at >= LIMIT, "another lane sent {:?} after the limit was met", next - at);
    assert_eq!(limited.hits(), 1);
    assert!(metric(&worker, "outbox_rate_limited_seconds_total").await >= 1.0);
    let outcomes = "select count(*) from attempts where outcome not in ('delivered', 'refused')";
    assert_eq!(scene.database.count(outcomes).await, 0);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_kept_whether_header_or_body_says_so_and_the_header_goes_first() {
    const BODY: Duration = Duration::from_millis(1_100);
    /// A header counts whole seconds, rounded up.
    const HEADER: Duration = Duration::from_secs(2);
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let conversation = &begun(&scene, 1).await[0];
    for (form, least) in [("both", HEADER), ("body", BODY), ("page", HEADER), ("gateway", HEADER)] {
        let limited = fake.on_send().fail(429).retry_after(BODY);
        let limited = match form {
            "body" => limited.in_body_only(),
            "page" => limited.html("<h1>Too many requests</h1>"),
            "gateway" => limited.html(r#"{"message": "API rate limit exceeded"}"#),
            _ => limited,
        };
        limited.once();
        let message = id(&scene.ada.post(conversation, form).await.expect(201));
        scene.ada.delivered(&message).await;
        let sends = sends(&fake);
        let [.., first, second] = &sends[..] else { panic!("{form}: {} sends", sends.len()) };
        let waited = second.arrived - first.arrived;
        assert_eq!((first.status, &first.txn), (Some(429), &second.txn));
        assert!(waited >= least, "{form}: {waited:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_of_an_invitation_holds_back_its_own_lane_only() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let _worker = scene.worker().await;
    let conversations = begun(&scene, 2).await;
    let limited = fake.on_invite().fail(429).retry_after(Duration::from_mins(1)).always();
    let alan = shared::testing::nova::NovaUser::new(&scene.api);
    let path = format!("/conversations/{}/members/{}", conversations[0], alan.user_id);
    assert_eq!(scene.ada.call("PUT", &path, None).await.status, 200);
    limited.arrived().await;
    let elsewhere = id(&scene.ada.post(&conversations[1], "words").await.expect(201));
    scene.ada.delivered(&elsewhere).await;
}
