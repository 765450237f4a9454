//! What metrics and traces hear of a record, its items, and the stages that they are in.

use super::item::ItemTask;
use crate::{
    fault::Stage,
    inference::{Observer, ScoreFailure, Scored, Step},
    kafka::{ConsumedRecord, Witness},
    object::ObjectRef,
    serving::ServedModel,
    store::StoredScore,
    telemetry::{
        metrics::{Metrics, StageGuard},
        traces::{Span, SpanSeed},
    },
};
use bytes::Bytes;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// A stay in one stage, counted and timed, and a span of the trace.
#[derive(Debug)]
pub(super) struct InStage {
    span: Span,
    _guard: StageGuard,
}

impl InStage {
    pub fn new(metrics: &Metrics, seed: &SpanSeed, stage: Stage) -> Self {
        Self { span: seed.child(stage.as_str()), _guard: metrics.enter(stage) }
    }

    /// It ends without what it was for.
    pub fn fail(&self, reason: &dyn fmt::Display) {
        self.span.fail(reason);
    }
}

/// Watches a record from its arrival to the commit of its offset.
#[derive(Debug)]
pub(super) struct RecordWitness {
    metrics: Arc<Metrics>,
    // Ends before the record does, of which it is a part.
    produce: Option<InStage>,
    span: Span,
    committed: bool,
}

impl RecordWitness {
    /// `span` is that of the record's whole way.
    pub fn new(metrics: Arc<Metrics>, span: Span, record: &ConsumedRecord, group: &str) -> Self {
        let receipt = &record.receipt;
        span.set("messaging.system", || "kafka");
        span.set("messaging.operation.type", || "process");
        span.set("messaging.destination.name", || receipt.source().topic.to_string());
        span.set("messaging.destination.partition.id", || receipt.source().partition.to_string());
        span.set("messaging.kafka.offset", || receipt.offset());
        span.set("messaging.consumer.group.name", || group.to_owned());
        Self { metrics, produce: None, span, committed: false }
    }
}

impl Witness for RecordWitness {
    fn finished(&mut self) {
        self.produce = Some(InStage::new(&self.metrics, &self.span.seed(), Stage::Produce));
    }

    fn refused(&mut self) {
        self.metrics.retry(Stage::Produce);
    }

    fn committed(mut self: Box<Self>) {
        self.committed = true;
    }
}

impl Drop for RecordWitness {
    fn drop(&mut self) {
        if !self.committed {
            self.span.fail(&"left to a replay: the partition went before the commit");
        }
    }
}

/// Watches an image on its way through decoding, the wait for a batch, and the model.
#[derive(Debug)]
struct ImageWatch {
    metrics: Arc<Metrics>,
    seed: SpanSeed,
    place: Mutex<Place>,
}

#[derive(Debug)]
enum Place {
    Nowhere,
    Decoding(InStage),
    Waiting {
        since: Instant,
        _span: Span,
    },
    Running(InStage),
    /// Whatever is said of it from here on is too late.
    Over,
}

impl ImageWatch {
    fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer is here, or nobody waits for it any more.
    fn end(&self, failure: Option<&ScoreFailure>) {
        let mut place = self.lock();
        if let (Place::Decoding(stage) | Place::Running(stage), Some(failure)) = (&*place, failure) {
            stage.fail(failure);
        }
        *place = Place::Over;
    }
}

impl Observer for ImageWatch {
    fn reached(&self, step: Step) {
        let mut place = self.lock();
        match (&*place, step) {
            (Place::Over, _) => {}
            (_, Step::Waiting) => {
                // The stage before ends here, and not once the next one has begun.
                *place = Place::Nowhere;
                *place = Place::Waiting { since: Instant::now(), _span: self.seed.child("batch") };
            }
            (before, Step::Running { batch }) => {
                if let Place::Waiting { since, .. } = before {
                    self.metrics.batch_wait(since.elapsed());
                }
                *place = Place::Nowhere;
                let stage = InStage::new(&self.metrics, &self.seed, Stage::Infer);
                stage.span.set("roc4mllm.batch_size", || i64::try_from(batch).unwrap_or(i64::MAX));
                *place = Place::Running(stage);
            }
        }
    }
}

/// Ends the watch when the caller goes away, too.
struct Watching(Arc<ImageWatch>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.end(None);
    }
}

impl ItemTask {
    /// The item is in `stage` until this drops.
    pub(super) fn enter(&self, stage: Stage) -> InStage {
        InStage::new(&self.parts.metrics, &self.span.seed(), stage)
    }

    /// Has `model` score the image, and watches it.
    pub(super) async fn ask(
        &self,
        model: &ServedModel,
        object: &ObjectRef,
        bytes: Bytes,
        suspect: bool,
    ) -> Result<Scored, ScoreFailure> {
        let metrics = &self.parts.metrics;
        let seed = self.span.seed();
        let place = match suspect {
            true => Place::Nowhere,
            false => Place::Decoding(InStage::new(metrics, &seed, Stage::Decode)),
        };
        let watch = Arc::new(ImageWatch { metrics: Arc::clone(metrics), seed, place: Mutex::new(place) });
        let watching = Watching(Arc::clone(&watch));
        let outcome = model.score_observed(&object.to_string(), bytes, suspect, Some(watch)).await;
        watching.0.end(outcome.as_ref().err());
        if let Ok(scored) = &outcome {
            metrics.scores.record(&scored.version.version, model.score_range(), scored.answer.score());
        }
        outcome
    }

    /// Says in the item's span what became of it.
    pub(super) fn trace_end(&self, object: Option<&ObjectRef>, stored: &StoredScore) {
        let (span, row) = (&self.span, &stored.row);
        span.set("roc4mllm.score_id", || row.id.to_string());
        span.set("roc4mllm.status", || row.status.as_str());
        span.set("roc4mllm.reused", || stored.reused);
        span.set("roc4mllm.model_version", || row.model_version.clone());
        if let Some(object) = object {
            span.set("roc4mllm.object", || object.to_string());
        }
        if let Some(score) = row.score {
            span.set("roc4mllm.score", || score);
        }
        if let Some(error) = &row.error {
            span.set("error.type", || error.code.to_string());
            span.fail(error);
        }
    }
}
