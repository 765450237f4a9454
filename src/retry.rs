//! Retries with exponential backoff and full jitter.
//!
//! The delays come from the `backoff` crate. It is no longer maintained, so nothing else in the
//! crate uses it: replacing it means rewriting this file.

use crate::fault::Disposition;
use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Configuration section `retry`: how passing faults are waited out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySettings {
    /// Upper bound of the first delay, in milliseconds. Each further bound is twice the last.
    pub initial_ms: u64,
    /// Upper bound of every delay, in milliseconds.
    pub max_ms: u64,
    /// After this long, in milliseconds, an item is given up as dead.
    pub deadline_ms: u64,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { initial_ms: 200, max_ms: 30_000, deadline_ms: 15 * 60 * 1000 }
    }
}

impl RetrySettings {
    /// The delays of one operation, with the deadline counted from now.
    pub fn backoff(&self) -> Backoff {
        self.build(Some(Duration::from_millis(self.deadline_ms)))
    }

    /// The same delays without a deadline, for what must not be given up.
    pub fn endless_backoff(&self) -> Backoff {
        self.build(None)
    }

    fn build(&self, deadline: Option<Duration>) -> Backoff {
        // A randomization factor of 1 draws from 0 to twice the interval, so full jitter up to a
        // bound is half that bound with factor 1.
        let half = |milliseconds: u64| Duration::from_millis(milliseconds) / 2;
        let delays = ExponentialBackoffBuilder::new()
            .with_initial_interval(half(self.initial_ms))
            .with_max_interval(half(self.max_ms))
            .with_multiplier(2.0)
            .with_randomization_factor(1.0)
            .with_max_elapsed_time(deadline)
            .build();
        Backoff { delays, attempts: 0 }
    }
}

/// The state of one operation's retries. The caller sleeps, so that it may also listen for
/// shutdown meanwhile.
#[derive(Debug)]
pub struct Backoff {
    delays: ExponentialBackoff,
    attempts: u32,
}

impl Backoff {
    /// Counts a failed attempt and gives the time to wait before the next one; `None` once the
    /// wait would end after the deadline.
    pub fn next_delay(&mut self) -> Option<Duration> {
        self.attempts = self.attempts.saturating_add(1);
        self.delays.next_backoff()
    }

    /// Failed attempts so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
        self.delays.reset();
    }
}

/// The error that ended the retries.
#[derive(Debug, thiserror::Error)]
#[error("{error} (after {attempts} attempts)")]
pub struct GaveUp<E> {
    /// What the last attempt ran into.
    pub error: E,
    /// Attempts made, the last one included.
    pub attempts: u32,
    /// Whether the deadline ended the retries; otherwise the error was not one to retry.
    pub exhausted: bool,
}

/// Runs `operation` until it succeeds, fails with an error that `classify` calls neither passing
/// nor environmental, or the deadline of `settings` is over.
pub async fn retry<T, E>(
    settings: &RetrySettings,
    mut operation: impl AsyncFnMut() -> Result<T, E>,
    classify: impl Fn(&E) -> Disposition,
) -> Result<T, GaveUp<E>> {
    let mut backoff = settings.backoff();
    loop {
        let error = match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let delay = backoff.next_delay();
        let retried = matches!(classify(&error), Disposition::Retry | Disposition::Hold);
        match delay {
            Some(delay) if retried => tokio::time::sleep(delay).await,
            _ => return Err(GaveUp { error, attempts: backoff.attempts(), exhausted: retried }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn quick(deadline_ms: u64) -> RetrySettings {
        RetrySettings { initial_ms: 2, max_ms: 8, deadline_ms }
    }

    #[test]
    fn delays_spread_from_nothing_to_a_bound_that_doubles() {
        let settings = RetrySettings { initial_ms: 200, max_ms: 30_000, deadline_ms: 0 };
        let mut longest = [Duration::ZERO; 12];
        let mut shortest = [Duration::MAX; 12];
        for _ in 0..400 {
            let mut backoff = settings.endless_backoff();
            for attempt in 0..longest.len() {
                let delay = backoff.next_delay().unwrap();
                longest[attempt] = longest[attempt].max(delay);
                shortest[attempt] = shortest[attempt].min(delay);
            }
        }
        for (attempt, bound) in [200_u64, 400, 800, 1600].into_iter().chain([30_000; 4]).enumerate() {
            let attempt = if attempt < 4 { attempt } else { attempt + 4 };
            let bound = Duration::from_millis(bound);
            assert!(
                longest[attempt] <= bound + Duration::from_micros(1),
                "{attempt}: {:?}",
                longest[attempt]
            );
            assert!(longest[attempt] > bound / 2, "{attempt}: {:?}", longest[attempt]);
            assert!(shortest[attempt] < bound / 10, "{attempt}: {:?}", shortest[attempt]);
        }
    }

    #[tokio::test]
    async fn passing_errors_are_retried_until_success() {
        let mut attempts = 0;
        let result: Result<i32, GaveUp<&str>> = retry(
            &quick(10_000),
            async || {
                attempts += 1;
                if attempts < 4 { Err("busy") } else { Ok(attempts) }
            },
            |_| Disposition::Retry,
        )
        .await;
        assert_eq!(result.unwrap(), 4);
    }

    #[tokio::test]
    async fn permanent_errors_are_not_retried() {
        let result: Result<(), _> =
            retry(&quick(10_000), async || Err("malformed"), |_| Disposition::Reject).await;
        let gave_up = result.unwrap_err();
        assert_eq!((gave_up.attempts, gave_up.exhausted), (1, false));
    }

    #[tokio::test]
    async fn the_deadline_ends_the_retries() {
        let started = Instant::now();
        let result: Result<(), _> = retry(&quick(60), async || Err("busy"), |_| Disposition::Hold).await;
        let gave_up = result.unwrap_err();
        assert!(gave_up.exhausted && gave_up.attempts > 1, "{gave_up:?}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
