//! Writing objects: small ones in one request, files in parts that an interrupted upload need not send
//! again.

use crate::fetch::error::{Sdk, ServiceFault};
use crate::fetch::local_file::{FileReader, LocalFile, hexadecimal};
use crate::fetch::{FetchError, Fetcher, S3Settings, unquoted};
use crate::object::ObjectRef;
use crate::retry::{RetrySettings, retry};
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use md5::Md5;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The user metadata that says an object's SHA-256, since neither an ETag nor a checksum of parts does.
pub(super) const DIGEST_METADATA: &str = "sha256";

/// One part, unless the file would then have too many of them.
const PART_BYTES: u64 = 16 << 20;
/// S3 takes no more.
const MOST_PARTS: u64 = 10_000;
/// Parts on their way at once; each is held in memory.
const PARTS_AT_ONCE: usize = 4;
/// An upload slower than this, in bytes a second, counts as broken.
const SLOWEST: u64 = 64 << 10;
/// A part's upload is gone when another process has completed it; then the object is looked at anew.
const TRIES: u32 = 3;

/// A file that is not uploaded. Messages name what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error(transparent)]
    S3(#[from] FetchError),
    #[error("{}: cannot be read ({source}); check the path and its permissions", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: it changed while it was uploaded; let whatever writes it end, and upload again", .path.display())]
    Changed { path: PathBuf },
    #[error("s3://{object}: other processes keep completing its upload; let one of them end")]
    Contended { object: String },
}

/// Writes objects over a [`Fetcher`]'s connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploader {
    fetcher: Fetcher,
    client: Client,
    retry: RetrySettings,
}

/// An upload in parts that was begun.
struct Multipart {
    id: String,
    /// The server's ETags of the parts that it has, by number.
    parts: BTreeMap<i32, String>,
}

/// What became of sending a file once.
enum Sent {
    Whole,
    /// Somebody else completed or gave up the same upload.
    Gone,
}

