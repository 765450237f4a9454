//! What can go wrong with Kafka, and what the caller does about it.

use crate::fault::Disposition;

/// An error of this module. Every message names the broker or topic, the reason and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration can't work.
    #[error("kafka.{setting}: {reason}")]
    Setting { setting: &'static str, reason: String },
    /// librdkafka refused to make a client.
    #[error("could not make a Kafka client for {brokers}: {source}; check the [kafka] section")]
    Client { brokers: String, source: rdkafka::error::KafkaError },
    /// No broker answered in time.
    #[error(
        "no Kafka broker at {brokers} answered within {waited_ms} ms ({reason}); check kafka.brokers, the network, and kafka.security and its credentials"
    )]
    Unreachable { brokers: String, waited_ms: u128, reason: String },
    /// A broker's certificate is not signed by an authority that is trusted, or names another host.
    #[error(
        "no Kafka broker at {brokers} can be trusted ({reason}); give the brokers' authority in kafka.tls.ca, \
         and see that their certificates have the host names in kafka.brokers and advertised.listeners"
    )]
    Untrusted { brokers: String, reason: String },
    /// A configured topic does not exist.
    #[error("topic {topic:?} ({setting}) does not exist on {brokers}; create it or correct the setting")]
    TopicMissing { topic: String, setting: &'static str, brokers: String },
    /// A configured topic may not be used.
    #[error("topic {topic:?} ({setting}) can't be used on {brokers}: {reason}; check the topic's ACLs")]
    TopicDenied { topic: String, setting: &'static str, brokers: String, reason: String },
    /// A record could not be produced.
    #[error("could not produce to topic {topic:?}: {reason}; check the topic, its ACLs and its size limit")]
    Produce { topic: String, reason: String, retriable: bool },
    /// A topic could not be read.
    #[error("could not read topic {topic:?} to its end: {reason}; run the command again")]
    Read { topic: String, reason: String },
    /// A command's transaction did not end well. What it committed before stays.
    #[error("a transaction of {id:?} on {brokers} failed: {reason}; run the command again")]
    Transaction { id: String, brokers: String, reason: String },
    /// Committed offsets could not be read or written.
    #[error("offsets of group {group:?} on {brokers}: {reason}; check the brokers and the group's ACLs")]
    Offsets { group: String, brokers: String, reason: String },
    /// A thread could not be started.
    #[error("could not start thread {name}: {source}; raise the process or memory limit")]
    Thread { name: &'static str, source: std::io::Error },
}

impl Error {
    /// What the caller does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Setting { .. } | Self::Client { .. } | Self::Thread { .. } => Disposition::Stop,
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::TopicMissing { .. }
            | Self::TopicDenied { .. } => Disposition::Hold,
            Self::Produce { retriable: true, .. }
            | Self::Read { .. }
            | Self::Transaction { .. }
            | Self::Offsets { .. } => Disposition::Retry,
            Self::Produce { retriable: false, .. } => Disposition::Hold,
        }
    }
}

/// Why the source stopped by itself: the consumer can't be used any more, and the process has to go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Kafka consumer failed for good: {reason}; the process has to be started again")]
pub struct Fatal {
    pub reason: String,
}
