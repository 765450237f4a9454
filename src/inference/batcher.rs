//! When a batch is closed, and with how many images: pure, with the clock as an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What the model thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Take this many images now.
    Take(usize),
    /// Ask again at this moment, or when something arrives.
    WaitUntil(Instant),
    /// Nothing waits.
    Idle,
}

/// Images in order of arrival, each with the moment it came.
///
/// A batch is closed only when the model asks for one, so that whatever arrives while it is busy
/// still goes along. The model gets a full batch at once; a partial one as soon as its oldest image
/// has waited for `linger`.
#[derive(Debug)]
pub struct Batcher<T> {
    waiting: VecDeque<(Instant, T)>,
    linger: Duration,
    closed: bool,
}

impl<T> Batcher<T> {
    pub fn new(linger: Duration) -> Self {
        Self { waiting: VecDeque::new(), linger, closed: false }
    }

    pub fn push(&mut self, item: T, now: Instant) {
        self.waiting.push_back((now, item));
    }

    /// Nothing more will come: what waits need not linger.
    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What to do at `now`, with batches of at most `capacity` images.
    pub fn next(&self, now: Instant, capacity: usize) -> Next {
        let Some((oldest, _)) = self.waiting.front() else { return Next::Idle };
        let capacity = capacity.max(1);
        let deadline = *oldest + self.linger;
        if self.closed || self.waiting.len() >= capacity || now >= deadline {
            Next::Take(self.waiting.len().min(capacity))
        } else {
            Next::WaitUntil(deadline)
        }
    }

    /// The first `count` images.
    pub fn take(&mut self, count: usize) -> Vec<T> {
        let count = count.min(self.waiting.len());
        self.waiting.drain(..count).map(|(_, item)| item).collect()
    }

    /// Drops the images that `keep` refuses, such as those nobody waits for any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.waiting.retain(|(_, item)| keep(item));
    }
}

/// The largest batch that is tried: lowered when memory ran out, restored after a while.
#[derive(Clone, Debug)]
pub struct BatchCap {
    full: usize,
    current: usize,
    lowered_at: Option<Instant>,
    cooldown: Duration,
}

impl BatchCap {
    pub fn new(full: usize, cooldown: Duration) -> Self {
        let full = full.max(1);
        Self { full, current: full, lowered_at: None, cooldown }
    }

    /// A batch of `batch` images did not fit: none larger than its larger half is tried for a while.
    pub fn lower(&mut self, batch: usize, now: Instant) {
        self.current = self.current.min(batch.div_ceil(2).max(1));
        self.lowered_at = Some(now);
    }

    /// `batch` images are the most that fit, now and later.
    pub fn settle(&mut self, batch: usize) {
        *self = Self::new(batch, self.cooldown);
    }

    /// The size to use at `now`.
    pub fn at(&mut self, now: Instant) -> usize {
        if self.lowered_at.is_some_and(|lowered| now.duration_since(lowered) >= self.cooldown) {
            self.current = self.full;
            self.lowered_at = None;
        }
        self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINGER: Duration = Duration::from_millis(20);

    #[test]
    fn a_full_batch_does_not_linger_and_a_partial_one_does() {
        let start = Instant::now();
        let mut batcher = Batcher::new(LINGER);
        assert_eq!(batcher.next(start, 2), Next::Idle);
        batcher.push('a', start);
        assert_eq!(batcher.next(start, 2), Next::WaitUntil(start + LINGER));
        batcher.push('b', start);
        assert_eq!(batcher.next(start, 2), Next::Take(2));
        assert_eq!(batcher.take(2), ['a', 'b']);
        batcher.push('c', start);
        assert_eq!(batcher.next(start + LINGER, 2), Next::Take(1));
    }

    #[test]
    fn a_closed_batcher_gives_what_it_has() {
        let start = Instant::now();
        let mut batcher = Batcher::new(LINGER);
        batcher.push('a', start);
        batcher.close();
        assert_eq!(batcher.next(start, 8), Next::Take(1));
    }

    #[test]
    fn the_cap_halves_and_comes_back() {
        let start = Instant::now();
        let mut cap = BatchCap::new(8, Duration::from_secs(600));
        cap.lower(8, start);
        assert_eq!(cap.at(start), 4);
        cap.lower(3, start);
        assert_eq!(cap.at(start), 2);
        cap.lower(2, start);
        assert_eq!(cap.at(start), 1);
        cap.lower(1, start);
        assert_eq!(cap.at(start + Duration::from_secs(599)), 1);
        assert_eq!(cap.at(start + Duration::from_secs(600)), 8);
    }

    #[test]
    fn a_settled_cap_is_what_it_comes_back_to() {
        let start = Instant::now();
        let mut cap = BatchCap::new(8, Duration::from_secs(600));
        cap.lower(8, start);
        cap.settle(5);
        assert_eq!(cap.at(start), 5);
        cap.lower(5, start);
        assert_eq!(cap.at(start), 3);
        assert_eq!(cap.at(start + Duration::from_secs(600)), 5);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Arrive,
        /// The model asks, this long after the last event.
        Ask(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![Just(Event::Arrive), (0_u64..40).prop_map(Event::Ask)]
    }

    proptest! {
        #[test]
        fn batches_keep_order_lose_nothing_and_close_no_sooner_than_they_must(
            events in proptest::collection::vec(event(), 0..200),
            capacity in 1_usize..12,
        ) {
            let mut now = Instant::now();
            let mut batcher = Batcher::new(LINGER);
            let mut arrivals: VecDeque<(usize, Instant)> = VecDeque::new();
            let mut arrived = 0;
            let mut taken = Vec::new();
            for event in events {
                match event {
                    Event::Arrive => {
                        batcher.push(arrived, now);
                        arrivals.push_back((arrived, now));
                        arrived += 1;
                    }
                    Event::Ask(after) => {
                        now += Duration::from_millis(after);
                        let oldest = arrivals.front().map(|(_, at)| *at);
                        match batcher.next(now, capacity) {
                            Next::Take(count) => {
                                prop_assert!(count >= 1 && count <= capacity);
                                prop_assert!(count == capacity || now >= oldest.unwrap() + LINGER);
                                prop_assert!(count == capacity || count == arrivals.len());
                                taken.extend(batcher.take(count));
                                arrivals.drain(..count);
                            }
                            Next::WaitUntil(deadline) => {
                                prop_assert!(deadline > now);
                                prop_assert_eq!(deadline, oldest.unwrap() + LINGER);
                                prop_assert!(arrivals.len() < capacity);
                            }
                            Next::Idle => prop_assert!(arrivals.is_empty()),
                        }
                    }
                }
            }
            batcher.close();
            while let Next::Take(count) = batcher.next(now, capacity) {
                taken.extend(batcher.take(count));
            }
            prop_assert!(batcher.is_empty());
            prop_assert_eq!(taken, (0..arrived).collect::<Vec<_>>());
        }
    }
}
