//! Bytes in, answer out: the one thing that `score` and the worker hold.

use super::{
    decode_pool::{DecodePool, Job},
    engine::{Engine, Health, ModelInfo, StartError},
    failure::EngineFailure,
    golden::GoldenImage,
    metrics::InferenceMetrics,
    reading::reading,
    reply::{Observer, Reply, ScoreFailure, Scored},
    scorer::Scorer,
    settings::InferenceSettings,
};
use crate::image::{ImageSettings, Preprocessor};
use bytes::Bytes;
use std::{error::Error, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, watch};

/// Decode threads and a model thread behind one call. Callers await many images at once: that is
/// what fills batches.
pub struct ScoringService {
    engine: Arc<Engine>,
    decoders: Arc<DecodePool>,
    admission: Semaphore,
}

impl ScoringService {
    /// Loads the model, warms it up, and starts the decode threads.
    ///
    /// `build` runs on the model thread. `preprocessor` must make images of the model's input size.
    ///
    /// # Errors
    /// [`StartError`] when the model cannot be built or does not run, or a thread cannot be had.
    pub async fn start<E, B>(
        build: B,
        preprocessor: Preprocessor,
        images: ImageSettings,
        settings: &InferenceSettings,
    ) -> Result<Self, StartError<E>>
    where
        E: Error + Send + 'static,
        B: FnOnce() -> Result<Box<dyn Scorer>, E> + Send + 'static,
    {
        Self::start_counting_in(Arc::default(), build, preprocessor, images, settings).await
    }

    /// As [`start`](Self::start), but counts in `metrics`, which services that take each other's place
    /// share, so that no total begins anew.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_counting_in<E, B>(
        metrics: Arc<InferenceMetrics>,
        build: B,
        preprocessor: Preprocessor,
        images: ImageSettings,
        settings: &InferenceSettings,
    ) -> Result<Self, StartError<E>>
    where
        E: Error + Send + 'static,
        B: FnOnce() -> Result<Box<dyn Scorer>, E> + Send + 'static,
    {
        let mode = images.preprocess;
        let build = move || build().map(|scorer| reading(scorer, mode));
        let golden = (settings.golden_interval_ms > 0).then(|| GoldenImage::new(preprocessor.clone()));
        let engine = Arc::new(Engine::spawn(build, golden, settings, metrics)?.ready().await?);
        let (preprocessed, expected) = (preprocessor.image_size(), engine.info().image_size);
        if preprocessed != expected {
            return Err(StartError::InputSize { preprocessed, expected });
        }
        let decoders = Arc::new(DecodePool::start(Arc::clone(&engine), preprocessor, images, settings)?);
        Ok(Self { engine, decoders, admission: Semaphore::new(settings.in_flight_capacity()) })
    }

    /// Scores one file; `name` is what messages call it.
    ///
    /// Waits while too many images are under way. Dropping the future gives the image up.
    ///
    /// # Errors
    /// [`ScoreFailure::Rejected`] when the image is at fault, [`ScoreFailure::Engine`] when the model is.
    pub async fn score(&self, name: &str, bytes: Bytes) -> Result<Scored, ScoreFailure> {
        self.score_observed(name, bytes, None).await
    }

    /// As [`score`](Self::score), and tells `observer` how far the image is.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub async fn score_observed(
        &self,
        name: &str,
        bytes: Bytes,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Scored, ScoreFailure> {
        let _admitted = self.admission.acquire().await.map_err(|_| EngineFailure::Stopped)?;
        let (reply, answer) = Reply::observed_channel(observer);
        self.decoders.submit(Job { name: name.into(), bytes, reply });
        let mut health = self.engine.health();
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(EngineFailure::Stopped.into())),
            // The images of a run that hangs get no answer from the model thread.
            failure = hung(&mut health) => Err(failure.into()),
        }
    }

    pub fn model(&self) -> &Arc<ModelInfo> {
        self.engine.info()
    }

    pub fn health(&self) -> watch::Receiver<Health> {
        self.engine.health()
    }

    pub fn metrics(&self) -> &Arc<InferenceMetrics> {
        self.engine.metrics()
    }

    /// Preprocessed images that wait for a batch.
    pub fn waiting(&self) -> usize {
        self.engine.waiting()
    }

    /// How long the run of the model under way has taken; `None` between runs.
    pub fn running_for(&self) -> Option<Duration> {
        self.engine.running_for()
    }

    /// Takes no more images, answers those under way, and frees the model.
    pub async fn shut_down(&self) {
        self.admission.close();
        let (decoders, engine) = (Arc::clone(&self.decoders), Arc::clone(&self.engine));
        let ended = tokio::task::spawn_blocking(move || {
            decoders.shut_down();
            engine.shut_down();
        });
        // It fails only with the runtime itself, which ends the threads too.
        let _ = ended.await;
    }
}

/// Waits until the engine hangs. Other failures are told to each image by whoever holds it.
async fn hung(health: &mut watch::Receiver<Health>) -> EngineFailure {
    loop {
        if let Health::Failed(failure @ EngineFailure::Hung { .. }) = &*health.borrow_and_update() {
            return failure.clone();
        }
        if health.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(all(test, feature = "dev"))]
mod tests;
