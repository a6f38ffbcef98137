//! What operators do, each with its row in the audit trail.
//!
//! Each function is one act: the change and the row that tells of it are in the caller's transaction, so there is neither
//! without the other. An act that changes nothing leaves no row. After the commit, wake the workers.

use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    audit::{self, Act, Verb},
    ids::{ConversationId, EventId, LaneId, OutboxId},
    outbox::{self, Completion, Discard, Expire, GoingOn, HeldBatch, LaneClass, Requeue, Selection},
};

/// How many lanes are resumed in one act, so that no transaction is long.
pub const RESUME_BATCH: i64 = 500;

/// What is paused or resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Every lane of a class.
    Class(LaneClass),
    /// Every lane of a conversation.
    Conversation(ConversationId),
    /// One lane.
    Lane(ConversationId, LaneId),
}

impl Scope {
    const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Class(_) => "class",
            Self::Conversation(_) => "conversation",
            Self::Lane(..) => "lane",
        }
    }

    const fn conversation_id(self) -> Option<ConversationId> {
        match self {
            Self::Conversation(conversation_id) | Self::Lane(conversation_id, _) => Some(conversation_id),
            Self::All | Self::Class(_) => None,
        }
    }

    /// What it names, for the trail.
    fn arguments(self) -> Value {
        match self {
            Self::All | Self::Conversation(_) => json!({}),
            Self::Class(class) => json!({"class": class}),
            Self::Lane(_, lane_id) => json!({"lane_id": lane_id}),
        }
    }

    const fn class(self) -> Option<LaneClass> {
        match self {
            Self::Class(class) => Some(class),
            _ => None,
        }
    }
}

/// Brings dead letters of a conversation back; see [`outbox::requeue_all`].
pub async fn requeue(
    conn: &mut PgConnection,
    by: &str,
    conversation_id: ConversationId,
    selection: Selection<'_>,
    reason: Option<&str>,
) -> Result<Requeue, sqlx::Error> {
    let done = outbox::requeue_all(conn, conversation_id, selection).await?;
    if !done.back.is_empty() {
        let (scope, arguments) = match selection {
            Selection::Named(ids) => ("operations", json!({"outbox_ids": ids})),
            Selection::Matching { cause, errcode } => ("conversation", json!({"cause": cause, "errcode": errcode})),
        };
        let affected = done.back.len() as u64;
        let conversation_id = Some(conversation_id);
        let task_id = None;
        let act = Act { by, verb: Verb::Requeue, scope, conversation_id, arguments, affected, reason, task_id };
        audit::append(conn, &act).await?;
    }
    Ok(done)
}

/// Discards operations of a conversation; see [`outbox::discard_all`]. What was live is named in the trail, which is all
/// that is left of a redaction or a removal.
pub async fn discard(
    conn: &mut PgConnection,
    by: &str,
    conversation_id: ConversationId,
    ids: &[OutboxId],
    reason: &str,
) -> Result<Discard, sqlx::Error> {
    let done = outbox::discard_all(conn, conversation_id, ids).await?;
    if !done.gone.is_empty() {
        let mut arguments = json!({"outbox_ids": ids});
        if !done.live.is_empty() {
            arguments["live"] = json!(
                done.live
                    .iter()
                    .map(|live| json!({
                        "outbox_id": live.outbox_id,
                        "kind": live.kind,
                        "subject_id": live.subject_id,
                        "target_outbox_id": live.target_outbox_id,
                    }))
                    .collect::<Vec<_>>()
            );
        }
        let act = Act {
            by,
            verb: Verb::Discard,
            scope: "operations",
            conversation_id: Some(conversation_id),
            arguments,
            affected: done.gone.len() as u64,
            reason: Some(reason),
            task_id: None,
        };
        audit::append(conn, &act).await?;
    }
    Ok(done)
}

/// Completes an operation of a conversation by hand; see [`outbox::complete`].
pub async fn complete(
    conn: &mut PgConnection,
    by: &str,
    conversation_id: ConversationId,
    outbox_id: OutboxId,
    event_id: Option<&EventId>,
    reason: &str,
) -> Result<Completion, sqlx::Error> {
    let completion = outbox::complete(conn, conversation_id, outbox_id, event_id).await?;
    if let Completion::Completed(completed) = &completion {
        let act = Act {
            by,
            verb: Verb::Complete,
            scope: "operations",
            conversation_id: Some(conversation_id),
            arguments: json!({
                "outbox_ids": [outbox_id],
                "kind": completed.kind,
                "subject_id": completed.subject_id,
                "event_id": event_id,
            }),
            affected: 1,
            reason: Some(reason),
            task_id: None,
        };
        audit::append(conn, &act).await?;
    }
    Ok(completion)
}

