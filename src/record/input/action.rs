//! What is to be done with an object, once it is named as the rest of the worker names it.

use super::fields::malformed;
use super::{BadItem, Item};
use crate::fault::{ErrorCode, ItemError, Stage};
use crate::object::{NULL_VERSION, ObjectRef};

/// S3 allows keys of at most this many bytes, and so do version ids here.
const KEY_LIMIT: usize = 1024;
const BUCKET_LIMIT: usize = 255;

#[derive(Clone, Copy)]
pub(super) enum Action {
    Score,
    /// Of the version that the event names, or of the key where it names none.
    ///
    /// In a bucket that has versions, what was there before them is the version `null`: its removal is not that
    /// of the key.
    Delete,
    /// Whatever version the event names: a delete marker has a version id of its own, which is none of
    /// the object's.
    DeleteKey,
}

impl Action {
    /// Normalises the object and says what to do with it.
    pub(super) fn on(self, mut object: ObjectRef) -> Result<Item, BadItem> {
        object.version_id = object.version_id.filter(|version| !version.is_empty());
        let null_version = object.version_id.take_if(|version| version.as_str() == NULL_VERSION);
        object.etag =
            object.etag.map(|etag| etag.trim_matches('"').to_owned()).filter(|etag| !etag.is_empty());
        object.sequencer = object.sequencer.filter(|sequencer| !sequencer.is_empty());
        check_storable(&object)?;
        Ok(match self {
            Self::Score => Item::Score(object),
            Self::Delete => {
                object.version_id = object.version_id.or(null_version);
                Item::Delete(object)
            }
            Self::DeleteKey => Item::Delete(ObjectRef { version_id: None, ..object }),
        })
    }
}

/// What Postgres can't hold, and what S3 could not have sent.
fn check_storable(object: &ObjectRef) -> Result<(), BadItem> {
    if object.bucket.is_empty() || object.key.is_empty() {
        let which = if object.bucket.is_empty() { "bucket" } else { "key" };
        return Err(malformed(format!("the {which} is empty; name both bucket and key")));
    }
    if object.key.contains('\0') {
        let message =
            format!("key {:?} holds a NUL, which Postgres can't store; rename the object", object.key);
        return Err(BadItem {
            error: ItemError::new(ErrorCode::KeyNotStorable, Stage::Parse, message),
            object: None,
        });
    }
    if object.key.len() > KEY_LIMIT {
        let message = format!(
            "the key has {} bytes, more than S3's limit of {KEY_LIMIT}; rename the object",
            object.key.len()
        );
        return Err(BadItem {
            error: ItemError::new(ErrorCode::KeyNotStorable, Stage::Parse, message),
            object: None,
        });
    }
    let others = [
        ("bucket", Some(&object.bucket), BUCKET_LIMIT),
        ("version id", object.version_id.as_ref(), KEY_LIMIT),
        ("etag", object.etag.as_ref(), KEY_LIMIT),
        ("sequencer", object.sequencer.as_ref(), KEY_LIMIT),
    ];
    for (name, value, limit) in others {
        if value.is_some_and(|value| value.len() > limit || value.contains('\0')) {
            return Err(malformed(format!("the {name} is longer than {limit} bytes or holds a NUL")));
        }
    }
    if !object.etag_can_be_sent() {
        return Err(malformed(
            "the etag holds what no HTTP header can carry; send it as S3 stated it".to_owned(),
        ));
    }
    Ok(())
}
