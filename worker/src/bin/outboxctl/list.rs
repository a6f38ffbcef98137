//! `outboxctl list`.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    ids::{ConversationId, LaneId, OutboxId, UserId},
    outbox::{self, Counted, DeadGroup, LiveFilter, Repair, SentFilter},
};
use sqlx::PgConnection;

use crate::{
    Failed,
    filter::FilterArgs,
    print::{at, at_or_dash, clean, json, or_dash, repair_all_command, repair_command, say, table},
    session,
    when::span,
};

const EXAMPLES: &str = "Examples:
  outboxctl list                                       the newest dead letters
  outboxctl list --groups                              what they died of, the largest groups first
  outboxctl list --errcode M_TOO_LARGE --since 2h --limit 200
  outboxctl list --user <ID> --text 'timed out'
  outboxctl list --state held                          lanes that wait for somebody
  outboxctl list --state paused
  outboxctl list --state live --conversation <ID>      what a conversation has still to send, oldest first
  outboxctl list --state delivered --since 10m         what was made since and stands in its room
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
    /// Operations that stand in their rooms, those made last first
    Delivered,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Held => "held",
            Self::Paused => "paused",
            Self::Live => "live",
            Self::Delivered => "delivered",
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ListArgs {
    /// What to list
    #[arg(long, value_enum, default_value_t = State::Dead)]
    state: State,
    /// Dead letters by what they have in common: cause, error code and kind
    #[arg(long, conflicts_with_all = ["state", "FilterArgs", "cursor"])]
    groups: bool,
    #[command(flatten)]
    filter: FilterArgs,
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
    /// How many there are on all pages; only of dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<Counted>,
    /// Pauses of everything and of classes; only with `--state paused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pauses: Option<Vec<outbox::PauseOfClass>>,
    items: Vec<T>,
    next_cursor: Option<String>,
}

pub(crate) async fn list(args: &ListArgs) -> Result<(), Failed> {
    args.check()?;
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    if args.groups {
        return groups(&mut tx, args).await;
    }
    match args.state {
        State::Dead => dead(&mut tx, args).await,
        State::Held => held(&mut tx, args).await,
        State::Paused => paused(&mut tx, args).await,
        State::Live => live(&mut tx, args).await,
        State::Delivered => delivered(&mut tx, args).await,
    }
}

impl ListArgs {
    /// Not every wish makes sense of everything.
    fn check(&self) -> Result<(), Failed> {
        let filter = &self.filter;
        let operations = matches!(self.state, State::Dead | State::Live | State::Delivered);
        let (dead, failing) = (self.state == State::Dead, matches!(self.state, State::Dead | State::Live));
        for (option, given, makes_sense) in [
            ("kind", filter.kind.is_some(), operations),
            ("user", filter.user.is_some(), operations),
            ("since", filter.since.is_some(), operations),
            ("until", filter.until.is_some(), operations),
            ("errcode", filter.errcode.is_some(), failing),
            ("cause", filter.cause.is_some(), dead),
            ("text", filter.text.is_some(), dead),
        ] {
            if given && !makes_sense {
                return Err(Failed::Usage(format!("--{option} does not go with --state {}", self.state.as_str())));
            }
        }
        Ok(())
    }

