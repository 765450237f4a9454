//! The poll thread: it owns the consumer, and only polls.
//!
//! It never waits for the pipeline. When the channel is full, or the gate is closed, or a partition's
//! window is, it pauses and goes on polling, so that the group keeps it. One record may have been
//! returned by then; it is kept aside, and nothing is lost.

use super::committer::{CommitRequests, Request};
use super::ledger::{Delivery, Ledger};
use super::lookup::{Opening, Wanted};
use super::priority::{BackfillGate, Load};
use super::rebalance::{Change, SourceContext};
use super::receipt::{ConsumedRecord, Epoch, Receipt, TopicPartition};
use super::stats::{KafkaStats, count};
use super::{Fatal, Gate, KafkaSettings, native};
use crate::failpoint;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// The consumer of the input topics; the committer borrows it for group metadata and plain commits.
pub(super) type SourceConsumer = BaseConsumer<SourceContext>;

/// How long a poll waits when nothing else is to be watched, and when something is.
const IDLE_POLL: Duration = Duration::from_millis(100);
const WATCHFUL_POLL: Duration = Duration::from_millis(10);
/// The request to leave is on its way within milliseconds of the last revocation.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a full channel is given before everything is paused, since that discards prefetch.
const FULL_GRACE: Duration = Duration::from_millis(20);
/// How often positions are read and epochs are checked.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(500);
/// By when a partition has been fetched from, so that what is known of its log's end is not from an
/// earlier assignment.
const FIRST_FETCH: Duration = Duration::from_secs(3);
/// How often it is asked whether uploads wait, while there is a backfill to hold back.
const PRIORITY_INTERVAL: Duration = Duration::from_millis(20);
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct SourceParts {
    pub consumer: Arc<SourceConsumer>,
    pub settings: KafkaSettings,
    pub ledger: Arc<Ledger>,
    pub gate: Arc<Gate>,
    pub stats: Arc<KafkaStats>,
    pub stop: Arc<AtomicBool>,
    pub requests: CommitRequests,
    pub records: mpsc::Sender<ConsumedRecord>,
    pub lookups: blocking::Sender<Wanted>,
    pub opened: blocking::Receiver<Opening>,
    pub changes: blocking::Receiver<Change>,
}

/// The poll loop's state.
pub(super) struct Source {
    parts: SourceParts,
    fatal: Option<oneshot::Sender<Fatal>>,
    topics: Vec<Arc<str>>,
    partitions: HashMap<TopicPartition, Partition>,
    /// A record that the channel had no room for.
    aside: Option<ConsumedRecord>,
    /// Everything is paused.
    halted: bool,
    upkeep_due: Instant,
    backfill: BackfillGate,
    /// Partitions of the backfill topic may be read.
    backfill_open: bool,
    priority_due: Instant,
}

#[derive(Debug)]
struct Partition {
    epoch: Epoch,
    /// It is one of the backfill topic's, which live ones go before.
    backfill: bool,
    /// Its committed offset is known and has been sought.
    opened: bool,
    /// Since when a commit counts this holding of it, and its records may come.
    announced: Option<Instant>,
    /// Its window is full.
    full: bool,
    /// What librdkafka was told last.
    paused: bool,
}

impl Source {
    pub fn new(parts: SourceParts, fatal: oneshot::Sender<Fatal>) -> Self {
        let topics = parts.settings.consumed_topics().map(Arc::from).collect();
        let backfill = BackfillGate::new(parts.settings.backfill_records);
        Self {
            backfill,
            backfill_open: false,
            priority_due: Instant::now(),
            parts,
            fatal: Some(fatal),
            topics,
            partitions: HashMap::new(),
            aside: None,
            halted: false,
            upkeep_due: Instant::now(),
        }
    }

    /// Polls until told to stop or until the consumer fails for good, then leaves the group.
    pub fn run(mut self) {
        while !self.parts.stop.load(Ordering::Relaxed) {
            self.turn();
            if let Err(failure) = self.poll() {
                tracing::error!("{failure}");
                if let Some(fatal) = self.fatal.take() {
                    // Nobody may be listening any more, and then nothing is to be done about it.
                    let _ = fatal.send(failure);
                }
                break;
            }
        }
        self.leave();
        let SourceParts { requests, consumer, .. } = self.parts;
        // Closes the consumer, unless the committer is just using it and closes it then.
        drop(consumer);
        requests.send(Request::Stop);
    }

