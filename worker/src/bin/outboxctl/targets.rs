//! What ids on the command line lead to: dead letters, conversation by conversation.

use std::collections::BTreeMap;

use shared::{
    ids::{ConversationId, OutboxId},
    outbox::{self, Place, Refusal, Refused},
};
use sqlx::PgConnection;
use uuid::Uuid;

/// The dead letters that ids lead to.
#[derive(Default)]
pub(crate) struct Targets {
    /// The dead letters of each conversation.
    pub(crate) letters: BTreeMap<ConversationId, Vec<OutboxId>>,
    /// Ids that lead to none.
    pub(crate) refused: Vec<Refused>,
    /// Each other id, with what it led to.
    asked: Vec<(Uuid, Vec<OutboxId>)>,
}

impl Targets {
    /// True when each id led to at least one of these.
    pub(crate) fn all_served(&self, done: &[OutboxId]) -> bool {
        self.refused.is_empty() && self.asked.iter().all(|(_, letters)| letters.iter().any(|id| done.contains(id)))
    }
}

/// Looks for operations and messages of these ids.
pub(crate) async fn resolve(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Targets, sqlx::Error> {
    let mut targets = Targets::default();
    for id in ids {
        let found = outbox::find(conn, *id).await?;
        let dead: Vec<_> = found.iter().filter(|found| found.place == Place::Dead).collect();
        if dead.is_empty() {
            let subject = found.first().map_or(*id, |found| found.subject_id);
            let message = outbox::message_facts(conn, subject).await?;
            let reason = match (message, found.first()) {
                (Some(message), _) if message.deleted_at.is_some() => Refusal::Deleted,
                (_, Some(found)) if found.place == Place::Withdrawn => Refusal::Discarded,
                (None, None) => Refusal::Unknown,
                _ => Refusal::NotDead,
            };
            targets.refused.push(Refused::new(*id, reason));
            continue;
        }
        for found in &dead {
            let letters = targets.letters.entry(found.conversation_id).or_default();
            if !letters.contains(&found.outbox_id) {
                letters.push(found.outbox_id);
            }
        }
        targets.asked.push((*id, dead.iter().map(|found| found.outbox_id).collect()));
    }
    Ok(targets)
}
