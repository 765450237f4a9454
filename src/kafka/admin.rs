//! Asks the brokers whether they are there and have the configured topics.

use super::client::{self, Context};
use super::{Error, KafkaSettings};
use rdkafka::admin::{AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{IsError, RDKafkaErrorCode};
use std::time::{Duration, Instant};

/// How long one request may take before connection errors are looked at.
const ATTEMPT: Duration = Duration::from_secs(2);
/// A topic that was just created is unknown to some brokers for a moment.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const CREATION_GRACE: Duration = Duration::from_secs(1);

/// The topic configuration that bounds a batch of records, in bytes.
const TOPIC_LIMIT: &str = "max.message.bytes";
/// What the record batch format adds around a record, with room to spare.
const BATCH_OVERHEAD: u32 = 128;

/// librdkafka takes no lower limit for a producer.
const SMALLEST_LIMIT: u32 = 1000;

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    pub topic: String,
    /// The setting that names it.
    pub setting: &'static str,
    pub partitions: usize,
}

/// Connects and describes every required topic within `deadline`; blocks.
///
/// Fails with the first of: no broker answers, a topic is missing, a topic is denied.
pub fn probe(settings: &KafkaSettings, deadline: Duration) -> Result<Vec<TopicInfo>, Error> {
    settings.check()?;
    let begun = Instant::now();
    let client = client::probe_client(settings)?;
    client::serve(&client, Duration::from_millis(20));
    let mut found = Vec::new();
    for (setting, topic) in settings.required_topics() {
        found.push(describe(settings, &client, setting, topic, begun, deadline)?);
    }
    Ok(found)
}

/// The largest record that every topic that is written to takes, in bytes: the smaller of
/// `kafka.max_record_bytes` and the topics' own limits. A broker that does not say, or may not be
/// asked, leaves the setting.
pub async fn record_limit(settings: &KafkaSettings, deadline: Duration) -> u32 {
    let topics = [settings.output_topic.as_str(), settings.dead_letter_topic.as_str()];
    let asked = topics.map(ResourceSpecifier::Topic);
    let options = AdminOptions::new().request_timeout(Some(deadline));
    let answers = match client::admin_client(settings) {
        Ok(admin) => admin.describe_configs(&asked, &options).await,
        Err(error) => Err(error),
    };
    let answers = answers.unwrap_or_else(|error| {
        tracing::debug!(%error, "the topics' limits are unknown; kafka.max_record_bytes counts alone");
        Vec::new()
    });
    let stated = |resource: &ConfigResource| {
        let entry = resource.entries.iter().find(|entry| entry.name == TOPIC_LIMIT)?;
        entry.value.as_deref()?.parse::<u32>().ok()
    };
    let limits = answers.iter().flatten().filter_map(stated);
    limits
        .map(|limit| limit.saturating_sub(BATCH_OVERHEAD))
        .fold(settings.max_record_bytes, u32::min)
        .max(SMALLEST_LIMIT)
}

/// How many partitions a topic has, or `None` if it doesn't exist; blocks.
pub fn partition_count(
    settings: &KafkaSettings,
    topic: &str,
    deadline: Duration,
) -> Result<Option<usize>, Error> {
    let client = client::probe_client(settings)?;
    match describe(settings, &client, "topic", topic, Instant::now(), deadline) {
        Ok(info) => Ok(Some(info.partitions)),
        Err(Error::TopicMissing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn describe(
    settings: &KafkaSettings,
    client: &BaseConsumer<Context>,
    setting: &'static str,
    topic: &str,
    begun: Instant,
    deadline: Duration,
) -> Result<TopicInfo, Error> {
    let brokers = settings.brokers.clone();
    let asked = Instant::now();
    loop {
        let left = deadline.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
        let answer = client.fetch_metadata(Some(topic), left.min(ATTEMPT));
        client::serve(client, Duration::from_millis(10));
        let out_of_time = begun.elapsed() >= deadline;
        let metadata = match answer {
            Ok(metadata) => metadata,
            Err(error) if out_of_time => {
                let reason = client.client().context().last_error().unwrap_or_else(|| error.to_string());
                if reason.contains("certificate verify failed") {
                    return Err(Error::Untrusted { brokers, reason });
                }
                return Err(Error::Unreachable { brokers, waited_ms: begun.elapsed().as_millis(), reason });
            }
            Err(_) => continue,
        };
        let described = metadata.topics().iter().find(|described| described.name() == topic);
        let (code, partitions) = match described {
            Some(described) => {
                let code = described.error().filter(|code| code.is_error()).map(RDKafkaErrorCode::from);
                (code, described.partitions().len())
            }
            None => (Some(RDKafkaErrorCode::UnknownTopicOrPartition), 0),
        };
        let topic = topic.to_owned();
        match code {
            None if partitions > 0 => return Ok(TopicInfo { topic, setting, partitions }),
            None
            | Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::LeaderNotAvailable,
            ) if asked.elapsed() >= CREATION_GRACE || out_of_time => {
                return Err(Error::TopicMissing { topic, setting, brokers });
            }
            None
            | Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::LeaderNotAvailable,
            ) => std::thread::sleep(RETRY_PAUSE),
            Some(code) => {
                return Err(Error::TopicDenied { topic, setting, brokers, reason: code.to_string() });
            }
        }
    }
}
