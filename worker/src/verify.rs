//! Comparing a conversation with its rooms, and mending what differs: what is compared and why it is sound is told in
//! `shared::verify`.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use shared::{
    chat,
    ids::{ConversationId, EventId, MatrixUserId, MessageId, OutboxId, ReactionId, RoomId, UserId},
    outbox::Kind,
    tasks::Task,
    verify::{
        self, Comparison, EventType, Finding, FindingKind, Found, MOST_FINDINGS, MOST_RESENT, Mend, RoomEvent,
        SENT_PAGE, SentRow, Stray,
    },
};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::sleep;

use crate::{
    errands::Lease,
    homeserver::{EventPage, Failure, HistoryEvent, Homeserver, Refusal},
    members::Change,
};

/// How many events of a conversation's rooms are compared at most, the newest. Some twenty bytes of each are kept.
const MOST_EVENTS: u64 = 1_000_000;

/// How often a question is asked before the comparison is given up for now.
const TRIES: u32 = 8;

/// The first wait between two of them; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest that a homeserver's own wish is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Why a conversation was not compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// The homeserver did not answer, or refused.
    #[error("homeserver: {0}")]
    Homeserver(#[from] Failure),
    /// The database did not answer.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The task is no longer ours.
    #[error("the task was taken over or cancelled")]
    Lost,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// What differs.
    pub(crate) findings: Vec<Finding>,
    /// How much of each kind.
    pub(crate) counts: BTreeMap<FindingKind, u64>,
}

/// Compares, and mends.
#[derive(Debug, Clone)]
pub(crate) struct Verifier {
    pub(crate) pool: PgPool,
    pub(crate) homeserver: Homeserver,
}

/// A comparison under way.
struct Run<'a> {
    verifier: &'a Verifier,
    conversation_id: ConversationId,
    lease: &'a Lease,
    /// When it began, by the database's clock.
    since: OffsetDateTime,
}

impl Verifier {
    /// Compares a conversation with its rooms; with `mend`, mends what can be mended.
    pub(crate) async fn verify(
        &self,
        task: &Task,
        conversation_id: ConversationId,
        mend: bool,
        lease: &Lease,
    ) -> Result<Compared, VerifyError> {
        let (since, rooms) = {
            let mut conn = self.pool.acquire().await?;
            (shared::database::now(&mut conn).await?, verify::rooms_of(&mut conn, conversation_id).await?)
        };
        let Some(present) = rooms.first() else { return Ok(Compared::default()) };
        let run = Run { verifier: self, conversation_id, lease, since };
        let mut comparison = Comparison::new(conversation_id, self.homeserver.service_user().as_str());
        for room_id in &rooms {
            run.read(&mut comparison, room_id).await?;
        }
        run.strays(&mut comparison).await?;
        run.missing(&mut comparison).await?;
        run.members(&mut comparison, present).await?;
        let (candidates, mut counts) = comparison.finish();
        let mut differing = Vec::new();
        for found in candidates {
            if run.is_so(&found).await? {
                differing.push(found);
            } else if let Some(count) = counts.get_mut(&found.finding.kind) {
                *count -= 1;
            }
        }
        let mut findings = Vec::new();
        for found in differing {
            let repaired = mend && found.finding.repairable;
            if repaired {
                run.repair(task, &found).await?;
            }
            findings.push(Finding { repaired, ..found.finding });
        }
        counts.retain(|_, count| *count > 0);
        Ok(Compared { findings, counts })
    }

    /// The members of a conversation who are not in its room, nor invited. None when we may not look.
    pub(crate) async fn absent(
        &self,
        conversation_id: ConversationId,
        room_id: &RoomId,
        lease: &Lease,
    ) -> Result<Option<Vec<UserId>>, VerifyError> {
        let since = shared::database::now(&mut *self.pool.acquire().await?).await?;
        let run = Run { verifier: self, conversation_id, lease, since };
        let differing = run.differing(room_id).await?;
        let invited = |(user_id, change): (UserId, Change)| (change == Change::Invite).then_some(user_id);
        Ok(differing.map(|differing| differing.into_iter().filter_map(invited).collect()))
    }
}

