//! From what `model.checkpoint` names to a folder on this machine.

use super::{
    RegistryError, RegistrySettings,
    address::{CheckpointSource, S3Address},
    cache::Lease,
    download::{Downloaded, Downloader, ExpectedManifest},
    manifest::Manifest,
    publish::{self, Publication, Published},
};
use crate::{
    config::Config,
    fetch::{Fetcher, S3Settings},
    model::{ModelSettings, checkpoint::Checkpoint},
    retry::RetrySettings,
    store::{RegisteredVersion, Store},
};
use futures_util::FutureExt;
use std::path::{Path, PathBuf};

/// A checkpoint on this machine.
///
/// One that came from S3 stays in the cache for as long as this lives, in whatever process; a folder of
/// the user's is the user's matter.
#[derive(Debug)]
pub struct ResolvedCheckpoint {
    pub folder: PathBuf,
    /// For the champion, and for versions that were asked for by their row.
    pub version: Option<RegisteredVersion>,
    /// Where one was published with the files.
    pub manifest: Option<Manifest>,
    _lease: Option<Lease>,
}

impl ResolvedCheckpoint {
    /// A folder that is here already.
    pub fn local(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), version: None, manifest: None, _lease: None }
    }

    /// The settings that load this checkpoint instead of the one that `model` names.
    pub fn settings(&self, model: &ModelSettings) -> ModelSettings {
        ModelSettings { checkpoint: self.folder.to_string_lossy().into_owned(), ..model.clone() }
    }
}

/// Versions of the model in S3, and those of them that are on this machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    downloader: Downloader,
}

impl Registry {
    /// Sets up the client; nothing is asked for yet. Passing faults are retried as `retry` says.
    ///
    /// # Errors
    /// [`RegistryError::S3`] when a setting is missing.
    pub async fn connect(
        s3: &S3Settings,
        settings: &RegistrySettings,
        retry: &RetrySettings,
    ) -> Result<Self, RegistryError> {
        Ok(Self::over(Fetcher::connect(s3).await?, settings, retry))
    }

    /// As [`Self::connect`], over a client that is there.
    pub fn over(fetcher: Fetcher, settings: &RegistrySettings, retry: &RetrySettings) -> Self {
        Self { downloader: Downloader { fetcher, settings: settings.clone(), retry: retry.clone() } }
    }

    /// The checkpoint at an address, downloaded unless it is here, every file verified against the
    /// manifest. One without a manifest is taken as it is listed, with a warning.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] naming the object that is not what was published;
    /// [`RegistryError::Incomplete`] where no checkpoint is; and those of S3 and the disk.
    pub async fn checkpoint_at(&self, address: &S3Address) -> Result<ResolvedCheckpoint, RegistryError> {
        let downloaded = self.downloader.download(address, None).boxed().await?;
        Ok(resolved(downloaded, None))
    }

    /// A registered version, downloaded unless it is here, every file verified. Its manifest must be the
    /// one it was registered with.
    ///
    /// # Errors
    /// As [`Self::checkpoint_at`], and [`RegistryError::OtherManifest`].
    pub async fn version(&self, version: &RegisteredVersion) -> Result<ResolvedCheckpoint, RegistryError> {
        let expected = ExpectedManifest { version: &version.version, sha256: &version.manifest_sha256 };
        let downloaded = self.downloader.download(&version.uri.parse()?, Some(&expected)).boxed().await?;
        Ok(resolved(downloaded, Some(version.clone())))
    }

    /// Uploads a checkpoint folder below `registry.publish_to`, with its manifest last; what is there
    /// already is not sent again. Registering it is the caller's: [`Store::register_version`] with
    /// [`Published::new_version`].
    ///
    /// # Errors
    /// [`RegistryError::Unfit`] for a folder that does not load or cannot score;
    /// [`RegistryError::NoDestination`]; and those of S3.
    pub async fn publish(&self, publication: &Publication) -> Result<Published, RegistryError> {
        let destination = self.downloader.settings.publish_to.as_ref().ok_or(RegistryError::NoDestination)?;
        publish::publish(&self.downloader, destination, publication).boxed().await
    }

