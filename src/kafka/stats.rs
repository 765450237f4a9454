//! Numbers about Kafka for metrics and health checks.

use super::receipt::TopicPartition;
use super::stall::Stalled;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counters and gauges, updated by the threads of this module and read by anyone.
#[derive(Debug)]
pub struct KafkaStats {
    started: Instant,
    /// Records handed to the pipeline.
    pub records: AtomicU64,
    /// Records passed over because an earlier assignment had finished them.
    pub already_done: AtomicU64,
    /// Outputs and dead letters committed.
    pub outputs: AtomicU64,
    /// Commits that succeeded, transactions or not.
    pub commits: AtomicU64,
    /// Transactions aborted, and plain commits that failed.
    pub aborts: AtomicU64,
    /// Producers replaced because a transaction's outcome was in doubt.
    pub producer_replacements: AtomicU64,
    pub assigned: AtomicU64,
    pub revoked: AtomicU64,
    pub lost: AtomicU64,
    /// Whether intake is paused as a whole, by a full queue or by the gate.
    pub paused: AtomicBool,
    /// Whether the backfill topic is held back, by waiting uploads or by what is in flight of it.
    pub backfill_paused: AtomicBool,
    /// Milliseconds since `started` of the poll thread's last turn.
    polled_at_ms: AtomicU64,
    /// The same, of the last successful commit cycle, an empty one included.
    committed_at_ms: AtomicU64,
    /// The same, of a broker's last answer to the lookup thread.
    answered_at_ms: AtomicU64,
    backlog: Mutex<BTreeMap<TopicPartition, Backlog>>,
    stalled: Mutex<Option<(TopicPartition, Instant)>>,
    trouble: Mutex<Option<String>>,
}

/// What is left to do of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Unfinished records: high watermark minus base minus what is done beyond it.
    pub records: u64,
    /// What is done beyond the base.
    pub done_ahead: u64,
    /// Since when, at least, there are records and none of them has been read.
    pub untouched_since: Option<Instant>,
}

impl Default for KafkaStats {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            records: AtomicU64::new(0),
            already_done: AtomicU64::new(0),
            outputs: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            aborts: AtomicU64::new(0),
            producer_replacements: AtomicU64::new(0),
            assigned: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            backfill_paused: AtomicBool::new(false),
            polled_at_ms: AtomicU64::new(0),
            committed_at_ms: AtomicU64::new(0),
            answered_at_ms: AtomicU64::new(0),
            backlog: Mutex::new(BTreeMap::new()),
            stalled: Mutex::new(None),
            trouble: Mutex::new(None),
        }
    }
}

impl KafkaStats {
    /// Time since the poll thread last turned: liveness.
    pub fn since_poll(&self) -> Duration {
        self.since(&self.polled_at_ms)
    }

    /// Time since a commit cycle last succeeded: readiness.
    pub fn since_commit(&self) -> Duration {
        self.since(&self.committed_at_ms)
    }

    /// Time since a broker last answered: readiness. A few seconds at least are normal.
    pub fn since_answer(&self) -> Duration {
        self.since(&self.answered_at_ms)
    }

    /// What each assigned partition has left to do, as last measured.
    pub fn backlog(&self) -> BTreeMap<TopicPartition, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// [`Backlog::records`] of each assigned partition.
    pub fn lag(&self) -> BTreeMap<TopicPartition, u64> {
        self.backlog().into_iter().map(|(source, backlog)| (source, backlog.records)).collect()
    }

    /// The partition that has been silent longest although its log has more, and nothing holds intake.
    pub fn stalled(&self) -> Option<Stalled> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stalled.map(|(source, since)| Stalled { source, silence: since.elapsed() })
    }

    /// What keeps commits from succeeding just now, if anything does.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn polled(&self) {
        self.polled_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn answered(&self) {
        self.answered_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn cycle_succeeded(&self) {
        self.committed_at_ms.store(self.now_ms(), Ordering::Relaxed);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn set_trouble(&self, reason: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Takes a measurement of all partitions. One that is untouched still is so since it first was.
    pub(super) fn set_backlog(&self, mut backlog: BTreeMap<TopicPartition, Backlog>) {
        let mut before = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        for (source, now) in &mut backlog {
            let earlier = before.get(source).and_then(|earlier| earlier.untouched_since);
            now.untouched_since = now.untouched_since.map(|since| earlier.unwrap_or(since));
        }
        *before = backlog;
    }

    pub(super) fn set_stalled(&self, stalled: Option<(TopicPartition, Instant)>) {
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = stalled;
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn since(&self, moment: &AtomicU64) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(moment.load(Ordering::Relaxed)))
    }
}

pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untouched_partition_ages_until_it_is_read() {
        let stats = KafkaStats::default();
        let source = TopicPartition::new("t", 0);
        let measured = |untouched_since| {
            let backlog = Backlog { records: 3, done_ahead: 1, untouched_since };
            stats.set_backlog(BTreeMap::from([(source.clone(), backlog)]));
            stats.backlog()[&source].untouched_since
        };
        let first = Instant::now();
        let later = first + Duration::from_secs(5);
        assert_eq!(measured(Some(first)), Some(first));
        assert_eq!(measured(Some(later)), Some(first));
        assert_eq!(measured(None), None);
        assert_eq!(measured(Some(later)), Some(later));
        assert_eq!(stats.lag()[&source], 3);
    }
}
