//! Walks through scored photos that nobody has rated, a page at a time.

use crate::labels::suggest::{Candidate, ScoreHistogram};
use crate::labels::{LabelledObject, Scale};
use crate::store::backfills::Cursor;
use crate::store::error::StoreError;
use crate::store::pool::Store;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

/// Keys beyond a cursor that are still there and have a score, each with the rows of what is in them now: those
/// that share the etag of the newest. The newest row of each model version counts.
///
/// Each step follows an index: `scores_by_object` to the keys of a page and then to the rows of each, and the
/// primary key of `votes` to whether somebody has rated it. In one step the planner would sort all that is
/// beyond the cursor, since it takes a second key in one bucket for hardly any rows.
const CANDIDATES: &str = "
WITH page AS MATERIALIZED (
    SELECT bucket, object_key FROM scores
    WHERE (bucket, object_key) > ($1, $2) AND status = 'scored' AND deleted_at IS NULL
    ORDER BY bucket, object_key
    LIMIT $3)
SELECT latest.bucket, latest.object_key, coalesce(latest.etag, '') AS etag, latest.score,
    latest.distributions -> 0 AS distribution, latest.model_version,
    (SELECT stddev_pop(version.score) FROM (
        SELECT DISTINCT ON (other.model_version) other.score FROM scores other
        WHERE other.bucket = latest.bucket AND other.object_key = latest.object_key
            AND other.status = 'scored' AND other.etag IS NOT DISTINCT FROM latest.etag
        ORDER BY other.model_version, other.scored_at DESC) version) AS disagreement,
    EXISTS (
        SELECT FROM votes
        WHERE votes.bucket = latest.bucket AND votes.object_key = latest.object_key
            AND votes.etag IN (coalesce(latest.etag, ''), '')) AS rated
FROM (SELECT DISTINCT bucket, object_key FROM page) key
CROSS JOIN LATERAL (
    SELECT bucket, object_key, etag, score, distributions, model_version FROM scores
    WHERE scores.bucket = key.bucket AND scores.object_key = key.object_key
        AND status = 'scored' AND deleted_at IS NULL
    ORDER BY sequencer DESC NULLS LAST, scored_at DESC
    LIMIT 1) latest
ORDER BY latest.bucket, latest.object_key";

/// A table that has grown since its last ANALYZE looks so small beyond the cursor that the planner would rather
/// read all of that and sort it. In this transaction alone, what follows the order of an index goes first; the
/// sorts that remain then look dear enough for compiling the query, which would take longer than running it.
const FOLLOW_INDEXES: &str =
    "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; SET LOCAL jit = off";

/// Photos of one page that nobody has rated.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidatePage {
    pub candidates: Vec<Candidate>,
    /// How many were looked at, rated ones included.
    pub seen: usize,
    /// The last one that was looked at; `None` once there are no more.
    pub last: Option<Cursor>,
}

impl Store {
    /// How many rows have their score nearest to each bin of `scale`. A bin is counted at a time, by
    /// `scores_by_score` alone.
    pub async fn score_histogram(&self, scale: Scale) -> Result<ScoreHistogram, StoreError> {
        let mut histogram = ScoreHistogram::new(scale);
        let last = scale.num_tokens.saturating_sub(1);
        for bin in 0..=last {
            let halfway = |one: usize, other: usize| (scale.bin(one) + scale.bin(other)) / 2.0;
            let above = if bin == 0 { f64::NEG_INFINITY } else { halfway(bin - 1, bin) };
            let upto = if bin == last { f64::INFINITY } else { halfway(bin, bin + 1) };
            let count: i64 = self
                .transaction(async |transaction| {
                    sqlx::query_scalar("SELECT count(*) FROM scores WHERE score > $1 AND score <= $2")
                        .persistent(false)
                        .bind(above)
                        .bind(upto)
                        .fetch_one(&mut **transaction)
                        .await
                })
                .await?;
            histogram.add(scale.bin(bin), u64::try_from(count).unwrap_or_default());
        }
        Ok(histogram)
    }

    /// Up to `limit` scored photos beyond `after`, in key order; of those, the ones without a vote. Fewer where
    /// photos have several rows. Their
    /// standard deviations are over the bins of `scale`.
    pub async fn unlabelled(
        &self,
        scale: &Scale,
        after: Option<&Cursor>,
        limit: u32,
    ) -> Result<CandidatePage, StoreError> {
        let (bucket, key) = after.map_or(("", ""), |cursor| (&cursor.bucket, &cursor.key));
        self.transaction(async |transaction| {
            sqlx::raw_sql(FOLLOW_INDEXES).execute(&mut **transaction).await?;
            let query = sqlx::query(CANDIDATES).persistent(false).bind(bucket).bind(key);
            let rows = query.bind(i64::from(limit)).fetch_all(&mut **transaction).await?;
            let mut page = CandidatePage { candidates: Vec::new(), seen: rows.len(), last: None };
            for row in &rows {
                let candidate = read(row, scale)?;
                page.last = Some(Cursor {
                    bucket: candidate.object.bucket.clone(),
                    key: candidate.object.key.clone(),
                });
                if !row.try_get::<bool, _>("rated")? {
                    page.candidates.push(candidate);
                }
            }
            Ok(page)
        })
        .await
    }
}

fn read(row: &PgRow, scale: &Scale) -> Result<Candidate, sqlx::Error> {
    let distribution: Option<Json<Vec<f64>>> = row.try_get("distribution")?;
    let std = distribution.map_or(0.0, |Json(distribution)| scale.std(&distribution));
    Ok(Candidate {
        object: LabelledObject {
            bucket: row.try_get("bucket")?,
            key: row.try_get("object_key")?,
            etag: row.try_get("etag")?,
        },
        score: row.try_get("score")?,
        std,
        disagreement: row.try_get::<Option<f64>, _>("disagreement")?.unwrap_or_default(),
        model_version: row.try_get("model_version")?,
    })
}
