//! One batch through the model, come what may: halved when memory runs out, bisected when it fails.

use super::{
    batcher::BatchCap,
    failure::EngineFailure,
    metrics::InferenceMetrics,
    scorer::{ScoreBatch, Scorer, ScorerError},
    slot::{Slot, SlotPool},
    warm_up::{fitting, peak_of},
    watchdog::RunClock,
};
use crate::{
    fault::{ErrorCode, ItemError, Stage},
    score::{Answer, ModelVersion},
};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

/// What became of one image of a batch.
pub type Verdict = Result<Answer, ItemError>;

/// A scorer with the rules that keep one image's trouble its own.
///
/// * Out of memory: the batch is halved until it passes, and no batch that large is tried for a while.
/// * Any other failure of a batch, a panic included: it is bisected, so that only the image to blame
///   is rejected. An image that fails alone is to blame only if a neutral image passes; else the model
///   is, and the engine fails.
/// * A score that is not finite, or outside the model's range, is tried once more alone.
pub struct Runner {
    scorer: Box<dyn Scorer>,
    version: Arc<ModelVersion>,
    cap: BatchCap,
    neutral: ScoreBatch,
    metrics: Arc<InferenceMetrics>,
    clock: Arc<RunClock>,
}

impl Runner {
    /// Leases one slot of `slots` for good, for the neutral image.
    pub fn new(
        scorer: Box<dyn Scorer>,
        slots: &SlotPool,
        cap: BatchCap,
        metrics: Arc<InferenceMetrics>,
        clock: Arc<RunClock>,
    ) -> Self {
        let version = Arc::new(scorer.version().clone());
        let neutral = ScoreBatch { slots: vec![neutral_slot(slots)] };
        Self { scorer, version, cap, neutral, metrics, clock }
    }

    /// The version that the next batch is scored by.
    pub fn version(&self) -> &Arc<ModelVersion> {
        &self.version
    }

    pub fn metrics(&self) -> &InferenceMetrics {
        &self.metrics
    }

    /// The most images to hand to [`run`](Self::run) now.
    pub fn capacity(&mut self) -> usize {
        let capacity = self.cap.at(Instant::now());
        self.metrics.batch_cap.set(capacity as u64);
        capacity
    }

    /// Finds the largest batch of neutral images that fits into memory, which none exceeds from then on, and
    /// says how long its run took.
    ///
    /// # Errors
    /// [`EngineFailure`] when not even one image passes.
    pub fn warm_up(&mut self, slots: &SlotPool) -> Result<Duration, EngineFailure> {
        let capacity = self.capacity();
        let mut size = capacity;
        if capacity > 2 && self.scorer.computes_in_host_memory() {
            let mut peaks = [None; 2];
            for (images, peak) in (1..).zip(&mut peaks) {
                // What fails here fails below, where it is answered for.
                *peak = peak_of(|| self.run_neutral(slots, images)).1;
            }
            size = fitting(capacity, peaks[0], peaks[1]);
        }
        let (mut fits, mut too_many) = (0, size + 1);
        let mut took = Duration::ZERO;
        while fits + 1 < too_many {
            let start = Instant::now();
            match self.run_neutral(slots, size) {
                Ok(()) => (fits, took) = (size, start.elapsed()),
                Err(ScorerError::OutOfMemory { reason, .. }) if size == 1 => {
                    return Err(EngineFailure::out_of_memory(reason));
                }
                Err(ScorerError::OutOfMemory { .. }) => too_many = size,
                Err(ScorerError::Batch { reason, .. }) => return Err(EngineFailure::model(reason)),
                Err(ScorerError::Device(reason)) => return Err(EngineFailure::device(reason)),
            }
            size = fits.midpoint(too_many);
        }
        if fits < capacity {
            tracing::warn!(batch = fits, configured = capacity, "no larger batch fits into memory");
        }
        self.cap.settle(fits);
        self.metrics.batch_cap.set(fits as u64);
        Ok(took)
    }

    fn run_neutral(&mut self, slots: &SlotPool, images: usize) -> Result<(), ScorerError> {
        let batch = ScoreBatch { slots: (0..images).map(|_| neutral_slot(slots)).collect() };
        self.call(&batch).map(drop)
    }

