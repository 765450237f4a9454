//! A configured secret: it can be read and used, and never printed.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use url::Url;

/// A password, key or token from the configuration.
///
/// Debug output and serialization both give `[redacted]`, so a configuration that holds one can be
/// logged and printed whole. The memory is wiped on drop.
#[derive(Clone, Default)]
pub struct Secret(SecretString);

impl Secret {
    /// What stands in for the value wherever it would be shown.
    pub const REDACTED: &'static str = "[redacted]";

    /// The value itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether nothing was configured.
    pub fn is_empty(&self) -> bool {
        self.expose().is_empty()
    }

    /// Whether `candidate`, which a stranger may have sent, is this secret. Takes a time that depends on
    /// neither where they differ nor how long the secret is. A secret that was not configured matches
    /// nothing, the empty string included.
    pub fn matches(&self, candidate: &str) -> bool {
        // Digests have one length; slices of two lengths are unequal at once.
        let (expected, given) = (Sha256::digest(self.expose()), Sha256::digest(candidate));
        bool::from(expected.as_slice().ct_eq(given.as_slice())) && !self.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(SecretString::from(value))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(Self::REDACTED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|value| Self(SecretString::from(value)))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { Self::REDACTED })
    }
}

/// Reads an address that is printed and logged, and so must not hold a password.
///
/// # Errors
/// When it names a user or a password; the message quotes nothing of it.
pub fn address_without_credentials<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let address = Option::<String>::deserialize(deserializer)?;
    let url = address.as_deref().and_then(|address| Url::parse(address).ok());
    if url.is_some_and(|url| !url.username().is_empty() || url.password().is_some()) {
        return Err(serde::de::Error::custom(
            "an address with a user or a password in it, which logs would show; use the settings that are \
             there for them",
        ));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shown_nowhere() {
        let secret: Secret = serde_json::from_str("\"hunter2\"").unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[redacted]\"");
    }

    #[test]
    fn an_address_that_is_shown_has_no_password() {
        let read = |address: &str| {
            address_without_credentials(&mut serde_json::Deserializer::from_str(&format!("{address:?}")))
        };
        assert_eq!(read("http://minio:9000").unwrap().as_deref(), Some("http://minio:9000"));
        for address in ["http://me:hunter2@minio:9000", "https://hunter2@minio", "https://:hunter2@minio"] {
            let error = read(address).unwrap_err().to_string();
            assert!(error.contains("password") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn only_the_very_same_text_matches() {
        let secret = Secret::from("hunter2");
        assert!(secret.matches("hunter2"));
        for other in ["", "hunter", "hunter22", "Hunter2", "hunter2 ", "hunter2\0"] {
            assert!(!secret.matches(other), "{other:?}");
        }
    }

    #[test]
    fn an_unset_one_matches_nothing() {
        assert!(!Secret::default().matches(""));
        assert!(!Secret::default().matches("x"));
    }

    #[test]
    fn an_unset_one_is_shown_as_unset() {
        assert_eq!(serde_json::to_string(&Secret::default()).unwrap(), "\"\"");
    }
}
