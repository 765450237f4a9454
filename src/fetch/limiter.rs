//! How many objects are fetched at once: fewer when the server asks to slow down, more again when
//! it no longer does (additive increase, multiplicative decrease).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The limit itself, without any waiting.
#[derive(Debug)]
struct Limit {
    current: usize,
    most: usize,
    /// Successes since the last change.
    successes: usize,
    /// Times that the limit was halved.
    halvings: u64,
}

/// How the server took one fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Fine,
    /// 503, 429 or `SlowDown`.
    TooMuch,
    /// It failed for a reason that says nothing about load.
    Unknown,
}

impl Limit {
    fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { current: most, most, successes: 0, halvings: 0 }
    }

    /// `begun` is the number of halvings when the fetch began. Those under way at a halving were too
    /// many by the old limit, so they do not halve the new one: at most one halving a round trip.
    fn tell(&mut self, begun: u64, load: Load) {
        if begun != self.halvings {
            return;
        }
        match load {
            Load::TooMuch => {
                self.current = (self.current / 2).max(1);
                self.successes = 0;
                self.halvings += 1;
            }
            Load::Fine if self.current < self.most => {
                self.successes += 1;
                if self.successes >= self.current {
                    self.current += 1;
                    self.successes = 0;
                }
            }
            Load::Fine | Load::Unknown => {}
        }
    }
}

/// Places for fetches, in the order of asking.
#[derive(Debug)]
pub(super) struct Limiter {
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    /// Places that are to go once their fetch ends.
    surplus: usize,
}

/// A place for one fetch.
#[derive(Debug)]
pub struct Slot {
    limiter: Arc<Limiter>,
    // `None` only while it is being dropped.
    permit: Option<OwnedSemaphorePermit>,
    begun: u64,
}

impl Limiter {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let limit = Limit::new(most);
        let places = Arc::new(Semaphore::new(limit.current));
        Arc::new(Self { places, state: Mutex::new(State { limit, surplus: 0 }) })
    }

    /// Waits for a place.
    pub(super) async fn slot(self: &Arc<Self>) -> Slot {
        // The semaphore is never closed; if it were, one fetch too many would do no harm.
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        self.taken(permit)
    }

    /// A place, if one is free.
    pub(super) fn spare_slot(self: &Arc<Self>) -> Option<Slot> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(self.taken(Some(permit)))
    }

    /// Fetches at once at most, just now.
    pub(super) fn current(&self) -> usize {
        self.lock().limit.current
    }

    fn taken(self: &Arc<Self>, permit: Option<OwnedSemaphorePermit>) -> Slot {
        Slot { limiter: Arc::clone(self), permit, begun: self.lock().limit.halvings }
    }

    fn tell(&self, begun: u64, load: Load) {
        let mut state = self.lock();
        let before = state.limit.current;
        state.limit.tell(begun, load);
        let after = state.limit.current;
        if after < before {
            let freed = self.places.forget_permits(before - after);
            state.surplus += before - after - freed;
            tracing::info!(
                from = before,
                to = after,
                "S3 asks to slow down; fewer objects are fetched at once"
            );
        } else if after > before {
            let kept = state.surplus.min(after - before);
            state.surplus -= kept;
            self.places.add_permits(after - before - kept);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Ends the fetch and says how the server took it.
    pub(super) fn end(self, load: Load) {
        self.limiter.tell(self.begun, load);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.limiter.lock();
        if state.surplus > 0 {
            state.surplus -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_of_refusals_halves_once_and_successes_add_one_a_window() {
        let mut limit = Limit::new(64);
        for _ in 0..64 {
            limit.tell(0, Load::TooMuch);
        }
        assert_eq!(limit.current, 32, "one round trip, one halving");
        limit.tell(1, Load::TooMuch);
        assert_eq!(limit.current, 16);
        for _ in 0..16 {
            assert_eq!(limit.current, 16);
            limit.tell(2, Load::Fine);
        }
        assert_eq!(limit.current, 17);
        for _ in 0..10_000 {
            limit.tell(2, Load::Fine);
        }
        assert_eq!(limit.current, 64);
    }

    fn loads() -> impl Strategy<Value = Vec<(bool, Load)>> {
        let load = prop_oneof![3 => Just(Load::Fine), 1 => Just(Load::TooMuch), 1 => Just(Load::Unknown)];
        prop::collection::vec((any::<bool>(), load), 0..300)
    }

    proptest! {
        #[test]
        fn the_limit_stays_between_one_and_the_most(most in 1_usize..100, loads in loads()) {
            let mut limit = Limit::new(most);
            for (late, load) in loads {
                let begun = limit.halvings.saturating_sub(u64::from(late));
                let before = limit.current;
                limit.tell(begun, load);
                prop_assert!((1..=most).contains(&limit.current));
                prop_assert!(limit.current >= before / 2 && limit.current <= before + 1);
            }
        }

        /// Places given out and places free always add up to the limit, or to what is still to be
        /// taken back.
        #[test]
        fn places_follow_the_limit(most in 1_usize..20, loads in loads()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let limiter = Limiter::new(most);
                let mut held = Vec::new();
                for (take, load) in loads {
                    if take {
                        held.extend(limiter.spare_slot());
                    } else if !held.is_empty() {
                        held.remove(0).end(load);
                    }
                    let (limit, surplus) = (limiter.current(), limiter.lock().surplus);
                    assert_eq!(held.len() + limiter.places.available_permits(), limit + surplus);
                }
                drop(held);
                assert_eq!(limiter.places.available_permits(), limiter.current());
            });
        }
    }
}
