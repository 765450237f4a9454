//! Why a model can't be loaded.

use super::device::Device;
use crate::fault::Disposition;
use tch::TchError;

/// A model that can't be loaded. Each message names the input, the reason and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The device that was asked for can't be used.
    #[error("device {device}: {reason} {remedy}")]
    Device { device: Device, reason: String, remedy: &'static str },
    /// torch refused while the model was built.
    #[error("{checkpoint}: torch failed while {doing}: {}", first_line(.source))]
    Torch { checkpoint: String, doing: &'static str, source: TchError },
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
