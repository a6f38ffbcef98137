//! Repairs on Matrix: one click where a cause has one, and the same in words before it.

use axum::{
    extract::State as Extract,
    response::{IntoResponse as _, Redirect, Response},
};
use shared::{
    ids::ConversationId,
    outbox::{Ailment, HeldLane, Repair},
};

use super::{
    confirm::Confirm,
    fields::query,
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

/// The way to the repair of all conversations that need it.
pub(super) fn link_to_all(repair: Repair, errcode: Option<&str>, words: &str) -> Markup {
    let pairs = [("repair", Some(repair.as_str())), ("errcode", errcode)];
    let pairs = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
    html::word_link(&query("/console/repair", pairs), words)
}

/// Where several lanes are held for what a repair mends: the ways to mend them all. None for who may only look.
pub(super) fn links_to_all(session: &Session, lanes: &[HeldLane]) -> Vec<Markup> {
    let lanes_of = |repair| lanes.iter().filter(|lane| lane.repair == Some(repair)).count();
    let many = Repair::ALL.into_iter().filter(|&repair| session.operator.may_operate && lanes_of(repair) > 1);
    many.map(|repair| link_to_all(repair, None, &format!("{}, all of them…", label(repair)))).collect()
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

pub(super) async fn ask_all(
    Extract(state): AppState,
    session: Session,
    mut params: Params,
) -> Result<Response, ApiError> {
    let (repair, errcode) = (repair_of(&mut params)?, params.text("errcode"));
    params.finish()?;
    let of = Ailment { repair, errcode: errcode.as_deref() };
    let conversations = tasks::count_ailing(&state, of).await?;
    let one = conversations.count == 1 && !conversations.more;
    let suffer = match (repair, of.errcode) {
        (Repair::Reinvite, Some(code)) => format!("invitations that died of {code}"),
        (Repair::Reinvite, None) => "invitations that died because they were refused".to_owned(),
        (Repair::Rejoin, _) => "a lane that is held because the service account is not in the room".to_owned(),
        (Repair::AdoptAlias, _) => {
            "a lane that is held because somebody else's room has the conversation's alias".to_owned()
        }
    };
    let (noun, have) = if one { ("conversation", "has") } else { ("conversations", "have") };
    let mut page = Confirm::new(&session, "operations", format!("{}, all of them", label(repair)))
        .says(format!("{conversations} {noun} {have} {suffer}."))
        .says(if of.errcode.is_some() {
            "These invitations come back to their place, if the user is still a member; what died of something else stays."
        } else {
            in_words(repair)
        })
        .says(
            "It becomes a task, of the conversations that need it when it begins; its page says which could not be \
             repaired, and why.",
        )
        .sends("/console/repair", "Repair all of these")
        .with("repair", repair.as_str())
        .must_say_why()
        .back_to(if repair == Repair::Reinvite { "/console/dead" } else { "/console/operations?state=held" });
    if let Some(code) = of.errcode {
        page = page.with("errcode", code);
    }
    Ok(page.page())
}

pub(super) async fn repair_all(
    Extract(state): AppState,
    operator: Operator,
    Form(mut params): Form,
) -> Result<Response, ApiError> {
    let (repair, errcode) = (repair_of(&mut params)?, params.text("errcode"));
    let reason = params.reason("reason", true);
    params.finish()?;
    let work = Work::RepairAll { of: Ailment { repair, errcode: errcode.as_deref() } };
    let task = tasks::begin(&state, &operator, work, reason.as_deref()).await?;
    Ok(Redirect::to(&format!("/console/tasks/{}?done=started", task.task_id)).into_response())
}
