//! Repairs on Matrix: one click where a cause has one, and the same in words before it.

use axum::{
    extract::State as Extract,
    response::{IntoResponse as _, Redirect, Response},
};
use shared::{ids::ConversationId, outbox::Repair};

use super::{
    confirm::Confirm,
    guard::Form,
    html::{self, Markup},
    session::Session,
};
use crate::{
    AppState,
    admin::{
        params::Params,
        scope::Operator,
        tasks::{self, Work},
    },
    extract::IdPath,
    problem::ApiError,
};

/// The names of repairs, as forms have them.
const NAMES: [&str; 3] = ["rejoin", "reinvite", "adopt_alias"];

/// On the button.
pub(super) const fn label(repair: Repair) -> &'static str {
    match repair {
        Repair::Rejoin => "Repair: rejoin the room",
        Repair::Reinvite => "Repair: invite again",
        Repair::AdoptAlias => "Repair: adopt the alias",
    }
}

/// What it does.
const fn in_words(repair: Repair) -> &'static str {
    match repair {
        Repair::Rejoin => {
            "The service account tries to join the conversation's room again, by an invitation that is there or the \
             room's own rules. If it comes in, the lane goes on."
        }
        Repair::Reinvite => {
            "Members who could not be invited are invited again, and what died of it comes back to its place."
        }
        Repair::AdoptAlias => {
            "The room that stands under the conversation's alias becomes its room, if the service account may act there. \
             What waits goes to that room."
        }
    }
}

/// A button that repairs at once. Nothing for who may only look.
pub(super) fn button(session: &Session, conversation_id: ConversationId, repair: Repair, why: &str) -> Markup {
    if !session.operator.may_operate {
        return html::nothing();
    }
    let why: String = why.chars().filter(|c| !c.is_control()).take(400).collect();
    Markup(format!(
        "<form class=\"repair\" action=\"/console/conversations/{conversation_id}/repair\" method=\"post\">\
         <input type=\"hidden\" name=\"csrf\" value=\"{}\"><input type=\"hidden\" name=\"repair\" value=\"{}\">\
         <input type=\"hidden\" name=\"reason\" value=\"{}\"><button title=\"{}\">{}</button></form>",
        session.form_token,
        repair.as_str(),
        html::escaped(why),
        in_words(repair),
        label(repair),
    ))
}

fn repair_of(params: &mut Params) -> Result<Repair, ApiError> {
    let name = params.one_of("repair", &NAMES);
    let repair = Repair::ALL.into_iter().find(|repair| Some(repair.as_str()) == name);
    repair.ok_or_else(|| ApiError::invalid("repair", "must be rejoin, reinvite or adopt_alias"))
}

pub(super) async fn ask(
    session: Session,
    IdPath(id): IdPath<ConversationId>,
    mut params: Params,
) -> Result<Response, ApiError> {
    let repair = repair_of(&mut params)?;
    params.finish()?;
    Ok(Confirm::new(&session, "operations", label(repair))
        .says(in_words(repair))
        .says("It becomes a task, which a worker does; its page says what came of it.")
        .sends(format!("/console/conversations/{id}/repair"), "Repair")
        .with("repair", repair.as_str())
        .must_say_why()
        .back_to(format!("/console/conversations/{id}"))
        .page())
}

pub(super) async fn repair(
    Extract(state): AppState,
    operator: Operator,
    IdPath(id): IdPath<ConversationId>,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let repair = repair_of(&mut params)?;
    let reason = params.reason("reason", true);
    params.finish()?;
    let work = Work::Repair { conversation_id: id, repair };
    let task = tasks::begin(&state, &operator, work, reason.as_deref()).await?;
    Ok(Redirect::to(&format!("/console/tasks/{}?done=started", task.task_id)).into_response())
}
