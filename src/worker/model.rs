//! Loads what the worker scores with.

use super::WorkerError;
use crate::{
    image::{self, Fit, ImageSettings, Preprocessor},
    inference::{InferenceSettings, Scorer, ScoringService, StartError},
    model::{ModelError, ModelSettings, TorchScorer},
};
use std::path::Path;

/// The model and its preprocessing, from one checkpoint folder.
///
/// With the feature `dev`, a stand-in where the environment asks for one.
pub(super) async fn load(
    model: ModelSettings,
    images: ImageSettings,
    inference: InferenceSettings,
) -> Result<ScoringService, WorkerError> {
    #[cfg(feature = "dev")]
    if let Some(script) = crate::inference::stand_in::configured() {
        return load_stand_in(script, images, inference).await;
    }
    let preprocessor = Preprocessor::open(Path::new(&model.checkpoint))?.with_fit(Fit::Pad);
    let build = move || {
        TorchScorer::load(&model, image::PREPROCESS_REVISION)
            .map(|scorer| Box::new(scorer) as Box<dyn Scorer>)
    };
    ScoringService::start(build, preprocessor, images, &inference)
        .await
        .map_err(|error: StartError<ModelError>| refused(error))
}

#[cfg(feature = "dev")]
async fn load_stand_in(
    script: std::path::PathBuf,
    images: ImageSettings,
    inference: InferenceSettings,
) -> Result<ScoringService, WorkerError> {
    use crate::inference::stand_in::{self, StandInScorer};
    tracing::warn!(
        script = %script.display(),
        "no model is loaded: {} makes up every score; this is for tests alone",
        stand_in::VARIABLE
    );
    let scorer = StandInScorer::scripted(script).map_err(|error| WorkerError::Model(error.to_string()))?;
    let preprocessor = Preprocessor::clip(scorer.image_size());
    let build = move || Ok(Box::new(scorer) as Box<dyn Scorer>);
    ScoringService::start(build, preprocessor, images, &inference)
        .await
        .map_err(|error: StartError<std::convert::Infallible>| refused(error))
}

fn refused<E: std::error::Error>(error: StartError<E>) -> WorkerError {
    match error {
        StartError::Engine(failure) => WorkerError::Engine(failure),
        error => WorkerError::Model(error.to_string()),
    }
}
