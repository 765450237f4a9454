//! How long one item is tried. Pure.

use crate::fault::Disposition;
use std::time::Duration;

/// What becomes of an item whose attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Tried again after this pause.
    Again(Duration),
    /// Tried again once the dependency works.
    Hold,
    /// Dead: its time is over.
    GiveUp,
    /// No later attempt would end otherwise.
    Final,
}

/// The time an item was worked on, which is what `retry.deadline_ms` bounds; waiting for a broken
/// dependency is none of it.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Duration,
    spent: Duration,
}

impl Patience {
    pub fn new(deadline: Duration) -> Self {
        Self { deadline, spent: Duration::ZERO }
    }

    pub fn spend(&mut self, time: Duration) {
        self.spent = self.spent.saturating_add(time);
    }

    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// What follows a failure. While the dependency's breaker is open, no item dies of it.
    pub fn next(&self, step: Disposition, breaker_open: bool, pause: Duration) -> Next {
        match step {
            Disposition::Reject | Disposition::Stop => Next::Final,
            Disposition::Retry | Disposition::Hold if breaker_open => Next::Hold,
            Disposition::Retry | Disposition::Hold if self.spent.saturating_add(pause) > self.deadline => {
                Next::GiveUp
            }
            Disposition::Retry | Disposition::Hold => Next::Again(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_permanent_is_final_even_while_held() {
        let patience = Patience::new(Duration::from_secs(1));
        for open in [false, true] {
            assert_eq!(patience.next(Disposition::Reject, open, Duration::ZERO), Next::Final);
        }
    }

    proptest! {
        /// Time that is not spent, as while an item is held, never kills it.
        #[test]
        fn an_item_dies_only_of_time_spent_and_only_while_closed(
            deadline in 1_u64..10_000,
            spent in prop::collection::vec(0_u64..2_000, 0..20),
            pause in 0_u64..1_000,
            open: bool,
            hold: bool,
        ) {
            let mut patience = Patience::new(Duration::from_millis(deadline));
            spent.iter().for_each(|ms| patience.spend(Duration::from_millis(*ms)));
            let step = if hold { Disposition::Hold } else { Disposition::Retry };
            let next = patience.next(step, open, Duration::from_millis(pause));
            let late = spent.iter().sum::<u64>() + pause > deadline;
            prop_assert_eq!(next == Next::GiveUp, late && !open);
            prop_assert_eq!(next == Next::Hold, open);
        }
    }
}
