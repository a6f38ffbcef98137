//! Every route asks for its scope.

use api::admin::{ROUTES, Scope};
use serde_json::json;
use shared::testing::nova::NovaUser;

use super::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn every_route_takes_a_token_of_its_scope_and_no_other() {
    let scene = Scene::new().await;
    let none = NovaUser::new(&scene.api);
    let other = none.with_scope("outbox other:operate");
    let expired = scene.operator.expiring_in(-60);
    assert!(ROUTES.len() > 5);
    for route in ROUTES {
        let path = route.path.replace("{id}", &uuid::Uuid::now_v7().to_string());
        let body = (route.method == "POST").then(|| json!({}));
        let ask = async |user: &NovaUser| {
            let answer = user.call(route.method, &path, body.as_ref()).await;
            (answer.status, answer.code().to_owned(), answer.body["detail"].as_str().unwrap_or_default().to_owned())
        };
        let words = format!("{} {}", route.method, route.path);
        let bare = scene.reader.call_without_token(route.method, &path).await;
        assert_eq!((bare.status, bare.code()), (401, "unauthorized"), "{words}");
        assert_eq!(ask(&expired).await.0, 401, "{words}");
        for lacking in [&none, &other] {
            let (status, code, detail) = ask(lacking).await;
            assert_eq!((status, code.as_str()), (403, "missing_scope"), "{words}");
            assert!(detail.contains(route.scope.as_str()), "{words}: {detail}");
        }
        let (status, code, detail) = ask(&scene.reader).await;
        match route.scope {
            Scope::Read => assert!(status != 401 && status != 403, "{words}: {status} {code}"),
            Scope::Operate => {
                assert_eq!((status, code.as_str()), (403, "missing_scope"), "{words}");
                assert!(detail.contains("outbox:operate"), "{words}: {detail}");
            }
        }
        assert_eq!(
            route.scope == Scope::Operate,
            route.method == "POST",
            "what acts is a POST, and the other way round"
        );
    }
    assert!(scene.trail().await.is_empty(), "who may not act did nothing");
    for route in ROUTES {
        let path = route.path.replace("{id}", &uuid::Uuid::now_v7().to_string());
        let body = (route.method == "POST").then(|| json!({}));
        let answer = scene.operator.call(route.method, &path, body.as_ref()).await;
        let status = answer.status;
        assert!(status != 401 && status != 403 && status < 500, "{} {path}: {}", route.method, answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_lets_nobody_into_the_conversations_of_others() {
    let scene = Scene::new().await;
    let path = format!("/conversations/{}/messages", scene.conversation);
    let answer = scene.operator.call("GET", &path, None).await;
    assert_eq!((answer.status, answer.code()), (403, "not_a_member"));
}
