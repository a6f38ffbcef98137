//! What is measured: all of the table, and no more series when more goes through.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shared::{
    metric::{self, Source, Type},
    testing::{
        eventually,
        homeserver::FakeHomeserver,
        nova::{NovaUser, Program},
    },
};

use crate::scene::{Home, Scene, id, metric};

/// What a program says of its metrics.
struct Page {
    /// Name, and sort or help, as its comments have them.
    kinds: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
    /// Everything but the values.
    series: BTreeSet<String>,
}

async fn page(program: &Program) -> Page {
    let text = reqwest::get(format!("{}/metrics", program.url())).await.unwrap().text().await.unwrap();
    let told = |what: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(what)?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    Page {
        kinds: told("# TYPE "),
        helps: told("# HELP "),
        series: series.map(|(series, _)| series.to_owned()).collect(),
    }
}

impl Page {
    fn has(&self, name: &str) -> bool {
        self.series.iter().any(|series| series.split('{').next() == Some(name))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_table_is_there_from_the_start_and_no_other() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true")]).await;
    // Requests have routes: one has to be made first. Gauges are there when they are first known.
    for (program, name) in [(&scene.api, metric::Program::Api), (&worker, metric::Program::Worker)] {
        let expected: BTreeSet<&str> =
            metric::ALL.iter().filter(|metric| metric.source.is_of(name)).map(|metric| metric.name).collect();
        let page = eventually(&format!("all metrics of {name:?}"), || async {
            let page = page(program).await;
            (page.kinds.len() >= expected.len()).then_some(page)
        })
        .await;
        let found: BTreeSet<&str> = page.kinds.keys().map(String::as_str).collect();
        assert_eq!(found, expected, "{name:?}");
        for metric in metric::ALL.iter().filter(|metric| metric.source.is_of(name)) {
            assert_eq!(page.kinds[metric.name], metric.kind.as_str(), "{}", metric.name);
            assert_eq!(page.helps[metric.name], metric.help, "{}", metric.name);
            match metric.kind {
                Type::Histogram => {
                    for bound in metric.buckets {
                        let bucket = format!("le=\"{bound}\"");
                        let begins = format!("{}_bucket{{", metric.name);
                        let has = |series: &String| series.starts_with(&begins) && series.contains(&bucket);
                        assert!(page.series.iter().any(has), "{} {bucket}", metric.name);
                    }
                }
                Type::Counter | Type::Gauge => assert!(page.has(metric.name), "{}", metric.name),
            }
        }
    }
    // What is said of the database is the worker's to say.
    assert!(metric::ALL.iter().any(|metric| metric.source == Source::Database));
}

/// Conversations of two, with a message, an edit and a reaction each.
async fn traffic(scene: &Scene, conversations: usize) {
    for n in 0..conversations {
        let (ada, grace) = (NovaUser::new(&scene.api), NovaUser::new(&scene.api));
        let conversation = ada.create_conversation(&[grace.user_id]).await;
        let message = id(&ada.post(&conversation, &format!("hello {n}")).await.expect(201));
        ada.edit(&message, "hello again").await.expect(200);
        grace.get(&format!("/messages/{message}")).await;
    }
    scene.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_series_does_not_grow_with_conversations() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    // A failure, and the first scrape, which cannot count itself, so that those are there before.
    fake.on_send().fail(429).once();
    page(&scene.api).await;
    traffic(&scene, 10).await;
    // What is gauged is there when it is known.
    eventually("both looks at the database were taken", async || {
        let page = page(&worker).await;
        (page.has("outbox_depth") && page.has("postgres_xmin_horizon_age_seconds")).then_some(())
    })
    .await;
    let before = [page(&scene.api).await.series, page(&worker).await.series];
    traffic(&scene, 300).await;
    let after = [page(&scene.api).await.series, page(&worker).await.series];
    for (before, after) in before.iter().zip(&after) {
        let grown: Vec<_> = after.difference(before).collect();
        assert!(grown.is_empty(), "{grown:?}");
    }
    assert!(metric(&worker, "matrix_send_success_total").await >= 310.0);
    assert!(metric(&worker, "outbox_queue_wait_seconds_count").await >= 310.0);
    assert!(metric(&worker, "outbox_send_seconds_count").await >= 310.0);
    let cached = metric(&worker, "matrix_room_cache_lookups_total").await;
    assert!(cached >= 310.0, "{cached}");
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_that_somebody_makes_up_are_one_series() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    for n in 0..5 {
        scene.ada.call(&format!("MADE{n}UP"), "/conversations", None).await;
    }
    let page = page(&scene.api).await;
    let made_up: Vec<_> = page.series.iter().filter(|series| series.contains("method=\"other\"")).collect();
    assert_eq!(made_up.len(), 1, "{made_up:?}");
    assert!(!page.series.iter().any(|series| series.contains("MADE")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_somebody_holds_is_seen_as_the_age_of_the_horizon() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker().await;
    let mut holder = scene.database.pool.acquire().await.unwrap();
    sqlx::raw_sql("begin isolation level repeatable read; select count(*) from outbox")
        .execute(&mut *holder)
        .await
        .unwrap();
    let age = || metric(&worker, "postgres_xmin_horizon_age_seconds");
    eventually("the horizon gets old", || async { (age().await >= 2.0).then_some(()) }).await;
    let at_most = 60.0;
    assert!(age().await < at_most, "it is as old as its transaction");
    sqlx::raw_sql("rollback").execute(&mut *holder).await.unwrap();
    eventually("the horizon moves on", || async { (age().await < 2.0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_still_on_matrix_is_seen_as_the_age_of_the_sync() {
    let fake = FakeHomeserver::start().await;
    let scene = Scene::new(&Home::of(&fake).await).await;
    let worker = scene.worker_with(&[("MATRIX_SYNC_ENABLED", "true"), ("MATRIX_SYNC_HOLD", "500ms")]).await;
    eventually("it syncs", || async { (metric(&worker, "matrix_sync_leader").await > 0.5).then_some(()) }).await;
    scene.begun().await;
    let age = || metric(&worker, "matrix_sync_age_seconds");
    assert!(age().await < 60.0);
    let refused = fake.on_sync().fail(500).always();
    // A sync that was under way may still be answered: only what comes after a refused one stands still.
    eventually("a sync is refused", || async { (refused.hits() > 0).then_some(()) }).await;
    scene.database.advance(Duration::from_mins(10)).await;
    eventually("it is told", || async { (age().await >= 600.0).then_some(()) }).await;
    refused.remove();
    eventually("it goes on", || async { (age().await < 60.0).then_some(()) }).await;
}
