//! `outboxctl resume`.

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    operator,
    outbox::{self, COUNTED_LANES, GoingOn, PauseOfClass},
};
use sqlx::PgPool;

use crate::{
    Failed,
    pause::{Named, ScopeArgs, in_words},
    print::{at, clean, count, json, say},
    session::{self, Who, parse_reason},
};

const EXAMPLES: &str = "\
Ends pauses of every sort, and holds: also those that a worker set because a room did not take our messages. If that is not
mended, the lane is held again.

Examples:
  outboxctl resume --all
  outboxctl resume --conversation <ID>
  outboxctl resume --held                                     every lane that is held, in batches of 500
  outboxctl resume --held --because 'the homeserver forbids it in this room'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Every lane that is held
    #[arg(long, conflicts_with = "ScopeArgs")]
    held: bool,
    /// Only those that are held for exactly this reason
    #[arg(long, value_name = "REASON", requires = "held", conflicts_with = "ScopeArgs")]
    because: Option<String>,
    /// Why, for the trail
    #[arg(long, value_parser = parse_reason)]
    reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    resumed: Named,
    ended: u64,
    lanes_going_on: i64,
    still_paused: Vec<PauseOfClass>,
}

pub(crate) async fn resume(args: &ResumeArgs) -> Result<(), Failed> {
    let scope = args.scope.chosen();
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let mut failed = None;
    let (resumed, name, named) = match scope {
        None if args.held => {
            let resumed;
            (resumed, failed) = held(&pool, args, &by).await;
            (resumed, "every lane that was held".to_owned(), Named::held())
        }
        None => {
            return Err(Failed::Usage("say what: --all, --class, --conversation, --lane or --held".to_owned()));
        }
        Some(scope) => {
            let mut tx = pool.begin().await?;
            let resumed = operator::resume(&mut tx, &by, scope, args.reason.as_deref()).await?;
            tx.commit().await?;
            (resumed, in_words(scope), scope.into())
        }
    };
    if let Some(error) = failed {
        eprintln!("{}: resumed before it failed", count(resumed.ended, "lane"));
        return Err(error.into());
    }
    if resumed.ended == 0 {
        eprintln!("nothing to resume: no pause or hold of {name} lasts");
        return Err(Failed::Reported);
    }
    outbox::wake_now(&pool).await;
    let still_paused = outbox::pauses(&mut *pool.acquire().await?).await?;
    if args.json {
        let (ended, lanes_going_on) = (resumed.ended, resumed.lanes);
        return json(&Report { resumed: named, ended, lanes_going_on, still_paused });
    }
    let many = if resumed.lanes >= COUNTED_LANES { " or more" } else { "" };
    say(&format!("{name}: resumed; {}{many} with something to send", count(resumed.lanes, "lane")));
    for pause in still_paused {
        let until = pause.until.map_or_else(|| "it is resumed".to_owned(), at);
        say(&format!("but `{}` is still paused until {until} ({})", pause.scope, clean(&pause.reason)));
    }
    Ok(())
}

/// In batches, each an act of its own, so that no transaction is long. Also says what was done before a failure.
async fn held(pool: &PgPool, args: &ResumeArgs, by: &str) -> (GoingOn, Option<sqlx::Error>) {
    let mut all = GoingOn { ended: 0, lanes: 0 };
    loop {
        match batch(pool, args, by).await {
            Ok(batch) if batch.ended == 0 => return (all, None),
            Ok(batch) => all = GoingOn { ended: all.ended + batch.ended, lanes: all.lanes + batch.lanes },
            Err(error) => return (all, Some(error)),
        }
    }
}

async fn batch(pool: &PgPool, args: &ResumeArgs, by: &str) -> Result<GoingOn, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let batch = operator::resume_held(&mut tx, by, args.because.as_deref(), args.reason.as_deref()).await?;
    tx.commit().await?;
    outbox::wake_now(pool).await;
    Ok(batch)
}