    /// Everything but polling, none of which waits.
    fn turn(&mut self) {
        self.parts.stats.polled();
        self.apply_changes();
        while let Ok(opening) = self.parts.opened.try_recv() {
            self.open(opening);
        }
        self.hand_over_aside();
        self.regulate();
        if self.upkeep_due <= Instant::now() {
            self.upkeep();
            self.upkeep_due = Instant::now() + UPKEEP_INTERVAL;
        }
        if self.priority_due <= Instant::now() {
            self.prioritize();
            self.priority_due = Instant::now() + PRIORITY_INTERVAL;
        }
        self.pause_and_resume();
    }

    fn apply_changes(&mut self) {
        while let Ok(change) = self.parts.changes.try_recv() {
            match change {
                Change::Assigned(source, epoch) => self.begin(source, epoch),
                Change::Revoked(source) => {
                    self.partitions.remove(&source);
                }
            }
        }
    }

    /// Has the committed offset of a partition looked up; until then it stays paused.
    fn begin(&mut self, source: TopicPartition, epoch: Epoch) {
        let backfill = self.parts.settings.backfill_topic.as_deref() == Some(source.topic.as_ref());
        let partition =
            Partition { epoch, backfill, opened: false, announced: None, full: false, paused: true };
        self.partitions.insert(source.clone(), partition);
        // Fails only if the lookup thread is gone, which nothing but a panic there can cause; then the
        // partition never opens, and the watchdog over progress ends the process.
        let _ = self.parts.lookups.send(Wanted { source, epoch });
    }

    /// Seeks to where the group left off. The next turn resumes the partition.
    fn open(&mut self, opening: Opening) {
        let Opening { source, epoch, begin, tracker } = opening;
        let Some(partition) = self.partitions.get_mut(&source).filter(|partition| partition.epoch == epoch)
        else {
            return;
        };
        let seek =
            self.parts.consumer.seek(&source.topic, source.partition, Offset::Offset(begin), SEEK_TIMEOUT);
        if let Err(error) = seek {
            tracing::warn!(%error, %source, "could not seek; the committed offset is read again");
            let _ = self.parts.lookups.send(Wanted { source, epoch });
            return;
        }
        let crash_loop = tracker.crash_loop();
        if crash_loop.is_suspicious() {
            tracing::warn!(
                %source,
                begin,
                starts = crash_loop.count(),
                "processes keep ending while they work on this partition; until it is past the records \
                 that were in flight, images are decoded and scored in a process of their own"
            );
        }
        partition.opened = self.parts.ledger.open(epoch, tracker);
        // What waits for it is the whole partition.
        self.parts.requests.send(Request::Due);
        tracing::info!(%source, begin, "reading");
    }

    fn hand_over_aside(&mut self) {
        if let Some(record) = self.aside.take()
            && self.parts.ledger.is_live(&record.receipt)
        {
            self.hand_over(record);
        }
    }

    /// Sends a record on, or keeps it aside.
    fn hand_over(&mut self, record: ConsumedRecord) {
        match self.parts.records.try_send(record) {
            Ok(()) => count(&self.parts.stats.records, 1),
            // Also where the receiver is gone: then nobody processes, and nothing is committed.
            Err(mpsc::error::TrySendError::Full(record) | mpsc::error::TrySendError::Closed(record)) => {
                self.aside = Some(record);
            }
        }
    }

    /// Decides whether intake as a whole halts: at once when it has to, and until the channel is half
    /// empty.
    fn regulate(&mut self) {
        let capacity = self.parts.records.max_capacity();
        let queued = capacity - self.parts.records.capacity();
        let gate = self.parts.gate.is_open();
        if self.aside.is_some() || !gate {
            self.halted = true;
        } else if queued <= capacity / 2 {
            self.halted = false;
        }
        self.parts.stats.paused.store(self.halted, Ordering::Relaxed);
        for partition in self.partitions.values_mut().filter(|partition| partition.full) {
            partition.full = !self.parts.ledger.has_room(partition.epoch);
        }
        let uncounted = |partition: &&mut Partition| partition.opened && partition.announced.is_none();
        for partition in self.partitions.values_mut().filter(uncounted) {
            if self.parts.ledger.is_announced(partition.epoch) {
                partition.announced = Some(Instant::now());
            }
        }
    }

