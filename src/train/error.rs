//! Why a training run ended without a checkpoint.

use super::{
    dataset::DatasetError, images::PixelError, lora::LoraError, state::StateError, vocabulary::GrowthError,
};
use crate::{
    image::PreprocessorError,
    labels::LabelFileError,
    model::{ModelError, checkpoint::CheckpointError, config::ConfigError, tokenizer::TokenizerError},
};
use std::{io, path::PathBuf};
use tch::TchError;

/// The end of a training run. The output folder is left out or as it was.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("--{option} is {given}; give {expected}")]
    Option { option: &'static str, given: String, expected: &'static str },
    #[error("{}: exists already; give --output a new folder", .0.display())]
    OutputExists(PathBuf),
    #[error("{}: another run is writing there; wait for it, or give another --output", .0.display())]
    OutputBusy(PathBuf),
    #[error(transparent)]
    Labels(#[from] LabelFileError),
    #[error("{}: no sample in it; give --data a JSON file of training samples", .0.display())]
    NoSamples(PathBuf),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Growth(#[from] GrowthError),
    #[error(transparent)]
    Lora(#[from] LoraError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Preprocessor(#[from] PreprocessorError),
    #[error(
        "the model takes images of {model} pixels a side and its preprocessor_config.json makes {made}; \
         take both files from the same checkpoint"
    )]
    InputSize { model: i64, made: usize },
    /// Gradients and what the optimizer remembers take several times the weights' memory.
    #[error(
        "{}: training needs {needed} MiB of memory beside activations, but only {available} MiB are available; \
         free memory, train fewer parts (--train), or use --dtype bf16", .checkpoint.display()
    )]
    Memory { checkpoint: PathBuf, needed: u64, available: u64 },
    #[error("{0}; mend the image, or leave such samples out with --skip-unreadable")]
    Image(PixelError),
    #[error("{0}; check the connection and the access rights, and start again")]
    ImageSource(PixelError),
    #[error("none of the images of step {step} can be read; check where --images leads to")]
    NoImages { step: u64 },
    /// No weight was changed by the step.
    #[error(
        "step {step}: {what} is {value}, no finite number; lower --learning-rate, or clip gradients with \
         --max-grad-norm"
    )]
    NotFinite { step: u64, what: &'static str, value: f64 },
    #[error("step {step}: torch failed while {doing} ({reason}); lower --batch-size if memory ran out")]
    Torch { step: u64, doing: &'static str, reason: String },
    #[error("{}: {doing} failed ({reason}); check the path, its permissions and the disk", .path.display())]
    Io { path: PathBuf, doing: &'static str, reason: io::Error },
    #[error("stopped before step {step}, as asked; no checkpoint was written{}", resumable(*.saved))]
    Cancelled {
        step: u64,
        /// Whether the run's state is saved.
        saved: bool,
    },
}

impl TrainError {
    /// 2 for what the user can mend before the next try, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Option { .. }
            | Self::OutputExists(_)
            | Self::Labels(_)
            | Self::NoSamples(_)
            | Self::Dataset(_)
            | Self::Model(_)
            | Self::Growth(_)
            | Self::Lora(_)
            | Self::State(
                StateError::Unfinished { .. } | StateError::Different { .. } | StateError::Tensors { .. },
            )
            | Self::Preprocessor(_)
            | Self::InputSize { .. }
            | Self::Image(_)
            | Self::NoImages { .. } => 2,
            Self::OutputBusy(_)
            | Self::Memory { .. }
            | Self::ImageSource(_)
            | Self::NotFinite { .. }
            | Self::Torch { .. }
            | Self::Io { .. }
            | Self::State(StateError::Io { .. } | StateError::Write(_))
            | Self::Cancelled { .. } => 1,
        }
    }

    /// For an image whose sample may not be left out.
    pub(super) fn of_image(error: PixelError) -> Self {
        match error.is_of_this_image_alone() {
            true => Self::Image(error),
            false => Self::ImageSource(error),
        }
    }

    /// For a torch error of step `step`, which counts from 1; 0 is before the first.
    pub(super) fn torch(step: u64, doing: &'static str) -> impl Fn(TchError) -> Self {
        move |source| {
            let reason = source.to_string().lines().next().unwrap_or_default().to_owned();
            Self::Torch { step, doing, reason }
        }
    }
}

fn resumable(saved: bool) -> &'static str {
    if saved { "; go on with --resume" } else { "" }
}

impl From<CheckpointError> for TrainError {
    fn from(error: CheckpointError) -> Self {
        Self::Model(error.into())
    }
}

impl From<ConfigError> for TrainError {
    fn from(error: ConfigError) -> Self {
        Self::Model(CheckpointError::from(error).into())
    }
}

impl From<TokenizerError> for TrainError {
    fn from(error: TokenizerError) -> Self {
        Self::Model(error.into())
    }
}
