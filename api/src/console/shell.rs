//! What all pages have around them, and pages of faults.

use askama::Template;
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};

use time::OffsetDateTime;

use super::{assets, html, session::Session};
use crate::problem::{ApiError, Problem};

/// How often the script renews the live parts of a page, in seconds.
const REFRESH_SECONDS: u32 = 5;

/// What stands around a page.
pub(super) struct Shell {
    pub(super) title: String,
    /// Which entry of the navigation it belongs to.
    section: &'static str,
    pub(super) css: String,
    pub(super) js: String,
    pub(super) form_token: String,
    pub(super) user_id: html::Markup,
    pub(super) may_operate: bool,
    /// When the session ends.
    pub(super) until: html::Markup,
    pub(super) refresh: u32,
    /// What was just done, in words.
    pub(super) note: Option<String>,
    pub(super) version: &'static str,
}

impl Shell {
    pub(super) fn new(session: &Session, section: &'static str, title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            section,
            css: assets::css(),
            js: assets::js(),
            form_token: session.form_token.clone(),
            user_id: html::id(session.operator.user_id),
            may_operate: session.operator.may_operate,
            until: OffsetDateTime::from_unix_timestamp(session.good_until).map_or_else(|_| html::dash(), html::at),
            refresh: REFRESH_SECONDS,
            note: None,
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    pub(super) fn with_note(mut self, note: Option<String>) -> Self {
        self.note = note;
        self
    }

    pub(super) fn is(&self, section: &str) -> bool {
        self.section == section
    }
}

/// A page as an answer.
pub(super) fn html(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(page) => {
            let kind = HeaderValue::from_static("text/html; charset=utf-8");
            (status, [(header::CONTENT_TYPE, kind)], page).into_response()
        }
        Err(error) => ApiError::Internal(error.into()).into_response(),
    }
}

/// A page that is there.
pub(super) fn page(page: &impl Template) -> Response {
    html(StatusCode::OK, page)
}

#[derive(Template)]
#[template(path = "fault.html")]
struct FaultPage {
    shell: Shell,
    problem: Problem,
    detail: String,
}

#[derive(Template)]
#[template(path = "bare_fault.html")]
struct BareFault {
    css: String,
    problem: Problem,
    detail: String,
}

#[derive(Template)]
#[template(path = "once_more.html")]
struct OnceMore {
    css: String,
    to: String,
}

/// As a sentence.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    let text = format!("{first}{}", chars.as_str());
    if text.ends_with(['.', '!', '?']) { text } else { format!("{text}.") }
}

fn status(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A problem, as a page of the session.
pub(super) fn fault(session: &Session, problem: &Problem) -> Response {
    let shell = Shell::new(session, "", problem.title);
    let detail = sentence(&problem.detail);
    html(status(problem), &FaultPage { shell, problem: problem.clone(), detail })
}

/// A problem of somebody who has no session.
pub(super) fn bare_fault(problem: &Problem) -> Response {
    let detail = sentence(&problem.detail);
    html(status(problem), &BareFault { css: assets::css(), problem: problem.clone(), detail })
}

/// A page that leads to where one was going: the browser brings the cookie then.
pub(super) fn once_more(to: &str) -> Response {
    page(&OnceMore { css: assets::css(), to: to.to_owned() })
}

#[derive(Template)]
#[template(path = "help.html")]
struct Help {
    shell: Shell,
}

pub(super) async fn help(session: Session) -> Response {
    page(&Help { shell: Shell::new(&session, "help", "Help") })
}
