//! What must never be the case, and what must be the case when nothing more will happen by itself.
use std::fmt;

use super::protocol::{Closing, Protocol, due, redacted};
use super::state::{Content, Kind, Lease, MessageId, Place, RoomEvent, State};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Law {
    OnceInTheRoom,
    InOrder,
    CancelledNeverLeaves,
    CancelledIsFinal,
    DeletedTextGoes,
    NoDeadLetterOfWipedText,
    OpenCountsLiveRows,
    DueWithFirstRow,
    DeliveredNeverDies,
    NothingParkedForDiscarded,
    RoomShowsNewestText,
    MembershipFollows,
    EverythingEnds,
    LaneIsReleased,
    NoMessageIsLost,
    NoWorkWithoutEnd,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnceInTheRoom => "an operation is in the room at most once, but for voids",
            Self::InOrder => "the room sees operations in commit order",
            Self::CancelledNeverLeaves => "what a delete withdrew as unsent never appears in the room",
            Self::CancelledIsFinal => "what is cancelled is not in the room, unless its redaction is coming",
            Self::DeletedTextGoes => "the text of a deleted message does not stay in the room",
            Self::NoDeadLetterOfWipedText => "no dead letter waits for a text that was wiped",
            Self::OpenCountsLiveRows => "`open` is the number of live rows",
            Self::DueWithFirstRow => "a lane is due when its first live row is, and never without one",
            Self::DeliveredNeverDies => "what is delivered is no dead letter",
            Self::NothingParkedForDiscarded => "nothing stays parked for a message that was discarded",
            Self::RoomShowsNewestText => "in the end the room shows the newest text of the database",
            Self::MembershipFollows => "in the end the room's members are the database's",
            Self::EverythingEnds => "a live row is taken by somebody, unless its lane is held",
            Self::LaneIsReleased => "no lane stays leased",
            Self::NoMessageIsLost => "a message is delivered, dead, cancelled or discarded",
            Self::NoWorkWithoutEnd => "without faults and wishes, work comes to an end",
        })
    }
}

type Check = fn(&Protocol, &State) -> bool;

/// The laws of every state.
const ALWAYS: [(Law, Check); 8] = [
    (Law::OnceInTheRoom, |_, state| once_in_the_room(state)),
    (Law::InOrder, |_, state| in_order(state)),
    (Law::CancelledNeverLeaves, |_, state| cancelled_never_leaves(state)),
    (Law::CancelledIsFinal, cancelled_is_final),
    (Law::OpenCountsLiveRows, |_, state| open_counts_live_rows(state)),
    (Law::DueWithFirstRow, |_, state| state.lane.due == due(state, |_| true)),
    (Law::DeliveredNeverDies, |_, state| delivered_never_dies(state)),
    (Law::NoDeadLetterOfWipedText, |_, state| no_dead_letter_of_wiped_text(state)),
];

/// The laws of a state in which no fair step is possible.
const AT_REST: [(Law, Check); 7] = [
    (Law::EverythingEnds, |_, state| state.lane.held || state.lane.open == 0),
    (Law::LaneIsReleased, |_, state| state.lane.lease != Lease::Held),
    (Law::DeletedTextGoes, |_, state| of_messages(state, deleted_text_goes)),
    (Law::NothingParkedForDiscarded, |_, state| of_messages(state, nothing_parked_for_discarded)),
    (Law::RoomShowsNewestText, |_, state| of_messages(state, room_shows_newest_text)),
    (Law::NoMessageIsLost, |_, state| of_messages(state, no_message_is_lost)),
    (Law::MembershipFollows, |_, state| state.member_in_room == state.member_in_database),
];

/// The first law that `state` breaks.
pub(super) fn broken(protocol: &Protocol, state: &State) -> Option<Law> {
    first_broken(&ALWAYS, protocol, state)
}

/// The first law that `state` breaks if nothing more will happen in it by itself.
pub(super) fn broken_at_rest(protocol: &Protocol, state: &State) -> Option<Law> {
    // What waits behind a hold waits for an operator, and the rest waits for it.
    let waits_for_operator = state.lane.held && state.lane.open > 0;
    if waits_for_operator { None } else { first_broken(&AT_REST, protocol, state) }
}

fn first_broken(laws: &[(Law, Check)], protocol: &Protocol, state: &State) -> Option<Law> {
    laws.iter().find(|(_, holds)| !holds(protocol, state)).map(|&(law, _)| law)
}

