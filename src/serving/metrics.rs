//! What switching did, as plain counters that telemetry reads.

use super::shadow::ShadowMetrics;
use crate::{
    inference::metrics::{Counter, InferenceMetrics},
    quarantine::QuarantineMetrics,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What a switch is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Nothing: what is registered is what is served.
    #[default]
    Idle,
    /// Files are downloaded and verified.
    Fetching,
    /// A model is loaded, warmed up, and scores the built-in picture.
    Loading,
    /// A model answers its last images and is freed.
    Freeing,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Idle, Self::Fetching, Self::Loading, Self::Freeing];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Fetching => "fetching",
            Self::Loading => "loading",
            Self::Freeing => "freeing",
        }
    }
}

/// Counters of the serving models, each since the start of the process. The models that take each other's
/// place count in the same ones.
#[derive(Debug, Default)]
pub struct ServingMetrics {
    /// Of the models that publish.
    pub inference: Arc<InferenceMetrics>,
    pub quarantine: Arc<QuarantineMetrics>,
    pub shadow: Arc<ShadowMetrics>,
    /// Champions that took the place of another.
    pub switches: Counter,
    /// Versions that could not be served, each try.
    pub failures: Counter,
    /// Times the registry did not answer.
    pub unanswered: Counter,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    stage: Stage,
    last_switch: Option<Duration>,
}

impl ServingMetrics {
    /// For models that count in `inference` already.
    pub fn counting_in(inference: Arc<InferenceMetrics>) -> Self {
        Self { inference, ..Self::default() }
    }

    /// What a switch is busy with now.
    pub fn stage(&self) -> Stage {
        self.lock().stage
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.lock().stage = stage;
    }

    /// How long the last switch of champions took, from noticing the new one to freeing the old one.
    pub fn last_switch(&self) -> Option<Duration> {
        self.lock().last_switch
    }

    pub(super) fn switched(&self, took: Duration) {
        self.switches.add(1);
        self.lock().last_switch = Some(took);
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
