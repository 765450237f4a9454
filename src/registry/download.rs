//! From S3 to the cache: piece by piece, hashed on the way, and gone on with where it broke.

use super::{
    RegistryError, RegistrySettings,
    address::S3Address,
    cache::{Cache, Claim, Lease},
    file_sink::FileSink,
    manifest::{MANIFEST_NAME, Manifest, ManifestError, Origin, sha256},
    progress::Progress,
};
use crate::{
    fetch::{FetchError, Fetcher},
    model::checkpoint::{Digest, FileDigest, SETTINGS_FILES, hash_files, hexadecimal},
    object::ObjectRef,
    retry::{RetrySettings, retry},
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
};
use time::OffsetDateTime;
use tokio::sync::mpsc;

/// One request's worth of an object, and how many are on their way at once.
const PIECE_BYTES: u64 = 8 << 20;
const PIECES_AT_ONCE: usize = 4;

/// A version in the cache.
#[derive(Debug)]
pub(super) struct Downloaded {
    pub lease: Lease,
    /// What was published; for a folder without one, what was found.
    pub manifest: Manifest,
    /// Whether `manifest` was published with the files.
    pub published: bool,
}

/// What a version in S3 consists of.
struct Contents {
    /// What the version is called in the cache.
    entry: String,
    files: Vec<RemoteFile>,
    /// `None` for a folder that was not published by this crate.
    manifest: Option<Manifest>,
}

struct RemoteFile {
    name: String,
    bytes: u64,
    /// 64 digits, where they are known beforehand.
    sha256: Option<String>,
    object: ObjectRef,
}

/// Brings versions from S3 into the cache.
#[derive(Clone, Debug)]
pub(super) struct Downloader {
    pub fetcher: Fetcher,
    pub settings: RegistrySettings,
    pub retry: RetrySettings,
}

impl Downloader {
    /// The version at `address`, whole and verified, from the cache if it is there. With
    /// `manifest_sha256`, only if its manifest has that digest.
    pub async fn download(
        &self,
        address: &S3Address,
        expected: Option<&ExpectedManifest<'_>>,
    ) -> Result<Downloaded, RegistryError> {
        let contents = self.contents(address, expected).await?;
        let published = contents.manifest.is_some();
        let cache = Cache::open(self.settings.cache_dir()?, self.settings.keep_versions)?;
        let mut verified = false;
        loop {
            let (shared, entry) = (cache.clone(), contents.entry.clone());
            if let Some(lease) = blocking(move || shared.lease(&entry)).await? {
                let manifest = contents.manifest.clone();
                match blocking(move || check_cached(lease, manifest, verified)).await? {
                    Cached::Sound(lease, manifest) => {
                        return Ok(Downloaded { lease, manifest: *manifest, published });
                    }
                    Cached::Unsound { file, problem } => {
                        discard(&cache, &contents.entry, file, problem).await?
                    }
                }
            }
            let (shared, entry) = (cache.clone(), contents.entry.clone());
            // While this process waited, another may have brought it.
            if let Some(claim) = blocking(move || shared.claim_unless_whole(&entry)).await? {
                let (shared, entry) = (cache.clone(), contents.entry.clone());
                blocking(move || shared.make_room(&entry)).await?;
                self.fill(&claim, address, &contents).await?;
                verified = true;
            }
        }
    }

    /// What the manifest says of the version at `address`; `None` where there is none.
    ///
    /// The bytes come along, for whoever knows their digest.
    pub async fn manifest(&self, address: &S3Address) -> Result<Option<(Manifest, Bytes)>, RegistryError> {
        let object = address.object(MANIFEST_NAME);
        let fetch = || self.fetcher.fetch(&object, Manifest::SIZE_LIMIT);
        let fetched = retry(&self.retry, fetch, FetchError::passing).await;
        let bytes = match fetched.map_err(|gave_up| gave_up.error) {
            Ok(fetched) => fetched.bytes,
            Err(FetchError::Missing { .. }) => return Ok(None),
            Err(FetchError::TooLarge { size, .. }) => {
                let reason = ManifestError::Malformed(format!("it has {size} bytes"));
                return Err(RegistryError::Manifest { address: address.to_string(), reason });
            }
            Err(error) => return Err(error.into()),
        };
        match Manifest::decode(&bytes) {
            Ok(manifest) => Ok(Some((manifest, bytes))),
            Err(reason) => Err(RegistryError::Manifest { address: address.to_string(), reason }),
        }
    }

