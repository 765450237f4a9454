//! The one seam between the pipeline and a model.

use super::slot::Slot;
use crate::{
    fault::ItemError,
    score::{Answer, DraftCounts, ModelVersion},
};

/// Images ready for the model: one leased slot of pixel values an image.
///
/// Compute never sees a request: what is needed to answer stays with the caller, in the same order.
pub struct ScoreBatch {
    pub slots: Vec<Slot>,
}

impl ScoreBatch {
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// A batch as a whole failed; no item is to blame yet.
#[derive(Debug, thiserror::Error)]
pub enum ScorerError {
    /// Too little memory for this batch: a smaller one may pass.
    #[error("out of memory in a batch of {batch}: {reason}")]
    OutOfMemory { batch: usize, reason: String },
    /// Anything else that a smaller batch may not repeat.
    #[error("the model failed on a batch of {batch}: {reason}")]
    Batch { batch: usize, reason: String },
    /// The device is beyond use for this process.
    #[error("the device is unusable: {0}; restart the process")]
    Device(String),
}

/// What a model offers to the inference engine. Lives on the model thread; need not be `Sync`.
pub trait Scorer {
    /// Edge of the square input; a slot holds `3 * edge * edge` values, channels first.
    fn image_size(&self) -> usize;

    /// The version that every answer of this scorer carries.
    fn version(&self) -> &ModelVersion;

    /// `[min_score, max_score]`, which every score lies in.
    fn score_range(&self) -> (f64, f64);

    /// One result an image, in the order of the batch.
    ///
    /// # Errors
    /// [`ScorerError`] when the batch failed as a whole; an [`ItemError`] in an item's place when
    /// that item alone did.
    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError>;

    /// As [`score`](Self::score), in a way that nothing scored before has any part in: equal images get
    /// equal scores, to the last bit, as long as the device computes what it did.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    fn score_afresh(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        self.score(batch)
    }

    /// Whether batches are computed in this machine's memory: a device with one of its own says by itself
    /// when it is full.
    fn computes_in_host_memory(&self) -> bool {
        true
    }

    /// How the draft answers have fared that this scorer tried so far, if it tries any.
    fn drafts(&self) -> DraftCounts {
        DraftCounts::default()
    }
}
