//! Reads a topic from a point to what was its end when reading began: for an operator's commands.
//!
//! Only committed records come out. The end is the real one, beyond any transaction that is still
//! open, and reading waits for those: a reader that stopped where the first open transaction begins
//! would miss records that were committed behind it.

use super::client::{self, Context};
use super::receipt::TopicPartition;
use super::{Error, KafkaSettings, admin, native};
use crate::record::WireRecord;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const POLL: Duration = Duration::from_millis(100);
/// For one question about a partition's ends.
const EXTENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing may come, beyond the time that an abandoned transaction stays open.
const SILENCE: Duration = Duration::from_secs(60);
/// Records between the reading thread and an async caller.
const CHANNEL: usize = 500;

/// Where in every partition reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest record there is.
    Beginning,
    /// With the first record stamped at or after this, in milliseconds since the Unix epoch.
    Since(i64),
}

/// What is to be read of one partition: from the first offset to just below the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub source: TopicPartition,
    pub from: i64,
    pub to: i64,
}

/// A committed record, and where it lies.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    pub source: TopicPartition,
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    pub record: WireRecord,
}

/// Every partition of `topic` as it is now, in order; blocks.
///
/// # Errors
/// When the topic is missing or denied, or no broker answers.
pub fn spans(settings: &KafkaSettings, topic: &str, start: Start) -> Result<Vec<Span>, Error> {
    let brokers = settings.brokers.clone();
    let Some(partitions) = admin::partition_count(settings, topic, EXTENT_TIMEOUT)? else {
        return Err(Error::TopicMissing { topic: topic.to_owned(), setting: "to be read", brokers });
    };
    let client = client::extent_client(settings)?;
    let failed = |error: KafkaError| Error::Read { topic: topic.to_owned(), reason: error.to_string() };
    let name: Arc<str> = topic.into();
    let mut spans = Vec::with_capacity(partitions);
    for partition in (0_i32..).take(partitions) {
        let (low, high) = client.fetch_watermarks(topic, partition, EXTENT_TIMEOUT).map_err(failed)?;
        spans.push(Span { source: TopicPartition::new(Arc::clone(&name), partition), from: low, to: high });
    }
    if let Start::Since(milliseconds) = start {
        let mut times = TopicPartitionList::with_capacity(spans.len());
        for span in &spans {
            times
                .add_partition_offset(topic, span.source.partition, Offset::Offset(milliseconds))
                .map_err(failed)?;
        }
        let found = client.offsets_for_times(times, EXTENT_TIMEOUT).map_err(failed)?;
        for (span, entry) in spans.iter_mut().zip(found.elements()) {
            entry.error().map_err(failed)?;
            span.from = match entry.offset() {
                Offset::Offset(offset) => offset.clamp(span.from, span.to),
                // Nothing is that young.
                _ => span.to,
            };
        }
    }
    Ok(spans)
}

/// Reads spans, all partitions side by side.
pub struct TopicReader {
    consumer: BaseConsumer<Context>,
    topic: Arc<str>,
    /// What is not read to its end, and the end.
    open: BTreeMap<TopicPartition, i64>,
    patience: Duration,
}

impl TopicReader {
    /// A reader of `spans`, which are partitions of one topic.
    ///
    /// # Errors
    /// When librdkafka refuses the client or the offsets.
    pub fn open(settings: &KafkaSettings, spans: &[Span]) -> Result<Self, Error> {
        let consumer = client::reader_consumer(settings)?;
        let topic: Arc<str> =
            spans.first().map_or_else(|| Arc::from(""), |span| Arc::clone(&span.source.topic));
        let failed = |error: KafkaError| Error::Read { topic: topic.to_string(), reason: error.to_string() };
        let mut assignment = TopicPartitionList::new();
        let mut open = BTreeMap::new();
        for span in spans.iter().filter(|span| span.from < span.to) {
            assignment
                .add_partition_offset(&topic, span.source.partition, Offset::Offset(span.from))
                .map_err(failed)?;
            open.insert(span.source.clone(), span.to);
        }
        if !open.is_empty() {
            consumer.assign(&assignment).map_err(failed)?;
        }
        let patience = SILENCE + Duration::from_millis(u64::from(settings.transaction_timeout_ms));
        Ok(Self { consumer, topic, open, patience })
    }

    /// The next record; `None` once every span is read. In order within a partition. Blocks.
    ///
    /// # Errors
    /// When nothing has come for so long that an open transaction cannot be the reason.
    pub fn next_record(&mut self) -> Result<Option<ReadRecord>, Error> {
        let begun = Instant::now();
        let mut trouble = None;
        while !self.open.is_empty() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let source = TopicPartition::new(Arc::clone(&self.topic), message.partition());
                    let Some(end) = self.open.get(&source).copied() else { continue };
                    let offset = message.offset();
                    let read = (offset < end).then(|| ReadRecord {
                        source: source.clone(),
                        offset,
                        timestamp_ms: message.timestamp().to_millis(),
                        record: WireRecord {
                            key: message.key().map(<[u8]>::to_vec),
                            payload: message.payload().map(<[u8]>::to_vec),
                            headers: native::headers(&message),
                        },
                    });
                    drop(message);
                    if offset + 1 >= end {
                        self.close(&source);
                    }
                    if read.is_some() {
                        return Ok(read);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => self.close_passed(),
                Some(Err(error)) => {
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) {
                        return Err(self.failed(error.to_string()));
                    }
                    // librdkafka goes on by itself; the reason is kept for when it does not.
                    trouble = Some(error.to_string());
                }
            }
            if begun.elapsed() > self.patience {
                let last = self.consumer.client().context().last_error();
                let reason = trouble.or(last).unwrap_or_else(|| "a transaction stays open".into());
                return Err(
                    self.failed(format!("nothing came for {} s ({reason})", begun.elapsed().as_secs()))
                );
            }
        }
        Ok(None)
    }

    /// Reads on a thread of its own, for an async caller. Ends after the last record or an error.
    pub fn into_channel(mut self) -> mpsc::Receiver<Result<ReadRecord, Error>> {
        let (sender, receiver) = mpsc::channel(CHANNEL);
        tokio::task::spawn_blocking(move || {
            loop {
                let step = self.next_record().transpose();
                let Some(item) = step else { return };
                let last = item.is_err();
                // The caller may have gone; then nobody reads on.
                if sender.blocking_send(item).is_err() || last {
                    return;
                }
            }
        });
        receiver
    }

    /// Ends spans whose tail is no record: control records, or a transaction that was aborted.
    fn close_passed(&mut self) {
        let Ok(positions) = self.consumer.position() else { return };
        for entry in positions.elements() {
            let source = TopicPartition::new(Arc::clone(&self.topic), entry.partition());
            if let (Offset::Offset(position), Some(end)) = (entry.offset(), self.open.get(&source))
                && position >= *end
            {
                self.close(&source);
            }
        }
    }

    fn close(&mut self, source: &TopicPartition) {
        self.open.remove(source);
        let mut list = TopicPartitionList::new();
        list.add_partition(&source.topic, source.partition);
        if let Err(error) = self.consumer.pause(&list) {
            tracing::debug!(%error, %source, "could not pause what is read to its end");
        }
    }

    fn failed(&self, reason: String) -> Error {
        Error::Read { topic: self.topic.to_string(), reason }
    }
}
