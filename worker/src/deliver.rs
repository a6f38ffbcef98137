//! Delivery: from a claimed batch to the outcome of each of its operations.
//!
//! Operations go in order, one at a time, and the first that is not delivered ends the batch: what comes after it must
//! not overtake it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use shared::{
    calls::SignalKind,
    failpoint::{Point, reach},
    ids::{ConversationId, EventId, MatrixUserId, OutboxId, RoomId, UserId},
    metric,
    outbox::{Attempt, Blame, ClaimedOperation, Evidence, Kind, LaneClass, MaybeSent, Mode, Outcome},
    seal::KeyRing,
    trace::Span,
};
use time::OffsetDateTime;

use crate::{
    breaker::Breaker,
    compose::{ComposeError, Composer},
    coordinator::{Batch, Pace, Permission},
    homeserver::{Failure, Homeserver},
    lookup,
    members::{self, Change, Changed},
    prepare::{self, Prepared},
    room::{RoomError, RoomStep, Rooms},
    signalling,
    verdict::{self, History, Verdict},
};

/// What delivery works with.
#[derive(Debug)]
pub(crate) struct Deliverer {
    pub(crate) keys: KeyRing,
    pub(crate) homeserver: Homeserver,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) pace: Arc<Pace>,
    pub(crate) breaker: Arc<Breaker>,
    /// The longest that one request may take.
    pub(crate) http_timeout: Duration,
    /// The first wait after a failure.
    pub(crate) backoff: Duration,
    /// How long a request may still be on its way after its sender gave it up, where nothing closes its transaction.
    pub(crate) lookup_delay: Duration,
}

/// How an operation ended, before it is written into the batch.
struct Ended {
    outcome: Outcome,
    attempt: Option<Attempt>,
}

impl Ended {
    fn well(outcome: Outcome) -> Self {
        Self { outcome, attempt: Some(Attempt::default()) }
    }

    fn untried(outcome: Outcome) -> Self {
        Self { outcome, attempt: None }
    }

    fn after(outcome: Outcome, detail: String) -> Self {
        Self { outcome, attempt: Some(Attempt { detail: Some(detail), ..Attempt::default() }) }
    }
}

/// Why an operation was not sent.
enum Stop {
    /// Something that it needs first failed: the room, a look. The operation itself did not leave.
    Before(Failure),
    /// Its own request failed.
    Itself(Failure),
    /// The lease would not last until the end of the request: another worker will do it.
    Late,
    /// It was not found, but may still be on its way for this long.
    Travelling(Duration),
    /// The room is not there yet: the homeserver may still be making it.
    NotYet(String),
    /// The room is not one to send to.
    Room(String),
    /// Its message stands in a room that the conversation has left, and that takes nothing more.
    Left(Failure),
    /// Something of ours is away or wrong; tried again without blame.
    Ours(String),
}

impl From<ComposeError> for Stop {
    fn from(error: ComposeError) -> Self {
        Self::Ours(error.to_string())
    }
}

impl From<RoomError> for Stop {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Homeserver(failure) => Self::Before(failure),
            RoomError::Database(error) => Self::Ours(format!("database: {error}")),
            RoomError::Late => Self::Late,
            RoomError::NotYet => Self::NotYet(error.to_string()),
            RoomError::NotOurs(_) | RoomError::Shut(_) | RoomError::Gone => Self::Room(error.to_string()),
        }
    }
}

/// The batch that is being sent: its lane, and the events that it has brought about so far.
struct Sending {
    conversation_id: ConversationId,
    class: LaneClass,
    events: HashMap<OutboxId, EventId>,
    permission: Permission,
    /// The attempt under way.
    span: Span,
    /// Set when the operation under way is sent anew.
    anew: Arc<AtomicBool>,
}

impl Sending {
    /// Whether another request may be started: it would end before the lease does.
    fn may_ask(&self, longest: Duration) -> impl Fn() -> bool + Send + Sync + use<> {
        let permission = self.permission.clone();
        move || permission.covers(longest)
    }
}

