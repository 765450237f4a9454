//! The value the whole crate exists for: a score with its distribution, and the model that gave it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How an item ended. Rows and outputs carry it in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    /// The model gave a score.
    Scored,
    /// Permanently unfit: malformed, undecodable, over a limit.
    Rejected,
    /// The object does not exist any more, or is not what the event named.
    Gone,
    /// The event says that the object was removed.
    Deleted,
    /// A fault outlasted every retry.
    Dead,
}

impl ItemStatus {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Scored, Self::Rejected, Self::Gone, Self::Deleted, Self::Dead];

    /// The word that rows and outputs carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scored => "scored",
            Self::Rejected => "rejected",
            Self::Gone => "gone",
            Self::Deleted => "deleted",
            Self::Dead => "dead",
        }
    }
}

impl fmt::Display for ItemStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A status that no version of the schema knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no status: expected scored, rejected, gone, deleted or dead")]
pub struct UnknownStatus(pub String);

impl FromStr for ItemStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// Which weights, and which way of reading images, produced a score.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelVersion {
    /// The model family's name, `model_type` of the checkpoint's `config.json`.
    pub model: String,
    /// A digest of the checkpoint (`sha256:…`), or the registered version's name.
    pub version: String,
    /// Grows whenever the pixels that the model sees for one file change.
    pub preprocess_revision: u32,
}

/// One `[SCORE]` of an answer: the expectation of a distribution over score bins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreValue {
    /// Sum of probability times bin value, unrounded (ROC4MLLM's score head).
    pub score: f64,
    /// Probability of each of the `num_tokens` bins; sums to 1.
    pub distribution: Vec<f32>,
    /// Standard deviation of the distribution, in score units.
    pub std: f64,
}

impl ScoreValue {
    /// Expectation and standard deviation of `distribution` over `bins` equally spaced values
    /// from `min_score` to `max_score`, both included.
    pub fn from_distribution(distribution: Vec<f32>, min_score: f64, max_score: f64) -> Self {
        let last = distribution.len().saturating_sub(1).max(1) as f64;
        let bin = |index: usize| min_score + (max_score - min_score) * index as f64 / last;
        let score: f64 = distribution.iter().enumerate().map(|(index, &p)| f64::from(p) * bin(index)).sum();
        let variance: f64 = distribution
            .iter()
            .enumerate()
            .map(|(index, &p)| f64::from(p) * (bin(index) - score).powi(2))
            .sum();
        Self { score, distribution, std: variance.sqrt() }
    }
}

/// How an answer's tokens were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeKind {
    /// A draft answer was checked in one forward pass, which gave the whole answer.
    Verified,
    /// Greedy decoding, from the first token on or from where the draft was wrong.
    Generated,
}

/// How draft answers have fared, an image each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// One pass gave the whole answer.
    pub accepted: u64,
    /// It took more.
    pub rejected: u64,
}

/// The model's whole answer for one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// One entry per `[SCORE]` in the text; never empty.
    pub scores: Vec<ScoreValue>,
    /// The answer with each `[SCORE]` replaced by its rounded score.
    pub text: String,
    /// Generated token ids, end token included.
    pub tokens: Vec<u32>,
    pub decode: DecodeKind,
    /// Passes of the language model for this image.
    pub forwards: u32,
}

impl Answer {
    /// The score that ranks the image: the first one.
    pub fn score(&self) -> f64 {
        self.scores[0].score
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_status_is_the_same_word_everywhere() {
        for word in ["scored", "rejected", "gone", "deleted", "dead"] {
            let status: ItemStatus = word.parse().unwrap();
            assert_eq!(status.to_string(), word);
            assert_eq!(serde_json::to_string(&status).unwrap(), format!("\"{word}\""));
        }
        assert!("Scored".parse::<ItemStatus>().is_err());
    }

    #[test]
    fn a_certain_bin_is_its_value() {
        let value = ScoreValue::from_distribution(vec![0.0, 0.0, 1.0, 0.0], 1.0, 10.0);
        assert_eq!(value.score, 7.0);
        assert_eq!(value.std, 0.0);
    }

    proptest! {
        #[test]
        fn score_lies_within_the_range(weights in proptest::collection::vec(0.0_f32..1.0, 2..30), low in -10.0_f64..10.0, width in 0.0_f64..20.0) {
            let total: f32 = weights.iter().sum();
            prop_assume!(total > 1e-3);
            let value = ScoreValue::from_distribution(weights.iter().map(|w| w / total).collect(), low, low + width);
            prop_assert!(value.score >= low - 1e-4 && value.score <= low + width + 1e-4);
            prop_assert!(value.std <= width / 2.0 + 1e-3);
        }
    }
}
