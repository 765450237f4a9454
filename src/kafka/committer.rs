//! The committer's thread: cycles that produce what is done and commit the offsets that cover it.
//!
//! What a cycle is depends on `kafka.delivery`: one transaction, or produce, flush and commit. Either
//! way outputs and their offsets are taken from the [`Ledger`] in one step, and go back there if the
//! commit certainly did not happen.

use super::at_least_once::AtLeastOnce;
use super::config::{Delivery, KafkaSettings};
use super::decision::{Meaning, Refusal};
use super::ledger::{Batch, Ledger};
use super::receipt::TopicPartition;
use super::source::SourceConsumer;
use super::stats::{KafkaStats, count};
use super::transactional::Transactional;
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// What the committer is asked.
pub(super) enum Request {
    /// Enough outputs wait; don't wait for the interval.
    Due,
    /// Run a cycle now and tell whether everything done is committed.
    Cycle(std::sync::mpsc::SyncSender<bool>),
    /// End.
    Stop,
}

/// Where requests to the committer go in.
#[derive(Clone)]
pub struct CommitRequests(Sender<Request>);

impl CommitRequests {
    pub(super) fn channel() -> (Self, Receiver<Request>) {
        let (sender, inbox) = channel();
        (Self(sender), inbox)
    }

    pub(super) fn send(&self, request: Request) {
        // Fails only after the committer has ended, and then there is nothing left to ask.
        let _ = self.0.send(request);
    }

    /// Waits for a whole cycle. `true` if everything that was done before is committed.
    pub(super) fn cycle(&self, timeout: Duration) -> bool {
        let (reply, answer) = sync_channel(1);
        self.send(Request::Cycle(reply));
        answer.recv_timeout(timeout).unwrap_or(false)
    }
}

/// What keeps a cycle from succeeding: the cause, named with the remedy. Tried again after a pause;
/// nothing is lost meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Trouble(pub String);

/// How a cycle went that met no trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cycle {
    /// Everything that was done is committed.
    Clean,
    /// The group is rebalancing and refused the commit; the work waits for the next cycle.
    Refused,
}

/// One way of committing.
pub(super) trait Engine {
    /// Commits everything that is done. Each step is bounded in time.
    fn cycle(&mut self) -> Result<Cycle, Trouble>;
}

/// What both engines work with.
pub(super) struct Shared {
    pub settings: KafkaSettings,
    pub ledger: Arc<Ledger>,
    pub stats: Arc<KafkaStats>,
    /// The group's member; weak, so that the poll thread is the one to close it.
    pub member: Weak<SourceConsumer>,
}

impl Shared {
    pub fn committed(&self, batch: &Batch) {
        for part in &batch.parts {
            self.ledger.committed(part);
        }
        count(&self.stats.commits, 1);
        count(&self.stats.outputs, batch.outputs.len());
    }

    pub fn restage(&self, batch: &Batch) {
        for part in &batch.parts {
            self.ledger.restage(part);
        }
        count(&self.stats.aborts, 1);
    }

    /// What a cycle comes to whose commit was refused.
    pub fn refused(&self, refusal: Refusal) -> Result<Cycle, Trouble> {
        match refusal.meaning() {
            Meaning::Expelled => {
                self.ledger.kill_all();
                Ok(Cycle::Refused)
            }
            Meaning::Rebalancing => {
                tracing::info!(reason = refusal.reason, "a commit was refused during a rebalance");
                Ok(Cycle::Refused)
            }
            Meaning::Trouble => Err(Trouble(refusal.reason)),
        }
    }
}

/// The offsets and metadata of a batch, as Kafka takes them.
pub(super) fn offsets_of<'a>(
    parts: impl Iterator<Item = &'a super::ledger::BatchPart>,
) -> KafkaResult<TopicPartitionList> {
    offset_list(parts.map(|part| (&part.source, part.plan.base, part.plan.metadata.as_str())))
}

/// Partitions, each with an offset and its metadata, as Kafka takes them.
pub(super) fn offset_list<'a>(
    offsets: impl Iterator<Item = (&'a TopicPartition, i64, &'a str)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (source, offset, metadata) in offsets {
        let mut entry = list.add_partition(&source.topic, source.partition);
        entry.set_offset(Offset::Offset(offset))?;
        entry.set_metadata(metadata);
    }
    Ok(list)
}

/// The committer: runs until it is told to stop.
pub(super) struct Committer {
    engine: Box<dyn Engine + Send>,
    interval: Duration,
    stats: Arc<KafkaStats>,
    inbox: Receiver<Request>,
    backoff: Duration,
    /// Not before this, unless asked for explicitly.
    not_before: Instant,
}

impl Committer {
    pub fn new(
        settings: &KafkaSettings,
        ledger: Arc<Ledger>,
        stats: Arc<KafkaStats>,
        member: Weak<SourceConsumer>,
        inbox: Receiver<Request>,
    ) -> Self {
        let shared = Shared { settings: settings.clone(), ledger, stats: Arc::clone(&stats), member };
        let engine: Box<dyn Engine + Send> = match settings.delivery {
            Delivery::Transactional => Box::new(Transactional::new(shared)),
            Delivery::AtLeastOnce => Box::new(AtLeastOnce::new(shared)),
        };
        Self {
            engine,
            interval: settings.commit_interval(),
            stats,
            inbox,
            backoff: FIRST_BACKOFF,
            not_before: Instant::now(),
        }
    }

    pub fn run(mut self) {
        // At once: a transactional producer's first call ends what a predecessor left open.
        let mut due = Instant::now();
        loop {
            let wait = due.max(self.not_before).saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(wait) {
                Ok(Request::Due) if Instant::now() < self.not_before => continue,
                Ok(Request::Due) | Err(RecvTimeoutError::Timeout) => {
                    self.cycle();
                }
                Ok(Request::Cycle(reply)) => {
                    let clean = self.cycle();
                    // Whoever asked may have run out of patience.
                    let _ = reply.send(clean);
                }
                Ok(Request::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            due = Instant::now() + self.interval;
        }
    }

    fn cycle(&mut self) -> bool {
        match self.engine.cycle() {
            Ok(cycle) => {
                self.backoff = FIRST_BACKOFF;
                self.not_before = Instant::now();
                self.stats.cycle_succeeded();
                cycle == Cycle::Clean
            }
            Err(trouble) => {
                tracing::warn!(retry_in_ms = self.backoff.as_millis() as u64, "commit held up: {trouble}");
                self.stats.set_trouble(trouble.to_string());
                self.not_before = Instant::now() + self.backoff;
                self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
                false
            }
        }
    }
}
