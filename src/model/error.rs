//! Why a model can't be loaded.

use super::{device::Device, fields::ConfigError};
use crate::fault::Disposition;
use tch::TchError;

/// A model that can't be loaded. Each message names the input, the reason and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The device that was asked for can't be used.
    #[error("device {device}: {reason} {remedy}")]
    Device { device: Device, reason: String, remedy: &'static str },
    /// A settings file of the checkpoint can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
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
