//! The one place where decode threads hand images to the model thread.

use super::{
    batcher::{Batcher, Next},
    failure::EngineFailure,
    reply::Reply,
    slot::Slot,
};
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A preprocessed image on its way to the model.
pub struct Work {
    pub slot: Slot,
    pub asker: Asker,
}

/// Who asked for an image, and what the answer says beside the score. Stays out of the model's sight.
pub struct Asker {
    /// What messages call the image.
    pub name: Arc<str>,
    /// Pixels as decoded.
    pub width: u32,
    /// Pixels as decoded.
    pub height: u32,
    pub reply: Reply,
}

/// What the model thread does next.
pub enum Turn {
    /// Score these.
    Batch(Vec<Work>),
    /// The moment that it asked to be woken at has come.
    Due,
    /// The queue is closed and empty, or failed.
    Ended,
}

/// Preprocessed images in order of arrival. Bounded by the slots that they hold: there is room for
/// one batch beyond the one that runs.
pub struct WorkQueue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    batcher: Batcher<Work>,
    failure: Option<EngineFailure>,
}

impl WorkQueue {
    pub fn new(linger: Duration) -> Self {
        Self {
            state: Mutex::new(State { batcher: Batcher::new(linger), failure: None }),
            changed: Condvar::new(),
        }
    }

    /// Hands over one image. On a failed or closed queue it is answered at once.
    pub fn push(&self, work: Work) {
        let mut state = self.lock();
        let refusal = match &state.failure {
            Some(failure) => Some(failure.clone()),
            None if state.batcher.is_closed() => Some(EngineFailure::Stopped),
            None => None,
        };
        if let Some(failure) = refusal {
            drop(state);
            work.asker.reply.send(Err(failure.into()));
            return;
        }
        state.batcher.push(work, Instant::now());
        drop(state);
        self.changed.notify_all();
    }

    /// Blocks until a batch is due and takes it, at most `capacity` images; no longer than until
    /// `wake`, which goes before a batch so that a busy queue does not put it off.
    pub fn next(&self, capacity: usize, wake: Option<Instant>) -> Turn {
        let mut state = self.lock();
        loop {
            if state.failure.is_some() {
                return Turn::Ended;
            }
            state.batcher.retain(|work| !work.asker.reply.is_abandoned());
            let now = Instant::now();
            let closed = state.batcher.is_closed();
            if !closed && wake.is_some_and(|wake| now >= wake) {
                return Turn::Due;
            }
            let until = match state.batcher.next(now, capacity) {
                Next::Take(count) => return Turn::Batch(state.batcher.take(count)),
                Next::Idle if closed => return Turn::Ended,
                Next::Idle => wake,
                Next::WaitUntil(deadline) => Some(wake.map_or(deadline, |wake| wake.min(deadline))),
            };
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let pause = until.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(state, pause);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Images that wait for a batch.
    pub fn len(&self) -> usize {
        self.lock().batcher.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes no more images; those that wait are still scored.
    pub fn close(&self) {
        self.lock().batcher.close();
        self.changed.notify_all();
    }

    /// Answers everything that waits, and whatever comes later, with `failure`. The first one stands.
    pub fn fail(&self, failure: EngineFailure) {
        let mut state = self.lock();
        let failure = state.failure.get_or_insert(failure).clone();
        let waiting = state.batcher.len();
        let abandoned = state.batcher.take(waiting);
        drop(state);
        self.changed.notify_all();
        for work in abandoned {
            work.asker.reply.send(Err(failure.clone().into()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
