//! Reading a JSON settings file field by field, so that each mistake is named by file and field.

use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A settings file of a checkpoint that can't be used: the file, the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}; compare it with the published checkpoint's file", .file.display())]
pub struct ConfigError {
    pub file: PathBuf,
    pub problem: String,
}

/// One JSON object of a settings file, with the way that leads to it.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    file: &'a Path,
    /// `visual_config.visual_model.` inside an inner object, empty at the top.
    prefix: &'a str,
    object: &'a Map<String, Value>,
}

/// Reads a JSON file whose top level is an object.
pub(crate) fn read_object(file: &Path) -> Result<Map<String, Value>, ConfigError> {
    let error = |problem| ConfigError { file: file.to_owned(), problem };
    let text = fs::read(file).map_err(|source| error(format!("can't be read ({source})")))?;
    serde_json::from_slice(&text).map_err(|source| error(format!("isn't a JSON object ({source})")))
}

impl<'a> Fields<'a> {
    pub fn new(file: &'a Path, prefix: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { file, prefix, object }
    }

    /// The value of a field; `null` counts as absent, as the reference's configuration reads it.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub fn error(&self, name: &str, problem: impl AsRef<str>) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            problem: format!("`{}{name}` {}", self.prefix, problem.as_ref()),
        }
    }

    fn convert<T>(
        &self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.error(name, format!("must be {expected}, but is {}", brief(value)))),
            },
        }
    }

    pub fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| self.error(name, "is missing"))
    }

    /// An inner object.
    pub fn object(&self, name: &str) -> Result<&'a Map<String, Value>, ConfigError> {
        self.required(name, self.convert(name, "an object", Value::as_object)?)
    }

    /// An integer from 1 to `largest`.
    pub fn optional_count(&self, name: &str, largest: i64) -> Result<Option<i64>, ConfigError> {
        self.convert(name, &format!("an integer from 1 to {largest}"), |value| {
            value.as_i64().filter(|count| (1..=largest).contains(count))
        })
    }

    pub fn count(&self, name: &str, largest: i64) -> Result<i64, ConfigError> {
        self.required(name, self.optional_count(name, largest)?)
    }

    /// A token id; a negative one counts as absent (early LLaMA files write -1 for "no padding").
    pub fn optional_id(&self, name: &str) -> Result<Option<i64>, ConfigError> {
        Ok(self.convert(name, "a token id", Value::as_i64)?.filter(|id| *id >= 0))
    }

    /// One token id or a list of them.
    pub fn ids(&self, name: &str) -> Result<Option<Vec<i64>>, ConfigError> {
        self.convert(name, "a token id or a list of token ids", |value| match value {
            Value::Array(list) => list.iter().map(|id| id.as_i64().filter(|id| *id >= 0)).collect(),
            single => single.as_i64().filter(|id| *id >= 0).map(|id| vec![id]),
        })
    }

    /// A finite number.
    pub fn optional_number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.convert(name, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// A finite number above 0, or the reference's default where the field is absent.
    pub fn positive(&self, name: &str, default: f64) -> Result<f64, ConfigError> {
        let number = self.optional_number(name)?.unwrap_or(default);
        if number > 0.0 { Ok(number) } else { Err(self.error(name, "must be above 0")) }
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.convert(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub fn optional_text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        self.convert(name, "a text", Value::as_str)
    }
}

/// A value as it stands in the file, cut where it is long.
fn brief(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > 60 {
        text.truncate(text.floor_char_boundary(57));
        text.push_str("...");
    }
    text
}
