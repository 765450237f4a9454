//! The `[inference]` section of the configuration.

use serde::{Deserialize, Serialize};
use std::{num::NonZeroUsize, thread, time::Duration};

/// How images are gathered into batches and how many are worked on at once.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct InferenceSettings {
    /// The most images in one run of the model; fewer where memory asks for it. All images of a model have one
    /// size, so that their number is the work and the memory of a batch.
    pub batch_size: usize,
    /// How long the first image of a batch waits for company while the model is idle.
    pub linger_ms: u64,
    /// Threads that decode and preprocess; 0 is one a core.
    pub decode_threads: usize,
    /// Decoded pixels held at once, in millions. One larger image is decoded alone.
    pub decoded_megapixels: u64,
    /// Images between arrival and answer; 0 is two batches and two images a decode thread.
    pub max_in_flight: usize,
    /// Find the largest batch that fits into memory before the first image is taken.
    pub warm_up: bool,
    /// How long a batch size that ran out of memory is avoided, in seconds.
    pub out_of_memory_cooldown_s: u64,
    /// A run of the model that takes longer, and longer than ten times the warm-up, hangs, in
    /// milliseconds; 0 lets it take as long as it likes.
    pub hang_timeout_ms: u64,
    /// How often the built-in picture is scored to see that the device still computes what it did at
    /// start, in milliseconds; 0 is never.
    pub golden_interval_ms: u64,
}

impl Default for InferenceSettings {
    fn default() -> Self {
        Self {
            batch_size: 8,
            linger_ms: 20,
            decode_threads: 0,
            decoded_megapixels: 256,
            max_in_flight: 0,
            warm_up: true,
            out_of_memory_cooldown_s: 600,
            hang_timeout_ms: 30_000,
            golden_interval_ms: 60_000,
        }
    }
}

impl InferenceSettings {
    pub fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }

    pub fn out_of_memory_cooldown(&self) -> Duration {
        Duration::from_secs(self.out_of_memory_cooldown_s)
    }

    pub fn hang_timeout(&self) -> Duration {
        Duration::from_millis(self.hang_timeout_ms)
    }

    pub fn golden_interval(&self) -> Duration {
        Duration::from_millis(self.golden_interval_ms)
    }

    /// `batch_size`, at least 1.
    pub fn batch_capacity(&self) -> usize {
        self.batch_size.max(1)
    }

    /// `decode_threads`, or one a core.
    pub fn decode_thread_count(&self) -> usize {
        match self.decode_threads {
            0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
            threads => threads,
        }
    }

    /// `max_in_flight`, or enough to keep the model and every decode thread busy.
    pub fn in_flight_capacity(&self) -> usize {
        match self.max_in_flight {
            0 => 2 * self.batch_capacity() + 2 * self.decode_thread_count(),
            images => images,
        }
    }
}
