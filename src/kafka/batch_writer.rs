//! Writes batches of records, each whole or not at all, with offsets of a group of its own beside
//! them: for an operator's commands, which may be killed and run again at any point.
//!
//! With `kafka.delivery = "transactional"` a batch is a transaction, and the transactional id is the
//! command's: a second run of the same command shuts the first one out before it reads anything. With
//! `at_least_once` the records go first and the offsets follow, so a kill between repeats a batch.

use super::client::{self, ClientRole, Context};
use super::committer::offset_list;
use super::config::Delivery;
use super::decision::{Outcome, Refusal};
use super::ledger::StagedRecord;
use super::lookup;
use super::outbox::Outbox;
use super::receipt::TopicPartition;
use super::transaction::{self, Ended, open_producer, retire};
use super::{Error, KafkaSettings};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waiting for another transaction to end takes the broker up to ten seconds.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(30);

/// An offset to be committed with a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitOffset {
    pub source: TopicPartition,
    pub offset: i64,
    /// At most 4096 bytes, which is what brokers keep.
    pub metadata: String,
}

/// A committed offset and its metadata.
pub type StoredOffset = (i64, Vec<u8>);

/// What `settings.group` has committed for each of `sources`, in order, once no open transaction can
/// change it any more; blocks.
///
/// # Errors
/// When the group's coordinator doesn't answer.
pub fn committed_offsets(
    settings: &KafkaSettings,
    sources: &[TopicPartition],
) -> Result<Vec<Option<StoredOffset>>, Error> {
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    let consumer = client::lookup_consumer(settings)?;
    lookup::committed(&consumer, sources, COMMITTED_TIMEOUT)
        .and_then(|found| found.into_iter().collect())
        .map_err(|error: KafkaError| offsets_failed(settings, &error))
}

/// Settings of a command's own group and transactional id: `{group}-{command}`.
pub fn settings_of_command(settings: &KafkaSettings, command: &str) -> KafkaSettings {
    let name = format!("{}-{command}", settings.group);
    KafkaSettings { transactional_id: Some(name.clone()), group: name, ..settings.clone() }
}

/// Writes batches under the group and transactional id of its settings.
pub struct BatchWriter {
    settings: KafkaSettings,
    /// No member of the group; names it.
    consumer: BaseConsumer<Context>,
    /// Gone after trouble.
    outbox: Option<Outbox>,
}

impl BatchWriter {
    /// Connects, ends what an earlier process under the same name left open, and shuts it out.
    ///
    /// # Errors
    /// When no broker answers, or transactions may not be used.
    pub fn open(settings: &KafkaSettings) -> Result<Self, Error> {
        let consumer = client::lookup_consumer(settings)?;
        let mut writer = Self { settings: settings.clone(), consumer, outbox: None };
        writer.outbox = Some(writer.connect()?);
        Ok(writer)
    }

    /// Writes a batch and commits `offsets` with it; blocks until that is certain.
    ///
    /// # Errors
    /// When it is not. The batch may have been committed all the same if the last answer was lost, so
    /// it must not be tried again without reading the committed offsets, or the topic, anew.
    pub fn write(&mut self, records: &[Arc<StagedRecord>], offsets: &[CommitOffset]) -> Result<(), Error> {
        let outbox = match self.outbox.take() {
            Some(outbox) => outbox,
            None => self.connect()?,
        };
        let (result, suspect) = match self.settings.delivery {
            Delivery::Transactional => self.commit(&outbox, records, offsets),
            Delivery::AtLeastOnce => (self.produce_then_commit(&outbox, records, offsets), false),
        };
        if result.is_err() || suspect {
            retire(outbox);
        } else {
            self.outbox = Some(outbox);
        }
        result
    }

    fn connect(&self) -> Result<Outbox, Error> {
        match self.settings.delivery {
            Delivery::Transactional => {
                open_producer(&self.settings).map_err(|trouble| self.failed(trouble.to_string()))
            }
            Delivery::AtLeastOnce => Outbox::new(&self.settings, ClientRole::Committer),
        }
    }

    /// Whether the batch is committed, and whether its producer must not be used again.
    fn commit(
        &self,
        outbox: &Outbox,
        records: &[Arc<StagedRecord>],
        offsets: &[CommitOffset],
    ) -> (Result<(), Error>, bool) {
        let list = match list_of(offsets) {
            Ok(list) => list,
            Err(error) => return (Err(offsets_failed(&self.settings, &error)), false),
        };
        let Some(group) = self.consumer.group_metadata() else {
            return (Err(self.failed("the client has no group".to_owned())), false);
        };
        let offsets = (!offsets.is_empty()).then_some((&list, &group));
        let Ended { outcome, suspect } = transaction::run(outbox, &self.settings, records, offsets);
        let result = match outcome {
            Outcome::Committed => Ok(()),
            Outcome::Aborted(Refusal { reason, .. }) | Outcome::Doubtful(reason) => Err(self.failed(reason)),
        };
        (result, suspect)
    }

    fn produce_then_commit(
        &self,
        outbox: &Outbox,
        records: &[Arc<StagedRecord>],
        offsets: &[CommitOffset],
    ) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_millis(u64::from(self.settings.message_timeout_ms));
        outbox
            .produce(records, deadline)
            .and_then(|deliveries| deliveries.wait(deadline))
            .map_err(|failure| self.failed(failure.to_string()))?;
        if offsets.is_empty() {
            return Ok(());
        }
        list_of(offsets)
            .and_then(|list| self.consumer.commit(&list, CommitMode::Sync))
            .map_err(|error| offsets_failed(&self.settings, &error))
    }

    fn failed(&self, reason: String) -> Error {
        let (id, brokers) = (self.settings.transactional_id(), self.settings.brokers.clone());
        Error::Transaction { id, brokers, reason }
    }
}

fn offsets_failed(settings: &KafkaSettings, error: &KafkaError) -> Error {
    let (group, brokers) = (settings.group.clone(), settings.brokers.clone());
    Error::Offsets { group, brokers, reason: error.to_string() }
}

fn list_of(offsets: &[CommitOffset]) -> Result<TopicPartitionList, KafkaError> {
    offset_list(offsets.iter().map(|commit| (&commit.source, commit.offset, commit.metadata.as_str())))
}
