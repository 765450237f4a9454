//! What the worker's page shows of `retrain_runs`.

use crate::store::error::StoreError;
use crate::store::pool::Store;
use serde_json::{Map, Value};
use sqlx::AssertSqlSafe;

/// What may be shown: not who holds a run, nor the token that it is held by.
const SHOWN: [&str; 15] = [
    "id",
    "kind",
    "outcome",
    "reason",
    "stage",
    "done",
    "total",
    "champion",
    "challenger",
    "counts",
    "metrics",
    "verdict",
    "report",
    "started_at",
    "ended_at",
];

impl Store {
    /// Where the report of a run is, if it has one.
    pub async fn retrain_report(&self, run: i64) -> Result<Option<String>, StoreError> {
        let runs = self.shown_runs("WHERE id = $1", run).await?.unwrap_or_default();
        let report = runs.into_iter().next().and_then(|mut run| run.remove("report"));
        Ok(report.and_then(|report| report.as_str().map(str::to_owned)))
    }

    /// The latest `limit` runs as JSON, a field a column, the newest first; `None` before the table exists.
    ///
    /// A column that the table does not have is left out, so that workers of different releases can show one
    /// history.
    pub async fn retrain_history(&self, limit: u32) -> Result<Option<Vec<Map<String, Value>>>, StoreError> {
        self.shown_runs("ORDER BY started_at DESC LIMIT $1", i64::from(limit)).await
    }

    async fn shown_runs(
        &self,
        which: &'static str,
        bound: i64,
    ) -> Result<Option<Vec<Map<String, Value>>>, StoreError> {
        let statement = format!("SELECT to_jsonb(run) FROM retrain_runs run {which}");
        self.transaction(async |transaction| {
            let exists: bool = sqlx::query_scalar("SELECT to_regclass('retrain_runs') IS NOT NULL")
                .persistent(false)
                .fetch_one(&mut **transaction)
                .await?;
            if !exists {
                return Ok(None);
            }
            let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(bound);
            let runs: Vec<Value> = query.fetch_all(&mut **transaction).await?;
            Ok(Some(runs.into_iter().map(shown).collect()))
        })
        .await
    }
}

fn shown(run: Value) -> Map<String, Value> {
    let Value::Object(mut columns) = run else { return Map::new() };
    SHOWN.iter().filter_map(|name| Some(((*name).to_owned(), columns.remove(*name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_no_viewers_business_is_left_out() {
        let run = shown(json!({"id": 3, "lease_token": "t", "holder": "pod", "outcome": null, "new": 1}));
        assert_eq!(Value::Object(run), json!({"id": 3, "outcome": null}));
    }
}
