//! One item's way: look up, fetch, score, store, stage.

use super::{
    Parts,
    in_flight::{Claim, InFlight, Lead},
    outcome::{self, Facts},
};
use crate::{
    failpoint::{self, Rule},
    fault::{Disposition, ErrorCode, ItemError, Stage},
    fetch::{FetchError, FetchedImage},
    inference::{ScoreFailure, Scored},
    kafka::ConsumedRecord,
    object::{ObjectRef, ScoreId},
    pipeline::admission::BytesPermit,
    record::{
        input::{Item, ParsedItem},
        trace::TraceContext,
    },
    retry::{GaveUp, retry},
    score::{ItemStatus, ModelVersion},
    store::{ScoreRow, SourcePosition, StoreError, StoredScore, WriteRequest},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};
use tokio::sync::oneshot;
use tracing::Instrument;

/// The task of one item of one record.
pub(super) struct ItemTask {
    pub parts: Arc<Parts>,
    pub in_flight: InFlight,
    pub record: Arc<ConsumedRecord>,
    pub trace: TraceContext,
    pub item: ParsedItem,
}

/// Why a task ends without an outcome; its record is replayed.
#[derive(Debug, thiserror::Error)]
enum Abandoned {
    #[error("the partition belongs to another worker now")]
    PartitionLost,
    #[error("the process is stopping")]
    Stopping,
    #[error("the model failed: {0}")]
    Model(crate::inference::EngineFailure),
    #[error("the output cannot be written as JSON: {0}")]
    Encoding(#[from] serde_json::Error),
}

/// What an item came to.
struct Ended {
    end: End,
    facts: Facts,
    /// Held until the row is written, so that a second notification finds it.
    _lead: Option<Lead>,
}

enum End {
    /// A row says it already.
    Stored(Box<StoredScore>),
    /// A row is to be written.
    Row(Box<ScoreRow>),
}

impl ItemTask {
    /// Runs the item to its staged output, or leaves its record to a replay.
    pub async fn run(self) {
        let span = tracing::info_span!(
            "item",
            trace_id = %self.trace.trace_id(),
            receipt = %self.record.receipt,
            item = self.item.index,
        );
        async {
            if let Err(abandoned) = self.finish().await {
                tracing::warn!(reason = %abandoned, "left to a replay");
            }
        }
        .instrument(span)
        .await;
    }

    async fn finish(&self) -> Result<(), Abandoned> {
        let parts = &self.parts;
        let Ended { end, facts, _lead } = self.work().await?;
        let (stored, emitted) = match end {
            End::Stored(stored) => (*stored, Rule::Reemit.holds()),
            End::Row(row) => (self.write(*row, &facts).await?, true),
        };
        let revision = parts.service.model().version.preprocess_revision;
        let position = self.record.receipt.position(self.item.index);
        let mut staged =
            outcome::stage(&stored, facts, revision, &self.record, position, &self.trace, &parts.routes)?;
        self.observe(&stored);
        if !emitted {
            staged.clear();
        }
        if parts.ledger.complete(&self.record.receipt, self.item.index, staged) {
            failpoint::reach("output-staged");
            Ok(())
        } else {
            Err(Abandoned::PartitionLost)
        }
    }

    async fn work(&self) -> Result<Ended, Abandoned> {
        let model = Arc::clone(&self.parts.service.model().version);
        match &self.item.outcome {
            Ok(Item::Score(object)) => self.score(object.clone(), &model).await,
            Ok(Item::Delete(object)) => {
                let id = ScoreId::derive(object, &model);
                let row = ScoreRow::unscored(
                    id,
                    Some(object.clone()),
                    &model,
                    ItemStatus::Deleted,
                    None,
                    Some(self.source()),
                );
                Ok(Ended::row(row, Facts { object: Some(object.clone()), ..Facts::default() }, None))
            }
            // Skipped items are never started; ending one without an output would be a lost record.
            Ok(Item::Skip(_)) => Err(Abandoned::Stopping),
            Err(bad) => {
                let facts = Facts { object: bad.object.as_deref().cloned(), ..Facts::default() };
                Ok(self.ended(facts, &model, ItemStatus::Rejected, bad.error.clone(), None))
            }
        }
    }

