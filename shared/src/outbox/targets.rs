//! What ids that an operator names lead to, conversation by conversation.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Found, Place, Refusal, Refused, find, message_facts};
use crate::ids::{ConversationId, OutboxId};

/// What ids lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Dead letters.
    Dead,
    /// Dead letters, and live operations by their own ids: a message's id is not explicit enough for what may leave a
    /// deleted text on Matrix.
    DeadOrNamed,
    /// What is live.
    Live,
}

/// The operations that ids lead to.
#[derive(Debug, Default)]
pub struct Targets {
    /// The operations of each conversation.
    pub operations: BTreeMap<ConversationId, Vec<OutboxId>>,
    /// Ids that lead to none.
    pub refused: Vec<Refused>,
    /// Each other id, with what it led to.
    asked: Vec<(Uuid, Vec<OutboxId>)>,
}

impl Targets {
    /// True when each id led to at least one of these.
    pub fn all_served(&self, done: &[OutboxId]) -> bool {
        self.refused.is_empty()
            && self.asked.iter().all(|(_, operations)| operations.iter().any(|id| done.contains(id)))
    }
}

/// Looks for operations and messages of these ids.
pub async fn resolve(conn: &mut PgConnection, ids: &[Uuid], wanted: Wanted) -> Result<Targets, sqlx::Error> {
    let mut targets = Targets::default();
    for id in ids {
        let found = find(conn, *id).await?;
        let live = |found: &&Found| found.place == Place::Live;
        let named = |found: &&Found| wanted == Wanted::DeadOrNamed && live(found) && found.outbox_id.as_uuid() == *id;
        let is_wanted = |found: &&Found| match wanted {
            Wanted::Dead | Wanted::DeadOrNamed => found.place == Place::Dead || named(found),
            Wanted::Live => live(found),
        };
        let taken: Vec<_> = found.iter().filter(is_wanted).collect();
        if taken.is_empty() {
            let subject = found.first().map_or(*id, |found| found.subject_id);
            let message = message_facts(conn, subject).await?;
            let reason = match (message, found.first()) {
                _ if wanted == Wanted::DeadOrNamed && found.iter().any(|found| live(&found)) => Refusal::Unnamed,
                (Some(message), _) if message.deleted_at.is_some() => Refusal::Deleted,
                (_, Some(found)) if found.place == Place::Withdrawn => Refusal::Discarded,
                (None, None) => Refusal::Unknown,
                _ if wanted == Wanted::Live => Refusal::NotWaiting,
                _ => Refusal::NotDead,
            };
            targets.refused.push(Refused::new(*id, reason));
            continue;
        }
        for found in &taken {
            let operations = targets.operations.entry(found.conversation_id).or_default();
            if !operations.contains(&found.outbox_id) {
                operations.push(found.outbox_id);
            }
        }
        targets.asked.push((*id, taken.iter().map(|found| found.outbox_id).collect()));
    }
    Ok(targets)
}
