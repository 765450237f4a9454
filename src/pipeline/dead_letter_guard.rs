//! When too many items end as dead letters, something else than the items is wrong: a deploy, a
//! producer, a bucket. Then nothing more goes there until somebody has had time to look.
//!
//! Pure: time is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Outcomes that the share is taken of. It counts once so many are known.
const WINDOW: usize = 500;
/// More than this share of the window holds, in percent.
const PERCENT: usize = 20;
/// So many dead letters in a row hold.
const IN_A_ROW: usize = 100;

/// Counts outcomes that are a score or a dead letter; objects that are gone or deleted are neither.
#[derive(Debug)]
pub struct DeadLetterGuard {
    hold: Duration,
    /// Whether each of the last outcomes was a dead letter.
    recent: VecDeque<bool>,
    dead: usize,
    run: usize,
    holding: Option<Holding>,
}

/// Why dead letters are held, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    pub until: Instant,
    /// Dead letters among the last `of` outcomes.
    pub dead: usize,
    pub of: usize,
}

impl DeadLetterGuard {
    /// Holds for `hold` at a time; with zero, never.
    pub fn new(hold: Duration) -> Self {
        Self { hold, recent: VecDeque::with_capacity(WINDOW), dead: 0, run: 0, holding: None }
    }

    /// Takes note of a score.
    pub fn scored(&mut self) {
        self.run = 0;
        self.push(false);
    }

    /// Asks to write a dead letter; it counts only if it may. One more than the guard allows begins a
    /// hold instead. After a hold, everything counts anew.
    ///
    /// # Errors
    /// While held; ask again at its end.
    pub fn dead_letter(&mut self, now: Instant) -> Result<(), Holding> {
        if let Some(holding) = self.holding(now) {
            return Err(holding);
        }
        let (dead, of) = if self.run + 1 >= IN_A_ROW {
            (self.run + 1, self.run + 1)
        } else {
            let full = self.recent.len() == WINDOW;
            let leaving = full && self.recent.front() == Some(&true);
            let dead = self.dead + 1 - usize::from(leaving);
            if !full || dead * 100 <= PERCENT * WINDOW {
                self.run += 1;
                self.push(true);
                return Ok(());
            }
            (dead, WINDOW)
        };
        if self.hold.is_zero() {
            self.run += 1;
            self.push(true);
            return Ok(());
        }
        let holding = Holding { until: now + self.hold, dead, of };
        self.holding = Some(holding);
        Err(holding)
    }

    /// The hold that is on at `now`.
    pub fn holding(&mut self, now: Instant) -> Option<Holding> {
        if self.holding.is_some_and(|holding| now >= holding.until) {
            self.holding = None;
            self.recent.clear();
            self.dead = 0;
            self.run = 0;
        }
        self.holding
    }

    fn push(&mut self, dead: bool) {
        if self.recent.len() == WINDOW {
            self.dead -= usize::from(self.recent.pop_front() == Some(true));
        }
        self.recent.push_back(dead);
        self.dead += usize::from(dead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOLD: Duration = Duration::from_secs(600);

    #[test]
    fn the_hundredth_in_a_row_is_held_until_the_hold_is_over() {
        let now = Instant::now();
        let mut guard = DeadLetterGuard::new(HOLD);
        for _ in 0..99 {
            assert_eq!(guard.dead_letter(now), Ok(()));
        }
        let holding = guard.dead_letter(now).unwrap_err();
        assert_eq!((holding.dead, holding.of, holding.until), (100, 100, now + HOLD));
        assert_eq!(guard.dead_letter(now + HOLD - Duration::from_millis(1)), Err(holding));
        for _ in 0..99 {
            assert_eq!(guard.dead_letter(now + HOLD), Ok(()), "the count begins anew");
        }
        assert!(guard.dead_letter(now + HOLD).is_err());
    }

    #[test]
    fn a_fifth_of_the_last_500_passes_and_one_more_does_not() {
        let now = Instant::now();
        let mut guard = DeadLetterGuard::new(HOLD);
        for outcome in 0..500 {
            if outcome % 5 == 4 {
                assert_eq!(guard.dead_letter(now), Ok(()));
            } else {
                guard.scored();
            }
        }
        let holding = guard.dead_letter(now).unwrap_err();
        assert_eq!((holding.dead, holding.of), (101, 500));
    }

    #[test]
    fn without_a_hold_nothing_is_held() {
        let mut guard = DeadLetterGuard::new(Duration::ZERO);
        for _ in 0..2_000 {
            assert_eq!(guard.dead_letter(Instant::now()), Ok(()));
        }
    }

    proptest! {
        /// Whatever the order, what passes is never 100 in a row, nor over a fifth of 500.
        #[test]
        fn what_passes_keeps_within_the_limits(outcomes in prop::collection::vec(prop::bool::weighted(0.3), 500..3000)) {
            let now = Instant::now();
            let mut guard = DeadLetterGuard::new(HOLD);
            let mut passed: Vec<bool> = Vec::new();
            for dead in outcomes {
                if !dead {
                    guard.scored();
                    passed.push(false);
                } else if guard.dead_letter(now).is_ok() {
                    passed.push(true);
                } else {
                    break;
                }
                let run = passed.iter().rev().take_while(|dead| **dead).count();
                prop_assert!(run < 100);
            }
            // The first window may hold anything; from then on, each letter has to fit.
            for end in 501..=passed.len() {
                let dead = passed[end - 500..end].iter().filter(|dead| **dead).count();
                prop_assert!(!passed[end - 1] || dead <= 100, "{dead}");
            }
        }
    }
}