impl Deliverer {
    /// Sends a batch, as far as it goes.
    pub(crate) async fn deliver(&self, mut batch: Batch) {
        let Some(claimed) = batch.take() else { return };
        reach(Point::BatchTaken);
        let mut sending = Sending {
            conversation_id: claimed.claim.conversation_id,
            class: claimed.claim.class,
            events: HashMap::new(),
            permission: batch.permission(),
            span: Span::default(),
            anew: batch.anew(),
        };
        if let Some(room_id) = &claimed.room_id {
            self.rooms.learn(sending.conversation_id, room_id).await;
        }
        for mut operation in claimed.operations {
            if !sending.permission.next(self.http_timeout) {
                return;
            }
            if operation.mode == Mode::Put {
                // One account speaks for all; what may stand in the room already, stands there as whoever sent it.
                operation.sender = self.homeserver.service_user().to_string();
            }
            let began = Instant::now();
            sending.span = trace_attempt(&operation, sending.class);
            batch.begin(operation.clone());
            let mut found = Vec::new();
            let ended = tokio::select! {
                ended = self.attempt(&sending, &operation, &mut found) => ended,
                // The batch says of what is under way that nobody knows how it ends.
                () = sending.permission.broken_off() => {
                    sending.span.unfinished("broken_off");
                    return;
                }
            };
            let Some(ended) = ended else {
                sending.span.unfinished("not_tried");
                batch.leave();
                return;
            };
            report(&sending, &operation, &ended, began.elapsed());
            if let Outcome::Delivered { event_id, .. } = &ended.outcome {
                self.breaker.delivered();
                sending.events.insert(operation.outbox_id, event_id.clone());
            }
            if !batch.end(ended.outcome, ended.attempt, found) {
                return;
            }
        }
    }

    /// None when it was not tried after all. What is learnt of other operations on the way goes into `found`.
    async fn attempt(
        &self,
        sending: &Sending,
        operation: &ClaimedOperation,
        found: &mut Vec<Evidence>,
    ) -> Option<Ended> {
        match self.carry_out(sending, operation, found).await {
            Ok(ended) => Some(ended),
            Err(stop) => self.stopped(operation, stop),
        }
    }

    fn stopped(&self, operation: &ClaimedOperation, stop: Stop) -> Option<Ended> {
        let retry_in = verdict::backoff(self.backoff, operation.failures, rand::random());
        let ended = match stop {
            Stop::Late => return None,
            Stop::Itself(failure) => self.failed(operation, &failure, |outcome| outcome),
            Stop::Before(failure) => self.failed(operation, &failure, |outcome| match outcome {
                // It did not leave, so nothing is doubtful about it; and what the room does not take is the room's.
                Outcome::Ambiguous { retry_in, .. }
                | Outcome::Refused { retry_in, blame: Blame::Suspect | Blame::Own } => {
                    Outcome::Refused { retry_in, blame: Blame::Passing }
                }
                Outcome::OwnFault { hint } | Outcome::GaveUp { hint } => Outcome::RoomFault { reason: hint.to_owned() },
                outcome => outcome,
            }),
            Stop::Left(failure) => self.failed(operation, &failure, |_| Outcome::OwnFault {
                hint: "the room of its message was replaced and takes nothing more: discard it, or post the text anew",
            }),
            Stop::Travelling(retry_in) => {
                let outcome = Outcome::Refused { retry_in, blame: Blame::Nobody };
                Ended::after(outcome, "not found, but perhaps on its way".to_owned())
            }
            Stop::Room(reason) => Ended::after(Outcome::RoomFault { reason: reason.clone() }, reason),
            Stop::Ours(detail) | Stop::NotYet(detail) => {
                Ended::after(Outcome::Refused { retry_in, blame: Blame::Passing }, detail)
            }
        };
        Some(ended)
    }

    fn failed(
        &self,
        operation: &ClaimedOperation,
        failure: &Failure,
        adjust: impl FnOnce(Outcome) -> Outcome,
    ) -> Ended {
        let verdict = verdict::judge(failure);
        let history = History {
            others_delivered: operation.since_failure.is_some_and(|since| self.breaker.delivered_within(since)),
            ..History::of(operation)
        };
        let outcome = verdict::outcome(&verdict, self.backoff, &history, rand::random());
        count_failure(failure, &verdict);
        Ended { outcome: adjust(outcome), attempt: Some(attempt_of(failure)) }
    }

