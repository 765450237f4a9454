//! What follows from a verdict: the challenger in S3 and in the table of versions, and who is the champion.

use super::{
    error::{RetrainError, blocking},
    judge::Judgement,
};
use crate::{
    evaluate::Metric,
    fetch::{Fetcher, LocalFile, Uploader},
    model::checkpoint::FileDigest,
    registry::{Origin, Publication, Published, Registry},
    retry::RetrySettings,
    store::{Store, Terms, VersionError},
};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The object beside a version's files that shows how it was judged.
const REPORT: &str = "report.html";

/// Where versions go.
#[derive(Clone)]
pub struct Publisher {
    pub store: Store,
    pub registry: Registry,
    pub fetcher: Fetcher,
    pub retry: RetrySettings,
}

impl Publisher {
    /// Uploads a checkpoint with its report, the manifest last of its files, and registers it as a
    /// candidate, or leaves its status as it is. May be repeated.
    ///
    /// # Errors
    /// [`RetrainError::Registry`].
    pub async fn publish(
        &self,
        folder: &Path,
        origin: Origin,
        report: &Path,
    ) -> Result<(Published, String), RetrainError> {
        let published = self.registry.publish(&Publication { folder: folder.to_owned(), origin }).await?;
        let object = published.address.object(REPORT);
        let path = report.to_owned();
        let digest =
            blocking(move || FileDigest::of(&path).map_err(|error| RetrainError::Registry(error.into())))
                .await?;
        let file = LocalFile { path: report, bytes: digest.bytes, sha256: &digest.sha256 };
        Uploader::new(&self.fetcher, &self.retry).upload(&object, file, &|_| ()).await?;
        self.store.register_version(&published.new_version()).await?;
        Ok((published, format!("s3://{object}")))
    }

    /// Makes `version` the champion in the place of `champion` alone, whom it was judged against; what the
    /// retired one is called.
    ///
    /// # Errors
    /// [`VersionError::Overtaken`] among them.
    pub async fn promote(&self, version: &str, champion: &str) -> Result<Option<String>, RetrainError> {
        let terms = Terms { over: Some(Some(champion.to_owned())), even_rejected: true };
        Ok(self.store.promote_version(version, &terms).await?.retired)
    }

    /// Notes that `version` is not good enough.
    ///
    /// # Errors
    /// [`RetrainError::Registry`].
    pub async fn reject(&self, version: &str) -> Result<(), RetrainError> {
        match self.store.reject_version(version).await {
            // The very files of the champion: they stay what they are.
            Ok(_) | Err(VersionError::NotACandidate { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What the table of versions shows: numbers by name, and what the gate said.
pub fn shown_metrics(judgement: &Judgement) -> Map<String, Value> {
    let mut metrics = Map::new();
    for judged in &judgement.sets {
        let set = match serde_json::to_value(judged.set) {
            Ok(Value::String(set)) => set,
            _ => continue,
        };
        if let Some(srcc) = judged.comparison.metrics.get(&Metric::Srcc) {
            metrics.insert(format!("{set}_srcc"), json!(srcc.challenger.value));
            metrics.insert(format!("{set}_srcc_gain"), json!(srcc.difference.value));
        }
    }
    metrics.insert("verdict".into(), json!(judgement.verdict.to_string()));
    metrics
}
