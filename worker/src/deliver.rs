//! Delivery: from a claimed batch to the outcome of each of its operations.
//!
//! Operations go in order, one at a time, and the first that is not delivered ends the batch: what comes after it must
//! not overtake it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    ids::{ConversationId, EventId, MessageId, RoomId},
    outbox::{Attempt, ClaimedOperation, Evidence, Kind, Mode, Outcome},
    seal::KeyRing,
};

use crate::{
    coordinator::{Batch, Pace},
    homeserver::{Failure, Homeserver},
    prepare::{self, Prepared, Said},
    room::{RoomError, Rooms},
    verdict::{self, Verdict},
};

/// What delivery works with.
#[derive(Debug)]
pub(crate) struct Deliverer {
    pub(crate) keys: KeyRing,
    pub(crate) homeserver: Homeserver,
    pub(crate) rooms: Rooms,
    pub(crate) pace: Arc<Pace>,
    /// The longest that one request may take.
    pub(crate) http_timeout: Duration,
    /// The first wait after a failure.
    pub(crate) backoff: Duration,
}

/// How a step ended, before it is written into the batch.
struct Ended {
    outcome: Outcome,
    attempt: Option<Attempt>,
    found: Vec<Evidence>,
}

impl Ended {
    fn well(outcome: Outcome) -> Self {
        Self { outcome, attempt: Some(Attempt::default()), found: Vec::new() }
    }

    fn untried(outcome: Outcome) -> Self {
        Self { outcome, attempt: None, found: Vec::new() }
    }
}

/// Why an operation was not sent.
enum Stop {
    /// The homeserver failed or refused.
    Homeserver(Failure),
    /// It can end otherwise.
    End(Box<Ended>),
    /// Something of ours is away or wrong; tried again without blame.
    Ours(String),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Homeserver(failure)
    }
}

impl From<RoomError> for Stop {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Homeserver(failure) => Self::Homeserver(failure),
            RoomError::Database(error) => Self::Ours(format!("database: {error}")),
            RoomError::NotOurs(_) | RoomError::Gone => Self::End(Box::new(Ended {
                outcome: Outcome::RoomFault { reason: error.to_string() },
                attempt: Some(Attempt { detail: Some(error.to_string()), ..Attempt::default() }),
                found: Vec::new(),
            })),
        }
    }
}

impl Deliverer {
    /// Sends a batch, as far as it goes.
    pub(crate) async fn deliver(&self, mut batch: Batch) {
        let Some(claimed) = batch.take() else { return };
        let conversation_id = claimed.claim.conversation_id;
        let class = claimed.claim.class.as_str();
        if let Some(room_id) = &claimed.room_id {
            self.rooms.learn(conversation_id, room_id).await;
        }
        for operation in claimed.operations {
            if !batch.may_start(self.http_timeout) {
                return;
            }
            let began = Instant::now();
            batch.begin(operation.clone());
            let ended = self.settle_one(conversation_id, &operation).await;
            report(conversation_id, &operation, class, &ended, began.elapsed());
            if !batch.end(ended.outcome, ended.attempt, ended.found) {
                return;
            }
        }
    }

    async fn settle_one(&self, conversation_id: ConversationId, operation: &ClaimedOperation) -> Ended {
        match self.try_one(conversation_id, operation).await {
            Ok(ended) => ended,
            Err(Stop::End(ended)) => *ended,
            Err(Stop::Homeserver(failure)) => self.failed(operation, &failure),
            Err(Stop::Ours(detail)) => {
                let retry_in = verdict::backoff(self.backoff, operation.failures, rand::random());
                Ended {
                    outcome: Outcome::Refused { retry_in, own_fault: false },
                    attempt: Some(Attempt { detail: Some(detail), ..Attempt::default() }),
                    found: Vec::new(),
                }
            }
        }
    }

