//! How far a model's scores move when it is computed less exactly.

use super::{
    correlation::{pearson, spearman},
    evaluation::{Evaluation, Outcome},
};
use crate::score::ModelVersion;
use serde::{Deserialize, Serialize};

/// A model's scores beside those that the same model gives at full precision. No label is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    /// The model at full precision.
    pub reference: ModelVersion,
    /// Photos that both scored, with as many scores each.
    pub photos: usize,
    /// Photos that one of them alone scored, or with another number of scores.
    pub unlike: usize,
    /// Mean of the absolute differences, in score units, over every score of every photo.
    pub mean_error: f64,
    /// The largest of them.
    pub largest_error: f64,
    /// Spearman's rank correlation of the scores that photos are ranked by; absent where all are equal.
    pub srcc: Option<f64>,
    /// Pearson's linear correlation of them.
    pub plcc: Option<f64>,
}

impl Deviation {
    /// Of `found` from `reference`: the same photos in the same order.
    pub fn of(reference: &Evaluation, found: &Evaluation) -> Self {
        let (mut photos, mut unlike, mut sum, mut largest, mut count) = (0, 0, 0.0, 0.0_f64, 0_usize);
        let (mut exact, mut other) = (Vec::new(), Vec::new());
        for (one, two) in reference.photos.iter().zip(&found.photos) {
            match (&one.outcome, &two.outcome) {
                (Outcome::Scored { scores }, Outcome::Scored { scores: moved })
                    if scores.len() == moved.len() =>
                {
                    photos += 1;
                    for (score, moved) in scores.iter().zip(moved) {
                        let error = (score.score - moved.score).abs();
                        (sum, largest, count) = (sum + error, largest.max(error), count + 1);
                    }
                    exact.extend(scores.first().map(|score| score.score));
                    other.extend(moved.first().map(|score| score.score));
                }
                (Outcome::Scored { .. }, _) | (_, Outcome::Scored { .. }) => unlike += 1,
                _ => {}
            }
        }
        Self {
            reference: reference.model.clone(),
            photos,
            unlike,
            mean_error: if count == 0 { 0.0 } else { sum / count as f64 },
            largest_error: largest,
            srcc: spearman(&exact, &other),
            plcc: pearson(&exact, &other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evaluate::{BootstrapSettings, Label, Photo},
        fault::{ErrorCode, ItemError, Stage},
        score::ScoreValue,
    };

    fn evaluation(scores: &[&[f64]]) -> Evaluation {
        let photos = scores.iter().enumerate().map(|(index, scores)| Photo {
            image: index.to_string(),
            group: None,
            label: Label { scores: vec![1.0], distributions: Vec::new() },
            outcome: match scores {
                [] => Outcome::NoScore {
                    error: ItemError::new(ErrorCode::NoScoreToken, Stage::Infer, "no score"),
                },
                scores => Outcome::Scored {
                    scores: scores
                        .iter()
                        .map(|&score| ScoreValue { score, distribution: vec![1.0], std: 0.0 })
                        .collect(),
                },
            },
        });
        let model = ModelVersion { model: "m".into(), version: "v".into(), preprocess_revision: 1 };
        let settings = BootstrapSettings { resamples: 0, ..Default::default() };
        Evaluation::measure(model, (1.0, 10.0), photos.collect(), &settings)
    }

    #[test]
    fn every_score_counts_and_the_first_one_ranks() {
        let exact = evaluation(&[&[1.0, 5.0], &[2.0], &[3.0], &[4.0], &[]]);
        let moved = evaluation(&[&[1.5, 5.0], &[2.0], &[5.0], &[4.0], &[]]);
        let deviation = Deviation::of(&exact, &moved);
        assert_eq!((deviation.photos, deviation.unlike), (4, 0));
        assert_eq!((deviation.mean_error, deviation.largest_error), (2.5 / 5.0, 2.0));
        assert_eq!(deviation.srcc, Some(0.8));
        assert!(deviation.plcc.unwrap() < 1.0);
    }

    #[test]
    fn what_only_one_scores_is_counted_apart() {
        let exact = evaluation(&[&[1.0], &[2.0], &[], &[3.0]]);
        let moved = evaluation(&[&[], &[2.0, 1.0], &[1.0], &[3.0]]);
        let deviation = Deviation::of(&exact, &moved);
        assert_eq!((deviation.photos, deviation.unlike, deviation.mean_error), (1, 3, 0.0));
        assert_eq!(deviation.srcc, None);
    }
}
