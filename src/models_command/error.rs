//! Why a `models` command did not do what it was asked.

use crate::{
    fault::Disposition,
    registry::RegistryError,
    retrain::RetrainError,
    store::{StoreError, VersionError},
};
use std::{io, path::PathBuf};

/// An end of the whole command. Publishing is gone on with by the same command.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Trial(#[from] RetrainError),
    #[error("{}: cannot be read as metrics ({reason}); give a file with one JSON object", .path.display())]
    Metrics { path: PathBuf, reason: String },
    #[error("cannot write the results: {0}; check where standard output goes")]
    Output(#[from] io::Error),
}

impl From<StoreError> for ModelsError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

impl From<VersionError> for ModelsError {
    fn from(error: VersionError) -> Self {
        Self::Registry(error.into())
    }
}

impl ModelsError {
    /// What the caller does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Registry(error) => error.disposition(),
            Self::Trial(_) | Self::Metrics { .. } | Self::Output(_) => Disposition::Stop,
        }
    }

    /// 2 usage, configuration, or a version that cannot be what was asked; 69 S3 or Postgres does not
    /// answer; 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Registry(error) => error.exit_code(),
            Self::Trial(error) => error.exit_code(),
            Self::Metrics { .. } => 2,
            Self::Output(_) => 1,
        }
    }
}
