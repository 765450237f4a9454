//! From a request to the record that it is answered with.

use super::Parts;
use crate::{
    fault::{Disposition, ItemError},
    fetch::{FetchError, FetchedImage},
    http::{Problem, ScoringApiSettings},
    inference::{ScoreFailure, Scored},
    object::{ObjectRef, ScoreId},
    record::output::OutputRecord,
    retry::{RetrySettings, retry},
    score::{ItemStatus, ModelVersion},
    serving::Lost,
    store::StoredScore,
};
use axum::http::StatusCode;
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;

/// What messages call an image that has no name.
const UNNAMED: &str = "the image";
/// How soon to ask again when something that the worker needs is broken.
const BROKEN: Duration = Duration::from_secs(10);

/// The status that a record is answered with.
pub(super) fn status_of(record: &OutputRecord) -> StatusCode {
    match record.status {
        ItemStatus::Scored => StatusCode::OK,
        ItemStatus::Gone | ItemStatus::Deleted => StatusCode::NOT_FOUND,
        ItemStatus::Rejected | ItemStatus::Dead => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

/// What the model said of some bytes, and which version of it.
enum Judged {
    Scored(Box<Scored>),
    Rejected(ItemError, Arc<ModelVersion>),
}

impl Parts {
    /// Scores an image that has no name. Its id is that of its bytes.
    pub(super) async fn score_image(&self, bytes: Bytes) -> Result<OutputRecord, Problem> {
        let id = |version: &ModelVersion| ScoreId::of_content(&bytes, version);
        let record = match self.judge(None, UNNAMED, &bytes).await? {
            Judged::Scored(scored) => scored_record(id(&scored.version), None, &scored),
            Judged::Rejected(error, version) => {
                unscored_record(id(&version), None, &version, ItemStatus::Rejected, error)
            }
        };
        Ok(OutputRecord { size: Some(bytes.len() as u64), ..record })
    }

    /// Scores an object, unless a row says its score already.
    pub(super) async fn score_object(
        &self,
        mut object: ObjectRef,
        settings: &ScoringApiSettings,
    ) -> Result<OutputRecord, Problem> {
        if let Some(record) = self.stored(&object).await? {
            return Ok(record);
        }
        let FetchedImage { bytes, size, etag, version_id, .. } = match self.fetch(&object, settings).await {
            Ok(fetched) => fetched,
            Err(error) if error.disposition() == Disposition::Reject => {
                let model = self.models.model_for(Some(&object)).await;
                let version = model.version();
                let id = ScoreId::derive(&object, version);
                let (status, error) = (error.status(), error.item_error());
                return Ok(unscored_record(id, Some(&object), version, status, error));
            }
            Err(error) => return Err(unavailable("object_unavailable", &error)),
        };
        // As for a record: what the request did not say, the object does.
        if !object.is_pinned() {
            object.version_id = object.version_id.or(version_id);
            object.etag = object.etag.or(etag);
            object.size = object.size.or(Some(size));
            if let Some(record) = self.stored(&object).await? {
                return Ok(record);
            }
        }
        Ok(match self.judge(Some(&object), &object.to_string(), &bytes).await? {
            Judged::Scored(scored) => {
                scored_record(ScoreId::derive(&object, &scored.version), Some(&object), &scored)
            }
            Judged::Rejected(error, version) => {
                let id = ScoreId::derive(&object, &version);
                unscored_record(id, Some(&object), &version, ItemStatus::Rejected, error)
            }
        })
    }

    /// The record of a scored row, where there is one.
    async fn stored(&self, object: &ObjectRef) -> Result<Option<OutputRecord>, Problem> {
        if !object.is_pinned() {
            return Ok(None);
        }
        let model = self.models.model_for(Some(object)).await;
        let version = model.version();
        let id = ScoreId::derive(object, version);
        let mut rows =
            self.store.lookup(&[id]).await.map_err(|error| unavailable("store_unavailable", &error))?;
        let scored = rows.remove(&id).filter(|stored| stored.row.status == ItemStatus::Scored);
        Ok(scored.map(|StoredScore { row, .. }| OutputRecord {
            score: row.score,
            scores: row.scores,
            distributions: row.distributions,
            text: row.text,
            reused: true,
            ..OutputRecord::new(row.id, row.status, Some(object), version, None, row.scored_at)
        }))
    }

    async fn fetch(
        &self,
        object: &ObjectRef,
        settings: &ScoringApiSettings,
    ) -> Result<FetchedImage, FetchError> {
        let patience = RetrySettings {
            deadline_ms: self.retry.deadline_ms.min(settings.timeout_ms / 2),
            ..self.retry.clone()
        };
        // The caller says that the object is there now, so a missing one gets no time to appear.
        let fetched =
            retry(&patience, || self.fetcher.fetch(object, self.max_image_bytes), FetchError::passing);
        fetched.await.map_err(|gave_up| gave_up.error)
    }

    /// Has the model look at an image, and another one if that is taken away meanwhile.
    async fn judge(&self, object: Option<&ObjectRef>, name: &str, bytes: &Bytes) -> Result<Judged, Problem> {
        loop {
            let model = self.models.model_for(object).await;
            match model.score(name, bytes.clone(), false).await {
                Ok(scored) => return Ok(Judged::Scored(Box::new(scored))),
                Err(ScoreFailure::Rejected { error, version }) => {
                    return Ok(Judged::Rejected(error, version));
                }
                Err(ScoreFailure::Engine(failure)) => match self.models.lost(&model, &failure) {
                    Lost::TryAgain => {}
                    Lost::Everything => return Err(unavailable("model_unavailable", &failure)),
                },
            }
        }
    }
}

fn scored_record(id: ScoreId, object: Option<&ObjectRef>, scored: &Scored) -> OutputRecord {
    let Scored { answer, version, width, height } = scored;
    OutputRecord {
        score: Some(answer.score()),
        scores: answer.scores.iter().map(|value| value.score).collect(),
        distributions: answer.scores.iter().map(|value| value.distribution.clone()).collect(),
        text: Some(answer.text.clone()),
        width: Some(*width),
        height: Some(*height),
        ..OutputRecord::new(id, ItemStatus::Scored, object, version, None, OffsetDateTime::now_utc())
    }
}

fn unscored_record(
    id: ScoreId,
    object: Option<&ObjectRef>,
    version: &ModelVersion,
    status: ItemStatus,
    error: ItemError,
) -> OutputRecord {
    let record = OutputRecord::new(id, status, object, version, None, OffsetDateTime::now_utc());
    OutputRecord { error: Some(error), ..record }
}

fn unavailable(code: &'static str, error: &dyn std::error::Error) -> Problem {
    tracing::warn!(%error, "a request for a score was not answered");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string()).retry_after(BROKEN)
}
