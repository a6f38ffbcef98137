//! One operation, or all of a message or a call: where it stands, why, and what can be done.

use std::fmt::Write as _;

use axum::{
    extract::State as Extract,
    response::{IntoResponse as _, Redirect, Response},
};
use shared::{
    ids::LaneId,
    outbox::{self, AttemptView, Delivery, Kind, Moment, Neighbour, Place, Refused, Shown, left_undone},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    confirm::{Confirm, Field},
    facts::Facts,
    fields::query,
    guard::Form,
    html::{self, Markup, Tone},
    lists, repairs,
    sections::Sections,
    session::Session,
    table::Table,
    timeline, words,
};
use crate::{
    AppState,
    admin::{
        acts::{self, BackIn},
        one::{self, Known},
        params::Params,
        scope::Operator,
        timelines,
    },
    extract::IdPath,
    problem::ApiError,
};

/// How many messages before and after a place are shown in a preview.
const NEIGHBOURS: i64 = 6;

pub(super) async fn page(
    Extract(state): AppState,
    session: Session,
    IdPath(id): IdPath<Uuid>,
    mut params: Params,
) -> Result<Response, ApiError> {
    let note = words::note(&mut params);
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let known = one::known(&mut tx, id).await?.ok_or(ApiError::NotFound("operation or message"))?;
    let single = known.operations.iter().find(|shown| shown.found.outbox_id.as_uuid() == id);
    Ok(if let Some(shown) = single {
        let moments = outbox::operation_timeline(&mut tx, &shown.found).await?;
        operation(&session, &known, shown, &moments).note(note).page()
    } else {
        let found: Vec<_> = known.operations.iter().map(|shown| shown.found.clone()).collect();
        let moments = timelines::merged(&mut tx, &found).await?;
        subject(&session, &known, &moments).note(note).page()
    })
}

/// What an operation's state is called, and how much it is to worry about.
pub(super) fn state(shown: &Shown) -> Markup {
    let (tone, word) = match (shown.explanation.state, &shown.withdrawn) {
        (Delivery::Delivered, _) => (Tone::Good, "delivered"),
        (Delivery::Dead, _) => (Tone::Bad, "dead"),
        (_, Some(_)) => (Tone::Quiet, "given up"),
        (Delivery::Pending, _) => (Tone::Busy, "waiting"),
        (Delivery::Delivering, _) => (Tone::Busy, "under way"),
        (Delivery::Cancelled, _) => (Tone::Quiet, "cancelled"),
        (Delivery::Expired, _) => (Tone::Quiet, "expired"),
        (Delivery::Disabled, _) => (Tone::Quiet, "not for Matrix"),
    };
    html::chip(tone, word)
}

/// Where it stands, in one sentence.
fn sentence(shown: &Shown) -> Markup {
    match &shown.dead {
        // What to do stands below.
        Some(dead) => {
            let errcode = dead.errcode.as_ref().map(|errcode| format!(" ({errcode})")).unwrap_or_default();
            html::text(format!("dead since {}: {}{errcode}", html::second(dead.died_at), dead.cause_in_words))
        }
        None => html::with_links(&shown.explanation.sentence),
    }
}

fn operation(session: &Session, known: &Known, shown: &Shown, moments: &[Moment]) -> Sections {
    let id = shown.found.outbox_id;
    let heading = Markup(format!(
        "{} {} {}",
        state(shown).0,
        html::text(capital(&html::kind_in_words(&shown.found.kind))).0,
        html::id(id).0
    ));
    let mut page = Sections::new(session, "operations", format!("Operation {id}")).heading(heading).live();
    let hint = shown
        .dead
        .as_ref()
        .map(|dead| format!("<p class=\"todo\"><strong>What to do:</strong> {}</p>", html::escaped(&dead.hint)));
    page = page.lead(Markup(format!(
        "<p class=\"sentence\" id=\"sentence\">{}.</p>{}",
        capital(&sentence(shown).0),
        hint.unwrap_or_default()
    )));
    if session.operator.may_operate {
        for (verb, button) in verbs(shown) {
            page = page.action(html::word_link(&format!("/console/operations/{id}/{verb}"), button));
        }
    }
    if let Some(repair) = shown.explanation.repair {
        let why = shown.dead.as_ref().map_or("its lane is held", |dead| dead.cause_in_words.as_str());
        let button = repairs::button(session, shown.found.conversation_id, repair, why);
        if !button.0.is_empty() {
            page = page.action(button);
        }
    }
    page.section(facts(known, shown))
        .section(attempts(shown).markup())
        .section(timeline::table("What happened to it, oldest first", moments).markup())
}

