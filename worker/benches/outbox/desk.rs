//! The operators' desk: what a page of it reads with ten thousand and with a million dead letters, and a bulk requeue.

use std::time::{Duration, Instant};

use shared::{
    ids::{ConversationId, UserId},
    outbox::{self, Ailment, COUNTED_LETTERS, DeadFilter, Repair},
};
use sqlx::PgConnection;

use crate::{
    bulk,
    database::Database,
    figures::{Figure, Table, number},
    load,
    statements::Statements,
};

/// A page, as the API gives it.
const PAGE: i64 = 50;

/// The goal: no more than so many pages, whatever there is. A page of 50 letters that lie apart, and what leads to them,
/// is a few hundred; a count up to its bound walks over an index and, where that is not enough, to each row.
const GOAL_LIST: f64 = 1_000.0;
/// See [`GOAL_LIST`].
const GOAL_COUNT: f64 = COUNTED_LETTERS as f64 * 4.0;

/// So often each is asked, and the last counts.
const ROUNDS: usize = 3;

/// What is asked for.
enum Ask {
    Page(DeadFilter),
    /// The page behind so many.
    PageAfter(DeadFilter, i64),
    Count(DeadFilter),
    /// How many conversations a repair of all would mend.
    Ailing(Ailment<'static>),
    Groups,
    Stats,
}

/// What it took.
#[derive(Debug, Clone, Copy)]
struct Took {
    pages: Option<f64>,
    time: Duration,
    rows: usize,
}

pub(crate) async fn measure(quick: bool) -> Vec<Figure> {
    let (few, many) = if quick { (2_000, 20_000) } else { (10_000, 1_000_000) };
    let database = Database::create(24).await;
    load::desk(&database, 0, few).await;
    let little = all(&database).await;
    load::desk(&database, few, many).await;
    let much = all(&database).await;

    let (a_few, a_lot) = (number(few as f64), number(many as f64));
    let title = format!("The desk: pages read and milliseconds, {a_few} and {a_lot} dead letters");
    let mut table = Table::new(
        &title,
        &["what", "rows", &format!("pages, {a_few}"), &format!("pages, {a_lot}"), "ratio", "ms, few", "ms, many"],
    );
    let (mut worst_list, mut worst_count) = (Worst::default(), Worst::default());
    for ((name, ask, before), (_, _, after)) in little.iter().zip(&much) {
        let shown = |took: &Took| took.pages.map_or("–".to_owned(), number);
        let ratio = before.pages.zip(after.pages).map(|(before, after)| after / before);
        let ms = |took: &Took| format!("{:.1}", took.time.as_secs_f64() * 1e3);
        table.row(vec![
            (*name).to_owned(),
            number(after.rows as f64),
            shown(before),
            shown(after),
            ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            ms(before),
            ms(after),
        ]);
        let worst = if matches!(ask, Ask::Page(_) | Ask::PageAfter(..)) { &mut worst_list } else { &mut worst_count };
        worst.take(name, after);
    }
    table.print();
    let mut figures = vec![
        worst_list.figure(&format!("pages of a list of {PAGE} dead letters of {a_lot}, worst"), GOAL_LIST),
        worst_count
            .figure(&format!("pages of a count, the groups or the overview, {a_lot} dead letters, worst"), GOAL_COUNT),
    ];
    figures.extend(bulk::measure(&database, quick).await);
    database.remove().await;
    figures
}

/// The one that reads most.
#[derive(Debug, Default)]
struct Worst {
    name: &'static str,
    pages: f64,
    time: Duration,
}

impl Worst {
    fn take(&mut self, name: &'static str, took: &Took) {
        let pages = took.pages.unwrap_or(0.0);
        if pages >= self.pages {
            *self = Self { name, pages, time: took.time };
        }
    }

