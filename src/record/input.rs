//! Reads input records: every envelope an object notification comes in.
//!
//! Kinds are tried in this order: null value (a tombstone), CloudEvents in binary mode (`ce_*`
//! headers), CloudEvents in structured mode, SNS, S3's test event, S3 notifications as AWS and MinIO
//! send them, EventBridge, and plain `{"bucket":..,"key":..}`. Anything else is malformed.

mod action;
mod cloud_events;
mod event_bridge;
mod fields;
mod plain;
mod s3;
mod sns;

use super::{Header, header_text};
use crate::fault::{ErrorCode, ItemError, Stage};
use crate::object::ObjectRef;
use fields::{kind_of, malformed, text};
use serde_json::Value;

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
        return cloud_events::parse(object, depth);
    }
    if text(object, "Type") == Some("Notification") && object.contains_key("Message") {
        return sns::parse(object, depth);
    }
    if text(object, "Event") == Some("s3:TestEvent") {
        return ParsedRecord::skip(SkipReason::TestEvent);
    }
    if let Some(records) = object.get("Records") {
        return s3::parse(records);
    }
    if object.contains_key("detail-type") && object.contains_key("detail") {
        return ParsedRecord::single(event_bridge::parse(object));
    }
    if object.contains_key("EventName") && object.contains_key("Key") {
        return ParsedRecord::single(s3::parse_summary(object));
    }
    if object.contains_key("bucket") && object.contains_key("key") {
        return ParsedRecord::single(plain::parse(object));
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

/// Turns an item on a bucket outside the allow-list, or on what can be no bucket, into an error.
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
        // Without a list anything would be asked for, and no request names such a bucket.
        Ok(Item::Score(object) | Item::Delete(object)) if !is_bucket_name(&object.bucket) => {
            Err(malformed(format!(
                "{:?} is no bucket's name, which has letters, digits, '-', '.' and '_'; send the name alone",
                object.bucket
            )))
        }
        other => other,
    }
}

/// Of the letters that S3 and its like allow, today's and those of old buckets.
fn is_bucket_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests;
