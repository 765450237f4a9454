//! Writes of `retrain_runs`: one run at a time, by a lease that a heartbeat keeps.
//!
//! All times are the server's own, so that two machines' clocks need not agree. Whoever holds the lease
//! has its token, and every write names it: a process that slept through its lease changes nothing more.

use crate::store::error::StoreError;
use crate::store::pool::Store;
use serde::Serialize;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use std::fmt;
use std::time::Duration;
use uuid::Uuid;

/// Lets readers through and makes writers wait; held to the end of the transaction.
const LOCK: &str = "LOCK TABLE retrain_runs IN SHARE ROW EXCLUSIVE MODE";

const OPEN: &str = "
SELECT id, kind, holder, attempts, champion, after_label, upto_label, dataset, challenger,
    verdict ->> 'verdict' = 'accepted' AS accepted,
    released OR heartbeat_at + lease_ms * interval '1 millisecond' < clock_timestamp() AS free,
    extract(epoch FROM clock_timestamp() - heartbeat_at)::double precision AS silent
FROM retrain_runs WHERE outcome IS NULL";

const BEGIN: &str = "
INSERT INTO retrain_runs (kind, holder, lease_token, lease_ms) VALUES ($1, $2, $3, $4) RETURNING id";

const TAKE_OVER: &str = "
UPDATE retrain_runs
SET holder = $2, lease_token = $3, lease_ms = $4, heartbeat_at = clock_timestamp(), released = false,
    attempts = attempts + 1
WHERE id = $1
RETURNING attempts";

const BEAT: &str = "
UPDATE retrain_runs SET heartbeat_at = clock_timestamp(), stage = $3, done = $4, total = $5
WHERE id = $1 AND lease_token = $2 AND outcome IS NULL";

const RELEASE: &str = "
UPDATE retrain_runs SET released = true WHERE id = $1 AND lease_token = $2 AND outcome IS NULL";

const PLAN: &str = "
UPDATE retrain_runs
SET champion = $3, after_label = $4, upto_label = $5, dataset = $6, counts = $7
WHERE id = $1 AND lease_token = $2 AND outcome IS NULL";

const JUDGE: &str = "
UPDATE retrain_runs SET challenger = $3, metrics = $4, verdict = $5, report = $6
WHERE id = $1 AND lease_token = $2 AND outcome IS NULL";

const END: &str = "
UPDATE retrain_runs
SET outcome = $3, reason = $4, champion = coalesce(champion, $5), ended_at = clock_timestamp()
WHERE id = $1 AND lease_token = $2 AND outcome IS NULL";

const HELD: &str = "
SELECT FROM retrain_runs WHERE id = $1 AND lease_token = $2 AND outcome IS NULL FOR UPDATE";

/// Why a run is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// To train a challenger and judge it.
    Retrain,
    /// To judge a checkpoint from elsewhere.
    Trial,
}

impl RunKind {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retrain => "retrain",
            Self::Trial => "trial",
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// The challenger is the champion, or may become it.
    Accepted,
    /// The champion stays.
    Rejected,
    /// There are too few new labels.
    NothingToDo,
    /// It can't be gone on with.
    Failed,
    /// Something that it rests on has changed.
    Abandoned,
}

impl RunOutcome {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::NothingToDo => "nothing_to_do",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The right to work on a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLease {
    pub run: i64,
    pub token: Uuid,
}

/// What a run is about, from when it has been selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPlan {
    /// The version that is challenged.
    pub champion: String,
    /// Labels above this number and up to the other are new to it.
    pub after: i64,
    pub upto: i64,
    /// `sha256:` and 64 digits, of what was selected.
    pub dataset: String,
}

/// A run that is this process's now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedRun {
    pub lease: RunLease,
    /// How often somebody began to work on it, this time included.
    pub attempts: i32,
    /// What an earlier attempt has selected.
    pub plan: Option<RunPlan>,
    /// The version that an earlier attempt has accepted, and may have promoted.
    pub accepted: Option<String>,
}

/// A run that another process works on, or is to go on with.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldRun {
    pub run: i64,
    pub holder: String,
    /// Since its last heartbeat.
    pub silent: Duration,
}

