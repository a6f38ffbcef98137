//! Everything that can happen next in a state.
use super::action::Action;
use super::chance::Chance;
use super::delivery::Attempt;
use super::list::Operations;
use super::protocol::Protocol;
use super::state::{
    Content, Due, Kind, Lease, MaybeSent, Outcome, Phase, Place, Request, RoomEvent, Seq, State, Target, Worker,
    WorkerId,
};

/// A step and where it leads.
pub(super) struct Step {
    pub(super) action: Action,
    pub(super) next: State,
    /// It happens sooner or later if it can: work, time and the homeserver, but no fault and nobody's wish.
    pub(super) fair: bool,
}

/// Collects the steps that leave one state.
pub(super) struct Steps<'a> {
    protocol: &'a Protocol,
    state: &'a State,
    found: &'a mut Vec<Step>,
}

/// Adds all steps that leave `state` to `steps`.
pub(super) fn successors(protocol: &Protocol, state: &State, steps: &mut Vec<Step>) {
    let mut steps = Steps { protocol, state, found: steps };
    steps.users();
    for worker in 0..2 {
        steps.worker(worker);
    }
    steps.leases();
    for index in state.wire.indices() {
        steps.homeserver(index);
    }
    steps.sync();
    steps.time();
    steps.operators();
}

