//! Parts of objects that are too large to be held whole.

use crate::fetch::body::{BodyEnd, read_body};
use crate::fetch::upload::DIGEST_METADATA;
use crate::fetch::{FetchError, Fetcher, unquoted};
use crate::object::{NULL_VERSION, ObjectRef};
use bytes::{Bytes, BytesMut};
use std::ops::Range;

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectHead {
    /// With the ETag, size and version id of what is there now, which pin further reads to it.
    pub object: ObjectRef,
    /// 64 digits, where whoever wrote the object said so.
    pub sha256: Option<String>,
}

impl Fetcher {
    /// Asks for an object's size and identity.
    ///
    /// # Errors
    /// [`FetchError::Missing`] where there is none, and those of the server.
    pub async fn head(&self, object: &ObjectRef) -> Result<ObjectHead, FetchError> {
        let request = self.client.head_object().bucket(&object.bucket).key(&object.key).send();
        let head = request.await.map_err(|error| FetchError::of_object(&error, &self.server, object))?;
        let size = head.content_length().and_then(|size| u64::try_from(size).ok());
        let sha256 = head.metadata().and_then(|metadata| metadata.get(DIGEST_METADATA)).cloned();
        let object = ObjectRef {
            etag: head.e_tag().map(unquoted),
            version_id: head.version_id().filter(|version| *version != NULL_VERSION).map(str::to_owned),
            size,
            ..ObjectRef::new(&object.bucket, &object.key)
        };
        Ok(ObjectHead { object, sha256 })
    }

    /// The bytes of `range`, all of them, of the very object that `object`'s version id or ETag pins.
    /// One request; whoever calls repeats it.
    ///
    /// # Errors
    /// [`FetchError::Superseded`] once another object is there; [`FetchError::Broken`] when fewer bytes
    /// came; and those of the server.
    pub async fn fetch_range(&self, object: &ObjectRef, range: Range<u64>) -> Result<Bytes, FetchError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let broken =
            |reason| FetchError::Broken { target: format!("s3://{object} at {}", self.server), reason };
        let request = self.client.get_object().bucket(&object.bucket).key(&object.key);
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        let request = match (&object.version_id, &object.etag) {
            (Some(version_id), _) => request.version_id(version_id),
            (None, Some(etag)) => request.if_match(format!("\"{etag}\"")),
            (None, None) => request,
        };
        let response =
            request.send().await.map_err(|error| FetchError::of_object(&error, &self.server, object))?;
        let sent = response.content_range().unwrap_or_default();
        let expected = format!("bytes {}-{}/", range.start, range.end - 1);
        if !sent.starts_with(&expected) {
            return Err(broken(format!("asked for {expected:?}, the server sent {sent:?}")));
        }
        let mut received = BytesMut::with_capacity(usize::try_from(wanted).unwrap_or_default());
        let end = read_body(&self.settings, response.body, |chunk| {
            if (received.len() + chunk.len()) as u64 > wanted {
                return Err(broken(format!("more than the {wanted} bytes asked for came")));
            }
            received.extend_from_slice(&chunk);
            Ok(())
        });
        match end.await? {
            BodyEnd::Finished if received.len() as u64 == wanted => Ok(received.freeze()),
            BodyEnd::Finished => Err(broken(format!("{} of {wanted} bytes came", received.len()))),
            BodyEnd::Stalled(reason) | BodyEnd::Broken(reason) => Err(broken(reason)),
        }
    }
}