/// What can be done with an operation where it stands.
fn verbs(shown: &Shown) -> Vec<(&'static str, &'static str)> {
    match shown.found.place {
        Place::Dead => vec![("requeue", "Requeue…"), ("discard", "Discard…"), ("complete", "Complete by hand…")],
        Place::Live => vec![("expire", "Expire…"), ("discard", "Discard…"), ("complete", "Complete by hand…")],
        Place::Sent | Place::Withdrawn => Vec::new(),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}", chars.as_str())
}

fn facts(known: &Known, shown: &Shown) -> Markup {
    let found = &shown.found;
    let mut facts = Facts::new("facts", "What is known of it");
    facts.add("Operation", html::whole_id(found.outbox_id));
    facts.add("Kind", html::text(&found.kind));
    facts.add("Conversation", lists::conversation_link(found.conversation_id));
    if let Some(message) = &known.message {
        let id = message.message_id;
        facts.add("Message", html::link(&format!("/console/operations/{id}"), &html::id(id)));
        facts.add("Author", html::id(message.author_id));
        facts.add("Written", html::at(message.created_at));
        if let Some(deleted_at) = message.deleted_at {
            facts.add("Deleted", html::at(deleted_at));
        }
    } else {
        facts.add(
            "About",
            html::link(&format!("/console/operations/{}", found.subject_id), &html::id(found.subject_id)),
        );
    }
    if let (Some(lane_id), Some(seq)) = (shown.lane_id, shown.seq) {
        let lane = if lane_id == LaneId::from(found.conversation_id) { "chat" } else { "call" };
        facts.add(
            "Lane",
            Markup(format!("{lane}, place {seq} ({} before it, {} behind it)", shown.explanation.ahead, shown.behind)),
        );
    }
    if let Some(revision) = shown.revision {
        facts.add("Revision", html::text(revision));
    }
    if let Some(event_id) = &shown.explanation.event_id {
        facts.add("Event", html::whole_id(event_id));
    }
    if let Some(due) = shown.explanation.due_at {
        facts.add("Due", html::at(due));
    }
    if let Some(maybe) = shown.maybe_sent_at {
        facts.add("In doubt", Markup(format!("it may stand in the room since {}", html::at(maybe).0)));
    }
    facts.add("Attempts", html::text(html::grouped(shown.attempts_total)));
    facts.markup()
}

fn attempts(shown: &Shown) -> Table {
    let heads = &["At", "Outcome", "Status", "Code", "Took", "What went wrong"];
    let mut table = Table::new("attempts", "Attempts, oldest first", heads).or("No attempt was made.");
    for (n, attempt) in shown.explanation.attempts.iter().enumerate() {
        table.row(n, attempt_cells(attempt));
    }
    table
}

fn attempt_cells(attempt: &AttemptView) -> Vec<Markup> {
    let tone = if matches!(attempt.outcome.as_str(), "delivered" | "done") { Tone::Good } else { Tone::Warn };
    vec![
        html::at(attempt.at),
        html::chip(tone, attempt.outcome.replace('_', " ")),
        html::or_dash(attempt.http_status),
        html::code_or_dash(attempt.errcode.as_ref()),
        html::text(format!("{} ms", html::grouped(attempt.duration_ms))),
        html::or_dash(attempt.detail.as_ref()),
    ]
}

