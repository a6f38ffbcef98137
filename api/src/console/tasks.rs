//! Tasks: what runs and what ran, one with its progress, and their end.

use axum::{
    extract::State as Extract,
    response::{IntoResponse as _, Redirect, Response},
};
use serde_json::Value;
use shared::{
    audit::{self, AuditFilter},
    ids::TaskId,
    tasks::{self as shared_tasks, Task, TaskKind, TaskStatus},
};
use uuid::Uuid;

use super::{
    audit as trail,
    confirm::Confirm,
    facts::Facts,
    fields::query,
    guard::Form,
    html::{self, Markup, Tone},
    lists::{self, FEW},
    sections::Sections,
    session::Session,
    table::Table,
    words,
};
use crate::{
    AppState,
    admin::{
        lists::Page,
        params::Params,
        scope::Operator,
        tasks::{self, Work},
    },
    extract::IdPath,
    problem::ApiError,
};

/// How many rows a page has.
const ROWS: i64 = 50;

/// How many findings are shown; all are in the API's answer.
const FINDINGS: usize = 200;

pub(super) async fn list(Extract(state): AppState, session: Session, mut params: Params) -> Result<Response, ApiError> {
    let before: Option<TaskId> = params.cursor();
    params.finish()?;
    let mut conn = state.pool.acquire().await?;
    let page = Page::of(shared_tasks::tasks(&mut conn, before, ROWS + 1).await?, ROWS, |task| task.task_id.to_string());
    let more = page.next_cursor.map(|cursor| query("/console/tasks", [("cursor", cursor.as_str())]));
    let mut shown = Sections::new(&session, "tasks", "Tasks").live();
    if session.operator.may_operate {
        shown = shown.action(html::word_link("/console/verify", "Verify everything…"));
    }
    Ok(shown.section(table("Tasks, newest first", &page.items).more(more).markup()).page())
}

pub(super) fn table(caption: &str, tasks: &[Task]) -> Table {
    let heads = &["Task", "What", "Status", "Progress", "Since", "By", "Why"];
    let mut table = Table::new("tasks", caption, heads).or("No task was ever begun.");
    for task in tasks {
        table.row(
            task.task_id,
            vec![
                html::link(&format!("/console/tasks/{}", task.task_id), &html::id(task.task_id)),
                html::text(task.kind.as_str()),
                status(task),
                progress(task),
                html::at(task.created_at),
                html::id(&task.created_by),
                html::or_dash(task.reason.as_ref()),
            ],
        );
    }
    table
}

fn status(task: &Task) -> Markup {
    let tone = match task.status {
        TaskStatus::Running => Tone::Busy,
        TaskStatus::Done => Tone::Good,
        TaskStatus::Cancelled => Tone::Quiet,
        TaskStatus::Failed => Tone::Bad,
    };
    html::chip(tone, task.status.as_str())
}

fn progress(task: &Task) -> Markup {
    let (done, expected) = (html::grouped(task.done), html::grouped(task.expected));
    Markup(format!(
        "<progress max=\"{}\" value=\"{}\">{done} of {expected}</progress> {done} of {expected}",
        task.expected.max(1),
        task.done.clamp(0, task.expected.max(1)),
    ))
}

pub(super) async fn page(
    Extract(state): AppState,
    session: Session,
    IdPath(id): IdPath<TaskId>,
    mut params: Params,
) -> Result<Response, ApiError> {
    let note = words::note(&mut params);
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let task = shared_tasks::task(&mut tx, id).await?.ok_or(ApiError::NotFound("task"))?;
    let filter = AuditFilter { task_id: Some(id), ..AuditFilter::default() };
    let acts = audit::entries(&mut tx, &filter, None, FEW).await?;
    let running = task.status == TaskStatus::Running;
    let heading = Markup(format!("{} Task: {} {}", status(&task), task.kind.as_str(), html::id(id)));
    let mut page = Sections::new(&session, "tasks", format!("Task {id}")).heading(heading).note(note);
    if running {
        page = page.live();
    }
    if running && session.operator.may_operate {
        page = page.action(html::word_link(&format!("/console/tasks/{id}/cancel"), "Cancel…"));
    }
    Ok(page
        .lead(lead(&task))
        .section(facts(&task))
        .section(findings(&task))
        .section(trail::table("What it did, newest first", &acts).markup())
        .page())
}

fn lead(task: &Task) -> Markup {
    let refused = if task.refused > 0 { format!(", {} could not", html::grouped(task.refused)) } else { String::new() };
    Markup(format!(
        "<p class=\"sentence\" id=\"sentence\">{} of {} done{refused}.</p>\
         <progress id=\"progress\" max=\"{}\" value=\"{}\" aria-label=\"Progress\"></progress>",
        html::grouped(task.done),
        html::grouped(task.expected),
        task.expected.max(1),
        task.done.clamp(0, task.expected.max(1)),
    ))
}

