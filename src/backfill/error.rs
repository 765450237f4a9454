//! Why a backfill ended before everything was enqueued.

use crate::fault::Disposition;
use crate::fetch::FetchError;
use crate::kafka;
use crate::model::ModelError;
use crate::registry::RegistryError;
use crate::store::StoreError;
use crate::worker::UNAVAILABLE;

/// An end of the whole command. What was enqueued before is noted, and the same command goes on there.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    #[error("--prefix {0}: not an S3 address; write s3://bucket or s3://bucket/prefix")]
    Address(String),
    #[error(
        "--prefix: bucket {0:?} is not among s3.buckets, so workers would refuse its objects; add it there"
    )]
    Bucket(String),
    #[error("no topic to enqueue to; set kafka.backfill_topic, which workers read too, or give --topic")]
    NoTopic,
    #[error("topic {0:?} is kafka.labels_topic, whose records are votes; use another")]
    Votes(String),
    #[error("topic {0:?} is written by workers, which would be a loop; use another")]
    Loop(String),
    #[error(
        "backfill {name:?} was begun to topic {begun:?} and not to {asked:?}; give --topic {begun}, or --restart"
    )]
    OtherTopic { name: String, begun: String, asked: String },
    #[error("the served model version is not known: {0}; mend model.checkpoint or give --not-version")]
    Version(#[from] ModelError),
    #[error("the served model version is not known: {0}; mend model.checkpoint or give --not-version")]
    Registry(#[from] RegistryError),
    #[error("Kafka: {0}")]
    Kafka(#[from] kafka::Error),
    #[error("S3: {0}")]
    S3(#[from] FetchError),
    #[error("Postgres: {0}")]
    Postgres(#[from] StoreError),
    /// Where to go on could not be said.
    #[error(
        "s3://{bucket} does not list its keys in order ({key:?} came after {before:?}), as directory buckets do; backfill --stored instead"
    )]
    Unordered { bucket: String, before: String, key: String },
    /// The row moved under this run.
    #[error("backfill {0:?} is being run by another process too; stop one of them")]
    Overtaken(String),
    #[error("a thread of the command ended early: {0}; run it again")]
    Thread(String),
}

impl BackfillError {
    /// What the caller does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Kafka(error) => error.disposition(),
            Self::S3(error) => error.disposition(),
            Self::Registry(error) => error.disposition(),
            Self::Postgres(error) => error.disposition(),
            _ => Disposition::Stop,
        }
    }

    /// 2 usage and configuration, 3 another run or an unordered listing, 69 a dependency, 1 the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Address(_)
            | Self::Bucket(_)
            | Self::NoTopic
            | Self::Loop(_)
            | Self::Votes(_)
            | Self::OtherTopic { .. }
            | Self::Version(_)
            | Self::Kafka(kafka::Error::Setting { .. })
            | Self::S3(FetchError::Configuration { .. })
            | Self::Postgres(StoreError::Configuration { .. }) => 2,
            Self::Unordered { .. } | Self::Overtaken(_) => 3,
            Self::Kafka(_) | Self::S3(_) | Self::Postgres(_) => UNAVAILABLE,
            Self::Registry(error) => error.exit_code(),
            Self::Thread(_) => 1,
        }
    }
}