    async fn score(&self, mut object: ObjectRef, model: &Arc<ModelVersion>) -> Result<Ended, Abandoned> {
        let mut lead = None;
        if object.is_pinned() {
            match self.claim(ScoreId::derive(&object, model)).await? {
                Claimed::Lead(claimed) => lead = Some(claimed),
                Claimed::Stored(stored) => return Ok(Ended::stored(stored, object)),
            }
        }
        let mut facts = Facts { object: Some(object.clone()), ..Facts::default() };
        let (image, _bytes) = match self.fetch(&object, &mut facts).await? {
            Ok(fetched) => fetched,
            Err((status, error)) => {
                return Ok(self.ended(facts, model, status, outcome::named(&object, error), lead));
            }
        };
        // What the event did not say, the object does; what it did say stays, since the id holds it.
        if !object.is_pinned() {
            object.version_id = object.version_id.or(image.version_id);
            object.etag = object.etag.or(image.etag);
            object.size = object.size.or(Some(image.size));
        }
        failpoint::reach("fetched");
        facts.object = Some(object.clone());
        if lead.is_none() {
            match self.claim(ScoreId::derive(&object, model)).await? {
                Claimed::Lead(claimed) => lead = Some(claimed),
                Claimed::Stored(stored) => return Ok(Ended::stored(stored, object)),
            }
        }
        let scored = {
            let _stage = self.parts.metrics.enter(Stage::Infer);
            let name = object.to_string();
            match self.parts.ledger.is_suspect(&self.record.receipt) {
                true => self.parts.quarantine.score(&name, image.bytes).await,
                false => self.parts.service.score(&name, image.bytes).await,
            }
        };
        match scored {
            Ok(scored) => {
                failpoint::reach("scored");
                Ok(self.scored(object, scored, facts, lead))
            }
            Err(ScoreFailure::Rejected { error, version }) => {
                let error = outcome::named(&object, error);
                Ok(self.ended(facts, &version, ItemStatus::Rejected, error, lead))
            }
            Err(ScoreFailure::Engine(failure)) => Err(Abandoned::Model(failure)),
        }
    }

    /// The id is the batch's own model version's, whichever was serving when the item came in.
    fn scored(&self, object: ObjectRef, scored: Scored, mut facts: Facts, lead: Option<Lead>) -> Ended {
        let id = ScoreId::derive(&object, &scored.version);
        facts.pixels = Some((scored.width, scored.height));
        let row = ScoreRow::scored(id, object, &scored.version, &scored.answer, Some(self.source()));
        Ended::row(row, facts, lead)
    }

    fn ended(
        &self,
        facts: Facts,
        model: &ModelVersion,
        status: ItemStatus,
        error: ItemError,
        lead: Option<Lead>,
    ) -> Ended {
        let position = self.record.receipt.position(self.item.index);
        let id = match &facts.object {
            Some(object) => ScoreId::derive(object, model),
            None => ScoreId::of_position(&position.topic, position.partition, position.offset, position.item),
        };
        let source = Some(self.source());
        let row = ScoreRow::unscored(id, facts.object.clone(), model, status, Some(error), source);
        Ended::row(row, facts, lead)
    }

    fn source(&self) -> SourcePosition {
        let position = self.record.receipt.position(self.item.index);
        SourcePosition {
            topic: position.topic,
            partition: position.partition,
            offset: position.offset,
            item: position.item,
        }
    }

    /// The right to work on `id`, or the score that somebody has stored for it.
    async fn claim(&self, id: ScoreId) -> Result<Claimed, Abandoned> {
        loop {
            match self.in_flight.claim(id) {
                Claim::Follow(follow) => follow.leader_done().await,
                Claim::Lead(lead) => {
                    return Ok(match self.lookup(id).await? {
                        Some(stored) => Claimed::Stored(Box::new(stored)),
                        None => Claimed::Lead(lead),
                    });
                }
            }
            self.still_ours()?;
        }
    }

    /// The scored row of `id`, waiting for Postgres as long as it takes.
    async fn lookup(&self, id: ScoreId) -> Result<Option<StoredScore>, Abandoned> {
        let _stage = self.parts.metrics.enter(Stage::Lookup);
        let mut backoff = self.parts.retry.endless_backoff();
        loop {
            match self.parts.store.lookup(&[id]).await {
                Ok(mut rows) => {
                    failpoint::reach("looked-up");
                    return Ok(rows.remove(&id).filter(|stored| stored.row.status == ItemStatus::Scored));
                }
                Err(error) => {
                    self.parts.metrics.retry(Stage::Lookup);
                    tracing::warn!(%error, "looking up a row failed; trying again");
                }
            }
            self.still_ours()?;
            tokio::time::sleep(backoff.next_delay().unwrap_or_default()).await;
        }
    }

