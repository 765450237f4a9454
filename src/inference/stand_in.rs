//! A scorer without a model, for tests and benchmarks of everything around one.

use super::scorer::{ScoreBatch, Scorer, ScorerError};
use crate::{
    fault::ItemError,
    score::{Answer, DecodeKind, ModelVersion, ScoreValue},
};
use sha2::{Digest, Sha256};
use std::{thread, time::Duration};

const BINS: usize = 10;
const RANGE: (f64, f64) = (1.0, 10.0);

/// Scores that are a hash of the pixels and nothing else: equal pixels, equal scores.
///
/// Its version is called `stand-in`, so that no row or line of it passes for a model's.
#[derive(Clone, Debug)]
pub struct StandInScorer {
    image_size: usize,
    version: ModelVersion,
    time_per_batch: Duration,
}

impl StandInScorer {
    /// For square inputs of `image_size` pixels a side, preprocessed by `preprocess_revision`.
    pub fn new(image_size: usize, preprocess_revision: u32) -> Self {
        let version =
            ModelVersion { model: "stand-in".into(), version: "stand-in".into(), preprocess_revision };
        Self { image_size, version, time_per_batch: Duration::ZERO }
    }

    /// Sleeps this long in every batch, as if it computed.
    #[must_use]
    pub fn taking(mut self, time_per_batch: Duration) -> Self {
        self.time_per_batch = time_per_batch;
        self
    }

    /// The answer for one image's pixel values.
    pub fn answer(values: &[f32]) -> Answer {
        let mut hasher = Sha256::new();
        for value in values {
            hasher.update(value.to_bits().to_le_bytes());
        }
        let digest = hasher.finalize();
        let weights: Vec<f32> = digest[..BINS].iter().map(|byte| 1.0 + f32::from(*byte)).collect();
        let total: f32 = weights.iter().sum();
        let distribution = weights.iter().map(|weight| weight / total).collect();
        let value = ScoreValue::from_distribution(distribution, RANGE.0, RANGE.1);
        Answer {
            text: format!("Stand-in score {:.4}.", value.score),
            scores: vec![value],
            tokens: Vec::new(),
            decode: DecodeKind::Generated,
            forwards: 1,
        }
    }
}

impl Scorer for StandInScorer {
    fn image_size(&self) -> usize {
        self.image_size
    }

    fn version(&self) -> &ModelVersion {
        &self.version
    }

    fn score_range(&self) -> (f64, f64) {
        RANGE
    }

    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        thread::sleep(self.time_per_batch);
        Ok(batch.slots.iter().map(|slot| Ok(Self::answer(slot.values()))).collect())
    }
}
