//! A model that scores a sample of the live images and publishes nothing.
//!
//! Live images come first. An image is offered to the shadow with its published score, once that is on its
//! way; it takes a place in a short queue or is dropped, and while the live model has a full batch waiting
//! the shadow waits too. What it finds goes to the table of agreement and nowhere else.

use super::{
    model::ServedModel,
    share::{Purpose, Share},
};
use crate::{
    inference::{ScoreFailure, metrics::Counter},
    object::{ObjectRef, ScoreId},
    store::{ShadowPair, ShadowSums, StoreError},
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Images that wait for the shadow at most.
const PLACES: usize = 32;
/// Encoded bytes of those that wait, in KiB.
const ROOM_KIB: u32 = 64 << 10;
/// How often an image that waits looks whether the live model has become less busy.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long an image waits for that before it is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pairs are recorded once there are so many, or after so long.
const PAIRS_AT_ONCE: usize = 100;
const RECORDED_EVERY: Duration = Duration::from_secs(5);
/// Pairs that wait for Postgres at most; more are forgotten.
const PAIRS_WAITING: usize = 2_000;

/// What shadows did since the start of the process.
#[derive(Debug, Default)]
pub struct ShadowMetrics {
    /// Images that a shadow scored.
    pub scored: Counter,
    /// Images that a shadow refused or had no score for.
    pub unscored: Counter,
    /// Sampled images that were not scored because the worker was busy.
    pub dropped: Counter,
    /// Pairs that Postgres did not take in time.
    pub forgotten: Counter,
}

/// What one shadow found so far.
#[derive(Debug, Default)]
struct Found(Mutex<ShadowSums>);

impl Found {
    fn lock(&self) -> MutexGuard<'_, ShadowSums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A candidate, the share of keys that it is tried on, and the way to it.
pub struct Shadow {
    model: Arc<ServedModel>,
    share: Share,
    places: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    metrics: Arc<ShadowMetrics>,
    found: Arc<Found>,
}

struct Job {
    name: String,
    bytes: Bytes,
    id: ScoreId,
    champion: String,
    score: f64,
    _room: OwnedSemaphorePermit,
}

/// A sampled image with a place in the queue, until its published score is known.
pub struct Ticket {
    place: mpsc::OwnedPermit<Job>,
    room: OwnedSemaphorePermit,
    name: String,
    bytes: Bytes,
}

impl Shadow {
    /// Has `model` score a share of the images that are offered, and `record` (candidate, champion, pairs)
    /// keep what comes of it. While `is_busy`, live images are all that counts.
    ///
    /// The task behind it ends once this and every ticket are dropped.
    pub fn start<R, F>(
        model: Arc<ServedModel>,
        share: Share,
        metrics: Arc<ShadowMetrics>,
        is_busy: impl Fn() -> bool + Send + Sync + 'static,
        record: R,
    ) -> Arc<Self>
    where
        R: Fn(String, String, Vec<ShadowPair>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let (places, jobs) = mpsc::channel(PLACES);
        let found = Arc::<Found>::default();
        let task = Scoring {
            model: Arc::clone(&model),
            metrics: Arc::clone(&metrics),
            found: Arc::clone(&found),
            is_busy,
            record,
        };
        tokio::spawn(task.run(jobs));
        let room = Arc::new(Semaphore::new(ROOM_KIB as usize));
        Arc::new(Self { model, share, places, room, metrics, found })
    }

    /// The same with another share; its queue and its task stay.
    pub fn with_share(&self, share: Share) -> Arc<Self> {
        Arc::new(Self {
            model: Arc::clone(&self.model),
            share,
            places: self.places.clone(),
            room: Arc::clone(&self.room),
            metrics: Arc::clone(&self.metrics),
            found: Arc::clone(&self.found),
        })
    }

    pub fn model(&self) -> &Arc<ServedModel> {
        &self.model
    }

    pub fn share(&self) -> Share {
        self.share
    }

    /// Over the images that it scored in this process.
    pub fn sums(&self) -> ShadowSums {
        *self.found.lock()
    }

    /// A place for an image, if it is in the sample and there is one. Never waits.
    pub fn ticket(&self, object: &ObjectRef, bytes: &Bytes) -> Option<Ticket> {
        if !self.share.holds(Purpose::Shadow, &object.bucket, &object.key) {
            return None;
        }
        let kib = u32::try_from(bytes.len().div_ceil(1024)).unwrap_or(u32::MAX);
        let place = self.places.clone().try_reserve_owned().ok();
        let room = place.and_then(|place| {
            let room = Arc::clone(&self.room).try_acquire_many_owned(kib).ok()?;
            Some((place, room))
        });
        match room {
            Some((place, room)) => {
                Some(Ticket { place, room, name: object.to_string(), bytes: bytes.clone() })
            }
            None => {
                self.metrics.dropped.add(1);
                None
            }
        }
    }
}

impl fmt::Debug for Shadow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shadow").field("model", &self.model).field("share", &self.share).finish()
    }
}

