//! Whether a partition may hold a record that kills every process that works on it. Pure.
//!
//! Each holding of a partition is counted, in the metadata of its offset commits, before its first
//! record is handed out. Giving the partition back in good order, or getting past every record that
//! may have been in flight when the last holding ended, ends the count. Where it has grown without
//! either, those records are suspects, to be worked on where a crash does no harm.

use super::offsets::WINDOW_RECORDS;

/// Holdings in a row that ended without notice, after which the next one has suspects.
pub const CRASHES: u32 = 3;

/// The count of one partition, under one assignment.
#[derive(Clone, Debug)]
pub struct CrashLoop {
    /// Holdings in a row that nothing came of, this one included; 0 once it ends in good order.
    holdings: u32,
    suspicious: bool,
    /// Of the records to come, so many may have been in flight when the last holding ended: no more
    /// than a window's records are delivered beyond a committed offset.
    to_come: usize,
    /// One past the last of those that came.
    hurdle: i64,
}

impl CrashLoop {
    /// A partition that nobody has held, or whose log begins anew.
    pub fn fresh(begin: i64) -> Self {
        Self { holdings: 1, suspicious: false, to_come: 0, hurdle: begin }
    }

    /// Goes on at the committed offset `base`, whose metadata counts `counted` holdings.
    pub fn resumed(base: i64, counted: u32) -> Self {
        let holdings = counted.saturating_add(1);
        Self { holdings, suspicious: counted >= CRASHES, to_come: WINDOW_RECORDS, hurdle: base }
    }

    /// The number to be committed.
    pub fn count(&self) -> u32 {
        self.holdings
    }

    /// Whether this holding began with suspects, and is not past them.
    pub fn is_suspicious(&self) -> bool {
        self.suspicious
    }

    /// Whether the record at `offset`, which has been delivered, is one.
    pub fn is_suspect(&self, offset: i64) -> bool {
        self.suspicious && offset < self.hurdle
    }

    /// A record was delivered, finished before or not.
    pub fn deliver(&mut self, offset: i64) {
        if self.to_come > 0 {
            self.to_come -= 1;
            self.hurdle = offset.saturating_add(1);
        }
    }

    /// Everything in the log has been delivered: what comes later was in flight in no earlier holding.
    pub fn reach_end(&mut self) {
        self.to_come = 0;
    }

    /// Whether [`Self::advance`] may still change anything.
    pub fn is_open(&self) -> bool {
        self.suspicious || self.holdings > 1
    }

    /// The first unfinished offset is `base` now.
    pub fn advance(&mut self, base: i64) {
        if self.is_open() && self.to_come == 0 && base >= self.hurdle {
            self.suspicious = false;
            // This holding itself still counts until it has ended well.
            self.holdings = 1;
        }
    }

    /// The partition is given up with nothing left undone.
    pub fn settle(&mut self) {
        self.holdings = 0;
    }

    /// The partition is given up with work left undone, by a process that lives: the next owner
    /// stands where this one stood.
    pub fn hand_over(&mut self) {
        self.holdings = self.holdings.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Holds the partition from `base` on; delivers records up to `poison`, finishes those before it
    /// and dies of it, unless it is a suspect. Returns the count and the base that it left committed.
    fn hold(counted: u32, base: i64, poison: i64, window: i64) -> Result<(u32, i64), CrashLoop> {
        let mut crash_loop = CrashLoop::resumed(base, counted);
        (base..base + window).for_each(|offset| crash_loop.deliver(offset));
        crash_loop.reach_end();
        if crash_loop.is_suspect(poison) {
            return Err(crash_loop);
        }
        for finished in base..poison {
            crash_loop.advance(finished + 1);
        }
        Ok((crash_loop.count(), poison))
    }

    #[test]
    fn the_fourth_holding_suspects_what_killed_three() {
        let (mut counted, mut base) = (0, 0);
        for _ in 0..3 {
            (counted, base) = hold(counted, base, 40, 100).unwrap();
        }
        let mut fourth = hold(counted, base, 40, 100).unwrap_err();
        assert!(fourth.is_suspect(base + 99) && !fourth.is_suspect(base + 100));
        fourth.advance(base + 99);
        assert!(fourth.is_suspicious());
        fourth.advance(base + 100);
        assert!(!fourth.is_suspicious() && !fourth.is_suspect(50));
        assert_eq!(fourth.count(), 1);
    }

    #[test]
    fn a_holding_that_is_past_everything_in_flight_begins_the_count_again() {
        let mut crash_loop = CrashLoop::resumed(10, 2);
        assert_eq!(crash_loop.count(), 3);
        for offset in 10..12 {
            crash_loop.deliver(offset);
        }
        crash_loop.advance(12);
        assert_eq!(crash_loop.count(), 3, "more of what was in flight may come");
        crash_loop.reach_end();
        crash_loop.advance(11);
        assert_eq!(crash_loop.count(), 3, "one is unfinished");
        crash_loop.advance(12);
        assert_eq!(crash_loop.count(), 1);
    }

    #[test]
    fn a_busy_partition_is_past_it_after_a_window_of_records() {
        let mut crash_loop = CrashLoop::resumed(0, 3);
        let window = WINDOW_RECORDS as i64;
        (0..2 * window).for_each(|offset| crash_loop.deliver(offset));
        assert!(crash_loop.is_suspect(window - 1) && !crash_loop.is_suspect(window));
        crash_loop.advance(window);
        assert!(!crash_loop.is_suspicious());
    }

    #[test]
    fn an_idle_partition_is_not_suspected_for_ever() {
        let mut crash_loop = CrashLoop::resumed(7, 9);
        assert!(crash_loop.is_suspicious());
        crash_loop.reach_end();
        crash_loop.advance(7);
        assert!(!crash_loop.is_suspicious());
        assert_eq!(crash_loop.count(), 1);
    }

    #[test]
    fn an_end_in_good_order_is_no_crash() {
        let mut crash_loop = CrashLoop::resumed(0, 2);
        crash_loop.hand_over();
        assert_eq!(crash_loop.count(), 2);
        crash_loop.settle();
        assert_eq!(crash_loop.count(), 0);
    }

    proptest! {
        /// Wherever the poison lies and however much is delivered with it, the third crash of the same
        /// record is the last.
        #[test]
        fn three_crashes_are_enough(poison in 0_i64..2000, window in 1_i64..2048, counted in 0_u32..3) {
            let (mut counted, mut base, mut crashes) = (counted, 0, 0);
            loop {
                let reached = poison < base + window;
                match hold(counted, base, poison.min(base + window), window) {
                    Err(crash_loop) => {
                        prop_assert!(crash_loop.is_suspect(poison));
                        break;
                    }
                    // The poison is not delivered yet: the holding ends well, short of it.
                    Ok((_, end)) if !reached => (counted, base) = (0, end),
                    Ok(next) => {
                        (counted, base) = next;
                        crashes += 1;
                        prop_assert!(crashes <= 3);
                    }
                }
            }
        }
    }
}
