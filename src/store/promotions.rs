//! Changes of what registered versions are for, each one transaction under one lock: of two at once,
//! the second sees what the first has made of the table.

use crate::store::error::StoreError;
use crate::store::models::{RegisteredVersion, VersionError, VersionStatus, read_version};
use crate::store::pool::Store;
use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{Postgres, Row, Transaction};
use time::OffsetDateTime;

/// Lets readers through and makes writers wait; held to the end of the transaction.
const LOCK: &str = "LOCK TABLE model_versions IN SHARE ROW EXCLUSIVE MODE";

const RETIRE: &str = "
UPDATE model_versions SET status = 'retired', status_since = clock_timestamp() WHERE status = 'champion'";

const CROWN: &str = "
UPDATE model_versions
SET status = 'champion', canary_share = 0, shadow_share = 0, status_since = clock_timestamp()
WHERE version = $1";

const RECORD: &str = "INSERT INTO model_promotions (version, previous, kind) VALUES ($1, $2, $3)";

const LAST: &str = "SELECT id, version FROM model_promotions ORDER BY id DESC LIMIT 1";

/// Champions before the present one, from the last to the first, without what rollbacks took back.
const BEFORE: &str = "
WITH RECURSIVE line AS (
    SELECT id, version, previous, 0 AS age FROM model_promotions
    WHERE id = (SELECT max(id) FROM model_promotions)
    UNION ALL
    SELECT earlier.id, earlier.version, earlier.previous, line.age + 1
    FROM model_promotions earlier JOIN line ON earlier.id = line.previous
)
SELECT line.version, line.previous
FROM line JOIN model_versions USING (version)
WHERE line.age > 0 AND model_versions.status NOT IN ('rejected', 'champion')
ORDER BY line.age LIMIT 1";

const REJECT: &str = "
UPDATE model_versions
SET status = 'rejected', canary_share = 0, shadow_share = 0, status_since = clock_timestamp()
WHERE version = $1 AND status IN ('candidate', 'retired')";

const HISTORY: &str = "SELECT version, kind, promoted_at FROM model_promotions ORDER BY id";

/// What a promotion is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The champion must still be this one (`Some(None)`: there must be none yet).
    pub over: Option<Option<String>>,
    /// Also where the version was rejected.
    pub even_rejected: bool,
}

/// A change of the champion.
#[derive(Clone, Debug, PartialEq)]
pub struct Promotion {
    pub champion: RegisteredVersion,
    /// The champion until then; `None` for the first, and where nothing changed.
    pub retired: Option<String>,
}

/// One entry of the list of champions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reign {
    pub version: String,
    /// `promote` or `rollback`.
    pub kind: String,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

impl Store {
    /// Makes `version` the champion and retires the one before it, which a rollback returns to. A
    /// version that is the champion stays it, and nothing is recorded.
    ///
    /// # Errors
    /// [`VersionError`]: unknown, rejected, or another champion than `terms` say.
    pub async fn promote_version(&self, version: &str, terms: &Terms) -> Result<Promotion, VersionError> {
        self.change(async |transaction| {
            let Some(row) = read_version(transaction, version).await? else {
                return Ok(Err(VersionError::Unknown(version.to_owned())));
            };
            let champion = champion_of(transaction).await?;
            if champion.as_deref() == Some(version) {
                return Ok(Ok(Promotion { champion: row, retired: None }));
            }
            if let Some(expected) = &terms.over
                && *expected != champion
            {
                let (version, expected) = (version.to_owned(), expected.clone());
                return Ok(Err(VersionError::Overtaken { version, expected, found: champion }));
            }
            if row.status == VersionStatus::Rejected && !terms.even_rejected {
                return Ok(Err(VersionError::Rejected(version.to_owned())));
            }
            let last = sqlx::query(LAST).persistent(false).fetch_optional(&mut **transaction).await?;
            let previous = last.map(|last| last.try_get("id")).transpose()?;
            crown(transaction, version, previous, "promote").await.map(|champion_row| {
                champion_row
                    .map(|row| Promotion { champion: row, retired: champion })
                    .ok_or_else(|| VersionError::Unknown(version.to_owned()))
            })
        })
        .await
    }

    /// Makes the champion before the present one the champion again, and retires the present one. A
    /// second rollback goes one further back. Versions that were rejected since are passed over.
    ///
    /// # Errors
    /// [`VersionError::NoPredecessor`]; [`VersionError::Overtaken`] where `from` is given and is not
    /// the champion.
    pub async fn roll_back(&self, from: Option<&str>) -> Result<Promotion, VersionError> {
        self.change(async |transaction| {
            let champion = champion_of(transaction).await?;
            if let Some(from) = from
                && champion.as_deref() != Some(from)
            {
                let (version, expected) = (from.to_owned(), Some(from.to_owned()));
                return Ok(Err(VersionError::Overtaken { version, expected, found: champion }));
            }
            let before = sqlx::query(BEFORE).persistent(false).fetch_optional(&mut **transaction).await?;
            let Some(before) = before else { return Ok(Err(VersionError::NoPredecessor)) };
            let version: String = before.try_get("version")?;
            let previous: Option<i64> = before.try_get("previous")?;
            crown(transaction, &version, previous, "rollback").await.map(|row| {
                row.map(|row| Promotion { champion: row, retired: champion })
                    .ok_or(VersionError::NoPredecessor)
            })
        })
        .await
    }

