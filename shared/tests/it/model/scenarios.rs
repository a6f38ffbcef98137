//! The scenarios, and what each precaution of the protocol is for.
use super::chance::Budget;
use super::chance::Chance::{
    Crash, Delete, Discard, Edit, Forget, HandBack, Hold, Invite, Lapse, LoseAnswer, OwnFault, Post, Refuse, Remove,
    Requeue, RoomFault,
};
use super::explore::{Report, explore};
use super::laws::Law;
use super::protocol::{Closing, Protocol};

/// A scenario is a module with its budget and a test.
macro_rules! scenarios {
    ($($(#[$attribute:meta])* $name:ident: $chances:expr,)*) => {$(
        mod $name {
            use super::*;

            pub(super) fn budget() -> Budget {
                Budget::of(&$chances)
            }

            #[test]
            $(#[$attribute])*
            fn every_law_holds() {
                all_laws_hold(stringify!($name), &Protocol::verified(Closing::Void), budget());
                // The other way to close what must not appear is another protocol only where something is deleted.
                if $chances.iter().any(|&(chance, _)| chance == Delete) {
                    all_laws_hold(stringify!($name), &Protocol::verified(Closing::LookUp), budget());
                }
            }
        }
    )*};
}

scenarios! {
    deleted_around_a_crash: [(Post, 1), (Edit, 1), (Delete, 1), (Crash, 1), (Lapse, 1), (LoseAnswer, 1)],
    deleted_while_dead: [(Post, 1), (Edit, 1), (Delete, 1), (Refuse, 1), (OwnFault, 1), (Requeue, 1), (Lapse, 1)],
    edits_that_die: [(Post, 1), (Edit, 2), (OwnFault, 1), (Lapse, 1), (Requeue, 1), (Refuse, 1)],
    two_messages_one_deleted: [(Post, 2), (Delete, 1), (Lapse, 1), (Refuse, 1), (LoseAnswer, 1)],
    two_messages_one_edited: [(Post, 2), (Edit, 1), (Lapse, 1), (LoseAnswer, 1), (Refuse, 1)],
    requeued_behind_another: [(Post, 2), (OwnFault, 1), (Requeue, 1), (Lapse, 1), (Delete, 1), (Refuse, 1)],
    refused_twice: [(Post, 1), (Edit, 1), (Delete, 1), (OwnFault, 2), (Requeue, 2), (Lapse, 1)],
    discarded: [(Post, 1), (Edit, 1), (OwnFault, 1), (Discard, 1), (Lapse, 1), (LoseAnswer, 1), (Delete, 1)],
    edits_requeued_and_discarded:
        [(Post, 1), (Edit, 2), (OwnFault, 2), (Discard, 1), (Requeue, 1), (Delete, 1), (LoseAnswer, 1)],
    held_by_operator_and_room: [(Post, 2), (OwnFault, 1), (Requeue, 1), (Hold, 1), (Lapse, 1), (RoomFault, 1)],
    redaction_refused: [(Post, 1), (Delete, 1), (Edit, 1), (OwnFault, 2), (LoseAnswer, 1), (Hold, 1)],
    handed_back: [(Post, 2), (Edit, 1), (Delete, 1), (HandBack, 1), (Crash, 1)],
    two_late_finishers: [(Post, 2), (Delete, 1), (Lapse, 2), (LoseAnswer, 1)],
    deleted_over_a_day: [(Post, 1), (Delete, 1), (Crash, 1), (Forget, 1), (LoseAnswer, 1)],
    crashed_twice_over_a_day: [(Post, 2), (Crash, 2), (Forget, 1), (Refuse, 1)],
    edited_over_a_day: [(Post, 1), (Edit, 1), (Lapse, 1), (LoseAnswer, 1), (Forget, 1)],
    requeued_over_a_day: [(Post, 1), (OwnFault, 1), (Requeue, 1), (LoseAnswer, 1), (Forget, 1), (Delete, 1)],
    discarded_over_a_day:
        [(Post, 1), (Edit, 1), (OwnFault, 1), (Discard, 1), (Delete, 1), (LoseAnswer, 1), (Forget, 1)],
    removed_between_messages: [(Post, 2), (Remove, 1), (Lapse, 1), (LoseAnswer, 1)],
    removed_and_invited: [(Post, 1), (Remove, 1), (Invite, 1), (LoseAnswer, 1)],
    removed_and_invited_by_two_workers: [(Post, 1), (Remove, 1), (Invite, 1), (LoseAnswer, 1), (Lapse, 1)],
    removed_twice: [(Remove, 2), (Invite, 1), (LoseAnswer, 1), (Crash, 1)],

    #[ignore = "half a minute"]
    large_edited_deleted_and_requeued: [(Post, 2), (Edit, 1), (Delete, 1), (OwnFault, 1), (Requeue, 1), (Crash, 1)],
    #[ignore = "half a minute"]
    large_held_around_a_crash:
        [(Post, 2), (Delete, 1), (Crash, 1), (Lapse, 1), (OwnFault, 1), (Requeue, 1), (Hold, 1)],
    #[ignore = "minutes, and 1 GB of memory"]
    large_every_answer:
        [(Post, 2), (Edit, 1), (Delete, 1), (Lapse, 1), (LoseAnswer, 1), (Refuse, 1), (OwnFault, 1)],
    #[ignore = "minutes, and 2 GB of memory"]
    large_edits_and_late_finishers:
        [(Post, 1), (Edit, 2), (Delete, 1), (Lapse, 2), (OwnFault, 1), (Requeue, 1), (LoseAnswer, 1)],
}

#[track_caller]
fn all_laws_hold(scenario: &str, protocol: &Protocol, budget: Budget) {
    let Report { states, at_rest, spent_all, violation, truncated } = explore(protocol, budget);
    println!("{scenario}, {:?}: {states} states, {at_rest} of them at rest", protocol.closing);
    if let Some(violation) = violation {
        panic!("{scenario}, {:?}: {violation}", protocol.closing);
    }
    assert!(!truncated, "{scenario} passes the model's bounds, and was not explored to its end");
    assert!(spent_all, "{scenario} offers chances that cannot all be taken");
}

/// The protocol without one precaution breaks `law`, and no other law is broken in fewer steps. `--nocapture` prints
/// the trace.
#[track_caller]
fn falls(law: Law, budget: Budget, switch_off: fn(&mut Protocol)) {
    falls_with(Closing::Void, law, budget, switch_off);
}

#[track_caller]
fn falls_with(closing: Closing, law: Law, budget: Budget, switch_off: fn(&mut Protocol)) {
    let mut protocol = Protocol::verified(closing);
    switch_off(&mut protocol);
    let violation = explore(&protocol, budget).violation.expect("no law falls without this precaution");
    println!("{violation}");
    assert_eq!(violation.law, law, "{violation}");
}

/// A precaution that no law needs, as far as this scenario goes.
#[track_caller]
fn is_not_missed(budget: Budget, switch: fn(&mut Protocol)) {
    let mut protocol = Protocol::verified(Closing::Void);
    switch(&mut protocol);
    all_laws_hold("without a precaution", &protocol, budget);
}

// --- Claim and settle ------------------------------------------------------------------------------------------------

#[test]
fn without_two_statement_settle_a_wake_up_is_lost() {
    falls(Law::DueWithFirstRow, held_by_operator_and_room::budget(), |p| p.settle_reads_after_locking = false);
}

#[test]
fn without_two_statement_claim_deleted_text_is_sent() {
    falls(Law::CancelledNeverLeaves, two_messages_one_deleted::budget(), |p| p.claim_reads_after_locking = false);
}

#[test]
fn without_two_statement_claim_replaced_text_is_sent() {
    falls(Law::RoomShowsNewestText, edits_that_die::budget(), |p| p.claim_reads_after_locking = false);
}

#[test]
fn without_counting_deleted_rows_open_falls_below_what_is_live() {
    falls(Law::OpenCountsLiveRows, two_messages_one_edited::budget(), |p| p.open_counts_deleted_rows = false);
}

#[test]
fn without_epoch_fence_a_late_finisher_frees_what_the_next_owner_sends() {
    falls(Law::CancelledNeverLeaves, deleted_while_dead::budget(), |p| p.epoch_fences_settle = false);
}

#[test]
fn without_stop_at_first_failure_a_late_request_overtakes() {
    falls(Law::InOrder, requeued_behind_another::budget(), |p| p.batch_stops_at_failure = false);
}

#[test]
fn without_evidence_over_verdict_the_delivered_dies() {
    falls(Law::DeliveredNeverDies, held_by_operator_and_room::budget(), |p| p.evidence_beats_verdict = false);
}

// --- What counts as handed to a sender -------------------------------------------------------------------------------

#[test]
fn without_stamps_at_takeover_a_cancelled_message_is_sent() {
    falls(Law::CancelledNeverLeaves, deleted_while_dead::budget(), |p| p.takeover_stamps_rows = false);
}

#[test]
fn without_stamps_at_takeover_an_old_text_stays() {
    falls(Law::RoomShowsNewestText, edits_that_die::budget(), |p| p.takeover_stamps_rows = false);
}

#[test]
fn without_stamps_at_takeover_a_day_doubles_a_message() {
    falls(Law::OnceInTheRoom, crashed_twice_over_a_day::budget(), |p| p.takeover_stamps_rows = false);
}

#[test]
fn without_age_of_the_put_a_day_before_the_settle_doubles_a_message() {
    falls(Law::OnceInTheRoom, edited_over_a_day::budget(), |p| p.ambiguous_since_put = false);
}

#[test]
fn without_maybe_sent_as_handed_a_requeued_message_is_cancelled_and_sent() {
    falls(Law::CancelledNeverLeaves, requeued_behind_another::budget(), |p| p.maybe_sent_is_handed = false);
}

#[test]
fn without_keeping_frozen_through_a_requeue_cancels_what_is_being_sent() {
    falls(Law::CancelledNeverLeaves, requeued_behind_another::budget(), |p| p.requeue_keeps_frozen_through = false);
}

/// A claim that lowers `frozen_through` under a late finisher is covered by the stamps of the takeover: no law needs
/// this one. It stays because it is one word of SQL, and lets each of the two be read alone.
#[test]
fn raising_frozen_through_only_is_covered_by_stamps_at_takeover() {
    is_not_missed(two_messages_one_deleted::budget(), |p| p.claim_keeps_frozen_through = false);
    is_not_missed(handed_back::budget(), |p| p.claim_keeps_frozen_through = false);
}

// --- Late evidence, edits and deletes --------------------------------------------------------------------------------

#[test]
fn without_answer_to_late_evidence_a_looked_up_text_stays() {
    let budget = two_messages_one_deleted::budget();
    falls_with(Closing::LookUp, Law::DeletedTextGoes, budget, |p| p.late_evidence_is_answered = false);
}

/// A void leaves nothing to late requests but dead and discarded operations.
#[test]
fn without_answer_to_late_evidence_a_discarded_edit_replaces_the_newest_text() {
    falls(Law::RoomShowsNewestText, discarded::budget(), |p| p.late_evidence_is_answered = false);
}

#[test]
fn without_answer_to_late_evidence_a_dead_edit_replaces_the_newest_text() {
    falls(Law::RoomShowsNewestText, edits_that_die::budget(), |p| p.late_evidence_is_answered = false);
}

#[test]
fn without_evidence_against_dead_letters_the_delivered_stays_dead() {
    falls(Law::DeliveredNeverDies, requeued_behind_another::budget(), |p| p.evidence_ends_dead_letter = false);
}

/// A void leaves no redaction without a target.
#[test]
fn without_second_look_a_redaction_misses_its_target() {
    let budget = deleted_over_a_day::budget();
    falls_with(Closing::LookUp, Law::DeletedTextGoes, budget, |p| p.no_target_is_checked_again = false);
}

#[test]
fn without_each_operations_own_state_an_edit_outlives_its_message() {
    let budget = redaction_refused::budget();
    falls(Law::NoDeadLetterOfWipedText, budget, |p| p.each_operation_by_its_own_state = false);
}

#[test]
fn without_each_operations_own_state_an_older_edit_comes_last() {
    falls(Law::RoomShowsNewestText, edits_that_die::budget(), |p| p.each_operation_by_its_own_state = false);
}

#[test]
fn without_superseding_a_requeued_edit_brings_back_older_text() {
    falls(Law::RoomShowsNewestText, edits_that_die::budget(), |p| p.newer_edit_supersedes_dead = false);
}

#[test]
fn without_end_for_deleted_a_wiped_text_is_parked() {
    falls(Law::NoDeadLetterOfWipedText, redaction_refused::budget(), |p| p.deleted_is_never_parked = false);
}

#[test]
fn without_taking_parked_edits_a_discard_leaves_orphans() {
    falls(Law::NothingParkedForDiscarded, discarded::budget(), |p| p.discard_takes_parked_edits = false);
}

#[test]
fn without_return_with_its_message_an_edit_outlives_its_discard() {
    let budget = edits_requeued_and_discarded::budget();
    falls(Law::NothingParkedForDiscarded, budget, |p| p.edit_returns_with_its_message = false);
}

// --- Time, and the room ----------------------------------------------------------------------------------------------

#[test]
fn without_end_of_lapsed_leases_a_sleeper_doubles_a_message() {
    falls(Law::OnceInTheRoom, crashed_twice_over_a_day::budget(), |p| p.lapsed_lease_stays_lapsed = false);
}

#[test]
fn without_deadline_a_sleeper_doubles_a_message() {
    falls(Law::OnceInTheRoom, crashed_twice_over_a_day::budget(), |p| p.deadline_stops_sending = false);
}

#[test]
fn without_repair_by_echo_a_late_removal_stays() {
    falls(Law::MembershipFollows, removed_and_invited::budget(), |p| p.membership_echo_repairs = false);
}

/// Whether an echo settles a leased lane's row, or leaves it to the owner, is a question of how soon a crash heals. The
/// same goes for a late finisher.
#[test]
fn who_settles_evidence_of_a_live_row_is_a_free_choice() {
    is_not_missed(edits_that_die::budget(), |p| p.echo_settles_leased_lane = false);
    is_not_missed(two_messages_one_deleted::budget(), |p| p.echo_settles_leased_lane = false);
    is_not_missed(edits_that_die::budget(), |p| p.late_finisher_settles = true);
    is_not_missed(two_messages_one_deleted::budget(), |p| p.late_finisher_settles = true);
}
