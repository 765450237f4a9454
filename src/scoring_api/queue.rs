//! How many requests are worked on at once, and when the next one may come.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Before any request has been answered, and at most.
const FIRST_GUESS: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// The weight of the latest request in the mean.
const LATEST: f64 = 0.2;

/// A bounded number of places. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Queue {
    places: Arc<Semaphore>,
    capacity: usize,
    mean: Arc<Mutex<Option<Duration>>>,
}

/// A request's place, until it is answered.
#[must_use]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    mean: Arc<Mutex<Option<Duration>>>,
    since: Instant,
}

impl Queue {
    pub fn new(capacity: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(capacity)), capacity, mean: Arc::default() }
    }

    /// A place at once.
    ///
    /// # Errors
    /// When all are taken: how long a request has taken of late, so that a place should be free after that.
    pub fn enter(&self) -> Result<Place, Duration> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => Ok(Place { _permit: permit, mean: Arc::clone(&self.mean), since: Instant::now() }),
            Err(_) => Err(lock(&self.mean).unwrap_or(FIRST_GUESS).min(LONGEST)),
        }
    }

    /// Requests that have a place.
    pub fn taken(&self) -> usize {
        self.capacity.saturating_sub(self.places.available_permits())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        let mut mean = lock(&self.mean);
        *mean = Some(mean.map_or(took, |mean| mean.mul_f64(1.0 - LATEST) + took.mul_f64(LATEST)));
    }
}

fn lock(mean: &Mutex<Option<Duration>>) -> std::sync::MutexGuard<'_, Option<Duration>> {
    mean.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_than_there_are_places_is_sent_away() {
        let queue = Queue::new(2);
        let first = queue.enter().ok().unwrap();
        let second = queue.enter().ok().unwrap();
        assert_eq!(queue.taken(), 2);
        assert_eq!(queue.enter().err().unwrap(), FIRST_GUESS);
        drop(first);
        let third = queue.enter().ok().unwrap();
        assert!(queue.enter().err().unwrap() <= LONGEST);
        drop((second, third));
        assert_eq!(queue.taken(), 0);
    }

    #[test]
    fn the_wait_is_what_requests_have_taken() {
        let queue = Queue::new(1);
        *lock(&queue.mean) = Some(Duration::from_secs(500));
        let _place = queue.enter().ok().unwrap();
        assert_eq!(queue.enter().err().unwrap(), LONGEST);
    }
}
