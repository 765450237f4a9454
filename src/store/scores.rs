//! Reads and writes of `scores`.

use crate::failpoint;
use crate::object::ScoreId;
use crate::score::ItemStatus;
use crate::store::error::StoreError;
use crate::store::pool::Store;
use crate::store::row::{ScoreRow, StoredScore, dedupe};
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use time::OffsetDateTime;
use uuid::Uuid;

/// Writes what is new. Of a conflict, only two things rewrite a row: a score where there was none
/// (the first score wins), and a later removal of a key that was removed before. `deleted_at` is
/// never cleared, so a replay resurrects nothing.
const UPSERT: &str = "
INSERT INTO scores AS stored (
    id, bucket, object_key, version_id, etag, sequencer, model, model_version, status, score, scores,
    distributions, text, error, scored_at, deleted_at, source_topic, source_partition, source_offset,
    source_item, content_sha256, preprocess_revision)
SELECT
    id, bucket, object_key, version_id, etag, sequencer, model, model_version, status, score,
    scores::double precision[], distributions::jsonb, text, error::jsonb, scored_at,
    CASE WHEN status = 'deleted' THEN scored_at END, source_topic, source_partition, source_offset,
    source_item, content_sha256, preprocess_revision
FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::text[], $10::double precision[], $11::text[], $12::text[], $13::text[], $14::text[],
    $15::timestamptz[], $16::text[], $17::integer[], $18::bigint[], $19::integer[],
    $20::bytea[], $21::integer[])
AS new (
    id, bucket, object_key, version_id, etag, sequencer, model, model_version, status, score, scores,
    distributions, text, error, scored_at, source_topic, source_partition, source_offset, source_item,
    content_sha256, preprocess_revision)
ON CONFLICT (id) DO UPDATE SET
    status = excluded.status, score = excluded.score, scores = excluded.scores,
    distributions = excluded.distributions, text = excluded.text, error = excluded.error,
    scored_at = excluded.scored_at, sequencer = greatest(stored.sequencer, excluded.sequencer),
    deleted_at = coalesce(stored.deleted_at, excluded.deleted_at),
    source_topic = excluded.source_topic, source_partition = excluded.source_partition,
    source_offset = excluded.source_offset, source_item = excluded.source_item,
    content_sha256 = excluded.content_sha256, preprocess_revision = excluded.preprocess_revision
WHERE (stored.status <> 'scored' AND excluded.status = 'scored')
   OR (stored.status = 'deleted' AND excluded.status = 'deleted'
       AND excluded.sequencer > coalesce(stored.sequencer, ''))
RETURNING id";

/// Marks the rows that a removal is about: those of its key (and version, if it names one; `null` is that of
/// every row without one) that are not newer. A row without sequencer was there when the removal came, so it
/// counts as older.
const MARK_REMOVED: &str = "
UPDATE scores SET deleted_at = removed.at
FROM (
    SELECT doomed.id, removal.at
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
        AS removal (bucket, object_key, version_id, sequencer, at)
    JOIN scores doomed ON doomed.bucket = removal.bucket AND doomed.object_key = removal.object_key
    WHERE doomed.deleted_at IS NULL
        AND (removal.version_id IS NULL OR coalesce(doomed.version_id, 'null') = removal.version_id)
        AND (removal.sequencer IS NULL OR doomed.sequencer IS NULL OR doomed.sequencer <= removal.sequencer)
    ORDER BY doomed.id
    FOR UPDATE OF doomed
) removed
WHERE scores.id = removed.id";

/// Marks rows just written whose object was removed by an event that was processed before them. A
/// version never comes back, so its removal needs no sequencer to be the later event; the key and its version
/// `null` do.
const APPLY_TOMBSTONES: &str = "
UPDATE scores SET deleted_at = removed.at
FROM (
    SELECT doomed.id, tombstone.deleted_at AS at
    FROM scores doomed
    JOIN scores tombstone
        ON tombstone.bucket = doomed.bucket AND tombstone.object_key = doomed.object_key
        AND tombstone.status = 'deleted'
        AND (tombstone.version_id = doomed.version_id
            OR ((tombstone.version_id IS NULL OR (tombstone.version_id = 'null' AND doomed.version_id IS NULL))
                AND tombstone.sequencer >= doomed.sequencer))
    WHERE doomed.id = ANY($1) AND doomed.deleted_at IS NULL
    ORDER BY doomed.id
    FOR UPDATE OF doomed
) removed
WHERE scores.id = removed.id";

