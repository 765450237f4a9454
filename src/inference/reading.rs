//! The version of a model as it sees images that are not read exactly.

use super::scorer::{ScoreBatch, Scorer, ScorerError};
use crate::{
    fault::ItemError,
    image::PreprocessMode,
    score::{Answer, DraftCounts, ModelVersion},
};

/// A scorer of pixels that `mode` makes: itself where they are the reference's, else under a version of its
/// own, so that no answer passes for one to the exact pixels.
pub(super) fn reading(scorer: Box<dyn Scorer>, mode: PreprocessMode) -> Box<dyn Scorer> {
    match mode {
        PreprocessMode::Exact => scorer,
        PreprocessMode::Fast => {
            let ModelVersion { model, version, preprocess_revision: _ } = scorer.version().clone();
            let version = format!("{version}+fast");
            let version = ModelVersion { model, version, preprocess_revision: mode.revision() };
            Box::new(Renamed { scorer, version })
        }
    }
}

struct Renamed {
    scorer: Box<dyn Scorer>,
    version: ModelVersion,
}

impl Scorer for Renamed {
    fn image_size(&self) -> usize {
        self.scorer.image_size()
    }

    fn version(&self) -> &ModelVersion {
        &self.version
    }

    fn score_range(&self) -> (f64, f64) {
        self.scorer.score_range()
    }

    fn computes_in_host_memory(&self) -> bool {
        self.scorer.computes_in_host_memory()
    }

    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        self.scorer.score(batch)
    }

    fn score_afresh(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        self.scorer.score_afresh(batch)
    }

    fn drafts(&self) -> DraftCounts {
        self.scorer.drafts()
    }
}
