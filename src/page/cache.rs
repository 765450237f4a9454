//! Answers of Postgres that every viewer shares, so that page views can't hammer it.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use tokio::sync::Mutex;

/// An answer stands for at least so many times as long as it took: one cache keeps Postgres busy for a
/// twentieth of the time at most, whatever a table has grown to.
const REST: u32 = 20;

/// A value with its age.
#[derive(Debug)]
pub struct Aged<T> {
    pub value: Arc<T>,
    pub as_of: OffsetDateTime,
    /// Why a newer one could not be had.
    pub stale: Option<Arc<str>>,
}

// By hand, since a value need not be cloneable to be shared.
impl<T> Clone for Aged<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), as_of: self.as_of, stale: self.stale.clone() }
    }
}

/// One value, asked for again when somebody wants it and it is too old.
pub struct Cache<T> {
    at_least: Duration,
    state: Mutex<State<T>>,
}

struct State<T> {
    last: Option<Aged<T>>,
    /// The reason of the last failure, where nothing came before it.
    failed: Option<Arc<str>>,
    fresh_until: Option<Instant>,
}

impl<T> Cache<T> {
    /// Values stand for `at_least` this long.
    pub fn new(at_least: Duration) -> Self {
        Self { at_least, state: Mutex::new(State { last: None, failed: None, fresh_until: None }) }
    }

    /// The value, from `ask` if the last one is too old. Those who come meanwhile wait for the same answer.
    ///
    /// # Errors
    /// Why there is no value at all. Where there is an older one, it is given and says so.
    pub async fn get<E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
        &self,
        ask: impl FnOnce() -> F,
    ) -> Result<Aged<T>, Arc<str>> {
        let mut state = self.state.lock().await;
        if state.fresh_until.is_none_or(|until| Instant::now() >= until) {
            let begun = Instant::now();
            let answer = ask().await;
            let now = Instant::now();
            state.fresh_until = Some(now + self.at_least.max((now - begun) * REST));
            match answer {
                Ok(value) => {
                    let as_of = OffsetDateTime::now_utc();
                    state.last = Some(Aged { value: Arc::new(value), as_of, stale: None });
                }
                Err(error) => {
                    let reason: Arc<str> = error.to_string().into();
                    tracing::warn!(%reason, "the page shows what it has");
                    match &mut state.last {
                        Some(last) => last.stale = Some(reason),
                        None => state.failed = Some(reason),
                    }
                }
            }
        }
        match (&state.last, &state.failed) {
            (Some(last), _) => Ok(last.clone()),
            (None, failed) => Err(failed.clone().unwrap_or_else(|| "nothing was read yet".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn many_viewers_ask_once() {
        let cache = Cache::new(Duration::from_secs(3600));
        let asked = AtomicU32::new(0);
        let ask = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok::<_, String>(7)
        };
        let viewers = futures_util::future::join_all((0..50).map(|_| cache.get(ask))).await;
        assert!(viewers.into_iter().all(|seen| *seen.unwrap().value == 7));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_is_old_is_shown_and_called_so_while_nothing_newer_can_be_had() {
        let cache = Cache::new(Duration::ZERO);
        let refused = cache.get(|| async { Err::<u32, _>("postgres is down") }).await;
        assert_eq!(&*refused.unwrap_err(), "postgres is down");
        // What took next to no time may be asked for again after next to none.
        let asked_anew = async {
            loop {
                if let Ok(seen) = cache.get(|| async { Ok::<_, String>(1) }).await {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), asked_anew).await.unwrap();
        assert_eq!((*seen.value, seen.stale), (1, None));
        let asked_again = async {
            loop {
                let seen = cache.get(|| async { Err("down again") }).await.unwrap();
                if seen.stale.is_some() {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), asked_again).await.unwrap();
        assert_eq!((*seen.value, seen.stale.as_deref()), (1, Some("down again")));
    }

    #[tokio::test]
    async fn a_failure_is_not_repeated_at_once_either() {
        let cache = Cache::<u32>::new(Duration::from_secs(3600));
        let asked = AtomicU32::new(0);
        for _ in 0..3 {
            let ask = || async {
                asked.fetch_add(1, Ordering::Relaxed);
                Err("down")
            };
            assert_eq!(&*cache.get(ask).await.unwrap_err(), "down");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
