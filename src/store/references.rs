//! Reads and writes of `score_references`.

use crate::store::error::StoreError;
use crate::store::pool::Store;
use crate::telemetry::drift::Distribution;
use sqlx::Row;

impl Store {
    /// What the scores of a version are compared with. Where nothing is stored, that is `first` from now
    /// on, if there is one; the first of several workers to say so is believed.
    pub async fn score_reference(
        &self,
        model_version: &str,
        first: Option<&Distribution>,
    ) -> Result<Option<Distribution>, StoreError> {
        self.transaction(async |transaction| {
            if let Some(first) = first {
                let counts: Vec<i64> = first.counts.iter().map(|&count| count as i64).collect();
                let insert = "INSERT INTO score_references (model_version, min_score, max_score, counts, sum) \
                              VALUES ($1, $2, $3, $4, $5) ON CONFLICT (model_version) DO NOTHING";
                let query = sqlx::query(insert).persistent(false).bind(model_version).bind(first.min);
                query.bind(first.max).bind(counts).bind(first.sum).execute(&mut **transaction).await?;
            }
            let select = "SELECT min_score, max_score, counts, sum FROM score_references WHERE model_version = $1";
            let query = sqlx::query(select).persistent(false).bind(model_version);
            let Some(row) = query.fetch_optional(&mut **transaction).await? else { return Ok(None) };
            let counts: Vec<i64> = row.try_get("counts")?;
            Ok(Some(Distribution {
                min: row.try_get("min_score")?,
                max: row.try_get("max_score")?,
                counts: counts.into_iter().map(i64::unsigned_abs).collect(),
                sum: row.try_get("sum")?,
            }))
        })
        .await
    }
}
