//! A checkpoint behind the [`Scorer`] trait.

use super::{error::ModelError, settings::ModelSettings};
use crate::{
    fault::ItemError,
    inference::scorer::{ScoreBatch, Scorer, ScorerError},
    score::{Answer, ModelVersion},
};

/// A loaded ROC4MLLM model: pixel values in, answers out.
pub struct TorchScorer {
    version: ModelVersion,
}

impl TorchScorer {
    /// Loads the checkpoint folder that `settings` names.
    ///
    /// `preprocess_revision` is the revision of the preprocessing that fills the slots this scorer
    /// will be given; it becomes part of the version.
    ///
    /// # Errors
    /// [`ModelError`] when the folder, its files, the device or the prompt can't be used.
    pub fn load(settings: &ModelSettings, preprocess_revision: u32) -> Result<Self, ModelError> {
        let _ = (settings, preprocess_revision);
        todo!()
    }
}

impl Scorer for TorchScorer {
    fn image_size(&self) -> usize {
        todo!()
    }

    fn version(&self) -> &ModelVersion {
        &self.version
    }

    fn score_range(&self) -> (f64, f64) {
        todo!()
    }

    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        let _ = batch;
        todo!()
    }
}