impl Run<'_> {
    fn homeserver(&self) -> &Homeserver {
        &self.verifier.homeserver
    }

    /// Asks until there is an answer, or a refusal for good.
    async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, VerifyError> {
        if !self.lease.go_on().await? {
            return Err(VerifyError::Lost);
        }
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            let asked_for = match ask().await {
                Err(Failure::NotSent(_) | Failure::NoAnswer(_)) => None,
                Err(Failure::Refused(refusal)) if refusal.status == 429 || refusal.status >= 500 => refusal.retry_after,
                answer => return Ok(answer?),
            };
            sleep(asked_for.unwrap_or(wait).clamp(wait, LONGEST_WAIT)).await;
            wait *= 2;
            if !self.lease.go_on().await? {
                return Err(VerifyError::Lost);
            }
        }
        Ok(ask().await?)
    }

    /// Reads a room, newest event first, and compares page by page.
    async fn read(&self, comparison: &mut Comparison, room_id: &RoomId) -> Result<(), VerifyError> {
        let mut from: Option<String> = None;
        loop {
            let page = self.patiently(|| self.homeserver().compared_before(room_id, from.as_deref())).await;
            let EventPage { events, next } = match page {
                // Of the present room, that is told with its members.
                Err(VerifyError::Homeserver(Failure::Refused(Refusal { status: 403 | 404, .. }))) => return Ok(()),
                page => page?,
            };
            let events: Vec<RoomEvent> = events.iter().map(event_of).collect();
            let ids: Vec<EventId> = events.iter().map(|event| event.event_id.clone()).collect();
            let markers: Vec<OutboxId> = events.iter().filter_map(|event| event.marker).collect();
            let known = {
                let mut conn = self.verifier.pool.acquire().await?;
                verify::known(&mut conn, self.conversation_id, &ids, &markers).await?
            };
            comparison.page(room_id, &events, &known);
            if comparison.events() >= MOST_EVENTS {
                return Ok(());
            }
            match next {
                // A page may be empty although more follows: the homeserver filters after it has counted.
                Some(next) if from.as_deref() != Some(next.as_str()) => from = Some(next),
                _ => return Ok(()),
            }
        }
    }

    fn finding(&self, kind: FindingKind, words: &str) -> Finding {
        Finding {
            kind,
            conversation_id: self.conversation_id,
            outbox_id: None,
            subject_id: None,
            room_id: None,
            event_id: None,
            words: words.to_owned(),
            repairable: false,
            repaired: false,
        }
    }

    /// Events of ours that are nobody's evidence.
    async fn strays(&self, comparison: &mut Comparison) -> Result<(), VerifyError> {
        for stray in comparison.take_strays() {
            let identified = {
                let mut conn = self.verifier.pool.acquire().await?;
                verify::identify(&mut conn, self.conversation_id, &stray).await?
            };
            let Stray { event, outbox_id, room_id, .. } = stray;
            let words = if identified.is_some() {
                "it stands in the room, and the database does not know that it was sent: a repair takes it as evidence"
            } else {
                "it carries our marker, and nothing in the database says what it was (a backup that was restored?)"
            };
            let finding = Finding {
                outbox_id: Some(outbox_id),
                subject_id: identified.as_ref().map(|(_, evidence)| evidence.subject_id),
                room_id: Some(room_id),
                event_id: Some(event.event_id),
                repairable: identified.is_some(),
                ..self.finding(FindingKind::Unknown, words)
            };
            let adopt = identified.map(|(lane_id, evidence)| Mend::Adopt(lane_id, Box::new(evidence)));
            comparison.push(Found { finding, mend: adopt.unwrap_or(Mend::Nothing) });
        }
        Ok(())
    }

    /// Evidence whose event was not met although its room was read that far back, and that the homeserver does not find.
    async fn missing(&self, comparison: &mut Comparison) -> Result<(), VerifyError> {
        let mut missing = Vec::new();
        let mut after = None;
        loop {
            let page = {
                let mut conn = self.verifier.pool.acquire().await?;
                verify::sent_before(&mut conn, self.conversation_id, self.since, after, None).await?
            };
            after = page.last().map(|row| row.outbox_id);
            let is_last = i64::try_from(page.len()).unwrap_or(i64::MAX) < SENT_PAGE;
            for row in page {
                if comparison.has_met(&row.event_id) || !comparison.should_have_met(&row.room_id, row.sent_at) {
                    continue;
                }
                if missing.len() < MOST_FINDINGS && !self.is_there(&row).await? {
                    missing.push(row);
                }
            }
            if is_last {
                break;
            }
        }
        // Messages first: what edits them or reacts to them comes back with them.
        missing.sort_by_key(|row| row.kind != Kind::Message.as_str());
        let too_many = missing.len() > MOST_RESENT;
        for row in missing {
            let is_call = matches!(Kind::parse(&row.kind), Some(Kind::Call(_)) | None);
            let finding = Finding {
                outbox_id: Some(row.outbox_id),
                subject_id: Some(row.subject_id),
                room_id: Some(row.room_id),
                event_id: Some(row.event_id),
                repairable: true,
                ..self.finding(
                    FindingKind::Missing,
                    "delivered, and not in the room: a repair sends its newest text again, behind what was sent since",
                )
            };
            let found = Found { finding, mend: Mend::Resend(row.outbox_id) };
            comparison.push(if is_call {
                found.only_told("delivered, and not in the room: what was said in a call is not said again")
            } else if too_many {
                found.only_told(
                    "delivered, and not in the room, like so many others that its history seems to be gone: nothing of it \
                     is sent again",
                )
            } else {
                found
            });
        }
        Ok(())
    }

    async fn is_there(&self, row: &SentRow) -> Result<bool, VerifyError> {
        match self.patiently(|| self.homeserver().event(&row.room_id, &row.event_id)).await {
            Ok(event) => Ok(event.is_some()),
            // Not to be told is not the same as not to be there.
            Err(VerifyError::Homeserver(Failure::Refused(_) | Failure::NotBuilt(_))) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Who belongs to the conversation, and who is in its present room.
    async fn members(&self, comparison: &mut Comparison, room_id: &RoomId) -> Result<(), VerifyError> {
        let Some(differing) = self.differing(room_id).await? else {
            let words = "the service account is not in the room: what is there is not compared; repair it (rejoin)";
            let finding = self.finding(FindingKind::Unreadable, words);
            let finding = Finding { room_id: Some(room_id.clone()), ..finding };
            comparison.push(Found { finding, mend: Mend::Nothing });
            return Ok(());
        };
        for (user_id, change) in differing {
            let (kind, words, mend) = match change {
                Change::Invite => (
                    FindingKind::MemberMissing,
                    "a member who is not in the room, nor invited: a repair invites them",
                    Mend::Invite(user_id),
                ),
                Change::Remove => (
                    FindingKind::MemberRemains,
                    "no member any more, and still in the room: a repair removes them",
                    Mend::Remove(user_id),
                ),
            };
            let finding = Finding {
                subject_id: Some(user_id.as_uuid()),
                room_id: Some(room_id.clone()),
                repairable: true,
                ..self.finding(kind, words)
            };
            comparison.push(Found { finding, mend });
        }
        Ok(())
    }

    /// Whose membership the room has otherwise than the database, and which change would mend it. None when we may not
    /// look.
    async fn differing(&self, room_id: &RoomId) -> Result<Option<Vec<(UserId, Change)>>, VerifyError> {
        let state = match self.patiently(|| self.homeserver().state(room_id)).await {
            Err(VerifyError::Homeserver(Failure::Refused(Refusal { status: 403 | 404, .. }))) => return Ok(None),
            state => state?,
        };
        let memberships: BTreeMap<&str, &str> = state
            .iter()
            .filter(|event| event.r#type == "m.room.member")
            .filter_map(|event| Some((event.state_key.as_str(), event.content["membership"].as_str()?)))
            .collect();
        if memberships.get(self.homeserver().service_user().as_str()) != Some(&"join") {
            // What we see then is the room as we left it.
            return Ok(None);
        }
        let plan = {
            let mut conn = self.verifier.pool.acquire().await?;
            chat::room_plan(&mut conn, self.conversation_id).await?
        };
        let Some(plan) = plan else { return Ok(None) };
        let wanted = plan.members.iter().map(|user_id| (*user_id, Change::Invite));
        let unwanted = plan.absent.iter().map(|user_id| (*user_id, Change::Remove));
        let differs = |(user_id, change): &(UserId, Change)| {
            !change.is_done(memberships.get(self.matrix_user(*user_id).as_str()).copied())
        };
        let mut differing = Vec::new();
        for (user_id, change) in wanted.chain(unwanted).filter(differs) {
            let member = self.matrix_user(user_id);
            let event =
                state.iter().find(|event| event.r#type == "m.room.member" && event.state_key == member.as_str());
            // What others did there is the sync's to tell, and it has not yet.
            let others = event.filter(|event| event.sender != self.homeserver().service_user().as_str());
            if let Some(event) = others {
                let event_id = EventId::from(event.event_id.clone());
                let mut conn = self.verifier.pool.acquire().await?;
                if !verify::is_received(&mut conn, self.conversation_id, &event_id).await? {
                    continue;
                }
            }
            differing.push((user_id, change));
        }
        Ok(Some(differing))
    }

    fn matrix_user(&self, user_id: UserId) -> MatrixUserId {
        MatrixUserId::of(user_id, self.homeserver().service_user().server())
    }

    /// Whether a finding holds when it is looked at once more: on the homeserver, and in the database before and after.
    async fn is_so(&self, found: &Found) -> Result<bool, VerifyError> {
        if !self.is_still_so(found).await? {
            return Ok(false);
        }
        let room_id = found.finding.room_id.as_ref();
        let event = room_id.zip(found.finding.event_id.as_ref());
        match (&found.mend, event) {
            (Mend::Redact { .. } | Mend::RedactSpare { .. }, Some((room_id, event_id))) => {
                let event = self.patiently(|| self.homeserver().event(room_id, event_id)).await?;
                Ok(event.is_some_and(|event| redacted_by(&event).is_none()) && self.is_still_so(found).await?)
            }
            (Mend::Invite(user_id) | Mend::Remove(user_id), _) => {
                let Some(room_id) = room_id else { return Ok(false) };
                let before = self.standing(*user_id).await?;
                let member = self.matrix_user(*user_id);
                let membership = self.patiently(|| self.homeserver().membership(room_id, &member)).await?;
                let change = if matches!(found.mend, Mend::Invite(_)) { Change::Invite } else { Change::Remove };
                // Whoever came or went meanwhile is another matter.
                let stood_still = self.standing(*user_id).await? == before;
                Ok(!change.is_done(membership.as_deref()) && stood_still && self.is_still_so(found).await?)
            }
            _ => Ok(true),
        }
    }

    async fn standing(&self, user_id: UserId) -> Result<verify::Standing, sqlx::Error> {
        let mut conn = self.verifier.pool.acquire().await?;
        verify::standing(&mut conn, self.conversation_id, user_id).await
    }

    async fn is_still_so(&self, found: &Found) -> Result<bool, sqlx::Error> {
        let mut conn = self.verifier.pool.acquire().await?;
        verify::is_still_so(&mut conn, found, self.since).await
    }

    /// Mends a finding, unless what mended another has mended it too: in the database, and on the homeserver where that
    /// cannot be an operation.
    async fn repair(&self, task: &Task, found: &Found) -> Result<(), VerifyError> {
        if !self.lease.go_on().await? {
            return Err(VerifyError::Lost);
        }
        let mut tx = self.verifier.pool.begin().await?;
        let done = verify::repair(&mut tx, task, found, self.since).await?;
        tx.commit().await?;
        if done && let Mend::RedactSpare { outbox_id, room_id, event_id } = &found.mend {
            // It has no marker: it is no operation's event.
            let content = serde_json::value::to_raw_value(&json!({"reason": "sent twice"}))
                .map_err(|error| Failure::NotBuilt(error.to_string()))?;
            let transaction = verify::transaction_of_spare(*outbox_id, event_id);
            self.patiently(|| self.homeserver().redact(room_id, event_id, transaction, &content)).await?;
        }
        Ok(())
    }
}

fn redacted_by(event: &HistoryEvent) -> Option<String> {
    let because = event.unsigned.get("redacted_because")?;
    Some(because["sender"].as_str().unwrap_or_default().to_owned())
}

/// What is compared of an event: its content is left behind.
fn event_of(event: &HistoryEvent) -> RoomEvent {
    let text = |key: &str| event.content[key].as_str();
    let redacted_by = redacted_by(event);
    let marker = match &redacted_by {
        // Its content is gone; the homeserver still tells the device that sent it the transaction.
        Some(_) => event.unsigned["transaction_id"].as_str(),
        None => text("com.nova.outbox_id"),
    };
    RoomEvent {
        event_id: EventId::from(event.event_id.clone()),
        event_type: match event.r#type.as_str() {
            "m.room.message" => EventType::Message,
            "m.reaction" => EventType::Reaction,
            "m.room.redaction" => EventType::Redaction,
            "com.nova.outbox.void" => EventType::Void,
            "m.room.create" => EventType::Create,
            call if call.starts_with("m.call.") => EventType::Call,
            _ => EventType::Other,
        },
        sender: event.sender.clone(),
        sent_at_ms: event.origin_server_ts,
        marker: marker.and_then(|marker| marker.parse().ok()),
        message_id: text("com.nova.message_id").and_then(|id| id.parse::<MessageId>().ok()),
        reaction_id: text("com.nova.reaction_id").and_then(|id| id.parse::<ReactionId>().ok()),
        revision: event.content["com.nova.revision"].as_i64().and_then(|revision| i32::try_from(revision).ok()),
        replaces: event.content["m.relates_to"]["rel_type"] == "m.replace",
        redacts: event.redacts.as_deref().or_else(|| text("redacts")).map(|id| EventId::from(id.to_owned())),
        redacted_by,
    }
}
