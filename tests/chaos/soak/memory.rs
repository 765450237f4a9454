//! Resident memory of processes over time.

use crate::watch::resident_kib;
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// One process's memory; a restarted worker is another process.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    pub name: String,
    #[serde(skip)]
    process: u32,
    /// Seconds since the beginning, and MiB.
    pub samples: Vec<(f64, f64)>,
}

impl Series {
    fn between(&self, from: Duration, to: Duration) -> Vec<f64> {
        let within = |at: f64| at >= from.as_secs_f64() && at < to.as_secs_f64();
        self.samples.iter().filter(|(at, _)| within(*at)).map(|(_, mib)| *mib).collect()
    }

    /// How much more the last `window` has than the first one after the warm-up, in percent.
    pub fn growth_percent(&self, begin: Duration, warm_up: Duration, window: Duration) -> Option<f64> {
        let end = Duration::from_secs_f64(self.samples.last()?.0) + INTERVAL / 2;
        let from = begin + warm_up;
        let before = median(self.between(from, from + window))?;
        let after = median(self.between(end.checked_sub(window)?, end))?;
        Some((after / before - 1.0) * 100.0)
    }

    /// The highest sample.
    pub fn peak(&self) -> Option<f64> {
        self.samples.iter().map(|(_, mib)| *mib).max_by(f64::total_cmp)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Samples every second, in a thread that ends with the last handle.
#[derive(Clone)]
pub struct Memory {
    begun: Instant,
    series: Arc<Mutex<Vec<Series>>>,
}

impl Memory {
    pub fn start() -> Self {
        let memory = Self { begun: Instant::now(), series: Arc::default() };
        let (begun, series) = (memory.begun, Arc::downgrade(&memory.series));
        thread::spawn(move || sample(begun, &series));
        memory
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn watch(&self, name: &str, process: u32) {
        self.lock().push(Series { name: name.to_owned(), process, samples: Vec::new() });
    }

    /// The last sample of a name, in MiB.
    pub fn last(&self, name: &str) -> Option<f64> {
        Some(self.lock().iter().rfind(|series| series.name == name)?.samples.last()?.1)
    }

    pub fn series(&self) -> Vec<Series> {
        self.lock().clone()
    }
}

fn sample(begun: Instant, series: &Weak<Mutex<Vec<Series>>>) {
    while let Some(all) = series.upgrade() {
        for one in all.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            if let Some(kib) = resident_kib(one.process) {
                one.samples.push((begun.elapsed().as_secs_f64(), kib as f64 / 1024.0));
            }
        }
        drop(all);
        thread::sleep(INTERVAL);
    }
}
