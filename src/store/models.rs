//! Reads and writes of `model_versions`: which checkpoints are published, and what each is for.

use crate::store::error::StoreError;
use crate::store::pool::Store;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use std::fmt;
use std::str::FromStr;
use time::OffsetDateTime;

/// What a version is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionStatus {
    /// Published, and nothing decided yet.
    Candidate,
    /// What workers score with; at most one.
    Champion,
    /// A former champion.
    Retired,
    /// Judged not to be good enough.
    Rejected,
}

impl VersionStatus {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Champion => "champion",
            Self::Retired => "retired",
            Self::Rejected => "rejected",
        }
    }
}

impl fmt::Display for VersionStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A status that this release does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no status: expected candidate, champion, retired or rejected")]
pub struct UnknownVersionStatus(pub String);

impl FromStr for VersionStatus {
    type Err = UnknownVersionStatus;

    fn from_str(text: &str) -> Result<Self, UnknownVersionStatus> {
        [Self::Candidate, Self::Champion, Self::Retired, Self::Rejected]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownVersionStatus(text.to_owned()))
    }
}

/// A published checkpoint that is to have a row.
#[derive(Clone, Debug, PartialEq)]
pub struct NewVersion {
    /// `sha256:` and the first twelve digits of `digest`.
    pub version: String,
    /// `sha256:` and 64 digits, of the checkpoint's files.
    pub digest: String,
    pub parent: Option<String>,
    /// `s3://bucket/prefix` of the files and their manifest.
    pub uri: String,
    /// 64 digits, of the manifest's own bytes.
    pub manifest_sha256: String,
    pub dataset: Option<String>,
    pub metrics: Option<Value>,
    pub code_version: String,
    pub created_at: OffsetDateTime,
}

/// A row of `model_versions`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegisteredVersion {
    /// `sha256:` and twelve digits; rows and outputs carry it followed by prompt and dtype.
    pub version: String,
    pub digest: String,
    pub status: VersionStatus,
    pub parent: Option<String>,
    pub uri: String,
    pub manifest_sha256: String,
    pub dataset: Option<String>,
    pub metrics: Option<Value>,
    pub code_version: String,
    /// The share of keys, 0 to 1, that it scores in the champion's place.
    pub canary_share: f64,
    /// The share of items, 0 to 1, that it scores beside the champion without publishing.
    pub shadow_share: f64,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub registered_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub status_since: OffsetDateTime,
}

impl RegisteredVersion {
    pub(super) const COLUMNS: &str = "version, digest, status, parent, uri, manifest_sha256, dataset, metrics, \
                                      code_version, canary_share, shadow_share, created_at, registered_at, \
                                      status_since";

    pub(super) fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let status: String = row.try_get("status")?;
        Ok(Self {
            version: row.try_get("version")?,
            digest: row.try_get("digest")?,
            status: status.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            parent: row.try_get("parent")?,
            uri: row.try_get("uri")?,
            manifest_sha256: row.try_get("manifest_sha256")?,
            dataset: row.try_get("dataset")?,
            metrics: row.try_get("metrics")?,
            code_version: row.try_get("code_version")?,
            canary_share: row.try_get("canary_share")?,
            shadow_share: row.try_get("shadow_share")?,
            created_at: row.try_get("created_at")?,
            registered_at: row.try_get("registered_at")?,
            status_since: row.try_get("status_since")?,
        })
    }

    /// Whether a score that carries `model_version` was made by this version.
    pub fn made(&self, model_version: &str) -> bool {
        model_version.split('+').next() == Some(self.version.as_str())
    }
}

/// Which versions workers load just now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Serving {
    pub champion: Option<RegisteredVersion>,
    pub canary: Option<RegisteredVersion>,
    /// In the order of their versions.
    pub shadows: Vec<RegisteredVersion>,
}

/// Why a version cannot be what it was asked to be.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}: no such version is registered; `roc4mllm models list` shows them")]
    Unknown(String),
    #[error("{0}: several registered versions begin like this; give more digits")]
    Ambiguous(String),
    #[error("{0}: it was rejected; promote it with --force if it is to serve all the same")]
    Rejected(String),
    /// Another promotion came first.
    #[error(
        "{version}: the champion is {found} and no longer {expected}, which it was judged against; judge it anew",
        found = .found.as_deref().unwrap_or("none"),
        expected = .expected.as_deref().unwrap_or("none")
    )]
    Overtaken { version: String, expected: Option<String>, found: Option<String> },
    #[error("there is no earlier champion to return to; promote a version instead")]
    NoPredecessor,
    /// What only a candidate can be, or what a champion cannot be.
    #[error("{version}: it is {status}, and only a candidate can be {wanted}")]
    NotACandidate { version: String, status: VersionStatus, wanted: &'static str },
    #[error("{version}: {share} is no share; give a number from 0 to 1")]
    Share { version: String, share: f64 },
    /// Two checkpoints whose digests begin alike.
    #[error(
        "{version}: a version of that name with another digest ({registered}) is registered; the checkpoint was not"
    )]
    Collision { version: String, registered: String },
}

