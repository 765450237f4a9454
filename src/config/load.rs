//! Reading the configuration: TOML file, then environment, then flags.

use super::Config;
use figment::{
    Figment,
    error::Kind,
    providers::{Env, Format, Serialized, Toml},
    value::Value,
};
use std::path::Path;

/// Environment variables that override the file: `ROC4MLLM__KAFKA__GROUP` is `kafka.group`.
const PREFIX: &str = "ROC4MLLM__";

/// The configuration cannot be used as it is.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {reason}; give the configuration file with -c")]
    Unreadable { path: String, reason: String },
    #[error("{origin}: unknown key `{key}`{hint}")]
    UnknownKey { origin: String, key: String, hint: String },
    #[error("{origin}: {key}{reason}")]
    Malformed { origin: String, key: String, reason: String },
    #[error("{0}")]
    Kafka(String),
    /// A section's own words.
    #[error("{0}")]
    Other(String),
    #[error("{key} {reason}")]
    Invalid { key: String, reason: String },
}

impl ConfigError {
    pub(crate) fn invalid(key: &str, reason: &str) -> Self {
        Self::Invalid { key: key.into(), reason: reason.into() }
    }
}

/// Reads `file` (if any), the environment, then `overrides` (`section.key` with a TOML value or a
/// bare string), the later over the earlier.
///
/// # Errors
/// [`ConfigError`], naming the file or variable, the key, and the nearest valid name of an unknown one.
pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Config, ConfigError> {
    let mut figment = Figment::new();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        // Parsed here as well as by figment, so that a syntax error names the file.
        if let Err(error) = text.parse::<toml::Table>() {
            return Err(ConfigError::Malformed {
                origin: path.display().to_string(),
                key: String::new(),
                reason: syntax_error(&text, &error),
            });
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    figment = figment.merge(Env::prefixed(PREFIX).split("__"));
    for key in SECRETS {
        let variable = format!("{PREFIX}{}", key.replace('.', "__").to_uppercase());
        if let Ok(text) = std::env::var(variable) {
            figment = figment.merge(Serialized::default(key, text));
        }
    }
    for (key, value) in overrides {
        let value = if SECRETS.contains(&key.as_str()) {
            toml::Value::String(value.clone())
        } else {
            flag_value(value)
        };
        figment = figment.merge(Serialized::default(key, &value));
    }
    let figment = split_lists(figment)?;
    figment.extract().map_err(|error| explain(error, file))
}

/// What is wrong and in which line. The library's own message quotes the line, which may hold a password.
fn syntax_error(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("not valid TOML in line {line}: {}", one_line(error.message()))
}

/// A flag's text is the TOML value it spells, else a string.
fn flag_value(text: &str) -> toml::Value {
    format!("value = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.into()))
}

/// Keys that hold a list, which an environment variable may spell as `a,b`.
const LISTS: [(&str, &str); 2] = [("kafka", "input_topics"), ("s3", "buckets")];

/// Keys that hold a secret. Variables and flags give their text as it is, since a password may look like a
/// number or a list, and no message quotes one.
const SECRETS: [&str; 7] = [
    "http.page.label_token",
    "http.score.token",
    "kafka.sasl.client_secret",
    "kafka.sasl.password",
    "kafka.tls.key_password",
    "postgres.url",
    "s3.secret_access_key",
];

fn split_lists(figment: Figment) -> Result<Figment, ConfigError> {
    let mut figment = figment;
    for (section, key) in LISTS {
        let path = format!("{section}.{key}");
        if let Ok(Value::String(_, text)) = figment.find_value(&path) {
            let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
            figment = figment.merge(Serialized::default(&path, parts));
        }
    }
    Ok(figment)
}

fn explain(error: figment::Error, file: Option<&Path>) -> ConfigError {
    // figment may gather several errors; one at a time is what a person can act on.
    let Some(first) = error.into_iter().next() else {
        return ConfigError::invalid("configuration", "cannot be read");
    };
    let from_environment =
        first.metadata.as_ref().is_some_and(|metadata| metadata.name.contains("environment"));
    let mut path = first.path.clone();
    let (key, hint) = match &first.kind {
        Kind::UnknownField(name, expected) => {
            if path.last() != Some(name) {
                path.push(name.clone());
            }
            let parent = path[..path.len() - 1].join(".");
            (path.join("."), Some(nearest(name, &parent, expected)))
        }
        _ => (path.join("."), None),
    };
    let secret = SECRETS.contains(&key.as_str());
    let origin = if from_environment {
        format!("environment variable {PREFIX}{}", path.join("__").to_uppercase())
    } else {
        file.map_or_else(|| "configuration".into(), |path| path.display().to_string())
    };
    match hint {
        Some(hint) => ConfigError::UnknownKey { origin, key, hint },
        None => ConfigError::Malformed {
            origin,
            key: if key.is_empty() { String::new() } else { format!("{key}: ") },
            reason: match secret {
                true => "is no text; put it in quotes".into(),
                false => one_line(&first.kind.to_string()),
            },
        },
    }
}

/// The valid name closest to `name`, as a hint, or all of them when none is close.
fn nearest(name: &str, parent: &str, expected: &[&str]) -> String {
    let closest = expected
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .max_by(|one, other| one.0.total_cmp(&other.0));
    match closest {
        Some((similarity, candidate)) if similarity > 0.7 => {
            let separator = if parent.is_empty() { "" } else { "." };
            format!("; did you mean `{parent}{separator}{candidate}`?")
        }
        _ => format!("; valid here: {}", expected.join(", ")),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The effective configuration as TOML, secrets redacted.
pub fn render(config: &Config) -> Result<String, toml::ser::Error> {
    toml::to_string(config)
}