    /// What was published at an address; `None` where nothing was, or not yet whole.
    ///
    /// # Errors
    /// [`RegistryError::Manifest`] for one that can't be used, and those of S3.
    pub async fn manifest_at(&self, address: &S3Address) -> Result<Option<Manifest>, RegistryError> {
        Ok(self.downloader.manifest(address).await?.map(|(manifest, _)| manifest))
    }
}

fn resolved(downloaded: Downloaded, version: Option<RegisteredVersion>) -> ResolvedCheckpoint {
    let Downloaded { lease, manifest, published } = downloaded;
    ResolvedCheckpoint {
        folder: lease.folder.clone(),
        version,
        manifest: published.then_some(manifest),
        _lease: Some(lease),
    }
}

/// The folder of the checkpoint that `model.checkpoint` names: the folder itself, or what was downloaded
/// from an `s3://` address or for the registered champion.
///
/// # Errors
/// [`RegistryError`], [`RegistryError::NoChampion`] among them. Whether a folder of the user's holds a
/// checkpoint is for whoever loads it to find out.
pub async fn resolve(config: &Config) -> Result<ResolvedCheckpoint, RegistryError> {
    let source = source(&config.model);
    let connect = || Registry::connect(&config.s3, &config.registry, &config.retry);
    match source {
        CheckpointSource::Folder(folder) => Ok(ResolvedCheckpoint::local(folder)),
        CheckpointSource::S3(address) => connect().await?.checkpoint_at(&address.parse()?).await,
        CheckpointSource::Champion => {
            let store = Store::connect(&config.postgres).await?;
            let champion = store.champion().await?.ok_or(RegistryError::NoChampion)?;
            store.close().await;
            connect().await?.version(&champion).await
        }
    }
}

/// As [`resolve`], for commands without a configuration: a folder, or an `s3://` address whose server
/// `s3` names.
///
/// # Errors
/// As [`resolve`], and [`RegistryError::ChampionWithoutStore`].
pub async fn resolve_source(
    source: &CheckpointSource,
    s3: &S3Settings,
    retry: &RetrySettings,
) -> Result<ResolvedCheckpoint, RegistryError> {
    match source {
        CheckpointSource::Folder(folder) => Ok(ResolvedCheckpoint::local(folder)),
        CheckpointSource::S3(address) => {
            let address = address.parse()?;
            Registry::connect(s3, &RegistrySettings::default(), retry).await?.checkpoint_at(&address).await
        }
        CheckpointSource::Champion => Err(RegistryError::ChampionWithoutStore),
    }
}

/// Whether [`resolve`] would find a checkpoint; nothing is downloaded.
///
/// # Errors
/// As [`resolve`], and those of opening a folder's checkpoint.
pub async fn probe(config: &Config) -> Result<(), RegistryError> {
    let source = source(&config.model);
    let address = match source {
        CheckpointSource::Folder(folder) => {
            return Ok(Checkpoint::open(Path::new(&folder)).map(drop)?);
        }
        CheckpointSource::S3(address) => address.parse()?,
        CheckpointSource::Champion => {
            let store = Store::connect(&config.postgres).await?;
            let champion = store.champion().await?.ok_or(RegistryError::NoChampion)?;
            store.close().await;
            champion.uri.parse()?
        }
    };
    let registry = Registry::connect(&config.s3, &config.registry, &config.retry).await?;
    match registry.manifest_at(&address).await? {
        Some(_) => Ok(()),
        None => registry.downloader.probe_listed(&address).await,
    }
}

fn source(model: &ModelSettings) -> CheckpointSource {
    let Ok(source) = model.checkpoint.parse();
    source
}
