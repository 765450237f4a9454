//! What a caller of the service gets back, and the one-way channel it comes through.

use super::failure::EngineFailure;
use crate::{
    fault::{Disposition, ItemError},
    score::{Answer, ModelVersion},
};
use std::{fmt, sync::Arc};
use tokio::sync::oneshot;

/// One image's answer, with the version of the model that ran its batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    pub answer: Answer,
    pub version: Arc<ModelVersion>,
    /// Pixels of the image as decoded.
    pub width: u32,
    /// Pixels of the image as decoded.
    pub height: u32,
}

/// Why an image has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ScoreFailure {
    /// The image itself is at fault, for good.
    #[error("{error}")]
    Rejected {
        error: ItemError,
        /// The version that refused it, or that would have scored it.
        version: Arc<ModelVersion>,
    },
    /// The model, its device or its memory is; the image can be scored elsewhere.
    #[error(transparent)]
    Engine(#[from] EngineFailure),
}

impl ScoreFailure {
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Rejected { .. } => Disposition::Reject,
            Self::Engine(failure) => failure.disposition(),
        }
    }
}

/// What happens to an image between its bytes and its answer, after it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It waits for a run of the model.
    Waiting,
    /// It is in a run of the model, with so many images.
    Running { batch: usize },
}

/// Told how far an image is, on the threads that work on it, which must not wait.
pub trait Observer: fmt::Debug + Send + Sync {
    fn reached(&self, step: Step);
}

/// Where an answer goes. Dropping it unanswered tells the caller that the engine stopped.
pub struct Reply {
    sender: oneshot::Sender<Result<Scored, ScoreFailure>>,
    observer: Option<Arc<dyn Observer>>,
}

impl Reply {
    /// A reply and the end that the caller awaits.
    pub fn channel() -> (Self, oneshot::Receiver<Result<Scored, ScoreFailure>>) {
        Self::observed_channel(None)
    }

    /// As [`channel`](Self::channel), for an image that somebody watches.
    pub fn observed_channel(
        observer: Option<Arc<dyn Observer>>,
    ) -> (Self, oneshot::Receiver<Result<Scored, ScoreFailure>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender, observer }, receiver)
    }

    /// The image is so far now.
    pub fn reached(&self, step: Step) {
        if let Some(observer) = &self.observer {
            observer.reached(step);
        }
    }

    /// Whether the caller has gone, so that work on the image would be for nobody.
    pub fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// Answers; a caller that has gone does not mind.
    pub fn send(self, outcome: Result<Scored, ScoreFailure>) {
        let _ = self.sender.send(outcome);
    }
}
