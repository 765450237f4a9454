//! The model thread: builds the model, warms it up, and runs batches until it is closed or fails.

use super::{
    batcher::BatchCap,
    metrics::InferenceMetrics,
    queue::{Asker, Work, WorkQueue},
    reply::{ScoreFailure, Scored},
    runner::{Runner, panic_message},
    scorer::Scorer,
    settings::InferenceSettings,
    slot::SlotPool,
};
use crate::{
    fault::{Disposition, ItemError},
    score::ModelVersion,
};
use std::{
    collections::VecDeque,
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Why the engine can score nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineFailure {
    /// Not even one image fits.
    #[error(
        "a single image does not fit into memory ({reason}); give the model more memory or a smaller dtype"
    )]
    OutOfMemory { reason: Arc<str> },
    /// The device is beyond use for this process.
    #[error(
        "the device is unusable ({reason}); restart the process, and look at the device if it happens again"
    )]
    Device { reason: Arc<str> },
    /// The model fails whatever image it is given.
    #[error(
        "the model fails even on a blank image ({reason}); check the checkpoint with `checkpoint inspect`"
    )]
    Model { reason: Arc<str> },
    /// It was shut down.
    #[error("the engine has been shut down; start another one")]
    Stopped,
}

impl EngineFailure {
    pub(super) fn out_of_memory(reason: impl Into<Arc<str>>) -> Self {
        Self::OutOfMemory { reason: reason.into() }
    }

    pub(super) fn device(reason: impl Into<Arc<str>>) -> Self {
        Self::Device { reason: reason.into() }
    }

    pub(super) fn model(reason: impl Into<Arc<str>>) -> Self {
        Self::Model { reason: reason.into() }
    }

    pub fn disposition(&self) -> Disposition {
        Disposition::Stop
    }

    /// The exit code of a worker that ends because of this: 75 out of memory, 70 a broken model or device.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::OutOfMemory { .. } => 75,
            Self::Device { .. } | Self::Model { .. } => 70,
            Self::Stopped => 1,
        }
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum StartError<E: Error + 'static> {
    /// The model could not be built.
    #[error(transparent)]
    Build(E),
    /// It was built but does not run.
    #[error(transparent)]
    Engine(EngineFailure),
    /// Building it panicked.
    #[error("loading the model failed: {0}; check the checkpoint with `checkpoint inspect`")]
    Panicked(String),
    /// Images are preprocessed for another model.
    #[error(
        "images are preprocessed to {preprocessed} pixels a side and the model takes {expected}; \
         take preprocessor_config.json and config.json from one checkpoint"
    )]
    InputSize { preprocessed: usize, expected: usize },
    /// The operating system gave no thread.
    #[error("cannot start a thread: {0}; raise the limit on threads or memory")]
    Thread(#[from] std::io::Error),
}

/// The model that an engine runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    pub version: Arc<ModelVersion>,
    /// Edge of the square input, in pixels.
    pub image_size: usize,
    /// The lowest and the highest score it can give.
    pub score_range: (f64, f64),
    /// How long the largest batch took in warm-up; zero without one.
    pub warm_up: Duration,
}

/// Where an engine stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    /// The model is being loaded or warmed up.
    Starting,
    /// Images are scored.
    Ready(Arc<ModelInfo>),
    /// No image will be scored any more.
    Failed(EngineFailure),
}

/// What the handle and the model thread share.
struct Shared {
    queue: WorkQueue,
    health: watch::Sender<Health>,
    metrics: Arc<InferenceMetrics>,
}

impl Shared {
    /// Ends everything for `failure`; the first one stands.
    fn fail(&self, failure: EngineFailure) {
        self.queue.fail(failure.clone());
        self.health.send_if_modified(|health| {
            let first = !matches!(health, Health::Failed(_));
            if first {
                *health = Health::Failed(failure);
            }
            first
        });
    }
}

/// Ends the engine when the model thread does, even by a panic.
struct FailOnExit<'a>(&'a Shared);

impl Drop for FailOnExit<'_> {
    fn drop(&mut self) {
        self.0.fail(EngineFailure::Stopped);
    }
}

struct Built {
    info: Arc<ModelInfo>,
    slots: SlotPool,
}

/// An engine whose model is still being loaded.
pub struct Starting<E: Error + Send + 'static> {
    shared: Arc<Shared>,
    outcome: oneshot::Receiver<Result<Built, StartError<E>>>,
    thread: JoinHandle<()>,
}

impl<E: Error + Send + 'static> Starting<E> {
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// Waits until the model is loaded and warmed up.
    ///
    /// # Errors
    /// [`StartError`] when it could not be built or does not run.
    pub async fn ready(self) -> Result<Engine, StartError<E>> {
        match self.outcome.await {
            Ok(Ok(Built { info, slots })) => {
                Ok(Engine { shared: self.shared, info, slots, thread: Mutex::new(Some(self.thread)) })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StartError::Engine(EngineFailure::Stopped)),
        }
    }
}