    async fn contents(
        &self,
        address: &S3Address,
        expected: Option<&ExpectedManifest<'_>>,
    ) -> Result<Contents, RegistryError> {
        let Some((manifest, bytes)) = self.manifest(address).await? else {
            if expected.is_some() {
                return Err(RegistryError::Incomplete { address: address.to_string(), lacks: MANIFEST_NAME });
            }
            return self.listed(address).await;
        };
        if let Some(ExpectedManifest { version, sha256: expected }) = expected {
            let found = sha256(&bytes);
            if found != *expected {
                return Err(RegistryError::OtherManifest {
                    address: address.to_string(),
                    version: (*version).to_owned(),
                    expected: (*expected).to_owned(),
                    found,
                });
            }
        }
        let file = |file: &FileDigest| RemoteFile {
            name: file.name.clone(),
            bytes: file.bytes,
            sha256: Some(file.sha256.clone()),
            object: address.object(&file.name),
        };
        Ok(Contents {
            entry: manifest.folder_name().to_owned(),
            files: manifest.files.iter().map(file).collect(),
            manifest: Some(manifest),
        })
    }

    /// A checkpoint that somebody copied into a bucket. A publication that was given up is none: it has
    /// no `config.json` before everything else is there.
    async fn listed(&self, address: &S3Address) -> Result<Contents, RegistryError> {
        let prefix = address.key_prefix();
        let listing = || self.fetcher.list(address.bucket(), &prefix).try_collect::<Vec<_>>();
        let objects =
            retry(&self.retry, listing, FetchError::passing).await.map_err(|gave_up| gave_up.error)?;
        let mut files: Vec<RemoteFile> = objects
            .into_iter()
            .filter_map(|object| {
                let name = object.key.strip_prefix(&prefix)?.to_owned();
                let bytes = object.size?;
                Some(RemoteFile { name, bytes, sha256: None, object })
            })
            .collect();
        keep_checkpoint_files(&mut files);
        let lacks = |lacks| RegistryError::Incomplete { address: address.to_string(), lacks };
        if !files.iter().any(|file| file.name == "config.json") {
            return Err(lacks("config.json"));
        }
        tracing::warn!(
            %address,
            "there is no manifest.json, so nothing says whether the files are whole and unchanged; \
             `roc4mllm models publish` writes one"
        );
        let mut hasher = Sha256::new();
        for file in &files {
            let etag = file.object.etag.as_deref().unwrap_or_default();
            hasher.update(format!("{}\n{}\n{etag}\n", file.object, file.bytes));
        }
        let entry = format!("listed-{}", &hexadecimal(&hasher.finalize())[..16]);
        Ok(Contents { entry, files, manifest: None })
    }

    /// Whether the folder at `address` looks like a checkpoint that nobody published.
    pub async fn probe_listed(&self, address: &S3Address) -> Result<(), RegistryError> {
        self.listed(address).await.map(drop)
    }

    /// Downloads what is missing of a version and makes it whole.
    async fn fill(
        &self,
        claim: &Claim,
        address: &S3Address,
        contents: &Contents,
    ) -> Result<(), RegistryError> {
        let total: u64 = contents.files.iter().map(|file| file.bytes).sum();
        tracing::info!(%address, files = contents.files.len(), bytes = total, "downloading a checkpoint");
        let progress = Progress::new("downloading", total);
        let partial = claim.partial()?;
        let mut files = Vec::with_capacity(contents.files.len());
        for file in &contents.files {
            let digest = self.fetch_file(&partial, file, &progress).await?;
            files.push(FileDigest { name: file.name.clone(), bytes: file.bytes, sha256: digest });
        }
        let manifest = match &contents.manifest {
            Some(manifest) => manifest.clone(),
            None => Manifest::new(Digest::of(files), Origin::default(), OffsetDateTime::now_utc()),
        };
        let path = partial.join(MANIFEST_NAME);
        fs::write(&path, manifest.encode()?).map_err(RegistryError::cache(&path, "writing it"))?;
        claim.complete()
    }