impl Steps<'_> {
    fn fair(&mut self, action: Action, next: State) {
        self.found.push(Step { action, next, fair: true });
    }

    /// A step that costs nothing, and may never happen.
    fn free(&mut self, action: Action, next: State) {
        self.found.push(Step { action, next, fair: false });
    }

    /// A step that happens only as often as the scenario says.
    fn chance(&mut self, chance: Chance, take: impl FnOnce(&mut State) -> Action) {
        if let Some(mut next) = self.state.spend(chance) {
            let action = take(&mut next);
            self.free(action, next);
        }
    }

    fn users(&mut self) {
        let Self { protocol, state, .. } = *self;
        if state.messages.has_room() {
            self.chance(Chance::Post, |next| {
                let seq = next.operations.count();
                Action::Post { message: Protocol::post(next), seq }
            });
        }
        for message in state.messages.indices().filter(|&message| !state.messages[message].deleted) {
            self.chance(Chance::Edit, |next| {
                protocol.edit(next, message);
                Action::Edit { message, revision: next.messages[message].revision }
            });
            self.chance(Chance::Delete, |next| Action::Delete { message, answer: protocol.delete(next, message) });
        }
        let is_member = !state.member_in_database;
        // One at a time: a removal is asked for once the member is in the room.
        if is_member || state.member_in_room {
            self.chance(if is_member { Chance::Invite } else { Chance::Remove }, |next| {
                Protocol::set_member(next, is_member);
                Action::SetMember { is_member }
            });
        }
    }

    fn worker(&mut self, worker: WorkerId) {
        match self.state.worker(worker).phase {
            Phase::Idle => self.claim(worker),
            Phase::Claiming => self.claim_by_snapshot(worker),
            Phase::Ready => self.send(worker),
            Phase::Waiting => self.lose_request(worker),
            Phase::Answered => self.hear(worker),
            Phase::Finished => self.settle(worker),
            Phase::Settling => self.settle_by_snapshot(worker),
        }
        if self.state.worker(worker).phase != Phase::Idle {
            self.chance(Chance::Crash, |next| {
                stop_waiting(next, worker);
                *next.worker_mut(worker) = Worker::default();
                Action::Crash { worker }
            });
        }
    }

    fn claim(&mut self, worker: WorkerId) {
        let Self { protocol, state, .. } = *self;
        // Two idle workers are alike.
        if !Protocol::claimable(state) || worker > 0 && state.worker(0).phase == Phase::Idle {
            return;
        }
        let due = Protocol::due_rows(state);
        for rows in 1..=due.count() {
            let seqs = due.first(rows);
            let mut next = *state;
            if protocol.claim_reads_after_locking {
                protocol.claim(&mut next, worker, seqs, None);
                self.fair(Action::Claim { worker, first: seqs[0], rows }, next);
            } else {
                let rows_read = Protocol::read(state, seqs);
                *next.worker_mut(worker) = Worker { phase: Phase::Claiming, rows: rows_read, ..Worker::default() };
                self.fair(Action::SnapshotClaim { worker, rows }, next);
            }
        }
    }

    fn claim_by_snapshot(&mut self, worker: WorkerId) {
        let Self { protocol, state, .. } = *self;
        let read = state.worker(worker).rows;
        let mut next = *state;
        if Protocol::claimable(state) {
            let seqs: Vec<Seq> = read.iter().map(|row| row.seq).collect();
            protocol.claim(&mut next, worker, &seqs, Some(read));
            self.fair(Action::Claim { worker, first: seqs[0], rows: read.count() }, next);
        } else {
            *next.worker_mut(worker) = Worker::default();
            self.fair(Action::ClaimInVain { worker }, next);
        }
    }

    fn send(&mut self, worker: WorkerId) {
        let Self { protocol, state, .. } = *self;
        let seq = state.worker(worker).row().seq;
        let mut next = *state;
        if protocol.deadline_stops_sending && state.worker(worker).overslept {
            Protocol::hand_back(next.worker_mut(worker));
            self.fair(Action::HandBack { worker }, next);
            return;
        }
        match protocol.attempt(state, worker) {
            Attempt::Done(outcome) => {
                protocol.record(next.worker_mut(worker), outcome);
                // Membership was as it should be. If this operation ever acts, it repairs what came later.
                next.operations[seq].out_of_line |= !state.operations[seq].kind.is_send();
                self.fair(Action::SendNothing { worker, seq, outcome }, next);
            }
            Attempt::Send(target, content) => {
                if next.wire.push(Request { seq: target, content, waiter: Some(worker) }) {
                    next.worker_mut(worker).phase = Phase::Waiting;
                    if target != seq {
                        next.worker_mut(worker).target = Target::Closing;
                    }
                    self.fair(Action::Send { worker, seq: target, content }, next);
                }
            }
        }
        self.chance(Chance::HandBack, |next| {
            Protocol::hand_back(next.worker_mut(worker));
            Action::HandBack { worker }
        });
    }

    fn lose_request(&mut self, worker: WorkerId) {
        let Self { protocol, state, .. } = *self;
        let seq = state.worker(worker).row().seq;
        self.chance(Chance::LoseAnswer, |next| {
            stop_waiting(next, worker);
            protocol.record(next.worker_mut(worker), Outcome::Ambiguous);
            Action::HearNothing { worker, seq, travels: true }
        });
    }

    fn hear(&mut self, worker: WorkerId) {
        let Self { protocol, state, .. } = *self;
        let Worker { answer, target, .. } = *state.worker(worker);
        let seq = state.worker(worker).row().seq;
        let mut next = *state;
        let listener = next.worker_mut(worker);
        if target == Target::Closing && answer == Outcome::Delivered {
            let known = Worker { phase: Phase::Ready, answer: Outcome::Untried, target: Target::Known, ..*listener };
            *listener = known;
        } else {
            protocol.record(listener, answer);
        }
        self.fair(Action::Hear { worker, seq, answer }, next);
        if answer == Outcome::Delivered {
            self.chance(Chance::LoseAnswer, |next| {
                protocol.record(next.worker_mut(worker), Outcome::Ambiguous);
                Action::HearNothing { worker, seq, travels: false }
            });
        }
    }

    fn settle(&mut self, worker: WorkerId) {
        let Self { protocol, state, .. } = *self;
        let current = state.worker(worker).current;
        let mut next = *state;
        if protocol.settle_reads_after_locking || !current {
            protocol.settle(&mut next, worker);
            self.fair(Action::Settle { worker, current }, next);
        } else {
            let mut snapshot = Operations::default();
            for seq in state.operations.indices().filter(|&seq| state.operations[seq].is_live()) {
                snapshot.insert(seq);
            }
            next.worker_mut(worker).phase = Phase::Settling;
            next.worker_mut(worker).snapshot = snapshot;
            self.fair(Action::SnapshotSettle { worker }, next);
        }
    }

    fn settle_by_snapshot(&mut self, worker: WorkerId) {
        let mut next = *self.state;
        let current = next.worker(worker).current;
        self.protocol.settle(&mut next, worker);
        self.fair(Action::Settle { worker, current }, next);
    }

    fn leases(&mut self) {
        let Self { protocol, state, .. } = *self;
        let owner = (0..2).find(|&worker| state.worker(worker).current);
        match (state.lane.lease, owner) {
            (Lease::Held, None) => {
                let mut next = *state;
                next.lane.lease = Lease::Lapsed;
                self.fair(Action::Lapse { dead: true }, next);
            }
            (Lease::Held, Some(_)) => self.chance(Chance::Lapse, |next| {
                next.lane.lease = Lease::Lapsed;
                Action::Lapse { dead: false }
            }),
            (Lease::Lapsed, Some(worker)) if !protocol.lapsed_lease_stays_lapsed => {
                let mut next = *state;
                next.lane.lease = Lease::Held;
                // Its deadline moves with the lease. What was tried before stays as old as it is.
                next.worker_mut(worker).overslept &= state.worker(worker).phase != Phase::Ready;
                self.free(Action::RenewLapsed { worker }, next);
            }
            _ => {}
        }
    }

    /// The request at `index` reaches the homeserver.
    fn homeserver(&mut self, index: u8) {
        let state = self.state;
        let Request { seq, content, waiter } = state.wire[index];
        let travelled = waiter.is_none();
        let kind = state.operations[seq].kind;
        let answered = |answer: Outcome| {
            let mut next = *state;
            next.wire.remove(index);
            if let Some(worker) = waiter {
                next.worker_mut(worker).phase = Phase::Answered;
                next.worker_mut(worker).answer = answer;
            }
            next
        };

        let mut next = answered(Outcome::Delivered);
        if kind.is_send() && state.remembered.contains(seq) {
            self.fair(Action::Recognise { seq }, next);
        } else {
            store(&mut next, seq, content);
            self.fair(Action::Store { seq, content, travelled }, next);
        }

        if travelled {
            self.free(Action::NeverArrive { seq }, answered(Outcome::Untried));
            return;
        }
        let refusals = [
            (Chance::Refuse, Outcome::Refused),
            (Chance::OwnFault, Outcome::OwnFault),
            (Chance::RoomFault, Outcome::RoomFault),
        ];
        for (chance, answer) in refusals {
            self.chance(chance, |next| {
                *next = State { budget: next.budget, ..answered(answer) };
                Action::Refuse { seq, answer }
            });
        }
    }

    fn sync(&mut self) {
        let state = self.state;
        if state.synced < state.room.count() {
            let seq = state.room[state.synced].seq;
            let mut next = *state;
            next.synced += 1;
            self.protocol.echo(&mut next, seq);
            self.fair(Action::Echo { seq }, next);
        }
    }

    fn time(&mut self) {
        let state = self.state;
        if state.operations.iter().any(|operation| operation.backs_off) {
            let mut next = *state;
            end_backoff(&mut next);
            self.fair(Action::EndBackoff, next);
        }
        // No request takes a day.
        let quiet = |worker: &Worker| !matches!(worker.phase, Phase::Waiting | Phase::Answered);
        if state.wire.is_empty() && state.workers.iter().all(quiet) {
            self.chance(Chance::Forget, |next| {
                forget(next);
                Action::Forget
            });
        }
    }

    fn operators(&mut self) {
        let Self { protocol, state, .. } = *self;
        for seq in state.operations.indices().filter(|&seq| state.operations[seq].place == Place::DeadLetters) {
            if let Some(mut next) = state.spend(Chance::Requeue)
                && protocol.requeue(&mut next, seq)
            {
                self.free(Action::Requeue { seq }, next);
            }
            self.chance(Chance::Discard, |next| {
                protocol.discard(next, seq);
                Action::Discard { seq }
            });
        }
        if state.lane.held {
            let mut next = *state;
            Protocol::resume(&mut next);
            self.free(Action::Resume, next);
        } else {
            self.chance(Chance::Hold, |next| {
                Protocol::hold(next);
                Action::Hold
            });
        }
    }
}