/// A model on its own thread, fed through a queue.
///
/// The thread builds the model, so that a scorer need not be `Send`. Every answer carries the
/// version of the scorer that ran its batch.
pub struct Engine {
    shared: Arc<Shared>,
    info: Arc<ModelInfo>,
    slots: SlotPool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the model thread, which calls `build` first.
    ///
    /// # Errors
    /// [`StartError::Thread`] when there is no thread to be had; what else can go wrong shows in
    /// [`Starting::ready`].
    pub fn spawn<E, B>(build: B, settings: &InferenceSettings) -> Result<Starting<E>, StartError<E>>
    where
        E: Error + Send + 'static,
        B: FnOnce() -> Result<Box<dyn Scorer>, E> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            queue: WorkQueue::new(settings.linger()),
            health: watch::Sender::new(Health::Starting),
            metrics: Arc::default(),
        });
        let (sender, outcome) = oneshot::channel();
        let thread = {
            let (shared, settings) = (Arc::clone(&shared), settings.clone());
            thread::Builder::new()
                .name("model".into())
                .spawn(move || model_thread(build, &settings, &shared, sender))?
        };
        Ok(Starting { shared, outcome, thread })
    }

    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }

    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    pub fn metrics(&self) -> &Arc<InferenceMetrics> {
        &self.shared.metrics
    }

    /// Slots to preprocess into.
    pub fn slots(&self) -> &SlotPool {
        &self.slots
    }

    /// Hands an image to the model; its reply is always answered.
    pub fn submit(&self, work: Work) {
        self.shared.queue.push(work);
    }

    /// Images that wait for a batch.
    pub fn waiting(&self) -> usize {
        self.shared.queue.len()
    }

    /// Scores what waits, then ends the model thread. Blocks; a second call does nothing.
    pub fn shut_down(&self) {
        self.shared.queue.close();
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            // A panic of the thread has already failed the engine, which is how callers learn of it.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

fn model_thread<E, B>(
    build: B,
    settings: &InferenceSettings,
    shared: &Shared,
    outcome: oneshot::Sender<Result<Built, StartError<E>>>,
) where
    E: Error + Send + 'static,
    B: FnOnce() -> Result<Box<dyn Scorer>, E>,
{
    let _fail_on_exit = FailOnExit(shared);
    let (mut runner, built) = match start(build, settings, shared) {
        Ok(started) => started,
        Err(error) => {
            if let StartError::Engine(failure) = &error {
                shared.fail(failure.clone());
            }
            let _ = outcome.send(Err(error));
            return;
        }
    };
    shared.health.send_replace(Health::Ready(Arc::clone(&built.info)));
    // Nobody waits for an engine that was given up while it loaded.
    if outcome.send(Ok(built)).is_err() {
        return;
    }
    while let Some(works) = shared.queue.next_batch(runner.capacity()) {
        if let Err(failure) = run_batch(&mut runner, works) {
            tracing::error!(%failure, "the engine stops");
            shared.fail(failure);
        }
    }
}

fn start<E, B>(
    build: B,
    settings: &InferenceSettings,
    shared: &Shared,
) -> Result<(Runner, Built), StartError<E>>
where
    E: Error + Send + 'static,
    B: FnOnce() -> Result<Box<dyn Scorer>, E>,
{
    let scorer = catch_unwind(AssertUnwindSafe(build))
        .map_err(|payload| StartError::Panicked(panic_message(payload.as_ref())))?
        .map_err(StartError::Build)?;
    let (image_size, score_range) = (scorer.image_size(), scorer.score_range());
    let capacity = settings.batch_capacity();
    // The batch that runs, the one that waits, an image in every decode thread, and the neutral image.
    let slots = SlotPool::new(2 * capacity + settings.decode_thread_count() + 1, image_size);
    let cap = BatchCap::new(capacity, settings.out_of_memory_cooldown());
    let mut runner = Runner::new(scorer, &slots, cap, Arc::clone(&shared.metrics));
    let warm_up = match settings.warm_up {
        true => runner.warm_up(&slots).map_err(StartError::Engine)?,
        false => Duration::ZERO,
    };
    let version = Arc::clone(runner.version());
    let info = Arc::new(ModelInfo { version, image_size, score_range, warm_up });
    Ok((runner, Built { info, slots }))
}

/// Scores one batch and answers each asker as soon as its image is done.
fn run_batch(runner: &mut Runner, works: Vec<Work>) -> Result<(), EngineFailure> {
    let version = Arc::clone(runner.version());
    let (slots, mut askers): (Vec<_>, VecDeque<_>) =
        works.into_iter().map(|work| (work.slot, work.asker)).unzip();
    let outcome = runner.run(slots, &mut |verdict| {
        if let Some(Asker { name, width, height, reply }) = askers.pop_front() {
            let version = Arc::clone(&version);
            reply.send(match verdict {
                Ok(answer) => Ok(Scored { answer, version, width, height }),
                Err(error) => Err(ScoreFailure::Rejected { error: about(&name, error), version }),
            });
        }
    });
    if let Err(failure) = &outcome {
        for asker in askers {
            asker.reply.send(Err(failure.clone().into()));
        }
    }
    outcome
}

/// `error` with the image's name in front of its message.
fn about(name: &str, error: ItemError) -> ItemError {
    ItemError::new(error.code, error.stage, format!("{name}: {}", error.message))
}

#[cfg(test)]
mod tests;
