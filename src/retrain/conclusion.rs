//! What follows from a judgement: the report, the challenger published, promoted or rejected, and the run's end.

use super::{
    dataset::Dataset,
    error::{RetrainError, blocking},
    finish::Finish,
    job::Job,
    judge::Judgement,
    lease::Watch,
    publishing::shown_metrics,
    report::write_report,
};
use crate::{
    failpoint,
    model::checkpoint::Checkpoint,
    registry::{Origin, RegistryError},
    store::{RegisteredVersion, RunLease, RunOutcome, RunVerdict},
};
use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

impl Job<'_> {
    /// Has follow from the verdict what follows, and ends the run.
    pub(super) async fn conclude(
        &self,
        lease: &RunLease,
        champion: &RegisteredVersion,
        challenger: &Path,
        dataset: &Dataset,
        judgement: &Judgement,
        watch: &Watch,
    ) -> Result<Finish, RetrainError> {
        watch.begin("publishing", 0);
        let accepted = judgement.verdict.is_accepted();
        let page = self.report(lease.run, judgement, dataset).await?;
        let path = challenger.to_owned();
        let version = blocking(move || {
            let digest = Checkpoint::open(&path).and_then(|checkpoint| checkpoint.digest());
            Ok(digest.map_err(RegistryError::from)?.name())
        })
        .await?;
        // The very files of the champion are published already.
        let publishes = version != champion.version && (accepted || self.config.retrain.publish_rejected);
        let report = match publishes {
            true => {
                let origin = Origin {
                    parent: Some(champion.version.clone()),
                    dataset: Some(dataset.digest()?),
                    metrics: Some(shown_metrics(judgement)),
                };
                let (_, report) = self.publisher.publish(challenger, origin, &page).await?;
                self.store.set_label_watermark(&version, dataset.upto).await?;
                failpoint::reach("challenger-published");
                report
            }
            false => page.display().to_string(),
        };
        self.record(lease, &version, judgement, &report).await?;
        let (run, verdict) = (lease.run, judgement.verdict.to_string());
        let outcome = match accepted {
            true => {
                self.publisher.promote(&version, &champion.version).await?;
                failpoint::reach("challenger-promoted");
                RunOutcome::Accepted
            }
            false => {
                if publishes {
                    self.publisher.reject(&version).await?;
                }
                RunOutcome::Rejected
            }
        };
        self.store.end_run(lease, outcome, &verdict, None).await?;
        Ok(match accepted {
            true => Finish::Accepted { run, version, verdict, report },
            false => Finish::Rejected { run, version, verdict, report },
        })
    }

    pub async fn record(
        &self,
        lease: &RunLease,
        challenger: &str,
        judgement: &Judgement,
        report: &str,
    ) -> Result<(), RetrainError> {
        let verdict = RunVerdict {
            challenger: challenger.to_owned(),
            metrics: judgement.metrics()?.into(),
            verdict: serde_json::to_value(&judgement.verdict)?,
            report: report.to_owned(),
        };
        Ok(self.store.judge_run(lease, &verdict).await?)
    }

    /// Writes the page; where it is.
    pub async fn report(
        &self,
        run: i64,
        judgement: &Judgement,
        dataset: &Dataset,
    ) -> Result<PathBuf, RetrainError> {
        let folder = self.config.retrain.work_dir.join("reports");
        fs::create_dir_all(&folder).map_err(RetrainError::io(&folder, "creating the folder"))?;
        let path = folder.join(format!("run-{run}.html"));
        let settings = self.shown_settings(dataset)?;
        let (judgement, dataset, page) = (judgement.clone(), dataset.clone(), path.clone());
        let (cache, images) = (self.cache.clone(), self.config.image.clone());
        blocking(move || {
            let title = format!("Retraining run {run}");
            write_report(&page, title, &judgement, &dataset, settings, &cache, &images)
        })
        .await?;
        Ok(path)
    }

    fn shown_settings(&self, dataset: &Dataset) -> Result<Vec<(String, String)>, RetrainError> {
        let mut settings = vec![
            ("champion".to_owned(), dataset.champion.clone()),
            ("labels".to_owned(), format!("{} to {}", dataset.after, dataset.upto)),
            ("data set".to_owned(), dataset.digest()?),
        ];
        let counts: Map<String, Value> = serde_json::from_value(serde_json::to_value(dataset.counts)?)?;
        settings.extend(counts.into_iter().map(|(name, value)| (name.replace('_', " "), value.to_string())));
        Ok(settings)
    }
}
