//! `outboxctl resume`.

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, LaneId},
    operator,
    outbox::{self, COUNTED_LANES, GoingOn, HeldBatch, PauseOfClass},
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
  outboxctl resume --held                                     every lane that is held, once, in batches of 500
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
    /// Held lanes that somebody had locked, so that they were left; only of `--held`.
    #[serde(skip_serializing_if = "Option::is_none")]
    locked: Option<u64>,
    still_paused: Vec<PauseOfClass>,
}

pub(crate) async fn resume(args: &ResumeArgs) -> Result<(), Failed> {
    let scope = args.scope.chosen();
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let (mut locked, mut failed) = (None, None);
    let (resumed, name, named) = match scope {
        None if args.held => {
            let pass = held(&pool, args, &by).await;
            (locked, failed) = (Some(pass.locked), pass.failed);
            (pass.resumed, "every lane that was held".to_owned(), Named::held())
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
    let left = locked
        .filter(|locked| *locked > 0)
        .map(|locked| format!("{} locked just now and left as it was: run it again", count(locked, "held lane")));
    if resumed.ended == 0 {
        if let Some(left) = left {
            eprintln!("{left}");
            return Err(Failed::Reported);
        }
        eprintln!("nothing to resume: no pause or hold of {name} lasts");
        return Err(Failed::Reported);
    }
    shared::wake::wake_now(&pool).await;
    let still_paused = outbox::pauses(&mut *pool.acquire().await?).await?;
    if args.json {
        let (ended, lanes_going_on) = (resumed.ended, resumed.lanes);
        json(&Report { resumed: named, ended, lanes_going_on, locked, still_paused })?;
    } else {
        let many = if resumed.lanes >= COUNTED_LANES { " or more" } else { "" };
        say(&format!("{name}: resumed; {}{many} with something to send", count(resumed.lanes, "lane")));
        for pause in still_paused {
            let until = pause.until.map_or_else(|| "it is resumed".to_owned(), at);
            say(&format!("but `{}` is still paused until {until} ({})", pause.scope, clean(&pause.reason)));
        }
    }
    let Some(left) = left else { return Ok(()) };
    eprintln!("{left}");
    Err(Failed::Reported)
}

/// What a pass over all held lanes did.
struct Pass {
    resumed: GoingOn,
    locked: u64,
    failed: Option<sqlx::Error>,
}

/// One pass over the lanes that are held, in batches, each an act of its own, so that no transaction is long. A lane that
/// is held again meanwhile is not resumed again: its fault is not mended. Also says what was done before a failure.
async fn held(pool: &PgPool, args: &ResumeArgs, by: &str) -> Pass {
    let mut pass = Pass { resumed: GoingOn { ended: 0, lanes: 0 }, locked: 0, failed: None };
    let mut after = None;
    loop {
        match batch(pool, args, by, after).await {
            Ok(HeldBatch { resumed, locked, next }) => {
                pass.resumed.ended += resumed.ended;
                pass.resumed.lanes += resumed.lanes;
                pass.locked += locked;
                if next.is_none() {
                    return pass;
                }
                after = next;
            }
            Err(error) => {
                pass.failed = Some(error);
                return pass;
            }
        }
    }
}

async fn batch(
    pool: &PgPool,
    args: &ResumeArgs,
    by: &str,
    after: Option<(ConversationId, LaneId)>,
) -> Result<HeldBatch, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let batch = operator::resume_held(&mut tx, by, args.because.as_deref(), after, args.reason.as_deref()).await?;
    tx.commit().await?;
    shared::wake::wake_now(pool).await;
    Ok(batch)
}
