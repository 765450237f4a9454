//! What the page shows of Postgres.

use super::cache::{Aged, Cache};
use crate::{
    labels::Scale,
    store::{
        Order, RegisteredVersion, Reign, RetrainRun, ShownFailure, ShownScore, Store, StoreError, Tally,
    },
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;

/// Bins of the histograms, over the whole scale.
const BINS: usize = 36;
/// Rows that a count reads in full; of a larger table it reads about as many and scales up.
const EXACT_UPTO: u64 = 5_000_000;
/// Versions with a histogram: those with most scores.
const VERSIONS: usize = 6;
/// Images in each list.
const IMAGES: u32 = 12;
const FAILURES: u32 = 30;
const RUNS: u32 = 20;

/// Everything that is read from Postgres, cached.
pub struct Tables {
    store: Store,
    scale: Scale,
    scores: Cache<Tally>,
    images: Cache<Images>,
    failures: Cache<Vec<ShownFailure>>,
    models: Cache<ModelHistory>,
}

struct Images {
    latest: Vec<ShownScore>,
    best: Vec<ShownScore>,
    worst: Vec<ShownScore>,
}

struct ModelHistory {
    versions: Vec<RegisteredVersion>,
    reigns: Vec<Reign>,
    runs: Vec<RetrainRun>,
}

/// A document of the page's API: data, its age, and why it is not newer.
#[derive(Serialize)]
pub struct Document {
    #[serde(with = "time::serde::rfc3339")]
    as_of: OffsetDateTime,
    /// Why nothing newer could be had.
    stale: Option<Arc<str>>,
    data: Value,
}

impl Document {
    fn of<T>(aged: Aged<T>, data: impl FnOnce(&T) -> Value) -> Self {
        Self { as_of: aged.as_of, stale: aged.stale, data: data(&aged.value) }
    }
}

impl Tables {
    /// Answers stand for `refresh` at least.
    pub fn new(store: Store, scale: Scale, refresh: Duration) -> Self {
        Self {
            store,
            scale,
            scores: Cache::new(refresh),
            images: Cache::new(refresh),
            failures: Cache::new(refresh),
            models: Cache::new(refresh),
        }
    }

    /// Counts of every row: by status, by error, and by score of each version.
    pub async fn scores(&self) -> Result<Document, Arc<str>> {
        let Scale { min_score, max_score, .. } = self.scale;
        let tally = self.scores.get(|| self.store.tally((min_score, max_score), BINS, EXACT_UPTO)).await?;
        Ok(Document::of(tally, |tally| {
            let mut versions: Vec<_> = tally.versions.iter().collect();
            versions.sort_by_key(|(_, version)| std::cmp::Reverse(version.scored));
            let histograms = versions.iter().take(VERSIONS).map(|(name, version)| {
                let mean = version.sum / version.scored.max(1) as f64;
                json!({"model_version": name, "scored": version.scored, "mean": mean, "bins": version.bins})
            });
            json!({
                "statuses": tally.statuses,
                "removed": tally.removed,
                "errors": tally.errors,
                "sampled": tally.sampled,
                "range": [min_score, max_score],
                "versions": versions.len(),
                "histograms": histograms.collect::<Vec<_>>(),
            })
        }))
    }

    /// The latest, the best and the worst images.
    pub async fn images(&self) -> Result<Document, Arc<str>> {
        let ask = || async {
            Ok::<_, StoreError>(Images {
                latest: self.store.shown_scores(Order::Latest, IMAGES).await?,
                best: self.store.shown_scores(Order::Best, IMAGES).await?,
                worst: self.store.shown_scores(Order::Worst, IMAGES).await?,
            })
        };
        let images = self.images.get(ask).await?;
        Ok(Document::of(images, |Images { latest, best, worst }| {
            json!({
                "latest": self.shown(latest),
                "best": self.shown(best),
                "worst": self.shown(worst),
                "range": [self.scale.min_score, self.scale.max_score],
            })
        }))
    }

    /// The latest items that ended as dead letters.
    pub async fn failures(&self) -> Result<Document, Arc<str>> {
        let failures = self.failures.get(|| self.store.shown_failures(FAILURES)).await?;
        Ok(Document::of(failures, |failures| {
            let shown = failures.iter().map(|failure| {
                json!({
                    "id": failure.id,
                    "bucket": failure.bucket,
                    "key": failure.key,
                    "status": failure.status,
                    "error": failure.error,
                    "at": rfc3339(failure.scored_at),
                })
            });
            shown.collect()
        }))
    }

    /// Registered versions, champions over time, and runs of retraining.
    pub async fn models(&self) -> Result<Document, Arc<str>> {
        let ask = || async {
            Ok::<_, StoreError>(ModelHistory {
                versions: self.store.versions().await?,
                reigns: self.store.champion_history().await?,
                runs: self.store.retrain_runs(RUNS).await?,
            })
        };
        let models = self.models.get(ask).await?;
        Ok(Document::of(
            models,
            |ModelHistory { versions, reigns, runs }| json!({"versions": versions, "reigns": reigns, "runs": runs}),
        ))
    }

    fn shown(&self, scores: &[ShownScore]) -> Value {
        let shown = scores.iter().map(|score| {
            json!({
                "id": score.id,
                "bucket": score.bucket,
                "key": score.key,
                "score": score.score,
                "std": self.scale.std(&score.distribution),
                "distribution": score.distribution,
                "model_version": score.model_version,
                "at": rfc3339(score.scored_at),
            })
        });
        shown.collect()
    }
}

fn rfc3339(at: OffsetDateTime) -> Option<String> {
    at.format(&time::format_description::well_known::Rfc3339).ok()
}
