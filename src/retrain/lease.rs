//! The heartbeat that keeps a run this process's, and what stops the work when it no longer is.

use super::error::RetrainError;
use crate::store::{RunError, RunLease, Store};
use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Heartbeats within a lease: some may fail before it runs out.
const BEATS: u32 = 5;

/// What goes on, for the row in Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    pub name: &'static str,
    pub done: u64,
    pub total: u64,
}

/// A run in progress: how far it is, and whether it is to stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watch {
    stage: Arc<Mutex<Stage>>,
    asked: CancellationToken,
    lost: CancellationToken,
    run: i64,
}

impl Watch {
    pub fn new(run: i64) -> Self {
        let stage = Stage { name: "selecting", done: 0, total: 0 };
        let (asked, lost) = (CancellationToken::new(), CancellationToken::new());
        Self { stage: Arc::new(Mutex::new(stage)), asked, lost, run }
    }

    /// Begins another stage.
    pub fn begin(&self, name: &'static str, total: u64) {
        *self.lock() = Stage { name, done: 0, total };
        tracing::info!(run = self.run, total, "{name}");
    }

    /// Says how far the stage is.
    pub fn reach(&self, done: u64, total: u64) {
        let mut stage = self.lock();
        (stage.done, stage.total) = (done, total);
    }

    /// One more is done.
    pub fn advance(&self) {
        self.lock().done += 1;
    }

    pub fn stage(&self) -> Stage {
        *self.lock()
    }

    /// Has the work stop when it can.
    pub fn stop(&self) {
        self.asked.cancel();
    }

    /// Resolves once the work is to stop.
    pub async fn stopped(&self) -> RetrainError {
        tokio::select! {
            () = self.asked.cancelled() => {}
            () = self.lost.cancelled() => {}
        }
        self.reason()
    }

    /// `work`, unless it is to stop before it is done.
    ///
    /// # Errors
    /// Those of `work`, and why it is to stop.
    pub async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, RetrainError>>,
    ) -> Result<T, RetrainError> {
        tokio::select! {
            biased;
            error = self.stopped() => Err(error),
            done = work => done,
        }
    }

    /// Whether the run is another process's by now.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    fn reason(&self) -> RetrainError {
        match self.is_lost() {
            true => RunError::Lost(self.run).into(),
            false => RetrainError::Stopped(self.stage().name),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the run for as long as it lives.
pub struct Heartbeat(JoinHandle<()>);

impl Heartbeat {
    /// Says several times a lease that the run is worked on. If Postgres has not heard so for a lease, or says
    /// that the run is another process's, `watch` has the work stop.
    pub fn start(store: Store, lease: RunLease, duration: Duration, watch: Watch) -> Self {
        Self(tokio::spawn(async move {
            let interval = duration / BEATS;
            let mut heard = Instant::now();
            loop {
                let Stage { name, done, total } = watch.stage();
                let sent = Instant::now();
                match store.beat_run(&lease, name, done, total).await {
                    Ok(()) => heard = sent,
                    Err(RunError::Lost(run)) => {
                        tracing::error!(run, "another process has taken the run over, or ended it");
                        watch.lost.cancel();
                        return;
                    }
                    Err(RunError::Store(error)) => {
                        tracing::warn!(%error, "no heartbeat");
                        if heard.elapsed() + interval > duration {
                            tracing::error!("the lease has run out; another process may take the run over");
                            watch.lost.cancel();
                            return;
                        }
                    }
                }
                tokio::time::sleep(interval).await;
            }
        }))
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_left_when_it_is_to_stop_and_the_reason_is_told() {
        let watch = Watch::new(7);
        assert_eq!(watch.unless_stopped(async { Ok(1) }).await.unwrap(), 1);
        watch.begin("fetching photos", 3);
        watch.advance();
        assert_eq!(watch.stage(), Stage { name: "fetching photos", done: 1, total: 3 });
        watch.stop();
        let stopped = watch.unless_stopped(std::future::pending::<Result<(), _>>()).await.unwrap_err();
        assert!(matches!(stopped, RetrainError::Stopped("fetching photos")), "{stopped}");
        assert_eq!(stopped.exit_code(), 75);
        watch.lost.cancel();
        let lost = watch.unless_stopped(async { Ok(()) }).await.unwrap_err();
        assert!(matches!(lost, RetrainError::Run(RunError::Lost(7))), "{lost}");
    }
}
