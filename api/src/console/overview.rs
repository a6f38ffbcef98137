//! The first page: is it healthy, and what is stuck.

use askama::Template;
use axum::{extract::State as Extract, response::Response};
use shared::outbox::{self, COUNTED_LANES, COUNTED_LETTERS, Gauges};

use super::{
    health::{self, Class, Pause, Verdict, Vitals},
    html::{self, Markup},
    lists::{self, FEW},
    pauses,
    session::Session,
    shell::{self, Shell},
    table::Table,
};
use crate::{AppState, admin::params::Params, problem::ApiError};

/// A number with its name.
struct Figure {
    id: &'static str,
    name: String,
    value: String,
    link: String,
    tone: &'static str,
}

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    shell: Shell,
    verdict: Verdict,
    figures: Vec<Figure>,
    sections: Vec<Markup>,
}

/// Up to a bound.
fn counted(n: i64, bound: i64) -> String {
    if n >= bound { format!("{}+", html::grouped(bound)) } else { html::grouped(n) }
}

pub(super) async fn page(
    Extract(state): AppState,
    session: Session,
    params: Params,
) -> Result<Response, ApiError> {
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let gauges = outbox::gauges(&mut tx).await?;
    let pauses = outbox::pauses(&mut tx).await?;
    let held = outbox::held_lanes(&mut tx, None, None, FEW).await?;
    let vitals = Vitals {
        classes: gauges
            .classes
            .iter()
            .map(|class| Class {
                name: class.class.as_str(),
                oldest: i64::try_from(class.oldest_age.as_secs()).unwrap_or(i64::MAX),
                waiting: class.depth,
            })
            .collect(),
        pauses: pauses
            .iter()
            .map(|pause| Pause {
                what: if pause.scope == "all" { "Everything".to_owned() } else { format!("The class {}", pause.scope) },
                since: html::second(pause.paused_at),
                until: pause.until.map(html::second),
                reason: pause.reason.clone(),
            })
            .collect(),
        workers: None,
        held: gauges.held_lanes,
        held_in_words: format!("{} held lanes", counted(gauges.held_lanes, COUNTED_LANES)),
        dead: gauges.dead_letters,
        dead_in_words: format!("{} dead letters", counted(gauges.dead_letters, COUNTED_LETTERS)),
    };
    let verdict = health::judge(&vitals);
    let mut sections = vec![classes(&gauges).markup()];
    if gauges.dead_letters > 0 {
        sections.push(lists::newest_dead(&mut tx).await?);
    }
    if !held.is_empty() {
        sections.push(lists::held_table("Held lanes: each waits for somebody", &held).markup());
    }
    if !pauses.is_empty() {
        sections.push(pauses::pauses_table(&pauses).markup());
    }
    let shell = Shell::new(&session, "overview", "Overview");
    Ok(shell::page(&Overview { shell, verdict, figures: figures(&gauges), sections }))
}

fn figures(gauges: &Gauges) -> Vec<Figure> {
    let tone = |n: i64| if n > 0 { "warn" } else { "good" };
    let figure = |id, name: &str, value, link: &str, tone| Figure {
        id,
        name: name.to_owned(),
        value,
        link: link.to_owned(),
        tone,
    };
    vec![
        figure(
            "dead-letters",
            "Dead letters",
            counted(gauges.dead_letters, COUNTED_LETTERS),
            "/console/dead",
            tone(gauges.dead_letters),
        ),
        figure(
            "held-lanes",
            "Held lanes",
            counted(gauges.held_lanes, COUNTED_LANES),
            "/console/operations?state=held",
            tone(gauges.held_lanes),
        ),
        figure(
            "paused-lanes",
            "Paused lanes",
            counted(gauges.paused_lanes, COUNTED_LANES),
            "/console/operations?state=paused",
            tone(gauges.paused_lanes),
        ),
    ]
}

fn classes(gauges: &Gauges) -> Table {
    let mut table = Table::new("classes", "What waits, by class", &["Class", "Waiting", "Oldest", "Paused"]);
    for class in &gauges.classes {
        let oldest = i64::try_from(class.oldest_age.as_secs()).unwrap_or(i64::MAX);
        table.row(
            class.class.as_str(),
            vec![
                html::text(class.class.as_str()),
                html::text(html::grouped(class.depth)),
                html::text(html::lasting(oldest)),
                html::text(if class.paused || gauges.all_paused { "yes" } else { "no" }),
            ],
        );
    }
    table
}
