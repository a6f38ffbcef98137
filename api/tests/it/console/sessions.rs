//! Signing in and out, and whose forms are taken.

use api::{admin::Scope, console::PAGES};
use shared::testing::nova::NovaUser;
use uuid::Uuid;

use super::browser::Browser;
use crate::admin::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_becomes_a_cookie_that_only_the_console_gets_and_stands_on_no_page() {
    let scene = Scene::new().await;
    let mut browser = Browser::new(&scene.api);
    let asked = browser.get("/console/audit?conversation_id=").await.expect(303);
    assert_eq!(asked.location(), "/console/sign-in?next=%2Fconsole%2Faudit%3Fconversation_id%3D");
    let form = browser.get(asked.location()).await.expect(200);
    form.says("value=\"/console/audit?conversation_id=\"");
    let token = scene.reader.token().to_owned();
    let signed_in =
        browser.post("/console/sign-in", &[("token", &token), ("next", "/console/audit")]).await.expect(303);
    assert_eq!(signed_in.location(), "/console/audit");
    let cookie = &signed_in.headers["set-cookie"];
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(pair, format!("outbox_console={token}"));
    let seconds: i64 = attributes.split("Max-Age=").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
    assert!((3500..=3605).contains(&seconds), "{cookie}");
    assert_eq!(attributes, format!("Path=/console; Max-Age={seconds}; HttpOnly; SameSite=Strict"));
    browser.cookie = Some(pair.to_owned());
    for path in ["/console", "/console/audit", "/console/help", "/console/pauses", "/console/nowhere"] {
        let page = browser.get(path).await;
        page.is_silent_on(&token);
        page.is_silent_on(token.rsplit('.').next().unwrap());
    }
    // A proxy that ends TLS says so.
    let secure = [("x-forwarded-proto", "https")];
    let signed_in = browser.post_from("/console/sign-in", &secure, &[("token", &token)]).await.expect(303);
    assert!(signed_in.headers["set-cookie"].ends_with("; Secure"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_look_is_told_so_and_a_token_that_is_no_good_is_told_no_more() {
    let scene = Scene::new().await;
    let mut browser = Browser::new(&scene.api);
    let refused = browser.sign_in(NovaUser::new(&scene.api).token()).await.expect(403);
    refused.says("outbox:read");
    let mut pages = Vec::new();
    let forged = format!("{}x", scene.operator.token());
    for token in ["", "nonsense", &forged, scene.operator.expiring_in(-60).token()] {
        let page = browser.sign_in(token).await.expect(401);
        page.says("not accepted");
        if !token.is_empty() {
            page.is_silent_on(token);
        }
        pages.push(page.html);
    }
    pages.dedup();
    assert_eq!((pages.len(), browser.cookie.as_ref()), (1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_tries_too_often_waits() {
    let scene = Scene::new().await;
    let mut browser = Browser::new(&scene.api);
    let mut tried = 0;
    let refused = loop {
        let page = browser.sign_in("nonsense").await;
        if page.status != 401 {
            break page;
        }
        tried += 1;
        assert!(tried < 200, "never refused");
    };
    assert!(tried >= 10, "{tried}");
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_token_and_when_somebody_signs_out() {
    let scene = Scene::new().await;
    let mut browser = Browser::signed_in(&scene.api, &scene.operator).await;
    let page = browser.get("/console").await.expect(200);
    let out = browser.post("/console/sign-out", &[("csrf", &page.hidden("csrf"))]).await.expect(303);
    assert!(out.headers["set-cookie"].starts_with("outbox_console=; Path=/console; Max-Age=0"));
    browser.cookie = Some(format!("outbox_console={}", scene.operator.expiring_in(-60).token()));
    assert!(browser.get("/console").await.expect(303).location().starts_with("/console/sign-in"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_asks_for_its_scope() {
    let scene = Scene::new().await;
    let nobody = Browser::new(&scene.api);
    let mut mere = Browser::new(&scene.api);
    mere.cookie = Some(format!("outbox_console={}", NovaUser::new(&scene.api).token()));
    let reader = Browser::signed_in(&scene.api, &scene.reader).await;
    let operator = Browser::signed_in(&scene.api, &scene.operator).await;
    assert!(PAGES.len() > 10);
    for page in PAGES {
        let Some(scope) = page.scope else { continue };
        let path = page.path.replace("{id}", &Uuid::now_v7().to_string()).replace("{*rest}", "nowhere");
        let words = format!("{} {}", page.method, page.path);
        let ask = async |browser: &Browser| {
            if page.method == "GET" { browser.get(&path).await } else { browser.post(&path, &[]).await }
        };
        let sent = ask(&nobody).await;
        assert!(sent.status == 303 && sent.location().starts_with("/console/sign-in"), "{words}");
        assert_eq!(ask(&mere).await.status, 403, "{words}");
        let (read, operated) = (ask(&reader).await, ask(&operator).await);
        if page.method == "POST" {
            // Without the form of a page of ours nobody acts.
            assert_eq!((read.status, operated.status), (403, 403), "{words}");
            operated.says("not of your session");
        } else {
            assert_eq!(read.status == 403, scope == Scope::Operate, "{words}: {}", read.status);
            assert!(operated.status != 403 && operated.status < 500, "{words}: {}", operated.status);
        }
        if scope == Scope::Operate {
            read.says("outbox:operate");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_is_taken_from_its_own_session_and_our_own_pages_only() {
    let scene = Scene::new().await;
    let browser = Browser::signed_in(&scene.api, &scene.operator).await;
    let other = Browser::signed_in(&scene.api, &NovaUser::new(&scene.api).with_scope("outbox:operate")).await;
    let own = browser.get("/console/pause?scope=all").await.expect(200).hidden("csrf");
    let foreign = other.get("/console/pause?scope=all").await.expect(200).hidden("csrf");
    assert_ne!(own, foreign);
    let pause = |csrf| [("csrf", csrf), ("scope", "all"), ("reason", "why")];
    for wrong in ["", "00", &foreign, &own[..own.len() - 2]] {
        browser.post("/console/pause", &pause(wrong)).await.expect(403).says("not of your session");
    }
    for headers in [[("sec-fetch-site", "cross-site")], [("sec-fetch-site", "same-site")], [("origin", "https://evil")]]
    {
        browser.post_from("/console/pause", &headers, &pause(&own)).await.expect(403);
        browser.post_from("/console/sign-in", &headers, &[("token", scene.operator.token())]).await.expect(403);
    }
    assert!(scene.trail().await.is_empty());
    browser.post_from("/console/pause", &[("sec-fetch-site", "same-origin")], &pause(&own)).await.expect(303);
    assert_eq!(scene.trail().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_from_elsewhere_leads_to_its_page_once_the_browser_brings_the_cookie() {
    let scene = Scene::new().await;
    let browser = Browser::new(&scene.api);
    let page = browser.get_from("/console/audit?by=x", &[("sec-fetch-site", "cross-site")]).await.expect(200);
    page.says("http-equiv=\"refresh\" content=\"0; url=/console/audit?by=x\"");
    let again = browser.get_from("/console/audit?by=x", &[("sec-fetch-site", "same-origin")]).await;
    assert!(again.expect(303).location().starts_with("/console/sign-in"));
}