impl Store {
    /// What the table holds for `ids`; an id without a row is missing from the map.
    pub async fn lookup(&self, ids: &[ScoreId]) -> Result<HashMap<ScoreId, StoredScore>, StoreError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        self.transaction(async |transaction| select(transaction, ids).await).await
    }

    /// Writes `rows` and says what counts for each id afterwards: the caller's row, or the one
    /// that was there before (`reused`).
    ///
    /// Everything written is durable once this returns. It may be repeated after any error, with
    /// the same result: an id never changes its score.
    pub async fn upsert(&self, rows: &[ScoreRow]) -> Result<HashMap<ScoreId, StoredScore>, StoreError> {
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = dedupe(rows);
        let written = self.transaction(async |transaction| insert(transaction, &rows).await).await?;
        let kept: Vec<ScoreId> = rows.iter().map(|row| row.id).filter(|id| !written.contains(id)).collect();
        // A second transaction, so that of a row and a removal written at the same time by two
        // workers at least one sees the other; and a later snapshot, since a row that won a race
        // is invisible to the statement that lost it.
        let mut stored = self
            .transaction(async |transaction| {
                mark_removed(transaction, &rows).await?;
                apply_tombstones(transaction, &rows, &written).await?;
                if kept.is_empty() { Ok(HashMap::new()) } else { select(transaction, &kept).await }
            })
            .await?;
        for row in rows.into_iter().filter(|row| written.contains(&row.id)) {
            let deleted_at = (row.status == ItemStatus::Deleted).then_some(row.scored_at);
            stored.insert(row.id, StoredScore { row: row.clone(), deleted_at, reused: false });
        }
        Ok(stored)
    }

    /// As [`Self::upsert`], with an answer a row in order: several rows may have one id, and then the first
    /// one was written and the others found it.
    pub async fn upsert_rows(&self, rows: &[ScoreRow]) -> Result<Vec<Option<StoredScore>>, StoreError> {
        let stored = self.upsert(rows).await?;
        let mut seen = HashSet::with_capacity(rows.len());
        let answer = |row: &ScoreRow| match stored.get(&row.id) {
            Some(stored) => {
                let reused = stored.reused || !seen.insert(row.id);
                Some(StoredScore { reused, ..stored.clone() })
            }
            None => {
                // Deleted by hand between the two statements.
                tracing::warn!(id = %row.id, "a row vanished while it was written");
                None
            }
        };
        Ok(rows.iter().map(answer).collect())
    }

    /// Up to `limit` rows, the best scores first and rows without one last.
    pub async fn list(&self, limit: u32) -> Result<Vec<StoredScore>, StoreError> {
        let statement = format!(
            "SELECT {} FROM scores ORDER BY score DESC NULLS LAST, bucket, object_key, id LIMIT $1",
            StoredScore::COLUMNS
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(i64::from(limit));
            query.fetch_all(&mut **transaction).await?.iter().map(StoredScore::read).collect()
        })
        .await
    }

    /// Rows by status; a status without rows is missing.
    pub async fn count(&self) -> Result<HashMap<ItemStatus, u64>, StoreError> {
        self.transaction(async |transaction| {
            let counts: Vec<(String, i64)> =
                sqlx::query_as("SELECT status, count(*) FROM scores GROUP BY status")
                    .persistent(false)
                    .fetch_all(&mut **transaction)
                    .await?;
            counts
                .into_iter()
                .map(|(status, count)| {
                    let status = status.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
                    Ok((status, u64::try_from(count).unwrap_or_default()))
                })
                .collect()
        })
        .await
    }
}

/// The columns of a batch, as `unnest` takes them.
#[derive(Default)]
struct Columns {
    id: Vec<Uuid>,
    bucket: Vec<Option<String>>,
    key: Vec<Option<String>>,
    version_id: Vec<Option<String>>,
    etag: Vec<Option<String>>,
    sequencer: Vec<Option<String>>,
    model: Vec<String>,
    model_version: Vec<String>,
    status: Vec<&'static str>,
    score: Vec<Option<f64>>,
    /// As array literals: `unnest` would flatten an array of arrays.
    scores: Vec<Option<String>>,
    distributions: Vec<Option<String>>,
    text: Vec<Option<String>>,
    error: Vec<Option<String>>,
    scored_at: Vec<OffsetDateTime>,
    topic: Vec<Option<String>>,
    partition: Vec<Option<i32>>,
    offset: Vec<Option<i64>>,
    item: Vec<Option<i32>>,
    content: Vec<Option<Vec<u8>>>,
    preprocess_revision: Vec<Option<i32>>,
}

