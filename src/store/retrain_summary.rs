//! What `retrain_runs` says of retraining as a whole.

use crate::store::error::StoreError;
use crate::store::pool::Store;
use sqlx::Row;
use time::OffsetDateTime;

/// How retraining fares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetrainSummary {
    /// Runs that have ended, by outcome; those that there can be are there without a run, too.
    pub outcomes: Vec<(String, u64)>,
    /// Runs that somebody works on.
    pub running: u64,
    /// When the last one ended that did not fail: a rejection and nothing to do are successes, too.
    pub last_success: Option<OffsetDateTime>,
    /// Rejections since the last model that was accepted.
    pub rejections_in_a_row: u64,
}

const OUTCOMES: &str = "
SELECT possible.outcome, count(runs.outcome)
FROM unnest(ARRAY['abandoned', 'accepted', 'failed', 'nothing_to_do', 'rejected']) AS possible (outcome)
LEFT JOIN retrain_runs runs ON runs.outcome = possible.outcome AND runs.kind = 'retrain'
GROUP BY possible.outcome ORDER BY possible.outcome";

const STATE: &str = "
WITH runs AS (SELECT * FROM retrain_runs WHERE kind = 'retrain')
SELECT
    (SELECT count(*) FROM runs
     WHERE outcome IS NULL AND NOT released
        AND heartbeat_at + lease_ms * interval '1 millisecond' > clock_timestamp()) AS running,
    (SELECT max(ended_at) FROM runs WHERE outcome IN ('accepted', 'rejected', 'nothing_to_do')) AS last_success,
    (SELECT count(*) FROM runs
     WHERE outcome = 'rejected' AND ended_at > coalesce(
        (SELECT max(ended_at) FROM runs WHERE outcome = 'accepted'), '-infinity')) AS rejections";

impl Store {
    /// How retraining fares; `None` where the schema knows no retraining.
    pub async fn retrain_summary(&self) -> Result<Option<RetrainSummary>, StoreError> {
        self.transaction(async |transaction| {
            let exists = sqlx::query("SELECT to_regclass('retrain_runs') IS NOT NULL").persistent(false);
            if !exists.fetch_one(&mut **transaction).await?.try_get::<bool, _>(0)? {
                return Ok(None);
            }
            let runs = sqlx::query(OUTCOMES).persistent(false).fetch_all(&mut **transaction).await?;
            let outcomes = runs.iter().map(|row| {
                let runs: i64 = row.try_get(1)?;
                Ok((row.try_get(0)?, runs.unsigned_abs()))
            });
            let outcomes = outcomes.collect::<Result<_, sqlx::Error>>()?;
            let state = sqlx::query(STATE).persistent(false).fetch_one(&mut **transaction).await?;
            let count = |name: &str| Ok::<_, sqlx::Error>(state.try_get::<i64, _>(name)?.unsigned_abs());
            Ok(Some(RetrainSummary {
                outcomes,
                running: count("running")?,
                last_success: state.try_get("last_success")?,
                rejections_in_a_row: count("rejections")?,
            }))
        })
        .await
    }
}