impl Ticket {
    /// Has the image scored beside `score`, which `champion` has published as row `id`.
    pub fn compare(self, id: ScoreId, champion: String, score: f64) {
        let Self { place, room, name, bytes } = self;
        place.send(Job { name, bytes, id, champion, score, _room: room });
    }
}

struct Scoring<B, R> {
    model: Arc<ServedModel>,
    metrics: Arc<ShadowMetrics>,
    found: Arc<Found>,
    is_busy: B,
    record: R,
}

impl<B, R, F> Scoring<B, R>
where
    B: Fn() -> bool + Send + Sync,
    R: Fn(String, String, Vec<ShadowPair>) -> F + Send + Sync,
    F: Future<Output = Result<(), StoreError>> + Send,
{
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut pairs = Pairs::default();
        loop {
            let job = tokio::select! {
                job = jobs.recv() => job,
                () = tokio::time::sleep_until(pairs.due().into()) => {
                    self.keep(&mut pairs).await;
                    continue;
                }
            };
            let Some(job) = job else { break };
            if let Some((champion, pair)) = self.score(job).await {
                pairs.add(champion, pair);
            }
            if pairs.count() >= PAIRS_AT_ONCE && !pairs.rest() {
                self.keep(&mut pairs).await;
            }
        }
        self.keep(&mut pairs).await;
    }

    /// One image, one at a time, so that at most one batch of one is ever in a live batch's way.
    async fn score(&self, job: Job) -> Option<(String, ShadowPair)> {
        let Job { name, bytes, id, champion, score, _room } = job;
        let patience = Instant::now() + PATIENCE;
        while (self.is_busy)() {
            if Instant::now() >= patience {
                self.metrics.dropped.add(1);
                return None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        match self.model.score(&name, bytes, false).await {
            Ok(scored) => {
                let pair = ShadowPair { id, champion: score, candidate: scored.answer.score() };
                self.metrics.scored.add(1);
                self.found.lock().add(&pair);
                Some((champion, pair))
            }
            Err(ScoreFailure::Rejected { error, .. }) => {
                self.metrics.unscored.add(1);
                tracing::info!(code = %error.code, reason = error.message, "the shadow has no score");
                None
            }
            // It has been taken away; so will be what else waits.
            Err(ScoreFailure::Engine(_)) => None,
        }
    }

    async fn keep(&self, pairs: &mut Pairs) {
        let candidate = &self.model.version().version;
        for (champion, batch) in pairs.take() {
            if let Err(error) = (self.record)(candidate.clone(), champion.clone(), batch.clone()).await {
                tracing::warn!(%error, pairs = batch.len(), "a shadow's agreement is not recorded yet");
                let forgotten = pairs.put_back(champion, batch);
                self.metrics.forgotten.add(forgotten);
            }
        }
    }
}

/// Pairs by champion, on their way to Postgres.
struct Pairs {
    by_champion: BTreeMap<String, Vec<ShadowPair>>,
    due: Instant,
    /// Postgres did not take the last ones, and is not asked again before they are due.
    rest: bool,
}

impl Default for Pairs {
    fn default() -> Self {
        Self { by_champion: BTreeMap::new(), due: Instant::now() + RECORDED_EVERY, rest: false }
    }
}

impl Pairs {
    fn add(&mut self, champion: String, pair: ShadowPair) {
        self.by_champion.entry(champion).or_default().push(pair);
    }

    fn count(&self) -> usize {
        self.by_champion.values().map(Vec::len).sum()
    }

    fn due(&self) -> Instant {
        self.due
    }

    fn rest(&self) -> bool {
        self.rest
    }

    fn take(&mut self) -> BTreeMap<String, Vec<ShadowPair>> {
        self.due = Instant::now() + RECORDED_EVERY;
        self.rest = false;
        std::mem::take(&mut self.by_champion)
    }

    /// Keeps pairs for the next time, as many as there is room for; how many there is none for.
    fn put_back(&mut self, champion: String, mut pairs: Vec<ShadowPair>) -> u64 {
        let room = PAIRS_WAITING.saturating_sub(self.count());
        let forgotten = pairs.len().saturating_sub(room);
        pairs.truncate(room);
        self.by_champion.entry(champion).or_default().append(&mut pairs);
        self.rest = true;
        forgotten as u64
    }
}

#[cfg(all(test, feature = "dev"))]
mod tests;