    async fn carry_out(
        &self,
        sending: &Sending,
        operation: &ClaimedOperation,
        found: &mut Vec<Evidence>,
    ) -> Result<Ended, Stop> {
        let conversation_id = sending.conversation_id;
        let may_ask = sending.may_ask(self.http_timeout);
        let step = RoomStep { conversation_id, may_ask: &may_ask };
        if operation.mode == Mode::Drop {
            return Ok(Ended::untried(Outcome::Expired));
        }
        let was_sent = |invite| sending.events.contains_key(&invite);
        if let (Kind::Call(kind), Some(call)) = (operation.kind, &operation.call)
            && !call.is_heard(kind, was_sent)
        {
            return Ok(Ended::untried(Outcome::NotThere));
        }
        if operation.kind.is_state() {
            return self.change_membership_somewhere(sending, operation, &step).await;
        }
        let room_id = self.rooms.ensure(&step).await?;
        reach(Point::RoomEnsured);
        // What relates to an event goes where that stands, also when the conversation has another room by now.
        let place = related_room(operation).unwrap_or(&room_id);
        match self.send(sending, operation, place, found).await {
            Err(Stop::Itself(failure)) if verdict::judge(&failure) == Verdict::Room => {
                if *place != room_id {
                    return Err(Stop::Left(failure));
                }
                let room_id = self.rooms.reopen(&step, &room_id).await?;
                if related_room(operation).is_some_and(|stands| *stands != room_id) {
                    return Err(Stop::Left(failure));
                }
                self.send(sending, operation, &room_id, found).await
            }
            ended => ended,
        }
    }

    async fn send(
        &self,
        sending: &Sending,
        operation: &ClaimedOperation,
        room_id: &RoomId,
        found: &mut Vec<Evidence>,
    ) -> Result<Ended, Stop> {
        let delivered = |event_id: EventId| Outcome::Delivered { event_id, room_id: room_id.clone() };
        if let Mode::Known(event_id) = &operation.mode {
            return Ok(Ended::untried(delivered(event_id.clone())));
        }
        for left in &operation.maybe_sent_to {
            if let Some(event_id) = self.look_up(operation, left).await? {
                return Ok(Ended::well(Outcome::Delivered { event_id, room_id: left.clone() }));
            }
        }
        match &operation.mode {
            Mode::Close { look_up } => {
                let sent = MaybeSent {
                    kind: operation.kind,
                    revision: operation.revision,
                    sender: operation.sender.clone(),
                    device: operation.device.clone(),
                    at: operation.maybe_sent_at.unwrap_or(operation.enqueued_at),
                    given_up_for: given_up_for(operation),
                    forgotten: *look_up,
                    foreign: operation.foreign,
                };
                let closed = self.close(sending, room_id, operation.outbox_id, &sent).await?;
                return Ok(Ended::well(closed.map_or(Outcome::NotThere, delivered)));
            }
            Mode::LookUp => {
                if let Some(event_id) = self.look_up(operation, room_id).await? {
                    return Ok(Ended::well(delivered(event_id)));
                }
                if operation.foreign {
                    self.has_arrived_by_now(given_up_for(operation))?;
                }
                // From here on it is ours: what is put now is closed, repeated and looked up as such.
                sending.anew.store(true, Ordering::SeqCst);
            }
            Mode::Put | Mode::Drop | Mode::Known(_) => {}
        }
        match operation.kind {
            Kind::Message => {
                let prepared = self.composer(sending, operation).await?.message(operation, room_id)?;
                let event_id = self.put(sending, room_id, operation.outbox_id, &prepared).await?;
                Ok(Ended::well(delivered(event_id)))
            }
            Kind::Edit | Kind::React => {
                let composer = self.composer(sending, operation).await?;
                let Some(original) = composer.original(operation) else { return Ok(Ended::well(Outcome::ParentDead)) };
                let prepared = match operation.kind {
                    Kind::Edit => composer.edit(operation, original)?,
                    _ => composer.reaction(operation, original)?,
                };
                let event_id = self.put(sending, room_id, operation.outbox_id, &prepared).await?;
                Ok(Ended::well(delivered(event_id)))
            }
            Kind::Redact => self.redact(sending, operation, room_id, found).await,
            Kind::Call(kind) => self.signal(sending, operation, kind, room_id).await,
            Kind::Invite | Kind::Remove => Err(Stop::Ours("a state operation is no send".to_owned())),
        }
    }

