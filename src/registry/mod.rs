//! Versions of the model: published to S3, registered in Postgres, kept in a cache on each machine.
//!
//! A version is a checkpoint folder below `registry.publish_to`, named by twelve digits of the digest of
//! its files, with a [`Manifest`] that says what every file must be. The manifest is written last, once,
//! and what has none is no version. Names agree everywhere: version `sha256:0123456789ab` lies in
//! `…/0123456789ab/`, is `model_versions.version`, and is what the `model_version` of every score
//! that it made begins with (the rest is prompt and type, which also change scores).
//!
//! [`resolve`] turns what `model.checkpoint` names into a folder. Nothing is handed out before each of its
//! files has the digest that was published, whether it comes from S3 or from the cache.

mod address;
mod cache;
mod download;
mod error;
mod file_sink;
mod manifest;
mod progress;
mod publish;
mod resolve;
mod settings;

pub use address::{CheckpointSource, NotAnAddress, S3Address};
pub use error::RegistryError;
pub use manifest::{MANIFEST_NAME, Manifest, ManifestError, Origin};
pub use publish::{Publication, Published};
pub use resolve::{Registry, ResolvedCheckpoint, probe, resolve, resolve_source};
pub use settings::RegistrySettings;
