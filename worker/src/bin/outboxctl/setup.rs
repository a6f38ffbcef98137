//! What is done once or now and then: the schema, tokens, and whether everything is there.

use std::time::Duration;

use clap::{Args, Parser as _, Subcommand};
use shared::{
    config::{
        Checked, ConfigProblem, DatabaseArgs, JwtArgs,
        programs::{ApiCli, WorkerCli},
    },
    database::{self, Limits},
    ids::UserId,
    token,
};
use uuid::Uuid;

use crate::Failed;

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// The user whom the token speaks for
    #[arg(long, value_name = "UUID")]
    user: Uuid,
    /// Words separated by spaces, such as "outbox:read outbox:operate"
    #[arg(long)]
    scope: Option<String>,
    /// For how many seconds it is valid
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    valid_for: u32,
    #[command(flatten)]
    jwt: JwtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerCli,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the options of api and worker, as the environment gives them, and report every mistake
    Check(Box<CheckArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Check only the API's or only the worker's
    #[arg(long, value_parser = ["api", "worker"])]
    only: Option<String>,
}

pub(crate) async fn migrate(args: &DatabaseArgs) -> Result<(), Failed> {
    let mut checked = Checked::default();
    let config = checked.database(args);
    let config = checked.finish(config).map_err(Failed::Configuration)?;
    let pool = database::pool(&config, "outboxctl migrate", Limits::WORKERS)?;
    database::migrate(&pool).await?;
    database::add_attempt_partitions(&pool).await?;
    println!("the schema is up to date");
    Ok(())
}

pub(crate) fn mint(args: &TokenArgs) -> Result<(), Failed> {
    let mut checked = Checked::default();
    let secret = checked.jwt_secret(&args.jwt);
    let secret = checked.finish(secret).map_err(Failed::Configuration)?;
    let expires_at = database::unix_time() + i64::from(args.valid_for);
    println!("{}", token::sign(&secret, UserId::from(args.user), expires_at, args.scope.as_deref())?);
    Ok(())
}

pub(crate) async fn doctor(args: &DoctorArgs) -> Result<(), Failed> {
    let settings = args.worker.check().map_err(Failed::Configuration)?;
    let findings = tokio::time::timeout(Duration::from_mins(1), worker::doctor::examine(&settings)).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            println!("{:4} {:14} {}", if finding.ok { "ok" } else { "BAD" }, finding.check, finding.detail);
        }
    }
    if findings.iter().all(|finding| finding.ok) { Ok(()) } else { Err(Failed::Reported) }
}

pub(crate) fn check(args: &CheckArgs) -> Result<(), Failed> {
    let mut problems = Vec::new();
    let mut add = |program: &str, result: Result<(), Vec<ConfigProblem>>| match result {
        Ok(()) => println!("{program}: ok"),
        Err(found) => {
            println!("{program}: {} wrong", found.len());
            for problem in found {
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
    };
    // The options of both programs come from the environment here.
    if args.only.as_deref() != Some("worker") {
        add("api", ApiCli::parse_from(["api"]).check().map(|_| ()));
    }
    if args.only.as_deref() != Some("api") {
        add("worker", WorkerCli::parse_from(["worker"]).check().map(|_| ()));
    }
    if problems.is_empty() { Ok(()) } else { Err(Failed::Configuration(problems)) }
}