    /// Says something in a call. An invite is looked at once more just before it leaves: a phone never rings late.
    async fn signal(
        &self,
        sending: &Sending,
        operation: &ClaimedOperation,
        kind: SignalKind,
        room_id: &RoomId,
    ) -> Result<Ended, Stop> {
        let composer = self.composer(sending, operation).await?;
        let Some(prepared) = composer.call(operation, kind)? else {
            // One that may have left before rings perhaps: the next claim closes it, and its hangup follows.
            let outcome = match operation.maybe_sent_at {
                Some(_) => Outcome::Refused { retry_in: Duration::ZERO, blame: Blame::Nobody },
                None => Outcome::Expired,
            };
            return Ok(Ended::untried(outcome));
        };
        let event_id = self.put(sending, room_id, operation.outbox_id, &prepared).await?;
        signalling::candidates_sent(operation, &prepared.content);
        Ok(Ended::well(Outcome::Delivered { event_id, room_id: room_id.clone() }))
    }

    /// Looks for the operation's own event in a room.
    async fn look_up(&self, operation: &ClaimedOperation, room_id: &RoomId) -> Result<Option<EventId>, Stop> {
        self.look(operation.outbox_id, &operation.sender, operation.maybe_sent_at, room_id).await
    }

    /// Looks for what may have been sent in a room.
    async fn look_for(&self, outbox_id: OutboxId, sent: &MaybeSent, room_id: &RoomId) -> Result<Option<EventId>, Stop> {
        self.look(outbox_id, &sent.sender, Some(sent.at), room_id).await
    }

    async fn look(
        &self,
        outbox_id: OutboxId,
        sender: &str,
        since: Option<OffsetDateTime>,
        room_id: &RoomId,
    ) -> Result<Option<EventId>, Stop> {
        metric::LOOKUPS.increment(1);
        reach(Point::LookUpBegins);
        let found = lookup::find(&self.homeserver, room_id, outbox_id, sender, since).await;
        reach(Point::LookUpEnded);
        found.map_err(Stop::Before)
    }

    /// Redacts the event of another operation. If nobody knows whether that one arrived, its transaction is closed first:
    /// then there is an event, and nothing of it can arrive any more.
    async fn redact(
        &self,
        sending: &Sending,
        operation: &ClaimedOperation,
        mut room_id: &RoomId,
        found: &mut Vec<Evidence>,
    ) -> Result<Ended, Stop> {
        let target = operation.target.as_ref().ok_or_else(|| Stop::Ours("a redaction without a target".to_owned()))?;
        let known = target.event.as_ref().map(|(event_id, _)| event_id);
        let known = known.or_else(|| sending.events.get(&target.outbox_id)).cloned();
        let event_id = match (known, &target.maybe_sent) {
            (Some(event_id), _) => event_id,
            (None, None) => return Ok(Ended::well(Outcome::NotThere)),
            (None, Some(sent)) => {
                let mut stands_in = None;
                for left in &target.maybe_sent_to {
                    stands_in = self.look_for(target.outbox_id, sent, left).await?.map(|event_id| (event_id, left));
                    if stands_in.is_some() {
                        break;
                    }
                }
                if stands_in.is_none() {
                    let closed = self.close(sending, room_id, target.outbox_id, sent).await?;
                    stands_in = closed.map(|event_id| (event_id, room_id));
                }
                let Some((event_id, stands_in)) = stands_in else { return Ok(Ended::well(Outcome::NotThere)) };
                room_id = stands_in;
                found.push(Evidence {
                    outbox_id: target.outbox_id,
                    kind: sent.kind,
                    subject_id: operation.subject_id,
                    revision: sent.revision,
                    target_outbox_id: None,
                    event_id: event_id.clone(),
                    room_id: room_id.clone(),
                    sender: sent.sender.clone(),
                });
                event_id
            }
        };
        let content = prepare::redaction(operation.outbox_id).map_err(|error| Stop::Ours(error.to_string()))?;
        if !sending.permission.covers(self.http_timeout) {
            return Err(Stop::Late);
        }
        reach(Point::RedactBegins);
        let redacting = self.homeserver.redact(room_id, &event_id, operation.outbox_id, &content);
        let answer = self.timed(sending, redacting).await;
        reach(Point::RedactAnswered);
        let event_id = answer.map_err(Stop::Itself)?;
        Ok(Ended::well(Outcome::Delivered { event_id, room_id: room_id.clone() }))
    }

