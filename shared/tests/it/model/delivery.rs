//! The transactions of workers: claim, attempt, settle, and what the room tells.
use super::list::List;
use super::protocol::{Closing, Protocol, due, redacted, redaction, take_out};
use super::state::{
    BATCH, Content, Due, Kind, Lane, Lease, MaybeSent, Message, MessageId, Mode, Operation, Outcome, Phase, Place, Row,
    Seq, State, Target, Worker, WorkerId,
};

/// What an attempt comes to, before anything is sent.
#[derive(Clone, Copy)]
pub(super) enum Attempt {
    Send(Seq, Content),
    /// Nothing is to be sent.
    Done(Outcome),
}

impl Protocol {
    pub(super) fn claimable(state: &State) -> bool {
        state.lane.due == Due::Now && !state.lane.held && state.lane.lease != Lease::Held
    }

    /// The rows that a claim may hand out: the first live ones, up to the first that is not due.
    pub(super) fn due_rows(state: &State) -> List<Seq, BATCH> {
        let mut rows = List::default();
        for seq in state.operations.indices().filter(|&seq| state.operations[seq].is_live()) {
            if state.operations[seq].backs_off || !rows.push(seq) {
                break;
            }
        }
        rows
    }

    /// What a claim reads about its rows.
    pub(super) fn read(state: &State, seqs: &[Seq]) -> List<Row, BATCH> {
        let mut rows = List::default();
        for &seq in seqs {
            let operation = &state.operations[seq];
            let deleted = operation.kind.is_text() && state.messages[operation.message].deleted;
            let mode = match (deleted, operation.maybe_sent) {
                _ if operation.evidence => Mode::SettleOnly,
                (true, MaybeSent::LongAgo) => Mode::LookUpThenClose,
                (true, _) => Mode::Close,
                (false, MaybeSent::LongAgo) if operation.kind.is_send() => Mode::LookUpThenPut,
                (false, _) => Mode::Put,
            };
            rows.push(Row { seq, revision: operation.revision, mode, outcome: Outcome::Untried });
        }
        rows
    }

    /// `earlier` is what a claim in one statement read before it had the lock.
    pub(super) fn claim(&self, state: &mut State, worker: WorkerId, seqs: &[Seq], earlier: Option<List<Row, BATCH>>) {
        if state.lane.lease == Lease::Lapsed && self.takeover_stamps_rows {
            let since = if state.lane.claimed_long_ago { MaybeSent::LongAgo } else { MaybeSent::Lately };
            let handed = state.lane.frozen_through;
            for operation in state.operations.iter_mut().take(usize::from(handed)).filter(|o| o.is_live()) {
                if operation.maybe_sent == MaybeSent::Never {
                    operation.maybe_sent = since;
                }
            }
        }
        let handed = seqs.iter().map(|seq| seq + 1).max().unwrap_or(0);
        let Lane { frozen_through, .. } = state.lane;
        state.lane = Lane {
            lease: Lease::Held,
            claimed_long_ago: false,
            frozen_through: if self.claim_keeps_frozen_through { frozen_through.max(handed) } else { handed },
            ..state.lane
        };
        for other in &mut state.workers {
            other.current = false;
        }
        let rows = earlier.unwrap_or_else(|| Self::read(state, seqs));
        *state.worker_mut(worker) = Worker { phase: Phase::Ready, current: true, rows, ..Worker::default() };
    }

