//! What metrics say of Postgres, asked for from time to time.

use crate::{
    store::{RetrainSummary, Store, VersionError},
    telemetry::{
        drift::Distribution,
        scores::{ReferenceSource, ScoreMonitor, Unreferenced},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// The key in the `metrics` of a registered version that holds what its scores were like when it was judged.
const SCORE_DISTRIBUTION: &str = "score_distribution";

/// Asks for ever, and says what it learned in `retraining` and to `scores`.
///
/// Nobody waits for the answers, so a Postgres that is down is none of its business: what was learned last
/// stays.
pub(super) async fn observe(
    store: Store,
    scores: Arc<ScoreMonitor>,
    retraining: watch::Sender<Option<RetrainSummary>>,
    every: Duration,
) {
    loop {
        match store.retrain_summary().await {
            Ok(summary) => drop(retraining.send_replace(Some(summary))),
            Err(error) => tracing::debug!(%error, "Postgres says nothing of retraining"),
        }
        for wanted in scores.unreferenced() {
            if let Err(error) = refer(&store, &scores, &wanted).await {
                let version = wanted.version;
                tracing::debug!(%error, version, "Postgres says nothing of the scores to compare with");
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Finds what the scores of a version are to be compared with: what it was published with, or else its
/// first scores in any worker.
async fn refer(store: &Store, scores: &ScoreMonitor, wanted: &Unreferenced) -> Result<(), VersionError> {
    let version = &wanted.version;
    if let Some(published) = published(store, version).await?
        && scores.refer(version, published, ReferenceSource::Registry)
    {
        return Ok(());
    }
    if let Some(first) = store.score_reference(version, wanted.first.as_ref()).await? {
        scores.refer(version, first, ReferenceSource::FirstScores);
    }
    Ok(())
}

/// The distribution of scores that a registered version was published with.
async fn published(store: &Store, version: &str) -> Result<Option<Distribution>, VersionError> {
    let metrics = match store.find_version(version).await {
        Ok(registered) => registered.metrics,
        // A folder that nobody registered has a version, too.
        Err(VersionError::Unknown(_) | VersionError::Ambiguous(_)) => None,
        Err(error) => return Err(error),
    };
    let published = metrics.and_then(|metrics| metrics.get(SCORE_DISTRIBUTION).cloned());
    Ok(published.and_then(|published| serde_json::from_value(published).ok()))
}
