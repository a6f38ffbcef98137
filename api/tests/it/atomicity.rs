//! Law 1: a message and its outbox row are committed together or not at all, wherever the process dies.

use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::json;
use shared::{
    ids::UserId,
    testing::{
        database::TestDatabase,
        nova::{Answer, NovaUser, Program, api_environment},
        proxy::PgProxy,
    },
};

/// Everything that a half-written message would leave behind.
async fn assert_whole(database: &TestDatabase) {
    let broken = database
        .count(
            "select (select count(*) from messages m left join outbox o on o.conversation_id = m.conversation_id
                    and o.outbox_id = m.send_outbox_id where o.outbox_id is null)
                + (select count(*) from outbox o left join messages m on m.conversation_id = o.conversation_id
                    and m.send_outbox_id = o.outbox_id where m.message_id is null)
                + (select count(*) from messages m left join message_revisions r on r.message_id = m.message_id
                    where r.message_id is null)
                + (select count(*) from messages m join outbox o on o.outbox_id = m.send_outbox_id where o.seq <> m.seq)
                + (select count(*) from lanes l where open <> (select count(*) from outbox o
                    where o.conversation_id = l.conversation_id and o.lane_id = l.lane_id))",
        )
        .await;
    assert_eq!(broken, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_statement_of_a_post_nothing_is_half_written() {
    let database = TestDatabase::create().await;
    let mut survived = false;
    let mut answered = 0;
    let mut statement = 0;
    while !survived {
        statement += 1;
        assert!(statement < 40, "a POST never got through");
        let proxy = PgProxy::start(&database.url).await;
        let mut environment = api_environment(proxy.url());
        // Whoever looks at the event log meanwhile sends statements too.
        environment.insert("EVENTS_POLL".into(), "1h".into());
        let api = Program::start("api", &environment).await;
        let ada = NovaUser::new(&api);
        let conversation = ada.create_conversation(&[UserId::generate()]).await;
        // Statements are prepared at their first use; from the second on a request's statements are always the same.
        ada.post(&conversation, "warm").await.expect(201);
        answered += 1;
        let pid = api.pid();
        proxy.on_statement(move |number| {
            if number == statement {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let body = json!({"conversation_id": conversation, "plaintext": format!("killed at {statement}")});
        survived = match ada.try_call("POST", "/messages", Some(&body)).await {
            Ok(Answer { status: 201, .. }) => {
                answered += 1;
                // Wake-ups are statements of their own: the kill may have come after the answer.
                proxy.statements() < statement
            }
            _ => false,
        };
        assert_whole(&database).await;
        let written = database.count("select count(*) from messages").await;
        assert!(written >= answered, "an answered message is gone: {written} of {answered}");
    }
    assert!(statement > 8, "a POST has more statements than {statement}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_a_hundred_times_at_random_nothing_is_half_written() {
    // `KILLS=1000` by hand.
    let kills: u64 = std::env::var("KILLS").map_or(100, |kills| kills.parse().unwrap());
    let seed: u64 = std::env::var("SEED").map_or(7, |seed| seed.parse().unwrap());
    println!("SEED={seed} KILLS={kills}");
    let database = TestDatabase::create().await;
    let mut random = seed;
    let mut answered = 0;
    for kill in 0..kills {
        let mut api = Program::start("api", &api_environment(&database.url)).await;
        let ada = NovaUser::new(&api);
        let conversation = ada.create_conversation(&[UserId::generate()]).await;
        let posting = (0..4).map(|n| {
            let (ada, conversation) = (ada.clone(), conversation.clone());
            tokio::spawn(async move {
                let body = json!({"conversation_id": conversation, "plaintext": format!("from {n}")});
                let mut answered = 0;
                while let Ok(answer) = ada.try_call("POST", "/messages", Some(&body)).await {
                    answer.expect(201);
                    answered += 1;
                }
                answered
            })
        });
        let posting: Vec<_> = posting.collect();
        // An xorshift step: the moment differs from kill to kill and is the same for a seed.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Most fall into the first posts; on a busy machine only the later ones find some that were answered.
        let latest = if kill % 8 == 0 { 400_000 } else { 30_000 };
        tokio::time::sleep(Duration::from_micros(random % latest)).await;
        api.kill();
        for client in posting {
            answered += client.await.unwrap();
        }
    }
    assert_whole(&database).await;
    let written = database.count("select count(*) from messages").await;
    assert!(written >= answered, "answered messages are gone: {written} of {answered}; SEED={seed}");
    assert!(answered > 0);
}