/// A second publication of the same files leaves status, shares and times as they are.
const REGISTER: &str = "
INSERT INTO model_versions
    (version, digest, parent, uri, manifest_sha256, dataset, metrics, code_version, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (version) DO UPDATE SET
    parent = excluded.parent, uri = excluded.uri, manifest_sha256 = excluded.manifest_sha256,
    dataset = excluded.dataset, metrics = excluded.metrics, code_version = excluded.code_version,
    created_at = excluded.created_at
WHERE model_versions.digest = excluded.digest";

impl Store {
    /// Enters a published checkpoint as a candidate. One that has a row keeps its status, and the row
    /// then says of place and manifest what `new` says.
    ///
    /// # Errors
    /// [`VersionError::Collision`], and those of the store.
    pub async fn register_version(&self, new: &NewVersion) -> Result<RegisteredVersion, VersionError> {
        let row = self
            .transaction(async |transaction| {
                let query = sqlx::query(REGISTER).persistent(false).bind(&new.version).bind(&new.digest);
                let query = query.bind(&new.parent).bind(&new.uri).bind(&new.manifest_sha256);
                let query = query.bind(&new.dataset).bind(&new.metrics).bind(&new.code_version);
                query.bind(new.created_at).execute(&mut **transaction).await?;
                read_version(transaction, &new.version).await
            })
            .await?;
        match row {
            Some(row) if row.digest == new.digest => Ok(row),
            Some(row) => {
                Err(VersionError::Collision { version: new.version.clone(), registered: row.digest })
            }
            None => Err(VersionError::Unknown(new.version.clone())),
        }
    }

    /// Every version: the champion first, then from the newest to the oldest.
    pub async fn versions(&self) -> Result<Vec<RegisteredVersion>, StoreError> {
        let statement = format!(
            "SELECT {} FROM model_versions ORDER BY status = 'champion' DESC, created_at DESC, version",
            RegisteredVersion::COLUMNS
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            query.fetch_all(&mut **transaction).await?.iter().map(RegisteredVersion::read).collect()
        })
        .await
    }

    /// The version that `text` names: as `models list` shows it, as rows and outputs carry it, by its
    /// digest, or by the first digits of one, with or without `sha256:`.
    ///
    /// # Errors
    /// [`VersionError::Unknown`], [`VersionError::Ambiguous`], and those of the store.
    pub async fn find_version(&self, text: &str) -> Result<RegisteredVersion, VersionError> {
        let unknown = || VersionError::Unknown(text.to_owned());
        let beginning = digest_beginning(text).ok_or_else(unknown)?;
        let statement = format!(
            "SELECT {} FROM model_versions WHERE starts_with(digest, $1) LIMIT 2",
            RegisteredVersion::COLUMNS
        );
        let found: Vec<RegisteredVersion> = self
            .transaction(async |transaction| {
                let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(beginning);
                query.fetch_all(&mut **transaction).await?.iter().map(RegisteredVersion::read).collect()
            })
            .await?;
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(version), None) => Ok(version),
            (Some(_), Some(_)) => Err(VersionError::Ambiguous(text.to_owned())),
            (None, _) => Err(unknown()),
        }
    }

    /// The version that workers score with; `None` before the first promotion.
    pub async fn champion(&self) -> Result<Option<RegisteredVersion>, StoreError> {
        Ok(self.serving().await?.champion)
    }

    /// Champion, canary and shadows, as of one moment.
    pub async fn serving(&self) -> Result<Serving, StoreError> {
        let statement = format!(
            "SELECT {} FROM model_versions \
             WHERE status = 'champion' OR canary_share > 0 OR shadow_share > 0 ORDER BY version",
            RegisteredVersion::COLUMNS
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            let mut serving = Serving::default();
            for row in query.fetch_all(&mut **transaction).await? {
                let version = RegisteredVersion::read(&row)?;
                if version.status == VersionStatus::Champion {
                    serving.champion = Some(version);
                    continue;
                }
                if version.shadow_share > 0.0 {
                    serving.shadows.push(version.clone());
                }
                if version.canary_share > 0.0 {
                    serving.canary = Some(version);
                }
            }
            Ok(serving)
        })
        .await
    }
}

pub(super) async fn read_version(
    connection: &mut PgConnection,
    version: &str,
) -> Result<Option<RegisteredVersion>, sqlx::Error> {
    let statement = format!("SELECT {} FROM model_versions WHERE version = $1", RegisteredVersion::COLUMNS);
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(version);
    query.fetch_optional(connection).await?.as_ref().map(RegisteredVersion::read).transpose()
}

/// What the digest of the version that `text` names begins with; `None` where it can name none.
fn digest_beginning(text: &str) -> Option<String> {
    const FEWEST_DIGITS: usize = 4;
    let name = text.split('+').next().unwrap_or_default();
    let digits = name.strip_prefix("sha256:").unwrap_or(name).to_ascii_lowercase();
    let possible = (FEWEST_DIGITS..=64).contains(&digits.len());
    (possible && digits.bytes().all(|digit| digit.is_ascii_hexdigit())).then(|| format!("sha256:{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_goes_by_every_name_that_it_is_shown_under() {
        let digits = "0123456789abcdef".repeat(4);
        for text in [
            "sha256:0123456789ab",
            "0123456789ab",
            "0123456789AB",
            "sha256:0123456789ab+assess+f32",
            "sha256:0123456789ab+text-01234567+bf16",
        ] {
            assert_eq!(digest_beginning(text).as_deref(), Some("sha256:0123456789ab"), "{text}");
        }
        assert_eq!(digest_beginning(&digits), Some(format!("sha256:{digits}")));
        assert_eq!(digest_beginning("0123").as_deref(), Some("sha256:0123"));
        for text in ["", "012", "sha256:", "champion", "0123%", "+assess", &format!("{digits}0")] {
            assert_eq!(digest_beginning(text), None, "{text}");
        }
    }

    #[test]
    fn a_status_is_the_same_word_everywhere() {
        for word in ["candidate", "champion", "retired", "rejected"] {
            let status: VersionStatus = word.parse().unwrap();
            assert_eq!(status.to_string(), word);
            assert_eq!(serde_json::to_string(&status).unwrap(), format!("\"{word}\""));
        }
        assert!("best".parse::<VersionStatus>().is_err());
    }
}