    /// Notes that `version` is not good enough, and ends its trials. The champion cannot be rejected:
    /// it is rolled back first.
    ///
    /// # Errors
    /// [`VersionError`]: unknown, or the champion.
    pub async fn reject_version(&self, version: &str) -> Result<RegisteredVersion, VersionError> {
        self.change(async |transaction| {
            sqlx::query(REJECT).persistent(false).bind(version).execute(&mut **transaction).await?;
            Ok(match read_version(transaction, version).await? {
                None => Err(VersionError::Unknown(version.to_owned())),
                Some(row) if row.status == VersionStatus::Rejected => Ok(row),
                Some(row) => Err(not_a_candidate(row, "rejected")),
            })
        })
        .await
    }

    /// Has a candidate score this share of keys, 0 to 1, in the champion's place. There is one canary at
    /// most: any other ceases to be it. A share of 0 ends it.
    ///
    /// # Errors
    /// [`VersionError`]: unknown, no candidate, or no share.
    pub async fn set_canary(&self, version: &str, share: f64) -> Result<RegisteredVersion, VersionError> {
        const END_OTHERS: &str =
            "UPDATE model_versions SET canary_share = 0 WHERE version <> $1 AND canary_share > 0";
        const SET: &str = "UPDATE model_versions SET canary_share = $2 WHERE version = $1";
        self.set_share(version, share, "a canary", Some(END_OTHERS).filter(|_| share > 0.0), SET).await
    }

    /// Has a candidate score this share of items, 0 to 1, beside the champion without publishing. There
    /// may be several. A share of 0 ends it.
    ///
    /// # Errors
    /// As [`Self::set_canary`].
    pub async fn set_shadow(&self, version: &str, share: f64) -> Result<RegisteredVersion, VersionError> {
        const SET: &str = "UPDATE model_versions SET shadow_share = $2 WHERE version = $1";
        self.set_share(version, share, "a shadow", None, SET).await
    }

    /// Every change of the champion, the first one first.
    pub async fn champion_history(&self) -> Result<Vec<Reign>, StoreError> {
        self.transaction(async |transaction| {
            let rows = sqlx::query(HISTORY).persistent(false).fetch_all(&mut **transaction).await?;
            let read = |row: &sqlx::postgres::PgRow| {
                Ok(Reign {
                    version: row.try_get("version")?,
                    kind: row.try_get("kind")?,
                    since: row.try_get("promoted_at")?,
                })
            };
            rows.iter().map(read).collect()
        })
        .await
    }

    async fn set_share(
        &self,
        version: &str,
        share: f64,
        wanted: &'static str,
        first: Option<&'static str>,
        set: &'static str,
    ) -> Result<RegisteredVersion, VersionError> {
        if !(0.0..=1.0).contains(&share) {
            return Err(VersionError::Share { version: version.to_owned(), share });
        }
        self.change(async |transaction| {
            match read_version(transaction, version).await? {
                None => return Ok(Err(VersionError::Unknown(version.to_owned()))),
                Some(row) if row.status != VersionStatus::Candidate => {
                    return Ok(Err(not_a_candidate(row, wanted)));
                }
                Some(_) => {}
            }
            if let Some(statement) = first {
                sqlx::query(statement).persistent(false).bind(version).execute(&mut **transaction).await?;
            }
            let query = sqlx::query(set).persistent(false).bind(version).bind(share);
            query.execute(&mut **transaction).await?;
            let row = read_version(transaction, version).await?;
            Ok(row.ok_or_else(|| VersionError::Unknown(version.to_owned())))
        })
        .await
    }

    /// One transaction under the lock. A refusal is a value of it: nothing was written before.
    async fn change<T>(
        &self,
        work: impl AsyncFnOnce(&mut Transaction<'_, Postgres>) -> Result<Result<T, VersionError>, sqlx::Error>,
    ) -> Result<T, VersionError> {
        self.transaction(async |transaction| {
            sqlx::raw_sql(LOCK).execute(&mut **transaction).await?;
            work(transaction).await
        })
        .await?
    }
}

fn not_a_candidate(row: RegisteredVersion, wanted: &'static str) -> VersionError {
    VersionError::NotACandidate { version: row.version, status: row.status, wanted }
}

async fn champion_of(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    const CHAMPION: &str = "SELECT version FROM model_versions WHERE status = 'champion'";
    let row = sqlx::query(CHAMPION).persistent(false).fetch_optional(connection).await?;
    row.map(|row| row.try_get("version")).transpose()
}

async fn crown(
    transaction: &mut Transaction<'_, Postgres>,
    version: &str,
    previous: Option<i64>,
    kind: &str,
) -> Result<Option<RegisteredVersion>, sqlx::Error> {
    sqlx::query(RETIRE).persistent(false).execute(&mut **transaction).await?;
    sqlx::query(CROWN).persistent(false).bind(version).execute(&mut **transaction).await?;
    let record = sqlx::query(RECORD).persistent(false).bind(version).bind(previous).bind(kind);
    record.execute(&mut **transaction).await?;
    read_version(transaction, version).await
}
