//! Decodes and scores suspected images in a child process, so that one that kills its process kills
//! only that.
//!
//! Where several processes in a row ended over a partition's records ([`crate::kafka::crash_loop`]),
//! nobody knows yet which image did it, nor whether a decoder or the model fell over it. So each is
//! handed to a child alone. An image that two children end over is the one: it is rejected as
//! [`ErrorCode::Poison`]. A child that merely cannot load the model, or ran out of memory for a second
//! copy of it, says nothing about an image.

mod child;
mod protocol;

pub use protocol::{Hello, Reply, read_frame, write_reply};

use crate::{
    fault::{ErrorCode, ItemError, Stage},
    inference::{EngineFailure, ScoreFailure, Scored, metrics::Counter, watchdog::longest_run},
    model::device::Device,
    score::ModelVersion,
};
use bytes::Bytes;
use child::{Child, Death};
use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, watch};

/// Children that an image has to end before it is to blame: the first may have been killed for
/// something else, such as memory that another process took.
const CHILDREN_PER_IMAGE: u32 = 2;
/// For loading the model and scoring a blank image.
const START_TIMEOUT: Duration = Duration::from_secs(600);
/// A child without work gives its memory back after so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The place where suspected images are decoded and scored, one at a time.
pub struct Quarantine {
    hello: Hello,
    /// What a child must score with.
    version: Arc<ModelVersion>,
    state: Mutex<State>,
    failure: watch::Sender<Option<EngineFailure>>,
    metrics: Arc<QuarantineMetrics>,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    last_used: Option<Instant>,
    /// The model's own device has no room for a second copy.
    on_cpu: bool,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct QuarantineMetrics {
    /// Images that came to an end here.
    pub images: Counter,
    /// Children that ended over an image.
    pub deaths: Counter,
}

impl Quarantine {
    /// No child is started before the first image comes. `version` is what it must score with, and
    /// `metrics` are counted on in: those of the worker, whichever models it serves in turn.
    pub fn new(hello: Hello, version: Arc<ModelVersion>, metrics: Arc<QuarantineMetrics>) -> Arc<Self> {
        Arc::new(Self { hello, version, state: Mutex::default(), failure: watch::Sender::new(None), metrics })
    }

    /// Resolves once no child can be had, so that suspected images cannot be scored at all.
    pub async fn failed(&self) -> EngineFailure {
        let mut failure = self.failure.subscribe();
        loop {
            if let Some(failure) = failure.borrow_and_update().clone() {
                return failure;
            }
            if failure.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Decodes and scores one file; `name` is what messages call it.
    ///
    /// # Errors
    /// [`ScoreFailure::Rejected`] when the image is at fault, for what its decoder says or since
    /// children end over it; [`ScoreFailure::Engine`] when no child can be had.
    pub async fn score(self: &Arc<Self>, name: &str, bytes: Bytes) -> Result<Scored, ScoreFailure> {
        let mut state = self.state.lock().await;
        let mut deaths = 0;
        loop {
            let mut child = match state.child.take() {
                Some(child) => child,
                None => self.start(&mut state).await?,
            };
            let limit = longest_run(self.hello.inference.hang_timeout(), child.warm_up());
            let death = match child.score(name, bytes.clone(), limit).await {
                Ok(reply) => {
                    state.child = Some(child);
                    state.last_used = Some(Instant::now());
                    self.metrics.images.add(1);
                    return self.read(reply);
                }
                Err(death) => death,
            };
            drop(child);
            if death.is_out_of_memory() && !state.on_cpu {
                self.move_to_cpu(&mut state, &death)?;
                continue;
            }
            self.metrics.deaths.add(1);
            deaths += 1;
            tracing::warn!(image = name, %death, deaths, "a child process ended over an image");
            if deaths >= CHILDREN_PER_IMAGE {
                self.metrics.images.add(1);
                return Err(self.poison(name, &death));
            }
        }
    }

    fn read(&self, reply: Reply) -> Result<Scored, ScoreFailure> {
        let version = Arc::clone(&self.version);
        match reply {
            Reply::Scored { answer, width, height } => Ok(Scored { answer, version, width, height }),
            Reply::Rejected { error } => Err(ScoreFailure::Rejected { error, version }),
            Reply::Ready { .. } => Err(self.fail("a child answered out of turn".into())),
        }
    }

    fn poison(&self, name: &str, death: &Death) -> ScoreFailure {
        let error = ItemError::new(
            ErrorCode::Poison,
            Stage::Infer,
            format!("{name}: the process that decodes and scores it {death}, each time; re-export the image"),
        );
        ScoreFailure::Rejected { error, version: Arc::clone(&self.version) }
    }

    /// A child that has scored a blank image.
    async fn start(self: &Arc<Self>, state: &mut State) -> Result<Child, ScoreFailure> {
        loop {
            let mut hello = self.hello.clone();
            if state.on_cpu {
                hello.model.device = Device::Cpu;
            }
            let device = hello.model.device;
            tracing::info!(%device, "a child process loads the model for suspected images");
            let started = match Child::start(&hello) {
                Ok(child) => child.ready(START_TIMEOUT).await,
                Err(error) => return Err(self.fail(format!("no process could be started: {error}"))),
            };
            match started {
                Ok((child, version)) if version == *self.version => {
                    state.last_used = Some(Instant::now());
                    tokio::spawn(end_when_idle(Arc::downgrade(self)));
                    return Ok(child);
                }
                Ok((_, version)) => {
                    return Err(self.fail(format!(
                        "the checkpoint holds {} now and held {} when the worker started",
                        version.version, self.version.version
                    )));
                }
                Err(death) => self.move_to_cpu(state, &death)?,
            }
        }
    }

    /// The next child computes on the CPU, slowly, unless the last one did already.
    fn move_to_cpu(&self, state: &mut State, death: &Death) -> Result<(), ScoreFailure> {
        if state.on_cpu || self.hello.model.device == Device::Cpu {
            return Err(self.fail(format!("a child {death}")));
        }
        tracing::warn!(
            device = %self.hello.model.device, %death,
            "the device has no place for a second copy of the model; suspected images are scored on the CPU"
        );
        state.on_cpu = true;
        Ok(())
    }

    fn fail(&self, reason: String) -> ScoreFailure {
        let failure = EngineFailure::Quarantine { reason: reason.into() };
        self.failure.send_replace(Some(failure.clone()));
        failure.into()
    }
}

/// Ends the child, and this, once no image has come for a while.
async fn end_when_idle(quarantine: Weak<Quarantine>) {
    loop {
        tokio::time::sleep(IDLE_TIMEOUT / 2).await;
        let Some(quarantine) = quarantine.upgrade() else { return };
        // One that is being used has been taken out, under this lock.
        let mut state = quarantine.state.lock().await;
        if state.last_used.is_none_or(|used| used.elapsed() >= IDLE_TIMEOUT) {
            if state.child.take().is_some() {
                tracing::info!("no more suspected images; their child process ends");
            }
            return;
        }
    }
}
