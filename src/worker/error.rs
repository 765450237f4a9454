//! Why a worker ends, as exit codes.

use crate::{
    config::ConfigError, fetch::FetchError, http::ListenError, image::PreprocessorError,
    inference::EngineFailure, kafka, registry::RegistryError, store::StoreError,
    telemetry::traces::TracesError,
};

pub use crate::fault::UNAVAILABLE;

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Traces(#[from] TracesError),
    #[error("Kafka: {0}")]
    Kafka(#[from] kafka::Error),
    #[error("S3: {0}")]
    S3(#[from] FetchError),
    #[error("Postgres: {0}")]
    Postgres(#[from] StoreError),
    /// A dependency did not answer in time.
    #[error(
        "{dependency} at {address} did not answer within {seconds} s; check the address, the network and pipeline.start_timeout_ms"
    )]
    Silent { dependency: &'static str, address: String, seconds: u64 },
    #[error("model.checkpoint: {0}")]
    Preprocessing(#[from] PreprocessorError),
    #[error("model.checkpoint: {0}")]
    Model(String),
    /// The checkpoint cannot be brought here.
    #[error("model.checkpoint: {0}")]
    Registry(#[from] RegistryError),
    /// The model or its device is beyond use.
    #[error(transparent)]
    Engine(#[from] EngineFailure),
    /// The consumer is beyond use.
    #[error(transparent)]
    Consumer(kafka::Fatal),
    #[error("the drain ended early: {0}; what was not committed will be replayed")]
    Drain(String),
}

impl WorkerError {
    /// 2 configuration, 69 a dependency that does not answer, 70 model or device broken, 71 a batch that
    /// hangs, 72 consumer fatal, 75 out of memory at one image, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Kafka(kafka::Error::Setting { .. })
            | Self::S3(FetchError::Configuration { .. })
            | Self::Configuration(_)
            | Self::Listen(_)
            | Self::Traces(_)
            | Self::Preprocessing(_)
            | Self::Model(_) => 2,
            Self::Kafka(_) | Self::S3(_) | Self::Postgres(_) | Self::Silent { .. } => UNAVAILABLE,
            Self::Registry(error) => error.exit_code(),
            Self::Engine(failure) => failure.exit_code(),
            Self::Consumer(_) => 72,
            Self::Drain(_) => 1,
        }
    }
}
