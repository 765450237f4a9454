//! Why the demo ended before it could say that everything agrees.

use crate::{
    backfill::BackfillError, dev::DevError, image::PreprocessorError, model::config::ConfigError,
    models_command::ModelsError, report, retrain::RetrainError, score_command::ScoreCommandError,
    store::StoreError, worker::WorkerError,
};
use rdkafka::error::KafkaError;
use std::{io, path::PathBuf, time::Duration};

/// An end of the whole demo; a photo that cannot be scored is a row instead.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{}: the demo's photographs are not there; run `make setup`, or name a folder with --photos", .0.display())]
    NoPhotographs(PathBuf),
    #[error("{}: no folder; give --photos a folder of photos", .0.display())]
    NoFolder(PathBuf),
    #[error(transparent)]
    Photos(#[from] ScoreCommandError),
    #[error("{}: no file in it can be read; check its permissions", .0.display())]
    NothingReadable(PathBuf),
    #[error("{}: no such folder; give --checkpoint a folder in Hugging Face layout", .0.display())]
    NoCheckpoint(PathBuf),
    #[error("--checkpoint: {0}")]
    Checkpoint(#[from] ConfigError),
    #[error("--checkpoint: {0}")]
    Preprocessor(#[from] PreprocessorError),
    #[error("{path}: cannot be written: {source}; give {option} a file in a folder that can be written to", path = path.display())]
    Unwritable { option: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Part(#[from] DevError),
    /// A client of the demo's own, not the worker's.
    #[error("the demo's Kafka client: {0}; run the demo again, and report it if it stays")]
    Kafka(#[from] KafkaError),
    #[error("an output record cannot be read: {0}; this is a defect, please report it")]
    Output(#[from] serde_json::Error),
    #[error("reading the scores back: {0}")]
    Rows(#[from] StoreError),
    #[error("the worker ended: {0}")]
    Worker(#[from] WorkerError),
    #[error("the worker ended without being asked to; run the demo again with --log-level info to see why")]
    WorkerGone,
    #[error("registering the demo's model: {0}")]
    Models(#[from] ModelsError),
    #[error("retraining: {0}")]
    Retrain(#[from] RetrainError),
    #[error("announcing photos again: {0}")]
    Backfill(#[from] BackfillError),
    #[error(
        "{what} took longer than {} s; run the demo again on a machine with less to do, or with --no-retrain",
        patience.as_secs()
    )]
    Stalled { what: &'static str, patience: Duration },
    #[error("a task of the demo failed: {0}; this is a defect, please report it")]
    Task(#[from] tokio::task::JoinError),
    #[error("interrupted; nothing was kept, run the demo again for a result")]
    Interrupted,
    #[error("cannot write the results: {0}; check where standard output goes")]
    Print(io::Error),
    /// What the demo exists to rule out.
    #[error(
        "topic and table disagree in {count} places, the first: {first}; this is a defect, please report it"
    )]
    Disagreement { count: usize, first: String },
}

impl DemoError {
    /// 2 for what the user can mend before the next try, 130 after an interrupt, the worker's own
    /// code where it failed, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoPhotographs(_)
            | Self::NoFolder(_)
            | Self::NothingReadable(_)
            | Self::NoCheckpoint(_)
            | Self::Checkpoint(_)
            | Self::Preprocessor(_)
            | Self::Unwritable { .. } => 2,
            Self::Photos(error) => error.exit_code(),
            Self::Worker(error) => error.exit_code(),
            Self::Models(error) => error.exit_code(),
            Self::Retrain(error) => error.exit_code(),
            Self::Backfill(error) => error.exit_code(),
            Self::Interrupted => 130,
            _ => 1,
        }
    }
}

/// Creates the folder of `path` and tries it out.
pub(super) fn writable(option: &'static str, path: &std::path::Path) -> Result<(), DemoError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| report::check(path))
        .map_err(|source| DemoError::Unwritable { option, path: path.to_owned(), source })
}
