//! Samples, checked and encoded before the first step.

use super::encode::{EncodeError, Encoded, Mismatch, encode};
use crate::{
    labels::Sample,
    model::{config::ScoreHeadConfig, prompt::IMAGE_ID, tokenizer::Tokenizer},
};
use std::fmt;

/// One sample, ready for the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Names the image to its source.
    pub image: String,
    /// Token ids, with one [`IMAGE_ID`].
    pub ids: Vec<i64>,
    /// As [`Encoded::labels`].
    pub labels: Vec<i64>,
    /// One per `[SCORE]` among the labels.
    pub gt_scores: Vec<f32>,
    /// One distribution per score; empty where the sample has none.
    pub targets: Vec<Vec<f32>>,
    /// Where the sample began in its file, from 1; 0 where it comes from none.
    pub line: usize,
}

impl Example {
    /// Positions that it takes in the language model.
    pub fn positions(&self, image_positions: usize) -> usize {
        self.ids.len() - 1 + image_positions
    }

    pub fn place(&self) -> Place {
        Place { image: self.image.clone(), line: self.line }
    }
}

/// Which sample is meant, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub image: String,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "the sample of {}", self.image),
            line => write!(formatter, "the sample of {} on line {line}", self.image),
        }
    }
}

/// A sample that can't be trained on.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("{place}: {reason}")]
    Encode { place: Place, reason: EncodeError },
    /// The network reads one image a sample; the reference fails on text beside images, and takes the next
    /// sample's image for a second one.
    #[error("{place}: {count} of its messages show an image; write <|image|> in one message")]
    Images { place: Place, count: usize },
    #[error(
        "{place}: its answers hold {tokens} [SCORE] and gt_score has {scores} numbers; give one for each"
    )]
    Scores { place: Place, tokens: usize, scores: usize },
    /// The reference leaves its CE and EMD terms out without a word.
    #[error(
        "{place} has no target, which the cross-entropy and the EMD are computed with; give it a rating \
         distribution, or set --ce-weight and --emd-weight to 0"
    )]
    NoTarget { place: Place },
    #[error("{place}: gt_score or target don't fit the score head ({reason}); correct them")]
    Label { place: Place, reason: String },
    #[error("{place} takes {positions} positions, but the model holds {limit}; shorten its conversation")]
    TooLong { place: Place, positions: usize, limit: usize },
    #[error("no sample is left to train on: {masked} were left out; look at their conversations")]
    Nothing { masked: usize },
}

/// What the network asks of every sample.
#[derive(Clone, Debug)]
pub struct Demands {
    pub head: ScoreHeadConfig,
    /// Padding token of the tokenizer.
    pub pad: i64,
    pub image_positions: usize,
    pub max_positions: usize,
    /// Whether a loss is computed with the distributions.
    pub needs_targets: bool,
}

/// Everything that is trained on.
#[derive(Debug)]
pub struct Dataset {
    pub examples: Vec<Example>,
    /// Samples in whose text questions and answers can't be told apart. The reference masks all their
    /// labels and goes on; here they are left out, which learns the same from them: nothing.
    pub masked: Vec<(Place, Mismatch)>,
}

impl Dataset {
    /// Encodes and checks samples.
    ///
    /// # Errors
    /// [`DatasetError`] for the first sample that can't be trained on, or when none is left.
    pub fn new(samples: &[Sample], tokenizer: &Tokenizer, demands: &Demands) -> Result<Self, DatasetError> {
        let mut dataset = Self { examples: Vec::with_capacity(samples.len()), masked: Vec::new() };
        for sample in samples {
            let place = Place { image: sample.image.clone(), line: sample.line };
            let encoded = encode(&sample.conversations, true, tokenizer, demands.pad);
            let encoded = encoded.map_err(|reason| DatasetError::Encode { place: place.clone(), reason })?;
            match encoded.mismatch {
                Some(mismatch) => dataset.masked.push((place, mismatch)),
                None => dataset.examples.push(example(sample, encoded, place, demands)?),
            }
        }
        match dataset.examples.is_empty() {
            true => Err(DatasetError::Nothing { masked: dataset.masked.len() }),
            false => Ok(dataset),
        }
    }
}

fn example(
    sample: &Sample,
    encoded: Encoded,
    place: Place,
    demands: &Demands,
) -> Result<Example, DatasetError> {
    let Encoded { ids, labels, .. } = encoded;
    let count = ids.iter().filter(|&&id| id == IMAGE_ID).count();
    if count != 1 {
        return Err(DatasetError::Images { place, count });
    }
    let (tokens, scores) =
        (labels.iter().filter(|&&label| label == demands.head.score_id).count(), sample.gt_scores.len());
    if tokens != scores {
        return Err(DatasetError::Scores { place, tokens, scores });
    }
    check_labels(sample, &demands.head)
        .map_err(|reason| DatasetError::Label { place: place.clone(), reason })?;
    if demands.needs_targets && sample.targets.len() < scores {
        return Err(DatasetError::NoTarget { place });
    }
    let example = Example {
        image: sample.image.clone(),
        ids,
        labels,
        gt_scores: sample.gt_scores.iter().map(|&score| score as f32).collect(),
        targets: sample.targets.iter().map(|target| target.iter().map(|&p| p as f32).collect()).collect(),
        line: sample.line,
    };
    let (positions, limit) = (example.positions(demands.image_positions), demands.max_positions);
    match positions > limit {
        true => Err(DatasetError::TooLong { place, positions, limit }),
        false => Ok(example),
    }
}

/// What a caller that reads no file may have missed: numbers that aren't finite, and bins of another
/// count.
fn check_labels(sample: &Sample, head: &ScoreHeadConfig) -> Result<(), String> {
    if let Some(score) = sample.gt_scores.iter().find(|score| !score.is_finite()) {
        return Err(format!("the score {score}"));
    }
    if !sample.targets.is_empty() && sample.targets.len() != sample.gt_scores.len() {
        return Err(format!("{} distributions for {} scores", sample.targets.len(), sample.gt_scores.len()));
    }
    let bins = usize::try_from(head.num_tokens).unwrap_or(0);
    match sample.targets.iter().find(|target| target.len() != bins) {
        Some(target) => Err(format!("a distribution of {} for {bins} bins", target.len())),
        None => Ok(()),
    }
}