/// The worker's request travels on without it.
fn stop_waiting(state: &mut State, worker: WorkerId) {
    for request in state.wire.iter_mut().filter(|request| request.waiter == Some(worker)) {
        request.waiter = None;
    }
}

/// The homeserver takes a request whose transaction id it does not know.
fn store(state: &mut State, seq: Seq, content: Content) {
    let operation = state.operations[seq];
    match operation.kind {
        Kind::Removal if !state.member_in_room => return,
        Kind::Invitation if state.member_in_room => return,
        Kind::Removal | Kind::Invitation => state.member_in_room = operation.kind == Kind::Invitation,
        Kind::Redaction => {
            for event in state.room.iter_mut().filter(|event| event.seq == operation.target) {
                event.redacted = true;
            }
            state.remembered.insert(seq);
        }
        Kind::Message | Kind::Edit => state.remembered.insert(seq),
    }
    state.overflowed |= !state.room.push(RoomEvent { seq, content, redacted: false });
}

fn end_backoff(state: &mut State) {
    for operation in state.operations.iter_mut() {
        operation.backs_off = false;
    }
    if state.lane.due == Due::Later {
        state.lane.due = Due::Now;
    }
}

/// 25 hours pass: longer than any backoff, any lease, and the homeserver's memory.
fn forget(state: &mut State) {
    end_backoff(state);
    state.remembered = Operations::default();
    if state.lane.lease != Lease::Released {
        state.lane.lease = Lease::Lapsed;
        state.lane.claimed_long_ago = true;
    }
    for operation in state.operations.iter_mut().filter(|operation| operation.maybe_sent != MaybeSent::Never) {
        operation.maybe_sent = MaybeSent::LongAgo;
    }
    for worker in state.workers.iter_mut().filter(|worker| worker.phase != Phase::Idle) {
        worker.overslept = true;
    }
}
