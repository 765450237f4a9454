//! The manifest: what belongs to a published version, and where it comes from.

use crate::model::checkpoint::{Digest, FileDigest, hexadecimal, short_name};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::path::{Component, Path};
use time::OffsetDateTime;

/// The object beside a version's files that makes them one. It is written last.
pub const MANIFEST_NAME: &str = "manifest.json";

/// A published version, whole: what the object `manifest.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this description; a reader refuses what it does not know.
    pub format: u32,
    /// The beginning of `digest`, which names the version everywhere.
    pub version: String,
    /// [`Digest::version`] of the files below.
    pub digest: String,
    /// Sorted by name; the manifest itself is not among them.
    pub files: Vec<FileDigest>,
    #[serde(flatten)]
    pub origin: Origin,
    /// The release that wrote this.
    pub code_version: String,
    /// When it was published, in whole seconds of UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// How a version came to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The version that it was trained from.
    pub parent: Option<String>,
    /// The digest of what it was trained on.
    pub dataset: Option<String>,
    /// What was measured of it, by name.
    pub metrics: Option<Map<String, Value>>,
}

/// A manifest that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("it is no manifest ({0})")]
    Malformed(String),
    #[error("it has format {found}, and this release reads {known}; upgrade roc4mllm", known = Manifest::FORMAT)]
    Format { found: u32 },
    #[error("it lists a file {0:?}, which is no plain file name")]
    Name(String),
    #[error("it lists {0:?} twice")]
    Twice(String),
    #[error("its files have the digest {found}, and it says {stated}")]
    Digest { stated: String, found: String },
}

impl Manifest {
    /// The format that this release writes.
    pub const FORMAT: u32 = 1;
    /// The most bytes that a manifest is read with.
    pub const SIZE_LIMIT: u64 = 16 << 20;

    /// Of a checkpoint with these files, published now by this release.
    pub fn new(digest: Digest, origin: Origin, created_at: OffsetDateTime) -> Self {
        Self {
            format: Self::FORMAT,
            version: digest.name(),
            digest: digest.version,
            files: digest.files,
            origin,
            code_version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: created_at.truncate_to_second().to_offset(time::UtcOffset::UTC),
        }
    }

    /// As it is stored: equal manifests have equal bytes.
    ///
    /// # Errors
    /// When a metric cannot be written as JSON.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a stored manifest, and checks it against itself.
    ///
    /// # Errors
    /// [`ManifestError`] when it is another format, damaged, or would lead out of its folder.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let malformed = |error: serde_json::Error| ManifestError::Malformed(error.to_string());
        let Head { format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format != Self::FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        let mut manifest: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        manifest.check()?;
        manifest.files.sort();
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        for file in &self.files {
            if !is_plain_file_name(&file.name) || file.name == MANIFEST_NAME {
                return Err(ManifestError::Name(file.name.clone()));
            }
        }
        let digest = Digest::of(self.files.clone());
        if let Some(pair) = digest.files.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(ManifestError::Twice(pair[0].name.clone()));
        }
        if digest.version != self.digest || short_name(&self.digest) != self.version {
            return Err(ManifestError::Digest { stated: self.digest.clone(), found: digest.version });
        }
        Ok(())
    }

    /// The digits of `version`, which name the version's folders.
    pub fn folder_name(&self) -> &str {
        self.version.strip_prefix("sha256:").unwrap_or(&self.version)
    }

    /// Of all files together, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// 64 hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// A name that can't lead out of its folder, on this system or as a key.
pub fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    plain && !name.ends_with('/') && !name.contains(['\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn file(name: &str, bytes: u64) -> FileDigest {
        FileDigest { name: name.into(), bytes, sha256: sha256(name.as_bytes()) }
    }

    fn manifest() -> Manifest {
        let metrics = json!({"srcc": 0.8, "by_bin": [1, 2.5]});
        let origin = Origin {
            parent: Some("sha256:0123456789ab".into()),
            dataset: Some("sha256:ff".into()),
            metrics: metrics.as_object().cloned(),
        };
        let files = vec![file("model.safetensors", 10), file("config.json", 3)];
        Manifest::new(Digest::of(files), origin, OffsetDateTime::UNIX_EPOCH)
    }

    fn changed(change: impl FnOnce(&mut Value)) -> Result<Manifest, ManifestError> {
        let mut value = serde_json::to_value(manifest()).unwrap();
        change(&mut value);
        Manifest::decode(value.to_string().as_bytes())
    }

    #[test]
    fn it_reads_as_it_was_written() {
        let manifest = manifest();
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        assert_eq!(manifest.encode().unwrap(), bytes);
        assert_eq!(manifest.version.len(), "sha256:".len() + 12);
        assert!(manifest.digest.starts_with(&manifest.version));
        assert_eq!(manifest.files[0].name, "config.json", "sorted");
        assert_eq!(manifest.total_bytes(), 13);
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["files"][1]["size"], 10);
        assert_eq!(value["parent"], "sha256:0123456789ab");
        assert_eq!(value["created_at"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(matches!(Manifest::decode(b"{"), Err(ManifestError::Malformed(_))));
        assert!(matches!(Manifest::decode(b"[]"), Err(ManifestError::Malformed(_))));
        let newer = changed(|value| value["format"] = json!(2));
        assert_eq!(newer, Err(ManifestError::Format { found: 2 }));
        for (pointer, wrong) in [
            ("/digest", json!("sha256:00")),
            ("/version", json!("sha256:000000000000")),
            ("/files/0/size", json!(4)),
            ("/files/0/sha256", json!("0")),
            ("/files", json!([])),
        ] {
            let result = changed(|value| *value.pointer_mut(pointer).unwrap() = wrong);
            assert!(matches!(result, Err(ManifestError::Digest { .. })), "{pointer}: {result:?}");
        }
    }

    #[test]
    fn files_stay_in_their_folder() {
        for name in ["../x", "/etc/passwd", "a/b", "..", ".", "", "a/", "a\\b", "manifest.json"] {
            let result = changed(|value| value["files"][0]["name"] = json!(name));
            assert_eq!(result, Err(ManifestError::Name(name.into())));
        }
        let twice = changed(|value| value["files"][1]["name"] = json!("config.json"));
        assert_eq!(twice, Err(ManifestError::Twice("config.json".into())));
    }

    proptest! {
        #[test]
        fn any_damage_to_the_bytes_is_noticed_or_harmless(position in 0_usize..600, byte: u8) {
            let bytes = manifest().encode().unwrap();
            let mut damaged = bytes.clone();
            let position = position % damaged.len();
            damaged[position] = byte;
            if let Ok(read) = Manifest::decode(&damaged) {
                prop_assert_eq!(read.files, manifest().files);
            }
        }

        #[test]
        fn the_version_depends_on_the_files_and_not_on_their_order(
            names in proptest::collection::btree_set("[a-z]{1,6}", 1..6), turn in 0_usize..6,
        ) {
            let mut files: Vec<_> = names.iter().map(|name| file(name, name.len() as u64)).collect();
            let first = Digest::of(files.clone());
            let middle = turn % files.len();
            files.rotate_left(middle);
            prop_assert_eq!(Digest::of(files.clone()), first.clone());
            files[0].bytes += 1;
            prop_assert_ne!(Digest::of(files).version, first.version);
        }
    }
}
