//! Why an engine can score nothing any more.

use crate::fault::Disposition;
use std::{sync::Arc, time::Duration};

/// Why the engine can score nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineFailure {
    /// Not even one image fits.
    #[error(
        "a single image does not fit into memory ({reason}); give the model more memory or a smaller dtype"
    )]
    OutOfMemory { reason: Arc<str> },
    /// The device is beyond use for this process.
    #[error(
        "the device is unusable ({reason}); restart the process, and look at the device if it happens again"
    )]
    Device { reason: Arc<str> },
    /// The model fails whatever image it is given.
    #[error(
        "the model fails even on a blank image ({reason}); check the checkpoint with `checkpoint inspect`"
    )]
    Model { reason: Arc<str> },
    /// A batch does not come to an end.
    #[error(
        "a batch has been running for {} s and gives no sign of ending; restart the process, look at the \
         device if it happens again, and raise inference.hang_timeout_ms if the device is only slow",
        after.as_secs()
    )]
    Hung {
        /// How long it ran before it was given up.
        after: Duration,
    },
    /// The picture whose score is known no longer gets it.
    #[error(
        "the built-in picture is not scored as it should be ({reason}); restart the process, and look \
         at the device if it happens again"
    )]
    Golden { reason: Arc<str> },
    /// Images that may have ended a process cannot be scored in another one.
    #[error(
        "suspected images cannot be scored in a child process ({reason}); give the machine room for a \
         second copy of the model, and put back the checkpoint that the worker started with"
    )]
    Quarantine { reason: Arc<str> },
    /// A switch to another model freed the last one, and now neither of them loads.
    #[error(
        "neither the new model nor the last one can be loaded ({reason}); restart the process, and roll \
         back with `roc4mllm models rollback` if the new one is at fault"
    )]
    Switch { reason: Arc<str> },
    /// It was shut down.
    #[error("the engine has been shut down; start another one")]
    Stopped,
}

impl EngineFailure {
    pub(super) fn out_of_memory(reason: impl Into<Arc<str>>) -> Self {
        Self::OutOfMemory { reason: reason.into() }
    }

    pub(super) fn device(reason: impl Into<Arc<str>>) -> Self {
        Self::Device { reason: reason.into() }
    }

    pub(super) fn model(reason: impl Into<Arc<str>>) -> Self {
        Self::Model { reason: reason.into() }
    }

    pub(super) fn golden(reason: impl Into<Arc<str>>) -> Self {
        Self::Golden { reason: reason.into() }
    }

    pub fn disposition(&self) -> Disposition {
        Disposition::Stop
    }

    /// The exit code of a worker that ends because of this: 75 out of memory, 71 a batch that hangs,
    /// 70 a broken model or device.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::OutOfMemory { .. } => 75,
            Self::Hung { .. } => 71,
            Self::Device { .. }
            | Self::Model { .. }
            | Self::Golden { .. }
            | Self::Quarantine { .. }
            | Self::Switch { .. } => 70,
            Self::Stopped => 1,
        }
    }
}
