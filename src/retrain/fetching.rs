//! Labelled photos from S3 into the cache.

use super::{cache::PhotoCache, error::RetrainError, lease::Watch};
use crate::{
    fetch::{FetchError, Fetcher},
    labels::LabelledObject,
    object::ObjectRef,
    retry::{RetrySettings, retry},
    split::ContentHash,
};
use futures_util::{StreamExt, TryStreamExt, stream};

/// What has become of a labelled object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Its photo is in the cache.
    Here(ContentHash),
    /// It is no longer in S3, or no longer what was labelled.
    Gone,
    /// It is larger than `image.max_bytes`.
    TooLarge,
    /// It is in no bucket that may be read.
    OtherBucket,
    /// S3 refuses it: what it says of a missing object to whoever may not list the bucket.
    Denied(String),
}

/// Where photos come from, and what bounds it.
#[derive(Clone)]
pub struct PhotoSource {
    pub fetcher: Fetcher,
    pub cache: PhotoCache,
    pub retry: RetrySettings,
    /// The buckets that labels may name.
    pub buckets: Vec<String>,
    /// Of one photo.
    pub max_bytes: u64,
    /// Objects fetched at once at most.
    pub parallelism: usize,
}

impl PhotoSource {
    /// Brings every object's photo into the cache; what became of each, in order.
    ///
    /// # Errors
    /// When S3 can't be reached or refuses, or the cache can't be written.
    pub async fn fetch_all(
        &self,
        objects: &[LabelledObject],
        watch: &Watch,
    ) -> Result<Vec<Fetched>, RetrainError> {
        let fetched: Vec<Fetched> = stream::iter(objects)
            .map(|object| async move {
                let fetched = self.fetch(object).await;
                watch.advance();
                fetched
            })
            .buffered(self.parallelism.max(1))
            .try_collect()
            .await?;
        let mut denied = fetched.iter().filter_map(|fetched| match fetched {
            Fetched::Denied(reason) => Some(reason),
            _ => None,
        });
        if let Some(reason) = denied.next() {
            let refused = 1 + denied.count();
            // One may be missing; most of them are no coincidence.
            if 2 * refused > fetched.len() {
                let of = fetched.len();
                return Err(RetrainError::Denied { refused, of, reason: reason.clone() });
            }
            tracing::warn!(refused, "photos that S3 refuses count as gone: {reason}");
        }
        Ok(fetched)
    }

    /// Brings one object's photo into the cache.
    ///
    /// # Errors
    /// As [`Self::fetch_all`].
    pub async fn fetch(&self, object: &LabelledObject) -> Result<Fetched, RetrainError> {
        if !self.buckets.contains(&object.bucket) {
            return Ok(Fetched::OtherBucket);
        }
        if let Some(content) = self.cache.content_of(object) {
            return Ok(Fetched::Here(content));
        }
        let etag = Some(object.etag.clone()).filter(|etag| !etag.is_empty());
        let pinned = ObjectRef { etag, ..ObjectRef::new(&object.bucket, &object.key) };
        let fetch = || self.fetcher.fetch(&pinned, self.max_bytes);
        let fetched = retry(&self.retry, fetch, FetchError::passing).await;
        match fetched.map_err(|gave_up| gave_up.error) {
            Ok(fetched) => {
                let (cache, object) = (self.cache.clone(), object.clone());
                let keep = move || cache.keep(Some(&object), &fetched.bytes);
                Ok(Fetched::Here(super::error::blocking(keep).await?))
            }
            Err(FetchError::Missing { .. } | FetchError::Superseded { .. }) => Ok(Fetched::Gone),
            Err(FetchError::TooLarge { .. }) => Ok(Fetched::TooLarge),
            Err(error @ FetchError::Denied { .. }) => Ok(Fetched::Denied(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }
}
