//! Notices a partition from which nothing comes although the log has more. Pure.
//!
//! A client can lose a wake-up or a fetch in a rebalance and stay silent for good while everything
//! else looks healthy. Only a restart cures that, so liveness asks for it.

use super::receipt::TopicPartition;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is seen of one partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The consumer's position.
    pub position: i64,
    /// The log's end.
    pub high: i64,
    /// Intake is paused on purpose.
    pub held: bool,
}

/// Since when each partition has been silent.
#[derive(Debug, Default)]
pub(super) struct StallWatch {
    silent: BTreeMap<TopicPartition, (i64, Instant)>,
}

impl StallWatch {
    /// Takes one look at all assigned partitions, and says which has been silent longest and since when.
    pub fn look(
        &mut self,
        seen: &BTreeMap<TopicPartition, Seen>,
        now: Instant,
    ) -> Option<(TopicPartition, Instant)> {
        self.silent.retain(|source, _| seen.contains_key(source));
        for (source, seen) in seen {
            if seen.held || seen.position >= seen.high {
                self.silent.remove(source);
                continue;
            }
            let since = self.silent.entry(source.clone()).or_insert((seen.position, now));
            if since.0 != seen.position {
                *since = (seen.position, now);
            }
        }
        self.silent
            .iter()
            .min_by_key(|(_, (_, since))| *since)
            .map(|(source, (_, since))| (source.clone(), *since))
    }

    /// Forgets everything: the brokers do not answer, and that is no fault of this client.
    pub fn clear(&mut self) {
        self.silent.clear();
    }
}

/// How long a silence has lasted, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    pub source: TopicPartition,
    pub silence: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn partition(index: i32) -> TopicPartition {
        TopicPartition::new("t", index)
    }

    fn one(position: i64, high: i64, held: bool) -> BTreeMap<TopicPartition, Seen> {
        BTreeMap::from([(partition(0), Seen { position, high, held })])
    }

    #[test]
    fn silence_counts_from_the_last_movement() {
        let (mut watch, start) = (StallWatch::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.look(&one(5, 9, false), at(0)), Some((partition(0), at(0))));
        assert_eq!(watch.look(&one(5, 12, false), at(10)), Some((partition(0), at(0))));
        assert_eq!(watch.look(&one(6, 12, false), at(20)), Some((partition(0), at(20))));
        assert_eq!(watch.look(&one(6, 12, true), at(30)), None);
        assert_eq!(watch.look(&one(6, 12, false), at(40)), Some((partition(0), at(40))));
        assert_eq!(watch.look(&one(12, 12, false), at(50)), None);
        assert_eq!(watch.look(&BTreeMap::new(), at(60)), None);
    }

    proptest! {
        #[test]
        fn what_moves_between_looks_is_never_called_silent_for_longer(
            moves in proptest::collection::vec(proptest::bool::ANY, 1..40),
        ) {
            let (mut watch, start) = (StallWatch::default(), Instant::now());
            let (mut position, mut last_moved) = (0, start);
            for (second, moved) in (0_u64..).zip(moves) {
                let now = start + Duration::from_secs(second);
                if moved {
                    position += 1;
                }
                if moved || second == 0 {
                    last_moved = now;
                }
                let found = watch.look(&one(position, 1000, false), now);
                prop_assert_eq!(found, Some((partition(0), last_moved)));
            }
        }
    }
}