    /// Closes a transaction for good: the event that it brought about, or a void that now stands in its place. None when
    /// the homeserver cannot remember transactions for us and it was not found, long after it could have arrived.
    async fn close(
        &self,
        sending: &Sending,
        room_id: &RoomId,
        outbox_id: OutboxId,
        sent: &MaybeSent,
    ) -> Result<Option<EventId>, Stop> {
        if sent.forgotten {
            let found = self.look_for(outbox_id, sent, room_id).await?;
            if found.is_some() {
                return Ok(found);
            }
            // A void of ours would not stand in the way of another device's request.
            if sent.foreign {
                self.has_arrived_by_now(sent.given_up_for)?;
                return Ok(None);
            }
        }
        let void = prepare::void(outbox_id).map_err(|error| Stop::Ours(error.to_string()))?;
        metric::VOIDS.increment(1);
        reach(Point::CloseBegins);
        let event_id = self.put(sending, room_id, outbox_id, &void).await?;
        reach(Point::CloseEnded);
        Ok(Some(event_id))
    }

    /// Whether what was given up so long ago, and is not there, never will be.
    fn has_arrived_by_now(&self, given_up_for: Duration) -> Result<(), Stop> {
        match self.lookup_delay.checked_sub(given_up_for) {
            Some(rest) if !rest.is_zero() => Err(Stop::Travelling(rest)),
            _ => Ok(()),
        }
    }

    /// A change of membership, once more after the room was mended if it is the room's fault that it is refused.
    async fn change_membership_somewhere(
        &self,
        sending: &Sending,
        operation: &ClaimedOperation,
        step: &RoomStep<'_>,
    ) -> Result<Ended, Stop> {
        let Some(room_id) = self.rooms.find(sending.conversation_id).await? else {
            // There is no room: it will be created with the members of that moment.
            return Ok(Ended::well(Outcome::Done));
        };
        let refused = match self.change_membership(sending, operation, &room_id).await {
            Ok(ended) if matches!(ended.outcome, Outcome::OwnFault { .. }) => Ok(ended),
            Err(Stop::Itself(failure)) if verdict::judge(&failure) == Verdict::Room => Err(Stop::Itself(failure)),
            ended => return ended,
        };
        if self.rooms.is_joined(&room_id).await? {
            return refused;
        }
        let room_id = self.rooms.reopen(step, &room_id).await?;
        self.change_membership(sending, operation, &room_id).await
    }

    async fn change_membership(
        &self,
        sending: &Sending,
        operation: &ClaimedOperation,
        room_id: &RoomId,
    ) -> Result<Ended, Stop> {
        let user_id = UserId::from(operation.subject_id);
        let change = if operation.kind == Kind::Invite { Change::Invite } else { Change::Remove };
        // An invitation that waited, or was requeued, until after its removal would let somebody in for good.
        if change == Change::Invite && !self.rooms.is_member(sending.conversation_id, user_id).await? {
            return Ok(Ended::well(Outcome::Done));
        }
        let member = MatrixUserId::of(user_id, self.homeserver.service_user().server());
        let may_ask = sending.may_ask(self.http_timeout);
        match members::change(&self.homeserver, room_id, &member, change, &may_ask).await {
            Changed::Late => Err(Stop::Late),
            Changed::Done => Ok(Ended::well(Outcome::Done)),
            Changed::Failed(failure) => Err(Stop::Itself(failure)),
            Changed::Refused(outcome, failure) => {
                count_failure(&failure, &verdict::judge(&failure));
                Ok(Ended { outcome, attempt: Some(attempt_of(&failure)) })
            }
        }
    }

    async fn composer<'a>(&'a self, sending: &'a Sending, operation: &ClaimedOperation) -> Result<Composer<'a>, Stop> {
        let conversation_id = sending.conversation_id;
        let mut composer = Composer {
            keys: &self.keys,
            server: self.homeserver.service_user().server(),
            conversation_id,
            events: &sending.events,
            contacts: HashMap::new(),
        };
        let mentioned = composer.mentioned(operation)?;
        if !mentioned.is_empty() {
            composer.contacts = self.rooms.contacts(conversation_id, &mentioned).await?;
        }
        Ok(composer)
    }

    async fn put(
        &self,
        sending: &Sending,
        room_id: &RoomId,
        outbox_id: OutboxId,
        prepared: &Prepared,
    ) -> Result<EventId, Stop> {
        // The room and a look-up before it may have taken long.
        if !sending.permission.covers(self.http_timeout) {
            return Err(Stop::Late);
        }
        reach(Point::PutBegins);
        let putting = self.homeserver.send(room_id, prepared.event_type, outbox_id, &prepared.content);
        let answer = self.timed(sending, putting).await;
        reach(Point::PutAnswered);
        answer.map_err(Stop::Itself)
    }

