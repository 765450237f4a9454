//! Why `score` ended before it had tried every input.

use crate::{
    fault::Disposition,
    fetch::FetchError,
    image::PreprocessorError,
    inference::{EngineFailure, StartError},
    model::error::ModelError,
    registry::RegistryError,
};
use std::{io, path::PathBuf};

/// An end of the whole command; an input that cannot be scored is a row instead.
#[derive(Debug, thiserror::Error)]
pub enum ScoreCommandError {
    #[error("{0}: no such file or folder; check the path")]
    Missing(String),
    #[error("`-`: standard input is not read; name files, folders or s3:// prefixes")]
    StandardInput,
    #[error("{0}: not an S3 address; write s3://bucket or s3://bucket/prefix")]
    S3Address(String),
    #[error("no image found in {0}; folders are searched for {extensions}", extensions = super::inputs::extensions())]
    NoImages(String),
    #[error(transparent)]
    S3(#[from] FetchError),
    #[error("{}: no such folder; name a checkpoint folder in Hugging Face layout", .0.display())]
    NoCheckpoint(PathBuf),
    #[error(transparent)]
    Preprocessor(#[from] PreprocessorError),
    #[error("checkpoint: {0}")]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Start(#[from] StartError<ModelError>),
    #[error(transparent)]
    Engine(#[from] EngineFailure),
    #[error("cannot write the results: {0}; check where standard output goes")]
    Output(io::Error),
    #[error("{path}: cannot write the report: {source}; give --report a file in a folder that can be written to", path = path.display())]
    Report { path: PathBuf, source: io::Error },
}

impl ScoreCommandError {
    /// 2 for what the user or the configuration can mend before the next try, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            // Wrong credentials, region or address are the user's to mend; a passing fault is not.
            Self::S3(error) if error.disposition() == Disposition::Retry => 1,
            Self::Registry(error) if error.disposition() == Disposition::Retry => 1,
            Self::Registry(error) if error.exit_code() == 1 => 1,
            Self::Missing(_)
            | Self::StandardInput
            | Self::S3Address(_)
            | Self::S3(_)
            | Self::NoImages(_)
            | Self::NoCheckpoint(_)
            | Self::Preprocessor(_)
            | Self::Registry(_)
            | Self::Start(StartError::Build(_) | StartError::InputSize { .. }) => 2,
            Self::Start(_) | Self::Engine(_) | Self::Output(_) | Self::Report { .. } => 1,
        }
    }
}
