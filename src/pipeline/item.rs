//! One item's way: look up, fetch, score, store, stage.

use super::{
    Parts,
    hold::{Dependency, Pass},
    in_flight::{InFlight, Lead},
    outcome::{self, Facts},
    storing,
};
use crate::{
    failpoint::{self, Rule},
    fault::{ErrorCode, ItemError, Stage},
    kafka::{ConsumedRecord, Ledger, Receipt},
    object::{ObjectRef, ScoreId},
    record::{
        input::{Item, ParsedItem},
        trace::TraceContext,
    },
    score::{ItemStatus, ModelVersion},
    serving::{ServedModel, Ticket},
    store::{LookUp, ScoreRow, SourcePosition, StoreError, StoredScore, WriteRequest},
    telemetry::{metrics::ReuseSource, traces::Span},
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio::sync::oneshot;
use tracing::Instrument;

/// How often an item that waits looks whether its partition has gone.
const OURS_CHECKED_EVERY: Duration = Duration::from_secs(1);

/// The task of one item of one record.
pub(super) struct ItemTask {
    pub parts: Arc<Parts>,
    pub in_flight: InFlight<ScoreId>,
    pub record: Arc<ConsumedRecord>,
    /// The span's place in the trace, which the output continues.
    pub trace: TraceContext,
    pub span: Span,
    pub item: ParsedItem,
}

/// Why a task ends without an outcome; its record is replayed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Abandoned {
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
pub(super) struct Ended {
    end: End,
    facts: Facts,
    /// What the id was derived with.
    version: Arc<ModelVersion>,
    /// Places with the shadows that are to see the image too.
    shadows: Vec<Ticket>,
    /// Held until the row is written, so that a second notification finds it.
    _lead: Option<Lead<ScoreId>>,
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
            span_id = %self.trace.span_id(),
            receipt = %self.record.receipt,
            item = self.item.index,
        );
        async {
            if let Err(abandoned) = self.finish().await {
                self.span.fail(&abandoned);
                tracing::warn!(reason = %abandoned, "left to a replay");
            }
        }
        .instrument(span)
        .await;
    }

    async fn finish(&self) -> Result<(), Abandoned> {
        let parts = &self.parts;
        let Ended { end, facts, version, shadows, _lead } = self.work().await?;
        let (stored, emitted) = match end {
            End::Stored(stored) => (*stored, Rule::Reemit.holds()),
            End::Row(row) => {
                if outcome::is_dead_letter(&row) {
                    self.dead_letter().await?;
                }
                (self.write(*row, &facts).await?, true)
            }
        };
        if stored.row.status == ItemStatus::Scored {
            parts.hold.scored();
        }
        let (revision, reused) = (version.preprocess_revision, facts.reused);
        let position = self.record.receipt.position(self.item.index);
        self.trace_end(facts.object.as_ref(), &stored);
        let mut staged =
            outcome::stage(&stored, facts, revision, &self.record, position, &self.trace, &parts.routes)?;
        self.observe(&stored, reused);
        if !emitted {
            staged.clear();
        }
        if parts.ledger.complete(&self.record.receipt, self.item.index, staged) {
            failpoint::reach("output-staged");
            if let Some(score) = stored.row.score {
                for shadow in shadows {
                    shadow.compare(stored.row.id, stored.row.model_version.clone(), score);
                }
            }
            Ok(())
        } else {
            Err(Abandoned::PartitionLost)
        }
    }

    async fn work(&self) -> Result<Ended, Abandoned> {
        match &self.item.outcome {
            Ok(Item::Score(object)) => self.score(object.clone()).await,
            Ok(Item::Delete(object)) => {
                let version = Arc::clone(self.model_for(Some(object)).await?.version());
                let id = ScoreId::of_removal(object, &version);
                let row = ScoreRow::unscored(
                    id,
                    Some(object.clone()),
                    &version,
                    ItemStatus::Deleted,
                    None,
                    Some(self.source()),
                );
                let facts = Facts { object: Some(object.clone()), ..Facts::default() };
                Ok(Ended::row(row, facts, version, None))
            }
            // Skipped items are never started; ending one without an output would be a lost record.
            Ok(Item::Skip(_)) => Err(Abandoned::Stopping),
            Err(bad) => {
                let facts = Facts { object: bad.object.as_deref().cloned(), ..Facts::default() };
                let version = Arc::clone(self.model_for(facts.object.as_ref()).await?.version());
                Ok(self.ended(facts, version, ItemStatus::Rejected, bad.error.clone(), None))
            }
        }
    }

    /// The model that scores an object now, waiting for one as long as it takes.
    pub(super) async fn model_for(&self, object: Option<&ObjectRef>) -> Result<Arc<ServedModel>, Abandoned> {
        self.while_ours(self.parts.models.model_for(object)).await
    }

    pub(super) fn ended(
        &self,
        facts: Facts,
        version: Arc<ModelVersion>,
        status: ItemStatus,
        error: ItemError,
        lead: Option<Lead<ScoreId>>,
    ) -> Ended {
        let position = self.record.receipt.position(self.item.index);
        let id = match &facts.object {
            Some(object) => ScoreId::derive(object, &version),
            None => ScoreId::of_position(&position.topic, position.partition, position.offset, position.item),
        };
        let source = Some(self.source());
        let row = ScoreRow::unscored(id, facts.object.clone(), &version, status, Some(error), source);
        Ended::row(row, facts, version, lead)
    }

    pub(super) fn source(&self) -> SourcePosition {
        let position = self.record.receipt.position(self.item.index);
        SourcePosition {
            topic: position.topic,
            partition: position.partition,
            offset: position.offset,
            item: position.item,
        }
    }

    /// The scored row of `id`, waiting for Postgres as long as it takes.
    pub(super) async fn lookup(&self, id: ScoreId) -> Result<Option<StoredScore>, Abandoned> {
        let _stage = self.enter(Stage::Lookup);
        let mut backoff = self.parts.retry.endless_backoff();
        loop {
            let pass = self.pass(&self.parts.hold.postgres).await?;
            let (reply, answer) = oneshot::channel();
            self.parts.rows.send(LookUp { key: id, reply }).await.map_err(|_| Abandoned::Stopping)?;
            match answer.await.map_err(|_| Abandoned::Stopping)? {
                Ok(stored) => {
                    pass.worked();
                    failpoint::reach("looked-up");
                    return Ok(stored.filter(|stored| stored.row.status == ItemStatus::Scored));
                }
                Err(error) => {
                    self.parts.metrics.retry(Stage::Lookup);
                    storing::failed(pass, &error);
                }
            }
            self.still_ours()?;
            tokio::time::sleep(backoff.next_delay().unwrap_or_default()).await;
        }
    }

    /// Waits until the item may become a dead letter.
    async fn dead_letter(&self) -> Result<(), Abandoned> {
        self.while_ours(self.parts.hold.dead_letter()).await
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
                    content: None,
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
        let _stage = self.enter(Stage::Pg);
        let (reply, answer) = oneshot::channel();
        self.parts.writer.send(WriteRequest { row, reply }).await.map_err(|_| Abandoned::Stopping)?;
        answer.await.map_err(|_| Abandoned::Stopping)
    }

    /// Leave to ask `dependency`, however long that takes while the partition is ours.
    pub(super) async fn pass<'a>(&self, dependency: &'a Dependency) -> Result<Pass<'a>, Abandoned> {
        self.while_ours(dependency.pass()).await
    }

    pub(super) async fn while_ours<T>(&self, waiting: impl Future<Output = T>) -> Result<T, Abandoned> {
        while_ours(&self.parts.ledger, &self.record.receipt, waiting).await
    }

    /// Who asks, for the breakers: different items are different askers.
    pub(super) fn asker(&self) -> u64 {
        let receipt = &self.record.receipt;
        let mut hasher = DefaultHasher::new();
        let source = receipt.source();
        (&source.topic, source.partition, receipt.offset(), self.item.index).hash(&mut hasher);
        hasher.finish()
    }

    pub(super) fn still_ours(&self) -> Result<(), Abandoned> {
        if self.parts.ledger.is_live(&self.record.receipt) { Ok(()) } else { Err(Abandoned::PartitionLost) }
    }

    fn observe(&self, stored: &StoredScore, reused: Option<ReuseSource>) {
        let metrics = &self.parts.metrics;
        metrics.item(stored.row.status);
        let reused = if stored.reused { Some(ReuseSource::Row) } else { reused };
        if let Some(source) = reused
            && stored.row.status == ItemStatus::Scored
        {
            metrics.reused(source);
        }
        if let Some(timestamp) = self.record.timestamp_ms {
            let age = (outcome::now_ms() - timestamp).max(0);
            metrics.record_age.observe(age as f64 / 1000.0);
        }
        match &stored.row.error {
            Some(error) => {
                metrics.error(error.stage, error.code);
                tracing::info!(id = %stored.row.id, status = %stored.row.status, code = %error.code, stage = %error.stage, reason = error.message, "no score");
            }
            None => {
                tracing::debug!(id = %stored.row.id, status = %stored.row.status, score = stored.row.score, "done")
            }
        }
    }
}