impl Columns {
    fn of(rows: &[&ScoreRow]) -> Result<Self, sqlx::Error> {
        let mut columns = Self::default();
        for row in rows {
            let object = row.object.as_ref();
            let source = row.source.as_ref();
            let scored = row.status == ItemStatus::Scored;
            columns.id.push(row.id.0);
            columns.bucket.push(object.map(|object| object.bucket.clone()));
            columns.key.push(object.map(|object| object.key.clone()));
            columns.version_id.push(object.and_then(|object| object.version_id.clone()));
            columns.etag.push(object.and_then(|object| object.etag.clone()));
            columns.sequencer.push(row.padded_sequencer());
            columns.model.push(row.model.clone());
            columns.model_version.push(row.model_version.clone());
            columns.status.push(row.status.as_str());
            columns.score.push(row.score);
            columns.scores.push(scored.then(|| array_literal(&row.scores)));
            columns.distributions.push(scored.then(|| json(&row.distributions)).transpose()?);
            columns.text.push(row.text.clone());
            columns.error.push(row.error.as_ref().map(json).transpose()?);
            columns.scored_at.push(row.scored_at);
            columns.topic.push(source.map(|source| source.topic.clone()));
            columns.partition.push(source.map(|source| source.partition));
            columns.offset.push(source.map(|source| source.offset));
            columns.item.push(source.and_then(|source| i32::try_from(source.item).ok()));
            // Of a score alone, since that is all that is ever looked for by content.
            columns.content.push(row.content.filter(|_| scored).map(|content| content.0.to_vec()));
            columns
                .preprocess_revision
                .push(row.preprocess_revision.and_then(|revision| i32::try_from(revision).ok()));
        }
        Ok(columns)
    }
}

/// `{1.5,2.25}`: Rust prints the shortest digits that read back as the same number.
pub(super) fn array_literal(values: &[f64]) -> String {
    let mut literal = String::from("{");
    for (index, value) in values.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _infallible = write!(literal, "{separator}{value}");
    }
    literal.push('}');
    literal
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

async fn insert(
    transaction: &mut Transaction<'_, Postgres>,
    rows: &[&ScoreRow],
) -> Result<HashSet<ScoreId>, sqlx::Error> {
    let columns = Columns::of(rows)?;
    let written: Vec<(Uuid,)> = sqlx::query_as(UPSERT)
        .persistent(false)
        .bind(columns.id)
        .bind(columns.bucket)
        .bind(columns.key)
        .bind(columns.version_id)
        .bind(columns.etag)
        .bind(columns.sequencer)
        .bind(columns.model)
        .bind(columns.model_version)
        .bind(columns.status)
        .bind(columns.score)
        .bind(columns.scores)
        .bind(columns.distributions)
        .bind(columns.text)
        .bind(columns.error)
        .bind(columns.scored_at)
        .bind(columns.topic)
        .bind(columns.partition)
        .bind(columns.offset)
        .bind(columns.item)
        .bind(columns.content)
        .bind(columns.preprocess_revision)
        .fetch_all(&mut **transaction)
        .await?;
    failpoint::reach_each("row-inserted", rows.len());
    Ok(written.into_iter().map(|(id,)| ScoreId(id)).collect())
}

async fn mark_removed(
    transaction: &mut Transaction<'_, Postgres>,
    rows: &[&ScoreRow],
) -> Result<(), sqlx::Error> {
    let removals: Vec<&ScoreRow> = rows
        .iter()
        .copied()
        .filter(|row| row.status == ItemStatus::Deleted && row.object.is_some())
        .collect();
    if removals.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(&removals)?;
    sqlx::query(MARK_REMOVED)
        .persistent(false)
        .bind(columns.bucket)
        .bind(columns.key)
        .bind(columns.version_id)
        .bind(columns.sequencer)
        .bind(columns.scored_at)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

async fn apply_tombstones(
    transaction: &mut Transaction<'_, Postgres>,
    rows: &[&ScoreRow],
    written: &HashSet<ScoreId>,
) -> Result<(), sqlx::Error> {
    let ordered: Vec<Uuid> = rows
        .iter()
        .filter(|row| written.contains(&row.id) && row.status != ItemStatus::Deleted)
        .filter(|row| {
            let object = row.object.as_ref();
            object.is_some_and(|object| object.sequencer.is_some() || object.version_id.is_some())
        })
        .map(|row| row.id.0)
        .collect();
    if ordered.is_empty() {
        return Ok(());
    }
    sqlx::query(APPLY_TOMBSTONES).persistent(false).bind(ordered).execute(&mut **transaction).await?;
    Ok(())
}

async fn select(
    transaction: &mut Transaction<'_, Postgres>,
    ids: &[ScoreId],
) -> Result<HashMap<ScoreId, StoredScore>, sqlx::Error> {
    let statement = format!("SELECT {} FROM scores WHERE id = ANY($1)", StoredScore::COLUMNS);
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let rows =
        sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(ids).fetch_all(&mut **transaction);
    rows.await?.iter().map(|row| StoredScore::read(row).map(|stored| (stored.row.id, stored))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_literals_have_every_digit() {
        assert_eq!(array_literal(&[]), "{}");
        assert_eq!(array_literal(&[5.0, 0.1 + 0.2, -1e-9]), "{5,0.30000000000000004,-0.000000001}");
    }
}