impl Uploader {
    /// Passing faults are retried as `retry` says.
    pub fn new(fetcher: &Fetcher, retry: &RetrySettings) -> Self {
        // The time limit for one request covers sending its body.
        let sending = Duration::from_secs(PART_BYTES / SLOWEST);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_millis(fetcher.settings.connect_timeout_ms))
            .operation_attempt_timeout(sending + attempt_timeout(&fetcher.settings))
            .build();
        let config = fetcher.client.config().to_builder().timeout_config(timeouts).build();
        Self { fetcher: fetcher.clone(), client: Client::from_conf(config), retry: retry.clone() }
    }

    /// Writes a small object, unless there is one: `false` then, and it is left as it is. Servers that
    /// know no conditional writes replace it.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn put_new(&self, object: &ObjectRef, content: Bytes) -> Result<bool, FetchError> {
        let put = || async {
            let put = || self.client.put_object().bucket(&object.bucket).key(&object.key);
            let Err(error) = put().if_none_match("*").body(content.clone().into()).send().await else {
                return Ok(true);
            };
            match status_of(&error) {
                Some(412) => Ok(false),
                // The server knows no conditional writes.
                Some(501) => match put().body(content.clone().into()).send().await {
                    Ok(_) => Ok(true),
                    Err(error) => Err(self.error(&error, object)),
                },
                // Another write of the same object is under way, and S3 asks to try again.
                Some(409) => {
                    let (target, code) = (format!("s3://{object}"), "ConditionalRequestConflict".to_owned());
                    let message = "another process is writing it".to_owned();
                    Err(FetchError::Unavailable { target, status: 409, code, message })
                }
                _ => Err(self.error(&error, object)),
            }
        };
        self.passing(put).await
    }

    /// Uploads a file with its digest noted at the object, unless an object with that digest and size is
    /// there: `false` then. What an interrupted upload of the same file left is gone on with.
    ///
    /// `progress` is told of bytes as they are on the server, those that were there already included.
    ///
    /// # Errors
    /// [`UploadError`]; nothing is at `object`'s key then but what was there before.
    pub async fn upload(
        &self,
        object: &ObjectRef,
        file: LocalFile<'_>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<bool, UploadError> {
        for _ in 0..TRIES {
            if self.has(object, file).await? {
                progress(file.bytes);
                return Ok(false);
            }
            let sent = match file.bytes <= PART_BYTES {
                true => self.upload_whole(object, file).await.map(|()| Sent::Whole)?,
                false => self.upload_in_parts(object, file, progress).await?,
            };
            if matches!(sent, Sent::Whole) {
                if file.bytes <= PART_BYTES {
                    progress(file.bytes);
                }
                return Ok(true);
            }
        }
        Err(UploadError::Contended { object: object.to_string() })
    }

    async fn has(&self, object: &ObjectRef, file: LocalFile<'_>) -> Result<bool, FetchError> {
        match self.passing(|| self.fetcher.head(object)).await {
            Ok(head) => {
                Ok(head.object.size == Some(file.bytes) && head.sha256.as_deref() == Some(file.sha256))
            }
            Err(FetchError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn upload_whole(&self, object: &ObjectRef, file: LocalFile<'_>) -> Result<(), UploadError> {
        let mut reader = FileReader::open(file.path)?;
        let content = reader.next(file.bytes).await?;
        reader.check(file).await?;
        let put = || async {
            let request = self.client.put_object().bucket(&object.bucket).key(&object.key);
            let request = request.metadata(DIGEST_METADATA, file.sha256).body(content.clone().into());
            request.send().await.map(drop).map_err(|error| self.error(&error, object))
        };
        Ok(self.passing(put).await?)
    }

    async fn upload_in_parts(
        &self,
        object: &ObjectRef,
        file: LocalFile<'_>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Sent, UploadError> {
        let part_bytes = part_bytes(file.bytes);
        let begun = match self.find_begun(object).await? {
            Some(begun) => begun,
            None => self.begin(object, file.sha256).await?,
        };
        let mut reader = FileReader::open(file.path)?;
        let (mut read, mut number) = (0, 0);
        // Read in order, so that the digest is that of the bytes sent; sent several at a time.
        let mut sending = FuturesOrdered::new();
        let mut parts = Vec::new();
        loop {
            while read < file.bytes && sending.len() < PARTS_AT_ONCE {
                let length = part_bytes.min(file.bytes - read);
                let content = reader.next(length).await?;
                read += length;
                number += 1;
                sending.push_back(self.part(object, &begun, number, content));
            }
            match sending.next().await.transpose()? {
                None => break,
                Some(None) => return Ok(Sent::Gone),
                Some(Some((part, length))) => {
                    progress(length);
                    parts.push(part);
                }
            }
        }
        drop(sending);
        if let Err(error) = reader.check(file).await {
            // The parts are of no file that there is any more.
            self.abandon(object, &begun.id).await;
            return Err(error);
        }
        self.complete(object, &begun.id, parts).await
    }

    /// One part as the server has it, which it may have had before, and its size; `None` where the
    /// upload is gone.
    async fn part(
        &self,
        object: &ObjectRef,
        begun: &Multipart,
        number: i32,
        content: Bytes,
    ) -> Result<Option<(CompletedPart, u64)>, FetchError> {
        let length = content.len() as u64;
        // Where ETags are no MD5, as under a key of KMS, the part is sent again.
        let tag = match begun.parts.get(&number).filter(|tag| is_md5_of(tag, &content)) {
            Some(tag) => Some(tag.clone()),
            None => self.send_part(object, &begun.id, number, content).await?,
        };
        let part = |tag| CompletedPart::builder().part_number(number).e_tag(tag).build();
        Ok(tag.map(|tag| (part(tag), length)))
    }

    /// The upload of this object that was begun last, with the parts that the server has. `None` too
    /// where the server does not list them or the account may not: then the file is sent anew.
    async fn find_begun(&self, object: &ObjectRef) -> Result<Option<Multipart>, FetchError> {
        let list = || async {
            let request = self.client.list_multipart_uploads().bucket(&object.bucket).prefix(&object.key);
            match request.send().await {
                Ok(listed) => Ok(Some(listed)),
                Err(error) if matches!(status_of(&error), Some(403 | 405 | 501)) => Ok(None),
                Err(error) => Err(self.error(&error, object)),
            }
        };
        let Some(listed) = self.passing(list).await? else { return Ok(None) };
        let uploads = listed.uploads().iter().filter(|upload| upload.key() == Some(&object.key));
        let newest = uploads.max_by_key(|upload| upload.initiated().map(|at| (at.secs(), at.subsec_nanos())));
        let Some(id) = newest.and_then(|upload| upload.upload_id()).map(str::to_owned) else {
            return Ok(None);
        };
        let list = || async {
            let request = self.client.list_parts().bucket(&object.bucket).key(&object.key).upload_id(&id);
            let mut pages = request.into_paginator().send();
            let mut parts = BTreeMap::new();
            while let Some(page) = pages.next().await {
                match page {
                    Ok(page) => parts.extend(
                        page.parts()
                            .iter()
                            .filter_map(|part| part.part_number().zip(part.e_tag().map(str::to_owned))),
                    ),
                    Err(error) if matches!(status_of(&error), Some(403..=405 | 501)) => return Ok(None),
                    Err(error) => return Err(self.error(&error, object)),
                }
            }
            Ok(Some(parts))
        };
        let Some(parts) = self.passing(list).await? else { return Ok(None) };
        tracing::info!(%object, parts = parts.len(), "going on with an upload that was interrupted");
        Ok(Some(Multipart { id, parts }))
    }

    async fn begin(&self, object: &ObjectRef, sha256: &str) -> Result<Multipart, FetchError> {
        let create = || async {
            let request = self.client.create_multipart_upload().bucket(&object.bucket).key(&object.key);
            let request = request.metadata(DIGEST_METADATA, sha256);
            request.send().await.map_err(|error| self.error(&error, object))
        };
        let created = self.passing(create).await?;
        let id = created.upload_id().unwrap_or_default().to_owned();
        Ok(Multipart { id, parts: BTreeMap::new() })
    }

    /// The part's ETag; `None` where the upload is gone.
    async fn send_part(
        &self,
        object: &ObjectRef,
        id: &str,
        number: i32,
        content: Bytes,
    ) -> Result<Option<String>, FetchError> {
        let send = || async {
            let request = self.client.upload_part().bucket(&object.bucket).key(&object.key);
            let request = request.upload_id(id).part_number(number);
            match request.body(ByteStream::from(content.clone())).send().await {
                Ok(sent) => Ok(Some(sent.e_tag().unwrap_or_default().to_owned())),
                Err(error) if is_gone(&error) => Ok(None),
                Err(error) => Err(self.error(&error, object)),
            }
        };
        self.passing(send).await
    }

    async fn complete(
        &self,
        object: &ObjectRef,
        id: &str,
        parts: Vec<CompletedPart>,
    ) -> Result<Sent, UploadError> {
        let complete = || async {
            let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.clone())).build();
            let request = self.client.complete_multipart_upload().bucket(&object.bucket).key(&object.key);
            match request.upload_id(id).multipart_upload(parts).send().await {
                Ok(_) => Ok(Sent::Whole),
                // Also where an earlier try succeeded and its answer was lost.
                Err(error) if is_gone(&error) => Ok(Sent::Gone),
                Err(error) => Err(self.error(&error, object)),
            }
        };
        Ok(self.passing(complete).await?)
    }

    async fn abandon(&self, object: &ObjectRef, id: &str) {
        let request = self.client.abort_multipart_upload().bucket(&object.bucket).key(&object.key);
        if let Err(error) = request.upload_id(id).send().await {
            let error = self.error(&error, object);
            tracing::warn!(%error, "the parts of an upload that was given up may still be there");
        }
    }

    async fn passing<T, F: Future<Output = Result<T, FetchError>>>(
        &self,
        operation: impl FnMut() -> F,
    ) -> Result<T, FetchError> {
        retry(&self.retry, operation, FetchError::passing).await.map_err(|gave_up| gave_up.error)
    }

    fn error<E: ServiceFault>(&self, error: &Sdk<E>, object: &ObjectRef) -> FetchError {
        FetchError::from_sdk(error, self.fetcher.server(), &object.to_string())
    }
}

