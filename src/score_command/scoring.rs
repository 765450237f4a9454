//! A model at work on inputs of a command: from a file's or an object's bytes to its scores.

use super::{
    args::ScoringArgs,
    error::ScoreCommandError,
    inputs::Input,
    reading::{RETRY, Reader, s3_settings},
};
use crate::{
    fault::ItemError,
    image::{self, Fit, ImageSettings, PREPROCESS_REVISION, Preprocessor},
    inference::{InferenceSettings, ScoreFailure, Scored, Scorer, ScoringService, engine::ModelInfo},
    model::{ModelSettings, scorer::TorchScorer},
    registry::{self, CheckpointSource, ResolvedCheckpoint},
    report,
};
use bytes::Bytes;
use std::{path::Path, sync::Arc};

/// A loaded model and what reads its images.
pub struct Scoring {
    service: ScoringService,
    reader: Reader,
    images: ImageSettings,
    window: usize,
}

impl Scoring {
    /// A checkpoint's folder, downloaded if it has to be.
    ///
    /// # Errors
    /// [`ScoreCommandError`] when there is none.
    pub async fn resolve(checkpoint: &CheckpointSource) -> Result<ResolvedCheckpoint, ScoreCommandError> {
        match checkpoint {
            CheckpointSource::Folder(folder) if !folder.is_dir() => {
                Err(ScoreCommandError::NoCheckpoint(folder.clone()))
            }
            source => Ok(registry::resolve_source(source, &s3_settings(), &RETRY).await?),
        }
    }

    /// Loads a model.
    ///
    /// # Errors
    /// [`ScoreCommandError`] when it can't be loaded.
    pub async fn start(
        model: ModelSettings,
        args: &ScoringArgs,
        reader: Reader,
    ) -> Result<Self, ScoreCommandError> {
        let images = ImageSettings { preprocess: args.preprocess.into(), ..ImageSettings::local() };
        let preprocessor = Preprocessor::open(Path::new(&model.checkpoint))?.with_fit(Fit::Pad);
        // A warm-up would cost as much as a batch of photos, and nobody waits for a first answer here.
        let settings = InferenceSettings {
            batch_size: usize::from(args.batch_size),
            warm_up: false,
            // Whoever waits at a terminal sees for themselves.
            hang_timeout_ms: 0,
            golden_interval_ms: 0,
            ..InferenceSettings::default()
        };
        let build = move || {
            TorchScorer::load(&model, PREPROCESS_REVISION).map(|scorer| Box::new(scorer) as Box<dyn Scorer>)
        };
        let service = ScoringService::start(build, preprocessor, images.clone(), &settings).await?;
        Ok(Self { service, reader, images, window: settings.in_flight_capacity() })
    }

    pub fn model(&self) -> &Arc<ModelInfo> {
        self.service.model()
    }

    /// How many inputs are worth having under way at once.
    pub fn window(&self) -> usize {
        self.window
    }

    /// What became of an input, and its bytes if it could be read.
    ///
    /// # Errors
    /// [`ScoreCommandError::Engine`] when the model fails; an input that can't be scored is an outcome.
    pub async fn score(
        &self,
        input: &Input,
    ) -> Result<(Result<Scored, ItemError>, Option<Bytes>), ScoreCommandError> {
        let bytes = match self.reader.read(input, self.images.max_bytes).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok((Err(error), None)),
        };
        match self.service.score(&input.name, bytes.clone()).await {
            Ok(scored) => Ok((Ok(scored), Some(bytes))),
            Err(ScoreFailure::Rejected { error, .. }) => Ok((Err(error), Some(bytes))),
            Err(ScoreFailure::Engine(failure)) => Err(failure.into()),
        }
    }

    /// A thumbnail for a report, if the file can be decoded.
    pub async fn thumbnail(&self, bytes: Bytes) -> Option<Vec<u8>> {
        let images = self.images.clone();
        let work = move || image::thumbnail(&bytes, &images, report::THUMBNAIL_EDGE);
        tokio::task::spawn_blocking(work).await.ok()?.ok()
    }

    /// An input's thumbnail for a report, if it can be read and decoded.
    pub async fn thumbnail_of(&self, input: &Input) -> Option<Vec<u8>> {
        let bytes = self.reader.read(input, self.images.max_bytes).await.ok()?;
        self.thumbnail(bytes).await
    }

    /// Answers what is under way, and frees the model.
    pub async fn shut_down(&self) {
        self.service.shut_down().await;
    }
}