    /// Brings one file into `folder`; its digest. What an earlier download left of it is gone on with,
    /// unless it turns out to be something else.
    async fn fetch_file(
        &self,
        folder: &Path,
        file: &RemoteFile,
        progress: &Progress,
    ) -> Result<String, RegistryError> {
        let damaged = |problem| RegistryError::Damaged { object: format!("s3://{}", file.object), problem };
        let head = retry(&self.retry, || self.fetcher.head(&file.object), FetchError::passing).await;
        let object = match head.map_err(|gave_up| gave_up.error) {
            Ok(head) => head.object,
            Err(FetchError::Missing { .. }) => return Err(damaged("it is not there".into())),
            Err(error) => return Err(error.into()),
        };
        if object.size != Some(file.bytes) {
            let size = object.size.unwrap_or_default();
            return Err(damaged(format!("it has {size} bytes and should have {}", file.bytes)));
        }
        let path = folder.join(&file.name);
        loop {
            let (sink, resumed) = {
                let (path, limit) = (path.clone(), file.bytes);
                blocking(move || FileSink::open(&path, limit)).await?
            };
            progress.advance(resumed);
            let digest = self.copy(&object, resumed, sink, progress).await?;
            match &file.sha256 {
                Some(expected) if *expected != digest => {
                    fs::remove_file(&path).map_err(RegistryError::cache(&path, "removing it"))?;
                    if resumed == 0 {
                        return Err(damaged(format!("its SHA-256 is {digest} and should be {expected}")));
                    }
                    tracing::warn!(%object, "what was left of an earlier download is of no use");
                    progress.retreat(file.bytes);
                }
                _ => return Ok(digest),
            }
        }
    }

    /// Appends the object's bytes from `start` on; the digest of the whole file.
    async fn copy(
        &self,
        object: &ObjectRef,
        start: u64,
        mut sink: FileSink,
        progress: &Progress,
    ) -> Result<String, RegistryError> {
        let end = object.size.unwrap_or_default();
        let starts = (start..end).step_by(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX));
        let pieces = stream::iter(starts).map(|start| async move {
            let fetch = || self.fetcher.fetch_range(object, start..end.min(start + PIECE_BYTES));
            retry(&self.retry, fetch, FetchError::passing).await.map_err(|gave_up| gave_up.error)
        });
        let mut pieces = pieces.buffered(PIECES_AT_ONCE);
        // Disk and hash keep up with the network on a thread of their own.
        let (sender, mut receiver) = mpsc::channel::<Bytes>(PIECES_AT_ONCE);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(piece) = receiver.blocking_recv() {
                sink.append(&piece)?;
            }
            sink.finish()
        });
        let mut failure = None;
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => {
                    progress.advance(piece.len() as u64);
                    // The writer has failed, and says why below.
                    if sender.send(piece).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        drop(sender);
        let written = writing.await.map_err(|error| RegistryError::Thread(error.to_string()))?;
        match failure {
            Some(FetchError::Superseded { object } | FetchError::Missing { object }) => {
                Err(RegistryError::Damaged {
                    object: format!("s3://{object}"),
                    problem: "it was replaced while it was read".into(),
                })
            }
            Some(error) => Err(error.into()),
            None => written,
        }
    }
}

/// Removes a cached version that is not what it was, unless somebody uses it.
async fn discard(cache: &Cache, entry: &str, file: PathBuf, problem: String) -> Result<(), RegistryError> {
    tracing::warn!(file = %file.display(), problem, "a cached checkpoint is damaged");
    let (cache, entry) = (cache.clone(), entry.to_owned());
    match blocking(move || cache.try_claim(&entry)).await? {
        Some(claim) => blocking(move || claim.remove()).await,
        None => Err(RegistryError::CacheInUse { path: file, problem }),
    }
}

