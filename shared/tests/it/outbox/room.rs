//! A room of a homeserver that remembers transactions, and a sender that does with a batch what a worker does.
use std::collections::HashMap;

use shared::{
    ids::{EventId, OutboxId},
    outbox::{Attempt, Claimed, ClaimedOperation, Evidence, Kind, Mode, OperationResult, Outcome},
};

use super::world::{End, SENDER, room};

/// What the homeserver answers, and what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted,
    Refused,
    OwnFault,
    RoomFault,
    /// No answer, although it was stored.
    LostStored,
    /// No answer, and it is still on the wire.
    LostTravelling,
    /// No answer, and nothing arrived.
    LostForGood,
    /// The worker dies before it hears the answer.
    Crash,
}

/// A PUT: of a text, of a redaction, or of a void that closes another's transaction.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// What the event will be evidence of; its id is made by the room.
    pub(super) of: Evidence,
    pub(super) void: bool,
    redacts: Option<EventId>,
}

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) of: Evidence,
    pub(super) void: bool,
    pub(super) redacted: bool,
    pub(super) echoed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) events: Vec<Event>,
    memory: HashMap<OutboxId, EventId>,
    /// On the wire, from senders that hear no answer any more.
    pub(super) travelling: Vec<Request>,
}

/// A worker died in the middle of its batch.
#[derive(Debug)]
pub(super) struct Crashed;

impl Room {
    /// An account reacts to a message with a key once.
    fn refuses(&self, request: &Request) -> bool {
        let is_twin = |event: &Event| {
            event.of.kind == Kind::React
                && event.of.subject_id == request.of.subject_id
                && !event.void
                && !event.redacted
        };
        request.of.kind == Kind::React
            && !request.void
            && !self.memory.contains_key(&request.of.outbox_id)
            && self.events.iter().any(is_twin)
    }

    /// Stores an event, unless its transaction is known: then it is the event of that.
    pub(super) fn put(&mut self, request: &Request) -> EventId {
        if let Some(known) = self.memory.get(&request.of.outbox_id) {
            return known.clone();
        }
        let event_id = EventId::from(format!("${}", self.events.len()));
        self.memory.insert(request.of.outbox_id, event_id.clone());
        for event in &mut self.events {
            event.redacted |= request.redacts.as_ref() == Some(&event.of.event_id);
        }
        let of = Evidence { event_id: event_id.clone(), ..request.of.clone() };
        self.events.push(Event { of, void: request.void, redacted: false, echoed: false });
        event_id
    }

    pub(super) fn land(&mut self, n: usize) {
        let request = self.travelling.swap_remove(n);
        if !self.refuses(&request) {
            self.put(&request);
        }
    }

    /// A day passes: no transaction is remembered, and nothing is on the wire any more.
    pub(super) fn forget(&mut self) {
        self.memory.clear();
        self.travelling.clear();
    }

    fn find(&self, marker: OutboxId) -> Option<EventId> {
        self.events.iter().find(|event| event.of.outbox_id == marker).map(|event| event.of.event_id.clone())
    }

    /// Sends a batch in order, up to the first operation that is not delivered.
    pub(super) fn send(
        &mut self,
        claimed: &Claimed,
        mut answer: impl FnMut() -> Answer,
    ) -> Result<Vec<OperationResult>, Crashed> {
        let mut results = Vec::new();
        let mut events = HashMap::new();
        for operation in &claimed.operations {
            let mut found = Vec::new();
            let outcome = match self.send_one(operation, &events, &mut found, &mut answer)? {
                Ok(event_id) => {
                    events.insert(operation.outbox_id, event_id.clone());
                    Outcome::Delivered { event_id, room_id: room() }
                }
                Err(end) => end.of(operation),
            };
            let next = outcome.lets_the_next_go();
            let operation = operation.clone();
            results.push(OperationResult { operation, outcome, attempt: Some(Attempt::default()), found, anew: false });
            if !next {
                break;
            }
        }
        Ok(results)
    }

    fn send_one(
        &mut self,
        operation: &ClaimedOperation,
        events: &HashMap<OutboxId, EventId>,
        found: &mut Vec<Evidence>,
        answer: &mut impl FnMut() -> Answer,
    ) -> Result<Result<EventId, End>, Crashed> {
        let mut request = Request { of: evidence(operation), void: false, redacts: None };
        let look_up = match &operation.mode {
            Mode::Known(event_id) => return Ok(Ok(event_id.clone())),
            Mode::Close { look_up } => {
                request.void = true;
                *look_up
            }
            Mode::Drop => return Ok(Err(End::NotThere)),
            Mode::LookUp => true,
            Mode::Put => false,
        };
        if look_up && let Some(event_id) = self.find(operation.outbox_id) {
            return Ok(Ok(event_id));
        }
        if matches!(operation.kind, Kind::Edit | Kind::React) && !request.void {
            let in_batch = || operation.original_outbox_id.and_then(|original| events.get(&original));
            if operation.original.as_ref().map(|(event_id, _)| event_id).or_else(in_batch).is_none() {
                return Ok(Err(End::ParentDead));
            }
        }
        if operation.kind == Kind::Redact {
            let target = operation.target.as_ref().unwrap();
            let known =
                target.event.clone().map(|(event_id, _)| event_id).or_else(|| events.get(&target.outbox_id).cloned());
            request.redacts = match (known, &target.maybe_sent) {
                (Some(event_id), _) => Some(event_id),
                (None, None) => return Ok(Err(End::NotThere)),
                (None, Some(sent)) => {
                    let of = Evidence {
                        outbox_id: target.outbox_id,
                        kind: sent.kind,
                        revision: sent.revision,
                        target_outbox_id: None,
                        ..request.of.clone()
                    };
                    let closed = match self.find(target.outbox_id).filter(|_| sent.forgotten) {
                        Some(event_id) => event_id,
                        None => match self.perform(&Request { of: of.clone(), void: true, redacts: None }, answer())? {
                            Ok(event_id) => event_id,
                            Err(end) => return Ok(Err(end)),
                        },
                    };
                    found.push(Evidence { event_id: closed.clone(), ..of });
                    Some(closed)
                }
            };
        }
        self.perform(&request, answer())
    }

    fn perform(&mut self, request: &Request, answer: Answer) -> Result<Result<EventId, End>, Crashed> {
        Ok(match answer {
            Answer::Accepted if self.refuses(request) => Err(End::OwnFault),
            Answer::Accepted => Ok(self.put(request)),
            Answer::Refused => Err(End::Refused),
            Answer::OwnFault => Err(End::OwnFault),
            Answer::RoomFault => Err(End::RoomFault),
            Answer::LostForGood => Err(End::Ambiguous),
            Answer::LostStored => {
                if !self.refuses(request) {
                    self.put(request);
                }
                Err(End::Ambiguous)
            }
            Answer::LostTravelling => {
                self.travelling.push(request.clone());
                Err(End::Ambiguous)
            }
            Answer::Crash => {
                self.travelling.push(request.clone());
                return Err(Crashed);
            }
        })
    }
}

fn evidence(operation: &ClaimedOperation) -> Evidence {
    Evidence {
        outbox_id: operation.outbox_id,
        kind: operation.kind,
        subject_id: operation.subject_id,
        revision: operation.revision,
        target_outbox_id: operation.target.as_ref().map(|target| target.outbox_id),
        event_id: EventId::from(String::new()),
        room_id: room(),
        sender: SENDER.to_owned(),
    }
}