/// A message or a call: all of its operations.
fn subject(session: &Session, known: &Known, moments: &[Moment]) -> Sections {
    let what = if known.message.is_some() { "Message" } else { "Call" };
    let heading = Markup(format!("{what} {}", html::id(known.id).0));
    let mut page = Sections::new(session, "operations", format!("{what} {}", known.id)).heading(heading).live();
    let heads = &["Operation", "Kind", "State", "Where it stands"];
    let mut table = Table::new("operations", "Its operations, oldest first", heads)
        .or("Nothing of it is left to do, and nothing will be sent.");
    for shown in &known.operations {
        table.row(
            shown.found.outbox_id,
            vec![
                lists::operation_link(shown.found.outbox_id),
                html::text(&shown.found.kind),
                state(shown),
                sentence(shown),
            ],
        );
    }
    if let Some(message) = &known.message {
        let mut facts = Facts::new("facts", "What is known of it");
        facts.add("Message", html::whole_id(message.message_id));
        facts.add("Conversation", lists::conversation_link(message.conversation_id));
        facts.add("Place", html::text(message.seq));
        facts.add("Author", html::id(message.author_id));
        facts.add("Written", html::at(message.created_at));
        facts.add("Revision", html::text(message.revision));
        facts.add("Edited", message.edited_at.map_or_else(html::dash, html::at));
        facts.add("Deleted", message.deleted_at.map_or_else(html::dash, html::at));
        if message.disabled {
            facts.add("Matrix", html::text("never meant for it: Matrix was switched off"));
        }
        page = page.section(facts.markup());
    }
    page.section(table.markup()).section(timeline::table("What happened, oldest first", moments).markup())
}

pub(super) async fn ask_requeue(
    Extract(state): AppState,
    session: Session,
    IdPath(id): IdPath<Uuid>,
    params: Params,
) -> Result<Response, ApiError> {
    params.finish()?;
    let report = acts::requeue(&state, &session.operator.name(), &[id], None, true).await?;
    if report.requeued == 0 {
        return Err(acts::refusal(report.refused));
    }
    let back = html::count(report.requeued as u64, "operation");
    let mut page = Confirm::new(&session, "operations", "Requeue")
        .says(format!(
            "{back} would come back to the old place in the lane, before everything that was not handed out yet. A message \
             takes its edits and reactions along."
        ))
        .sends(format!("/console/operations/{id}/requeue"), "Requeue")
        .back_to(format!("/console/operations/{id}"));
    let mut tx = state.pool.begin().await?;
    for conversation in &report.conversations {
        for lane in lanes(conversation) {
            page = page.says(lane);
        }
        page = page.shows(back_table(conversation).markup()).shows(around(&mut tx, conversation).await?);
    }
    if let Some(stays) = refused_table(&report.refused) {
        page = page.shows(stays.markup());
    }
    Ok(page.page())
}

/// What a lane looks like before they come back to it.
fn lanes(conversation: &BackIn) -> impl Iterator<Item = String> {
    conversation.lanes.iter().map(|lane| {
        let mut text = format!(
            "{} under way or due before them, {} waiting after them.",
            html::grouped(lane.before),
            html::grouped(lane.after)
        );
        if lane.delivered_meanwhile > 0 {
            let delivered = html::count(lane.delivered_meanwhile, "later message");
            let _ = write!(text, " {delivered} delivered meanwhile and stay ahead: in the room this comes after them.");
        }
        if let Some(waits) = &lane.waits {
            let until = lane.waits_until.map_or_else(|| "it is resumed".to_owned(), html::second);
            let _ = write!(text, " The lane waits until {until} ({waits}): nothing goes before.");
        }
        text
    })
}

fn back_table(conversation: &BackIn) -> Table {
    let heads = &["Place", "Operation", "Kind", "Code"];
    let mut table = Table::new("back", "What comes back, in order", heads);
    for letter in &conversation.operations {
        table.row(
            letter.outbox_id,
            vec![
                html::text(letter.seq),
                html::id(letter.outbox_id),
                html::text(&letter.kind),
                html::code_or_dash(letter.errcode.as_ref()),
            ],
        );
    }
    table
}

fn refused_table(refused: &[Refused]) -> Option<Table> {
    let mut table = Table::new("refused", "What stays", &["Operation", "Why"]);
    for refused in refused {
        table.row(refused.id, vec![html::id(refused.id), html::text(refused.in_words)]);
    }
    (!refused.is_empty()).then_some(table)
}