    /// Decides whether the backfill's partitions may be read just now.
    fn prioritize(&mut self) {
        let epochs = |backfill: bool| -> Vec<Epoch> {
            self.partitions.values().filter(|one| one.backfill == backfill).map(|one| one.epoch).collect()
        };
        let (backfills, live) = (epochs(true), epochs(false));
        if backfills.is_empty() {
            self.parts.stats.backfill_paused.store(false, Ordering::Relaxed);
            return;
        }
        let load = Load {
            live_waiting: self.live_waiting(),
            live_in_flight: self.parts.ledger.in_flight_of(&live),
            backfill_in_flight: self.parts.ledger.in_flight_of(&backfills),
        };
        self.backfill_open = self.backfill.is_open(Instant::now(), load);
        self.parts.stats.backfill_paused.store(!self.backfill_open, Ordering::Relaxed);
    }

    /// Records of live partitions that were not read yet. A partition that is not opened counts as one
    /// that has some.
    fn live_waiting(&self) -> u64 {
        let Ok(positions) = self.parts.consumer.position() else { return 0 };
        let mut waiting = 0;
        for (source, partition) in self.partitions.iter().filter(|(_, partition)| !partition.backfill) {
            if !partition.opened {
                waiting += 1;
                continue;
            }
            let position =
                positions.find_partition(&source.topic, source.partition).map(|entry| entry.offset());
            let end = native::cached_end(&self.parts.consumer, source);
            if let (Some(Offset::Offset(position)), Some(end)) = (position, end) {
                waiting += end.saturating_sub(position).max(0) as u64;
            }
        }
        waiting
    }

    /// Reads positions, which pass control records, and gives partitions whose epoch was ended by a
    /// failed commit a new one, should they still be assigned.
    fn upkeep(&mut self) {
        let ended: Vec<_> = self
            .partitions
            .iter()
            .filter(|(_, partition)| !self.parts.ledger.is_live_epoch(partition.epoch))
            .map(|(source, _)| source.clone())
            .collect();
        for source in ended {
            self.suspend(&source);
            let epoch = self.parts.ledger.assign(source.clone());
            self.begin(source, epoch);
        }
        let Ok(positions) = self.parts.consumer.position() else { return };
        for entry in positions.elements() {
            let Offset::Offset(position) = entry.offset() else { continue };
            let source = TopicPartition::new(self.intern(entry.topic()), entry.partition());
            if let Some(partition) = self.partitions.get(&source).filter(|partition| partition.opened) {
                self.parts.ledger.set_position(partition.epoch, position);
                let fetched = partition.announced.is_some_and(|since| since.elapsed() > FIRST_FETCH);
                if fetched && native::cached_end(&self.parts.consumer, &source) == Some(position) {
                    self.parts.ledger.reach_end(partition.epoch);
                }
            }
        }
    }

    fn suspend(&mut self, source: &TopicPartition) {
        let mut list = TopicPartitionList::new();
        list.add_partition(&source.topic, source.partition);
        if let Err(error) = self.parts.consumer.pause(&list) {
            tracing::warn!(%error, %source, "could not pause");
        }
    }

    fn pause_and_resume(&mut self) {
        let (mut pause, mut resume) = (TopicPartitionList::new(), TopicPartitionList::new());
        let mut changed = false;
        for (source, partition) in &mut self.partitions {
            let held = partition.backfill && !self.backfill_open;
            let wanted = self.halted || held || partition.full || partition.announced.is_none();
            if wanted != partition.paused {
                let list = if wanted { &mut pause } else { &mut resume };
                list.add_partition(&source.topic, source.partition);
                partition.paused = wanted;
                changed = true;
            }
        }
        if !changed {
            return;
        }
        // Neither can fail for assigned partitions: librdkafka only looks them up.
        for result in [self.parts.consumer.pause(&pause), self.parts.consumer.resume(&resume)] {
            if let Err(error) = result {
                tracing::warn!(%error, "could not pause or resume");
            }
        }
    }

