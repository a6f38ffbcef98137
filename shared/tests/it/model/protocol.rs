//! The protocol under test: its precautions, and what all of its transactions share.
//!
//! The transactions are in [`api`](super::api) and [`delivery`](super::delivery). Each function there is one
//! transaction, and has the name of the SQL that it stands for. A statement that locks the lane and the statements
//! after it are one step, because the lane's lock keeps everybody else out.
use super::state::{Due, Kind, MaybeSent, MessageId, Operation, Place, Seq, State};

/// How an operation of a deleted message, or an unknown target of a redaction, is kept from appearing later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    /// PUT an event without content under the operation's own transaction id, with its sender and device: the
    /// homeserver answers with the first event's id if that had arrived, else this one takes its place for ever.
    Void,
    /// Ask whether it is there, for a homeserver that does not deduplicate across event types. A request that still
    /// travels may arrive afterwards: the late evidence is answered by a redaction.
    LookUp,
}

/// The mechanism, with a switch for each of its precautions. `true` is what we build; a test for each shows which law
/// falls without it.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "switches, each tested alone")]
pub(super) struct Protocol {
    pub(super) closing: Closing,
    /// A claim locks the lane in one statement and reads rows and texts in the next. In one statement it would read by
    /// a snapshot that is older than its lock.
    pub(super) claim_reads_after_locking: bool,
    /// The same for a settle, which reads which row is now the first.
    pub(super) settle_reads_after_locking: bool,
    /// `open` falls by the rows that a settle really deleted, since an echo may have taken some.
    pub(super) open_counts_deleted_rows: bool,
    /// A settle changes the lane only under the epoch of its own claim.
    pub(super) epoch_fences_settle: bool,
    /// Who takes over a lane that was never released stamps all rows that may have been handed out `maybe_sent_at`.
    pub(super) takeover_stamps_rows: bool,
    /// `maybe_sent_at` is when the PUT started, not when it was settled.
    pub(super) ambiguous_since_put: bool,
    /// A row with `maybe_sent_at` is not waiting, wherever `frozen_through` stands.
    pub(super) maybe_sent_is_handed: bool,
    /// A requeue leaves `frozen_through` alone.
    pub(super) requeue_keeps_frozen_through: bool,
    /// A claim only raises `frozen_through`.
    pub(super) claim_keeps_frozen_through: bool,
    /// Evidence ends a dead letter.
    pub(super) evidence_ends_dead_letter: bool,
    /// The first evidence of what is no longer live brings the redaction, or the newest text, that the room then lacks.
    pub(super) late_evidence_is_answered: bool,
    /// A redaction without target is looked at again when it is settled.
    pub(super) no_target_is_checked_again: bool,
    /// Edit and delete go by the state of each operation of the message, not by the state of its first.
    pub(super) each_operation_by_its_own_state: bool,
    /// A dead edit never brings back an older text: a newer edit removes it, a requeue moves it to the newest revision,
    /// or is refused if it may have been sent as it was.
    pub(super) newer_edit_supersedes_dead: bool,
    /// A row with evidence is delivered, whatever was answered last.
    pub(super) evidence_beats_verdict: bool,
    /// A batch ends at its first outcome that is not `Delivered`.
    pub(super) batch_stops_at_failure: bool,
    /// An operation of a deleted message that is refused for good is cancelled, not parked.
    pub(super) deleted_is_never_parked: bool,
    /// An edit whose original is a dead letter is requeued with it, not alone.
    pub(super) edit_returns_with_its_message: bool,
    /// Discarding a message discards what is parked for it.
    pub(super) discard_takes_parked_edits: bool,
    /// A lapsed lease is not renewed.
    pub(super) lapsed_lease_stays_lapsed: bool,
    /// A worker starts no request past its own deadline.
    pub(super) deadline_stops_sending: bool,
    /// Our own membership event that contradicts the database enqueues what the database says.
    pub(super) membership_echo_repairs: bool,
    /// An echo settles a live row at once, even while the lane is leased. Not needed for any law: crashes heal sooner.
    pub(super) echo_settles_leased_lane: bool,
    /// The same for a late finisher. Not needed either, and not what we build: it only leaves its evidence, and the
    /// next claim settles.
    pub(super) late_finisher_settles: bool,
}

impl Protocol {
    pub(super) const fn verified(closing: Closing) -> Self {
        Self {
            closing,
            claim_reads_after_locking: true,
            settle_reads_after_locking: true,
            open_counts_deleted_rows: true,
            epoch_fences_settle: true,
            takeover_stamps_rows: true,
            ambiguous_since_put: true,
            maybe_sent_is_handed: true,
            requeue_keeps_frozen_through: true,
            claim_keeps_frozen_through: true,
            evidence_ends_dead_letter: true,
            late_evidence_is_answered: true,
            no_target_is_checked_again: true,
            each_operation_by_its_own_state: true,
            newer_edit_supersedes_dead: true,
            evidence_beats_verdict: true,
            batch_stops_at_failure: true,
            deleted_is_never_parked: true,
            edit_returns_with_its_message: true,
            discard_takes_parked_edits: true,
            lapsed_lease_stays_lapsed: true,
            deadline_stops_sending: true,
            membership_echo_repairs: true,
            echo_settles_leased_lane: true,
            late_finisher_settles: false,
        }
    }

    /// Whether the API may still change this operation in place.
    pub(super) fn waiting(&self, state: &State, seq: Seq) -> bool {
        let operation = &state.operations[seq];
        let handed = seq < state.lane.frozen_through
            || self.maybe_sent_is_handed && operation.maybe_sent != MaybeSent::Never
            || operation.evidence;
        operation.is_live() && !handed
    }

    pub(super) fn enqueue(state: &mut State, operation: Operation) {
        if !state.operations.push(operation) {
            state.overflowed = true;
        } else if operation.is_live() {
            state.lane.open += 1;
            if state.lane.open == 1 && !state.lane.held {
                state.lane.due = Due::Now;
            }
        }
    }
}

/// The due time of the first live row that is `visible`, or null when there is none or the lane is held.
pub(super) fn due(state: &State, visible: impl Fn(Seq) -> bool) -> Due {
    let first = state.operations.indices().find(|&seq| state.operations[seq].is_live() && visible(seq));
    match first {
        Some(seq) if !state.lane.held => {
            if state.operations[seq].backs_off {
                Due::Later
            } else {
                Due::Now
            }
        }
        _ => Due::Never,
    }
}

/// Whether a redaction of `seq` is on its way or was sent.
pub(super) fn redacted(state: &State, seq: Seq) -> bool {
    state.operations.iter().any(|operation| {
        operation.kind == Kind::Redaction
            && operation.target == seq
            && matches!(operation.place, Place::Outbox | Place::Delivered)
    })
}

pub(super) fn redaction(message: MessageId, target: Seq) -> Operation {
    Operation { kind: Kind::Redaction, message, target, ..Operation::default() }
}

/// Moves an operation out of the outbox, or from one place outside it to another.
pub(super) fn take_out(state: &mut State, seq: Seq, place: Place) {
    let operation = &mut state.operations[seq];
    state.lane.open -= i8::from(operation.is_live());
    operation.place = place;
    operation.backs_off = false;
    state.lane.due = due(state, |_| true);
}
