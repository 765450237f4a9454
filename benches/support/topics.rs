//! Records in, and committed outputs out.

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use std::time::{Duration, Instant};

pub type Anything = Box<dyn std::error::Error + Send + Sync>;

pub const PATIENCE: Duration = Duration::from_secs(120);

/// As the worker's own, without the transactions.
pub fn producer_config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("compression.type", "zstd")
        .set("linger.ms", "2");
    config
}

/// Appends records, spread over the partitions, and waits until the broker has them.
pub fn produce<'a>(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    payloads: impl Iterator<Item = &'a Vec<u8>>,
) -> Result<(), Anything> {
    let producer: ThreadedProducer<DefaultProducerContext> = producer_config(bootstrap).create()?;
    for (number, payload) in payloads.enumerate() {
        let mut next = BaseRecord::<(), _>::to(topic).partition(number as i32 % partitions).payload(payload);
        while let Err((error, same)) = producer.send(next) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            next = same;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(tokio::task::block_in_place(|| producer.flush(PATIENCE))?)
}

/// The next record. A poll returns early without one for events such as a rebalance.
pub fn next(consumer: &BaseConsumer) -> Result<BorrowedMessage<'_>, Anything> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            return Ok(message?);
        }
    }
    Err(format!("no record came in {PATIENCE:?}").into())
}

/// What `read_committed` readers see of a topic.
pub struct Reader {
    pub consumer: BaseConsumer,
    pub last: Vec<u8>,
}

impl Reader {
    pub fn open(bootstrap: &str, topic: &str, partitions: i32) -> Result<Self, Anything> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        Ok(Self { consumer, last: Vec::new() })
    }

    /// Waits for `count` more outputs, of which `see` gets each.
    pub async fn see(
        mut self,
        count: usize,
        mut see: impl FnMut(&[u8]) -> Result<(), Anything> + Send + 'static,
    ) -> Result<Self, Anything> {
        tokio::task::spawn_blocking(move || {
            for _ in 0..count {
                self.last = next(&self.consumer)?.payload().unwrap_or_default().to_vec();
                see(&self.last)?;
            }
            Ok(self)
        })
        .await?
    }

    /// Waits for `count` more outputs.
    pub async fn take(self, count: usize) -> Result<Self, Anything> {
        self.see(count, |_| Ok(())).await
    }
}
