//! What the worker's page shows of `scores`: totals, distributions, and the rows at either end.

use crate::fault::ItemError;
use crate::labels::LabelledObject;
use crate::object::{ObjectRef, ScoreId};
use crate::score::ItemStatus;
use crate::store::error::StoreError;
use crate::store::pool::Store;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Row};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use uuid::Uuid;

/// The planner's own estimate, which costs nothing; -1 before the first analysis.
const ESTIMATE: &str = "SELECT reltuples::double precision FROM pg_class WHERE oid = 'scores'::regclass";

/// One pass over the table. `$1` is the share of its blocks that is read, in percent; with 100 the counts are
/// exact. `$2` and `$3` are the lowest and the highest score, `$4` the number of bins between them; scores
/// outside count in the nearest bin.
const TALLY: &str = "
SELECT status, model_version, deleted_at IS NOT NULL AS removed,
    CASE WHEN status IN ('rejected', 'dead') THEN error ->> 'code' END AS code,
    CASE WHEN status = 'scored' THEN
        least(greatest(width_bucket(score, $2, $3, $4), 1), $4)
    END AS bin,
    count(*) AS rows, sum(score) AS sum
FROM scores TABLESAMPLE SYSTEM ($1)
GROUP BY 1, 2, 3, 4, 5";

const SHOWN: &str =
    "id, bucket, object_key, score, distributions -> 0 AS distribution, model_version, scored_at";

/// Rows of one object under several model versions are adjacent in no order, so more are read than shown.
const SPARE: u32 = 4;

/// How the scores of one model version are spread.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VersionTally {
    /// Rows, of removed objects too.
    pub scored: u64,
    /// The sum of their scores.
    pub sum: f64,
    /// How many have their score in each bin.
    pub bins: Vec<u64>,
}

/// Counts of `scores` as of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Rows by status; a status without rows is missing.
    pub statuses: BTreeMap<&'static str, u64>,
    /// Scored rows whose object has been removed since.
    pub removed: u64,
    /// Rejected and dead rows by error code.
    pub errors: BTreeMap<String, u64>,
    pub versions: BTreeMap<String, VersionTally>,
    /// Whether a part of the table was counted and the counts scaled to all of it.
    pub sampled: bool,
}

/// A scored row, as far as the page shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownScore {
    pub id: ScoreId,
    pub bucket: String,
    pub key: String,
    pub score: f64,
    /// The probability of every bin of the first score.
    pub distribution: Vec<f64>,
    pub model_version: String,
    pub scored_at: OffsetDateTime,
}

/// A row that ended as a dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownFailure {
    pub id: ScoreId,
    /// `None` where the record named no object; so is `key`.
    pub bucket: Option<String>,
    pub key: Option<String>,
    pub status: ItemStatus,
    pub error: Option<ItemError>,
    pub scored_at: OffsetDateTime,
}

/// Which end of the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Latest,
    Best,
    Worst,
}

impl Store {
    /// Counts every row of `scores`, or scales up from a part that holds about `exact_upto` rows where the
    /// table has more.
    pub async fn tally(&self, range: (f64, f64), bins: usize, exact_upto: u64) -> Result<Tally, StoreError> {
        let (low, high) = range;
        self.transaction(async |transaction| {
            let estimate: f64 =
                sqlx::query_scalar(ESTIMATE).persistent(false).fetch_one(&mut **transaction).await?;
            let percent = (exact_upto as f64 / estimate.max(1.0) * 100.0).min(100.0);
            let query = sqlx::query(TALLY).persistent(false).bind(percent as f32);
            let query = query.bind(low).bind(high).bind(i32::try_from(bins).unwrap_or(i32::MAX));
            let mut tally = Tally { sampled: percent < 100.0, ..Tally::default() };
            for row in query.fetch_all(&mut **transaction).await? {
                tally.add(&row, bins, 100.0 / f64::from(percent as f32))?;
            }
            Ok(tally)
        })
        .await
    }

