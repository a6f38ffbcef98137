//! Dead letters by what they died of.

use axum::{extract::State as Extract, response::Response};

use super::{html, lists, sections::Sections, session::Session, words};
use crate::{AppState, admin::params::Params, problem::ApiError};

pub(super) async fn page(
    Extract(state): AppState,
    session: Session,
    mut params: Params,
) -> Result<Response, ApiError> {
    let note = words::note(&mut params);
    params.finish()?;
    let mut tx = state.pool.begin().await?;
    Ok(Sections::new(&session, "dead", "Dead letters")
        .note(note)
        .live()
        .action(html::word_link("/console/operations", "All of them, with filters"))
        .section(lists::newest_dead(&mut tx).await?)
        .page())
}
