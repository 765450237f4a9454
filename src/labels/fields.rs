//! Fields of JSON as the formats here use them, each refusal naming the field.

use super::Refusal;
use serde_json::{Map, Value};

pub(super) fn numbers(field: &'static str, list: &[Value]) -> Result<Vec<f64>, Refusal> {
    list.iter().map(|value| number(field, value)).collect()
}

pub(super) fn number(field: &'static str, value: &Value) -> Result<f64, Refusal> {
    value.as_f64().ok_or_else(|| kind(field, "a number", value))
}

/// A number, or a list of them; none where the field is absent.
pub(super) fn number_or_list(field: &'static str, value: Option<Value>) -> Result<Vec<f64>, Refusal> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => numbers(field, &list),
        Some(value) => Ok(vec![number(field, &value)?]),
    }
}

/// A list of what `item` reads, or a list of such lists; none where the field is absent.
pub(super) fn list_or_lists<T>(
    field: &'static str,
    value: Option<Value>,
    item: impl Fn(&'static str, &Value) -> Result<T, Refusal>,
) -> Result<Vec<Vec<T>>, Refusal> {
    let read = |list: &[Value]| list.iter().map(|value| item(field, value)).collect();
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(lists)) if lists.first().is_some_and(Value::is_array) => lists
            .iter()
            .map(|list| match list {
                Value::Array(list) => read(list),
                other => Err(kind(field, "a list of lists of numbers", other)),
            })
            .collect(),
        Some(Value::Array(list)) => Ok(vec![read(&list)?]),
        Some(other) => Err(kind(field, "a list of numbers", &other)),
    }
}

/// Text that is there and not empty.
pub(super) fn text(
    field: &'static str,
    fields: &mut Map<String, Value>,
    remedy: &'static str,
) -> Result<String, Refusal> {
    optional_text(field, fields)?.ok_or(Refusal::Missing { field, remedy })
}

/// Text, where there is some.
pub(super) fn optional_text(
    field: &'static str,
    fields: &mut Map<String, Value>,
) -> Result<Option<String>, Refusal> {
    match fields.shift_remove(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        None | Some(Value::Null | Value::String(_)) => Ok(None),
        Some(other) => Err(kind(field, "text", &other)),
    }
}

pub(super) fn kind(field: &'static str, expected: &'static str, value: &Value) -> Refusal {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Refusal::Kind { field, expected, found }
}

/// How the JSON is wrong, and on which of its lines, from 1.
pub(super) fn syntax(error: &serde_json::Error) -> (usize, Refusal) {
    let message = error.to_string();
    let reason = message.split(" at line ").next().unwrap_or(&message);
    (error.line().max(1), Refusal::Json(reason.to_owned()))
}
