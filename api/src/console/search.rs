//! The search box: any id leads to its page.

use axum::{
    extract::State as Extract,
    response::{IntoResponse as _, Redirect, Response},
};
use shared::outbox;
use uuid::Uuid;

use super::fields::query;
use crate::{AppState, admin::params::Params, problem::ApiError};

pub(super) async fn search(Extract(state): AppState, mut params: Params) -> Result<Response, ApiError> {
    let Some(asked) = params.text("q") else {
        params.finish()?;
        return Ok(Redirect::to("/console/operations").into_response());
    };
    params.finish()?;
    // An error's code is what else people have in their hands at night.
    if asked.starts_with("M_") {
        return Ok(Redirect::to(&query("/console/operations", [("errcode", asked.as_str())])).into_response());
    }
    let Ok(id) = asked.parse::<Uuid>() else {
        let must =
            "must be the id of an operation, a message, a call or a conversation, or an error code such as M_FORBIDDEN";
        return Err(ApiError::invalid("q", must));
    };
    let mut conn = state.pool.acquire().await?;
    if outbox::is_conversation(&mut conn, id.into()).await? {
        return Ok(Redirect::to(&format!("/console/conversations/{id}")).into_response());
    }
    Ok(Redirect::to(&format!("/console/operations/{id}")).into_response())
}
