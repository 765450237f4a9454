//! Reads of `labels`, for training and for export.

use crate::labels::{Label, LabelledObject};
use crate::store::error::StoreError;
use crate::store::pool::Store;
use crate::store::votes::{read_conversation, read_object, read_opinion};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use std::ops::RangeInclusive;

pub(super) const COLUMNS: &str = "bucket, object_key, etag, attributes, scores, distributions, raters, conversation, labelled_at, ingested";

/// A label, and the number of its latest vote in the order of arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredLabel {
    pub label: Label,
    pub ingested: i64,
}

/// Labels of which one page ends and the next begins.
pub type LabelKey = (LabelledObject, i32);

/// How much has come between two numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelCounts {
    pub labels: u64,
    /// Those who voted, by name.
    pub raters: u64,
}

impl Store {
    /// The number that every label up to now has or is below: what is written from now on is above it, even
    /// if its transaction is under way already. 0 before the first one.
    pub async fn label_watermark(&self) -> Result<i64, StoreError> {
        self.transaction(async |transaction| {
            sqlx::query_scalar("SELECT coalesce(max(ingested), 0) FROM votes")
                .persistent(false)
                .fetch_one(&mut **transaction)
                .await
        })
        .await
    }

    /// Labels that are new or changed above `after` and up to `upto`, and the raters of those votes.
    pub async fn count_labels(&self, after: i64, upto: i64) -> Result<LabelCounts, StoreError> {
        self.transaction(async |transaction| {
            let (labels, raters): (i64, i64) = sqlx::query_as(
                "SELECT (SELECT count(*) FROM labels WHERE ingested > $1 AND ingested <= $2), \
                 (SELECT count(DISTINCT rater) FROM votes WHERE ingested > $1 AND ingested <= $2)",
            )
            .persistent(false)
            .bind(after)
            .bind(upto)
            .fetch_one(&mut **transaction)
            .await?;
            let count = |count: i64| u64::try_from(count).unwrap_or_default();
            Ok(LabelCounts { labels: count(labels), raters: count(raters) })
        })
        .await
    }

    /// Up to `limit` labels above `after` and up to `upto`, in the order of arrival. A label that more votes
    /// come to meanwhile moves above `upto`. Labels of one number are all on one page.
    pub async fn new_labels(
        &self,
        after: i64,
        upto: i64,
        limit: u32,
    ) -> Result<Vec<StoredLabel>, StoreError> {
        let statement = format!(
            "SELECT {COLUMNS} FROM labels WHERE ingested > $1 AND ingested <= $2 \
             ORDER BY ingested FETCH FIRST $3 ROWS WITH TIES"
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(after).bind(upto);
            query.bind(i64::from(limit)).fetch_all(&mut **transaction).await?.iter().map(read_label).collect()
        })
        .await
    }

    /// Up to `count` labels with `attributes` scores, up to `upto` in the order of arrival and of a first
    /// score in `scores`, drawn at random by `seed`. Drawing one stratum after another gives a stratified
    /// sample of what was learnt before.
    pub async fn sample_labels(
        &self,
        upto: i64,
        attributes: usize,
        scores: RangeInclusive<f64>,
        count: u32,
        seed: i64,
    ) -> Result<Vec<StoredLabel>, StoreError> {
        // The keys alone are sorted; the rest is read of what was drawn.
        let statement = format!(
            "SELECT {COLUMNS} FROM labels JOIN (
                 SELECT bucket, object_key, etag, attributes FROM labels
                 WHERE attributes = $1 AND score BETWEEN $2 AND $3 AND ingested <= $4
                 ORDER BY hashtextextended(bucket || '/' || object_key || '/' || etag, $5),
                     bucket, object_key, etag
                 LIMIT $6
             ) drawn USING (bucket, object_key, etag, attributes)
             ORDER BY bucket, object_key, etag"
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            let query = query.bind(i32::try_from(attributes).unwrap_or(i32::MAX));
            let query = query.bind(*scores.start()).bind(*scores.end()).bind(upto).bind(seed);
            query.bind(i64::from(count)).fetch_all(&mut **transaction).await?.iter().map(read_label).collect()
        })
        .await
    }

    /// Up to `limit` labels beyond `after`, in key order.
    pub async fn labels_by_key(
        &self,
        after: Option<&LabelKey>,
        limit: u32,
    ) -> Result<Vec<StoredLabel>, StoreError> {
        let statement = format!(
            "SELECT {COLUMNS} FROM labels WHERE (bucket, object_key, etag, attributes) > ($1, $2, $3, $4) \
             ORDER BY bucket, object_key, etag, attributes LIMIT $5"
        );
        let (object, attributes) = after.cloned().unwrap_or_default();
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            let query = query.bind(object.bucket).bind(object.key).bind(object.etag).bind(attributes);
            let rows = query.bind(i64::from(limit)).fetch_all(&mut **transaction).await?;
            rows.iter().map(read_label).collect()
        })
        .await
    }
}

pub(super) fn read_label(row: &PgRow) -> Result<StoredLabel, sqlx::Error> {
    let label = Label {
        object: read_object(row)?,
        opinion: read_opinion(row)?,
        conversation: read_conversation(row)?,
        labelled_at: row.try_get("labelled_at")?,
    };
    Ok(StoredLabel { label, ingested: row.try_get("ingested")? })
}

impl StoredLabel {
    /// Where a page that ends with it goes on.
    pub fn key(&self) -> LabelKey {
        (self.label.object.clone(), i32::try_from(self.label.opinion.scores.len()).unwrap_or(i32::MAX))
    }
}
