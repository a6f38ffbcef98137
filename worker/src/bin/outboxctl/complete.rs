//! `outboxctl complete` and `outboxctl expire`: what a person knows better.

use clap::Args;
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, EventId, OutboxId},
    operator,
    outbox::{self, Completion, Expire, Found, Place, Refused, Wanted},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Failed,
    print::{clean, count, json, say},
    session::{self, Who, parse_reason},
};

const COMPLETE_EXAMPLES: &str = "\
For what stands in its room although nobody here knows: it is delivered from now on, as the event that is named, and what
waited behind it goes on. A lane that is held stays held. Invitations and removals have no event: those are done without.
Look in the room first: an event that is another operation's, or somebody else's, is refused; one that does not exist is not.

Examples:
  outboxctl complete <OPERATION> --event-id '$0aBc…' --reason 'found it in the room'
  outboxctl complete <OPERATION> --reason 'removed by hand'

Exit codes: 0 it is done; 1 it was refused; 2 wrong use";

#[derive(Debug, Args)]
#[command(after_help = COMPLETE_EXAMPLES)]
pub(crate) struct CompleteArgs {
    /// The operation
    id: Uuid,
    /// The event that it became
    #[arg(long, value_name = "EVENT", value_parser = parse_event)]
    event_id: Option<EventId>,
    /// Why, for the trail
    #[arg(long, value_parser = parse_reason)]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    database: DatabaseArgs,
}

fn parse_event(text: &str) -> Result<EventId, String> {
    let sound = text.starts_with('$') && text.len() > 1 && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    if sound { Ok(EventId::from(text.to_owned())) } else { Err("must be an event id, such as '$0aBc…'".to_owned()) }
}

/// What is done, as programs read it.
#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "programs read the word")]
struct Completed {
    completed: bool,
    outbox_id: OutboxId,
    conversation_id: ConversationId,
    kind: String,
    subject_id: Uuid,
    event_id: Option<EventId>,
    /// Edits and reactions of it that are dead and may be requeued now.
    parked: u64,
    refused: Option<Refused>,
}

pub(crate) async fn complete(args: &CompleteArgs) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let found = outbox::find(&mut *pool.acquire().await?, args.id).await?;
    let Some(found) = the_one(args.id, &found) else {
        match found.as_slice() {
            [] => eprintln!("nothing is known of {}", args.id),
            _ => eprintln!("{} has several operations: `outboxctl show` has their ids, give one of them", args.id),
        }
        return Err(Failed::Reported);
    };
    let (conversation_id, outbox_id) = (found.conversation_id, found.outbox_id);
    let mut tx = pool.begin().await?;
    let done =
        operator::complete(&mut tx, &by, conversation_id, outbox_id, args.event_id.as_ref(), &args.reason).await?;
    tx.commit().await?;
    let mut report = Completed {
        completed: false,
        outbox_id,
        conversation_id,
        kind: found.kind.clone(),
        subject_id: found.subject_id,
        event_id: args.event_id.clone(),
        parked: 0,
        refused: None,
    };
    match done {
        Completion::Completed(completed) => {
            report.completed = true;
            report.parked = completed.parked;
            shared::wake::wake_now(&pool).await;
        }
        Completion::Refused(refused) => report.refused = Some(refused),
    }
    if args.json {
        json(&report)?;
    } else if let Some(refused) = &report.refused {
        eprintln!("{outbox_id} is not completed: {}", refused.in_words);
    } else {
        let event = report.event_id.as_ref().map(|id| format!(" as {}", clean(id.as_str()))).unwrap_or_default();
        say(&format!("{} {outbox_id} is done{event}", clean(&report.kind)));
        if report.parked > 0 {
            let parked = count(report.parked, "dead edit or reaction");
            say(&format!("{parked} of it may be requeued now: outboxctl requeue {}", report.subject_id));
        }
    }
    if report.completed { Ok(()) } else { Err(Failed::Reported) }
}

/// The operation of that id; or the only one of a message that is not delivered.
fn the_one(id: Uuid, found: &[Found]) -> Option<&Found> {
    if let Some(named) = found.iter().find(|found| found.outbox_id.as_uuid() == id) {
        return Some(named);
    }
    let mut open = found.iter().filter(|found| found.place != Place::Sent);
    match (open.next(), open.next(), found) {
        (Some(only), None, _) | (None, None, [only]) => Some(only),
        _ => None,
    }
}

const EXPIRE_EXAMPLES: &str = "\
Ends what still waits, as if its time were over: it never goes to Matrix. The message itself stays, for readers of the API.
What is under way, or may be there already, is refused, and so are redactions and removals.

Examples:
  outboxctl expire <ID> --reason 'too late to be of use'
  outboxctl list --state live --kind call_invite --until 5m --json | jq -r '.items[].outbox_id' |
    xargs outboxctl expire --reason 'they have hung up'

Exit codes: 0 something ended for each id; 1 something was refused; 2 wrong use";

#[derive(Debug, Args)]
#[command(after_help = EXPIRE_EXAMPLES)]
pub(crate) struct ExpireArgs {
    /// Operations, or messages
    #[arg(required = true)]
    ids: Vec<Uuid>,
    /// Why, for the trail
    #[arg(long, value_parser = parse_reason)]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// What ended, as programs read it.
#[derive(Serialize)]
struct Ended {
    expired: usize,
    conversations: Vec<OfConversation>,
    refused: Vec<Refused>,
}

#[derive(Serialize)]
struct OfConversation {
    conversation_id: ConversationId,
    operations: Vec<OutboxId>,
}

pub(crate) async fn expire(args: &ExpireArgs) -> Result<(), Failed> {
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let targets = outbox::resolve(&mut *pool.acquire().await?, &args.ids, Wanted::Live).await?;
    let mut report = Ended { expired: 0, conversations: Vec::new(), refused: targets.refused.clone() };
    let (mut gone, mut failed) = (Vec::new(), None);
    for (conversation_id, ids) in &targets.operations {
        match one(&pool, &by, *conversation_id, ids, &args.reason).await {
            Ok(done) => {
                report.expired += done.gone.len();
                report.refused.extend(done.refused);
                gone.extend_from_slice(&done.gone);
                if !done.gone.is_empty() {
                    let (conversation_id, operations) = (*conversation_id, done.gone);
                    report.conversations.push(OfConversation { conversation_id, operations });
                }
            }
            // What was done before a failure is told all the same.
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if report.expired > 0 {
        shared::wake::wake_now(&pool).await;
    }
    if args.json {
        json(&report)?;
    } else {
        for refused in &report.refused {
            say(&format!("{} is not ended: {}", refused.id, refused.in_words));
        }
        say(&format!("{} ended", count(report.expired as u64, "operation")));
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    if report.expired > 0 && targets.all_served(&gone) { Ok(()) } else { Err(Failed::Reported) }
}

/// Operations of one conversation: one act, in one transaction.
async fn one(
    pool: &PgPool,
    by: &str,
    conversation_id: ConversationId,
    ids: &[OutboxId],
    reason: &str,
) -> Result<Expire, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let done = operator::expire(&mut tx, by, conversation_id, ids, reason).await?;
    tx.commit().await?;
    Ok(done)
}
