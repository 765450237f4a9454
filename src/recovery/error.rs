//! Why a recovery command ended before it was done.

use crate::fault::Disposition;
use crate::kafka;
use crate::store::StoreError;
use crate::worker::UNAVAILABLE;

/// An end of the whole command; a letter, row or output that can't be used is counted instead.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("Kafka: {0}")]
    Kafka(#[from] kafka::Error),
    #[error("Postgres: {0}")]
    Postgres(#[from] StoreError),
    /// What the group has committed can't be understood, so nothing may be put back.
    #[error(
        "the offset that group {group:?} has committed for {source_partition} says what was put back in a form that this release cannot read; use the release that wrote it"
    )]
    Bookkeeping { group: String, source_partition: String },
    #[error("a row of {id} cannot be written as JSON: {reason}")]
    Encoding { id: String, reason: String },
    #[error("a thread of the command ended early: {0}; run it again")]
    Thread(String),
}

impl RecoveryError {
    /// What the caller does next. Nothing is lost by any of them: the same command goes on from there.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Kafka(error) => error.disposition(),
            Self::Postgres(error) => error.disposition(),
            Self::Bookkeeping { .. } | Self::Encoding { .. } | Self::Thread(_) => Disposition::Stop,
        }
    }

    /// 2 configuration, 69 a dependency that does not answer or refuses, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Kafka(kafka::Error::Setting { .. }) | Self::Postgres(StoreError::Configuration { .. }) => 2,
            Self::Kafka(_) | Self::Postgres(_) => UNAVAILABLE,
            Self::Bookkeeping { .. } | Self::Encoding { .. } | Self::Thread(_) => 1,
        }
    }
}
