//! Coming back: nothing is missed, nothing comes twice, and who was away for too long is told so.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use shared::{
    events,
    testing::{
        eventually,
        nova::NovaUser,
        websocket::{Heard, Socket},
    },
};
use sqlx::Connection as _;

use super::{Scene, all_for_now, api_with, frames, metric, types, without_cursor};

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_is_told_what_happened_meanwhile_whichever_process_they_come_to() {
    let scene = Scene::new().await;
    let other = api_with(&scene.database, &[]).await;
    let mut here = scene.grace.listen(None).await;
    let mut there = scene.grace.via(&other).listen(None).await;
    scene.post("one").await;
    let first = (here.frame().await, there.frame().await);
    assert_eq!(first.0, first.1, "both processes show the same");
    let cursor = here.cursor().to_owned();
    drop((here, there));
    for n in 0..100 {
        scene.post(&format!("meanwhile {n}")).await;
    }
    let mut back = scene.grace.listen(Some(&cursor)).await;
    let mut back_there = scene.grace.via(&other).listen(Some(&cursor)).await;
    let heard = frames(&mut back, 100).await;
    assert_eq!(heard, frames(&mut back_there, 100).await);
    let said: Vec<&str> = heard.iter().map(|frame| frame["message"]["plaintext"].as_str().unwrap()).collect();
    let expected: Vec<String> = (0..100).map(|n| format!("meanwhile {n}")).collect();
    assert_eq!(said, expected);
    // And from there on, what happens.
    scene.post("now").await;
    for socket in [&mut back, &mut back_there] {
        assert_eq!(socket.frame().await["message"]["plaintext"], "now");
    }
    assert!(all_for_now(&mut back).await.is_empty());
}

/// What a client collects over many connections.
#[derive(Default)]
struct Collected {
    cursors: BTreeMap<String, u32>,
    last: Option<String>,
}

