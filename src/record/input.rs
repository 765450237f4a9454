//! Reads input records: every envelope an object notification comes in.
//!
//! Kinds are tried in this order: null value (a tombstone), CloudEvents in binary mode (`ce_*`
//! headers), CloudEvents in structured mode, SNS, S3's test event, S3 notifications as AWS and MinIO
//! send them, EventBridge, and plain `{"bucket":..,"key":..}`. Anything else is malformed.

use super::{Header, header_text};
use crate::fault::{ErrorCode, ItemError, Stage};
use crate::object::ObjectRef;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

/// S3 allows keys of at most this many bytes, and so do version ids here.
const KEY_LIMIT: usize = 1024;
const BUCKET_LIMIT: usize = 255;
/// Envelopes wrap one another (SNS around S3, CloudEvents around SNS); deeper than this is no mistake.
const WRAPPING_LIMIT: u32 = 4;
/// The header of a dead letter that is put back: only the item it names is processed.
pub const ITEM_HEADER: &str = "dlq-item";

/// What one item asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The object was created: score it.
    Score(ObjectRef),
    /// The object was removed: mark its rows.
    Delete(ObjectRef),
    /// Nothing to do.
    Skip(SkipReason),
}

/// Why an item is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// A null value.
    Tombstone,
    /// `s3:TestEvent`, which S3 sends when notifications are set up.
    TestEvent,
    /// An event that neither creates nor removes an object.
    OtherEvent,
    /// A notification without records.
    Empty,
}

impl SkipReason {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::TestEvent => "test_event",
            Self::OtherEvent => "other_event",
            Self::Empty => "empty",
        }
    }
}

/// An item that can't be processed, ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct BadItem {
    pub error: ItemError,
    /// The object, where the item names one that can be stored.
    pub object: Option<ObjectRef>,
}

/// One item of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedItem {
    /// Its index within the record.
    pub index: u32,
    pub outcome: Result<Item, BadItem>,
}

/// Everything one input record asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedRecord {
    /// In record order. One bad item leaves its neighbours alone.
    pub items: Vec<ParsedItem>,
}

impl ParsedRecord {
    fn skip(reason: SkipReason) -> Self {
        Self::single(Ok(Item::Skip(reason)))
    }

    fn single(outcome: Result<Item, BadItem>) -> Self {
        Self { items: vec![ParsedItem { index: 0, outcome }] }
    }

    /// Items that end in an output: all but the skipped ones.
    pub fn to_process(&self) -> impl Iterator<Item = &ParsedItem> {
        self.items.iter().filter(|item| !matches!(item.outcome, Ok(Item::Skip(_))))
    }

    /// Items that are passed over, by reason.
    pub fn skipped(&self) -> impl Iterator<Item = SkipReason> {
        self.items.iter().filter_map(|item| match item.outcome {
            Ok(Item::Skip(reason)) => Some(reason),
            _ => None,
        })
    }
}

/// Reads a record's value and headers.
///
/// `allowed_buckets` is the allow-list; empty, it allows every bucket. A record that carries
/// [`ITEM_HEADER`] gives that item alone. Never fails as a whole: what can't be read is an item with
/// an error.
pub fn parse(payload: Option<&[u8]>, headers: &[Header], allowed_buckets: &[String]) -> ParsedRecord {
    let Some(payload) = payload else {
        return ParsedRecord::skip(SkipReason::Tombstone);
    };
    // In CloudEvents' binary mode the `ce_` headers hold the attributes and the value is the data
    // itself, so it is read like any other; in structured mode `specversion` is in the value.
    let mut record = match serde_json::from_slice::<Value>(payload) {
        Ok(value) => parse_value(&value, 0),
        Err(error) => ParsedRecord::single(Err(malformed(describe_unreadable(headers, &error)))),
    };
    for item in &mut record.items {
        item.outcome = admit(std::mem::replace(&mut item.outcome, Ok(Item::Skip(SkipReason::Empty))), allowed_buckets);
    }
    match header_text(headers, ITEM_HEADER) {
        Some(wanted) => only_item(record, wanted),
        None => record,
    }
}

fn describe_unreadable(headers: &[Header], error: &serde_json::Error) -> String {
    let content = match header_text(headers, "ce_specversion") {
        Some(_) => "the data of a CloudEvent in binary mode",
        None => "the value",
    };
    format!("{content} is no JSON ({error}); send one of the documented event envelopes")
}

