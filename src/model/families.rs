//! The networks that a checkpoint's `model_type` may name.

use super::{
    config::ModelConfig, error::ModelError, family::Family, mplug_owl2::MplugOwl2, parameters::Parameters,
};

/// Builds the network that `config` describes; `checkpoint` is what messages call it.
///
/// # Errors
/// [`ModelError`] for a type that isn't built here, or a parameter that is missing.
pub fn build_family(
    config: &ModelConfig,
    parameters: Parameters,
    checkpoint: &str,
) -> Result<Box<dyn Family>, ModelError> {
    match config.model_type.as_str() {
        "mplug_owl2" => Ok(Box::new(MplugOwl2::new(config.clone(), parameters)?)),
        other => {
            Err(ModelError::UnknownFamily { checkpoint: checkpoint.to_owned(), model_type: other.to_owned() })
        }
    }
}
