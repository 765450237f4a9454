//! Why `evaluate` ended before it had measured anything.

use crate::{
    evaluate::ComparisonError, labels::LabelFileError, model::config::ConfigError,
    score_command::ScoreCommandError,
};
use std::{io, path::PathBuf};

/// An end of the whole command; a photo that cannot be scored is part of the result instead.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateCommandError {
    #[error(transparent)]
    Labels(#[from] LabelFileError),
    #[error("{}: no label can be used; {remedy}", file.display())]
    NoLabels { file: PathBuf, remedy: &'static str },
    #[error("{}: no such folder; give --images the folder that the labels' paths begin in", .0.display())]
    NoImages(PathBuf),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}: a plain mPLUG-Owl2 without score tokens; train it first")]
    NoScoreHead(String),
    #[error(transparent)]
    Comparison(#[from] ComparisonError),
    /// Of loading, scoring, writing.
    #[error(transparent)]
    Score(#[from] ScoreCommandError),
}

impl EvaluateCommandError {
    /// 2 for what the user or the configuration can mend before the next try, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Score(error) => error.exit_code(),
            Self::Labels(_)
            | Self::NoLabels { .. }
            | Self::NoImages(_)
            | Self::Config(_)
            | Self::NoScoreHead(_)
            | Self::Comparison(_) => 2,
        }
    }

    pub(super) fn output(source: io::Error) -> Self {
        ScoreCommandError::Output(source).into()
    }
}