impl fmt::Display for HeldRun {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, holder, silent } = self;
        write!(formatter, "run {run} is under way: {holder}, last heard of {} s ago", silent.as_secs())
    }
}

/// What became of asking for a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    Ours(ClaimedRun),
    Held(HeldRun),
}

/// What a run has found out.
#[derive(Clone, Debug, PartialEq)]
pub struct RunVerdict {
    pub challenger: String,
    pub metrics: Value,
    /// With the key `verdict`: `accepted` or `rejected`.
    pub verdict: Value,
    /// Where the report is.
    pub report: String,
}

/// Why a run can't be worked on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "run {0} is no longer this process's: its lease ran out and another process took over, or ended it; \
         nothing is to be done here"
    )]
    Lost(i64),
}

impl Store {
    /// Begins a run, or goes on with one that nobody works on any more. A trial that nobody works on is ended
    /// as abandoned when a retraining run begins; the other way round, a trial waits.
    pub async fn claim_run(&self, kind: RunKind, holder: &str, lease: Duration) -> Result<Claim, StoreError> {
        let token = Uuid::new_v4();
        let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        self.transaction(async |transaction| {
            sqlx::raw_sql(LOCK).execute(&mut **transaction).await?;
            let open = sqlx::query(OPEN).persistent(false).fetch_optional(&mut **transaction).await?;
            if let Some(row) = open {
                let run: i64 = row.try_get("id")?;
                let other: String = row.try_get("kind")?;
                // Hours of training are not thrown away for a trial.
                let waits = kind == RunKind::Trial && other == RunKind::Retrain.as_str();
                if waits || !row.try_get::<bool, _>("free")? {
                    let silent = Duration::try_from_secs_f64(row.try_get("silent")?).unwrap_or_default();
                    return Ok(Claim::Held(HeldRun { run, holder: row.try_get("holder")?, silent }));
                }
                if other == kind.as_str() {
                    let query = sqlx::query(TAKE_OVER).persistent(false).bind(run).bind(holder).bind(token);
                    let attempts =
                        query.bind(lease_ms).fetch_one(&mut **transaction).await?.try_get("attempts")?;
                    let accepted = match row.try_get("accepted")? {
                        Some(true) => row.try_get("challenger")?,
                        _ => None,
                    };
                    let (lease, plan) = (RunLease { run, token }, read_plan(&row)?);
                    return Ok(Claim::Ours(ClaimedRun { lease, attempts, plan, accepted }));
                }
                abandon(transaction, run).await?;
            }
            let query = sqlx::query(BEGIN).persistent(false).bind(kind.as_str()).bind(holder).bind(token);
            let run = query.bind(lease_ms).fetch_one(&mut **transaction).await?.try_get("id")?;
            let lease = RunLease { run, token };
            Ok(Claim::Ours(ClaimedRun { lease, attempts: 1, plan: None, accepted: None }))
        })
        .await
    }

    /// Says that the run is worked on, and how far it is.
    ///
    /// # Errors
    /// [`RunError::Lost`] when it is another process's by now.
    pub async fn beat_run(
        &self,
        lease: &RunLease,
        stage: &str,
        done: u64,
        total: u64,
    ) -> Result<(), RunError> {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let query = sqlx::query(BEAT).persistent(false).bind(lease.run).bind(lease.token).bind(stage);
        self.change_run(lease, query.bind(number(done)).bind(number(total))).await
    }

    /// Leaves the run to whoever asks for it next.
    ///
    /// # Errors
    /// As [`Self::beat_run`].
    pub async fn release_run(&self, lease: &RunLease) -> Result<(), RunError> {
        let query = sqlx::query(RELEASE).persistent(false).bind(lease.run).bind(lease.token);
        self.change_run(lease, query).await
    }

    /// Notes what a run is about, and how much of everything there is.
    ///
    /// # Errors
    /// As [`Self::beat_run`].
    pub async fn plan_run(&self, lease: &RunLease, plan: &RunPlan, counts: &Value) -> Result<(), RunError> {
        let query = sqlx::query(PLAN).persistent(false).bind(lease.run).bind(lease.token);
        let query = query.bind(&plan.champion).bind(plan.after).bind(plan.upto).bind(&plan.dataset);
        self.change_run(lease, query.bind(counts)).await
    }