    fn figure(&self, what: &str, goal: f64) -> Figure {
        let measured = format!("{} ({}, {:.1} ms)", number(self.pages), self.name, self.time.as_secs_f64() * 1e3);
        Figure::new(what, measured, format!("goal {}", number(goal)), self.pages / goal).at_most(1.0)
    }
}

/// Everything that the desk shows of dead letters.
fn asked(conversation_id: ConversationId, busy: UserId, quiet: UserId) -> Vec<(&'static str, Ask)> {
    let text = |text: &str| Some(text.to_owned());
    let none = DeadFilter::default;
    let of = |errcode: &str| DeadFilter { errcode: text(errcode), ..none() };
    let says = |says: &str| DeadFilter { text: text(says), ..none() };
    vec![
        ("list, all", Ask::Page(none())),
        ("list, all, the 20th page", Ask::PageAfter(none(), 19 * PAGE)),
        ("list, a conversation", Ask::Page(DeadFilter { conversation_id: Some(conversation_id), ..none() })),
        ("list, a common code", Ask::Page(of("M_FORBIDDEN"))),
        ("list, a rare code", Ask::Page(of("M_RARE"))),
        ("list, a code that nothing has", Ask::Page(of("M_NEVER"))),
        ("list, a kind", Ask::Page(DeadFilter { kind: text("invite"), ..none() })),
        ("list, a cause", Ask::Page(DeadFilter { cause: text("gave_up"), ..none() })),
        ("list, a rare code and a kind", Ask::Page(DeadFilter { kind: text("invite"), ..of("M_RARE") })),
        ("list, two traits that never meet", Ask::Page(DeadFilter { cause: text("gave_up"), ..of("M_FORBIDDEN") })),
        ("list, a busy user", Ask::Page(DeadFilter { user_id: Some(busy), ..none() })),
        ("list, a quiet user", Ask::Page(DeadFilter { user_id: Some(quiet), ..none() })),
        ("list, a busy user and a rare code", Ask::Page(DeadFilter { user_id: Some(busy), ..of("M_RARE") })),
        ("search, a common text", Ask::Page(says("you may not post"))),
        ("search, a rare text", Ask::Page(says("needle"))),
        ("search, a text that nothing has", Ask::Page(says("haystack"))),
        ("count, all", Ask::Count(none())),
        ("count, a common code", Ask::Count(of("M_FORBIDDEN"))),
        ("count, a rare code", Ask::Count(of("M_RARE"))),
        ("count, a common text", Ask::Count(says("you may not post"))),
        ("count, a rare text", Ask::Count(says("needle"))),
        ("count, conversations to reinvite in", Ask::Ailing(Ailment { repair: Repair::Reinvite, errcode: None })),
        ("count, conversations to rejoin", Ask::Ailing(Ailment { repair: Repair::Rejoin, errcode: None })),
        ("groups", Ask::Groups),
        ("overview", Ask::Stats),
    ]
}

async fn all(database: &Database) -> Vec<(&'static str, Ask, Took)> {
    database.settle_down().await;
    let mut conn = database.connect().await;
    let conversation_id = one(&mut conn, "select id from desk_lanes where n = 3").await.into();
    let busy = one(&mut conn, "select id from desk_users where n = 1").await.into();
    let quiet = one(&mut conn, "select user_id from dead_letters group by user_id order by count(*), 1 limit 1").await;
    let mut all = Vec::new();
    for (name, ask) in asked(conversation_id, busy, quiet.into()) {
        let mut took = ask.answer(database).await;
        for _ in 1..ROUNDS {
            took = ask.answer(database).await;
        }
        all.push((name, ask, took));
    }
    all
}

async fn one(conn: &mut PgConnection, sql: &'static str) -> uuid::Uuid {
    sqlx::query_scalar(sql).fetch_one(conn).await.unwrap()
}

impl Ask {
    /// All statements of an answer count, whatever they are.
    async fn answer(&self, database: &Database) -> Took {
        let mut tx = database.pool.begin().await.unwrap();
        let after = if let Self::PageAfter(filter, skipped) = self {
            let skipped = outbox::dead_letters(&mut tx, filter, None, *skipped).await.unwrap();
            skipped.last().map(outbox::DeadLetter::cursor)
        } else {
            None
        };
        let counts = Statements::count(&database.pool).await;
        let began = Instant::now();
        let rows = match self {
            Self::Page(filter) | Self::PageAfter(filter, _) => {
                outbox::dead_letters(&mut tx, filter, after, PAGE).await.unwrap().len()
            }
            Self::Count(filter) => outbox::count_dead(&mut tx, filter).await.unwrap().count as usize,
            Self::Ailing(ailment) => outbox::count_ailing(&mut tx, *ailment).await.unwrap().count as usize,
            Self::Groups => outbox::dead_groups(&mut tx, PAGE).await.unwrap().len(),
            Self::Stats => outbox::stats(&mut tx).await.map(|stats| stats.groups.len()).unwrap(),
        };
        let time = began.elapsed();
        let pages = match counts {
            Some(counts) => Some(counts.like("%").await.pages),
            None => None,
        };
        tx.rollback().await.unwrap();
        Took { pages, time, rows }
    }
}
