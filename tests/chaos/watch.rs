//! What the workers hold, sampled while a run lasts.

use crate::worker::Worker;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(250);
/// A metrics page is asked for every so many intervals.
const METRICS_EVERY: usize = 4;

/// The largest values seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peaks {
    /// Resident memory of one worker, in MiB.
    pub resident_mib: u64,
    /// Items between record and durable row in one worker.
    pub items_in_flight: u64,
}

#[derive(Default)]
struct State {
    workers: Vec<Worker>,
    peaks: Peaks,
    stop: bool,
}

/// The sampling thread; it ends with its handle.
pub struct Watch {
    state: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start() -> Self {
        let state: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let thread = thread::spawn({
            let state = Arc::clone(&state);
            move || observe(&state)
        });
        Self { state, thread: Some(thread) }
    }

    pub fn add(&self, worker: Worker) {
        lock(&self.state.0).workers.push(worker);
    }

    pub fn peaks(&self) -> Peaks {
        lock(&self.state.0).peaks
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.state.0).stop = true;
        self.state.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn observe((state, changed): &(Mutex<State>, Condvar)) {
    for turn in 0.. {
        let workers = lock(state).workers.clone();
        for worker in workers {
            let resident = resident_kib(worker.id).unwrap_or(0) / 1024;
            let ask = resident > 0 && turn % METRICS_EVERY == 0;
            let items =
                ask.then(|| worker.metric("roc4mllm_items_in_flight")).flatten().unwrap_or(0.0) as u64;
            let mut state = lock(state);
            state.peaks.resident_mib = state.peaks.resident_mib.max(resident);
            state.peaks.items_in_flight = state.peaks.items_in_flight.max(items);
        }
        let state = lock(state);
        let stopped = changed.wait_timeout_while(state, INTERVAL, |state| !state.stop);
        if stopped.unwrap_or_else(PoisonError::into_inner).0.stop {
            return;
        }
    }
}

/// `None` once the process is gone, or a zombie without memory.
pub fn resident_kib(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}