/// What `waiting` ends with, unless the record's partition goes first.
pub(super) async fn while_ours<T>(
    ledger: &Ledger,
    receipt: &Receipt,
    waiting: impl Future<Output = T>,
) -> Result<T, Abandoned> {
    let lost = async {
        while ledger.is_live(receipt) {
            tokio::time::sleep(OURS_CHECKED_EVERY).await;
        }
    };
    tokio::select! {
        biased;
        ended = waiting => Ok(ended),
        () = lost => Err(Abandoned::PartitionLost),
    }
}

impl Ended {
    pub(super) fn row(
        row: ScoreRow,
        facts: Facts,
        version: Arc<ModelVersion>,
        lead: Option<Lead<ScoreId>>,
    ) -> Self {
        Self { end: End::Row(Box::new(row)), facts, version, shadows: Vec::new(), _lead: lead }
    }

    pub(super) fn stored(stored: StoredScore, object: ObjectRef, version: Arc<ModelVersion>) -> Self {
        let facts = Facts { object: Some(object), ..Facts::default() };
        Self { end: End::Stored(Box::new(stored)), facts, version, shadows: Vec::new(), _lead: None }
    }

    /// The same, with the image on its way to `shadows` once its output is.
    pub(super) fn shadowed(mut self, shadows: Vec<Ticket>) -> Self {
        self.shadows = shadows;
        self
    }
}