    fn failed(&self, operation: &ClaimedOperation, failure: &Failure) -> Ended {
        let verdict = verdict::judge(failure);
        if verdict == Verdict::Account {
            tracing::error!(error = %failure, "the homeserver does not accept our token: nothing can be sent");
        }
        let (http_status, errcode) = match failure {
            Failure::Refused(refusal) => (Some(i32::from(refusal.status)), refusal.errcode.clone()),
            Failure::NotSent(_) | Failure::NoAnswer(_) => (None, None),
        };
        metrics::counter!(
            "matrix_send_failure_total",
            "kind" => operation.kind.as_str(),
            "class" => verdict.as_str()
        )
        .increment(1);
        let outcome = verdict::outcome(&verdict, self.backoff, operation.failures, operation.attempts, rand::random());
        let attempt = Attempt { http_status, errcode, detail: Some(failure.to_string()), ..Attempt::default() };
        Ended { outcome, attempt: Some(attempt), found: Vec::new() }
    }

    async fn try_one(&self, conversation_id: ConversationId, operation: &ClaimedOperation) -> Result<Ended, Stop> {
        let room_id = self.rooms.ensure(conversation_id, operation.seq).await?;
        if let Mode::Known(event_id) = &operation.mode {
            let event_id = event_id.clone();
            return Ok(Ended::untried(Outcome::Delivered { event_id, room_id }));
        }
        match operation.kind {
            Kind::Message => {
                let prepared = self.prepare_message(conversation_id, operation)?;
                let event_id = self.put(&room_id, operation, &prepared).await?;
                Ok(Ended::well(Outcome::Delivered { event_id, room_id }))
            }
            Kind::Edit | Kind::Redact | Kind::Invite | Kind::Remove => {
                Err(Stop::Ours(format!("this release does not send {} yet", operation.kind.as_str())))
            }
        }
    }

    fn prepare_message(&self, conversation_id: ConversationId, operation: &ClaimedOperation) -> Result<Prepared, Stop> {
        let missing = || Stop::Ours("the text of the operation is missing".to_owned());
        let place = operation.place(conversation_id).ok_or_else(missing)?;
        let body = operation.body.as_deref().ok_or_else(missing)?;
        let author_id = operation.author_id.ok_or_else(missing)?;
        let text = self.keys.open(place, body).map_err(|error| Stop::Ours(error.to_string()))?;
        let said = Said {
            outbox_id: operation.outbox_id,
            message_id: MessageId::from(operation.subject_id),
            author_id,
            revision: place.revision,
            words: &text,
        };
        prepare::message(said).map_err(|error| Stop::Ours(error.to_string()))
    }

    async fn put(
        &self,
        room_id: &RoomId,
        operation: &ClaimedOperation,
        prepared: &Prepared,
    ) -> Result<EventId, Failure> {
        let began = Instant::now();
        let answer = self.homeserver.send(room_id, prepared.event_type, operation.outbox_id, &prepared.content).await;
        metrics::histogram!("send_seconds").record(began.elapsed().as_secs_f64());
        if answer.is_ok() {
            self.pace.note(began.elapsed());
        }
        answer
    }
}

/// One line and one count for each attempt; a failure is logged here and nowhere else.
fn report(
    conversation_id: ConversationId,
    operation: &ClaimedOperation,
    class: &'static str,
    ended: &Ended,
    took: Duration,
) {
    let Some(attempt) = &ended.attempt else { return };
    let kind = operation.kind.as_str();
    let outcome = ended.outcome.as_str();
    metrics::counter!("outbox_attempts_total", "kind" => kind, "outcome" => outcome).increment(1);
    if ended.outcome.lets_the_next_go() {
        metrics::counter!("matrix_send_success_total", "kind" => kind, "lane_class" => class).increment(1);
        metrics::histogram!("outbox_end_to_end_seconds", "lane_class" => class)
            .record((operation.waited + took).as_secs_f64());
        tracing::debug!(outbox.id = %operation.outbox_id, outbox.kind = kind, "delivered");
    } else {
        tracing::warn!(
            conversation_id = %conversation_id,
            outbox.id = %operation.outbox_id,
            outbox.kind = kind,
            outbox.failures = operation.failures + 1,
            outcome,
            http.status = attempt.http_status,
            matrix.errcode = attempt.errcode.as_deref(),
            error = attempt.detail.as_deref().unwrap_or_default(),
            "Matrix send failed"
        );
    }
}
