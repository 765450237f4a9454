//! Reading objects from S3: the very version that an event named, whole, and within limits. Large
//! objects are read in pieces ([`Fetcher::fetch_range`]) and written in parts ([`Uploader`]).

mod body;
mod client;
mod error;
mod hedge;
mod limiter;
mod local_file;
mod range;
mod upload;

pub use error::FetchError;
pub use limiter::Slot;
pub use local_file::LocalFile;
pub use range::ObjectHead;
pub use upload::{UploadError, Uploader};

use crate::fault::Disposition;
use crate::fetch::limiter::{Limiter, Load};
use crate::object::ObjectRef;
use crate::retry::{GaveUp, RetrySettings, retry};
use crate::secret::{Secret, address_without_credentials};
use aws_sdk_s3::Client;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Configuration section `s3`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Settings {
    /// Of a server other than AWS, such as `http://minio:9000`.
    #[serde(deserialize_with = "address_without_credentials")]
    pub endpoint: Option<String>,
    /// Left out, it is what the environment or the profile says.
    pub region: Option<String>,
    /// The buckets that records may name.
    pub buckets: Vec<String>,
    /// Bucket in the path rather than in the host name. Left out: with `endpoint` only.
    pub path_style: Option<bool>,
    /// Left out, credentials come from the standard chain: environment, profile, web identity
    /// (IRSA), container, instance.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Secret>,
    /// A PEM file of certificate authorities to trust instead of the system's, for a server of one's
    /// own; the credential chain's requests keep to the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// For a TCP connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// From the request to the response's headers, in milliseconds.
    pub attempt_timeout_ms: u64,
    /// A body is broken once it brings fewer than `stall_bytes_per_s` for this long, in
    /// milliseconds.
    pub stall_timeout_ms: u64,
    pub stall_bytes_per_s: u64,
    /// Requests for one object, resumed bodies included, before the fetch counts as failed.
    pub attempts: u32,
    /// Objects fetched at once at most; fewer while the server asks to slow down.
    pub parallelism: usize,
    /// If an object has not come after this long, in milliseconds, a second request for it is sent
    /// and the faster one wins. 0 never sends one.
    pub hedge_after_ms: u64,
    /// Second requests at most, in percent of the first ones.
    pub hedge_percent: u32,
    /// For how long a missing object may still appear, in milliseconds.
    pub missing_grace_ms: u64,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            buckets: Vec::new(),
            path_style: None,
            access_key_id: None,
            secret_access_key: None,
            tls_ca_file: None,
            connect_timeout_ms: 3_000,
            attempt_timeout_ms: 10_000,
            stall_timeout_ms: 5_000,
            stall_bytes_per_s: 1_024,
            attempts: 5,
            parallelism: 64,
            hedge_after_ms: 2_000,
            hedge_percent: 5,
            missing_grace_ms: 60_000,
        }
    }
}

/// An object's bytes, complete, and what pins them.
#[derive(Clone, Debug)]
pub struct FetchedImage {
    pub bytes: Bytes,
    /// Without quotes.
    pub etag: Option<String>,
    /// Length of `bytes`.
    pub size: u64,
    /// `None` for an unversioned object.
    pub version_id: Option<String>,
}

/// Fetches objects over one client, whose connections are reused. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client,
    settings: Arc<S3Settings>,
    /// For messages: the endpoint, or AWS's in the region.
    server: Arc<str>,
    limiter: Arc<Limiter>,
    hedges: Arc<Hedges>,
}

#[derive(Debug)]
struct Hedges {
    budget: Mutex<hedge::Budget>,
    sent: AtomicU64,
}

impl Fetcher {
    /// Sets the client up; nothing is sent yet, see [`Self::probe`]. A failed request is final
    /// for the SDK: retries are ours, since some of them must outlast a breaker or a restart.
    pub async fn connect(settings: &S3Settings) -> Result<Self, FetchError> {
        let (client, server) = client::connect(settings).await?;
        Ok(Self {
            client,
            limiter: Limiter::new(settings.parallelism),
            hedges: Arc::new(Hedges {
                budget: Mutex::new(hedge::Budget::new(settings.hedge_percent)),
                sent: AtomicU64::new(0),
            }),
            settings: Arc::new(settings.clone()),
            server: server.into(),
        })
    }

    /// The endpoint, for messages.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Fetches `object` as it was when the event was sent: by version id, else under the
    /// condition that the ETag is still the event's, else whatever is there now.
    ///
    /// An object of more than `max_bytes` is refused as soon as that is known: from the event, the
    /// response's headers, or what has been read. A body that breaks is resumed where it broke, as
    /// often as `attempts` allows; what comes out is complete.
    pub async fn fetch(&self, object: &ObjectRef, max_bytes: u64) -> Result<FetchedImage, FetchError> {
        self.fetch_in(self.slot().await, object, max_bytes, || Some(())).await
    }

    /// Waits for a place among the objects that are fetched at once.
    pub async fn slot(&self) -> Slot {
        self.limiter.slot().await
    }

