//! What relates to messages: reactions to them, and replies.
use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::Discrepancy;
use super::asked::{PostRecord, Wanted};
use super::audit::{Audit, Delivered, uuid};
use crate::testing::matrix_client::MatrixEvent;

impl Audit<'_> {
    /// Reactions stand as often as asked for, and replies name what they answer.
    pub(super) fn relations(&mut self, events: &[MatrixEvent], delivered: &HashMap<Uuid, Delivered<'_>>) {
        let messages: HashMap<&str, Uuid> = delivered
            .iter()
            .flat_map(|(id, of_message)| of_message.originals.iter().map(|event| (event.event_id.as_str(), *id)))
            .collect();
        self.reactions(events, &messages);
        self.replies(delivered);
    }

    /// One account speaks for all: of all users' reactions with one key to one message one stands, by one of them. That no
    /// account has two is the homeserver's own rule.
    fn reactions(&mut self, events: &[MatrixEvent], messages: &HashMap<&str, Uuid>) {
        let mut standing: BTreeSet<(Uuid, &str)> = BTreeSet::new();
        for event in events.iter().filter(|event| event.event_type == "m.reaction" && !event.is_redacted()) {
            if self.book.outside_events.contains(&event.event_id) || !self.senders.is_ours(&event.sender) {
                continue;
            }
            let relates_to = &event.content["m.relates_to"];
            let (Some(target), Some(key)) = (relates_to["event_id"].as_str(), relates_to["key"].as_str()) else {
                self.foreign(event, "a reaction to nothing");
                continue;
            };
            // What stands beside a message that is redacted is shown no more.
            let Some(message_id) = messages.get(target) else { continue };
            let by = uuid(&event.content, "com.nova.sender_id").unwrap_or_default();
            match self.book.reactions.get(&(*message_id, key.to_owned(), by)) {
                Some(Wanted::In | Wanted::Either) => {
                    standing.insert((*message_id, key));
                }
                Some(Wanted::Out) => {
                    let (message_id, key, event_id) = (*message_id, key.to_owned(), event.event_id.clone());
                    self.report(Discrepancy::ReactionRemains { message_id, key, event_id });
                }
                None => self.foreign(event, "a reaction that nobody made"),
            }
        }
        self.summary.reactions += standing.len();
        let shown: Vec<Uuid> = messages.values().copied().collect();
        let mut missing: Vec<(Uuid, String)> = self
            .book
            .reactions
            .iter()
            .filter(|((message_id, key, _), wanted)| {
                **wanted == Wanted::In && shown.contains(message_id) && !standing.contains(&(*message_id, key.as_str()))
            })
            .map(|((message_id, key, _), _)| (*message_id, key.clone()))
            .collect();
        missing.dedup();
        for (message_id, key) in missing {
            self.report(Discrepancy::ReactionMissing { message_id, key });
        }
    }

    fn replies(&mut self, delivered: &HashMap<Uuid, Delivered<'_>>) {
        let original = |message_id: Uuid| delivered.get(&message_id).and_then(|events| events.originals.first());
        let posts: HashMap<Uuid, &PostRecord> =
            self.asked().filter_map(|post| Some((post.committed()?.message_id, post))).collect();
        let mut misaimed = Vec::new();
        for (message_id, post) in &posts {
            let Some(reply) = original(*message_id) else { continue };
            let found = reply.content["m.relates_to"]["m.in_reply_to"]["event_id"].as_str();
            let answered = post.reply_to.and_then(|answered| posts.get(&answered));
            // What was deleted, or had died when the reply was sent, may be named or not.
            if answered.is_some_and(|answered| answered.deletion.is_some() || answered.may_be_late) {
                continue;
            }
            let expected = post.reply_to.and_then(original).map(|event| event.event_id.as_str());
            if found != expected {
                misaimed.push(Discrepancy::MisaimedReply {
                    message_id: *message_id,
                    event_id: reply.event_id.clone(),
                    found: found.map(str::to_owned),
                    expected: expected.map(str::to_owned),
                });
            }
        }
        self.found.append(&mut misaimed);
    }
}
