//! Scores by what was scored, whatever it was called.

use crate::object::ContentKey;
use crate::store::error::StoreError;
use crate::store::pool::Store;
use crate::store::row::KnownAnswer;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

/// One row of each content, however many objects share it. That the digest is not null is said for the planner:
/// the index leaves the others out.
const BY_CONTENT: &str = "
SELECT wanted.number, stored.scores, stored.distributions, stored.text
FROM unnest($1::bytea[], $2::text[], $3::text[], $4::integer[]) WITH ORDINALITY
    AS wanted (content, model, model_version, preprocess_revision, number)
CROSS JOIN LATERAL (
    SELECT scores, distributions, text FROM scores
    WHERE content_sha256 = wanted.content AND content_sha256 IS NOT NULL AND status = 'scored'
        AND scores.model = wanted.model AND scores.model_version = wanted.model_version
        AND scores.preprocess_revision = wanted.preprocess_revision
    LIMIT 1) stored";

impl Store {
    /// What is stored for each of `keys`, in their order.
    pub async fn known_answers(&self, keys: &[ContentKey]) -> Result<Vec<Option<KnownAnswer>>, StoreError> {
        let mut known = vec![None; keys.len()];
        if keys.is_empty() {
            return Ok(known);
        }
        let contents: Vec<Vec<u8>> = keys.iter().map(|key| key.content.0.to_vec()).collect();
        let models: Vec<&str> = keys.iter().map(|key| key.version.model.as_str()).collect();
        let versions: Vec<&str> = keys.iter().map(|key| key.version.version.as_str()).collect();
        let revisions: Vec<Option<i32>> =
            keys.iter().map(|key| i32::try_from(key.version.preprocess_revision).ok()).collect();
        let found: Vec<(usize, KnownAnswer)> = self
            .transaction(async |transaction| {
                let query = sqlx::query(BY_CONTENT).persistent(false).bind(contents).bind(models);
                let rows = query.bind(versions).bind(revisions).fetch_all(&mut **transaction).await?;
                rows.iter().map(read).collect()
            })
            .await?;
        for (number, answer) in found {
            if let Some(place) = known.get_mut(number) {
                *place = Some(answer);
            }
        }
        Ok(known)
    }
}

fn read(row: &PgRow) -> Result<(usize, KnownAnswer), sqlx::Error> {
    // Counted from 1.
    let number: i64 = row.try_get("number")?;
    let distributions: Option<Json<Vec<Vec<f32>>>> = row.try_get("distributions")?;
    let answer = KnownAnswer {
        scores: row.try_get::<Option<Vec<f64>>, _>("scores")?.unwrap_or_default(),
        distributions: distributions.map(|Json(lists)| lists).unwrap_or_default(),
        text: row.try_get("text")?,
    };
    Ok((usize::try_from(number - 1).unwrap_or(usize::MAX), answer))
}
