//! Why a version of the model is not published, or not here.

use super::{address::NotAnAddress, manifest::ManifestError};
use crate::{
    fault::{Disposition, UNAVAILABLE},
    fetch::{FetchError, UploadError},
    image::PreprocessorError,
    model::checkpoint::CheckpointError,
    store::{StoreError, VersionError},
};
use std::{io, path::PathBuf};

/// A version that is not published, not found, or not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Address(#[from] NotAnAddress),
    #[error("no champion is registered; publish one with `roc4mllm models publish DIR --promote`")]
    NoChampion,
    #[error(
        "the champion is kept in Postgres, which this command does not ask; name a folder or an s3:// address"
    )]
    ChampionWithoutStore,
    #[error("registry.publish_to is not set; give the s3://bucket/prefix that versions are published to")]
    NoDestination,
    #[error(
        "registry.cache_dir is not set, and neither is XDG_CACHE_HOME or HOME; name a folder to keep checkpoints in"
    )]
    NoCache,
    #[error("S3: {0}")]
    S3(#[from] FetchError),
    #[error("S3: {0}")]
    Upload(#[from] UploadError),
    #[error("Postgres: {0}")]
    Postgres(#[from] StoreError),
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Nothing there, or the beginning of a publication that was given up.
    #[error(
        "{address}: there is no manifest.json and no {lacks}, so this is no checkpoint, or it is not yet published whole; check the address, or publish it again"
    )]
    Incomplete { address: String, lacks: &'static str },
    #[error("{address}/manifest.json: {reason}; publish the version again")]
    Manifest { address: String, reason: ManifestError },
    /// The manifest is not the one that the version was registered with.
    #[error(
        "{address}/manifest.json: its SHA-256 is {found}, and {version} was registered with {expected}; publish the version again"
    )]
    OtherManifest { address: String, version: String, expected: String, found: String },
    /// An object's bytes are not those that were published.
    #[error("{object}: {problem}; the object was damaged or replaced: publish the version again")]
    Damaged { object: String, problem: String },
    /// A file in the cache is not what it was, and somebody may be reading it.
    #[error("{}: {problem}; stop the other process that uses this folder, or give registry.cache_dir another", .path.display())]
    CacheInUse { path: PathBuf, problem: String },
    #[error("{}: {doing} failed ({source}); check registry.cache_dir, its permissions and the disk", .path.display())]
    Cache { path: PathBuf, doing: &'static str, source: io::Error },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Preprocessor(#[from] PreprocessorError),
    /// A folder that can't be published.
    #[error("{}: {problem}; only a checkpoint that loads and scores is published", .folder.display())]
    Unfit { folder: PathBuf, problem: String },
    #[error("the manifest cannot be written: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("a thread ended early: {0}; run it again")]
    Thread(String),
}

impl RegistryError {
    /// What the caller does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::S3(error) | Self::Upload(UploadError::S3(error)) => error.disposition(),
            Self::Postgres(error) | Self::Version(VersionError::Store(error)) => error.disposition(),
            // Somebody may promote one, or publish it whole.
            Self::NoChampion | Self::Incomplete { .. } => Disposition::Hold,
            Self::Cache { .. } | Self::CacheInUse { .. } => Disposition::Hold,
            _ => Disposition::Stop,
        }
    }

    /// 2 for what a user must mend before the next try, 69 for S3 and Postgres, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::S3(FetchError::Configuration { .. })
            | Self::Postgres(StoreError::Configuration { .. })
            | Self::Version(VersionError::Store(StoreError::Configuration { .. })) => 2,
            Self::S3(_)
            | Self::Postgres(_)
            | Self::Upload(UploadError::S3(_))
            | Self::Version(VersionError::Store(_)) => UNAVAILABLE,
            Self::Cache { .. } | Self::CacheInUse { .. } | Self::Encode(_) | Self::Thread(_) => 1,
            _ => 2,
        }
    }

    pub(super) fn cache(path: &std::path::Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Cache { path, doing, source }
    }
}
