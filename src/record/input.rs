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
    pub object: Option<Box<ObjectRef>>,
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
        item.outcome =
            admit(std::mem::replace(&mut item.outcome, Ok(Item::Skip(SkipReason::Empty))), allowed_buckets);
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
        let message =
            format!("header {ITEM_HEADER} names item {wanted:?}, which the record does not hold; remove it");
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
    /// Of the version that the event names, or of the key where it names none.
    Delete,
    /// Whatever version the event names: a delete marker has a version id of its own, which is none of
    /// the object's.
    DeleteKey,
}

impl Action {
    fn of_s3(event: &str) -> Option<Self> {
        if event.starts_with("ObjectCreated:") {
            return Some(Self::Score);
        }
        match event.strip_prefix("ObjectRemoved:")? {
            // The second one is MinIO's, when lifecycle rules remove an object with all its versions.
            "DeleteMarkerCreated" | "DeleteAllVersions" => Some(Self::DeleteKey),
            _ => Some(Self::Delete),
        }
    }

    /// Normalises the object and says what to do with it.
    fn on(self, mut object: ObjectRef) -> Result<Item, BadItem> {
        object.version_id = object.version_id.filter(|version| !version.is_empty() && version != "null");
        object.etag =
            object.etag.map(|etag| etag.trim_matches('"').to_owned()).filter(|etag| !etag.is_empty());
        object.sequencer = object.sequencer.filter(|sequencer| !sequencer.is_empty());
        check_storable(&object)?;
        Ok(match self {
            Self::Score => Item::Score(object),
            Self::Delete => Item::Delete(object),
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
    Ok(())
}

/// Turns an item on a bucket outside the allow-list into an error.
fn admit(outcome: Result<Item, BadItem>, allowed: &[String]) -> Result<Item, BadItem> {
    match outcome {
        Ok(Item::Score(object) | Item::Delete(object))
            if !allowed.is_empty() && !allowed.contains(&object.bucket) =>
        {
            let message = format!(
                "bucket {:?} is not in s3.buckets; add it there or stop its notifications",
                object.bucket
            );
            let error = ItemError::new(ErrorCode::BucketNotAllowed, Stage::Parse, message);
            Err(BadItem { error, object: Some(Box::new(object)) })
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

fn field<'a>(
    object: &'a Map<String, Value>,
    name: &str,
    within: &str,
) -> Result<&'a Map<String, Value>, BadItem> {
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
        Some(size) => size.as_u64().map(Some).ok_or_else(|| {
            malformed(format!("expected size to be a whole number of bytes, found {}", kind_of(size)))
        }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;
    use serde_json::json;

    fn parsed(value: &Value) -> ParsedRecord {
        parse(Some(value.to_string().as_bytes()), &[], &[])
    }

    fn only(value: &Value) -> Result<Item, BadItem> {
        let mut record = parsed(value);
        assert_eq!(record.items.len(), 1, "{value}");
        record.items.remove(0).outcome
    }

    fn scored(value: &Value) -> ObjectRef {
        match only(value) {
            Ok(Item::Score(object)) => object,
            other => panic!("{value} gave {other:?}"),
        }
    }

    fn code(value: &Value) -> ErrorCode {
        only(value).expect_err("should be refused").error.code
    }

    /// What S3 and MinIO do to a key.
    fn form_encode(key: &str) -> String {
        utf8_percent_encode(key, NON_ALPHANUMERIC).to_string().replace("%20", "+")
    }

    fn s3_record(event: &str, bucket: &str, encoded_key: &str) -> Value {
        json!({"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": event, "s3": {
            "s3SchemaVersion": "1.0", "configurationId": "c",
            "bucket": {"name": bucket, "arn": "arn:aws:s3:::b"},
            "object": {"key": encoded_key, "size": 1024, "eTag": "\"d41d8\"", "versionId": "v1", "sequencer": "0055AE"}}})
    }

    fn s3_event(encoded_key: &str) -> Value {
        json!({"Records": [s3_record("ObjectCreated:Put", "b", encoded_key)]})
    }

    fn minio_event(bucket: &str, key: &str) -> Value {
        json!({"EventName": "s3:ObjectCreated:Put", "Key": format!("{bucket}/{key}"),
               "Records": [s3_record("s3:ObjectCreated:Put", bucket, &form_encode(key))]})
    }

    fn sns(message: &Value) -> Value {
        json!({"Type": "Notification", "MessageId": "m", "TopicArn": "arn:aws:sns:::t", "Message": message.to_string()})
    }

    fn event_bridge(kind: &str, key: &str) -> Value {
        json!({"version": "0", "detail-type": kind, "source": "aws.s3", "detail": {
            "version": "0", "bucket": {"name": "b"},
            "object": {"key": key, "size": 5, "etag": "b1946", "version-id": "IYV3", "sequencer": "00617F"}}})
    }

    fn cloud_event(data: &Value) -> Value {
        json!({"specversion": "1.0", "type": "com.example", "source": "s", "id": "1", "data": data})
    }

    #[test]
    fn an_aws_notification_is_read_whole() {
        let object = scored(&s3_event("a%2Fb+c.jpg"));
        let expected = ObjectRef {
            bucket: "b".into(),
            key: "a/b c.jpg".into(),
            version_id: Some("v1".into()),
            etag: Some("d41d8".into()),
            size: Some(1024),
            sequencer: Some("0055AE".into()),
        };
        assert_eq!(object, expected);
    }

    #[test]
    fn a_minio_notification_is_read_from_its_records_or_from_its_top_level() {
        assert_eq!(scored(&minio_event("b", "a+b/ü%.jpg")).key, "a+b/ü%.jpg");
        let summary = json!({"EventName": "s3:ObjectCreated:Put", "Key": "b/a+b%2F//c.jpg"});
        assert_eq!(scored(&summary), ObjectRef::new("b", "a+b%2F//c.jpg"));
        let removed = json!({"EventName": "s3:ObjectRemoved:Delete", "Key": "b/k"});
        assert_eq!(only(&removed), Ok(Item::Delete(ObjectRef::new("b", "k"))));
        assert_eq!(
            code(&json!({"EventName": "s3:ObjectCreated:Put", "Key": "no-slash"})),
            ErrorCode::MalformedEvent
        );
    }

    #[test]
    fn sns_wraps_any_other_envelope() {
        assert_eq!(scored(&sns(&s3_event("k"))).key, "k");
        assert_eq!(scored(&sns(&json!({"bucket": "b", "key": "a+b"}))).key, "a+b");
        assert_eq!(code(&json!({"Type": "Notification", "Message": "not json"})), ErrorCode::MalformedEvent);
        assert_eq!(code(&json!({"Type": "Notification", "Message": 3})), ErrorCode::MalformedEvent);
    }

    #[test]
    fn an_event_bridge_key_is_raw() {
        let object = scored(&event_bridge("Object Created", "a+b%2Fc"));
        assert_eq!(object.key, "a+b%2Fc");
        assert_eq!(object.version_id.as_deref(), Some("IYV3"));
        assert_eq!(object.etag.as_deref(), Some("b1946"));
        assert!(matches!(only(&event_bridge("Object Deleted", "k")), Ok(Item::Delete(_))));
        assert_eq!(only(&event_bridge("Object Tags Added", "k")), Ok(Item::Skip(SkipReason::OtherEvent)));
    }

    #[test]
    fn cloud_events_are_read_in_both_modes() {
        let plain = json!({"bucket": "b", "key": "k"});
        assert_eq!(scored(&cloud_event(&plain)), ObjectRef::new("b", "k"));
        assert_eq!(scored(&cloud_event(&Value::String(plain.to_string()))), ObjectRef::new("b", "k"));
        let encoded = json!({"specversion": "1.0", "data_base64": BASE64.encode(s3_event("k").to_string())});
        assert_eq!(scored(&encoded).key, "k");
        assert_eq!(scored(&cloud_event(&s3_event("k"))).key, "k");
        let headers = [Header::new("ce_specversion", "1.0"), Header::new("ce_type", "t")];
        let record = parse(Some(plain.to_string().as_bytes()), &headers, &[]);
        assert_eq!(record.items[0].outcome, Ok(Item::Score(ObjectRef::new("b", "k"))));
        let record = parse(Some(b"<xml/>"), &headers, &[]);
        assert!(record.items[0].outcome.as_ref().unwrap_err().to_string().contains("CloudEvent"));
        assert_eq!(code(&json!({"specversion": "1.0"})), ErrorCode::MalformedEvent);
        assert_eq!(code(&json!({"specversion": "1.0", "data_base64": "?"})), ErrorCode::MalformedEvent);
    }

    #[test]
    fn a_plain_object_is_raw_and_its_optional_fields_are_optional() {
        let object = scored(
            &json!({"bucket": "b", "key": "a+b%2F//ü", "version_id": "v", "etag": "e", "size": 3, "other": []}),
        );
        assert_eq!(object.key, "a+b%2F//ü");
        assert_eq!(
            (object.version_id.as_deref(), object.etag.as_deref(), object.size),
            (Some("v"), Some("e"), Some(3))
        );
        let bare = json!({"bucket": "b", "key": "k", "version_id": null, "etag": null, "size": null});
        assert_eq!(scored(&bare), ObjectRef::new("b", "k"));
    }

    #[test]
    fn tombstones_test_events_and_other_events_are_skipped() {
        let reason = |record: ParsedRecord| record.skipped().next();
        assert_eq!(reason(parse(None, &[], &[])), Some(SkipReason::Tombstone));
        assert_eq!(
            reason(parse(None, &[Header::new("ce_specversion", "1.0")], &[])),
            Some(SkipReason::Tombstone)
        );
        let test_event = json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"});
        assert_eq!(reason(parsed(&test_event)), Some(SkipReason::TestEvent));
        assert_eq!(reason(parsed(&sns(&test_event))), Some(SkipReason::TestEvent));
        let restored = json!({"Records": [s3_record("s3:ObjectRestore:Post", "b", "k")]});
        assert_eq!(reason(parsed(&restored)), Some(SkipReason::OtherEvent));
        assert_eq!(reason(parsed(&json!({"Records": []}))), Some(SkipReason::Empty));
        assert_eq!(parsed(&test_event).to_process().count(), 0);
    }

    #[test]
    fn a_removal_is_of_one_version_and_a_delete_marker_of_the_key() {
        let removed = |event: &Value| match only(event) {
            Ok(Item::Delete(object)) => (object.key, object.version_id),
            other => panic!("{event} gives {other:?}"),
        };
        let of_s3 = |name: &str| removed(&json!({"Records": [s3_record(name, "b", "k")]}));
        assert_eq!(of_s3("ObjectRemoved:Delete"), ("k".into(), Some("v1".into())));
        assert_eq!(of_s3("ObjectRemoved:DeleteMarkerCreated"), ("k".into(), None));
        assert_eq!(of_s3("s3:ObjectRemoved:DeleteMarkerCreated"), ("k".into(), None));
        assert_eq!(of_s3("s3:ObjectRemoved:DeleteAllVersions"), ("k".into(), None));
        let mut bridged = event_bridge("Object Deleted", "k");
        assert_eq!(removed(&bridged), ("k".into(), Some("IYV3".into())));
        bridged["detail"]["deletion-type"] = json!("Permanently Deleted");
        assert_eq!(removed(&bridged), ("k".into(), Some("IYV3".into())));
        bridged["detail"]["deletion-type"] = json!("Delete Marker Created");
        assert_eq!(removed(&bridged), ("k".into(), None));
    }

    #[test]
    fn an_unversioned_object_has_no_version() {
        for version in [json!(null), json!(""), json!("null")] {
            assert_eq!(scored(&json!({"bucket": "b", "key": "k", "version_id": version})).version_id, None);
        }
        assert_eq!(scored(&json!({"bucket": "b", "key": "k", "etag": "\"\""})).etag, None);
    }

    #[test]
    fn one_bad_record_leaves_its_neighbours_alone() {
        let record = parsed(&json!({"Records": [
            s3_record("ObjectCreated:Put", "b", "first.jpg"), {"eventName": "ObjectCreated:Put"}, 7,
            s3_record("ObjectCreated:Put", "b", "last.jpg")]}));
        assert_eq!(record.items.iter().map(|item| item.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(matches!(&record.items[0].outcome, Ok(Item::Score(object)) if object.key == "first.jpg"));
        assert_eq!(record.items[1].outcome.as_ref().unwrap_err().error.code, ErrorCode::MalformedEvent);
        assert!(record.items[1].outcome.as_ref().unwrap_err().to_string().contains("s3"));
        assert!(record.items[2].outcome.is_err());
        assert!(matches!(&record.items[3].outcome, Ok(Item::Score(object)) if object.key == "last.jpg"));
    }

    #[test]
    fn a_record_put_back_gives_its_item_alone() {
        let event = json!({"Records": [s3_record("ObjectCreated:Put", "b", "0"), s3_record("ObjectCreated:Put", "b", "1")]});
        let bytes = event.to_string();
        let record = parse(Some(bytes.as_bytes()), &[Header::new(ITEM_HEADER, "1")], &[]);
        assert_eq!(record.items.len(), 1);
        assert_eq!(record.items[0].index, 1);
        for wanted in ["2", "-1", "one", ""] {
            let record = parse(Some(bytes.as_bytes()), &[Header::new(ITEM_HEADER, wanted)], &[]);
            assert_eq!(record.items[0].outcome.as_ref().unwrap_err().error.code, ErrorCode::MalformedEvent);
        }
    }

    #[test]
    fn unknown_envelopes_are_malformed_and_say_what_was_expected() {
        for value in [
            json!({}),
            json!([]),
            json!(3),
            json!("text"),
            json!(null),
            json!({"bucket": "b"}),
            json!({"Records": {}}),
        ] {
            let error = only(&value).unwrap_err();
            assert_eq!(error.error.code, ErrorCode::MalformedEvent, "{value}");
            assert!(error.to_string().contains("expected"), "{error}");
            assert_eq!(error.object, None);
        }
        for bytes in [&b""[..], b"{", b"\xff\xfe", b"{\"bucket\":\"b\"", b"{} {}"] {
            let record = parse(Some(bytes), &[], &[]);
            assert_eq!(record.items[0].outcome.as_ref().unwrap_err().error.code, ErrorCode::MalformedEvent);
        }
    }

    #[test]
    fn wrong_types_are_named() {
        for (value, name) in [
            (json!({"bucket": 1, "key": "k"}), "bucket"),
            (json!({"bucket": "b", "key": ["k"]}), "key"),
            (json!({"bucket": "b", "key": "k", "size": -1}), "size"),
            (json!({"bucket": "b", "key": "k", "size": 1.5}), "size"),
            (json!({"bucket": "b", "key": "k", "etag": 7}), "etag"),
            (json!({"detail-type": "Object Created", "detail": {"bucket": {"name": "b"}}}), "object"),
        ] {
            let error = only(&value).unwrap_err();
            assert_eq!(error.error.code, ErrorCode::MalformedEvent);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        assert_eq!(code(&json!({"bucket": "b", "key": "a\0b"})), ErrorCode::KeyNotStorable);
        assert_eq!(code(&s3_event("a%00b")), ErrorCode::KeyNotStorable);
        assert_eq!(code(&json!({"bucket": "b", "key": "k".repeat(1025)})), ErrorCode::KeyNotStorable);
        assert_eq!(scored(&json!({"bucket": "b", "key": "k".repeat(1024)})).key.len(), 1024);
        assert_eq!(code(&json!({"bucket": "b", "key": ""})), ErrorCode::MalformedEvent);
        assert_eq!(code(&json!({"bucket": "", "key": "k"})), ErrorCode::MalformedEvent);
        assert_eq!(code(&json!({"bucket": "b\0", "key": "k"})), ErrorCode::MalformedEvent);
        assert_eq!(code(&json!({"bucket": "b", "key": "k", "etag": "e\0"})), ErrorCode::MalformedEvent);
        assert_eq!(code(&s3_event("%FF%FE")), ErrorCode::MalformedEvent);
    }

    #[test]
    fn only_allowed_buckets_are_read_from() {
        let allowed = ["b".to_owned()];
        let of = |bucket: &str| {
            let bytes = json!({"bucket": bucket, "key": "k"}).to_string();
            parse(Some(bytes.as_bytes()), &[], &allowed).items.remove(0).outcome
        };
        assert!(of("b").is_ok());
        let refused = of("secret").unwrap_err();
        assert_eq!(refused.error.code, ErrorCode::BucketNotAllowed);
        assert_eq!(refused.object.as_deref(), Some(&ObjectRef::new("secret", "k")));
        assert!(refused.to_string().contains("s3.buckets"));
    }

    #[test]
    fn endless_wrapping_ends() {
        let mut value = json!({"bucket": "b", "key": "k"});
        for _ in 0..3 {
            value = sns(&value);
        }
        assert_eq!(scored(&value).key, "k");
        assert_eq!(code(&sns(&value)), ErrorCode::MalformedEvent);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(Some(deep.as_bytes()), &[], &[]).items[0].outcome.is_err());
        let deep_data = format!(
            "{{\"specversion\":\"1.0\",\"data\":{}1{}}}",
            "{\"data\":".repeat(5000),
            "}".repeat(5000)
        );
        assert!(parse(Some(deep_data.as_bytes()), &[], &[]).items[0].outcome.is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "Records",
            "s3",
            "bucket",
            "object",
            "key",
            "name",
            "eventName",
            "Message",
            "Type",
            "Event",
            "detail",
            "detail-type",
            "specversion",
            "data",
            "data_base64",
            "EventName",
            "Key",
            "size",
            "eTag",
            "versionId",
        ]);
        let texts = prop::sample::select(vec![
            "ObjectCreated:Put",
            "Notification",
            "s3:TestEvent",
            "Object Created",
            "1.0",
            "b/k",
            "null",
            "",
            "%",
            "{}",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            texts.prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 60, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((names.clone().prop_map(str::to_owned), inner), 0..8)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    /// Keys that S3 allows and that are storable.
    fn any_key() -> impl Strategy<Value = String> {
        let pieces = prop_oneof![
            Just("+".to_owned()),
            Just("%2F".to_owned()),
            Just("//".to_owned()),
            Just(" ".to_owned()),
            Just("%".to_owned()),
            Just("\u{e9}\u{1f600}".to_owned()),
            "[^\\x00]{1,8}",
        ];
        prop::collection::vec(pieces, 1..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(!parse(Some(&bytes), &[], &[]).items.is_empty());
        }

        #[test]
        fn no_json_panics(value in any_json(), item in prop::option::of(any::<String>())) {
            let headers: Vec<_> = item.into_iter().map(|item| Header::new(ITEM_HEADER, item)).collect();
            let record = parse(Some(value.to_string().as_bytes()), &headers, &["b".to_owned()]);
            prop_assert!(!record.items.is_empty());
        }

        #[test]
        fn every_envelope_gives_the_key_back(key in any_key()) {
            let plain = json!({"bucket": "b", "key": key});
            for value in [
                plain.clone(),
                s3_event(&form_encode(&key)),
                minio_event("b", &key),
                json!({"EventName": "s3:ObjectCreated:Put", "Key": format!("b/{key}")}),
                sns(&s3_event(&form_encode(&key))),
                event_bridge("Object Created", &key),
                cloud_event(&plain),
            ] {
                prop_assert_eq!(&scored(&value).key, &key, "{}", value);
            }
        }
    }
}
