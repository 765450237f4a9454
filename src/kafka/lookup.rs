//! The lookup thread: what the group committed for newly assigned partitions, and lag.
//!
//! It has a consumer of its own that is no member of the group. A read of committed offsets waits
//! while a transaction that holds some is open, ten seconds and more after its owner died; here that
//! holds up nothing but the partitions in question.

use super::client::{self, Context};
use super::config::OffsetReset;
use super::offsets::PartitionTracker;
use super::receipt::{Epoch, TopicPartition};
use super::stall::{Seen, StallWatch};
use super::stats::{Backlog, KafkaStats};
use super::{KafkaSettings, Ledger, native};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// How long one read of committed offsets may take before it is tried again.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(15);
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a failed read waits before the next.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the brokers may be silent before they are asked whether they are there.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
/// How often logs and tokens are served in between.
const SERVE_INTERVAL: Duration = Duration::from_millis(500);

/// Where to begin reading a partition.
#[derive(Debug)]
pub(super) struct Opening {
    pub source: TopicPartition,
    pub epoch: Epoch,
    /// The committed offset, or where the group begins if it has none.
    pub begin: i64,
    pub tracker: PartitionTracker,
}

/// A partition whose committed offset is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub source: TopicPartition,
    pub epoch: Epoch,
}

pub(super) struct Lookup {
    pub settings: KafkaSettings,
    pub ledger: Arc<Ledger>,
    pub stats: Arc<KafkaStats>,
    pub consumer: BaseConsumer<Context>,
    pub inbox: Receiver<Wanted>,
    pub opened: Sender<Opening>,
    pub stalls: StallWatch,
}

impl Lookup {
    /// Runs until the poll loop is gone.
    pub fn run(mut self) {
        let mut wanted: Vec<Wanted> = Vec::new();
        let lag_interval = Duration::from_millis(self.settings.lag_interval_ms);
        let mut lag_due = Instant::now() + lag_interval;
        let mut retry_at = Instant::now();
        loop {
            let due = if wanted.is_empty() { lag_due } else { lag_due.min(retry_at) };
            let wait = due.saturating_duration_since(Instant::now()).min(SERVE_INTERVAL);
            match self.inbox.recv_timeout(wait) {
                Ok(one) => {
                    wanted.push(one);
                    wanted.extend(self.inbox.try_iter());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            client::serve(&self.consumer, Duration::ZERO);
            wanted.retain(|one| self.ledger.is_live_epoch(one.epoch));
            if !wanted.is_empty()
                && retry_at <= Instant::now()
                && let Err(error) = self.look_up(&mut wanted)
            {
                tracing::warn!(%error, "committed offsets could not be read; trying again");
                retry_at = Instant::now() + RETRY_PAUSE;
            }
            if lag_due <= Instant::now() && wanted.is_empty() {
                self.measure_lag();
                lag_due = Instant::now() + lag_interval;
            }
            self.ask();
        }
    }

    /// Makes sure that the brokers are heard of now and then, whatever else there is to do.
    fn ask(&self) {
        let topic = self.settings.input_topics.first().map(String::as_str);
        if self.stats.since_answer() > ASK_INTERVAL
            && self.consumer.fetch_metadata(topic, WATERMARK_TIMEOUT).is_ok()
        {
            self.stats.answered();
        }
    }

    /// Opens the partitions whose committed offsets could be read and leaves the others wanted.
    fn look_up(&self, wanted: &mut Vec<Wanted>) -> KafkaResult<()> {
        let sources: Vec<_> = wanted.iter().map(|one| one.source.clone()).collect();
        let committed = committed(&self.consumer, &sources, COMMITTED_TIMEOUT)?;
        self.stats.answered();
        let mut left = Vec::new();
        let mut problem = Ok(());
        for (one, found) in wanted.drain(..).zip(committed) {
            let begin = found.and_then(|found| match found {
                Some((offset, metadata)) => Ok((offset, PartitionTracker::resumed(offset, &metadata))),
                None => {
                    self.first_offset(&one.source).map(|offset| (offset, PartitionTracker::fresh(offset)))
                }
            });
            match begin {
                Ok((begin, tracker)) => {
                    // Fails only when the poll loop is gone, which the next turn notices.
                    let _ =
                        self.opened.send(Opening { source: one.source, epoch: one.epoch, begin, tracker });
                }
                Err(error) => {
                    problem = Err(error);
                    left.push(one);
                }
            }
        }
        *wanted = left;
        problem
    }

    /// Where a group without a committed offset begins. A number, since the poll thread must not seek
    /// to a logical offset: see [`super::rebalance`].
    fn first_offset(&self, source: &TopicPartition) -> KafkaResult<i64> {
        let ask = || self.consumer.fetch_watermarks(&source.topic, source.partition, WATERMARK_TIMEOUT);
        let (low, high) = match ask() {
            // Newer than what this client knows of the topic; the group's member heard of it earlier.
            Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownPartition)) => {
                self.consumer.fetch_metadata(Some(&source.topic), WATERMARK_TIMEOUT)?;
                ask()?
            }
            answer => answer?,
        };
        Ok(match self.settings.auto_offset_reset {
            OffsetReset::Earliest => low,
            OffsetReset::Latest => high,
        })
    }

