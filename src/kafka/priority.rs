//! Live uploads go before a backfill: when the backfill's partitions may be read. Pure.

use std::time::{Duration, Instant};

/// How long the live topics must have been read to their end before the backfill goes on. Pausing
/// throws away what was fetched ahead, so a trickle of uploads must not do it for every record.
const QUIET: Duration = Duration::from_millis(250);

/// What the decision is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Records of live partitions that were not read yet.
    pub live_waiting: u64,
    /// Live records that were read and are not finished.
    pub live_in_flight: usize,
    /// Backfill records that were read and are not finished. A live record queues behind them.
    pub backfill_in_flight: usize,
}

/// Opens and closes the backfill.
#[derive(Debug)]
pub(super) struct BackfillGate {
    /// The most backfill records in flight.
    limit: usize,
    live_seen: Option<Instant>,
    full: bool,
}

impl BackfillGate {
    pub fn new(limit: usize) -> Self {
        Self { limit, live_seen: None, full: false }
    }

    /// Whether backfill partitions may be read at `now`.
    pub fn is_open(&mut self, now: Instant, load: Load) -> bool {
        // A few in flight are a steady trickle, which would otherwise hold the backfill for ever.
        if load.live_waiting > 0 || load.live_in_flight > self.limit / 8 {
            self.live_seen = Some(now);
        }
        // Half-way down rather than at once, since resuming fetches anew.
        self.full = match self.full {
            true => load.backfill_in_flight > self.limit / 2,
            false => load.backfill_in_flight >= self.limit,
        };
        let quiet = self.live_seen.is_none_or(|seen| now.saturating_duration_since(seen) >= QUIET);
        quiet && !self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(live_waiting: u64, backfill_in_flight: usize) -> Load {
        Load { live_waiting, live_in_flight: 0, backfill_in_flight }
    }

    #[test]
    fn a_waiting_upload_stops_the_backfill_at_once_and_for_a_while() {
        let begin = Instant::now();
        let mut gate = BackfillGate::new(64);
        assert!(gate.is_open(begin, load(0, 0)));
        assert!(!gate.is_open(begin, load(1, 0)));
        assert!(!gate.is_open(begin + QUIET / 2, load(0, 0)));
        assert!(gate.is_open(begin + QUIET, load(0, 0)));
    }

    #[test]
    fn uploads_in_flight_stop_the_backfill_but_for_a_trickle() {
        let begin = Instant::now();
        let mut gate = BackfillGate::new(64);
        assert!(!gate.is_open(begin, Load { live_in_flight: 9, ..load(0, 0) }));
        assert!(gate.is_open(begin + QUIET, Load { live_in_flight: 8, ..load(0, 0) }));
    }

    #[test]
    fn a_full_backfill_goes_on_at_half() {
        let now = Instant::now();
        let mut gate = BackfillGate::new(64);
        assert!(gate.is_open(now, load(0, 63)));
        assert!(!gate.is_open(now, load(0, 64)));
        assert!(!gate.is_open(now, load(0, 33)));
        assert!(gate.is_open(now, load(0, 32)));
        assert!(gate.is_open(now, load(0, 63)));
    }

    proptest! {
        #[test]
        fn it_is_never_open_while_uploads_wait_or_too_much_is_in_flight(
            limit in 1_usize..100,
            steps in proptest::collection::vec((0_u64..400, 0_u64..3, 0_usize..200), 1..60),
        ) {
            let mut now = Instant::now();
            let mut gate = BackfillGate::new(limit);
            for (pause_ms, live_waiting, backfill_in_flight) in steps {
                now += Duration::from_millis(pause_ms);
                if gate.is_open(now, load(live_waiting, backfill_in_flight)) {
                    prop_assert_eq!(live_waiting, 0);
                    prop_assert!(backfill_in_flight < limit);
                }
            }
        }

        #[test]
        fn an_idle_worker_always_comes_back_to_the_backfill(
            limit in 1_usize..100,
            steps in proptest::collection::vec((0_u64..3, 0_usize..200), 0..30),
        ) {
            let now = Instant::now();
            let mut gate = BackfillGate::new(limit);
            for (live_waiting, backfill_in_flight) in steps {
                gate.is_open(now, load(live_waiting, backfill_in_flight));
            }
            prop_assert!(gate.is_open(now + QUIET, load(0, 0)));
        }
    }
}
