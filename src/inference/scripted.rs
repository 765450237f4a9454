//! A scorer that does what a test tells it, one closure call a batch.

use super::scorer::{ScoreBatch, Scorer, ScorerError};
use crate::{
    fault::ItemError,
    score::{Answer, DecodeKind, ModelVersion, ScoreValue},
};

type Script = dyn FnMut(&[f32]) -> Result<Vec<Result<Answer, ItemError>>, ScorerError>;

/// Images of one pixel value each: the script sees the first value of every slot.
pub struct ScriptedScorer {
    version: ModelVersion,
    host_memory: bool,
    script: Box<Script>,
}

impl ScriptedScorer {
    pub fn new(
        script: impl FnMut(&[f32]) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> + 'static,
    ) -> Self {
        let version = ModelVersion { model: "scripted".into(), version: "1".into(), preprocess_revision: 1 };
        Self { version, host_memory: true, script: Box::new(script) }
    }

    /// As on a device with a memory of its own.
    pub fn on_a_device(self) -> Self {
        Self { host_memory: false, ..self }
    }
}

/// The answer whose score is `score`.
pub fn answer(score: f64) -> Answer {
    Answer {
        scores: vec![ScoreValue { score, distribution: vec![1.0], std: 0.0 }],
        text: String::new(),
        tokens: Vec::new(),
        decode: DecodeKind::Generated,
        forwards: 1,
    }
}

/// Every image scored with its own value.
pub fn echo(values: &[f32]) -> Vec<Result<Answer, ItemError>> {
    values.iter().map(|value| Ok(answer(f64::from(*value)))).collect()
}

impl Scorer for ScriptedScorer {
    fn image_size(&self) -> usize {
        1
    }

    fn version(&self) -> &ModelVersion {
        &self.version
    }

    fn score_range(&self) -> (f64, f64) {
        (0.0, 100.0)
    }

    fn computes_in_host_memory(&self) -> bool {
        self.host_memory
    }

    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        let values: Vec<f32> = batch.slots.iter().map(|slot| slot.values()[0]).collect();
        (self.script)(&values)
    }
}
