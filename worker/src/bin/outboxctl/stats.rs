//! `outboxctl stats`.

use crate::{
    Failed,
    print::{at, clean, count, json, or_dash, say, table},
    session,
};
use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    outbox::{self, Stats},
    workers::{self, WorkerSeen},
};

const EXAMPLES: &str = "\
What waits and since when, what is stuck and of what, who works and how fast: one look.

Examples:
  outboxctl stats
  watch -n 5 outboxctl stats
  outboxctl stats --json | jq '.classes[] | select(.oldest_age_seconds > 60)'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// The overview, as programs read it.
#[derive(Serialize)]
struct Overview {
    #[serde(flatten)]
    stats: Stats,
    /// Operations delivered in the last minute, by all workers.
    delivered_per_minute: f64,
    workers: Vec<WorkerSeen>,
}

pub(crate) async fn stats(args: &StatsArgs) -> Result<(), Failed> {
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    let stats = outbox::stats(&mut tx).await?;
    let workers = workers::seen(&mut tx).await?;
    let delivered_per_minute = workers.iter().map(|worker| worker.delivered_per_minute).sum();
    let overview = Overview { stats, delivered_per_minute, workers };
    if args.json {
        return json(&overview);
    }
    say(&in_words(&overview));
    Ok(())
}

fn in_words(Overview { stats, delivered_per_minute, workers }: &Overview) -> String {
    let classes: Vec<_> = stats
        .classes
        .iter()
        .map(|class| {
            let paused = if class.paused { "paused" } else { "-" };
            let oldest = if class.depth == 0 { "-".to_owned() } else { format!("{:.0} s", class.oldest_age_seconds) };
            [class.class.as_str().to_owned(), class.depth.to_string(), oldest, paused.to_owned()]
        })
        .collect();
    let mut lines = vec![
        table(["class", "waiting", "oldest", "paused"], &classes),
        String::new(),
        format!(
            "{} dead, {} held and {} paused lanes, {} running; {delivered_per_minute:.0} delivered a minute",
            stats.dead_letters,
            stats.held_lanes,
            stats.paused_lanes,
            count(stats.tasks_running, "task"),
        ),
    ];
    for pause in &stats.pauses {
        let until = pause.until.map_or_else(|| "it is resumed".to_owned(), at);
        let (scope, by, reason) = (clean(&pause.scope), clean(&pause.paused_by), clean(&pause.reason));
        lines.push(format!("`{scope}` is paused until {until}, by {by} ({reason})"));
    }
    lines.push(String::new());
    if workers.is_empty() {
        lines.push("no worker has told of itself lately: nothing is sent".to_owned());
    } else {
        let rows: Vec<_> = workers
            .iter()
            .map(|worker| {
                let sync = if worker.sync_leader { "reads" } else { "-" };
                let token = if worker.token_accepted { "accepted" } else { "REFUSED" };
                [
                    clean(&worker.host),
                    clean(&worker.version),
                    at(worker.started_at),
                    clean(&worker.circuit),
                    token.to_owned(),
                    sync.to_owned(),
                    format!("{} of {}", worker.busy, worker.slots),
                    format!("{:.0}", worker.delivered_per_minute),
                ]
            })
            .collect();
        lines.push(table(["worker", "version", "since", "circuit", "token", "sync", "busy", "a minute"], &rows));
    }
    if !stats.groups.is_empty() {
        let rows: Vec<_> = stats
            .groups
            .iter()
            .map(|group| {
                [
                    group.count.to_string(),
                    clean(&group.cause),
                    or_dash(group.errcode.as_deref()),
                    clean(&group.kind),
                    at(group.newest_at),
                    clean(&group.hint),
                ]
            })
            .collect();
        lines.push(String::new());
        lines.push(table(["dead", "cause", "errcode", "kind", "last", "what to do"], &rows));
    }
    lines.join("\n")
}