    /// Scores `slots` and calls `answer` once an image, in their order.
    ///
    /// # Errors
    /// [`EngineFailure`] when the model or its device is beyond use; images without an answer by then
    /// get none.
    pub fn run(&mut self, slots: Vec<Slot>, answer: &mut dyn FnMut(Verdict)) -> Result<(), EngineFailure> {
        let size = slots.len();
        let batch = ScoreBatch { slots };
        match self.attempt(&batch) {
            Ok(verdicts) => {
                for (slot, verdict) in batch.slots.into_iter().zip(verdicts) {
                    let verdict =
                        if self.is_suspicious(&verdict) { self.run_again_alone(slot)? } else { verdict };
                    self.metrics.images.add(1);
                    answer(verdict);
                }
                Ok(())
            }
            Err(ScorerError::Device(reason)) => Err(EngineFailure::device(reason)),
            Err(ScorerError::OutOfMemory { reason, .. }) if size <= 1 => {
                Err(EngineFailure::out_of_memory(reason))
            }
            Err(ScorerError::OutOfMemory { reason, .. }) => {
                tracing::warn!(batch = size, reason, "out of memory; the batch is halved");
                self.metrics.out_of_memory.add(1);
                self.lower_cap(size);
                self.run_halves(batch.slots, answer)
            }
            Err(ScorerError::Batch { reason, .. }) if size <= 1 => {
                let verdict = self.blame(reason)?;
                self.metrics.images.add(1);
                answer(Err(verdict));
                Ok(())
            }
            Err(ScorerError::Batch { reason, .. }) => {
                tracing::warn!(
                    batch = size,
                    reason,
                    "the batch failed; it is split to find the image to blame"
                );
                self.metrics.bisections.add(1);
                self.run_halves(batch.slots, answer)
            }
        }
    }

    /// The score of a batch of one image that counts in no metric, or why it has none.
    ///
    /// # Errors
    /// [`EngineFailure`] when the device or its memory is beyond use.
    pub fn score_aside(&mut self, batch: &ScoreBatch) -> Result<Result<f64, String>, EngineFailure> {
        let verdicts = {
            let _run = self.clock.begin();
            call(self.scorer.as_mut(), batch, |scorer, batch| scorer.score_afresh(batch))
        };
        match verdicts.map(|mut verdicts| verdicts.pop()) {
            Ok(Some(Ok(answer))) if !self.is_suspicious(&Ok(answer.clone())) => Ok(Ok(answer.score())),
            Ok(Some(Err(error))) => Ok(Err(error.message)),
            Ok(_) => Ok(Err("its score is no finite number in the model's range".into())),
            Err(ScorerError::Batch { reason, .. }) => Ok(Err(reason)),
            Err(ScorerError::OutOfMemory { reason, .. }) => Err(EngineFailure::out_of_memory(reason)),
            Err(ScorerError::Device(reason)) => Err(EngineFailure::device(reason)),
        }
    }

    fn run_halves(
        &mut self,
        mut slots: Vec<Slot>,
        answer: &mut dyn FnMut(Verdict),
    ) -> Result<(), EngineFailure> {
        let second = slots.split_off(slots.len() / 2);
        self.run(slots, answer)?;
        self.run(second, answer)
    }

    fn run_again_alone(&mut self, slot: Slot) -> Result<Verdict, EngineFailure> {
        let batch = ScoreBatch { slots: vec![slot] };
        match self.attempt(&batch).map(|mut verdicts| verdicts.pop()) {
            Ok(Some(verdict)) if !self.is_suspicious(&verdict) => Ok(verdict),
            Ok(_) => {
                self.check_neutral("its scores are not finite")?;
                Ok(Err(ItemError::new(
                    ErrorCode::NonFiniteScore,
                    Stage::Infer,
                    "the model gave a score that is no finite number in its range; \
                     check the image, and the checkpoint if more images do this",
                )))
            }
            Err(ScorerError::Batch { reason, .. }) => Ok(Err(self.blame(reason)?)),
            Err(ScorerError::OutOfMemory { reason, .. }) => Err(EngineFailure::out_of_memory(reason)),
            Err(ScorerError::Device(reason)) => Err(EngineFailure::device(reason)),
        }
    }