    /// Up to `limit` scored rows of objects that are still there, one an object.
    pub async fn shown_scores(&self, order: Order, limit: u32) -> Result<Vec<ShownScore>, StoreError> {
        let by = match order {
            Order::Latest => "scored_at DESC",
            Order::Best => "score DESC",
            Order::Worst => "score",
        };
        let statement = format!(
            "SELECT {SHOWN} FROM scores \
             WHERE status = 'scored' AND score IS NOT NULL AND deleted_at IS NULL ORDER BY {by} LIMIT $1"
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            let rows = query.bind(i64::from(limit * SPARE)).fetch_all(&mut **transaction).await?;
            let mut shown: Vec<ShownScore> = Vec::new();
            for row in &rows {
                let score = read_score(row)?;
                let same = |other: &ShownScore| other.bucket == score.bucket && other.key == score.key;
                if shown.len() < limit as usize && !shown.iter().any(same) {
                    shown.push(score);
                }
            }
            Ok(shown)
        })
        .await
    }

    /// Up to `limit` rejected and dead rows, the latest first.
    pub async fn shown_failures(&self, limit: u32) -> Result<Vec<ShownFailure>, StoreError> {
        const FAILURES: &str = "
            SELECT id, bucket, object_key, status, error, scored_at FROM scores
            WHERE status IN ('rejected', 'dead') ORDER BY scored_at DESC LIMIT $1";
        self.transaction(async |transaction| {
            let query = sqlx::query(FAILURES).persistent(false).bind(i64::from(limit));
            query.fetch_all(&mut **transaction).await?.iter().map(read_failure).collect()
        })
        .await
    }

    /// What a scored row was made of, pinned; `None` without such a row, or once its object was removed.
    pub async fn scored_object(&self, id: ScoreId) -> Result<Option<ObjectRef>, StoreError> {
        const OBJECT: &str = "
            SELECT bucket, object_key, version_id, etag FROM scores
            WHERE id = $1 AND status = 'scored' AND deleted_at IS NULL";
        self.transaction(async |transaction| {
            let query = sqlx::query(OBJECT).persistent(false).bind(id.0);
            let Some(row) = query.fetch_optional(&mut **transaction).await? else { return Ok(None) };
            let key: Option<String> = row.try_get("object_key")?;
            let Some((bucket, key)) = row.try_get::<Option<String>, _>("bucket")?.zip(key) else {
                return Ok(None);
            };
            Ok(Some(ObjectRef {
                version_id: row.try_get("version_id")?,
                etag: row.try_get("etag")?,
                ..ObjectRef::new(bucket, key)
            }))
        })
        .await
    }

    /// The newest scored row of each object, in order; `None` for an object without one.
    pub async fn scored_rows(&self, objects: &[&LabelledObject]) -> Result<Vec<Option<ScoreId>>, StoreError> {
        const ROWS: &str = "
            SELECT wanted.place, latest.id
            FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
                AS wanted (bucket, object_key, etag, place)
            CROSS JOIN LATERAL (
                SELECT id FROM scores
                WHERE scores.bucket = wanted.bucket AND scores.object_key = wanted.object_key
                    AND status = 'scored' AND deleted_at IS NULL
                    AND coalesce(scores.etag, '') = wanted.etag
                ORDER BY scored_at DESC LIMIT 1) latest";
        let column = |of: fn(&LabelledObject) -> &String| -> Vec<String> {
            objects.iter().map(|object| of(object).clone()).collect()
        };
        let (buckets, keys, etags) =
            (column(|object| &object.bucket), column(|object| &object.key), column(|object| &object.etag));
        self.transaction(async |transaction| {
            let query = sqlx::query_as(ROWS).persistent(false).bind(buckets).bind(keys).bind(etags);
            let rows: Vec<(i64, Uuid)> = query.fetch_all(&mut **transaction).await?;
            let mut ids = vec![None; objects.len()];
            for (place, id) in rows {
                let index = usize::try_from(place - 1).unwrap_or(usize::MAX);
                if let Some(found) = ids.get_mut(index) {
                    *found = Some(ScoreId(id));
                }
            }
            Ok(ids)
        })
        .await
    }
}

impl Tally {
    fn add(&mut self, row: &PgRow, bins: usize, factor: f64) -> Result<(), sqlx::Error> {
        let rows: i64 = row.try_get("rows")?;
        let scaled = |count: f64| (count * factor).round() as u64;
        let rows = scaled(rows as f64);
        let status: String = row.try_get("status")?;
        let status: ItemStatus = status.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        *self.statuses.entry(status.as_str()).or_default() += rows;
        if let Some(code) = row.try_get::<Option<String>, _>("code")? {
            *self.errors.entry(code).or_default() += rows;
        }
        let Some(bin) = row.try_get::<Option<i32>, _>("bin")? else { return Ok(()) };
        if row.try_get("removed")? {
            self.removed += rows;
        }
        let version = self.versions.entry(row.try_get("model_version")?).or_default();
        version.bins.resize(bins, 0);
        version.scored += rows;
        version.sum += row.try_get::<Option<f64>, _>("sum")?.unwrap_or_default() * factor;
        let bin = usize::try_from(bin - 1).unwrap_or_default().min(bins.saturating_sub(1));
        version.bins[bin] += rows;
        Ok(())
    }
}

fn read_score(row: &PgRow) -> Result<ShownScore, sqlx::Error> {
    let distribution: Option<Json<Vec<f64>>> = row.try_get("distribution")?;
    Ok(ShownScore {
        id: ScoreId(row.try_get("id")?),
        bucket: row.try_get::<Option<String>, _>("bucket")?.unwrap_or_default(),
        key: row.try_get::<Option<String>, _>("object_key")?.unwrap_or_default(),
        score: row.try_get("score")?,
        distribution: distribution.map(|Json(distribution)| distribution).unwrap_or_default(),
        model_version: row.try_get("model_version")?,
        scored_at: row.try_get("scored_at")?,
    })
}

fn read_failure(row: &PgRow) -> Result<ShownFailure, sqlx::Error> {
    let status: String = row.try_get("status")?;
    let error: Option<Json<ItemError>> = row.try_get("error")?;
    Ok(ShownFailure {
        id: ScoreId(row.try_get("id")?),
        bucket: row.try_get("bucket")?,
        key: row.try_get("object_key")?,
        status: status.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        error: error.map(|Json(error)| error),
        scored_at: row.try_get("scored_at")?,
    })
}