/// Ends operations of a conversation that still wait; see [`outbox::expire_all`].
pub async fn expire(
    conn: &mut PgConnection,
    by: &str,
    conversation_id: ConversationId,
    ids: &[OutboxId],
    reason: &str,
) -> Result<Expire, sqlx::Error> {
    let done = outbox::expire_all(conn, conversation_id, ids).await?;
    if !done.gone.is_empty() {
        let act = Act {
            by,
            verb: Verb::Expire,
            scope: "operations",
            conversation_id: Some(conversation_id),
            arguments: json!({"outbox_ids": done.gone}),
            affected: done.gone.len() as u64,
            reason: Some(reason),
            task_id: None,
        };
        audit::append(conn, &act).await?;
    }
    Ok(done)
}

/// Pauses something until a time or, without one, until it is resumed. Returns how many lanes are paused by name, or 1
/// for everything and for a class; 0 when there is no such conversation or lane.
pub async fn pause(
    conn: &mut PgConnection,
    by: &str,
    scope: Scope,
    until: Option<OffsetDateTime>,
    reason: &str,
) -> Result<u64, sqlx::Error> {
    let affected = match scope {
        Scope::All | Scope::Class(_) => {
            outbox::pause(&mut *conn, scope.class(), until, reason, by).await?;
            1
        }
        Scope::Conversation(conversation_id) => outbox::pause_lanes(conn, conversation_id, None, until, reason).await?,
        Scope::Lane(conversation_id, lane_id) => {
            outbox::pause_lanes(conn, conversation_id, Some(lane_id), until, reason).await?
        }
    };
    if affected > 0 {
        let mut arguments = scope.arguments();
        arguments["until"] = json!(until.map(in_words));
        let act = Act {
            by,
            verb: Verb::Pause,
            scope: scope.as_str(),
            conversation_id: scope.conversation_id(),
            arguments,
            affected,
            reason: Some(reason),
            task_id: None,
        };
        audit::append(conn, &act).await?;
    }
    Ok(affected)
}

fn in_words(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// Ends pauses and holds of something, whoever set them: an operator, or a worker for a room's fault.
pub async fn resume(
    conn: &mut PgConnection,
    by: &str,
    scope: Scope,
    reason: Option<&str>,
) -> Result<GoingOn, sqlx::Error> {
    let resumed = match scope {
        Scope::All | Scope::Class(_) => {
            let ended = u64::from(outbox::unpause(&mut *conn, scope.class()).await?);
            let lanes = if ended > 0 { outbox::lanes_due(conn, scope.class()).await? } else { 0 };
            GoingOn { ended, lanes }
        }
        Scope::Conversation(conversation_id) => outbox::resume_lanes(conn, conversation_id, None).await?,
        Scope::Lane(conversation_id, lane_id) => outbox::resume_lanes(conn, conversation_id, Some(lane_id)).await?,
    };
    if resumed.ended > 0 {
        let act = Act {
            by,
            verb: Verb::Resume,
            scope: scope.as_str(),
            conversation_id: scope.conversation_id(),
            arguments: scope.arguments(),
            affected: resumed.ended,
            reason,
            task_id: None,
        };
        audit::append(conn, &act).await?;
    }
    Ok(resumed)
}

/// Resumes a batch of all lanes that are held, or of those that are held for just this reason. Call it again, in another
/// transaction, from the `next` that it returns: each batch is an act of its own.
pub async fn resume_held(
    conn: &mut PgConnection,
    by: &str,
    because: Option<&str>,
    after: Option<(ConversationId, LaneId)>,
    reason: Option<&str>,
) -> Result<HeldBatch, sqlx::Error> {
    let batch = outbox::resume_held(conn, because, after, RESUME_BATCH).await?;
    if batch.resumed.ended > 0 {
        let act = Act {
            by,
            verb: Verb::Resume,
            scope: "held",
            conversation_id: None,
            arguments: json!({"because": because}),
            affected: batch.resumed.ended,
            reason,
            task_id: None,
        };
        audit::append(conn, &act).await?;
    }
    Ok(batch)
}