fn facts(task: &Task) -> Markup {
    let mut facts = Facts::new("facts", "What was asked for");
    facts.add("Task", html::whole_id(task.task_id));
    facts.add("By", html::id(&task.created_by));
    facts.add("Since", html::at(task.created_at));
    facts.add("Why", html::or_dash(task.reason.as_ref()));
    if let Some(id) = task.conversation_id {
        facts.add("Conversation", lists::conversation_link(id));
    }
    if let Some(as_of) = &task.as_of {
        facts.add("As of", html::at(as_of.at()));
    }
    if let Some(rate) = task.rate {
        facts.add("At most", html::text(format!("{} a second", html::grouped(rate))));
    }
    facts.add("Asked for", html::long_code(&task.arguments));
    let counted: Vec<String> =
        task.counted().iter().map(|(kind, n)| format!("{} {}", html::grouped(*n), kind.replace('_', " "))).collect();
    if !counted.is_empty() {
        facts.add("Found", html::text(counted.join(", ")));
    }
    if let Some(ended_at) = task.ended_at {
        facts.add("Ended", html::at(ended_at));
    }
    if let Some(by) = &task.ended_by {
        facts.add("Ended by", html::id(by));
    }
    if let Some(error) = &task.error {
        let running = task.status == TaskStatus::Running;
        facts.add(if running { "In trouble" } else { "Failed" }, html::text(error));
    }
    facts.markup()
}

/// What a task found, whatever that is: an object is a row, by the names that people know.
fn findings(task: &Task) -> Markup {
    let findings = task.findings.as_array().cloned().unwrap_or_default();
    let heads = &["What", "In words", "On", "More"];
    let caption = match task.kind {
        TaskKind::Verify => "What was found",
        TaskKind::Repair if task.conversation_id.is_some() => "What was done",
        TaskKind::Requeue | TaskKind::Repair => "What could not be done",
    };
    let nothing = if task.status == TaskStatus::Running { "Nothing so far." } else { "Nothing." };
    let mut table = Table::new("findings", caption, heads).or(nothing);
    for (n, finding) in findings.iter().take(FINDINGS).enumerate() {
        table.row(n, finding_cells(finding));
    }
    table.markup()
}

/// Fields that have a column of their own.
const SHOWN: [&str; 8] =
    ["kind", "reason", "words", "reason_in_words", "repaired", "outbox_id", "subject_id", "conversation_id"];

fn finding_cells(finding: &Value) -> Vec<Markup> {
    let said = |names: &[&str]| names.iter().find_map(|name| finding[*name].as_str());
    let what = said(&["kind", "reason"]).map_or_else(html::dash, |what| html::chip(Tone::Warn, what.replace('_', " ")));
    let mut on: Vec<String> = Vec::new();
    for (name, path) in
        [("outbox_id", "operations"), ("subject_id", "operations"), ("conversation_id", "conversations")]
    {
        if let Some(id) = finding[name].as_str().and_then(|id| id.parse::<Uuid>().ok()) {
            on.push(html::link(&format!("/console/{path}/{id}"), &html::id(id)).to_string());
        }
    }
    let more: Vec<String> = finding
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !SHOWN.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("<span class=\"dim\">{}</span> {}", html::escaped(name.replace('_', " ")), html::escaped(value))
        })
        .collect();
    vec![
        what,
        said(&["words", "reason_in_words"]).map_or_else(html::dash, html::text),
        if on.is_empty() { html::dash() } else { Markup(on.join(" ")) },
        if more.is_empty() { html::dash() } else { Markup(more.join("; ")) },
    ]
}

pub(super) async fn ask_cancel(
    session: Session,
    IdPath(id): IdPath<TaskId>,
    params: Params,
) -> Result<Response, ApiError> {
    params.finish()?;
    Ok(Confirm::new(&session, "tasks", "Cancel the task")
        .says("It ends before it is through. What it did stays done; what is left is not begun.")
        .sends(format!("/console/tasks/{id}/cancel"), "Cancel the task")
        .back_to(format!("/console/tasks/{id}"))
        .page())
}

pub(super) async fn cancel(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<TaskId>,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let reason = params.reason("reason", false);
    params.finish()?;
    let (cancelled, _) = tasks::cancel_task(&state, &operator.name(), id, reason.as_deref()).await?;
    let done = if cancelled { "cancelled" } else { "ended_before" };
    Ok(Redirect::to(&format!("/console/tasks/{id}?done={done}")).into_response())
}

pub(super) async fn ask_verify(
    Extract(state): AppState,
    session: Session,
    mut params: Params,
) -> Result<Response, ApiError> {
    let conversation_id = params.id("conversation_id");
    params.finish()?;
    if let Some(id) = conversation_id {
        tasks::known_conversation(&mut *state.pool.acquire().await?, id).await?;
    }
    let (what, back) = match conversation_id {
        Some(id) => (format!("conversation {id}"), format!("/console/conversations/{id}")),
        None => ("every conversation that has a room".to_owned(), "/console/tasks".to_owned()),
    };
    let mut page = Confirm::new(&session, "tasks", "Verify")
        .says(format!(
            "A worker compares {what} with what stands on Matrix: what is missing, doubled, out of order, or still to be \
             read although it was deleted."
        ))
        .says("It only reads, unless it is told to repair. Its page lists what it finds.")
        .sends("/console/verify", "Verify")
        .checks("repair", "Repair what can be repaired by itself")
        .back_to(back);
    if let Some(id) = conversation_id {
        page = page.with("conversation_id", id);
    }
    Ok(page.page())
}

pub(super) async fn verify(
    Extract(state): AppState,
    operator: Operator,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let (conversation_id, repair) = (params.id("conversation_id"), params.flag("repair"));
    let reason = params.reason("reason", false);
    params.finish()?;
    let work = Work::Verify { conversation_id, repair };
    let task = tasks::begin(&state, &operator, work, reason.as_deref()).await?;
    Ok(Redirect::to(&format!("/console/tasks/{}?done=started", task.task_id)).into_response())
}