    fn measure_lag(&mut self) {
        let (mut backlog, mut seen) = (BTreeMap::new(), BTreeMap::new());
        let halted = self.stats.paused.load(Ordering::Relaxed);
        let backfill = self.settings.backfill_topic.as_deref();
        let backfill_paused = self.stats.backfill_paused.load(Ordering::Relaxed);
        for progress in self.ledger.progress() {
            let source = &progress.source;
            match self.consumer.fetch_watermarks(&source.topic, source.partition, WATERMARK_TIMEOUT) {
                Ok((_, high)) => {
                    let (position, full) = (progress.position, progress.full);
                    let waits = backfill_paused && backfill == Some(source.topic.as_ref());
                    seen.insert(source.clone(), Seen { position, high, held: halted || full || waits });
                    let behind = high.saturating_sub(progress.base).max(0) as u64;
                    let done_ahead = progress.done_ahead as u64;
                    let records = behind.saturating_sub(done_ahead);
                    let untouched = records > 0 && progress.unfinished == 0;
                    let untouched_since = untouched.then(Instant::now);
                    backlog.insert(progress.source, Backlog { records, done_ahead, untouched_since });
                }
                Err(error) => {
                    tracing::debug!(%error, %source, "lag could not be measured");
                    self.stalls.clear();
                    self.stats.set_stalled(None);
                    return;
                }
            }
        }
        if !seen.is_empty() {
            self.stats.answered();
        }
        self.stats.set_stalled(self.stalls.look(&seen, Instant::now()));
        self.stats.set_backlog(backlog);
    }
}

/// A partition's committed offset and its metadata, if it has one.
pub(super) type CommittedOffset = KafkaResult<Option<(i64, Vec<u8>)>>;

/// The stable committed offset of each partition with its metadata, in order: what no open
/// transaction can change any more.
pub(super) fn committed(
    consumer: &BaseConsumer<Context>,
    sources: &[TopicPartition],
    timeout: Duration,
) -> KafkaResult<Vec<CommittedOffset>> {
    let mut list = TopicPartitionList::with_capacity(sources.len());
    for source in sources {
        list.add_partition(&source.topic, source.partition);
    }
    let found = consumer.committed_offsets(list, timeout)?;
    let errors: Vec<KafkaResult<()>> = found.elements().iter().map(|entry| entry.error()).collect();
    let offsets = native::offsets_with_metadata(&found);
    Ok(errors
        .into_iter()
        .zip(offsets)
        .map(|(error, (offset, metadata))| error.map(|()| (offset >= 0).then_some((offset, metadata))))
        .collect())
}
