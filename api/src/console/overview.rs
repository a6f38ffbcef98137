//! The first page: is it healthy, and what is stuck.

use askama::Template;
use axum::{extract::State as Extract, response::Response};
use shared::{
    outbox::{self, Stats},
    workers::WorkerSeen,
};

use super::{
    dead,
    health::{self, Class, Pause, Verdict, Vitals, Workers},
    html::{self, Markup, Tone},
    lists::{self, FEW},
    pauses,
    session::Session,
    shell::{self, Shell},
    table::Table,
    tasks,
};
use crate::{
    AppState,
    admin::{
        audit::{self, Overview as Figures},
        params::Params,
    },
    problem::ApiError,
};

/// A number with its name.
struct Figure {
    id: &'static str,
    name: &'static str,
    value: String,
    link: &'static str,
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

pub(super) async fn page(Extract(app): AppState, session: Session, params: Params) -> Result<Response, ApiError> {
    params.finish()?;
    let mut tx = app.pool.begin().await?;
    let known = audit::overview(&mut tx).await?;
    let held = outbox::held_lanes(&mut tx, None, None, FEW).await?;
    let verdict = health::judge(&vitals(&known, app.matrix_enabled));
    let stats = &known.stats;
    let mut sections = vec![classes(stats).markup()];
    if !stats.groups.is_empty() {
        sections.push(dead::table("Dead letters by what they died of", &session, &stats.groups).markup());
    }
    if !held.is_empty() {
        sections.push(lists::held_table("Held lanes: each waits for somebody", &session, &held).markup());
    }
    if !stats.pauses.is_empty() {
        sections.push(pauses::pauses_table(&session, &stats.pauses).markup());
    }
    if !known.tasks.is_empty() {
        sections.push(tasks::table("Tasks that run", &known.tasks).markup());
    }
    sections.push(workers(&known.workers).markup());
    let shell = Shell::new(&session, "overview", "Overview");
    Ok(shell::page(&Overview { shell, verdict, figures: figures(&known), sections }))
}

#[expect(clippy::cast_possible_truncation, reason = "an age in seconds")]
fn seconds(age: f64) -> i64 {
    age as i64
}

fn vitals(known: &Figures, matrix_enabled: bool) -> Vitals {
    let stats = &known.stats;
    let having = |has: fn(&WorkerSeen) -> bool| known.workers.iter().filter(|worker| has(worker)).count();
    let workers = Workers {
        there: known.workers.len(),
        cut_off: having(|worker| worker.circuit == "open"),
        locked_out: having(|worker| !worker.token_accepted && worker.circuit != "disabled"),
        disabled: having(|worker| worker.circuit == "disabled"),
    };
    Vitals {
        classes: stats
            .classes
            .iter()
            .map(|class| Class {
                name: class.class.as_str(),
                oldest: seconds(class.oldest_age_seconds),
                waiting: class.depth,
            })
            .collect(),
        pauses: stats
            .pauses
            .iter()
            .map(|pause| Pause {
                what: if pause.scope == "all" { "Everything".to_owned() } else { format!("The class {}", pause.scope) },
                since: html::second(pause.paused_at),
                until: pause.until.map(html::second),
                reason: pause.reason.clone(),
            })
            .collect(),
        workers: matrix_enabled.then_some(workers),
        held: stats.held_lanes,
        dead: stats.dead_letters,
        last_death: stats.groups.iter().map(|group| group.newest_at).max().map(html::second),
    }
}

fn figures(known: &Figures) -> Vec<Figure> {
    let stats = &known.stats;
    let worry = |count: u64| if count > 0 { "warn" } else { "good" };
    let paused = stats.paused_lanes;
    vec![
        Figure {
            id: "dead-letters",
            name: "Dead letters",
            value: stats.dead_letters.to_string(),
            link: "/console/dead",
            tone: worry(stats.dead_letters.count),
        },
        Figure {
            id: "held-lanes",
            name: "Held lanes",
            value: stats.held_lanes.to_string(),
            link: "/console/operations?state=held",
            tone: worry(stats.held_lanes.count),
        },
        Figure {
            id: "paused-lanes",
            name: "Paused lanes",
            value: paused.to_string(),
            link: "/console/operations?state=paused",
            tone: worry(paused.count),
        },
        Figure {
            id: "delivered",
            name: "Delivered a minute",
            value: format!("{:.0}", known.delivered_per_minute),
            link: "/console/operations?state=delivered",
            tone: "good",
        },
        Figure {
            id: "workers",
            name: "Workers",
            value: known.workers.len().to_string(),
            link: "",
            tone: if known.workers.is_empty() { "bad" } else { "good" },
        },
        Figure {
            id: "tasks",
            name: "Tasks that run",
            value: stats.tasks_running.to_string(),
            link: "/console/tasks",
            tone: "good",
        },
    ]
}

fn classes(stats: &Stats) -> Table {
    let all_paused = stats.pauses.iter().any(|pause| pause.scope == "all");
    let mut table = Table::new("classes", "What waits, by class", &["Class", "Waiting", "Oldest", "State"]);
    for class in &stats.classes {
        let oldest = seconds(class.oldest_age_seconds);
        let chip = match () {
            () if class.paused || all_paused => html::chip(Tone::Warn, "paused"),
            () if health::is_late(class.class.as_str(), oldest) => html::chip(Tone::Warn, "behind"),
            () => html::chip(Tone::Good, "in time"),
        };
        table.row(
            class.class.as_str(),
            vec![
                html::text(class.class.as_str()),
                html::text(html::grouped(class.depth)),
                if class.depth == 0 { html::dash() } else { html::text(html::lasting(oldest)) },
                chip,
            ],
        );
    }
    table
}

fn workers(workers: &[WorkerSeen]) -> Table {
    let heads = &["Worker", "Host", "Circuit", "Token", "Lanes", "Delivered a minute", "Since", "Seen", "Reads Matrix"];
    let mut table = Table::new("workers", "Workers", heads).or("No worker has been seen lately.");
    for worker in workers {
        let circuit = match worker.circuit.as_str() {
            "closed" => html::chip(Tone::Good, "closed"),
            "ramping_up" => html::chip(Tone::Warn, "ramping up"),
            "open" => html::chip(Tone::Bad, "open"),
            other => html::chip(Tone::Quiet, other),
        };
        let token = if worker.token_accepted {
            html::chip(Tone::Good, "accepted")
        } else {
            html::chip(Tone::Bad, "not accepted")
        };
        table.row(
            worker.worker_id,
            vec![
                html::id(worker.worker_id),
                html::text(format!("{} ({})", worker.host, worker.version)),
                circuit,
                token,
                html::text(format!("{} of {}", worker.busy, worker.slots)),
                html::text(format!("{:.0}", worker.delivered_per_minute)),
                html::at(worker.started_at),
                html::at(worker.seen_at),
                html::text(if worker.sync_leader { "yes" } else { "no" }),
            ],
        );
    }
    table
}
