//! CloudEvents 1.0 in structured mode, around any other envelope.

use super::fields::malformed;
use super::{ParsedRecord, parse_inner, parse_wrapped};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

/// `data` holds JSON, or text that is JSON; `data_base64` bytes.
pub(super) fn parse(object: &Map<String, Value>, depth: u32) -> ParsedRecord {
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