    /// Notes what the gate said, before anything follows from it.
    ///
    /// # Errors
    /// As [`Self::beat_run`].
    pub async fn judge_run(&self, lease: &RunLease, verdict: &RunVerdict) -> Result<(), RunError> {
        let RunVerdict { challenger, metrics, verdict, report } = verdict;
        let query = sqlx::query(JUDGE).persistent(false).bind(lease.run).bind(lease.token);
        self.change_run(lease, query.bind(challenger).bind(metrics).bind(verdict).bind(report)).await
    }

    /// Ends a run. `champion` is noted where no plan did so.
    ///
    /// # Errors
    /// As [`Self::beat_run`].
    pub async fn end_run(
        &self,
        lease: &RunLease,
        outcome: RunOutcome,
        reason: &str,
        champion: Option<&str>,
    ) -> Result<(), RunError> {
        let query = sqlx::query(END).persistent(false).bind(lease.run).bind(lease.token);
        self.change_run(lease, query.bind(outcome.as_str()).bind(reason).bind(champion)).await
    }

    /// Up to which label challengers of `champion` have been trained and judged; `None` before the first.
    pub async fn judged_labels(&self, champion: &str) -> Result<Option<i64>, StoreError> {
        self.transaction(async |transaction| {
            sqlx::query_scalar(
                "SELECT max(upto_label) FROM retrain_runs \
                 WHERE champion = $1 AND kind = 'retrain' AND outcome IN ('accepted', 'rejected')",
            )
            .persistent(false)
            .bind(champion)
            .fetch_one(&mut **transaction)
            .await
        })
        .await
    }

    /// Up to which label a registered version was trained; `None` where that is not known.
    pub async fn label_watermark_of(&self, version: &str) -> Result<Option<i64>, StoreError> {
        let found: Option<Option<i64>> = self
            .transaction(async |transaction| {
                sqlx::query_scalar("SELECT label_watermark FROM model_versions WHERE version = $1")
                    .persistent(false)
                    .bind(version)
                    .fetch_optional(&mut **transaction)
                    .await
            })
            .await?;
        Ok(found.flatten())
    }

    /// Notes up to which label a registered version was trained.
    pub async fn set_label_watermark(&self, version: &str, watermark: i64) -> Result<(), StoreError> {
        self.transaction(async |transaction| {
            sqlx::query("UPDATE model_versions SET label_watermark = $2 WHERE version = $1")
                .persistent(false)
                .bind(version)
                .bind(watermark)
                .execute(&mut **transaction)
                .await
        })
        .await
        .map(drop)
    }

    async fn change_run(
        &self,
        lease: &RunLease,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<(), RunError> {
        let changed = self
            .transaction(async |transaction| Ok(query.execute(&mut **transaction).await?.rows_affected()))
            .await?;
        match changed {
            0 => Err(RunError::Lost(lease.run)),
            _ => Ok(()),
        }
    }
}

/// Whether the lease is still the run's; it stays so to the end of the transaction.
pub(super) async fn holds(connection: &mut PgConnection, lease: &RunLease) -> Result<bool, sqlx::Error> {
    let query = sqlx::query(HELD).persistent(false).bind(lease.run).bind(lease.token);
    Ok(query.fetch_optional(connection).await?.is_some())
}

async fn abandon(connection: &mut PgConnection, run: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE retrain_runs SET outcome = 'abandoned', ended_at = clock_timestamp(), \
         reason = 'nobody went on with it, and a run of another kind began' WHERE id = $1",
    )
    .persistent(false)
    .bind(run)
    .execute(connection)
    .await
    .map(drop)
}

fn read_plan(row: &PgRow) -> Result<Option<RunPlan>, sqlx::Error> {
    let Some(dataset) = row.try_get("dataset")? else { return Ok(None) };
    Ok(Some(RunPlan {
        champion: row.try_get("champion")?,
        after: row.try_get("after_label")?,
        upto: row.try_get("upto_label")?,
        dataset,
    }))
}
