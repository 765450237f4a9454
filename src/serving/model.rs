//! A loaded model with everything that belongs to it alone.

use crate::{
    inference::{EngineFailure, Health, Observer, ScoreFailure, Scored, ScoringService, Step},
    quarantine::{Hello, Quarantine, QuarantineMetrics},
    score::ModelVersion,
};
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};

/// One version of a model, being served.
///
/// Its preprocessing, its slots of pixel values, its threads and its child process are its own. So an
/// image that was preprocessed for one model cannot reach another, whatever the two differ in, and a
/// model is exchanged by exchanging all of this.
pub struct ServedModel {
    service: ScoringService,
    quarantine: Arc<Quarantine>,
    batch_capacity: usize,
}

impl ServedModel {
    /// `child` is what a child process for suspected images loads: this very model.
    pub fn new(service: ScoringService, child: Hello, metrics: Arc<QuarantineMetrics>) -> Arc<Self> {
        let batch_capacity = child.inference.batch_capacity();
        let quarantine = Quarantine::new(child, Arc::clone(&service.model().version), metrics);
        Arc::new(Self { service, quarantine, batch_capacity })
    }

    /// The version that every answer of this model carries.
    pub fn version(&self) -> &Arc<ModelVersion> {
        &self.service.model().version
    }

    /// Decodes and scores one file, in a child process if it is `suspect`; `name` is what messages call
    /// it.
    ///
    /// # Errors
    /// [`ScoreFailure::Rejected`] when the image is at fault. [`ScoreFailure::Engine`] when the model is,
    /// or when it was shut down before it took the image: [`Models::lost`](super::Models::lost) says
    /// whether another one takes it.
    pub async fn score(&self, name: &str, bytes: Bytes, suspect: bool) -> Result<Scored, ScoreFailure> {
        self.score_observed(name, bytes, suspect, None).await
    }

    /// As [`score`](Self::score), and tells `observer` how far the image is.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub async fn score_observed(
        &self,
        name: &str,
        bytes: Bytes,
        suspect: bool,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Scored, ScoreFailure> {
        if !suspect {
            return self.service.score_observed(name, bytes, observer).await;
        }
        // The child decodes, and says nothing of when it is done with that.
        if let Some(observer) = observer {
            observer.reached(Step::Running { batch: 1 });
        }
        self.quarantine.score(name, bytes).await
    }

    /// The lowest and the highest score it can give.
    pub fn score_range(&self) -> (f64, f64) {
        self.service.model().score_range
    }

    /// How long the run of the model under way has taken; `None` between runs.
    pub fn running_for(&self) -> Option<Duration> {
        self.service.running_for()
    }

    /// How long ago the built-in picture got its right score; `None` unless its last one was right.
    pub fn proven_ago(&self) -> Option<Duration> {
        let (right, ago) = self.service.metrics().golden.last()?;
        right.then_some(ago)
    }

    /// Whether it scores images now.
    ///
    /// # Errors
    /// Why it does not.
    pub fn is_well(&self) -> Result<(), String> {
        match &*self.service.health().borrow() {
            Health::Ready(_) => Ok(()),
            Health::Starting => Err("the model is being loaded".into()),
            Health::Suspect(reason) => Err(reason.clone()),
            Health::Failed(failure) => Err(failure.to_string()),
        }
    }

    /// Preprocessed images that wait for a batch.
    pub fn waiting(&self) -> usize {
        self.service.waiting()
    }

    /// Whether a whole batch waits for it beside the one that runs.
    pub fn is_saturated(&self) -> bool {
        self.waiting() >= self.batch_capacity
    }

    /// Resolves once it can score nothing any more, or no suspected image.
    pub async fn failed(&self) -> EngineFailure {
        tokio::select! {
            failure = engine_failed(&self.service) => failure,
            failure = self.quarantine.failed() => failure,
        }
    }

    /// Answers the images that it has taken, takes no more, and frees the model.
    pub async fn shut_down(&self) {
        self.service.shut_down().await;
    }
}

impl fmt::Debug for ServedModel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("ServedModel").field(&self.version().version).finish()
    }
}

async fn engine_failed(service: &ScoringService) -> EngineFailure {
    let mut health = service.health();
    loop {
        if let Health::Failed(failure) = &*health.borrow_and_update() {
            return failure.clone();
        }
        if health.changed().await.is_err() {
            return EngineFailure::Stopped;
        }
    }
}