    fn conversation_id(&self) -> Option<ConversationId> {
        self.filter.conversation.map(ConversationId::from)
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
        Page { state: self.state, count: None, pauses: None, items, next_cursor }
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
    let filter = args.filter.dead(conn).await?;
    let before = args.cursor(|text| text.parse().ok())?;
    let letters = outbox::dead_letters(conn, &filter, before, args.limit_and_one()).await?;
    let mut page = args.page(letters, |letter| letter.cursor().to_string());
    let counted = outbox::count_dead(conn, &filter).await?;
    page.count = Some(counted);
    args.print(&page, "no dead letters", ["died", "operation", "kind", "cause", "errcode", "what to do"], |letter| {
        [
            at(letter.died_at),
            letter.outbox_id.to_string(),
            clean(&letter.kind),
            clean(&letter.cause),
            or_dash(letter.errcode.as_deref()),
            with_repair(&letter.hint, letter.repair, letter.conversation_id),
        ]
    })?;
    if !args.json && counted.count > 0 {
        say(&format!("{counted} in all"));
    }
    Ok(())
}

/// What to do, and what this program can do about it.
fn with_repair(hint: &str, repair: Option<Repair>, conversation_id: ConversationId) -> String {
    match repair {
        Some(repair) => format!("{}; or: {}", clean(hint), repair_command(repair, conversation_id)),
        None => clean(hint),
    }
}

/// Groups, as programs read them.
#[derive(Serialize)]
struct Groups {
    groups: Vec<DeadGroup>,
}

async fn groups(conn: &mut PgConnection, args: &ListArgs) -> Result<(), Failed> {
    let groups = Groups { groups: outbox::dead_groups(conn, i64::from(args.limit)).await? };
    if args.json {
        return json(&groups);
    }
    if groups.groups.is_empty() {
        say("no dead letters");
        return Ok(());
    }
    let rows: Vec<_> = groups
        .groups
        .iter()
        .map(|group| {
            [
                group.count.to_string(),
                clean(&group.cause),
                or_dash(group.errcode.as_deref()),
                clean(&group.kind),
                at(group.oldest_at),
                at(group.newest_at),
                group.repair.map_or("-", Repair::as_str).to_owned(),
                clean(&group.hint),
            ]
        })
        .collect();
    say(&table(["count", "cause", "errcode", "kind", "first", "last", "repair", "what to do"], &rows));
    let repairs = groups.groups.iter().filter_map(|group| Some((group.repair?, group.errcode.as_deref())));
    say_repairs(repairs);
    Ok(())
}

/// What repairs all that was listed, each once.
fn say_repairs<'a>(repairs: impl Iterator<Item = (Repair, Option<&'a str>)>) {
    let commands: BTreeSet<String> = repairs.map(|(repair, errcode)| repair_all_command(repair, errcode)).collect();
    for command in commands {
        say(&format!("Of all conversations: {command}"));
    }
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
            with_repair(&lane.reason, lane.repair, lane.conversation_id),
        ]
    })?;
    if !args.json {
        say_repairs(page.items.iter().filter_map(|lane| Some((lane.repair?, None))));
    }
    Ok(())
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
    let (since, until) = span(conn, args.filter.since, args.filter.until).await?;
    let filter = LiveFilter {
        conversation_id: args.conversation_id(),
        kind: args.filter.kind.clone(),
        user_id: args.filter.user.map(UserId::from),
        errcode: args.filter.errcode.clone(),
        since,
        until,
    };
    let operations = outbox::live_operations(conn, &filter, after, args.limit_and_one()).await?;
    let page = args.page(operations, |operation| operation.outbox_id.to_string());
    let heads = ["enqueued", "operation", "kind", "conversation", "place", "failures", "waits for"];
    args.print(&page, "nothing waits", heads, |operation| {
        let errcode = operation.last_errcode.as_deref().map(|errcode| format!(" ({})", clean(errcode)));
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
            format!("{}{}", operation.failures, errcode.unwrap_or_default()),
            waits,
        ]
    })
}

async fn delivered(conn: &mut PgConnection, args: &ListArgs) -> Result<(), Failed> {
    let before = args.cursor(|text| text.parse().ok())?;
    let (since, until) = span(conn, args.filter.since, args.filter.until).await?;
    let filter = SentFilter {
        conversation_id: args.conversation_id(),
        kind: args.filter.kind.clone(),
        user_id: args.filter.user.map(UserId::from),
        since,
        until,
    };
    let operations = outbox::sent_operations(conn, &filter, before, args.limit_and_one()).await?;
    let page = args.page(operations, |operation| operation.cursor().to_string());
    let heads = ["delivered", "operation", "kind", "conversation", "event"];
    args.print(&page, "nothing was delivered", heads, |operation| {
        [
            at(operation.sent_at),
            operation.outbox_id.to_string(),
            clean(&operation.kind),
            operation.conversation_id.to_string(),
            clean(operation.event_id.as_str()),
        ]
    })
}

fn lane_name(conversation_id: ConversationId, lane_id: LaneId) -> String {
    format!("{conversation_id}/{lane_id}")
}
