//! Crashes, lost wake-ups, slow clients.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use shared::testing::{
    PATIENCE, eventually,
    nova::{NovaUser, Program},
    proxy::PgProxy,
    websocket::Heard,
};

use super::{Scene, all_for_now, api_with, environment_with, frames, metric};

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_between_commit_and_broadcast_loses_none() {
    let scene = Scene::new().await;
    let proxy = PgProxy::start(&scene.database.url).await;
    let mut dying = Program::start("api", &environment_with(proxy.url(), &[("OUTBOX_NOTIFY", "false")])).await;
    let mut elsewhere = scene.grace.listen(None).await;
    let mut there = scene.grace.via(&dying).listen(None).await;
    // It has read all that there is, so its next commit is that of a message.
    scene.post("first words").await;
    assert_eq!(there.frame().await, elsewhere.frame().await);
    let cursor = there.cursor().to_owned();
    let pid = dying.pid();
    // Killed before the commit is passed on, which it is all the same: so it is committed, and nobody is left to tell.
    proxy.on_commit(move || {
        let _ = kill_process(pid, Signal::KILL);
    });
    let body = json!({"conversation_id": scene.conversation, "plaintext": "last words"});
    let answer = scene.ada.via(&dying).try_call("POST", "/messages", Some(&body)).await;
    assert!(answer.is_err(), "it died before it could answer");
    dying.ended().await;
    assert_eq!(there.ended().await, Heard::CutOff);
    assert_eq!(elsewhere.frame().await["message"]["plaintext"], "last words", "another process tells");
    let mut back = scene.grace.listen(Some(&cursor)).await;
    assert_eq!(back.frame().await["message"]["plaintext"], "last words", "and so it does when one comes back");
    assert!(all_for_now(&mut back).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_wake_up_it_comes_within_a_poll() {
    const POLL: Duration = Duration::from_secs(1);
    let scene = Scene::with(&[("OUTBOX_NOTIFY", "false")]).await;
    let other = api_with(&scene.database, &[("OUTBOX_NOTIFY", "false"), ("EVENTS_POLL", "1s")]).await;
    let mut socket = scene.grace.via(&other).listen(None).await;
    let mut fastest = PATIENCE;
    // The best of some: other tests of the same server may hold the log back for a moment.
    for n in 0..5 {
        let text = format!("quietly {n}");
        scene.post(&text).await;
        let committed = Instant::now();
        assert_eq!(socket.frame().await["message"]["plaintext"], json!(text));
        fastest = fastest.min(committed.elapsed());
    }
    assert!(fastest < POLL + Duration::from_millis(200), "{fastest:?}");
    for name in ["outbox_wakeups_sent_total", "event_log_wakeups_sent_total"] {
        assert_eq!(metric(&scene.api, name).await, Some(0.0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wake_ups_another_process_tells_long_before_its_poll() {
    let scene = Scene::new().await;
    let other = api_with(&scene.database, &[("EVENTS_POLL", "1h")]).await;
    eventually("the other process listens", || async {
        (metric(&other, "event_log_listening").await == Some(1.0)).then_some(())
    })
    .await;
    let mut socket = scene.grace.via(&other).listen(None).await;
    for n in 0..20 {
        let text = format!("aloud {n}");
        scene.post(&text).await;
        assert_eq!(socket.frame().await["message"]["plaintext"], json!(text));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_clients_stay_and_hear_the_rest_afterwards() {
    let scene = Scene::new().await;
    let proxy = PgProxy::start(&scene.database.url).await;
    let other = Program::start("api", &environment_with(proxy.url(), &[])).await;
    let mut socket = scene.grace.via(&other).listen(None).await;
    proxy.cut();
    for n in 0..10 {
        scene.post(&format!("meanwhile {n}")).await;
    }
    assert!(all_for_now(&mut socket).await.is_empty());
    proxy.restore();
    for (n, frame) in frames(&mut socket, 10).await.iter().enumerate() {
        assert_eq!(frame["message"]["plaintext"], json!(format!("meanwhile {n}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_closed_delays_nobody_and_resumes() {
    const MESSAGES: usize = 600;
    // Long enough for who reads on a busy machine.
    let scene = Scene::with(&[("WS_WRITE_TIMEOUT", "3s")]).await;
    let mut slow = scene.grace.listen(None).await;
    let mut quick = scene.ada.listen(None).await;
    // More than the buffers of both sockets hold.
    let text = "x".repeat(19_000);
    let posting = (0..6).map(|_| {
        let (ada, conversation, text) = (scene.ada.clone(), scene.conversation.clone(), text.clone());
        tokio::spawn(async move {
            for _ in 0..MESSAGES / 6 {
                ada.post(&conversation, &text).await.expect(201);
            }
        })
    });
    let posting: Vec<_> = posting.collect();
    let seqs = |frames: &[Value]| -> Vec<i64> {
        frames.iter().map(|frame| frame["message"]["seq"].as_i64().unwrap()).collect()
    };
    let all = seqs(&frames(&mut quick, MESSAGES).await);
    for writer in posting {
        writer.await.unwrap();
    }
    eventually("the slow client is given up", || async {
        (metric(&scene.api, "ws_slow_clients_total").await == Some(1.0)).then_some(())
    })
    .await;
    let mut heard = Vec::new();
    let end = loop {
        match slow.hear().await {
            Heard::Frame(frame) if frame["type"] == "heartbeat" => {}
            Heard::Frame(frame) => heard.push(frame),
            end => break end,
        }
    };
    assert!(heard.len() < MESSAGES, "it was not slow");
    match end {
        Heard::Closed(code, reason) => assert!(code == 4408 && reason.contains("too slowly"), "{code} {reason}"),
        // It did not even read in time what says so.
        Heard::CutOff => {}
        Heard::Frame(_) => unreachable!("frames are collected"),
    }
    let mut back = scene.grace.listen(Some(slow.cursor())).await;
    heard.extend(frames(&mut back, MESSAGES - heard.len()).await);
    assert_eq!(seqs(&heard), all, "each once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_after_it_was_given_up_learns_why() {
    let scene = Scene::with(&[("WS_WRITE_TIMEOUT", "5s")]).await;
    let mut slow = scene.grace.listen(None).await;
    let text = "y".repeat(19_000);
    // It stops reading until the server gives up, and then reads on, while the server still tries to tell why.
    let given_up = async {
        loop {
            // Several at a time: it takes megabytes to fill the buffers of both sockets.
            tokio::join!(scene.post(&text), scene.post(&text), scene.post(&text), scene.post(&text));
            if metric(&scene.api, "ws_slow_clients_total").await == Some(1.0) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE * 3, given_up).await.unwrap();
    match slow.ended().await {
        Heard::Closed(code, reason) => assert!(code == 4408 && reason.contains("too slowly"), "{code} {reason}"),
        end => panic!("{end:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_says_so_and_the_clients_go_on_elsewhere() {
    let scene = Scene::new().await;
    let mut other = api_with(&scene.database, &[]).await;
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(scene.grace.via(&other).listen(None).await);
    }
    other.signal(Signal::TERM);
    for socket in &mut sockets {
        match socket.ended().await {
            Heard::Closed(code, reason) => assert!(code == 1001 && reason.contains("resume"), "{code} {reason}"),
            end => panic!("{end:?}"),
        }
    }
    assert!(other.ended().await.success());
    scene.post("meanwhile").await;
    let mut back = scene.grace.listen(Some(sockets[0].cursor())).await;
    assert_eq!(back.frame().await["message"]["plaintext"], "meanwhile");
    let stranger = NovaUser::new(&scene.api);
    assert!(all_for_now(&mut stranger.listen(None).await).await.is_empty());
}