fn only_item(mut record: ParsedRecord, wanted: &str) -> ParsedRecord {
    record.items.retain(|item| item.index.to_string() == wanted);
    if record.items.is_empty() {
        let message = format!("header {ITEM_HEADER} names item {wanted:?}, which the record does not hold; remove it");
        return ParsedRecord::single(Err(malformed(message)));
    }
    record
}

fn parse_value(value: &Value, depth: u32) -> ParsedRecord {
    let Value::Object(object) = value else {
        return ParsedRecord::single(Err(malformed(format!(
            "expected a JSON object, found {}",
            kind_of(value)
        ))));
    };
    if object.contains_key("specversion") {
        return parse_cloud_event(object, depth);
    }
    if text(object, "Type") == Some("Notification") && object.contains_key("Message") {
        return match text(object, "Message") {
            Some(message) => parse_wrapped(message.as_bytes(), "Message of an SNS notification", depth),
            None => ParsedRecord::single(Err(malformed("Message of an SNS notification is no string"))),
        };
    }
    if text(object, "Event") == Some("s3:TestEvent") {
        return ParsedRecord::skip(SkipReason::TestEvent);
    }
    if let Some(records) = object.get("Records") {
        return parse_records(records);
    }
    if object.contains_key("detail-type") && object.contains_key("detail") {
        return ParsedRecord::single(parse_event_bridge(object));
    }
    if object.contains_key("EventName") && object.contains_key("Key") {
        return ParsedRecord::single(parse_minio_summary(object));
    }
    if object.contains_key("bucket") && object.contains_key("key") {
        return ParsedRecord::single(parse_plain(object));
    }
    ParsedRecord::single(Err(malformed(
        "unknown envelope: expected Records, an SNS notification, an EventBridge event, a CloudEvent, \
         or bucket and key",
    )))
}

/// Parses bytes within an envelope, so long as the wrapping has not gone on for ever.
fn parse_wrapped(bytes: &[u8], what: &str, depth: u32) -> ParsedRecord {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => parse_inner(&value, depth),
        Err(error) => ParsedRecord::single(Err(malformed(format!("{what} is no JSON ({error})")))),
    }
}

fn parse_inner(value: &Value, depth: u32) -> ParsedRecord {
    if depth + 1 >= WRAPPING_LIMIT {
        let message = format!("envelopes are wrapped in one another more than {WRAPPING_LIMIT} deep");
        return ParsedRecord::single(Err(malformed(message)));
    }
    parse_value(value, depth + 1)
}

/// CloudEvents 1.0, structured mode: `data` holds JSON, or text that is JSON; `data_base64` bytes.
fn parse_cloud_event(object: &Map<String, Value>, depth: u32) -> ParsedRecord {
    if let Some(encoded) = object.get("data_base64") {
        return match encoded.as_str().and_then(|encoded| BASE64.decode(encoded).ok()) {
            Some(bytes) => parse_wrapped(&bytes, "data_base64 of a CloudEvent", depth),
            None => ParsedRecord::single(Err(malformed("data_base64 of a CloudEvent is no base64 text"))),
        };
    }
    match object.get("data") {
        Some(Value::String(data)) => parse_wrapped(data.as_bytes(), "data of a CloudEvent", depth),
        Some(data) => parse_inner(data, depth),
        None => ParsedRecord::single(Err(malformed("a CloudEvent without data names no object"))),
    }
}

