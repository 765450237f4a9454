//! Loads what the worker scores with.

use super::WorkerError;
use crate::{
    config::Config,
    image::{self, Fit, Preprocessor},
    inference::{Scorer, ScoringService, StartError},
    model::{ModelError, TorchScorer},
};
use std::path::Path;

/// The model and its preprocessing, from one checkpoint folder.
///
/// With the feature `dev`, a stand-in where the environment asks for one.
pub(super) async fn load(config: Config) -> Result<ScoringService, WorkerError> {
    #[cfg(feature = "dev")]
    if let Some(script) = crate::inference::stand_in::configured() {
        return load_stand_in(config, script).await;
    }
    let preprocessor = Preprocessor::open(Path::new(&config.model.checkpoint))?.with_fit(Fit::Pad);
    let settings = config.model;
    let build = move || {
        TorchScorer::load(&settings, image::PREPROCESS_REVISION)
            .map(|scorer| Box::new(scorer) as Box<dyn Scorer>)
    };
    ScoringService::start(build, preprocessor, config.image, &config.inference)
        .await
        .map_err(|error: StartError<ModelError>| refused(error))
}

#[cfg(feature = "dev")]
async fn load_stand_in(config: Config, script: std::path::PathBuf) -> Result<ScoringService, WorkerError> {
    use crate::inference::stand_in::{self, StandInScorer};
    tracing::warn!(
        script = %script.display(),
        "no model is loaded: {} makes up every score; this is for tests alone",
        stand_in::VARIABLE
    );
    let scorer = StandInScorer::scripted(script).map_err(|error| WorkerError::Model(error.to_string()))?;
    let preprocessor = Preprocessor::clip(scorer.image_size());
    let build = move || Ok(Box::new(scorer) as Box<dyn Scorer>);
    ScoringService::start(build, preprocessor, config.image, &config.inference)
        .await
        .map_err(|error: StartError<std::convert::Infallible>| refused(error))
}

fn refused<E: std::error::Error>(error: StartError<E>) -> WorkerError {
    match error {
        StartError::Engine(failure) => WorkerError::Engine(failure),
        error => WorkerError::Model(error.to_string()),
    }
}
