//! A reader of the output topic that runs along, so that rows know how far the workers are.

use crate::kafka;
use anyhow::{Result, bail};
use rdkafka::Message;
use rdkafka::consumer::BaseConsumer;
use serde::Deserialize;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Where an item came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct Source {
    pub partition: i32,
    pub offset: i64,
    pub item: u32,
}

/// One committed output, and when it was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub source: Source,
    pub key: Option<String>,
    pub status: String,
    pub reused: bool,
}

#[derive(Deserialize)]
struct Value {
    key: Option<String>,
    status: String,
    reused: bool,
    source: Source,
}

/// The reading thread; it ends with its handle.
pub struct Tail {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tail {
    pub fn start(bootstrap: &str, topic: &str, partitions: i32) -> Result<Self> {
        let consumer = kafka::reader(bootstrap, topic, partitions)?;
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || read(&consumer, &seen, &stop)
        });
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// Everything committed so far, in the order it was seen.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().clone()
    }

    /// Input items with a committed output so far.
    pub fn items(&self) -> usize {
        self.lock().iter().map(|seen| &seen.source).collect::<HashSet<_>>().len()
    }

    /// Waits until so many input items have a committed output. How many have then.
    pub fn wait_items(&self, items: usize, within: Duration) -> Result<usize> {
        let deadline = Instant::now() + within;
        loop {
            let found = self.items();
            if found >= items {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("{found} of {items} items have an output after {within:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(consumer: &BaseConsumer, seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // Ends of partitions and broken connections come as errors, and reading goes on.
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
        let value = message.payload().and_then(|value| serde_json::from_slice::<Value>(value).ok());
        // What is no output at all, the oracle complains about.
        let Some(Value { key, status, reused, source }) = value else { continue };
        let one = Seen { at: Instant::now(), source, key, status, reused };
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(one);
    }
}
