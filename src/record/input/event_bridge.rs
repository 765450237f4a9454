//! Amazon EventBridge's events of S3.

use super::action::Action;
use super::fields::{field, optional_size, optional_text, required_text};
use super::{BadItem, Item, SkipReason};
use crate::object::ObjectRef;
use serde_json::{Map, Value};

/// `Object Created` and `Object Deleted`; the key is raw.
pub(super) fn parse(envelope: &Map<String, Value>) -> Result<Item, BadItem> {
    let within = "an EventBridge event";
    let kind = required_text(envelope, "detail-type", within)?;
    if !matches!(kind, "Object Created" | "Object Deleted") {
        return Ok(Item::Skip(SkipReason::OtherEvent));
    }
    let detail = field(envelope, "detail", within)?;
    let action = match (kind, optional_text(detail, "deletion-type")?) {
        ("Object Created", _) => Action::Score,
        (_, Some("Delete Marker Created")) => Action::DeleteKey,
        _ => Action::Delete,
    };
    let bucket = field(detail, "bucket", "detail")?;
    let object = field(detail, "object", "detail")?;
    let found = ObjectRef {
        bucket: required_text(bucket, "name", "detail.bucket")?.to_owned(),
        key: required_text(object, "key", "detail.object")?.to_owned(),
        version_id: optional_text(object, "version-id")?.map(str::to_owned),
        etag: optional_text(object, "etag")?.map(str::to_owned),
        size: optional_size(object)?,
        sequencer: optional_text(object, "sequencer")?.map(str::to_owned),
    };
    action.on(found)
}