/// What the room shows around the first that comes back to the chat, by reference.
async fn around(conn: &mut PgConnection, conversation: &BackIn) -> Result<Markup, ApiError> {
    let chat = LaneId::from(conversation.conversation_id);
    let Some(first) = conversation.operations.iter().find(|letter| letter.lane_id == chat) else {
        return Ok(html::nothing());
    };
    let near = outbox::neighbours(conn, conversation.conversation_id, first.seq, NEIGHBOURS).await?;
    let heads = &["Place", "Message", "Author", "Written", "In the room"];
    let mut table = Table::new("room", "What the room shows around it", heads).or("Nothing.");
    for message in &near {
        let back = conversation
            .operations
            .iter()
            .any(|letter| letter.kind == "message" && letter.subject_id == message.message_id.as_uuid());
        table.row(
            message.message_id,
            vec![
                html::text(message.seq),
                html::id(message.message_id),
                html::id(message.author_id),
                html::at(message.written_at),
                in_the_room(message, back, first.seq),
            ],
        );
    }
    Ok(table.markup())
}

fn in_the_room(message: &Neighbour, comes_back: bool, place: i64) -> Markup {
    let deleted = if message.deleted_at.is_some() { ", deleted since" } else { "" };
    match message.sent_at {
        _ if comes_back => html::chip(Tone::Warn, "comes back"),
        Some(sent_at) if message.seq > place => {
            Markup(format!("{} {}: stays ahead{deleted}", html::chip(Tone::Good, "there").0, html::at(sent_at).0))
        }
        Some(sent_at) => Markup(format!("{} {}{deleted}", html::chip(Tone::Good, "there").0, html::at(sent_at).0)),
        None if message.from_matrix => Markup(format!("{} said there{deleted}", html::chip(Tone::Good, "there").0)),
        None if message.dead => html::chip(Tone::Bad, "dead"),
        None if message.live => html::chip(Tone::Busy, "waits"),
        None => html::chip(Tone::Quiet, "never went"),
    }
}

pub(super) async fn requeue(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<Uuid>,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let reason = params.reason("reason", false);
    params.finish()?;
    let report = acts::requeue(&state, &operator.name(), &[id], reason.as_deref(), false).await?;
    if report.requeued == 0 {
        return Err(acts::refusal(report.refused));
    }
    Ok(done(id, "requeued", report.requeued))
}

/// Back to its page, which says what was done.
fn done(id: Uuid, what: &str, n: usize) -> Response {
    let to = query(&format!("/console/operations/{id}"), [("done", what), ("n", &n.to_string())]);
    Redirect::to(&to).into_response()
}

/// The one operation of an id that is an operation's.
async fn shown(conn: &mut PgConnection, id: Uuid) -> Result<Shown, ApiError> {
    let known = one::known(conn, id).await?.ok_or(ApiError::NotFound("operation"))?;
    let mut operations = known.operations.into_iter();
    operations.find(|shown| shown.found.outbox_id.as_uuid() == id).ok_or(ApiError::NotFound("operation"))
}

pub(super) async fn ask_discard(
    Extract(state): AppState,
    session: Session,
    IdPath(id): IdPath<Uuid>,
    params: Params,
) -> Result<Response, ApiError> {
    params.finish()?;
    let shown = shown(&mut *state.pool.acquire().await?, id).await?;
    let kind = html::kind_in_words(&shown.found.kind);
    let mut page = Confirm::new(&session, "operations", format!("Discard {kind}"))
        .says("It never goes to Matrix. The message itself stays, for readers of the API.")
        .says("What may have been sent all the same is remembered: if it turns up in the room, it is kept up to date there.")
        .sends(format!("/console/operations/{id}/discard"), "Discard")
        .must_say_why()
        .dangerous()
        .back_to(format!("/console/operations/{id}"));
    if shown.found.place == Place::Live {
        page = page.warns(format!(
            "It is live. Only what holds its lane can be discarded, and mind what that leaves undone: {}.",
            left_undone(&shown.found.kind)
        ));
    }
    Ok(page.page())
}

