//! `outboxctl list`.

use clap::{Args, ValueEnum};
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, LaneId, OutboxId},
    outbox::{self, DeadFilter, LiveFilter},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Failed,
    print::{at, at_or_dash, clean, json, say, table},
    session,
};

const EXAMPLES: &str = "Examples:
  outboxctl list                                       the newest dead letters
  outboxctl list --errcode M_TOO_LARGE --limit 200
  outboxctl list --state held                          lanes that wait for somebody
  outboxctl list --state paused
  outboxctl list --state live --conversation <ID>      what a conversation has still to send, oldest first
  outboxctl list --json | jq -r '.items[].outbox_id'";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Dead letters, newest first
    Dead,
    /// Lanes that wait for somebody
    Held,
    /// Pauses, and lanes that are paused until a time
    Paused,
    /// Operations that are still to be done, oldest first
    Live,
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ListArgs {
    /// What to list
    #[arg(long, value_enum, default_value_t = State::Dead)]
    state: State,
    /// Only of this conversation
    #[arg(long, value_name = "ID")]
    conversation: Option<Uuid>,
    /// Only operations that do this: message, edit, redact, invite or remove
    #[arg(long)]
    kind: Option<String>,
    /// Only dead letters of this cause
    #[arg(long, value_parser = ["own_fault", "parent_dead", "gave_up"])]
    cause: Option<String>,
    /// Only dead letters with this Matrix error code
    #[arg(long)]
    errcode: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Where to go on: the `next_cursor` of the page before
    #[arg(long)]
    cursor: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// A page, as programs read it.
#[derive(Serialize)]
struct Page<T> {
    state: State,
    /// Pauses of everything and of classes; only with `--state paused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pauses: Option<Vec<outbox::PauseOfClass>>,
    items: Vec<T>,
    next_cursor: Option<String>,
}

pub(crate) async fn list(args: &ListArgs) -> Result<(), Failed> {
    let of_operations = matches!(args.state, State::Dead | State::Live);
    if args.kind.is_some() && !of_operations {
        return Err(Failed::Usage("--kind goes with --state dead or live only".to_owned()));
    }
    if (args.cause.is_some() || args.errcode.is_some()) && args.state != State::Dead {
        return Err(Failed::Usage("--cause and --errcode go with --state dead only".to_owned()));
    }
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    match args.state {
        State::Dead => dead(&mut tx, args).await,
        State::Held => held(&mut tx, args).await,
        State::Paused => paused(&mut tx, args).await,
        State::Live => live(&mut tx, args).await,
    }
}

impl ListArgs {
    fn conversation_id(&self) -> Option<ConversationId> {
        self.conversation.map(ConversationId::from)
    }

    /// One more than asked for tells whether there is a next page.
    fn limit_and_one(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    fn cursor<T>(&self, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Failed> {
        let wrong = || Failed::Usage("--cursor: is no cursor of such a list".to_owned());
        self.cursor.as_deref().map(|text| parse(text).ok_or_else(wrong)).transpose()
    }

    fn page<T>(&self, mut items: Vec<T>, cursor: impl Fn(&T) -> String) -> Page<T> {
        let more = items.len() > usize::from(self.limit);
        items.truncate(usize::from(self.limit));
        let next_cursor = items.last().filter(|_| more).map(cursor);
        Page { state: self.state, pauses: None, items, next_cursor }
    }

    fn print<T: Serialize, const N: usize>(
        &self,
        page: &Page<T>,
        nothing: &str,
        heads: [&str; N],
        row: impl Fn(&T) -> [String; N],
    ) -> Result<(), Failed> {
        if self.json {
            return json(page);
        }
        if page.items.is_empty() {
            say(nothing);
        } else {
            let rows: Vec<_> = page.items.iter().map(row).collect();
            say(&table(heads, &rows));
        }
        if let Some(cursor) = &page.next_cursor {
            say(&format!("There is more: --cursor {cursor}"));
        }
        Ok(())
    }
}

async fn dead(conn: &mut PgConnection, args: &ListArgs) -> Result<(), Failed> {
    let filter = DeadFilter {
        conversation_id: args.conversation_id(),
        kind: args.kind.clone(),
        cause: args.cause.clone(),
        errcode: args.errcode.clone(),
        ..DeadFilter::default()
    };
    let before = args.cursor(|text| text.parse().ok())?;
    let letters = outbox::dead_letters(conn, &filter, before, args.limit_and_one()).await?;
    let page = args.page(letters, |letter| letter.cursor().to_string());
    args.print(&page, "no dead letters", ["died", "operation", "kind", "cause", "errcode", "what to do"], |letter| {
        [
            at(letter.died_at),
            letter.outbox_id.to_string(),
            clean(&letter.kind),
            clean(&letter.cause),
            letter.errcode.as_deref().map_or_else(|| "-".to_owned(), clean),
            clean(&letter.hint),
        ]
    })
}

async fn held(conn: &mut PgConnection, args: &ListArgs) -> Result<(), Failed> {
    let after = args.cursor(|text| {
        let (conversation, lane) = text.split_once('/')?;
        Some((conversation.parse().ok()?, lane.parse().ok()?))
    })?;
    let lanes = outbox::held_lanes(conn, args.conversation_id(), after, args.limit_and_one()).await?;
    let page = args.page(lanes, |lane| lane_name(lane.conversation_id, lane.lane_id));
    args.print(&page, "no lane is held", ["lane", "class", "waiting", "oldest", "why"], |lane| {
        [
            lane_name(lane.conversation_id, lane.lane_id),
            lane.lane_class.clone(),
            lane.waiting.to_string(),
            at_or_dash(lane.oldest_at),
            clean(&lane.reason),
        ]
    })
}

async fn paused(conn: &mut PgConnection, args: &ListArgs) -> Result<(), Failed> {
    let after = args.cursor(|text| text.parse().ok())?;
    let lanes = outbox::paused_lanes(conn, args.conversation_id(), after, args.limit_and_one()).await?;
    let mut page = args.page(lanes, |lane| lane.cursor().to_string());
    page.pauses = Some(outbox::pauses(conn).await?);
    if !args.json
        && let Some(pauses) = page.pauses.as_ref().filter(|pauses| !pauses.is_empty())
    {
        let rows: Vec<_> = pauses
            .iter()
            .map(|pause| {
                let until = pause.until.map_or_else(|| "resumed".to_owned(), at);
                [pause.scope.clone(), until, at(pause.paused_at), clean(&pause.paused_by), clean(&pause.reason)]
            })
            .collect();
        say(&table(["paused", "until", "since", "by", "why"], &rows));
    }
    args.print(&page, "no lane is paused until a time", ["lane", "class", "waiting", "until", "why"], |lane| {
        [
            lane_name(lane.conversation_id, lane.lane_id),
            lane.lane_class.clone(),
            lane.waiting.to_string(),
            at(lane.until),
            clean(&lane.reason),
        ]
    })
}

async fn live(conn: &mut PgConnection, args: &ListArgs) -> Result<(), Failed> {
    let after: Option<OutboxId> = args.cursor(|text| text.parse().ok())?;
    let filter =
        LiveFilter { conversation_id: args.conversation_id(), kind: args.kind.clone(), ..LiveFilter::default() };
    let operations = outbox::live_operations(conn, &filter, after, args.limit_and_one()).await?;
    let page = args.page(operations, |operation| operation.outbox_id.to_string());
    let heads = ["enqueued", "operation", "kind", "conversation", "place", "failures", "waits for"];
    args.print(&page, "nothing waits", heads, |operation| {
        let waits = match (&operation.hold, operation.lane_due_at) {
            (Some(hold), _) => format!("somebody: {}", clean(hold)),
            (None, _) if !operation.first => "what is before it in its lane".to_owned(),
            (None, due) => format!("a worker, from {}", at_or_dash(due)),
        };
        [
            at(operation.enqueued_at),
            operation.outbox_id.to_string(),
            clean(&operation.kind),
            operation.conversation_id.to_string(),
            operation.seq.to_string(),
            operation.failures.to_string(),
            waits,
        ]
    })
}

fn lane_name(conversation_id: ConversationId, lane_id: LaneId) -> String {
    format!("{conversation_id}/{lane_id}")
}
