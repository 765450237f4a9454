//! A scorer that costs nothing, so that what is measured is everything around one.

use roc4mllm::{
    fault::ItemError,
    image::{ImageSettings, PREPROCESS_REVISION, Preprocessor},
    inference::{InferenceSettings, ScoreBatch, Scorer, ScorerError, ScoringService, StartError},
    score::{Answer, DecodeKind, ModelVersion, ScoreValue},
    worker::WorkerError,
};
use serde_json::json;
use std::{convert::Infallible, fs};

/// Scores without a model, at the published model's input size.
pub async fn service(
    settings: InferenceSettings,
    images: ImageSettings,
) -> Result<ScoringService, WorkerError> {
    let failed = |error: &dyn std::fmt::Display| WorkerError::Model(error.to_string());
    let preprocessor = preprocessor().map_err(|error| failed(&error))?;
    let build = || Ok(Box::new(Free::new()) as Box<dyn Scorer>);
    ScoringService::start(build, preprocessor, images, &settings)
        .await
        .map_err(|error: StartError<Infallible>| failed(&error))
}

/// The published checkpoint's preprocessing.
pub fn preprocessor() -> Result<Preprocessor, Box<dyn std::error::Error + Send + Sync>> {
    let folder = tempfile::tempdir()?;
    let preprocessing = json!({
        "size": 448, "crop_size": 448, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    });
    fs::write(folder.path().join("preprocessor_config.json"), preprocessing.to_string())?;
    fs::write(folder.path().join("config.json"), "{}")?;
    Ok(Preprocessor::open(folder.path())?)
}

/// The name of the scorer's model and version.
pub fn version() -> ModelVersion {
    let name = || "bench".to_owned();
    ModelVersion { model: name(), version: name(), preprocess_revision: PREPROCESS_REVISION }
}

/// The answer for an image whose first value is `first`.
pub fn answer(first: f32) -> Answer {
    let weight = first.abs().min(1.0);
    let distribution = (0..10).map(|bin| if bin == 0 { weight } else { (1.0 - weight) / 9.0 });
    let score = ScoreValue::from_distribution(distribution.collect(), 1.0, 10.0);
    Answer {
        text: format!("The score is {:.4}.", score.score),
        scores: vec![score],
        tokens: Vec::new(),
        decode: DecodeKind::Generated,
        forwards: 1,
    }
}

/// Looks at one value of an image. The stand-in of the tests hashes all of them, which costs more than the rest
/// of the pipeline.
struct Free {
    version: ModelVersion,
}

impl Free {
    fn new() -> Self {
        Self { version: version() }
    }
}

impl Scorer for Free {
    fn image_size(&self) -> usize {
        448
    }

    fn version(&self) -> &ModelVersion {
        &self.version
    }

    fn score_range(&self) -> (f64, f64) {
        (1.0, 10.0)
    }

    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        Ok(batch.slots.iter().map(|slot| Ok(answer(slot.values()[0]))).collect())
    }
}
