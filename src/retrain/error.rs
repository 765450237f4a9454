//! Why a run ended without a verdict.

use crate::{
    config::ConfigError,
    evaluate::ComparisonError,
    evaluate_command::EvaluateCommandError,
    fault::UNAVAILABLE,
    fetch::{FetchError, UploadError},
    image::PreprocessorError,
    inference::EngineFailure,
    registry::RegistryError,
    store::{HeldRun, RunError, StoreError, VersionError},
    train::{TrainError, state::StateError},
};
use std::{io, path::Path, path::PathBuf};

/// Exit code of a run that another process can go on with (`EX_TEMPFAIL`).
const GO_ON_LATER: u8 = 75;

/// The end of a run. Unless [`is_final`](Self::is_final), the next one goes on with it.
#[derive(Debug, thiserror::Error)]
pub enum RetrainError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("the champion has no score tokens, so labels have no scale; train it first")]
    NoScoreHead,
    #[error("the gold set: {0}")]
    Gold(#[from] EvaluateCommandError),
    #[error(transparent)]
    Comparison(#[from] ComparisonError),
    #[error(transparent)]
    Preprocessor(#[from] PreprocessorError),
    #[error("scoring failed: {0}; look at model.device and model.dtype")]
    Scoring(String),
    #[error(transparent)]
    Engine(#[from] EngineFailure),
    #[error("{}: {doing} failed ({source}); check retrain.work_dir, its permissions and the disk", .path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("S3 refuses {refused} of {of} labelled photos: {reason}")]
    Denied { refused: usize, of: usize, reason: String },
    #[error("what was selected cannot be written: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("a thread ended early: {0}; run it again")]
    Thread(String),
    #[error("{0}; try again when it has ended")]
    Held(HeldRun),
    #[error("stopped while {0}, as asked; the same command goes on from here")]
    Stopped(&'static str),
}

impl RetrainError {
    /// 2 for what a user must mend before the next try, 69 for S3 and Postgres, 75 for a run that was
    /// stopped and can be gone on with, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::NoScoreHead | Self::Preprocessor(_) => 2,
            Self::Comparison(_) => 2,
            Self::Registry(error) => error.exit_code(),
            Self::Gold(error) => error.exit_code(),
            Self::Run(RunError::Store(StoreError::Configuration { .. })) => 2,
            Self::Run(RunError::Store(_)) | Self::Denied { .. } => UNAVAILABLE,
            Self::Run(RunError::Lost(_)) | Self::Held(_) | Self::Stopped(_) => GO_ON_LATER,
            Self::Train(TrainError::Cancelled { .. }) => GO_ON_LATER,
            Self::Train(error) => error.exit_code(),
            Self::Scoring(_) | Self::Engine(_) | Self::Io { .. } | Self::Encode(_) | Self::Thread(_) => 1,
        }
    }

    /// Whether the run can't be gone on with, whoever tries: the next one begins anew.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Comparison(_) => true,
            Self::Registry(RegistryError::Unfit { .. } | RegistryError::Version(_)) => {
                // A version that Postgres did not enter for want of an answer is entered by the next one.
                !matches!(self, Self::Registry(RegistryError::Version(VersionError::Store(_))))
            }
            Self::Train(error) => !matches!(
                error,
                TrainError::Cancelled { .. }
                    | TrainError::Io { .. }
                    | TrainError::ImageSource(_)
                    | TrainError::OutputBusy(_)
                    | TrainError::Memory { .. }
                    | TrainError::Torch { .. }
                    | TrainError::State(StateError::Io { .. } | StateError::Write(_))
            ),
            _ => false,
        }
    }

    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }
}

impl From<StoreError> for RetrainError {
    fn from(error: StoreError) -> Self {
        Self::Run(error.into())
    }
}

impl From<VersionError> for RetrainError {
    fn from(error: VersionError) -> Self {
        Self::Registry(error.into())
    }
}

impl From<FetchError> for RetrainError {
    fn from(error: FetchError) -> Self {
        Self::Registry(error.into())
    }
}

impl From<UploadError> for RetrainError {
    fn from(error: UploadError) -> Self {
        Self::Registry(error.into())
    }
}

/// Runs work that would hold up other tasks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RetrainError> + Send + 'static,
) -> Result<T, RetrainError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(RetrainError::Thread(error.to_string())),
    }
}