fn of_messages(state: &State, holds: fn(&State, MessageId) -> bool) -> bool {
    state.messages.indices().all(|message| holds(state, message))
}

/// The room's newest event and those before it. Laws about pairs of events look at no others: each event was the newest
/// once.
fn newest_event(state: &State) -> Option<(&RoomEvent, &[RoomEvent])> {
    state.room.split_last()
}

/// A void may come again, after the homeserver forgot the first: it shows nothing and takes nothing's place. A void
/// beside a text is another matter, since its redaction would aim at the wrong one of the two.
fn once_in_the_room(state: &State) -> bool {
    newest_event(state).is_none_or(|(newest, earlier)| {
        let void = newest.content == Content::Void;
        let again = |event: &RoomEvent| event.seq == newest.seq && !(void && event.content == Content::Void);
        !state.operations[newest.seq].kind.is_send() || !earlier.iter().any(again)
    })
}

fn in_order(state: &State) -> bool {
    newest_event(state).is_none_or(|(newest, earlier)| {
        // A change of membership has no transaction id, and may be repeated.
        let repeats = earlier.iter().any(|event| event.seq == newest.seq);
        repeats
            || state.operations[newest.seq].out_of_line
            || earlier.iter().all(|event| event.seq < newest.seq || state.operations[event.seq].out_of_line)
    })
}

fn cancelled_never_leaves(state: &State) -> bool {
    state.room.iter().all(|event| event.content == Content::Void || !state.operations[event.seq].promised_unsent)
}

/// Only a void can promise this. After a look-up that found nothing, a late request may still bring the event, which is
/// then redacted.
fn cancelled_is_final(protocol: &Protocol, state: &State) -> bool {
    protocol.closing == Closing::LookUp
        || state.room.iter().all(|event| {
            event.content == Content::Void
                || state.operations[event.seq].place != Place::Cancelled
                || redacted(state, event.seq)
        })
}

fn open_counts_live_rows(state: &State) -> bool {
    let mut live = 0;
    for operation in state.operations.iter() {
        live += i8::from(operation.is_live());
    }
    live == state.lane.open
}

fn delivered_never_dies(state: &State) -> bool {
    state.operations.iter().all(|operation| operation.place != Place::DeadLetters || !operation.evidence)
}

fn no_dead_letter_of_wiped_text(state: &State) -> bool {
    state.operations.iter().all(|operation| {
        operation.place != Place::DeadLetters || !operation.kind.is_text() || !state.messages[operation.message].deleted
    })
}

fn deleted_text_goes(state: &State, message: MessageId) -> bool {
    !state.messages[message].deleted
        || state
            .room
            .iter()
            .all(|event| event.redacted || event.content == Content::Void || !shows(state, *event, message))
}

fn nothing_parked_for_discarded(state: &State, message: MessageId) -> bool {
    let send = state.messages[message].send;
    let is_gone =
        !state.messages[message].deleted && state.operations[send].place == Place::Discarded && !state.in_room(send);
    !is_gone || !has_text_in(state, message, Place::DeadLetters)
}

fn room_shows_newest_text(state: &State, message: MessageId) -> bool {
    let newest = state.messages[message];
    let shown = state.room.iter().rfind(|&&event| shows(state, event, message)).map(|event| event.content);
    // What was parked or discarded, an operator decided or will decide.
    newest.deleted
        || !state.in_room(newest.send)
        || has_text_in(state, message, Place::DeadLetters)
        || state.texts(message).any(|seq| seq != newest.send && state.operations[seq].place == Place::Discarded)
        || shown == Some(Content::Revision(newest.revision))
}

fn no_message_is_lost(state: &State, message: MessageId) -> bool {
    let send = state.messages[message].send;
    state.messages[message].deleted
        || state.in_room(send)
        || state.operations[send].place == Place::Discarded
        || has_text_in(state, message, Place::DeadLetters)
}

fn shows(state: &State, event: RoomEvent, message: MessageId) -> bool {
    let operation = &state.operations[event.seq];
    matches!(operation.kind, Kind::Message | Kind::Edit) && operation.message == message
}

fn has_text_in(state: &State, message: MessageId, place: Place) -> bool {
    state.texts(message).any(|seq| state.operations[seq].place == place)
}
