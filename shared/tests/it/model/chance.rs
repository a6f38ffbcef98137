//! What a scenario rations.

/// What happens only as often as the scenario says: what users and operators do, and what goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Chance {
    Post,
    Edit,
    Delete,
    Remove,
    Invite,
    /// A worker dies.
    Crash,
    /// A lease ends although its worker lives, and goes on.
    Lapse,
    /// The homeserver refuses for now.
    Refuse,
    /// A worker hears no answer.
    LoseAnswer,
    /// The homeserver refuses for good.
    OwnFault,
    RoomFault,
    /// 25 hours pass, and the homeserver forgets all transaction ids.
    Forget,
    Requeue,
    Discard,
    Hold,
    HandBack,
}

/// How often each [`Chance`] is left, four bits each.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget(u64);

impl Budget {
    /// The highest bit of each four, unused by counts: it takes the borrow of a subtraction.
    const GUARDS: u64 = 0x8888_8888_8888_8888;

    pub(super) fn of(chances: &[(Chance, u64)]) -> Self {
        let mut budget = Self::default();
        for &(chance, times) in chances {
            assert!(times < 8, "{chance:?}: four bits hold a count below 8");
            budget.0 += times << Self::shift(chance);
        }
        budget
    }

    fn shift(chance: Chance) -> u32 {
        4 * chance as u32
    }

    pub(super) fn spend(self, chance: Chance) -> Option<Self> {
        let left = self.0 >> Self::shift(chance) & 0xf;
        (left > 0).then(|| Self(self.0 - (1 << Self::shift(chance))))
    }

    /// Whether nothing is left less often than in `other`.
    pub(super) fn covers(self, other: Self) -> bool {
        ((self.0 | Self::GUARDS) - other.0) & Self::GUARDS == Self::GUARDS
    }
}