/// The manifest that a version was registered with.
pub(super) struct ExpectedManifest<'a> {
    pub version: &'a str,
    pub sha256: &'a str,
}

/// Of the objects of a folder, those that a checkpoint is made of: settings and weights, safetensors
/// where there are both kinds, and nothing of what a trainer leaves beside them.
fn keep_checkpoint_files(files: &mut Vec<RemoteFile>) {
    let is_safetensors =
        |name: &str| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let is_torch = |name: &str| {
        name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".bin.index.json"))
    };
    files.retain(|file| super::manifest::is_plain_file_name(&file.name));
    let safetensors = files.iter().any(|file| is_safetensors(&file.name));
    files.retain(|file| {
        let name = file.name.as_str();
        SETTINGS_FILES.contains(&name) || if safetensors { is_safetensors(name) } else { is_torch(name) }
    });
    files.sort_by(|one, other| one.name.cmp(&other.name));
}

enum Cached {
    Sound(Lease, Box<Manifest>),
    Unsound { file: PathBuf, problem: String },
}

/// Whether a cached version is what was published. Every file is read, unless it has just been.
fn check_cached(lease: Lease, published: Option<Manifest>, verified: bool) -> Result<Cached, RegistryError> {
    let path = lease.folder.join(MANIFEST_NAME);
    let stored = fs::read(&path).map_err(|error| error.to_string());
    let stored = stored.and_then(|bytes| Manifest::decode(&bytes).map_err(|error| error.to_string()));
    // Equal files may have been published again, with a manifest of another day.
    let manifest = match (published, stored) {
        (Some(published), _) => published,
        (None, Ok(stored)) => stored,
        (None, Err(problem)) => return Ok(Cached::Unsound { file: path, problem }),
    };
    if verified {
        return Ok(Cached::Sound(lease, Box::new(manifest)));
    }
    for file in &manifest.files {
        let path = lease.folder.join(&file.name);
        let found = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) => return Ok(Cached::Unsound { file: path, problem: error.to_string() }),
        };
        if found != file.bytes {
            let problem = format!("it has {found} bytes and should have {}", file.bytes);
            return Ok(Cached::Unsound { file: path, problem });
        }
    }
    let paths = manifest.files.iter().map(|file| lease.folder.join(&file.name)).collect();
    let mut found = hash_files(paths)?;
    found.sort();
    match found.iter().zip(&manifest.files).find(|(found, file)| found != file) {
        None => Ok(Cached::Sound(lease, Box::new(manifest))),
        Some((_, file)) => {
            let problem = "its SHA-256 is another than was published".to_owned();
            Ok(Cached::Unsound { file: lease.folder.join(&file.name), problem })
        }
    }
}

/// Runs what waits for the disk or a lock where it holds up no other task.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RegistryError::Thread(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_listed_folder_the_checkpoint_is_taken() {
        let taken = |names: &[&str]| {
            let mut files: Vec<RemoteFile> = names
                .iter()
                .map(|name| RemoteFile {
                    name: (*name).to_owned(),
                    bytes: 1,
                    sha256: None,
                    object: ObjectRef::new("b", *name),
                })
                .collect();
            keep_checkpoint_files(&mut files);
            files.into_iter().map(|file| file.name).collect::<Vec<_>>()
        };
        let beside = ["README.md", "training_args.bin", "sub/config.json", "optimizer.pt", "config.json"];
        let torch = ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"];
        let expected = ["config.json", torch[0], torch[1]];
        assert_eq!(taken(&[&beside[..], &torch[..]].concat()), expected);
        let both = taken(&[&beside[..], &torch[..], &["model.safetensors", "tokenizer.model"][..]].concat());
        assert_eq!(both, ["config.json", "model.safetensors", "tokenizer.model"]);
    }
}
