//! Why a model can't be loaded.

use super::{
    checkpoint::CheckpointError,
    device::{Device, Quantize},
    prompt::PromptError,
    tokenizer::TokenizerError,
};
use crate::fault::Disposition;
use tch::TchError;

/// A model that can't be loaded. Each message names the input, the reason and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The device that was asked for can't be used.
    #[error("device {device}: {reason} {remedy}")]
    Device { device: Device, reason: String, remedy: &'static str },
    /// The device can't compute with weights of that kind.
    #[error("quantization {quantize}: {reason}")]
    Quantize { quantize: Quantize, reason: &'static str },
    /// The checkpoint folder can't be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its tokenizer can't be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The prompt can't be used.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The folder holds a network of a kind that isn't built here.
    #[error("{checkpoint}: model_type `{model_type}` is unknown; use a checkpoint of type `mplug_owl2`")]
    UnknownFamily { checkpoint: String, model_type: String },
    /// The folder holds a network without score tokens.
    #[error(
        "{checkpoint}: config.json names no score tokens (`score_id`), so this is not a ROC4MLLM checkpoint; \
         use one, or grow its vocabulary with `roc4mllm train --num-tokens`"
    )]
    NoScoreTokens { checkpoint: String },
    /// The prompt leaves no room for an answer.
    #[error(
        "{checkpoint}: the prompt and its image take {positions} positions, but config.json's \
         max_position_embeddings is {limit}; use a shorter prompt"
    )]
    PromptTooLong { checkpoint: String, positions: i64, limit: i64 },
    /// The network needs a parameter that wasn't loaded.
    #[error("the checkpoint lacks the tensor `{0}`; take a complete checkpoint, or correct its config.json")]
    MissingTensor(String),
    /// torch refused while the model was built.
    #[error("torch failed while {doing}: {}; free memory or choose another device", first_line(.source))]
    Torch { doing: &'static str, source: TchError },
}

impl ModelError {
    /// A model that didn't load won't load by asking again: the process can't go on.
    pub fn disposition(&self) -> Disposition {
        Disposition::Stop
    }
}

/// The first line of a torch error: what follows it is a C++ stack trace.
pub(super) fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