pub(super) async fn discard(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<Uuid>,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let reason = params.reason("reason", true);
    params.finish()?;
    let conversation = outbox::find(&mut *state.pool.acquire().await?, id).await?;
    let report = acts::discard(&state, &operator.name(), &[id], &reason.unwrap_or_default()).await?;
    if report.discarded == 0 {
        return Err(acts::refusal(report.refused));
    }
    // Of what never left, nothing is left to show: its conversation says what became of it.
    let left = outbox::find(&mut *state.pool.acquire().await?, id).await?;
    Ok(match conversation.first() {
        Some(found) if left.is_empty() => {
            let to = format!("/console/conversations/{}", found.conversation_id);
            Redirect::to(&query(&to, [("done", "discarded"), ("n", &report.discarded.to_string())])).into_response()
        }
        _ => done(id, "discarded", report.discarded),
    })
}

pub(super) async fn ask_expire(
    Extract(state): AppState,
    session: Session,
    IdPath(id): IdPath<Uuid>,
    params: Params,
) -> Result<Response, ApiError> {
    params.finish()?;
    let shown = shown(&mut *state.pool.acquire().await?, id).await?;
    let kind = html::kind_in_words(&shown.found.kind);
    Ok(Confirm::new(&session, "operations", format!("Expire {kind}"))
        .says("It ends as if its time were over: it is not sent any more, and those behind it go on.")
        .says("What waits of a message with it, its edits and the reactions to it, ends too. The message itself stays.")
        .says("A redaction or a removal cannot be expired: later words would reach whom they must not.")
        .sends(format!("/console/operations/{id}/expire"), "Expire")
        .must_say_why()
        .dangerous()
        .back_to(format!("/console/operations/{id}"))
        .page())
}

pub(super) async fn expire(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<Uuid>,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let reason = params.reason("reason", true);
    params.finish()?;
    let found = outbox::find(&mut *state.pool.acquire().await?, id).await?;
    let report = acts::expire(&state, &operator.name(), id, &reason.unwrap_or_default()).await?;
    if report.expired == 0 {
        return Err(acts::refusal(report.refused));
    }
    let to = match found.first() {
        Some(found) => format!("/console/conversations/{}", found.conversation_id),
        None => "/console".to_owned(),
    };
    Ok(Redirect::to(&query(&to, [("done", "expired"), ("n", &report.expired.to_string())])).into_response())
}

pub(super) async fn ask_complete(
    Extract(state): AppState,
    session: Session,
    IdPath(id): IdPath<Uuid>,
    params: Params,
) -> Result<Response, ApiError> {
    params.finish()?;
    let shown = shown(&mut *state.pool.acquire().await?, id).await?;
    let kind = html::kind_in_words(&shown.found.kind);
    let mut page = Confirm::new(&session, "operations", format!("Complete {kind} by hand"))
        .sends(format!("/console/operations/{id}/complete"), "Complete")
        .must_say_why()
        .back_to(format!("/console/operations/{id}"));
    page = if Kind::parse(&shown.found.kind).is_some_and(Kind::is_state) {
        page.says(
            "You say that the membership is on Matrix as it should be. It counts as done, and those behind it go on.",
        )
    } else {
        page.says("You say which event in the room is this operation. It counts as delivered, with that event: edits, reactions and deletes then go there.")
            .asks(Field { required: true, ..Field::text("event_id", "Event", "$…, as the room has it") })
    };
    Ok(page.warns("Look into the room first: nobody looks again whether it is there.").page())
}

pub(super) async fn complete(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<Uuid>,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let event_id = params.raw("event_id");
    let reason = params.reason("reason", true);
    params.finish()?;
    let event_id = event_id.as_deref().map(acts::checked_event_id).transpose()?;
    let completed =
        acts::complete(&state, &operator.name(), id, event_id.as_ref(), &reason.unwrap_or_default()).await?;
    let left = outbox::find(&mut *state.pool.acquire().await?, id).await?;
    if left.is_empty() {
        // A membership leaves nothing behind: what it was about is shown.
        return Ok(
            Redirect::to(&format!("/console/operations/{}?done=completed", completed.subject_id)).into_response()
        );
    }
    Ok(done(id, "completed", 1))
}
