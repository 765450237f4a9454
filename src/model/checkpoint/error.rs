//! What can be wrong with a checkpoint folder.

use crate::{fault::Disposition, model::fields::ConfigError};
use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// A checkpoint that can't be used. Each message names the file, the reason and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder, or a file that it must hold, isn't there.
    #[error("{}: {problem}; {remedy}", .path.display())]
    Layout { path: PathBuf, problem: String, remedy: &'static str },
    /// The operating system refused a read or a write.
    #[error("{}: {doing} failed ({reason}); check the path, its permissions and the disk", .path.display())]
    Io { path: PathBuf, doing: &'static str, reason: io::Error },
    /// The file's bytes are not what its format promises.
    #[error("{}: {problem}; the file is damaged or incomplete: fetch it again", .path.display())]
    Corrupt { path: PathBuf, problem: String },
    /// A tensor that `config.json` asks for and the files lack, or the other way round.
    #[error(
        "{}: tensor `{name}` {problem}{}; {}",
        .path.display(), and_others(*.others), .problem.remedy()
    )]
    Tensor {
        /// The file that holds the tensor, or the folder where none does.
        path: PathBuf,
        name: String,
        problem: TensorProblem,
        /// Further tensors with the same kind of problem.
        others: usize,
    },
    /// The files are whole, but not those that were asked for.
    #[error(
        "{}: is {found}, not {expected}; put the checkpoint there that is meant, or give its version", .path.display()
    )]
    Version { path: PathBuf, found: String, expected: String },
    /// More memory would be needed than there is.
    #[error(
        "{}: loading needs {} of memory ({purpose}), but only {} is available; \
         free memory, raise the container's limit, or load as bf16 or with a smaller batch",
        .path.display(), gibibytes(*.needed), gibibytes(*.available)
    )]
    Memory { path: PathBuf, needed: u64, available: u64, purpose: &'static str },
    /// torch refused an operation on a tensor.
    #[error("{}: tensor `{name}`: torch failed while {doing} ({reason})", .path.display())]
    Torch { path: PathBuf, name: String, doing: &'static str, reason: String },
}

/// What is wrong with one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorProblem {
    Missing { expected: Vec<i64> },
    Unexpected { found: Vec<i64> },
    Shape { expected: Vec<i64>, found: Vec<i64> },
    Dtype { found: String },
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { expected } => {
                write!(formatter, "is missing: config.json asks for one of shape {expected:?}")
            }
            Self::Unexpected { found } => {
                write!(formatter, "of shape {found:?} has no place in the network that config.json describes")
            }
            Self::Shape { expected, found } => {
                write!(formatter, "has shape {found:?}, but config.json asks for {expected:?}")
            }
            Self::Dtype { found } => {
                write!(formatter, "is stored as {found}, but only F32, F16 and BF16 weights are read")
            }
        }
    }
}

impl TensorProblem {
    fn remedy(&self) -> &'static str {
        match self {
            Self::Dtype { .. } => {
                "convert the weights with torch, or take the checkpoint as it was before it was quantized"
            }
            Self::Missing { .. } | Self::Unexpected { .. } | Self::Shape { .. } => {
                "config.json and weights must be of the same checkpoint, and complete"
            }
        }
    }
}

impl CheckpointError {
    /// A checkpoint that doesn't load won't load by asking again.
    pub fn disposition(&self) -> Disposition {
        Disposition::Stop
    }

    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self::Io { path, doing, reason }
    }

    pub(super) fn corrupt(path: &Path, problem: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), problem: problem.into() }
    }

    pub(super) fn layout(path: &Path, problem: impl Into<String>, remedy: &'static str) -> Self {
        Self::Layout { path: path.to_owned(), problem: problem.into(), remedy }
    }
}

fn and_others(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " (one more like it)".into(),
        count => format!(" ({count} more like it)"),
    }
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
