//! What `model.checkpoint` and `--checkpoint` may name.

use crate::object::ObjectRef;
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

/// A folder in a bucket: `s3://bucket/prefix`. The prefix neither begins nor ends with `/`, and may be
/// empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct S3Address {
    bucket: String,
    prefix: String,
}

/// A text that is no address of a folder in S3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no S3 address; write s3://bucket/prefix")]
pub struct NotAnAddress(String);

impl S3Address {
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What the keys of everything in the folder begin with.
    pub fn key_prefix(&self) -> String {
        if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) }
    }

    /// The folder `name` in this one.
    #[must_use]
    pub fn folder(&self, name: &str) -> Self {
        Self { bucket: self.bucket.clone(), prefix: format!("{}{name}", self.key_prefix()) }
    }

    /// The object `name` in this folder.
    pub fn object(&self, name: &str) -> ObjectRef {
        ObjectRef::new(&self.bucket, format!("{}{name}", self.key_prefix()))
    }
}

impl FromStr for S3Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let invalid = || NotAnAddress(text.to_owned());
        let address = text.strip_prefix("s3://").ok_or_else(invalid)?;
        let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
        let prefix = prefix.trim_end_matches('/');
        if bucket.is_empty() || prefix.starts_with('/') {
            return Err(invalid());
        }
        Ok(Self { bucket: bucket.into(), prefix: prefix.into() })
    }
}

impl fmt::Display for S3Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.prefix.is_empty() { "" } else { "/" };
        write!(formatter, "s3://{}{separator}{}", self.bucket, self.prefix)
    }
}

impl TryFrom<String> for S3Address {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl From<S3Address> for String {
    fn from(address: S3Address) -> Self {
        address.to_string()
    }
}

/// Where a checkpoint comes from, as a user writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointSource {
    /// A folder on this machine.
    Folder(PathBuf),
    /// `s3://…`, whether it can be parsed or not: a folder's name does not begin like this.
    S3(String),
    /// The word `champion`: the registered version of that status. A folder of that name is `./champion`.
    Champion,
}

impl FromStr for CheckpointSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "champion" => Self::Champion,
            _ if text.starts_with("s3://") => Self::S3(text.into()),
            _ => Self::Folder(text.into()),
        })
    }
}

impl fmt::Display for CheckpointSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(formatter),
            Self::S3(address) => formatter.write_str(address),
            Self::Champion => formatter.write_str("champion"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> S3Address {
        text.parse().unwrap()
    }

    #[test]
    fn a_folder_of_a_bucket_has_one_spelling() {
        for (text, shown, prefix) in [
            ("s3://b", "s3://b", ""),
            ("s3://b/", "s3://b", ""),
            ("s3://b/models", "s3://b/models", "models/"),
            ("s3://b/models//", "s3://b/models", "models/"),
            ("s3://b/a/b+c d/", "s3://b/a/b+c d", "a/b+c d/"),
        ] {
            let address = address(text);
            assert_eq!((address.to_string().as_str(), address.key_prefix().as_str()), (shown, prefix));
        }
        for text in ["", "b/models", "s3://", "s3:///models", "s3://b//models", "S3://b"] {
            let error = text.parse::<S3Address>().unwrap_err().to_string();
            assert!(error.contains("s3://bucket/prefix"), "{error}");
        }
    }

    #[test]
    fn objects_lie_in_their_folder() {
        let object = address("s3://b/models").folder("0123").object("config.json");
        assert_eq!((object.bucket.as_str(), object.key.as_str()), ("b", "models/0123/config.json"));
        assert_eq!(address("s3://b").object("config.json").key, "config.json");
    }

    #[test]
    fn the_three_kinds_of_source_are_told_apart() {
        let source = |text: &str| text.parse::<CheckpointSource>().unwrap();
        assert_eq!(source("champion"), CheckpointSource::Champion);
        assert_eq!(source("./champion"), CheckpointSource::Folder("./champion".into()));
        assert_eq!(source("s3://"), CheckpointSource::S3("s3://".into()));
        assert_eq!(source("/models/one"), CheckpointSource::Folder("/models/one".into()));
    }

    proptest! {
        #[test]
        fn an_address_reads_as_it_is_written(bucket in "[a-z]{1,8}", prefix in "([a-z +%]{1,5}/){0,3}[a-z]{0,4}") {
            let address = address(&format!("s3://{bucket}/{prefix}"));
            prop_assert_eq!(address.to_string().parse::<S3Address>().unwrap(), address);
        }
    }
}
