//! Amazon SNS notifications, around any other envelope.

use super::fields::{malformed, text};
use super::{ParsedRecord, parse_wrapped};
use serde_json::{Map, Value};

/// `Message` is text that is JSON.
pub(super) fn parse(notification: &Map<String, Value>, depth: u32) -> ParsedRecord {
    match text(notification, "Message") {
        Some(message) => parse_wrapped(message.as_bytes(), "Message of an SNS notification", depth),
        None => ParsedRecord::single(Err(malformed("Message of an SNS notification is no string"))),
    }
}
