//! Fields of JSON objects, and errors that name them.

use super::BadItem;
use crate::fault::{ErrorCode, ItemError, Stage};
use serde_json::{Map, Value};

pub(super) fn malformed(message: impl Into<String>) -> BadItem {
    BadItem { error: ItemError::new(ErrorCode::MalformedEvent, Stage::Parse, message), object: None }
}

pub(super) fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

pub(super) fn field<'a>(
    object: &'a Map<String, Value>,
    name: &str,
    within: &str,
) -> Result<&'a Map<String, Value>, BadItem> {
    object
        .get(name)
        .and_then(Value::as_object)
        .ok_or_else(|| malformed(format!("expected an object {name} in {within}")))
}

pub(super) fn required_text<'a>(
    object: &'a Map<String, Value>,
    name: &str,
    within: &str,
) -> Result<&'a str, BadItem> {
    text(object, name).ok_or_else(|| malformed(format!("expected a string {name} in {within}")))
}

pub(super) fn optional_text<'a>(
    object: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, BadItem> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(malformed(format!("expected {name} to be a string, found {}", kind_of(other)))),
    }
}

pub(super) fn optional_size(object: &Map<String, Value>) -> Result<Option<u64>, BadItem> {
    match object.get("size") {
        None | Some(Value::Null) => Ok(None),
        Some(size) => size.as_u64().map(Some).ok_or_else(|| {
            malformed(format!("expected size to be a whole number of bytes, found {}", kind_of(size)))
        }),
    }
}

pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
