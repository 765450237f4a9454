//! The harness's own clients: topics, a reader, the group's committed offsets.

use anyhow::{Context, Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A consumer assigned to all of a topic from its beginning, which sees what is committed and hears
/// of each partition's end.
pub fn reader(bootstrap: &str, topic: &str, partitions: i32) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "chaos-reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "50")
        .set("log_level", "0")
        .create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    Ok(consumer)
}

pub fn admin(bootstrap: &str) -> Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", bootstrap).set("log_level", "0").create()?)
}

pub fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT))
}

pub async fn create_topics(bootstrap: &str, topics: &[(&str, i32)]) -> Result<()> {
    let admin = admin(bootstrap)?;
    let new: Vec<_> = topics
        .iter()
        .map(|(topic, partitions)| NewTopic::new(topic, *partitions, TopicReplication::Fixed(1)))
        .collect();
    for result in admin.create_topics(&new, &options()).await? {
        if let Err((topic, code)) = result
            && code != RDKafkaErrorCode::TopicAlreadyExists
        {
            bail!("topic {topic} was not created: {code}");
        }
    }
    Ok(())
}

pub async fn delete_topics(bootstrap: &str, topics: &[&str]) -> Result<()> {
    let results = admin(bootstrap)?.delete_topics(topics, &options()).await?;
    results
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
    Ok(())
}

/// One partition of an input topic as its group has left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionOffsets {
    pub topic: String,
    pub partition: i32,
    /// The first offset that the group has not committed; `None` if it never committed.
    pub committed: Option<i64>,
    pub metadata: String,
    /// Where the partition begins and ends.
    pub begin: i64,
    pub end: i64,
}

impl PartitionOffsets {
    pub fn lag(&self) -> i64 {
        self.end - self.committed.unwrap_or(self.begin)
    }
}

/// A look at what a group has committed.
pub struct Offsets {
    consumer: BaseConsumer,
    topic: String,
}

impl Offsets {
    pub fn new(bootstrap: &str, group: &str, topic: &str) -> Result<Self> {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", group)
            // Open transactions don't hold this one up: what they contain is not committed.
            .set("isolation.level", "read_uncommitted")
            .set("log_level", "0")
            .create()?;
        Ok(Self { consumer, topic: topic.to_owned() })
    }

    /// Of all the partitions that the topic has now.
    pub fn read(&self) -> Result<Vec<PartitionOffsets>> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), TIMEOUT)?;
        let topic = metadata.topics().first().context("the topic's metadata")?;
        let mut list = TopicPartitionList::new();
        for partition in topic.partitions() {
            list.add_partition(&self.topic, partition.id());
        }
        let committed = self.consumer.committed_offsets(list, TIMEOUT)?;
        let mut found = Vec::new();
        for entry in committed.elements() {
            entry.error()?;
            let (begin, end) = self.consumer.fetch_watermarks(&self.topic, entry.partition(), TIMEOUT)?;
            let committed = match entry.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            let (partition, metadata) = (entry.partition(), entry.metadata().to_owned());
            found.push(PartitionOffsets {
                topic: self.topic.clone(),
                partition,
                committed,
                metadata,
                begin,
                end,
            });
        }
        found.sort_by_key(|one| one.partition);
        Ok(found)
    }

    /// Records behind the end, all partitions together.
    pub fn lag(&self) -> Result<i64> {
        Ok(self.read()?.iter().map(PartitionOffsets::lag).sum())
    }
}