    /// The object's bytes with leave to hold them, or how the item ends without.
    async fn fetch(&self, object: &ObjectRef, facts: &mut Facts) -> Result<Fetch, Abandoned> {
        let Parts { fetcher, admission, metrics, max_image_bytes, .. } = &*self.parts;
        let _stage = metrics.enter(Stage::Fetch);
        let started = Instant::now();
        let first_failed = AtomicI64::new(0);
        let attempt = || async {
            let expected = object.size.unwrap_or(*max_image_bytes).min(*max_image_bytes);
            let mut bytes = admission.bytes(expected).await.ok_or(Attempt::Abandoned(Abandoned::Stopping))?;
            self.still_ours().map_err(Attempt::Abandoned)?;
            let image = fetcher.fetch(object, *max_image_bytes).await.map_err(Attempt::Failed)?;
            bytes.shrink_to(image.size);
            Ok((image, bytes))
        };
        let classify = |failure: &Attempt| match failure {
            Attempt::Abandoned(_) => Disposition::Stop,
            Attempt::Failed(error) => {
                let step = fetcher.next_step(error, started.elapsed());
                if first_failed.load(Ordering::Relaxed) == 0 {
                    first_failed.store(outcome::now_ms(), Ordering::Relaxed);
                }
                if matches!(step, Disposition::Retry | Disposition::Hold) {
                    metrics.retry(Stage::Fetch);
                    tracing::debug!(%error, "fetching failed; trying again");
                }
                step
            }
        };
        let outcome = retry(&self.parts.retry, attempt, classify).await;
        let failed_ms = first_failed.load(Ordering::Relaxed);
        facts.first_failed_ms = (failed_ms != 0).then_some(failed_ms);
        match outcome {
            Ok(fetched) => Ok(Ok(fetched)),
            Err(GaveUp { error: Attempt::Abandoned(abandoned), .. }) => Err(abandoned),
            Err(GaveUp { error: Attempt::Failed(error), attempts, exhausted }) => {
                facts.attempts = attempts;
                Ok(Err(if exhausted {
                    let message = format!("{error}; gave up after {attempts} attempts");
                    (ItemStatus::Dead, ItemError::new(ErrorCode::RetryExhausted, Stage::Fetch, message))
                } else {
                    (error.status(), error.item_error())
                }))
            }
        }
    }

    /// Hands the row to the writer and waits until it is durable.
    async fn write(&self, row: ScoreRow, facts: &Facts) -> Result<StoredScore, Abandoned> {
        let refusal = |error: &StoreError| {
            ItemError::new(ErrorCode::KeyNotStorable, Stage::Pg, format!("Postgres refuses the row: {error}"))
        };
        match self.write_once(row.clone()).await? {
            Ok(stored) => Ok(stored),
            // The item's own text is what Postgres cannot hold: the row says so without it.
            Err(error) => {
                let position = self.record.receipt.position(self.item.index);
                let id =
                    ScoreId::of_position(&position.topic, position.partition, position.offset, position.item);
                tracing::error!(%error, object = ?facts.object, "a row was refused");
                let bare = ScoreRow {
                    id,
                    object: None,
                    status: ItemStatus::Rejected,
                    score: None,
                    scores: Vec::new(),
                    distributions: Vec::new(),
                    text: None,
                    error: Some(refusal(&error)),
                    ..row
                };
                self.write_once(bare).await?.map_err(|error| {
                    tracing::error!(%error, "even a bare row was refused");
                    Abandoned::Stopping
                })
            }
        }
    }

    async fn write_once(&self, row: ScoreRow) -> Result<Result<StoredScore, StoreError>, Abandoned> {
        let _stage = self.parts.metrics.enter(Stage::Pg);
        let (reply, answer) = oneshot::channel();
        self.parts.writer.send(WriteRequest { row, reply }).await.map_err(|_| Abandoned::Stopping)?;
        answer.await.map_err(|_| Abandoned::Stopping)
    }

    fn still_ours(&self) -> Result<(), Abandoned> {
        if self.parts.ledger.is_live(&self.record.receipt) { Ok(()) } else { Err(Abandoned::PartitionLost) }
    }

    fn observe(&self, stored: &StoredScore) {
        let metrics = &self.parts.metrics;
        metrics.item(stored.row.status);
        if stored.reused && stored.row.status == ItemStatus::Scored {
            metrics.reused.inc();
        }
        if let Some(timestamp) = self.record.timestamp_ms {
            let age = (outcome::now_ms() - timestamp).max(0);
            metrics.record_age.observe(age as f64 / 1000.0);
        }
        match &stored.row.error {
            Some(error) => {
                metrics.error(error.stage, error.code);
                tracing::info!(id = %stored.row.id, status = %stored.row.status, code = %error.code, message = error.message, "no score");
            }
            None => {
                tracing::debug!(id = %stored.row.id, status = %stored.row.status, score = stored.row.score, "done")
            }
        }
    }
}

enum Claimed {
    Lead(Lead),
    Stored(Box<StoredScore>),
}

/// Fetched bytes, or the status and error that the item ends with.
type Fetch = Result<(FetchedImage, BytesPermit), (ItemStatus, ItemError)>;

/// Why one attempt to fetch failed.
enum Attempt {
    Failed(FetchError),
    Abandoned(Abandoned),
}

impl Ended {
    fn row(row: ScoreRow, facts: Facts, lead: Option<Lead>) -> Self {
        Self { end: End::Row(Box::new(row)), facts, _lead: lead }
    }

    fn stored(stored: Box<StoredScore>, object: ObjectRef) -> Self {
        Self {
            end: End::Stored(stored),
            facts: Facts { object: Some(object), ..Facts::default() },
            _lead: None,
        }
    }
}
