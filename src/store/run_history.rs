//! What `retrain_runs` says: its latest rows, one run's report, and how retraining fares as a whole.
//!
//! Nothing here changes a run; `runs` does.

use crate::store::error::StoreError;
use crate::store::pool::Store;
use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, Row};
use time::OffsetDateTime;

/// A run. Who holds it and by which token is no reader's business, and is not in here.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
pub struct RetrainRun {
    pub id: i64,
    pub kind: String,
    /// Null until it has ended.
    pub outcome: Option<String>,
    pub reason: Option<String>,
    pub attempts: i32,
    /// What goes on just now, and how much of it is done.
    pub stage: Option<String>,
    pub done: i64,
    pub total: i64,
    pub champion: Option<String>,
    pub after_label: Option<i64>,
    pub upto_label: Option<i64>,
    pub dataset: Option<String>,
    pub counts: Option<Value>,
    pub challenger: Option<String>,
    pub metrics: Option<Value>,
    pub verdict: Option<Value>,
    /// Where the HTML report is.
    pub report: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
}

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

const LATEST: &str = "
SELECT id, kind, outcome, reason, attempts, stage, done, total, champion, after_label, upto_label, dataset, counts,
    challenger, metrics, verdict, report, started_at, ended_at
FROM retrain_runs ORDER BY id DESC LIMIT $1";

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
    /// The latest runs, the last one first.
    pub async fn retrain_runs(&self, limit: u32) -> Result<Vec<RetrainRun>, StoreError> {
        self.transaction(async |transaction| {
            let query = sqlx::query_as(LATEST).persistent(false).bind(i64::from(limit));
            query.fetch_all(&mut **transaction).await
        })
        .await
    }

    /// Where the report of a run is, if there is such a run and it has one.
    pub async fn retrain_report(&self, run: i64) -> Result<Option<String>, StoreError> {
        let found: Option<Option<String>> = self
            .transaction(async |transaction| {
                sqlx::query_scalar("SELECT report FROM retrain_runs WHERE id = $1")
                    .persistent(false)
                    .bind(run)
                    .fetch_optional(&mut **transaction)
                    .await
            })
            .await?;
        Ok(found.flatten())
    }

    /// How retraining fares.
    pub async fn retrain_summary(&self) -> Result<RetrainSummary, StoreError> {
        self.transaction(async |transaction| {
            let runs = sqlx::query(OUTCOMES).persistent(false).fetch_all(&mut **transaction).await?;
            let outcomes = runs.iter().map(|row| {
                let runs: i64 = row.try_get(1)?;
                Ok((row.try_get(0)?, runs.unsigned_abs()))
            });
            let outcomes = outcomes.collect::<Result<_, sqlx::Error>>()?;
            let state = sqlx::query(STATE).persistent(false).fetch_one(&mut **transaction).await?;
            let count = |name: &str| Ok::<_, sqlx::Error>(state.try_get::<i64, _>(name)?.unsigned_abs());
            Ok(RetrainSummary {
                outcomes,
                running: count("running")?,
                last_success: state.try_get("last_success")?,
                rejections_in_a_row: count("rejections")?,
            })
        })
        .await
    }
}
