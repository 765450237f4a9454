//! A second, identical request where the first one is slow. It cuts the slowest few per cent; the
//! budget keeps it from doubling the load when everything is slow.

use super::FetchError;
use crate::fault::Disposition;
use std::{pin::pin, time::Duration};

/// Hedges that may have been saved up, so that a calm day does not pay for a storm.
const SAVED_AT_MOST: u64 = 10;
/// What one hedge costs, in per cent of a request.
const COST: u64 = 100;

/// Allows a second request for at most so many per cent of all first ones.
#[derive(Debug)]
pub(super) struct Budget {
    percent: u64,
    saved: u64,
}

impl Budget {
    pub(super) fn new(percent: u32) -> Self {
        Self { percent: u64::from(percent.min(100)), saved: 0 }
    }

    /// Takes note of a first request.
    pub(super) fn requested(&mut self) {
        self.saved = (self.saved + self.percent).min(SAVED_AT_MOST * COST);
    }

    /// Whether a hedge may be sent; if so, it is paid for.
    pub(super) fn spend(&mut self) -> bool {
        let affordable = self.saved >= COST;
        if affordable {
            self.saved -= COST;
        }
        affordable
    }
}

/// Runs `first`, and from `after` on also what `second` gives, if it gives anything. The first to
/// complete wins and the other is dropped; one that failed for a passing reason leaves it to the
/// other.
pub(super) async fn race<T, S: Future<Output = Result<T, FetchError>>>(
    first: impl Future<Output = Result<T, FetchError>>,
    after: Duration,
    second: impl FnOnce() -> Option<S>,
) -> Result<T, FetchError> {
    let mut first = pin!(first);
    if let Ok(result) = tokio::time::timeout(after, &mut first).await {
        return result;
    }
    let Some(second) = second() else { return first.await };
    let mut second = pin!(second);
    tokio::select! {
        result = &mut first => settle(result, second).await,
        result = &mut second => settle(result, first).await,
    }
}

async fn settle<T>(
    result: Result<T, FetchError>,
    other: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    match result {
        Err(error) if error.disposition() != Disposition::Reject => other.await.map_err(|_| error),
        settled => settled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn broken() -> FetchError {
        FetchError::Broken { target: "b/k".into(), reason: "reset".into() }
    }

    async fn after<T>(ms: u64, value: T) -> T {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        value
    }

    #[tokio::test]
    async fn the_faster_one_wins_and_a_failure_leaves_it_to_the_other() {
        let wait = Duration::from_millis(20);
        let race_of = |first: (u64, bool), second: (u64, bool)| async move {
            let outcome = |good: bool, name| if good { Ok(name) } else { Err(broken()) };
            let first = after(first.0, outcome(first.1, "first"));
            race(first, wait, || Some(after(second.0, outcome(second.1, "second")))).await.ok()
        };
        assert_eq!(race_of((0, true), (0, true)).await, Some("first"));
        assert_eq!(race_of((30_000, true), (10, true)).await, Some("second"));
        assert_eq!(race_of((60, true), (30_000, true)).await, Some("first"));
        assert_eq!(race_of((60, false), (200, true)).await, Some("second"));
        assert_eq!(race_of((200, true), (10, false)).await, Some("first"));
        assert_eq!(race_of((60, false), (10, false)).await, None);
    }

    #[tokio::test]
    async fn what_is_gone_is_gone_for_both() {
        let gone = || Err::<(), _>(FetchError::Missing { object: "b/k".into() });
        let outcome = race(after(30_000, Ok(())), Duration::ZERO, || Some(after(5, gone()))).await;
        assert!(matches!(outcome, Err(FetchError::Missing { .. })));
    }

    proptest! {
        /// Over any run of requests, and within any stretch but for what was saved up.
        #[test]
        fn hedges_stay_within_their_share(percent in 0_u32..=100, slow in prop::collection::vec(any::<bool>(), 0..500)) {
            let mut budget = Budget::new(percent);
            let (mut requests, mut hedges) = (0_u64, 0_u64);
            for slow in slow {
                budget.requested();
                requests += 1;
                hedges += u64::from(slow && budget.spend());
                prop_assert!(hedges * 100 <= requests * u64::from(percent));
            }
        }
    }

    #[test]
    fn a_twentieth_is_hedged_when_everything_is_slow_and_little_is_saved_up() {
        let mut budget = Budget::new(5);
        let hedged = (0..1_000)
            .filter(|_| {
                budget.requested();
                budget.spend()
            })
            .count();
        assert_eq!(hedged, 50);
        (0..10_000).for_each(|_| budget.requested());
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
    }
}
