//! The object a record names, and the identifier its score is stored under.

use crate::score::ModelVersion;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, sync::Arc};
use uuid::Uuid;

/// S3's name for the version of an object that was written while its bucket had no versions.
pub const NULL_VERSION: &str = "null";

/// One S3 object, as exactly as the event named it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    pub bucket: String,
    /// The raw key: form-decoding has been done where the envelope asks for it.
    pub key: String,
    /// `None` for an unversioned object (`null`, `""` and `"null"` on the wire). Only what is to be removed may
    /// be [`NULL_VERSION`], which is all unversioned ones, whereas `None` is every version.
    pub version_id: Option<String>,
    /// Without quotes.
    pub etag: Option<String>,
    /// Bytes, as the event states them.
    pub size: Option<u64>,
    /// S3's per-key order of events, as received.
    pub sequencer: Option<String>,
}

impl ObjectRef {
    /// An object of which only bucket and key are known.
    pub fn new(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            key: key.into(),
            version_id: None,
            etag: None,
            size: None,
            sequencer: None,
        }
    }

    /// Whether a header can carry the etag (RFC 9110, 5.5). One that none can is no server's, and matches nothing.
    pub fn etag_can_be_sent(&self) -> bool {
        self.etag.as_ref().is_none_or(|etag| etag.bytes().all(|byte| matches!(byte, b' '..=b'~')))
    }

    /// Whether [`ScoreId::derive`] has what it needs: a version id, or etag and size.
    pub fn is_pinned(&self) -> bool {
        self.version_id.is_some() || (self.etag.is_some() && self.size.is_some())
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.bucket, self.key)
    }
}

/// The SHA-256 of a file's bytes: equal for objects of equal content, whatever they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentDigest(pub [u8; 32]);

impl ContentDigest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// What one score of one content depends on: it is the same for every object that shares both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContentKey {
    pub content: ContentDigest,
    /// The model, and the way in which it is shown images.
    pub version: Arc<ModelVersion>,
}

/// The idempotency key of one score: equal inputs under one model version give one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScoreId(pub Uuid);

impl fmt::Display for ScoreId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl ScoreId {
    /// Hash of bucket, key, version id (or etag and size), model, model version and
    /// preprocessing revision, each length-prefixed so that no two tuples collide by shifting
    /// characters across a boundary. A version 8 UUID (RFC 9562) of the SHA-256.
    pub fn derive(object: &ObjectRef, model: &ModelVersion) -> Self {
        let content = match (&object.version_id, &object.etag, object.size) {
            (Some(version), _, _) => format!("version:{version}"),
            (None, etag, size) => format!(
                "etag:{}:{}",
                etag.as_deref().unwrap_or_default(),
                size.map(|bytes| bytes.to_string()).unwrap_or_default()
            ),
        };
        Self::from_parts(&[
            "object",
            &object.bucket,
            &object.key,
            &content,
            &model.model,
            &model.version,
            &model.preprocess_revision.to_string(),
        ])
    }

    /// The id of a removal: of one version if `object` names one, else of the key. It is never that of
    /// a score, so that a score and the removal of what was scored have a row each.
    pub fn of_removal(object: &ObjectRef, model: &ModelVersion) -> Self {
        Self::from_parts(&[
            "removal",
            &object.bucket,
            &object.key,
            object.version_id.as_deref().unwrap_or_default(),
            &model.model,
            &model.version,
            &model.preprocess_revision.to_string(),
        ])
    }

    /// The id of an item too malformed to name an object: the place it was read from.
    pub fn of_position(topic: &str, partition: i32, offset: i64, item: u32) -> Self {
        Self::from_parts(&["position", topic, &partition.to_string(), &offset.to_string(), &item.to_string()])
    }

    /// The id of an image that was sent rather than named: of its bytes.
    pub fn of_content(content: &[u8], model: &ModelVersion) -> Self {
        let digest: [u8; 32] = Sha256::digest(content).into();
        let hexadecimal: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self::from_parts(&[
            "content",
            &hexadecimal,
            &model.model,
            &model.version,
            &model.preprocess_revision.to_string(),
        ])
    }

    fn from_parts(parts: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        let digest = hasher.finalize();
        let mut bytes = [0_u8; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelVersion {
        ModelVersion { model: "m".into(), version: "v".into(), preprocess_revision: 1 }
    }

    #[test]
    fn characters_cannot_move_between_bucket_and_key() {
        assert_ne!(
            ScoreId::derive(&ObjectRef::new("ab", "c"), &model()),
            ScoreId::derive(&ObjectRef::new("a", "bc"), &model())
        );
    }

    #[test]
    fn a_version_id_outranks_etag_and_size() {
        let mut one = ObjectRef::new("b", "k");
        one.version_id = Some("1".into());
        let mut other = one.clone();
        other.etag = Some("e".into());
        other.size = Some(3);
        assert_eq!(ScoreId::derive(&one, &model()), ScoreId::derive(&other, &model()));
    }

    #[test]
    fn a_removal_never_has_the_id_of_a_score() {
        let bare = ObjectRef::new("b", "k");
        let etag = ObjectRef { etag: Some("e".into()), size: Some(1), ..bare.clone() };
        let version = ObjectRef { version_id: Some("1".into()), ..bare.clone() };
        for object in [&bare, &etag, &version] {
            assert_ne!(ScoreId::of_removal(object, &model()), ScoreId::derive(object, &model()));
        }
        // The event of a removal may or may not repeat what the object was.
        assert_eq!(ScoreId::of_removal(&bare, &model()), ScoreId::of_removal(&etag, &model()));
        assert_ne!(ScoreId::of_removal(&bare, &model()), ScoreId::of_removal(&version, &model()));
    }

    #[test]
    fn content_counts_whatever_it_is_called() {
        let id = ScoreId::of_content(b"jpeg", &model());
        assert_eq!(id, ScoreId::of_content(b"jpeg", &model()));
        assert_ne!(id, ScoreId::of_content(b"jpeg2", &model()));
        let newer = ModelVersion { version: "w".into(), ..model() };
        assert_ne!(id, ScoreId::of_content(b"jpeg", &newer));
    }

    #[test]
    fn every_part_counts() {
        let mut object = ObjectRef::new("b", "k");
        object.etag = Some("e".into());
        object.size = Some(1);
        let base = ScoreId::derive(&object, &model());
        let mut larger = object.clone();
        larger.size = Some(2);
        let newer = ModelVersion { version: "w".into(), ..model() };
        let revised = ModelVersion { preprocess_revision: 2, ..model() };
        assert_ne!(base, ScoreId::derive(&larger, &model()));
        assert_ne!(base, ScoreId::derive(&object, &newer));
        assert_ne!(base, ScoreId::derive(&object, &revised));
        assert_ne!(base, ScoreId::of_position("b", 0, 0, 0));
    }
}