fn attempt_timeout(settings: &S3Settings) -> Duration {
    Duration::from_millis(settings.attempt_timeout_ms)
}

fn status_of<E: ServiceFault>(error: &Sdk<E>) -> Option<u16> {
    match error {
        SdkError::ServiceError(fault) => Some(fault.raw().status().as_u16()),
        _ => None,
    }
}

/// Whether the error says that there is no such upload in parts (any more).
fn is_gone<E: ServiceFault>(error: &Sdk<E>) -> bool {
    let code = match error {
        SdkError::ServiceError(fault) => fault.err().code(),
        _ => None,
    };
    code == Some("NoSuchUpload")
}

/// Whether a part with this ETag holds these bytes.
fn is_md5_of(tag: &str, content: &[u8]) -> bool {
    unquoted(tag) == hexadecimal(&<Md5 as md5::Digest>::digest(content))
}

/// Two lower-case digits a byte.
/// The size of every part but the last: so many that there are not too many, in whole mebibytes.
fn part_bytes(file_bytes: u64) -> u64 {
    file_bytes.div_ceil(MOST_PARTS).next_multiple_of(1 << 20).max(PART_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_neither_too_many_nor_too_small(bytes in 1_u64..(5 << 40)) {
            let part = part_bytes(bytes);
            prop_assert!(bytes.div_ceil(part) <= MOST_PARTS);
            prop_assert!((PART_BYTES..=(5 << 30)).contains(&part));
            prop_assert!(part == PART_BYTES || (part - (1 << 20)) * MOST_PARTS < bytes);
        }
    }
}
