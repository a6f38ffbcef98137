//! Lists, page by page.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use shared::{
    ids::ConversationId,
    testing::{
        database::TestDatabase,
        nova::{NovaUser, Program, api_environment},
    },
};

async fn api() -> (TestDatabase, Program) {
    let database = TestDatabase::create().await;
    let api = Program::start("api", &api_environment(&database.url)).await;
    (database, api)
}

/// All pages of a list, from the newest.
async fn pages(user: &NovaUser, path: &str, name: &str, limit: usize) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = user.get(&format!("{path}?limit={limit}&cursor={cursor}")).await;
        pages.push(page[name].as_array().unwrap().clone());
        assert!(pages.len() < 1000, "the pages never end");
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return pages,
        }
    }
}

fn texts(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["plaintext"].as_str().unwrap_or("(deleted)")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_listed_newest_first_page_by_page_to_the_last() {
    let (_database, api) = api().await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    let path = format!("/conversations/{conversation}/messages");
    assert_eq!(ada.get(&path).await, json!({"messages": [], "next_cursor": null}));
    let mut posted = Vec::new();
    for n in 0..6 {
        let author = if n % 2 == 0 { &ada } else { &grace };
        posted.push(author.post(&conversation, &format!("{n}")).await.expect(201));
    }
    ada.edit(posted[2]["id"].as_str().unwrap(), "two").await.expect(200);
    ada.delete(posted[4]["id"].as_str().unwrap()).await.expect(200);
    let three = pages(&grace, &path, "messages", 3).await;
    assert_eq!(three.iter().map(|page| texts(page)).collect::<Vec<_>>(), [["5", "(deleted)", "3"], ["two", "1", "0"]]);
    let four = pages(&grace, &path, "messages", 4).await;
    assert_eq!(four.iter().map(Vec::len).collect::<Vec<_>>(), [4, 2]);
    // A message in a list is what it is by itself.
    for message in four.iter().flatten() {
        let alone = grace.get(&format!("/messages/{}", message["id"].as_str().unwrap())).await;
        assert_eq!(*message, alone);
    }
    assert_eq!(ada.get(&path).await["messages"].as_array().unwrap().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_neither_skips_nor_repeats_while_others_write() {
    let (_database, api) = api().await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    let path = format!("/conversations/{conversation}/messages");
    for n in 0..30 {
        ada.post(&conversation, &format!("old {n:02}")).await.expect(201);
    }
    let stop = AtomicBool::new(false);
    let writing = async {
        let mut written = 0;
        while !stop.load(Ordering::SeqCst) {
            grace.post(&conversation, "new").await.expect(201);
            written += 1;
        }
        written
    };
    let reading = async {
        for _ in 0..10 {
            let pages = pages(&ada, &path, "messages", 7).await;
            let all: Vec<&Value> = pages.iter().flatten().collect();
            let old: Vec<&str> =
                all.iter().filter_map(|message| message["plaintext"].as_str()).filter(|text| *text != "new").collect();
            let expected: Vec<String> = (0..30).rev().map(|n| format!("old {n:02}")).collect();
            assert_eq!(old, expected);
            assert!(all.is_sorted_by_key(|message| -message["seq"].as_i64().unwrap()));
        }
        stop.store(true, Ordering::SeqCst);
    };
    let (written, ()) = tokio::join!(writing, reading);
    assert!(written > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_are_listed_newest_first_to_their_members_only() {
    let (_database, api) = api().await;
    let (ada, grace, alan) = (NovaUser::new(&api), NovaUser::new(&api), NovaUser::new(&api));
    let mut hers = Vec::new();
    for n in 0..7 {
        let other = if n < 5 { &grace } else { &alan };
        hers.push(ada.create_conversation(&[other.user_id]).await);
    }
    hers.reverse();
    let ids = |pages: Vec<Vec<Value>>| -> Vec<String> {
        pages.iter().flatten().map(|conversation| conversation["id"].as_str().unwrap().to_owned()).collect()
    };
    let listed = pages(&ada, "/conversations", "conversations", 3).await;
    assert_eq!(listed.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    for conversation in listed.iter().flatten() {
        let alone = ada.get(&format!("/conversations/{}", conversation["id"].as_str().unwrap())).await;
        assert_eq!(*conversation, alone);
    }
    assert_eq!(ids(listed), hers);
    assert_eq!(ids(pages(&grace, "/conversations", "conversations", 5).await), hers[2..]);
    // Who leaves no longer sees it.
    let path = format!("/conversations/{}", hers[2]);
    assert_eq!(grace.call("DELETE", &format!("{path}/members/{}", grace.user_id), None).await.status, 204);
    assert_eq!(ids(pages(&grace, "/conversations", "conversations", 5).await), hers[3..]);
    for path in [path.clone(), format!("{path}/messages")] {
        let refused = grace.call("GET", &path, None).await;
        assert_eq!((refused.status, refused.code()), (403, "not_a_member"));
    }
    let unknown = ada.call("GET", &format!("/conversations/{}/messages", ConversationId::generate()), None).await;
    assert_eq!((unknown.status, unknown.code()), (404, "not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_cannot_be_is_refused_by_field() {
    let (_database, api) = api().await;
    let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
    let conversation = ada.create_conversation(&[grace.user_id]).await;
    for path in ["/conversations".to_owned(), format!("/conversations/{conversation}/messages")] {
        for (query, field) in [
            ("limit=0", "limit"),
            ("limit=-1", "limit"),
            ("limit=201", "limit"),
            ("limit=many", "query"),
            ("cursor=nonsense", "cursor"),
        ] {
            let answer = ada.call("GET", &format!("{path}?{query}"), None).await;
            assert_eq!((answer.status, answer.code()), (422, "invalid"), "{path}?{query}: {}", answer.body);
            assert_eq!(answer.body["errors"][0]["field"], field);
        }
        for query in ["limit=1", "limit=200", "cursor="] {
            ada.call("GET", &format!("{path}?{query}"), None).await.expect(200);
        }
    }
}