    /// What is to be done next with the row at hand. A look-up is one step with what follows from it: what it finds
    /// stays there, and the request that follows a look-up in vain may be on its way for as long as it likes.
    pub(super) fn attempt(&self, state: &State, worker: WorkerId) -> Attempt {
        let worker = state.worker(worker);
        let Row { seq, revision, mode, .. } = worker.row();
        let operation = &state.operations[seq];
        let content = if operation.kind.is_text() { Content::Revision(revision) } else { Content::Bare };
        let known = |seq: Seq| state.operations[seq].evidence || worker.has_delivered(seq);

        match mode {
            Mode::SettleOnly => return Attempt::Done(Outcome::Delivered),
            Mode::Close | Mode::LookUpThenClose => {
                let closed = self.close(state, seq, mode == Mode::LookUpThenClose);
                return closed.unwrap_or(Attempt::Done(Outcome::NotFound));
            }
            Mode::LookUpThenPut if state.in_room(seq) => return Attempt::Done(Outcome::Delivered),
            Mode::LookUpThenPut | Mode::Put => {}
        }
        match operation.kind {
            Kind::Edit if known(state.messages[operation.message].send) => {}
            Kind::Edit => return Attempt::Done(Outcome::ParentDead),
            Kind::Redaction if worker.target == Target::Known || known(operation.target) => {}
            Kind::Redaction => {
                let target = operation.target;
                match self.close(state, target, state.operations[target].maybe_sent == MaybeSent::LongAgo) {
                    Some(Attempt::Done(_)) => {}
                    Some(void) => return void,
                    None => return Attempt::Done(Outcome::NoTarget),
                }
            }
            // There is no transaction id for these: they look, and act only if the room differs.
            Kind::Removal if !state.member_in_room => return Attempt::Done(Outcome::Delivered),
            Kind::Invitation if state.member_in_room => return Attempt::Done(Outcome::Delivered),
            Kind::Message | Kind::Removal | Kind::Invitation => {}
        }
        Attempt::Send(seq, content)
    }

    /// Finds the event of `seq`, or keeps it from ever appearing. None: not there now, and nothing was done about
    /// later.
    fn close(&self, state: &State, seq: Seq, look_up_first: bool) -> Option<Attempt> {
        if (look_up_first || self.closing == Closing::LookUp) && state.in_room(seq) {
            Some(Attempt::Done(Outcome::Delivered))
        } else {
            (self.closing == Closing::Void).then_some(Attempt::Send(seq, Content::Void))
        }
    }

    /// Writes down what became of the row at hand, and goes on to the next one or to the settle.
    pub(super) fn record(&self, worker: &mut Worker, outcome: Outcome) {
        let position = worker.position;
        worker.rows[position].outcome = outcome;
        worker.answer = Outcome::Untried;
        worker.target = Target::Untouched;
        let goes_on = outcome == Outcome::Delivered || outcome == Outcome::OwnFault && !self.batch_stops_at_failure;
        worker.position += u8::from(goes_on);
        let more = goes_on && worker.position < worker.rows.count();
        worker.phase = if more { Phase::Ready } else { Phase::Finished };
    }

    /// Leaves the rows that were not tried as they are.
    pub(super) fn hand_back(worker: &mut Worker) {
        worker.phase = Phase::Finished;
    }

    pub(super) fn settle(&self, state: &mut State, worker: WorkerId) {
        let Worker { current, overslept, rows, snapshot, phase, .. } = std::mem::take(state.worker_mut(worker));
        if !current && self.epoch_fences_settle {
            for row in rows.iter().filter(|row| row.outcome == Outcome::Delivered) {
                self.evidence(state, row.seq, self.late_finisher_settles);
            }
            return;
        }
        // Only this much of the lane is known to have been sent, or perhaps.
        let mut sent_through = 0;
        for &row in rows.iter() {
            if self.settle_row(state, row, overslept) {
                sent_through = sent_through.max(row.seq + 1);
            }
        }
        for seq in (0..state.lane.frozen_through).filter(|&seq| state.operations[seq].is_live()) {
            if state.operations[seq].maybe_sent != MaybeSent::Never {
                sent_through = sent_through.max(seq + 1);
            }
        }
        if current {
            state.lane.lease = Lease::Released;
            state.lane.frozen_through = state.lane.frozen_through.min(sent_through);
        }
        let visible = |seq| phase != Phase::Settling || snapshot.contains(seq);
        state.lane.due = due(state, visible);
    }

