//! Dead letters by what they died of.

use axum::{extract::State as Extract, response::Response};
use shared::outbox::{self, DeadGroup};

use super::{
    fields::query,
    html::{self, Markup},
    lists, repairs,
    sections::Sections,
    session::Session,
    table::Table,
    words,
};
use crate::{AppState, admin::params::Params, problem::ApiError};

/// How many groups are shown: more than anybody looks through.
const MOST_GROUPS: i64 = 100;

pub(super) async fn page(Extract(state): AppState, session: Session, mut params: Params) -> Result<Response, ApiError> {
    let note = words::note(&mut params);
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    let groups = outbox::dead_groups(&mut tx, MOST_GROUPS).await?;
    let mut page = Sections::new(&session, "dead", "Dead letters")
        .note(note)
        .live()
        .action(html::word_link("/console/operations", "All of them, with filters"));
    if session.operator.may_operate && !groups.is_empty() {
        page = page.action(html::word_link("/console/requeue", "Requeue all…"));
    }
    Ok(page
        .section(table("By what they died of, the largest first", &session, &groups).markup())
        .section(lists::newest_dead(&mut tx, &session).await?)
        .page())
}

/// Groups, each with what to do about it.
pub(super) fn table(caption: &str, session: &Session, groups: &[DeadGroup]) -> Table {
    let heads = &["Count", "Kind", "Why", "Code", "Newest", "Oldest", "What to do", ""];
    let mut table = Table::new("groups", caption, heads).or("No dead letters.");
    for group in groups {
        let pairs = [
            ("kind", group.kind.as_str()),
            ("cause", group.cause.as_str()),
            ("errcode", group.errcode.as_deref().unwrap_or_default()),
        ];
        let look = query("/console/operations", [("state", "dead")].into_iter().chain(pairs));
        let mut actions = vec![html::word_link(&look, "Look").to_string()];
        if session.operator.may_operate {
            actions.push(html::word_link(&query("/console/requeue", pairs), "Requeue…").to_string());
            if let Some(repair) = group.repair {
                actions.push(repairs::link_to_all(repair, group.errcode.as_deref(), "Repair…").to_string());
            }
        }
        table.row(
            format!("{}/{}/{}", group.kind, group.cause, group.errcode.as_deref().unwrap_or_default()),
            vec![
                html::link(&look, &html::strong(group.count)),
                html::text(&group.kind),
                html::text(&group.cause_in_words),
                html::code_or_dash(group.errcode.as_ref()),
                html::at(group.newest_at),
                html::at(group.oldest_at),
                html::text(&group.hint),
                Markup(actions.join(" ")),
            ],
        );
    }
    table
}
