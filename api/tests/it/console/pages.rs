//! The pages, and what is done from them.

use api::console::PAGES;
use serde_json::json;
use shared::{outbox::HOLD_NOT_IN_ROOM, testing::nova::NovaUser};
use uuid::Uuid;

use super::browser::{Browser, Page};
use crate::admin::scene::{CANARY, Scene};

async fn scene() -> (Scene, Browser) {
    let scene = Scene::new().await;
    let browser = Browser::signed_in(&scene.api, &scene.operator).await;
    (scene, browser)
}

/// Every page that can be read, of the ids that there are.
async fn every_page(browser: &Browser, ids: &[String]) -> Vec<(String, Page)> {
    let mut pages = Vec::new();
    for page in PAGES.iter().filter(|page| page.method == "GET") {
        for id in ids {
            let path = page.path.replace("{id}", id).replace("{*rest}", "nowhere");
            let whole = path == page.path;
            pages.push((path.clone(), browser.get(&path).await));
            if whole {
                break;
            }
        }
    }
    pages
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_shows_a_text_runs_a_script_of_its_own_or_may_be_framed_or_kept() {
    let (scene, browser) = scene().await;
    let ids = scene.said().await;
    scene.held("why").await;
    let pages = every_page(&browser, &ids).await;
    assert!(pages.len() > 20);
    for (path, page) in pages {
        assert!(page.status < 500, "{path}: {}", page.html);
        assert!(!page.html.contains(CANARY), "{path}:\n{}", page.html);
        if path.contains("/assets/") {
            continue;
        }
        let policy = page.headers.get("content-security-policy").unwrap_or_else(|| panic!("{path}"));
        assert!(policy.starts_with("default-src 'none'; style-src 'self'; script-src 'self'"), "{path}: {policy}");
        for part in ["form-action 'self'", "frame-ancestors 'none'", "img-src 'self'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert_eq!(page.headers["cache-control"], "no-store", "{path}");
        assert_eq!(page.headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(page.headers["referrer-policy"], "same-origin", "{path}");
        for inline in ["<style", " style=", "<script>", " onclick=", "javascript:", "http://", "https://"] {
            assert!(!page.html.contains(inline), "{path}: {inline}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_elsewhere_is_shown_as_text() {
    let (scene, browser) = scene().await;
    let evil = "<script>alert(1)</script>\"><img src=x>";
    let (_, operation) = scene.dead(evil).await;
    scene.write().await;
    scene.held(evil).await;
    let query = "%3Cscript%3Ealert(1)%3C%2Fscript%3E%22%3E%3Cimg%20src%3Dx%3E";
    for path in [
        "/console".to_owned(),
        "/console/dead".to_owned(),
        "/console/operations".to_owned(),
        "/console/operations?state=held".to_owned(),
        format!("/console/operations?errcode={query}"),
        format!("/console/operations/{operation}"),
        format!("/console/conversations/{}", scene.conversation),
        "/console/pauses".to_owned(),
        format!("/console/resume?scope=held&because={query}"),
        format!("/console/search?q={query}"),
        format!("/console/{query}"),
        format!("/console/sign-in?next={query}"),
    ] {
        let page = browser.get(&path).await;
        page.is_silent_on("<script>alert");
        page.is_silent_on("<img src=x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_style_sheet_and_the_script_are_named_by_their_content_and_kept() {
    let (_scene, browser) = scene().await;
    let page = browser.get("/console").await.expect(200);
    for (before, kind) in [("<link rel=\"stylesheet\" href=\"", "text/css"), ("<script src=\"", "text/javascript")] {
        let path = page.html.split(before).nth(1).unwrap().split('"').next().unwrap();
        let file = browser.signed_out().get(path).await.expect(200);
        assert!(file.headers["content-type"].starts_with(kind));
        assert_eq!(file.headers["cache-control"], "public, max-age=31536000, immutable");
        assert_eq!(file.headers["x-content-type-options"], "nosniff");
    }
    browser.get("/console/assets/console.css").await.expect(404);
    let icon = page.html.split("<link rel=\"icon\" type=\"image/svg+xml\" href=\"").nth(1).unwrap();
    let icon = browser.signed_out().get(icon.split('"').next().unwrap()).await.expect(200);
    assert_eq!(icon.headers["content-type"], "image/svg+xml");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_found_read_previewed_and_brought_back() {
    let (scene, browser) = scene().await;
    let (message, operation) = scene.dead("M_TOO_LARGE").await;
    scene.write().await;
    let overview = browser.get("/console").await.expect(200);
    overview.says("data-health=\"bad\"");
    overview.says("No worker has been seen lately");
    overview.says("1 dead letter waits for a decision");
    let dead = browser.get("/console/operations?errcode=M_TOO_LARGE").await.expect(200);
    dead.says(&format!("href=\"/console/operations/{operation}\""));
    let page = browser.get(&format!("/console/operations/{operation}")).await.expect(200);
    page.says("M_TOO_LARGE");
    page.says("What to do:");
    page.says(&format!("href=\"/console/operations/{operation}/requeue\""));
    let preview = browser.get(&format!("/console/operations/{operation}/requeue")).await.expect(200);
    preview.says("What the room shows around it");
    preview.says(&scene.ada.user_id.to_string());
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 1, "it was looked at");
    let done = browser.fill_in(&preview, &[("reason", "the limit was raised")]).await.expect(303);
    assert_eq!(done.location(), format!("/console/operations/{operation}?done=requeued&n=1"));
    browser.get(done.location()).await.expect(200).says("1 operation came back");
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    let by = scene.operator.user_id;
    let act = Scene::act(by, "requeue", "operations", 1, Some("the limit was raised"));
    assert_eq!(scene.last_act().await, act);
    browser.get("/console/audit").await.expect(200).says("the limit was raised");
    // What is no dead letter any more is refused with words.
    browser.fill_in(&preview, &[]).await.expect(409).says("it is not dead");
    let by_message = browser.get(&format!("/console/operations/{message}")).await.expect(200);
    by_message.says(&operation.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_asks_for_a_reason_first() {
    let (scene, browser) = scene().await;
    let (_, operation) = scene.dead("M_TOO_LARGE").await;
    let ask = browser.get(&format!("/console/operations/{operation}/discard")).await.expect(200);
    ask.says("never goes to Matrix");
    browser.fill_in(&ask, &[("reason", "")]).await.expect(422).says("must say why");
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 1);
    browser.fill_in(&ask, &[("reason", "spam")]).await.expect(303);
    assert_eq!(scene.database.count("select count(*) from dead_letters").await, 0);
    assert_eq!(scene.last_act().await, Scene::act(scene.operator.user_id, "discard", "operations", 1, Some("spam")));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_and_one_conversation_are_paused_and_resumed_from_their_pages() {
    let (scene, browser) = scene().await;
    scene.write().await;
    let here = format!("scope=conversation&conversation_id={}", scene.conversation);
    for (scope, page) in [
        ("scope=all", "/console/pauses".to_owned()),
        (&*here, format!("/console/conversations/{}", scene.conversation)),
    ] {
        let ask = browser.get(&format!("/console/pause?{scope}")).await.expect(200);
        let paused = browser.fill_in(&ask, &[("for", "2h"), ("reason", "moving")]).await.expect(303);
        assert_eq!(paused.location(), format!("{page}?done=paused"));
        browser.get(paused.location()).await.expect(200).says("moving");
        browser.fill_in(&ask, &[("for", "2h"), ("until", "2099-01-01"), ("reason", "x")]).await.expect(422);
        let ask = browser.get(&format!("/console/resume?{scope}")).await.expect(200);
        let resumed = browser.fill_in(&ask, &[]).await.expect(303);
        assert_eq!(resumed.location(), format!("{page}?done=resumed&n=1"));
    }
    let verbs: Vec<_> = scene.trail().await.iter().map(|act| act["verb"].as_str().unwrap().to_owned()).collect();
    assert_eq!(verbs, ["resume", "pause", "resume", "pause"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_lanes_that_are_held_for_one_reason_go_on_from_the_page_of_pauses() {
    let (scene, browser) = scene().await;
    scene.write().await;
    scene.held("the \"room\" is gone").await;
    browser.get("/console/pauses").await.expect(200).says("is gone");
    let ask = browser.get("/console/resume?scope=held&because=the+%22room%22+is+gone").await.expect(200);
    let resumed = browser.fill_in(&ask, &[]).await.expect(303);
    assert_eq!(resumed.location(), "/console/pauses?done=resumed&n=1");
    assert_eq!(scene.database.count("select count(*) from lanes where hold is not null").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_id_leads_to_its_page() {
    let (scene, browser) = scene().await;
    let (message, operation) = scene.dead("M_TOO_LARGE").await;
    for (asked, to) in [
        (scene.conversation.clone(), format!("/console/conversations/{}", scene.conversation)),
        (operation.to_string(), format!("/console/operations/{operation}")),
        (message.clone(), format!("/console/operations/{message}")),
        ("M_TOO_LARGE".to_owned(), "/console/operations?errcode=M_TOO_LARGE".to_owned()),
    ] {
        let found = browser.get(&format!("/console/search?q={asked}")).await.expect(303);
        assert_eq!(found.location(), to);
        browser.get(&to).await.expect(200);
    }
    browser.get("/console/search?q=everything").await.expect(422).says("must be the id");
    let nothing = browser.get(&format!("/console/operations/{}", Uuid::now_v7())).await.expect(404);
    nothing.says("Not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_look_is_offered_nothing_else() {
    let (scene, _) = scene().await;
    let (_, operation) = scene.dead("M_TOO_LARGE").await;
    let reader = NovaUser::new(&scene.api).with_scope("outbox:read");
    let browser = Browser::signed_in(&scene.api, &reader).await;
    for path in [format!("/console/operations/{operation}"), "/console/pauses".to_owned(), "/console/dead".to_owned()] {
        let page = browser.get(&path).await.expect(200);
        for verb in ["Requeue…", "Discard…", "Pause", "everything…"] {
            assert!(!page.html.contains(&format!("{verb}</a>")), "{path}: {verb}");
        }
        page.says("may look only");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_by_filter_is_counted_begun_followed_and_cancelled_from_its_pages() {
    let (scene, browser) = scene().await;
    for n in 0..3 {
        scene.dead(if n < 2 { "M_A" } else { "M_B" }).await;
    }
    let list = browser.get("/console/operations?errcode=M_A").await.expect(200);
    list.says("2 dead letters");
    list.says("href=\"/console/requeue?errcode=M_A\"");
    let ask = browser.get("/console/requeue?errcode=M_A").await.expect(200);
    ask.says("2 operations in 1 conversation");
    browser.fill_in(&ask, &[("rate", "0")]).await.expect(422);
    let begun = browser.fill_in(&ask, &[("rate", "1"), ("reason", "mended")]).await.expect(303);
    let page = browser.get(begun.location()).await.expect(200);
    page.says("0 of 2 done");
    page.says("data-refreshes");
    let (task, _) = begun.location().split_once('?').unwrap();
    let ask = browser.get(&format!("{task}/cancel")).await.expect(200);
    let ended = browser.fill_in(&ask, &[]).await.expect(303);
    assert_eq!(ended.location(), format!("{task}?done=cancelled"));
    browser.get(ended.location()).await.expect(200).says("cancelled");
    browser.get("/console/tasks").await.expect(200).says(task);
    let verbs: Vec<_> = scene.trail().await.iter().map(|act| act["verb"].as_str().unwrap().to_owned()).collect();
    assert_eq!(verbs, ["cancel", "requeue"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_shown_by_what_they_died_of_with_what_to_do() {
    let (scene, browser) = scene().await;
    for _ in 0..2 {
        scene.dead("M_TOO_LARGE").await;
    }
    let page = browser.get("/console/dead").await.expect(200);
    page.says("id=\"groups\"");
    page.says("href=\"/console/requeue?kind=message&amp;cause=own_fault&amp;errcode=M_TOO_LARGE\"");
    browser.get("/console").await.expect(200).says("id=\"groups\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_repaired_is_repaired_with_one_click() {
    let (scene, browser) = scene().await;
    scene.write().await;
    scene.held(HOLD_NOT_IN_ROOM).await;
    let page = browser.get("/console/pauses").await.expect(200);
    page.says("Repair: rejoin the room");
    let path = format!("/console/conversations/{}/repair", scene.conversation);
    page.says(&format!("action=\"{path}\""));
    let fields = [("csrf", page.hidden("csrf")), ("repair", page.hidden("repair")), ("reason", page.hidden("reason"))];
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let begun = browser.post(&path, &fields).await.expect(303);
    browser.get(begun.location()).await.expect(200).says("rejoin");
    assert_eq!(scene.trail().await[0]["verb"], "repair");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_suffer_from_is_repaired_with_one_form_that_says_how_many_they_are() {
    let (scene, browser) = scene().await;
    for _ in 0..2 {
        scene.dead_invitation("M_FORBIDDEN").await;
    }
    let page = browser.get("/console/dead").await.expect(200);
    let path = "/console/repair?repair=reinvite&errcode=M_FORBIDDEN";
    page.says(&format!("href=\"{}\"", path.replace('&', "&amp;")));
    let ask = browser.get(path).await.expect(200);
    ask.says("1 conversation has invitations that died of M_FORBIDDEN");
    browser.fill_in(&ask, &[]).await.expect(422).says("reason");
    let begun = browser.fill_in(&ask, &[("reason", "let in again")]).await.expect(303);
    let page = browser.get(begun.location()).await.expect(200);
    page.says("0 of 1 done");
    page.says("M_FORBIDDEN");
    let act = &scene.trail().await[0];
    assert_eq!(
        (&act["verb"], &act["scope"], &act["reason"]),
        (&json!("repair"), &json!("all"), &json!("let in again"))
    );
    browser.get("/console/repair?repair=rejoin&errcode=M_FORBIDDEN").await.expect(422);
    browser.get("/console/repair?repair=restart").await.expect(422);

    // One held lane has its button; several also have the way to repair them all.
    scene.write().await;
    scene.held(HOLD_NOT_IN_ROOM).await;
    let all = "href=\"/console/repair?repair=rejoin\"";
    assert!(!browser.get("/console/pauses").await.expect(200).html.contains(all));
    scene.another_held(HOLD_NOT_IN_ROOM).await;
    for path in ["/console/pauses", "/console/operations?state=held"] {
        browser.get(path).await.expect(200).says(all);
    }
    let ask = browser.get("/console/repair?repair=rejoin").await.expect(200);
    ask.says("2 conversations have a lane that is held because the service account is not in the room");
    ask.says("href=\"/console/operations?state=held\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_expired_or_completed_by_hand_after_its_page_said_what_that_means() {
    let (scene, browser) = scene().await;
    let (_, live) = scene.write().await;
    let ask = browser.get(&format!("/console/operations/{live}/expire")).await.expect(200);
    ask.says("as if its time were over");
    browser.fill_in(&ask, &[("reason", "")]).await.expect(422);
    browser.fill_in(&ask, &[("reason", "too late")]).await.expect(303);
    let (message, dead) = scene.dead("M_TOO_LARGE").await;
    scene.was_handed(&dead.to_string()).await;
    let ask = browser.get(&format!("/console/operations/{dead}/complete")).await.expect(200);
    ask.says("Look into the room first");
    browser.fill_in(&ask, &[("event_id", "nonsense"), ("reason", "seen")]).await.expect(422).says("event_id");
    browser.fill_in(&ask, &[("event_id", "$there"), ("reason", "seen")]).await.expect(303);
    assert_eq!(scene.ada.get(&format!("/messages/{message}")).await["matrix"]["delivery"], "delivered");
    browser.get(&format!("/console/operations/{dead}")).await.expect(200).says("delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_shows_all_that_happened_in_it() {
    let (scene, browser) = scene().await;
    let (_, operation) = scene.dead("M_TOO_LARGE").await;
    let requeue = format!("/admin/outbox/{operation}/requeue");
    let why = json!({"reason": "the limit was raised"});
    scene.operator.call("POST", &requeue, Some(&why)).await.expect(200);
    let page = browser.get(&format!("/console/conversations/{}", scene.conversation)).await.expect(200);
    for part in ["id=\"timeline\"", "the limit was raised", "written", "Verify…", "id=\"live\""] {
        page.says(part);
    }
    let ask = browser.get(&format!("/console/verify?conversation_id={}", scene.conversation)).await.expect(200);
    browser.fill_in(&ask, &[("reason", "why")]).await.expect(303);
}