    /// Returns whether the row was sent, or perhaps.
    fn settle_row(&self, state: &mut State, row: Row, overslept: bool) -> bool {
        let Row { seq, mode, outcome, .. } = row;
        let operation = state.operations[seq];
        if !operation.is_live() {
            if outcome == Outcome::Delivered {
                self.evidence(state, seq, true);
                state.lane.open -= i8::from(!self.open_counts_deleted_rows);
            }
            return outcome == Outcome::Delivered;
        }
        let out_of_line = |state: &mut State, place| {
            take_out(state, seq, place);
            state.operations[seq].out_of_line = true;
        };
        match outcome {
            Outcome::Untried => return false,
            Outcome::Delivered => delivered(state, seq),
            _ if operation.evidence && self.evidence_beats_verdict => delivered(state, seq),
            Outcome::Refused => {
                state.operations[seq].backs_off = true;
                return false;
            }
            Outcome::Ambiguous => {
                let since = if overslept && self.ambiguous_since_put { MaybeSent::LongAgo } else { MaybeSent::Lately };
                let operation = &mut state.operations[seq];
                operation.backs_off = true;
                if operation.maybe_sent != MaybeSent::LongAgo {
                    operation.maybe_sent = since;
                }
            }
            Outcome::RoomFault => {
                state.lane.held = true;
                return false;
            }
            Outcome::NoTarget if self.no_target_is_checked_again && state.operations[operation.target].evidence => {
                return false;
            }
            Outcome::NotFound | Outcome::NoTarget => {
                out_of_line(state, Place::Cancelled);
                return false;
            }
            Outcome::OwnFault | Outcome::ParentDead => {
                // Later words would reach whom they must not.
                if !operation.kind.is_text() || matches!(mode, Mode::Close | Mode::LookUpThenClose) {
                    state.lane.held = true;
                } else if state.messages[operation.message].deleted && self.deleted_is_never_parked {
                    out_of_line(state, Place::Cancelled);
                } else {
                    out_of_line(state, Place::DeadLetters);
                    if operation.kind == Kind::Message {
                        park_edits(state, operation.message);
                    }
                }
                return false;
            }
        }
        true
    }

    /// Notes that an event of `seq` is in the room. Whoever is the first to say so looks what the room now lacks.
    fn evidence(&self, state: &mut State, seq: Seq, settles: bool) {
        let first = !state.operations[seq].evidence;
        state.operations[seq].evidence = true;
        if state.operations[seq].is_live() {
            if settles {
                delivered(state, seq);
            }
        } else if first {
            if self.evidence_ends_dead_letter || state.operations[seq].place != Place::DeadLetters {
                delivered(state, seq);
            }
            if self.late_evidence_is_answered && state.operations[seq].kind.is_text() {
                self.answer_late_evidence(state, seq);
            }
        }
    }

    fn answer_late_evidence(&self, state: &mut State, seq: Seq) {
        let Operation { message, revision: shown, .. } = state.operations[seq];
        let Message { revision, deleted, .. } = state.messages[message];
        if deleted {
            if !redacted(state, seq) {
                Self::enqueue(state, redaction(message, seq));
            }
        } else if shown < revision && !self.newest_text_follows(state, seq) {
            Self::enqueue(state, Operation { kind: Kind::Edit, message, revision, ..Operation::default() });
        }
    }

    /// Whether an edit to the newest revision will follow `seq` by itself.
    fn newest_text_follows(&self, state: &State, seq: Seq) -> bool {
        let Operation { kind, message, .. } = state.operations[seq];
        state.texts(message).any(|other| {
            let edit = &state.operations[other];
            let parked_or_live = matches!(edit.place, Place::Outbox | Place::DeadLetters);
            other != seq
                && edit.kind == Kind::Edit
                && edit.revision == state.messages[message].revision
                && (self.waiting(state, other) || kind == Kind::Message && parked_or_live)
        })
    }

    /// The sync sees an event that we sent.
    pub(super) fn echo(&self, state: &mut State, seq: Seq) {
        let kind = state.operations[seq].kind;
        if kind.is_send() {
            self.evidence(state, seq, self.echo_settles_leased_lane || state.lane.lease != Lease::Held);
        } else if self.membership_echo_repairs && (kind == Kind::Invitation) != state.member_in_database {
            let already = |seq| !state.operations[seq].kind.is_send() && self.waiting(state, seq);
            if !state.operations.indices().any(already) {
                Self::set_member(state, state.member_in_database);
            }
        }
    }
}

fn delivered(state: &mut State, seq: Seq) {
    take_out(state, seq, Place::Delivered);
    state.operations[seq].evidence = true;
    // Nobody asks any more.
    state.operations[seq].maybe_sent = MaybeSent::Never;
}

/// A message that dies takes its live edits with it.
fn park_edits(state: &mut State, message: MessageId) {
    for seq in state.texts(message) {
        if state.operations[seq].is_live() {
            take_out(state, seq, Place::DeadLetters);
            state.operations[seq].out_of_line = true;
        }
    }
}