    fn poll(&mut self) -> Result<(), Fatal> {
        let watchful = self.halted
            || self.aside.is_some()
            || self.partitions.values().any(|partition| {
                partition.full || partition.announced.is_none() || (partition.backfill && !self.backfill_open)
            });
        let consumer = Arc::clone(&self.parts.consumer);
        match consumer.poll(if watchful { WATCHFUL_POLL } else { IDLE_POLL }) {
            None => Ok(()),
            Some(Ok(message)) => {
                self.receive(&message);
                Ok(())
            }
            Some(Err(error)) => report(error),
        }
    }

    fn receive(&mut self, message: &BorrowedMessage<'_>) {
        let source = TopicPartition::new(self.intern(message.topic()), message.partition());
        // A callback within the poll may have changed the assignment.
        self.apply_changes();
        let Some(partition) = self.partitions.get_mut(&source).filter(|partition| partition.opened) else {
            return;
        };
        let stamped_ms = message.timestamp().to_millis();
        let mut delivery = self.parts.ledger.deliver(partition.epoch, message.offset(), stamped_ms);
        if delivery == Delivery::Rewound {
            tracing::warn!(%source, offset = message.offset(), "the log was truncated; beginning again there");
            if let Some(epoch) = self.parts.ledger.restart(partition.epoch, message.offset()) {
                partition.epoch = epoch;
            }
            delivery = self.parts.ledger.deliver(partition.epoch, message.offset(), stamped_ms);
        }
        partition.full = self.parts.ledger.is_full(partition.epoch);
        let backfill = partition.backfill;
        match delivery {
            Delivery::Process(receipt) => {
                failpoint::reach("consumed");
                self.pass_on(consumed(receipt, message));
                if backfill {
                    self.prioritize();
                }
            }
            Delivery::AlreadyDone => count(&self.parts.stats.already_done, 1),
            // Upkeep begins the partition again from its committed offset.
            Delivery::Rewound | Delivery::Dead => {}
        }
    }

    /// Hands a record over; a channel that is full for a moment is given that moment.
    fn pass_on(&mut self, record: ConsumedRecord) {
        let deadline = Instant::now() + FULL_GRACE;
        self.hand_over(record);
        while self.aside.is_some() && Instant::now() < deadline && !self.parts.records.is_closed() {
            thread::sleep(Duration::from_millis(1));
            self.hand_over_aside();
        }
    }

    fn intern(&self, topic: &str) -> Arc<str> {
        match self.topics.iter().find(|known| known.as_ref() == topic) {
            Some(known) => Arc::clone(known),
            None => Arc::from(topic),
        }
    }

    /// Gives the partitions back, which runs the revocation's commit, and leaves the group.
    fn leave(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(self.parts.settings.close_timeout_ms);
        self.parts.consumer.unsubscribe();
        self.apply_changes();
        while !self.partitions.is_empty() && Instant::now() < deadline {
            // What is still fetched is dropped: nobody waits for it, and it isn't committed.
            let _ = self.parts.consumer.poll(WATCHFUL_POLL);
            self.parts.stats.polled();
            self.apply_changes();
        }
        // A consumer that is closed between the revocation and its farewell says none, and the others wait
        // for its session to time out. One that is just joining has none to say yet.
        let deadline = deadline.min(Instant::now() + FAREWELL);
        while native::is_member(&self.parts.consumer) && Instant::now() < deadline {
            let _ = self.parts.consumer.poll(WATCHFUL_POLL);
            self.parts.stats.polled();
        }
    }
}

fn consumed(receipt: Receipt, message: &BorrowedMessage<'_>) -> ConsumedRecord {
    ConsumedRecord {
        receipt,
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: native::headers(message),
        timestamp_ms: message.timestamp().to_millis(),
    }
}

/// Fatal errors end the process; all others librdkafka recovers from by itself.
fn report(error: KafkaError) -> Result<(), Fatal> {
    let code = error.rdkafka_error_code();
    if matches!(error, KafkaError::MessageConsumptionFatal(_)) || code == Some(RDKafkaErrorCode::Fatal) {
        return Err(Fatal { reason: error.to_string() });
    }
    tracing::warn!(%error, "the consumer reports an error and goes on");
    Ok(())
}