    /// The rejection of an image that failed alone for `reason`.
    fn blame(&mut self, reason: String) -> Result<ItemError, EngineFailure> {
        self.check_neutral(&reason)?;
        Ok(ItemError::new(
            ErrorCode::Poison,
            Stage::Infer,
            format!("the model fails on this image alone ({reason}); re-export the image"),
        ))
    }

    /// Fails when the model does not get a neutral image through either.
    fn check_neutral(&mut self, reason: &str) -> Result<(), EngineFailure> {
        let _run = self.clock.begin();
        match call(self.scorer.as_mut(), &self.neutral, |scorer, batch| scorer.score(batch)) {
            Ok(verdicts) if !verdicts.iter().any(|verdict| self.is_suspicious(verdict)) => Ok(()),
            Ok(_) | Err(ScorerError::Batch { .. }) => Err(EngineFailure::model(reason)),
            Err(ScorerError::OutOfMemory { reason, .. }) => Err(EngineFailure::out_of_memory(reason)),
            Err(ScorerError::Device(reason)) => Err(EngineFailure::device(reason)),
        }
    }

    fn is_suspicious(&self, verdict: &Verdict) -> bool {
        let (low, high) = self.scorer.score_range();
        // A sum of rounded probabilities may pass an end of the range by rounding.
        let slack = 1e-4 * (high - low).abs().max(1.0);
        match verdict {
            Ok(answer) => {
                answer.scores.is_empty()
                    || !answer.scores.iter().all(|value| {
                        (low - slack..=high + slack).contains(&value.score) && value.std.is_finite()
                    })
            }
            Err(error) => error.code == ErrorCode::NonFiniteScore,
        }
    }

    fn lower_cap(&mut self, size: usize) {
        self.cap.lower(size, Instant::now());
    }

    fn attempt(&mut self, batch: &ScoreBatch) -> Result<Vec<Verdict>, ScorerError> {
        let start = Instant::now();
        let before = self.scorer.drafts();
        let outcome = self.call(batch);
        let after = self.scorer.drafts();
        self.metrics.record_batch(batch.len(), start.elapsed());
        self.metrics.drafts_accepted.add(after.accepted.saturating_sub(before.accepted));
        self.metrics.drafts_rejected.add(after.rejected.saturating_sub(before.rejected));
        outcome
    }

    fn call(&mut self, batch: &ScoreBatch) -> Result<Vec<Verdict>, ScorerError> {
        let _run = self.clock.begin();
        call(self.scorer.as_mut(), batch, |scorer, batch| scorer.score(batch))
    }
}

/// Calls the scorer; a panic and a wrong number of results are failures of the batch.
fn call(
    scorer: &mut dyn Scorer,
    batch: &ScoreBatch,
    score: impl FnOnce(&mut dyn Scorer, &ScoreBatch) -> Result<Vec<Verdict>, ScorerError>,
) -> Result<Vec<Verdict>, ScorerError> {
    // A scorer keeps from one batch to the next only what it has learnt from whole ones, so that a
    // half-done call leaves nothing broken behind.
    match catch_unwind(AssertUnwindSafe(|| score(scorer, batch))) {
        Ok(Ok(verdicts)) if verdicts.len() != batch.len() => Err(ScorerError::Batch {
            batch: batch.len(),
            reason: format!("it gave {} results for {} images", verdicts.len(), batch.len()),
        }),
        Ok(outcome) => outcome,
        Err(payload) => {
            let reason = panic_message(payload.as_ref());
            // Operators without an error value report exhausted memory by panicking.
            let batch = batch.len();
            if reason.contains("out of memory") || reason.contains("can't allocate memory") {
                Err(ScorerError::OutOfMemory { batch, reason })
            } else {
                Err(ScorerError::Batch { batch, reason })
            }
        }
    }
}

/// The text that a panic carries.
pub(super) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked".to_owned());
    text.lines().next().unwrap_or_default().to_owned()
}

/// A slot of zeros, which is the mean colour in normalised pixel values.
fn neutral_slot(slots: &SlotPool) -> Slot {
    let mut slot = slots.lease();
    slot.values_mut().fill(0.0);
    slot
}

#[cfg(test)]
mod tests;
