//! A weighted semaphore for threads: decoded pixels are bought before they are decoded.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// A budget shared by threads, served strictly in order of asking, so that large requests do not
/// starve behind small ones.
#[derive(Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

struct Inner {
    total: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    available: u64,
    next_ticket: u64,
    serving: u64,
}

impl Budget {
    pub fn new(total: u64) -> Self {
        let state = State { available: total, next_ticket: 0, serving: 0 };
        Self { inner: Arc::new(Inner { total, state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// Blocks until `amount` is free. More than the whole budget counts as the whole budget: such a
    /// request waits until it is alone.
    pub fn acquire(&self, amount: u64) -> Permit {
        let amount = amount.min(self.inner.total);
        let mut state = self.inner.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        while state.serving != ticket || state.available < amount {
            state = self.inner.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.available -= amount;
        state.serving += 1;
        drop(state);
        self.inner.changed.notify_all();
        Permit { amount, home: Arc::clone(&self.inner) }
    }

    /// What is free.
    pub fn available(&self) -> u64 {
        self.inner.lock().available
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A part of a [`Budget`]; dropping it gives it back.
pub struct Permit {
    amount: u64,
    home: Arc<Inner>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.home.lock().available += self.amount;
        self.home.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        thread,
        time::Duration,
    };

    #[test]
    fn the_budget_is_never_exceeded() {
        let budget = Budget::new(10);
        let held = AtomicU64::new(0);
        thread::scope(|scope| {
            for worker in 0..8_u64 {
                let (budget, held) = (budget.clone(), &held);
                scope.spawn(move || {
                    for round in 0..50 {
                        let amount = 1 + (worker * 7 + round) % 9;
                        let permit = budget.acquire(amount);
                        assert!(held.fetch_add(amount, Ordering::SeqCst) + amount <= 10);
                        held.fetch_sub(amount, Ordering::SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(budget.available(), 10);
    }

    #[test]
    fn more_than_the_budget_waits_to_be_alone() {
        let budget = Budget::new(10);
        let small = budget.acquire(1);
        let large = {
            let budget = budget.clone();
            thread::spawn(move || drop(budget.acquire(1000)))
        };
        thread::sleep(Duration::from_millis(20));
        assert!(!large.is_finished());
        drop(small);
        large.join().unwrap();
        assert_eq!(budget.available(), 10);
    }
}
