//! Notices a run of the model that does not end, from outside the thread that it holds.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How many warm-up runs of the largest batch a run may last.
const WARM_UPS: u32 = 10;
/// How often, within the longest run that is allowed, the running one is looked at.
const LOOKS: u32 = 20;

/// The longest a run may take: `hang_timeout`, or ten times the warm-up where that is longer. `None`
/// without a timeout.
pub fn longest_run(hang_timeout: Duration, warm_up: Duration) -> Option<Duration> {
    (!hang_timeout.is_zero()).then(|| hang_timeout.max(warm_up.saturating_mul(WARM_UPS)))
}

/// The pause between two looks at the running run.
pub fn look_interval(longest_run: Duration) -> Duration {
    (longest_run / LOOKS).clamp(Duration::from_millis(5), Duration::from_secs(1))
}

/// When the run of the model that is under way began.
#[derive(Debug, Default)]
pub struct RunClock(Mutex<Option<Instant>>);

/// One run; it ends with this.
pub struct Run<'a>(&'a RunClock);

impl RunClock {
    /// A run begins.
    pub fn begin(&self) -> Run<'_> {
        *self.lock() = Some(Instant::now());
        Run(self)
    }

    /// How long the run under way has taken by `now`; `None` between runs.
    pub fn running_for(&self, now: Instant) -> Option<Duration> {
        self.lock().map(|begun| now.saturating_duration_since(begun))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_device_gets_more_time_and_a_fast_one_no_less() {
        let timeout = Duration::from_secs(30);
        assert_eq!(longest_run(timeout, Duration::from_millis(400)), Some(timeout));
        assert_eq!(longest_run(timeout, Duration::from_secs(12)), Some(Duration::from_secs(120)));
        assert_eq!(longest_run(Duration::ZERO, Duration::from_secs(12)), None);
    }

    #[test]
    fn only_the_run_under_way_counts() {
        let clock = RunClock::default();
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(clock.running_for(later), None);
        let run = clock.begin();
        assert!(clock.running_for(later).is_some_and(|taken| taken > Duration::from_secs(50)));
        drop(run);
        assert_eq!(clock.running_for(later), None);
    }
}