    /// [`Self::fetch`] in a place taken before. `room` is asked for leave to hold a second copy of the
    /// object, which is kept until there is only one again; without it no second request is sent.
    pub async fn fetch_in<R>(
        &self,
        slot: Slot,
        object: &ObjectRef,
        max_bytes: u64,
        room: impl FnOnce() -> Option<R>,
    ) -> Result<FetchedImage, FetchError> {
        if let Some(size) = object.size
            && size > max_bytes
        {
            return Err(FetchError::TooLarge { object: object.to_string(), size, limit: max_bytes });
        }
        // A request is 10 KB of state, which an item is not to carry before and after it.
        let download = || Box::pin(body::Download::new(self, object, max_bytes).run());
        // Both copies are there until the race is over.
        let mut second_copy = None;
        let result = match self.settings.hedge_after_ms {
            0 => download().await,
            after_ms => {
                self.budget().requested();
                let second = || {
                    // Only a place and room that nobody waits for: an object's first request comes first.
                    let leave = (self.limiter.spare_slot()?, room()?);
                    self.budget().spend().then(|| {
                        self.hedges.sent.fetch_add(1, Ordering::Relaxed);
                        second_copy = Some(leave);
                        download()
                    })
                };
                hedge::race(download(), Duration::from_millis(after_ms), second).await
            }
        };
        drop(second_copy);
        slot.end(match &result {
            Ok(_) => Load::Fine,
            Err(FetchError::Unavailable { status, code, .. })
                if matches!(status, 429 | 503) || code == "SlowDown" =>
            {
                Load::TooMuch
            }
            Err(_) => Load::Unknown,
        });
        result
    }

    /// Objects fetched at once at most, just now.
    pub fn concurrency_limit(&self) -> usize {
        self.limiter.current()
    }

    /// Second requests sent so far.
    pub fn hedged(&self) -> u64 {
        self.hedges.sent.load(Ordering::Relaxed)
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, hedge::Budget> {
        self.hedges.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Self::fetch`], repeated while it fails for passing or environmental reasons and `retry`
    /// allows. A missing object gets `missing_grace_ms` to appear.
    pub async fn fetch_with_retries(
        &self,
        object: &ObjectRef,
        max_bytes: u64,
        settings: &RetrySettings,
    ) -> Result<FetchedImage, GaveUp<FetchError>> {
        let started = Instant::now();
        let classify = |error: &FetchError| self.next_step(error, started.elapsed());
        retry(settings, || self.fetch(object, max_bytes), classify).await
    }

    /// What to do about `error`, `elapsed` after the first attempt: a missing object gets
    /// `missing_grace_ms` to appear, since an event may overtake the object that it announces.
    pub fn next_step(&self, error: &FetchError, elapsed: Duration) -> Disposition {
        let grace = Duration::from_millis(self.settings.missing_grace_ms);
        match error {
            FetchError::Missing { .. } if elapsed < grace => Disposition::Retry,
            other => other.disposition(),
        }
    }

    /// The objects of `bucket` whose key begins with `prefix`, in key order, with ETag and size.
    /// Folder markers (empty objects whose key ends with `/`) are left out.
    pub fn list(
        &self,
        bucket: &str,
        prefix: &str,
    ) -> impl Stream<Item = Result<ObjectRef, FetchError>> + Send + use<> {
        self.list_after(bucket, prefix, None)
    }

    /// As [`Self::list`], but only the keys that sort behind `after`.
    pub fn list_after(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
    ) -> impl Stream<Item = Result<ObjectRef, FetchError>> + Send + use<> {
        let request = self.client.list_objects_v2().bucket(bucket).prefix(prefix);
        let pages = request.set_start_after(after.map(str::to_owned)).into_paginator().send();
        let state = (pages, self.clone(), bucket.to_owned());
        stream::unfold(state, |(mut pages, fetcher, bucket)| async move {
            let objects: Vec<Result<ObjectRef, FetchError>> = match pages.next().await? {
                Ok(page) => page.contents().iter().map(|listed| Ok(listed_object(&bucket, listed))).collect(),
                Err(error) => vec![Err(FetchError::from_sdk(&error, &fetcher.server, &bucket))],
            };
            Some((stream::iter(objects), (pages, fetcher, bucket)))
        })
        .flatten()
        .filter(|object| {
            let marker = matches!(object, Ok(object) if object.key.ends_with('/') && object.size == Some(0));
            std::future::ready(!marker)
        })
    }

    /// Whether the server answers for every configured bucket (for the account, if none is), within
    /// `connect_timeout_ms` plus `attempt_timeout_ms` each. A refusal to list is no failure: the
    /// right to read objects is all that a worker needs.
    pub async fn probe(&self) -> Result<(), FetchError> {
        if self.settings.buckets.is_empty() {
            let request = self.client.list_buckets().max_buckets(1).send();
            return self.probe_result("(any bucket)", request).await;
        }
        for bucket in &self.settings.buckets {
            let request = self.client.list_objects_v2().bucket(bucket).max_keys(1).send();
            self.probe_result(bucket, request).await?;
        }
        Ok(())
    }

    async fn probe_result<T, E>(
        &self,
        bucket: &str,
        request: impl Future<Output = Result<T, error::Sdk<E>>>,
    ) -> Result<(), FetchError>
    where
        E: error::ServiceFault,
    {
        let settings = &self.settings;
        let deadline = Duration::from_millis(settings.connect_timeout_ms + settings.attempt_timeout_ms);
        match timeout(deadline, request).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if error::is_missing_permission(&error) => Ok(()),
            Ok(Err(error)) => Err(FetchError::from_sdk(&error, &self.server, bucket)),
            Err(_) => Err(FetchError::TimedOut {
                target: format!("{} at {}", bucket, self.server),
                reason: format!("no answer within {} ms", deadline.as_millis()),
            }),
        }
    }
}

fn listed_object(bucket: &str, listed: &aws_sdk_s3::types::Object) -> ObjectRef {
    ObjectRef {
        etag: listed.e_tag().map(unquoted),
        size: listed.size().and_then(|size| u64::try_from(size).ok()),
        ..ObjectRef::new(bucket, listed.key().unwrap_or_default())
    }
}

/// ETags are compared without quotes, and whether they are weak does not matter here.
fn unquoted(etag: &str) -> String {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_owned()
}