impl Collected {
    fn take(&mut self, heard: Heard) -> bool {
        let Heard::Frame(frame) = heard else { return false };
        let cursor = frame["cursor"].as_str().unwrap().to_owned();
        if !matches!(frame["type"].as_str(), Some("ready" | "heartbeat")) {
            *self.cursors.entry(cursor.clone()).or_default() += 1;
            assert_ne!(frame["type"], "resync", "nothing is lost in a few minutes");
        }
        self.last = Some(cursor);
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_hundred_forced_disconnects_each_cursor_is_seen_once_and_none_is_missing() {
    let seed: u64 = std::env::var("SEED").map_or(11, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut random = seed;
    let scene = Scene::with(&[("WS_HEARTBEAT", "1500ms")]).await;
    let other = api_with(&scene.database, &[("WS_HEARTBEAT", "1500ms")]).await;
    let begin = scene.grace.listen(None).await.cursor().to_owned();
    let stop = tokio_util::sync::CancellationToken::new();
    let writing: Vec<_> = (0..3)
        .map(|writer| {
            let (ada, stop) = (scene.ada.clone(), stop.clone());
            let conversation = scene.conversation.clone();
            let grace = scene.grace.user_id;
            tokio::spawn(async move {
                let own = ada.create_conversation(&[grace]).await;
                let mut n = 0;
                while !stop.is_cancelled() {
                    let conversation = if n % 2 == 0 { &conversation } else { &own };
                    let message = ada.post(conversation, &format!("{writer}: {n}")).await.expect(201);
                    let id = message["id"].as_str().unwrap();
                    if n % 3 == 0 {
                        ada.edit(id, "edited").await.expect(200);
                    }
                    if n % 5 == 0 {
                        ada.delete(id).await.expect(200);
                    }
                    n += 1;
                }
            })
        })
        .collect();
    let mut collected = Collected { last: Some(begin), ..Collected::default() };
    for n in 0..100 {
        let api = if n % 2 == 0 { &scene.api } else { &other };
        let mut socket = scene.grace.via(api).try_listen(collected.last.as_deref()).await.unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Cut in the middle of anything: of a page, of a frame that is on its way.
        let frames = random % 40;
        let limit = Duration::from_millis(random % 150);
        let _ = tokio::time::timeout(limit, async {
            for _ in 0..=frames {
                let heard = socket.hear().await;
                assert!(collected.take(heard), "the server closes no connection");
            }
        })
        .await;
        drop(socket);
    }
    stop.cancel();
    for writer in writing {
        writer.await.unwrap();
    }
    // What is still to come, to the last row.
    let rows = scene.database.count("select count(*) from events").await;
    let before = scene
        .database
        .count("select count(*) from events where kind = 'conversation_new' and xid = (select min(xid) from events)")
        .await;
    let mut socket = scene.grace.try_listen(collected.last.as_deref()).await.unwrap();
    let expected = usize::try_from(rows - before).unwrap();
    while collected.cursors.len() < expected {
        let heard = socket.hear().await;
        assert!(collected.take(heard));
    }
    assert!(all_for_now(&mut socket).await.is_empty());
    assert_eq!(collected.cursors.len(), expected, "against the log; SEED={seed}");
    assert!(collected.cursors.values().all(|times| *times == 1), "some came twice; SEED={seed}");
    let in_log: Vec<String> = sqlx::query_scalar(
        "select to_hex(xid::text::bigint) || '.' || to_hex(event_id) from events order by xid, event_id",
    )
    .fetch_all(&scene.database.pool)
    .await
    .unwrap();
    let mut in_log = in_log[usize::try_from(before).unwrap()..].to_vec();
    in_log.sort();
    assert_eq!(collected.cursors.into_keys().collect::<Vec<_>>(), in_log, "SEED={seed}");
}

async fn resynced(user: &NovaUser, since: &str, reason: &str) -> Socket {
    let mut socket = user.try_listen(Some(since)).await.unwrap();
    assert_eq!(socket.frame().await["type"], "ready");
    let resync = socket.frame().await;
    assert_eq!(without_cursor(&resync), json!({"type": "resync", "cursor": null, "reason": reason}));
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_log_does_not_reach_any_more_is_told_to_read_anew_and_goes_on_from_there() {
    let scene = Scene::new().await;
    let old = scene.grace.listen(None).await.cursor().to_owned();
    scene.post("long ago").await;
    let mut idle = scene.grace.listen(None).await;
    scene.post("also").await;
    let known = idle.frame().await["cursor"].as_str().unwrap().to_owned();
    scene.database.advance(Duration::from_hours(25)).await;
    let day = Duration::from_hours(24);
    let gone = eventually("the log is cut", || async {
        let gone = events::forget(&scene.database.pool, day, 100).await.unwrap();
        (gone > 0).then_some(gone)
    })
    .await;
    assert_eq!(gone, 3, "the conversation and two messages");
    let mut socket = resynced(&scene.grace, &old, "too_old").await;
    // Its last event is the log's floor: who has it has missed nothing.
    let mut informed = scene.grace.listen(Some(&known)).await;
    scene.post("anew").await;
    for socket in [&mut socket, &mut idle, &mut informed] {
        let heard = socket.frame().await;
        assert_eq!(heard["message"]["plaintext"], "anew", "{heard}");
    }
    let cursor = socket.cursor().to_owned();
    assert!(all_for_now(&mut scene.grace.listen(Some(&cursor)).await).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_life_of_the_database_or_of_nobody_is_told_to_read_anew() {
    let scene = Scene::new().await;
    for (since, reason) in [
        ("7fffffffffff.5", "from_the_future"),
        ("nonsense", "unknown"),
        ("1.2.3", "unknown"),
        ("%F0%9F%A6%80", "unknown"),
    ] {
        let mut socket = resynced(&scene.grace, since, reason).await;
        let text = format!("after {since}");
        scene.post(&text).await;
        assert_eq!(socket.frame().await["message"]["plaintext"], json!(text));
    }
    // Without a value it is as if it were not there.
    let mut socket = scene.grace.try_listen(Some("")).await.unwrap();
    assert_eq!(socket.frame().await["type"], "ready");
    assert!(all_for_now(&mut socket).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_clients_heartbeats_carry_its_cursor_past_what_others_do() {
    let scene = Scene::with(&[("WS_HEARTBEAT", "1500ms")]).await;
    let idle_user = NovaUser::new(&scene.api);
    let mut idle = idle_user.listen(None).await;
    let begin = idle.cursor().to_owned();
    scene.post("of others").await;
    scene.database.advance(Duration::from_hours(25)).await;
    eventually("the log is cut", || async {
        let gone = events::forget(&scene.database.pool, Duration::from_hours(24), 100).await.unwrap();
        (gone > 0).then_some(())
    })
    .await;
    // Behind the floor its first cursor is; its heartbeat's is not.
    while idle.cursor() == begin {
        assert!(matches!(idle.hear().await, Heard::Frame(_)), "it stays connected");
    }
    let mut back = idle_user.listen(Some(idle.cursor())).await;
    assert!(all_for_now(&mut back).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_anywhere_holds_the_log_back_and_nothing_of_it_is_skipped() {
    let scene = Scene::new().await;
    let mut socket = scene.grace.listen(None).await;
    let mut other = sqlx::PgConnection::connect(&scene.database.url).await.unwrap();
    let mut open = other.begin().await.unwrap();
    // Its rows have an older transaction id than what is committed while it is open.
    let conversation: uuid::Uuid = scene.conversation.parse().unwrap();
    sqlx::query("select pg_current_xact_id()").execute(&mut *open).await.unwrap();
    let message: uuid::Uuid = scene.post("committed first").await.parse().unwrap();
    assert!(all_for_now(&mut socket).await.is_empty(), "nothing is told out of turn");
    let lag = eventually("the lag is shown", || async {
        metric(&scene.api, "event_log_lag_seconds").await.filter(|lag| *lag > 0.0)
    })
    .await;
    assert!(lag < 60.0, "{lag}");
    sqlx::query("insert into events (conversation_id, kind, subject_id) values ($1, 'message_edited', $2)")
        .bind(conversation)
        .bind(message)
        .execute(&mut *open)
        .await
        .unwrap();
    open.commit().await.unwrap();
    let heard = frames(&mut socket, 2).await;
    assert_eq!(types(&heard), ["MessageEdited", "MessageNew"], "in the log's order");
    let ids: Vec<&Value> = heard.iter().map(|frame| &frame["message"]["id"]).collect();
    assert_eq!(ids[0], ids[1]);
}
