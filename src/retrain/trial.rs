//! A checkpoint from elsewhere before the gate.

use super::{
    error::RetrainError,
    job::{Job, scale},
    publishing::shown_metrics,
    select,
    settings::RetrainSettings,
};
use crate::{
    config::Config,
    evaluate::Verdict,
    registry::Origin,
    store::{RunKind, RunOutcome},
};
use futures_util::FutureExt;
use std::path::Path;

/// A version that was published and judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    pub version: String,
    pub uri: String,
    /// Files that were uploaded; the others were there.
    pub uploaded: usize,
    /// The version that it was judged against.
    pub champion: String,
    pub verdict: Verdict,
    /// Where the report is.
    pub report: String,
}

/// Judges the checkpoint in `folder` against the champion by the photos that a retraining run would judge by,
/// then publishes and registers it: as rejected, or as a candidate. Nobody knows what it was trained on; if
/// it has learned from the held-out photos, it seems better than it is.
///
/// `origin` says where it comes from; what was measured is added to it.
///
/// # Errors
/// [`RetrainError`]; [`RetrainError::Held`] while another run is under way.
pub async fn try_checkpoint(config: &Config, folder: &Path, origin: Origin) -> Result<Tried, RetrainError> {
    config.check_retrain()?;
    let job = Job::connect(config).boxed_local().await?;
    let tried = job.claim_and(RunKind::Trial, std::future::pending(), async |claimed, champion, watch| {
        let (lease, run) = (&claimed.lease, claimed.lease.run);
        let files = job.publisher.registry.version(champion).await?;
        // Nothing is learned from, so nothing is replayed.
        let settings = RetrainSettings { replay_share: 0.0, ..config.retrain.clone() };
        watch.begin("selecting labels", 0);
        let marks = select::watermarks(&job.store, &champion.version).await?;
        let scale = scale(&files.folder)?;
        let selection = select::select(&job.store, &marks, &scale, &settings).await?;
        let usual = config.labels.conversation();
        let preparation = job.preparation(lease, scale, &usual);
        let dataset = preparation.dataset(&champion.version, &selection, watch).boxed_local().await?;
        let judge = job.judge();
        let judging = judge.judge(&files.folder, folder, &dataset, watch);
        let judgement = watch.unless_stopped(judging.boxed_local()).await?;
        let page = job.report(run, &judgement, &dataset).await?;
        let mut metrics = shown_metrics(&judgement);
        metrics.extend(origin.metrics.clone().unwrap_or_default());
        let origin = Origin { metrics: Some(metrics), ..origin.clone() };
        let (published, report) = job.publisher.publish(folder, origin, &page).await?;
        let version = published.manifest.version.clone();
        job.record(lease, &version, &judgement, &report).await?;
        let accepted = judgement.verdict.is_accepted();
        if !accepted {
            job.publisher.reject(&version).await?;
        }
        let outcome = if accepted { RunOutcome::Accepted } else { RunOutcome::Rejected };
        let verdict = judgement.verdict.to_string();
        job.store.end_run(lease, outcome, &verdict, Some(&champion.version)).await?;
        Ok(Tried {
            version,
            uri: published.address.to_string(),
            uploaded: published.uploaded,
            champion: champion.version.clone(),
            verdict: judgement.verdict,
            report,
        })
    });
    let tried = tried.boxed_local().await;
    job.store.close().await;
    tried?.map_err(RetrainError::Held)
}
