//! Which dead letters, as people type it.

use clap::Args;
use shared::{ids::UserId, outbox::DeadFilter};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Failed,
    when::{When, parse_when, span},
};

/// What `list` and `requeue` have in common.
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Only of this conversation
    #[arg(long, value_name = "ID")]
    pub(crate) conversation: Option<Uuid>,
    /// Only operations that do this: message, edit, redact, react, invite, remove, or `call_invite` and the like
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Only of this user: who wrote, reacted, is invited or removed, or spoke in the call
    #[arg(long, value_name = "ID")]
    pub(crate) user: Option<Uuid>,
    /// Only those with this Matrix error code
    #[arg(long, value_name = "CODE")]
    pub(crate) errcode: Option<String>,
    /// Only dead letters of this cause
    #[arg(long, value_parser = ["own_fault", "parent_dead", "gave_up"])]
    pub(crate) cause: Option<String>,
    /// Only dead letters whose last error says this somewhere: three characters or more
    #[arg(long)]
    pub(crate) text: Option<String>,
    /// Only since then: a time such as 2026-01-31T06:00:00Z, or an age such as 2h
    #[arg(long, value_name = "WHEN", value_parser = parse_when)]
    pub(crate) since: Option<When>,
    /// Only before then
    #[arg(long, value_name = "WHEN", value_parser = parse_when)]
    pub(crate) until: Option<When>,
}

impl FilterArgs {
    /// Whether it asks for nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.conversation.is_none() && self.is_at_most_of_a_conversation() && !self.has_cause_or_errcode()
    }

    /// Whether it asks for nothing but a conversation, a cause and a code.
    pub(crate) fn is_at_most_of_a_conversation(&self) -> bool {
        self.kind.is_none()
            && self.user.is_none()
            && self.text.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }

    fn has_cause_or_errcode(&self) -> bool {
        self.cause.is_some() || self.errcode.is_some()
    }

    /// The filter, with its times by the database's clock.
    pub(crate) async fn dead(&self, conn: &mut PgConnection) -> Result<DeadFilter, Failed> {
        let (since, until) = span(conn, self.since, self.until).await?;
        let filter = DeadFilter {
            conversation_id: self.conversation.map(Into::into),
            kind: self.kind.clone(),
            cause: self.cause.clone(),
            errcode: self.errcode.clone(),
            user_id: self.user.map(UserId::from),
            text: self.text.clone(),
            since,
            until,
        };
        match filter.problem() {
            Some(problem) => Err(Failed::Usage(format!("--{problem}"))),
            None => Ok(filter),
        }
    }
}
