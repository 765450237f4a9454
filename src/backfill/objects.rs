//! What is to be scored, in an order that a run can go on in.

use super::BackfillError;
use crate::fault::Disposition;
use crate::fetch::{FetchError, Fetcher};
use crate::object::ObjectRef;
use crate::record::WireRecord;
use crate::retry::{Backoff, RetrySettings, retry};
use crate::store::{Cursor, Store, StoreError};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Map, Value};

/// Keys of one look into Postgres.
const PAGE: u32 = 1_000;

/// Which objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Those of a bucket whose key begins with a prefix.
    Prefix { bucket: String, prefix: String },
    /// Those in Postgres without a row of this model version.
    Stored { not_version: String },
}

impl Selection {
    /// Reads `s3://bucket/prefix`; `None` if it is none.
    pub fn of_address(address: &str) -> Option<Self> {
        let path = address.strip_prefix("s3://")?;
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        (!bucket.is_empty()).then(|| Self::Prefix { bucket: bucket.into(), prefix: prefix.into() })
    }

    /// What the row in `backfills` is called.
    pub fn name(&self) -> String {
        match self {
            Self::Prefix { bucket, prefix } => format!("s3://{bucket}/{prefix}"),
            Self::Stored { not_version } => format!("stored without {not_version}"),
        }
    }
}

/// A selection, and where it is looked up. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    pub selection: Selection,
    pub fetcher: Option<Fetcher>,
    pub store: Store,
    pub retry: RetrySettings,
}

impl Objects {
    /// The objects behind `after`, in order. Passing faults are waited out.
    pub fn after(&self, after: Option<Cursor>) -> BoxStream<'static, Result<ObjectRef, BackfillError>> {
        match (&self.selection, &self.fetcher) {
            (Selection::Prefix { bucket, prefix }, Some(fetcher)) => {
                let after = after.map(|cursor| cursor.key);
                listed(fetcher.clone(), self.retry.clone(), bucket.clone(), prefix.clone(), after)
            }
            (Selection::Stored { not_version }, _) => {
                stored(self.store.clone(), self.retry.clone(), not_version.clone(), after)
            }
            // Only a prefix needs a fetcher, and whoever selects one brings it.
            (Selection::Prefix { .. }, None) => stream::empty().boxed(),
        }
    }

    /// How many there are behind `after`.
    pub async fn count(&self, after: Option<Cursor>) -> Result<u64, BackfillError> {
        self.after(after).try_fold(0, async |count, _| Ok(count + 1)).await
    }
}

struct Listing {
    fetcher: Fetcher,
    bucket: String,
    prefix: String,
    /// The last key that came.
    last: Option<String>,
    objects: BoxStream<'static, Result<ObjectRef, FetchError>>,
    backoff: Backoff,
}

impl Listing {
    async fn next(&mut self) -> Result<Option<ObjectRef>, BackfillError> {
        loop {
            match self.objects.next().await {
                None => return Ok(None),
                Some(Ok(object)) => {
                    self.backoff.reset();
                    if let Some(before) = self.last.replace(object.key.clone())
                        && before >= object.key
                    {
                        let (bucket, key) = (self.bucket.clone(), object.key);
                        return Err(BackfillError::Unordered { bucket, before, key });
                    }
                    return Ok(Some(object));
                }
                Some(Err(error)) => {
                    let delay =
                        self.backoff.next_delay().filter(|_| error.disposition() == Disposition::Retry);
                    let Some(delay) = delay else { return Err(error.into()) };
                    tracing::warn!(%error, retry_in = ?delay, "listing failed; going on behind the last key");
                    tokio::time::sleep(delay).await;
                    let list = self.fetcher.list_after(&self.bucket, &self.prefix, self.last.as_deref());
                    self.objects = list.boxed();
                }
            }
        }
    }
}

fn listed(
    fetcher: Fetcher,
    settings: RetrySettings,
    bucket: String,
    prefix: String,
    last: Option<String>,
) -> BoxStream<'static, Result<ObjectRef, BackfillError>> {
    let objects = fetcher.list_after(&bucket, &prefix, last.as_deref()).boxed();
    let listing = Listing { fetcher, bucket, prefix, last, objects, backoff: settings.backoff() };
    stream::try_unfold(listing, async |mut listing| Ok(listing.next().await?.map(|object| (object, listing))))
        .boxed()
}

fn stored(
    store: Store,
    settings: RetrySettings,
    not_version: String,
    after: Option<Cursor>,
) -> BoxStream<'static, Result<ObjectRef, BackfillError>> {
    stream::try_unfold(after, move |after| {
        let (store, settings, not_version) = (store.clone(), settings.clone(), not_version.clone());
        async move {
            let look = || store.stored_objects(Some(&not_version), after.as_ref(), PAGE);
            let page = retry(&settings, look, passing).await.map_err(|gave_up| gave_up.error)?;
            let objects = stream::iter(page.objects.into_iter().map(Ok::<_, BackfillError>));
            Ok::<_, BackfillError>(page.last.map(|last| (objects, Some(last))))
        }
    })
    .try_flatten()
    .boxed()
}

/// Deadlocks and timeouts are waited out; a Postgres that is away ends the command.
pub(super) fn passing(error: &StoreError) -> Disposition {
    match error.disposition() {
        Disposition::Hold => Disposition::Stop,
        other => other,
    }
}

/// A plain input record of an object; its key is the object's, so that it has a partition of its own
/// choice.
pub fn record_of(object: &ObjectRef) -> WireRecord {
    let mut value = Map::new();
    value.insert("bucket".into(), object.bucket.clone().into());
    value.insert("key".into(), object.key.clone().into());
    let optional = [("version_id", &object.version_id), ("etag", &object.etag)];
    for (name, text) in optional {
        if let Some(text) = text {
            value.insert(name.into(), text.clone().into());
        }
    }
    if let Some(size) = object.size {
        value.insert("size".into(), size.into());
    }
    WireRecord {
        key: Some(object.to_string().into_bytes()),
        payload: Some(Value::Object(value).to_string().into_bytes()),
        headers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::input::{Item, parse};
    use proptest::prelude::*;

    #[test]
    fn an_address_is_a_bucket_and_a_raw_prefix() {
        let prefix = |bucket: &str, prefix: &str| {
            Some(Selection::Prefix { bucket: bucket.into(), prefix: prefix.into() })
        };
        assert_eq!(Selection::of_address("s3://b"), prefix("b", ""));
        assert_eq!(Selection::of_address("s3://b/a//c+d%2F"), prefix("b", "a//c+d%2F"));
        for text in ["b/a", "s3://", "s3:///a", "http://b/a"] {
            assert_eq!(Selection::of_address(text), None, "{text}");
        }
        assert_eq!(Selection::of_address("s3://b/a").unwrap().name(), "s3://b/a");
    }

    proptest! {
        #[test]
        fn a_worker_reads_the_very_object(
            key in "[^\\x00]{1,40}",
            etag in proptest::option::of("[0-9a-f]{1,32}"),
            version_id in proptest::option::of("[0-9A-Za-z]{5,32}"),
            size in proptest::option::of(0_u64..1 << 40),
        ) {
            let object = ObjectRef { etag, version_id, size, ..ObjectRef::new("photos", key) };
            let record = record_of(&object);
            let parsed = parse(record.payload.as_deref(), &record.headers, &[]);
            prop_assert_eq!(&parsed.items[0].outcome, &Ok(Item::Score(object)));
        }
    }
}
