//! Why a command about labels ended before it was done.

use crate::config::ConfigError;
use crate::fault::Disposition;
use crate::labels::LabelFileError;
use crate::store::StoreError;
use crate::worker::UNAVAILABLE;
use std::{io, path::PathBuf};

/// An end of the whole command; a label that is passed over is counted instead.
#[derive(Debug, thiserror::Error)]
pub enum LabelsCommandError {
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error("{}: its name says neither .json, .jsonl nor .csv; give --format", .0.display())]
    Format(PathBuf),
    #[error("--rater {0:?}: a rater has a name of 1 to 255 bytes; give another")]
    Rater(String),
    /// The file as a whole.
    #[error(transparent)]
    File(LabelFileError),
    #[error(
        "{}: {refused} of {labels} labels are refused, so none was imported; correct them, or give --skip-invalid",
        file.display()
    )]
    Refused { file: PathBuf, refused: u64, labels: u64 },
    #[error("{}: cannot be written: {source}; check the path, its permissions and the space left", file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error("cannot write the suggestions: {0}; check where standard output goes")]
    Output(io::Error),
    #[error("Postgres: {0}")]
    Postgres(#[from] StoreError),
    #[error("a thread of the command ended early: {0}; run it again")]
    Thread(String),
}

impl LabelsCommandError {
    /// What the caller does next. Nothing is lost by any of them: the same command does what is left.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Postgres(error) => error.disposition(),
            _ => Disposition::Stop,
        }
    }

    /// 2 usage, configuration and files that can't be read, 3 labels that are refused, 69 Postgres, 1 the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_)
            | Self::Format(_)
            | Self::Rater(_)
            | Self::File(LabelFileError::Read { .. } | LabelFileError::Header { .. })
            | Self::Postgres(StoreError::Configuration { .. }) => 2,
            Self::File(_) | Self::Refused { .. } => 3,
            Self::Postgres(_) => UNAVAILABLE,
            Self::Write { .. } | Self::Output(_) | Self::Thread(_) => 1,
        }
    }
}