    /// Measures a request and makes it a part of the attempt. The homeserver is not told of the trace: it may be somebody
    /// else's, and has traces of its own.
    async fn timed(
        &self,
        sending: &Sending,
        request: impl Future<Output = Result<EventId, Failure>>,
    ) -> Result<EventId, Failure> {
        let began = Instant::now();
        let span = sending.span.request("PUT");
        let answer = request.await;
        metric::OUTBOX_SEND.with([sending.class.as_str()]).record(began.elapsed().as_secs_f64());
        match &answer {
            Ok(_) => self.pace.note(began.elapsed()),
            Err(failure) => {
                span.set("matrix.errcode", metric::ERRCODES.of(failure.errcode().unwrap_or(metric::NO_ERRCODE)));
                span.failed(verdict::judge(failure).as_str());
            }
        }
        span.end();
        answer
    }
}

/// The wait that an attempt ends, and its own span, in the trace of the request that wrote the operation.
fn trace_attempt(operation: &ClaimedOperation, class: LaneClass) -> Span {
    let claimed_at = operation.enqueued_at + operation.waited;
    Span::of_wait(operation.trace.as_ref(), "wait", claimed_at - operation.queued, claimed_at);
    let span = Span::of_work(operation.trace.as_ref(), "attempt");
    span.set("outbox.id", operation.outbox_id.to_string());
    span.set("outbox.kind", operation.kind.as_str());
    span.set("outbox.failures", i64::from(operation.failures));
    span.set("lane.class", class.as_str());
    span
}

/// How long ago the last attempt ended that anybody knows of.
fn given_up_for(operation: &ClaimedOperation) -> Duration {
    let sent_at = operation.maybe_sent_at.unwrap_or(operation.enqueued_at);
    let age = Duration::try_from(operation.enqueued_at + operation.waited - sent_at).unwrap_or_default();
    operation.since_failure.map_or(age, |since| since.min(age))
}

/// The room of the event that an operation relates to, once that event is known.
fn related_room(operation: &ClaimedOperation) -> Option<&RoomId> {
    let event = match operation.kind {
        Kind::Edit | Kind::React => operation.original.as_ref(),
        Kind::Redact => operation.target.as_ref()?.event.as_ref(),
        Kind::Message | Kind::Invite | Kind::Remove | Kind::Call(_) => None,
    };
    event.map(|(_, room_id)| room_id)
}

fn count_failure(failure: &Failure, verdict: &Verdict) {
    metric::SEND_FAILURE.with([verdict.as_str(), failure.errcode().unwrap_or(metric::NO_ERRCODE)]).increment(1);
}

fn attempt_of(failure: &Failure) -> Attempt {
    let (http_status, errcode) = match failure {
        Failure::Refused(refusal) => (Some(i32::from(refusal.status)), refusal.errcode.clone()),
        Failure::NotSent(_) | Failure::NoAnswer(_) | Failure::NotBuilt(_) => (None, None),
    };
    Attempt { http_status, errcode, detail: Some(failure.to_string()), ..Attempt::default() }
}

/// One line and one count for each attempt; a failure is logged here and nowhere else.
fn report(sending: &Sending, operation: &ClaimedOperation, ended: &Ended, took: Duration) {
    sending.span.set("outcome", ended.outcome.as_str());
    if !ended.outcome.lets_the_next_go() {
        sending.span.failed(ended.outcome.as_str());
    }
    sending.span.end();
    let error = ended.attempt.as_ref().and_then(|attempt| attempt.detail.as_deref());
    let is_told = signalling::report(operation, &ended.outcome, error);
    if let Outcome::Expired = ended.outcome {
        metric::OUTBOX_EXPIRED.increment(1);
    }
    let Some(attempt) = &ended.attempt else { return };
    let (kind, class) = (operation.kind.as_str(), sending.class.as_str());
    let outcome = ended.outcome.as_str();
    metric::OUTBOX_ATTEMPTS.with([kind, outcome]).increment(1);
    metric::OUTBOX_QUEUE_WAIT.with([class]).record(operation.queued.as_secs_f64());
    if ended.outcome.lets_the_next_go() {
        metric::SEND_SUCCESS.with([kind, class]).increment(1);
        metric::OUTBOX_END_TO_END.with([class]).record((operation.waited + took).as_secs_f64());
        tracing::debug!(outbox.id = %operation.outbox_id, outbox.kind = kind, "delivered");
    } else if !is_told {
        tracing::warn!(
            conversation_id = %sending.conversation_id,
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
