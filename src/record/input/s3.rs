//! S3 event notifications, as AWS and MinIO send them.

use super::action::Action;
use super::fields::{field, kind_of, malformed, optional_size, optional_text, required_text};
use super::{BadItem, Item, ParsedItem, ParsedRecord, SkipReason};
use crate::object::ObjectRef;
use serde_json::{Map, Value};

/// `Records`, message structure 2.x.
pub(super) fn parse(records: &Value) -> ParsedRecord {
    let Value::Array(records) = records else {
        return ParsedRecord::single(Err(malformed(format!(
            "expected Records to be an array, found {}",
            kind_of(records)
        ))));
    };
    if records.is_empty() {
        return ParsedRecord::skip(SkipReason::Empty);
    }
    let items = (0_u32..)
        .zip(records)
        .map(|(index, record)| ParsedItem { index, outcome: parse_s3_record(record) })
        .collect();
    ParsedRecord { items }
}

fn parse_s3_record(record: &Value) -> Result<Item, BadItem> {
    let within = "an element of Records";
    let record = record.as_object().ok_or_else(|| malformed(format!("expected an object as {within}")))?;
    let event = required_text(record, "eventName", within)?;
    let Some(action) = action_of(event) else {
        return Ok(Item::Skip(SkipReason::OtherEvent));
    };
    let s3 = field(record, "s3", within)?;
    let bucket = field(s3, "bucket", "s3")?;
    let object = field(s3, "object", "s3")?;
    let encoded = required_text(object, "key", "s3.object")?;
    let found = ObjectRef {
        bucket: required_text(bucket, "name", "s3.bucket")?.to_owned(),
        key: form_decode(encoded)?,
        version_id: optional_text(object, "versionId")?.map(str::to_owned),
        etag: optional_text(object, "eTag")?.map(str::to_owned),
        size: optional_size(object)?,
        sequencer: optional_text(object, "sequencer")?.map(str::to_owned),
    };
    action.on(found)
}

/// MinIO's top level alone: `Key` is `bucket/key`, already decoded.
pub(super) fn parse_summary(envelope: &Map<String, Value>) -> Result<Item, BadItem> {
    let within = "a MinIO event";
    let event = required_text(envelope, "EventName", within)?;
    let Some(action) = action_of(event) else {
        return Ok(Item::Skip(SkipReason::OtherEvent));
    };
    let path = required_text(envelope, "Key", within)?;
    let (bucket, key) =
        path.split_once('/').ok_or_else(|| malformed("expected Key to be bucket/key, found no slash"))?;
    action.on(ObjectRef::new(bucket, key))
}

/// What an event asks for, if it is about an object that comes or goes; MinIO puts `s3:` in front.
fn action_of(event: &str) -> Option<Action> {
    let event = event.strip_prefix("s3:").unwrap_or(event);
    if event.starts_with("ObjectCreated:") {
        return Some(Action::Score);
    }
    // What lifecycle rules remove is gone as well.
    let removal =
        event.strip_prefix("ObjectRemoved:").or_else(|| event.strip_prefix("LifecycleExpiration:"))?;
    match removal {
        // The second one is MinIO's, when lifecycle rules remove an object with all its versions.
        "DeleteMarkerCreated" | "DeleteAllVersions" => Some(Action::DeleteKey),
        _ => Some(Action::Delete),
    }
}

/// `application/x-www-form-urlencoded`: `+` is a space, `%XX` a byte. A stray `%` stands for itself.
fn form_decode(encoded: &str) -> Result<String, BadItem> {
    let spaced = encoded.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8()
        .map(|decoded| decoded.into_owned())
        .map_err(|_| malformed(format!("key {encoded:?} does not decode to UTF-8")))
}
