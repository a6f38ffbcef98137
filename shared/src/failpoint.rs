//! Points at which a test lets the process die, as SIGKILL does: between every two steps from a claim to the release of
//! its lane.
//!
//! Each is a variant of [`Point`], passed by [`reach`]. The variable `FAILPOINTS` says where to die: `put_answered=return`
//! at the first time, `put_answered=2*off->return` at the third. Without the feature `failpoints`, and in every build
//! without debug assertions, passing a point is nothing at all.

macro_rules! points {
    ($($variant:ident $name:literal $what:literal),* $(,)?) => {
        /// A point between two steps. One that nobody passes fails the sweep that dies at each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Point {
            $(#[doc = $what] $variant),*
        }

        impl Point {
            /// Every point, in the order in which an operation comes to them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As in the variable `FAILPOINTS`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),*
                }
            }
        }
    };
}

points! {
    ClaimLocked "claim_locked" "A claim has locked its lanes.",
    ClaimMarked "claim_marked" "A claim has noted that a lapsed owner may have sent what it was handed.",
    ClaimRead "claim_read" "A claim has read the operations of its lanes.",
    ClaimFixed "claim_fixed" "A claim has written who sends.",
    ClaimWritten "claim_written" "A claim has leased its lanes; it is not committed.",
    ClaimCommitted "claim_committed" "A claim is committed; nobody has its batches yet.",
    BatchHandedOver "batch_handed_over" "A batch is on its way to a sender.",
    BatchTaken "batch_taken" "A sender has a batch.",
    RoomAbandoned "room_abandoned" "The alias was taken from a room that never came to be.",
    RoomSought "room_sought" "There was no room, and its alias points nowhere.",
    RoomCreated "room_created" "The homeserver has answered that the room stands.",
    RoomNoted "room_noted" "The room is written down, not as whole.",
    RoomRead "room_read" "The state of a room that may not be whole was read.",
    RoomSet "room_set" "A setting of the room was mended.",
    RoomInvited "room_invited" "A member was invited into a new room.",
    RoomSaving "room_saving" "A room's mapping is written; it is not committed.",
    RoomWhole "room_whole" "The room is written down as whole.",
    RoomEnsured "room_ensured" "There is a room to send to.",
    RoomRejoined "room_rejoined" "A room that had been left was joined again.",
    RoomReplaced "room_replaced" "The room that replaced another is written down, not as whole.",
    LookUpBegins "look_up_begins" "Its marker is about to be looked for.",
    LookUpEnded "look_up_ended" "Its marker was looked for.",
    CloseBegins "close_begins" "A transaction is about to be closed.",
    CloseEnded "close_ended" "A transaction is closed.",
    PutBegins "put_begins" "An event is about to be put.",
    PutAnswered "put_answered" "The homeserver has answered for an event.",
    RedactBegins "redact_begins" "A redaction is about to be put.",
    RedactAnswered "redact_answered" "The homeserver has answered for a redaction.",
    MemberLooked "member_looked" "A membership was looked at, and differs.",
    MemberChanged "member_changed" "The homeserver has answered for a change of membership.",
    OperationEnded "operation_ended" "An operation's outcome stands in its batch.",
    SettleBegins "settle_begins" "A settle has its round, and no lane.",
    SettleLocked "settle_locked" "A settle has locked its lanes.",
    SettleRead "settle_read" "A settle has read what evidence there is.",
    SettleProved "settle_proved" "A settle has written its evidence down.",
    SettleTold "settle_told" "A settle has written event ids onto messages.",
    SettleDeleted "settle_deleted" "A settle has taken the delivered out of the outbox.",
    SettleWaited "settle_waited" "A settle has written one failure back.",
    SettleAppended "settle_appended" "A settle has appended its attempts.",
    SettleReleased "settle_released" "A settle has released its lanes; it is not committed.",
    SettleCommitted "settle_committed" "A settle is committed; its slots are not free yet.",
    SlotsFreed "slots_freed" "The slots of a settle are free.",
    RenewBegins "renew_begins" "Leases are about to be renewed.",
    RenewEnded "renew_ended" "Leases were renewed.",
    EvidenceBegins "evidence_begins" "A late finisher is about to write its evidence down.",
    EvidenceWritten "evidence_written" "A late finisher's evidence is written; it is not committed.",
    EvidenceCommitted "evidence_committed" "A late finisher's evidence is committed.",
    EventApplies "event_applies" "An event of Matrix is about to be applied.",
    EventsWritten "events_written" "Events of Matrix are applied, and the token has moved; it is not committed.",
    EventsCommitted "events_committed" "Events of Matrix are committed.",
}

/// Reads where to die. What it returns is to be kept as long as the process lives.
#[cfg(all(feature = "failpoints", debug_assertions))]
#[must_use]
pub fn arm() -> impl Sized {
    fail::FailScenario::setup()
}

/// Does nothing in this build.
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
pub const fn arm() {}

/// Passes a point, or dies there.
#[cfg(all(feature = "failpoints", debug_assertions))]
pub fn reach(point: Point) {
    fail::fail_point!(point.as_str(), |_| {
        eprintln!("dies at {}", point.as_str());
        // No code of this process runs after it.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
}

/// Does nothing in this build.
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
#[inline]
pub const fn reach(_: Point) {}
