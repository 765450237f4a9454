//! The `pipeline` section.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How much is worked on at once, and how long the pipeline may take to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineSettings {
    /// Items between their record and their durable row.
    pub max_items: usize,
    /// Encoded image bytes held at once.
    pub max_bytes: u64,
    /// How long a SIGTERM waits for started items, in milliseconds.
    pub drain_ms: u64,
    /// How long each dependency may take to answer at start, in milliseconds.
    pub start_timeout_ms: u64,
    /// How long dead letters are held, in milliseconds, once more than a fifth of the last 500
    /// outcomes, or 100 in a row, are some; 0 never holds them.
    pub dead_letter_hold_ms: u64,
}

impl Default for PipelineSettings {
    fn default() -> Self {
        Self {
            max_items: 512,
            max_bytes: 512 << 20,
            drain_ms: 20_000,
            start_timeout_ms: 15_000,
            dead_letter_hold_ms: 600_000,
        }
    }
}

impl PipelineSettings {
    pub fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }

    pub fn start_timeout(&self) -> Duration {
        Duration::from_millis(self.start_timeout_ms)
    }

    pub fn dead_letter_hold(&self) -> Duration {
        Duration::from_millis(self.dead_letter_hold_ms)
    }
}