/// S3 event notifications, message structure 2.x: as AWS and MinIO send them.
fn parse_records(records: &Value) -> ParsedRecord {
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
    let event = event.strip_prefix("s3:").unwrap_or(event);
    let Some(action) = Action::of_s3(event) else {
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

/// Amazon EventBridge's `Object Created` and `Object Deleted`; the key is raw.
fn parse_event_bridge(envelope: &Map<String, Value>) -> Result<Item, BadItem> {
    let within = "an EventBridge event";
    let kind = required_text(envelope, "detail-type", within)?;
    let action = match kind {
        "Object Created" => Action::Score,
        "Object Deleted" => Action::Delete,
        _ => return Ok(Item::Skip(SkipReason::OtherEvent)),
    };
    let detail = field(envelope, "detail", within)?;
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

/// MinIO's top level alone: `Key` is `bucket/key`, already decoded.
fn parse_minio_summary(envelope: &Map<String, Value>) -> Result<Item, BadItem> {
    let within = "a MinIO event";
    let event = required_text(envelope, "EventName", within)?;
    let Some(action) = Action::of_s3(event.strip_prefix("s3:").unwrap_or(event)) else {
        return Ok(Item::Skip(SkipReason::OtherEvent));
    };
    let path = required_text(envelope, "Key", within)?;
    let (bucket, key) =
        path.split_once('/').ok_or_else(|| malformed("expected Key to be bucket/key, found no slash"))?;
    action.on(ObjectRef::new(bucket, key))
}

/// `{"bucket","key","version_id"?,"etag"?,"size"?,"sequencer"?}`; the key is raw.
fn parse_plain(object: &Map<String, Value>) -> Result<Item, BadItem> {
    let within = "the value";
    let found = ObjectRef {
        bucket: required_text(object, "bucket", within)?.to_owned(),
        key: required_text(object, "key", within)?.to_owned(),
        version_id: optional_text(object, "version_id")?.map(str::to_owned),
        etag: optional_text(object, "etag")?.map(str::to_owned),
        size: optional_size(object)?,
        sequencer: optional_text(object, "sequencer")?.map(str::to_owned),
    };
    Action::Score.on(found)
}

#[derive(Clone, Copy)]
enum Action {
    Score,
    Delete,
}

impl Action {
    fn of_s3(event: &str) -> Option<Self> {
        if event.starts_with("ObjectCreated:") {
            Some(Self::Score)
        } else if event.starts_with("ObjectRemoved:") {
            Some(Self::Delete)
        } else {
            None
        }
    }

    /// Normalises the object and says what to do with it.
    fn on(self, mut object: ObjectRef) -> Result<Item, BadItem> {
        object.version_id = object.version_id.filter(|version| !version.is_empty() && version != "null");
        object.etag = object
            .etag
            .map(|etag| etag.trim_matches('"').to_owned())
            .filter(|etag| !etag.is_empty());
        object.sequencer = object.sequencer.filter(|sequencer| !sequencer.is_empty());
        check_storable(&object)?;
        Ok(match self {
            Self::Score => Item::Score(object),
            Self::Delete => Item::Delete(object),
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
        let message = format!("key {:?} holds a NUL, which Postgres can't store; rename the object", object.key);
        return Err(BadItem { error: ItemError::new(ErrorCode::KeyNotStorable, Stage::Parse, message), object: None });
    }
    if object.key.len() > KEY_LIMIT {
        let message =
            format!("the key has {} bytes, more than S3's limit of {KEY_LIMIT}; rename the object", object.key.len());
        return Err(BadItem { error: ItemError::new(ErrorCode::KeyNotStorable, Stage::Parse, message), object: None });
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
    Ok(())
}

/// Turns an item on a bucket outside the allow-list into an error.
fn admit(outcome: Result<Item, BadItem>, allowed: &[String]) -> Result<Item, BadItem> {
    match outcome {
        Ok(Item::Score(object) | Item::Delete(object))
            if !allowed.is_empty() && !allowed.contains(&object.bucket) =>
        {
            let message =
                format!("bucket {:?} is not in s3.buckets; add it there or stop its notifications", object.bucket);
            let error = ItemError::new(ErrorCode::BucketNotAllowed, Stage::Parse, message);
            Err(BadItem { error, object: Some(object) })
        }
        other => other,
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

fn malformed(message: impl Into<String>) -> BadItem {
    BadItem { error: ItemError::new(ErrorCode::MalformedEvent, Stage::Parse, message), object: None }
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

fn field<'a>(object: &'a Map<String, Value>, name: &str, within: &str) -> Result<&'a Map<String, Value>, BadItem> {
    object
        .get(name)
        .and_then(Value::as_object)
        .ok_or_else(|| malformed(format!("expected an object {name} in {within}")))
}

fn required_text<'a>(object: &'a Map<String, Value>, name: &str, within: &str) -> Result<&'a str, BadItem> {
    text(object, name).ok_or_else(|| malformed(format!("expected a string {name} in {within}")))
}

fn optional_text<'a>(object: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, BadItem> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(malformed(format!("expected {name} to be a string, found {}", kind_of(other)))),
    }
}

fn optional_size(object: &Map<String, Value>) -> Result<Option<u64>, BadItem> {
    match object.get("size") {
        None | Some(Value::Null) => Ok(None),
        Some(size) => size
            .as_u64()
            .map(Some)
            .ok_or_else(|| malformed(format!("expected size to be a whole number of bytes, found {}", kind_of(size)))),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
