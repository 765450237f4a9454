//! The `serving` section of the configuration.

use crate::retry::RetrySettings;
use serde::{Deserialize, Serialize};

/// How one model takes the place of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchMode {
    /// The new model is loaded while the old one scores, and then takes its place: nothing waits, and
    /// there is room for two models for a while. Canaries and shadows need this.
    #[default]
    Beside,
    /// The old model ends its last images and goes before the new one is loaded: images wait, and one
    /// model is held at a time. If the new one does not load, the old one is loaded again.
    Drain,
}

/// Configuration section `serving`: how a worker whose `model.checkpoint` is `champion` follows the
/// registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServingSettings {
    /// `beside` or `drain`.
    pub switch: SwitchMode,
    /// Upper bounds of the pauses after a version could not be served, in milliseconds: the first, and
    /// the last after doubling.
    pub retry_initial_ms: u64,
    pub retry_max_ms: u64,
    /// How long a version may take to be loaded, in milliseconds, before it is given up for good.
    pub load_timeout_ms: u64,
}

impl Default for ServingSettings {
    fn default() -> Self {
        Self {
            switch: SwitchMode::default(),
            retry_initial_ms: 10_000,
            retry_max_ms: 600_000,
            load_timeout_ms: 900_000,
        }
    }
}

impl ServingSettings {
    /// The pauses after failures.
    pub fn retry(&self) -> RetrySettings {
        let (initial_ms, max_ms) = (self.retry_initial_ms, self.retry_max_ms);
        RetrySettings { initial_ms, max_ms, ..RetrySettings::default() }
    }
}
