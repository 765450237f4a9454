//! What identifies a consumed record, and the assignment it was consumed under.

use crate::record::{Header, Position};
use std::fmt;
use std::sync::Arc;

/// A topic and one of its partitions. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}[{}]", self.topic, self.partition)
    }
}

/// One assignment of one partition to this process. Never reused: the same partition assigned again
/// has another epoch, and what was begun under the old one no longer counts. Brokers fence by group
/// generation and not by partition, so this is what keeps late work from being committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub(super) u64);

/// Names a consumed record to the [`Ledger`](super::Ledger).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    pub(super) epoch: Epoch,
    pub(super) source: TopicPartition,
    pub(super) offset: i64,
}

impl Receipt {
    /// Where the record was read from.
    pub fn source(&self) -> &TopicPartition {
        &self.source
    }

    /// The record's offset.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// The position of one item of the record, as outputs and dead letters state it.
    pub fn position(&self, item: u32) -> Position {
        Position {
            topic: self.source.topic.to_string(),
            partition: self.source.partition,
            offset: self.offset,
            item,
        }
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.source, self.offset)
    }
}

/// An input record on its way into the pipeline.
#[derive(Clone, Debug)]
pub struct ConsumedRecord {
    pub receipt: Receipt,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<Header>,
    /// Milliseconds since the Unix epoch, as the producer or the broker stamped it.
    pub timestamp_ms: Option<i64>,
}
