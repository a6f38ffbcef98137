//! `outboxctl`: what an operator types.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use shared::config::{ConfigProblem, DatabaseArgs};

mod audit;
mod bulk;
mod complete;
mod completion;
mod discard;
mod errand;
mod explain;
mod filter;
mod list;
mod pause;
mod print;
mod repair;
mod requeue;
mod resume;
mod session;
mod setup;
mod show;
mod stats;
mod tasks;
mod timeline;
mod verify;
mod when;

#[derive(Debug, Parser)]
#[command(name = "outboxctl", version, about = "Operates matrix-outbox", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done; 1 it failed, or there was nothing to act on; 2 wrong use or configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// See in one look what waits, what is stuck and of what, and who works
    Stats(stats::StatsArgs),
    /// List what is dead, held, paused, still to be done, or delivered
    List(list::ListArgs),
    /// Show where an operation, a message or a call stands, and all that happened to it
    Show(show::ShowArgs),
    /// Say in a sentence why something waits, when it goes, and what to do
    Explain(explain::ExplainArgs),
    /// Show what happened in a conversation
    Timeline(timeline::TimelineArgs),
    /// Bring dead letters back to their places
    Requeue(Box<requeue::RequeueArgs>),
    /// Throw dead letters away, or give up what holds a lane and can never succeed
    Discard(discard::DiscardArgs),
    /// End what still waits, as if its time were over
    Expire(complete::ExpireArgs),
    /// Say that something is done, and as which event
    Complete(complete::CompleteArgs),
    /// List tasks and how far they are, or end one
    Tasks(tasks::TasksArgs),
    /// Stop sending: everything, a class, a conversation or a lane
    Pause(pause::PauseArgs),
    /// Let go on what is paused or held
    Resume(resume::ResumeArgs),
    /// Compare conversations with their rooms on Matrix, and repair what differs
    Verify(verify::VerifyArgs),
    /// Mend conversations on Matrix: rejoin the room, invite members again, take the room under the alias
    Repair(repair::RepairArgs),
    /// List what operators did
    Audit(audit::AuditArgs),
    /// Print what a shell needs to complete commands and options
    Completion(completion::CompletionArgs),
    /// Bring the database schema up to this release
    Migrate(DatabaseArgs),
    /// Mint a token for development
    Token(setup::TokenArgs),
    /// Look whether everything is there that the worker needs
    Doctor(Box<setup::DoctorArgs>),
    /// Look at the configuration
    #[command(subcommand)]
    Config(setup::ConfigCommand),
}

/// Why a command did not succeed.
enum Failed {
    Configuration(Vec<ConfigProblem>),
    /// Wrong use that only the command itself could find.
    Usage(String),
    Other(anyhow::Error),
    /// It has said so itself.
    Reported,
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Stats(args) => stats::stats(&args).await,
        Command::List(args) => list::list(&args).await,
        Command::Show(args) => show::show(&args).await,
        Command::Explain(args) => explain::explain(&args).await,
        Command::Timeline(args) => timeline::timeline(&args).await,
        Command::Requeue(args) => requeue::requeue(&args).await,
        Command::Discard(args) => discard::discard(&args).await,
        Command::Expire(args) => complete::expire(&args).await,
        Command::Complete(args) => complete::complete(&args).await,
        Command::Tasks(args) => tasks::tasks(&args).await,
        Command::Pause(args) => pause::pause(&args).await,
        Command::Resume(args) => resume::resume(&args).await,
        Command::Verify(args) => verify::verify(&args).await,
        Command::Repair(args) => repair::repair(&args).await,
        Command::Audit(args) => audit::audit(&args).await,
        Command::Completion(args) => {
            completion::completion(&args, Cli::command());
            Ok(())
        }
        Command::Migrate(args) => setup::migrate(&args).await,
        Command::Token(args) => setup::mint(&args),
        Command::Doctor(args) => setup::doctor(&args).await,
        Command::Config(setup::ConfigCommand::Check(args)) => setup::check(&args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed::Configuration(problems)) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            ExitCode::from(2)
        }
        Err(Failed::Usage(problem)) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
        Err(Failed::Other(error)) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
        Err(Failed::Reported) => ExitCode::FAILURE,
    }
}
