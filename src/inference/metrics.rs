//! What the inference stages did, as plain counters that telemetry reads.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Upper bounds of the batch-size histogram; a last bucket takes what is larger.
pub const BATCH_SIZE_BOUNDS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A count that goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    pub fn set(&self, level: u64) {
        self.0.store(level, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Time that only grows, to the nanosecond.
#[derive(Debug, Default)]
pub struct Stopwatch(Counter);

impl Stopwatch {
    pub fn add(&self, elapsed: Duration) {
        self.0.add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.get())
    }
}

/// How the golden image fared last.
#[derive(Debug, Default)]
pub struct GoldenGauge(Mutex<Option<(bool, Instant)>>);

impl GoldenGauge {
    pub fn record(&self, right: bool) {
        *self.lock() = Some((right, Instant::now()));
    }

    /// Whether its last score was right, and how long ago that was; `None` where it is never scored.
    pub fn last(&self) -> Option<(bool, Duration)> {
        self.lock().map(|(right, at)| (right, at.elapsed()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<(bool, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counters of one [`ScoringService`](super::ScoringService), each since its start.
#[derive(Debug, Default)]
pub struct InferenceMetrics {
    /// Images decoded and preprocessed.
    pub decoded: Counter,
    /// Images that the decoder refused.
    pub undecodable: Counter,
    /// Time of the decode threads in decoding and preprocessing, summed over the threads.
    pub decode_busy: Stopwatch,
    /// Runs of the model, retried parts of a batch included, warm-up excluded.
    pub batches: Counter,
    /// Images that the model answered for, with a score or with a rejection.
    pub images: Counter,
    /// Time of the model thread in the model.
    pub model_busy: Stopwatch,
    /// Images whose whole answer one pass gave, since it was that of a draft.
    pub drafts_accepted: Counter,
    /// Images that a draft was tried on and that took more passes.
    pub drafts_rejected: Counter,
    /// Places in runs of the model that no image took: a run had room for so many more. Images that run
    /// together are of one size and their prompts of one length, so there is no other padding.
    pub empty_places: Counter,
    /// Times a batch ran out of memory and was halved.
    pub out_of_memory: Counter,
    /// The most images in one run now: fewer than configured for a while after memory ran out.
    pub batch_cap: Level,
    /// Times a batch failed as a whole and was split to find the image to blame.
    pub bisections: Counter,
    /// The built-in picture, which counts in nothing else here.
    pub golden: GoldenGauge,
    batch_sizes: [Counter; BATCH_SIZE_BOUNDS.len() + 1],
}

impl InferenceMetrics {
    /// Counts one run of the model.
    pub fn record_batch(&self, size: usize, elapsed: Duration) {
        self.batches.add(1);
        self.model_busy.add(elapsed);
        let bucket = BATCH_SIZE_BOUNDS.partition_point(|bound| *bound < size);
        self.batch_sizes[bucket].add(1);
    }

    /// Runs by size: `counts[i]` of those above `BATCH_SIZE_BOUNDS[i - 1]` and up to `BATCH_SIZE_BOUNDS[i]`.
    pub fn batch_sizes(&self) -> [u64; BATCH_SIZE_BOUNDS.len() + 1] {
        std::array::from_fn(|bucket| self.batch_sizes[bucket].get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_falls_into_the_bucket_that_bounds_it() {
        let metrics = InferenceMetrics::default();
        for size in [1, 2, 3, 4, 128, 129] {
            metrics.record_batch(size, Duration::from_millis(2));
        }
        assert_eq!(metrics.batch_sizes(), [1, 1, 2, 0, 0, 0, 0, 1, 1]);
        assert_eq!(metrics.batches.get(), 6);
        assert_eq!(metrics.model_busy.total(), Duration::from_millis(12));
    }
}
