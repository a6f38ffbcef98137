//! `outboxctl pause`, and what is paused or resumed.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use shared::{
    config::DatabaseArgs,
    database,
    ids::{ConversationId, LaneId},
    operator::{self, Scope},
    outbox::LaneClass,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    Failed,
    print::{at, count, json, say},
    session::{self, Who, parse_reason},
};

const EXAMPLES: &str = "\
What is on the wire is finished; requests to the API go on, and operations queue up. A pause costs no attempts. One with an
end ends by itself.

Examples:
  outboxctl pause --all --for 2h --reason 'moving the homeserver'
  outboxctl pause --class chat --reason 'calls only, until the disk is replaced'
  outboxctl pause --conversation <ID> --until 2026-01-31T06:00:00Z --reason 'too loud'
  outboxctl pause --lane <CONVERSATION>/<LANE> --for 10m --reason 'snooze'";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    Call,
    Chat,
}

/// What is paused or resumed.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct ScopeArgs {
    /// Everything
    #[arg(long)]
    all: bool,
    /// Every lane of a class
    #[arg(long, value_enum)]
    class: Option<Class>,
    /// Every lane of a conversation
    #[arg(long, value_name = "ID")]
    conversation: Option<Uuid>,
    /// One lane
    #[arg(long, value_name = "CONVERSATION/LANE", value_parser = parse_lane)]
    lane: Option<(ConversationId, LaneId)>,
}

fn parse_lane(text: &str) -> Result<(ConversationId, LaneId), String> {
    let parse = |(conversation, lane): (&str, &str)| Some((conversation.parse().ok()?, lane.parse().ok()?));
    text.split_once('/').and_then(parse).ok_or_else(|| "must be two ids with a slash between them".to_owned())
}

impl ScopeArgs {
    /// What was chosen; none when nothing was.
    pub(crate) fn chosen(&self) -> Option<Scope> {
        let class = self.class.map(|class| match class {
            Class::Call => Scope::Class(LaneClass::Call),
            Class::Chat => Scope::Class(LaneClass::Chat),
        });
        let conversation = self.conversation.map(|id| Scope::Conversation(id.into()));
        let lane = self.lane.map(|(conversation_id, lane_id)| Scope::Lane(conversation_id, lane_id));
        self.all.then_some(Scope::All).or(class).or(conversation).or(lane)
    }
}

/// What was paused or resumed, as programs read it.
#[derive(Serialize)]
pub(crate) struct Named {
    scope: &'static str,
    class: Option<LaneClass>,
    conversation_id: Option<ConversationId>,
    lane_id: Option<LaneId>,
}

impl Named {
    /// Lanes that were held, whichever they are.
    pub(crate) const fn held() -> Self {
        Self { scope: "held", class: None, conversation_id: None, lane_id: None }
    }
}

impl From<Scope> for Named {
    fn from(scope: Scope) -> Self {
        let none = Self { scope: "all", class: None, conversation_id: None, lane_id: None };
        match scope {
            Scope::All => none,
            Scope::Class(class) => Self { scope: "class", class: Some(class), ..none },
            Scope::Conversation(id) => Self { scope: "conversation", conversation_id: Some(id), ..none },
            Scope::Lane(id, lane) => Self { scope: "lane", conversation_id: Some(id), lane_id: Some(lane), ..none },
        }
    }
}

/// For people.
pub(crate) fn in_words(scope: Scope) -> String {
    match scope {
        Scope::All => "everything".to_owned(),
        Scope::Class(class) => format!("the class {}", class.as_str()),
        Scope::Conversation(id) => format!("conversation {id}"),
        Scope::Lane(id, lane) => format!("lane {id}/{lane}"),
    }
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Until this time, as 2026-01-31T06:00:00Z; without an end, until it is resumed
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "for_")]
    until: Option<OffsetDateTime>,
    /// For so long, as 30m or 2h
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    for_: Option<Duration>,
    /// Why, for people
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

fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "must be a time such as 2026-01-31T06:00:00Z".to_owned())
}

/// A pause for longer than this is one without an end.
const LONGEST: Duration = Duration::from_hours(24 * 365);

fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero() && *duration <= LONGEST);
    duration.ok_or_else(|| "must be a duration such as 30m or 2h, at most a year".to_owned())
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    paused: Named,
    #[serde(with = "time::serde::rfc3339::option")]
    until: Option<OffsetDateTime>,
    lanes: Option<u64>,
}

pub(crate) async fn pause(args: &PauseArgs) -> Result<(), Failed> {
    let Some(scope) = args.scope.chosen() else {
        return Err(Failed::Usage("say what: --all, --class, --conversation or --lane".to_owned()));
    };
    let by = args.who.name()?;
    let pool = session::database(&args.database)?;
    let mut tx = pool.begin().await?;
    let now = database::now(&mut tx).await?;
    let until = args.for_.map(|duration| now + duration).or(args.until);
    if until.is_some_and(|until| until <= now) {
        return Err(Failed::Usage(format!("--until: is past; it is {} by the database's clock", at(now))));
    }
    let affected = operator::pause(&mut tx, &by, scope, until, &args.reason).await?;
    tx.commit().await?;
    let lanes = matches!(scope, Scope::Conversation(_) | Scope::Lane(..)).then_some(affected);
    if affected == 0 {
        eprintln!("there is no such {}", if matches!(scope, Scope::Lane(..)) { "lane" } else { "conversation" });
        return Err(Failed::Reported);
    }
    if args.json {
        return json(&Report { paused: scope.into(), until, lanes });
    }
    let end = until.map_or_else(|| "until it is resumed".to_owned(), |until| format!("until {}", at(until)));
    let lanes = lanes.map(|lanes| format!(" ({})", count(lanes, "lane"))).unwrap_or_default();
    say(&format!("{}{lanes} is paused {end}; what is on the wire is finished", in_words(scope)));
    Ok(())
}
