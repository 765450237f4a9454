//! The model thread: builds the model, warms it up, and runs batches until it is closed or fails.

use super::{
    batcher::BatchCap,
    failure::EngineFailure,
    golden::{GoldenCheck, GoldenImage},
    metrics::InferenceMetrics,
    queue::{Asker, Turn, Work, WorkQueue},
    reply::{ScoreFailure, Scored, Step},
    runner::{Runner, panic_message},
    scorer::Scorer,
    settings::InferenceSettings,
    slot::SlotPool,
    watchdog::{RunClock, longest_run, look_interval},
};
use crate::{fault::ItemError, score::ModelVersion};
use std::{
    collections::VecDeque,
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, Weak},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::{oneshot, watch};

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
    /// The built-in picture was just scored wrongly; it is scored once more before anything else is.
    Suspect(String),
    /// No image will be scored any more.
    Failed(EngineFailure),
}

/// What the handle and the model thread share.
struct Shared {
    queue: WorkQueue,
    health: watch::Sender<Health>,
    metrics: Arc<InferenceMetrics>,
    /// Shared with the thread that watches it.
    clock: Arc<RunClock>,
}

impl Shared {
    fn become_unless_failed(&self, health: Health) {
        self.health.send_if_modified(|current| {
            let changes = !matches!(current, Health::Failed(_));
            if changes {
                *current = health;
            }
            changes
        });
    }

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
    /// Starts the model thread, which calls `build` first. `golden` is scored once the model is warm,
    /// and from time to time after that. What the engine does is counted in `metrics`.
    ///
    /// # Errors
    /// [`StartError::Thread`] when there is no thread to be had; what else can go wrong shows in
    /// [`Starting::ready`].
    pub fn spawn<E, B>(
        build: B,
        golden: Option<GoldenImage>,
        settings: &InferenceSettings,
        metrics: Arc<InferenceMetrics>,
    ) -> Result<Starting<E>, StartError<E>>
    where
        E: Error + Send + 'static,
        B: FnOnce() -> Result<Box<dyn Scorer>, E> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            queue: WorkQueue::new(settings.linger()),
            health: watch::Sender::new(Health::Starting),
            metrics,
            clock: Arc::default(),
        });
        let (sender, outcome) = oneshot::channel();
        let thread = {
            let (shared, settings) = (Arc::clone(&shared), settings.clone());
            thread::Builder::new()
                .name("model".into())
                .spawn(move || model_thread(build, golden, &settings, &shared, sender))?
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

    /// How long the run of the model under way has taken; `None` between runs.
    pub fn running_for(&self) -> Option<Duration> {
        self.shared.clock.running_for(Instant::now())
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
    golden: Option<GoldenImage>,
    settings: &InferenceSettings,
    shared: &Arc<Shared>,
    outcome: oneshot::Sender<Result<Built, StartError<E>>>,
) where
    E: Error + Send + 'static,
    B: FnOnce() -> Result<Box<dyn Scorer>, E>,
{
    let _fail_on_exit = FailOnExit(shared);
    let (mut runner, mut golden, built) = match start(build, golden, settings, shared) {
        Ok(started) => started,
        Err(error) => {
            if let StartError::Engine(failure) = &error {
                shared.fail(failure.clone());
            }
            let _ = outcome.send(Err(error));
            return;
        }
    };
    let info = Arc::clone(&built.info);
    shared.health.send_replace(Health::Ready(Arc::clone(&info)));
    // Nobody waits for an engine that was given up while it loaded.
    if outcome.send(Ok(built)).is_err() {
        return;
    }
    loop {
        let turn = shared.queue.next(runner.capacity(), golden.as_ref().map(GoldenCheck::due));
        let done = match (turn, &mut golden) {
            (Turn::Batch(works), _) => run_batch(&mut runner, works),
            (Turn::Due, Some(golden)) => check_golden(golden, &mut runner, shared, &info),
            (Turn::Due, None) => Ok(()),
            (Turn::Ended, _) => return,
        };
        if let Err(failure) = done {
            tracing::error!(%failure, "the engine stops");
            shared.fail(failure);
        }
    }
}

fn start<E, B>(
    build: B,
    golden: Option<GoldenImage>,
    settings: &InferenceSettings,
    shared: &Arc<Shared>,
) -> Result<(Runner, Option<GoldenCheck>, Built), StartError<E>>
where
    E: Error + Send + 'static,
    B: FnOnce() -> Result<Box<dyn Scorer>, E>,
{
    let scorer = catch_unwind(AssertUnwindSafe(build))
        .map_err(|payload| StartError::Panicked(panic_message(payload.as_ref())))?
        .map_err(StartError::Build)?;
    let (image_size, score_range) = (scorer.image_size(), scorer.score_range());
    if let Some(preprocessed) =
        golden.as_ref().map(GoldenImage::image_size).filter(|size| *size != image_size)
    {
        return Err(StartError::InputSize { preprocessed, expected: image_size });
    }
    let capacity = settings.batch_capacity();
    // The batch that runs, the one that waits, an image in every decode thread, and two that stay.
    let kept = 1 + usize::from(golden.is_some());
    let slots = SlotPool::new(2 * capacity + settings.decode_thread_count() + kept, image_size);
    let cap = BatchCap::new(capacity, settings.out_of_memory_cooldown());
    let mut runner = Runner::new(scorer, &slots, cap, Arc::clone(&shared.metrics), Arc::clone(&shared.clock));
    let warm_up = match settings.warm_up {
        true => runner.warm_up(&slots).map_err(StartError::Engine)?,
        false => Duration::ZERO,
    };
    let golden = golden
        .map(|image| GoldenCheck::begin(image, settings.golden_interval(), &mut runner, &slots))
        .transpose()
        .map_err(StartError::Engine)?;
    if let Some(longest) = longest_run(settings.hang_timeout(), warm_up) {
        let (shared, clock) = (Arc::downgrade(shared), Arc::clone(&shared.clock));
        thread::Builder::new().name("model-watch".into()).spawn(move || watch(&shared, &clock, longest))?;
    }
    let version = Arc::clone(runner.version());
    let info = Arc::new(ModelInfo { version, image_size, score_range, warm_up });
    Ok((runner, golden, Built { info, slots }))
}

/// Fails the engine when a run takes too long. The model thread cannot be ended, and is left behind.
fn watch(shared: &Weak<Shared>, clock: &RunClock, longest: Duration) {
    while let Some(shared) = shared.upgrade() {
        if matches!(&*shared.health.borrow(), Health::Failed(_)) {
            return;
        }
        if let Some(after) = clock.running_for(Instant::now()).filter(|taken| *taken > longest) {
            let failure = EngineFailure::Hung { after };
            tracing::error!(%failure, "the engine is given up");
            shared.fail(failure);
            return;
        }
        drop(shared);
        thread::sleep(look_interval(longest));
    }
}

/// Scores the golden image; not ready from its first wrong score until a right one.
fn check_golden(
    golden: &mut GoldenCheck,
    runner: &mut Runner,
    shared: &Shared,
    info: &Arc<ModelInfo>,
) -> Result<(), EngineFailure> {
    let mut doubted = false;
    golden.check(runner, |reason| {
        tracing::warn!(reason, "the built-in picture is scored wrongly; it is scored again");
        doubted = true;
        shared.become_unless_failed(Health::Suspect(format!(
            "the built-in picture is scored wrongly: {reason}"
        )));
    })?;
    if doubted {
        shared.become_unless_failed(Health::Ready(Arc::clone(info)));
    }
    Ok(())
}

/// Scores one batch and answers each asker as soon as its image is done.
fn run_batch(runner: &mut Runner, works: Vec<Work>) -> Result<(), EngineFailure> {
    let version = Arc::clone(runner.version());
    let batch = works.len();
    let empty = runner.capacity().saturating_sub(batch);
    runner.metrics().empty_places.add(empty as u64);
    let (slots, mut askers): (Vec<_>, VecDeque<_>) =
        works.into_iter().map(|work| (work.slot, work.asker)).unzip();
    for asker in &askers {
        asker.reply.reached(Step::Running { batch });
    }
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
