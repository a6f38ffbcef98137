//! The transactions of users and operators.
use super::protocol::{Protocol, due, redaction, take_out};
use super::state::{Due, Kind, MaybeSent, Message, MessageId, Operation, Place, Seq, State};

/// The answer to a delete.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(super) enum Deleted {
    Cancelled,
    Redacting,
}

impl Protocol {
    pub(super) fn post(state: &mut State) -> MessageId {
        let message = state.messages.count();
        state.messages.push(Message { revision: 1, deleted: false, send: state.operations.count() });
        Self::enqueue(state, Operation { kind: Kind::Message, message, revision: 1, ..Operation::default() });
        message
    }

    pub(super) fn edit(&self, state: &mut State, message: MessageId) {
        state.messages[message].revision += 1;
        let Message { revision, send, .. } = state.messages[message];
        let original = state.operations[send];
        let edit = Operation { kind: Kind::Edit, message, revision, ..Operation::default() };
        let edits: Vec<Seq> = state.texts(message).filter(|&seq| seq != send).collect();
        let dead_unsent = |state: &State, seq| {
            state.operations[seq].place == Place::DeadLetters && state.operations[seq].maybe_sent == MaybeSent::Never
        };
        let cancel_dead_unsent = |state: &mut State| {
            for &seq in &edits {
                if dead_unsent(state, seq) {
                    state.operations[seq].place = Place::Cancelled;
                }
            }
        };

        if self.waiting(state, send) {
            state.operations[send].revision = revision;
            for &seq in &edits {
                if self.each_operation_by_its_own_state && self.waiting(state, seq) {
                    take_out(state, seq, Place::Cancelled);
                }
            }
        } else if original.is_live() || original.evidence {
            if self.newer_edit_supersedes_dead {
                cancel_dead_unsent(state);
            }
            match edits.iter().find(|&&seq| self.waiting(state, seq)) {
                Some(&waiting) => state.operations[waiting].revision = revision,
                None => Self::enqueue(state, edit),
            }
        } else if dead_unsent(state, send) {
            state.operations[send].revision = revision;
            if self.each_operation_by_its_own_state {
                cancel_dead_unsent(state);
            }
        } else if original.place == Place::DeadLetters {
            match edits.iter().find(|&&seq| dead_unsent(state, seq)) {
                Some(&parked) => state.operations[parked].revision = revision,
                None => Self::enqueue(state, Operation { place: Place::DeadLetters, out_of_line: true, ..edit }),
            }
        }
        // A discarded message is edited in the database only.
    }

    pub(super) fn delete(&self, state: &mut State, message: MessageId) -> Deleted {
        state.messages[message].deleted = true;
        let send = state.messages[message].send;
        let original_is_sent =
            !self.waiting(state, send) && matches!(state.operations[send].place, Place::Outbox | Place::Delivered);
        let goes_by_own_state = |seq| self.each_operation_by_its_own_state || seq == send || original_is_sent;
        let mut redact = Vec::new();

        for seq in state.texts(message).filter(|&seq| goes_by_own_state(seq)) {
            let operation = state.operations[seq];
            let maybe_sent = operation.maybe_sent != MaybeSent::Never || operation.evidence;
            match operation.place {
                Place::Outbox if self.waiting(state, seq) => {
                    take_out(state, seq, Place::Cancelled);
                    state.operations[seq].promised_unsent = true;
                }
                Place::Outbox | Place::Delivered => redact.push(seq),
                Place::DeadLetters => {
                    state.operations[seq].place = Place::Cancelled;
                    if maybe_sent {
                        redact.push(seq);
                    } else {
                        state.operations[seq].promised_unsent = true;
                    }
                }
                Place::Discarded if maybe_sent => redact.push(seq),
                Place::Discarded | Place::Cancelled => {}
            }
        }
        for &target in &redact {
            Self::enqueue(state, redaction(message, target));
        }
        if redact.is_empty() { Deleted::Cancelled } else { Deleted::Redacting }
    }

    /// Makes the database say that the member is in or out.
    pub(super) fn set_member(state: &mut State, is_member: bool) {
        state.member_in_database = is_member;
        let kind = if is_member { Kind::Invitation } else { Kind::Removal };
        Self::enqueue(state, Operation { kind, ..Operation::default() });
    }

    /// Brings a dead letter back to its place, a message with its parked edits. False: refused, because a newer text
    /// has taken its place, or because it can do nothing without its original.
    pub(super) fn requeue(&self, state: &mut State, seq: Seq) -> bool {
        let Operation { kind, message, .. } = state.operations[seq];
        let original = state.operations[state.messages[message].send].place;
        let is_orphan = kind == Kind::Edit && original == Place::DeadLetters && self.edit_returns_with_its_message;
        if is_orphan || self.superseded(state, seq) {
            return false;
        }
        self.put_back(state, seq);
        if kind == Kind::Message {
            for edit in state.texts(message) {
                if state.operations[edit].place == Place::DeadLetters && !self.superseded(state, edit) {
                    self.put_back(state, edit);
                }
            }
        }
        state.lane.due = due(state, |_| true);
        true
    }

    fn superseded(&self, state: &State, seq: Seq) -> bool {
        let Operation { kind, message, revision, maybe_sent, .. } = state.operations[seq];
        let older_edit = kind == Kind::Edit && revision < state.messages[message].revision;
        self.newer_edit_supersedes_dead && older_edit && maybe_sent != MaybeSent::Never
    }

    fn put_back(&self, state: &mut State, seq: Seq) {
        let newest = state.messages[state.operations[seq].message].revision;
        let operation = &mut state.operations[seq];
        operation.place = Place::Outbox;
        operation.out_of_line = true;
        let never_sent = operation.maybe_sent == MaybeSent::Never && !operation.evidence;
        if operation.kind == Kind::Edit && never_sent && self.newer_edit_supersedes_dead {
            operation.revision = newest;
        }
        state.lane.open += 1;
        if !self.requeue_keeps_frozen_through {
            state.lane.frozen_through = state.lane.frozen_through.min(seq);
        }
    }

    pub(super) fn discard(&self, state: &mut State, seq: Seq) {
        let Operation { kind, message, .. } = state.operations[seq];
        state.operations[seq].place = Place::Discarded;
        if kind == Kind::Message && self.discard_takes_parked_edits {
            for edit in state.texts(message) {
                if state.operations[edit].place == Place::DeadLetters {
                    state.operations[edit].place = Place::Discarded;
                }
            }
        }
    }

    pub(super) fn hold(state: &mut State) {
        state.lane.held = true;
        state.lane.due = Due::Never;
    }

    pub(super) fn resume(state: &mut State) {
        state.lane.held = false;
        state.lane.due = due(state, |_| true);
    }
}
