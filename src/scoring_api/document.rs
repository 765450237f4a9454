//! The OpenAPI document, kept by hand beside the code that it describes.

use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("openapi.json");

/// The document of this build, as JSON; `protected` says whether a token is asked for.
pub fn document(protected: bool) -> String {
    // A test reads the embedded text, so the fall-back is never served.
    let mut document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let security = if protected { json!([{"bearer": []}]) } else { json!([]) };
    document["paths"]["/v1/score"]["post"]["security"] = security;
    if !protected && let Some(responses) = document["paths"]["/v1/score"]["post"]["responses"].as_object_mut()
    {
        responses.shift_remove("401");
    }
    document.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fault::{ErrorCode, ItemError, Stage},
        object::{ObjectRef, ScoreId},
        record::output::OutputRecord,
        score::{ItemStatus, ModelVersion},
    };
    use std::collections::BTreeSet;

    fn parsed() -> Value {
        serde_json::from_str(&document(true)).unwrap()
    }

    fn names(object: &Value) -> BTreeSet<String> {
        object.as_object().unwrap().keys().cloned().collect()
    }

    /// Every `$ref` below `value`.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value) {
                        ("$ref", Value::String(target)) => found.push(target.clone()),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn references_lead_somewhere() {
        let document = parsed();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 5, "{found:?}");
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn the_record_is_described_field_by_field() {
        let model = ModelVersion { model: "m".into(), version: "v".into(), preprocess_revision: 1 };
        let object = ObjectRef::new("b", "k");
        let id = ScoreId::derive(&object, &model);
        let at = time::OffsetDateTime::UNIX_EPOCH;
        let mut record = OutputRecord::new(id, ItemStatus::Rejected, Some(&object), &model, None, at);
        record.error = Some(ItemError::new(ErrorCode::Unsupported, Stage::Decode, "no image"));
        let record = serde_json::to_value(&record).unwrap();
        let document = parsed();
        let schema = &document["components"]["schemas"]["Record"];
        assert_eq!(names(&record), names(&schema["properties"]));
        let required: BTreeSet<String> =
            schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().into()).collect();
        assert_eq!(required, names(&record), "every field is always there");
        let error = &document["components"]["schemas"]["Error"]["properties"];
        assert_eq!(names(&record["error"]), names(error));
        for stage in ["fetch", "decode", "infer"] {
            assert!(error["stage"]["enum"].as_array().unwrap().contains(&stage.into()), "{stage}");
        }
    }

    #[test]
    fn a_token_is_asked_for_only_where_there_is_one() {
        let operation = |protected| {
            let document: Value = serde_json::from_str(&document(protected)).unwrap();
            document["paths"]["/v1/score"]["post"].clone()
        };
        assert_eq!(operation(true)["security"], json!([{"bearer": []}]));
        assert!(operation(true)["responses"]["401"].is_object());
        assert_eq!(operation(false)["security"], json!([]));
        assert!(operation(false)["responses"]["401"].is_null());
        assert_eq!(parsed()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
