//! From a checkpoint folder to a version in S3, whose manifest comes last.

use super::{
    RegistryError,
    address::S3Address,
    download::{Downloader, blocking},
    manifest::{MANIFEST_NAME, Manifest, Origin, sha256},
    progress::Progress,
};
use crate::{
    fetch::{LocalFile, Uploader},
    image::Preprocessor,
    model::checkpoint::{Digest, Inspection, inspect},
    store::NewVersion,
};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// A checkpoint without this file is no checkpoint, so it goes after all others: nobody takes what a
/// publication that was given up has left for a whole one.
const LAST_FILE: &str = "config.json";

/// A checkpoint folder and what is to be said of it.
#[derive(Clone, Debug)]
pub struct Publication {
    /// In Hugging Face layout.
    pub folder: PathBuf,
    pub origin: Origin,
}

/// A version that is in S3, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    pub address: S3Address,
    pub manifest: Manifest,
    /// 64 digits, of the manifest's bytes.
    pub manifest_sha256: String,
    /// Files that this call uploaded; the others were there.
    pub uploaded: usize,
}

impl Published {
    /// The row to register it with.
    pub fn new_version(&self) -> NewVersion {
        let Manifest { version, digest, origin, code_version, created_at, .. } = self.manifest.clone();
        NewVersion {
            version,
            digest,
            parent: origin.parent,
            uri: self.address.to_string(),
            manifest_sha256: self.manifest_sha256.clone(),
            dataset: origin.dataset,
            metrics: origin.metrics.map(Into::into),
            code_version,
            created_at,
        }
    }
}

/// Uploads the checkpoint below `destination`, in a folder named by its digest. What is there already is
/// not sent again, so a publication that was interrupted is gone on with; one that was completed keeps
/// its manifest.
pub(super) async fn publish(
    downloader: &Downloader,
    destination: &S3Address,
    publication: &Publication,
) -> Result<Published, RegistryError> {
    let folder = publication.folder.clone();
    let digest = blocking(move || check_fitness(&folder)).await?;
    let manifest = Manifest::new(digest, publication.origin.clone(), OffsetDateTime::now_utc());
    let address = destination.folder(manifest.folder_name());
    tracing::info!(version = manifest.version, %address, bytes = manifest.total_bytes(), "publishing a checkpoint");
    let uploader = Uploader::new(&downloader.fetcher, &downloader.retry);
    let uploaded = upload_files(&uploader, &publication.folder, &address, &manifest).await?;

    let bytes = manifest.encode()?;
    let written = uploader.put_new(&address.object(MANIFEST_NAME), bytes.into()).await?;
    // What counts is what is there: somebody else may have been first.
    let there = downloader.manifest(&address).await?;
    let (there, bytes) = there
        .ok_or_else(|| RegistryError::Incomplete { address: address.to_string(), lacks: MANIFEST_NAME })?;
    if there.files != manifest.files {
        let problem = format!("its digest is {} and should be {}", there.digest, manifest.digest);
        return Err(RegistryError::Damaged { object: format!("{address}/{MANIFEST_NAME}"), problem });
    }
    if !written && there.origin != manifest.origin {
        tracing::warn!(
            version = there.version,
            "these very files were published before; parent, data set and metrics stay what they were then"
        );
    }
    Ok(Published { address, manifest_sha256: sha256(&bytes), manifest: there, uploaded })
}

async fn upload_files(
    uploader: &Uploader,
    folder: &Path,
    address: &S3Address,
    manifest: &Manifest,
) -> Result<usize, RegistryError> {
    let progress = Progress::new("uploading", manifest.total_bytes());
    let mut files: Vec<_> = manifest.files.iter().collect();
    files.sort_by_key(|file| file.name == LAST_FILE);
    let mut uploaded = 0;
    for file in files {
        let path = folder.join(&file.name);
        let local = LocalFile { path: &path, bytes: file.bytes, sha256: &file.sha256 };
        let object = address.object(&file.name);
        let sent = uploader.upload(&object, local, &|bytes| progress.advance(bytes)).await?;
        uploaded += usize::from(sent);
    }
    Ok(uploaded)
}

/// The digest of a folder whose checkpoint loads and can score.
fn check_fitness(folder: &Path) -> Result<Digest, RegistryError> {
    let inspection = inspect(folder)?;
    if let Some(problem) = unfitness(&inspection) {
        return Err(RegistryError::Unfit { folder: folder.to_owned(), problem });
    }
    Preprocessor::open(folder)?;
    Ok(inspection.digest)
}

fn unfitness(inspection: &Inspection) -> Option<String> {
    if let Some(problem) = inspection.problems.first() {
        let others = inspection.problems.len() - 1;
        return Some(format!("tensor `{}` {} ({others} others like it)", problem.name, problem.problem));
    }
    if let Some(name) = inspection.non_finite.first() {
        return Some(format!("tensor `{name}` holds numbers that are not finite"));
    }
    if let Err(problem) = &inspection.tokenizer {
        return Some(problem.clone());
    }
    if inspection.config.score.is_none() {
        return Some("config.json names no score tokens (`score_id`)".into());
    }
    None
}
