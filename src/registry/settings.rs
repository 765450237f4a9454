//! The `registry` section of the configuration.

use super::{RegistryError, address::S3Address};
use serde::{Deserialize, Serialize};
use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

/// Configuration section `registry`: where versions of the model are published, and where they are kept
/// on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// `s3://bucket/prefix`; each version has a folder below it.
    pub publish_to: Option<S3Address>,
    /// Where downloaded versions are kept. Left out, `$XDG_CACHE_HOME/roc4mllm` or `~/.cache/roc4mllm`.
    pub cache_dir: Option<PathBuf>,
    /// How often a worker looks for another champion, canary or shadow, in milliseconds.
    pub poll_interval_ms: u64,
    /// Downloaded versions that are kept; those in use are kept in any case.
    pub keep_versions: usize,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self { publish_to: None, cache_dir: None, poll_interval_ms: 10_000, keep_versions: 3 }
    }
}

impl RegistrySettings {
    /// How often a worker looks for other versions.
    pub fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms)
    }

    /// The folder of downloaded versions.
    ///
    /// # Errors
    /// [`RegistryError::NoCache`] where neither the configuration nor the environment names one.
    pub fn cache_dir(&self) -> Result<PathBuf, RegistryError> {
        let from = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        self.cache_dir
            .clone()
            .or_else(|| from("XDG_CACHE_HOME").map(|cache| cache.join("roc4mllm")))
            .or_else(|| from("HOME").map(|home| home.join(Path::new(".cache/roc4mllm"))))
            .ok_or(RegistryError::NoCache)
    }
}
