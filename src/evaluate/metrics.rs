//! What is measured of a model's answers, for any weights of the photos.

use super::correlation::{Pairs, Scratch};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One way to say how well scores are predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Spearman's rank correlation with the labels.
    Srcc,
    /// Pearson's linear correlation with the labels.
    Plcc,
    /// Kendall's rank correlation (tau-b) with the labels.
    Krcc,
    /// Mean absolute error, in score units.
    Mae,
    /// Root mean square error, in score units.
    Rmse,
    /// Mean earth mover's distance between predicted and label distribution, see [`emd`].
    Emd,
    /// The share of photos that prediction and label put on the same side of the range's midpoint.
    Accuracy,
    /// The share of photos whose answer holds the `[SCORE]`.
    ScoreRate,
}

/// The value of each [`Metric`], in the order of [`Metric::ALL`]; NaN where it has none.
pub type Values = [f64; Metric::ALL.len()];

impl Metric {
    pub const ALL: [Self; 8] = [
        Self::Srcc,
        Self::Plcc,
        Self::Krcc,
        Self::Mae,
        Self::Rmse,
        Self::Emd,
        Self::Accuracy,
        Self::ScoreRate,
    ];

    /// Where [`Values`] hold it.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The name in the literature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Srcc => "SRCC",
            Self::Plcc => "PLCC",
            Self::Krcc => "KRCC",
            Self::Mae => "MAE",
            Self::Rmse => "RMSE",
            Self::Emd => "EMD",
            Self::Accuracy => "accuracy",
            Self::ScoreRate => "[SCORE] rate",
        }
    }

    /// One line for people who don't know it.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Srcc => "Spearman rank correlation",
            Self::Plcc => "Pearson linear correlation",
            Self::Krcc => "Kendall rank correlation, tau-b",
            Self::Mae => "mean absolute error, in score units",
            Self::Rmse => "root mean square error, in score units",
            Self::Emd => "earth mover's distance of the rating distributions, r = 1",
            Self::Accuracy => "on the label's side of the range's midpoint",
            Self::ScoreRate => "answers that hold the score",
        }
    }

    /// Whether more of it is better.
    pub fn is_gain(self) -> bool {
        !matches!(self, Self::Mae | Self::Rmse | Self::Emd)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// One photo of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// What people said, in score units.
    pub label: f64,
    /// What the model said; `None` leaves the photo to the rate of answers alone.
    pub predicted: Option<f64>,
    /// [`emd`] to the label's distribution, where it has one.
    pub emd: Option<f64>,
    /// Whether the answer holds the `[SCORE]`.
    pub answered: bool,
}

/// Observations of one model on one attribute, ready to be measured under any weights.
#[derive(Clone, Debug)]
pub struct Measured {
    photos: usize,
    answered: Vec<bool>,
    /// Of each pair, its photo.
    paired: Vec<u32>,
    /// Labels and predictions.
    pairs: Pairs,
    errors: Vec<f64>,
    emds: Vec<Option<f64>>,
    agreed: Vec<bool>,
}

/// Memory that one thread uses again and again.
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    weights: Vec<u32>,
    scratch: Scratch,
}

impl Measured {
    /// Of observations over a scale with this range. One whose numbers are not finite counts as no
    /// prediction.
    pub fn new(observations: &[Observation], range: (f64, f64)) -> Self {
        let midpoint = f64::midpoint(range.0, range.1);
        let finite =
            |(_, label, predicted, _): &(u32, f64, f64, _)| label.is_finite() && predicted.is_finite();
        let paired: Vec<(u32, f64, f64, Option<f64>)> = (0_u32..)
            .zip(observations)
            .filter_map(|(photo, seen)| Some((photo, seen.label, seen.predicted?, seen.emd)))
            .filter(finite)
            .collect();
        let labels: Vec<f64> = paired.iter().map(|pair| pair.1).collect();
        let predictions: Vec<f64> = paired.iter().map(|pair| pair.2).collect();
        Self {
            photos: observations.len(),
            answered: observations.iter().map(|seen| seen.answered).collect(),
            paired: paired.iter().map(|pair| pair.0).collect(),
            errors: labels.iter().zip(&predictions).map(|(label, predicted)| predicted - label).collect(),
            emds: paired.iter().map(|pair| pair.3).collect(),
            agreed: paired.iter().map(|pair| (pair.1 > midpoint) == (pair.2 > midpoint)).collect(),
            pairs: Pairs::new(&labels, &predictions).unwrap_or_default(),
        }
    }

    /// How many photos have a label, with a prediction or without.
    pub fn photos(&self) -> usize {
        self.photos
    }

    /// How many photos have both a label and a prediction.
    pub fn paired(&self) -> usize {
        self.paired.len()
    }

    /// Every metric, each photo once.
    pub fn values(&self) -> Values {
        self.weighted(&vec![1; self.photos], &mut Workspace::default())
    }

    /// Every metric, with a weight for each photo.
    pub fn weighted(&self, weights: &[u32], workspace: &mut Workspace) -> Values {
        let Workspace { weights: of_pairs, scratch } = workspace;
        of_pairs.clear();
        of_pairs.extend(self.paired.iter().map(|&photo| weights[photo as usize]));
        let answers = weights.iter().zip(&self.answered);
        let squares = self.errors.iter().map(|error| error * error);
        let mut values = [f64::NAN; Metric::ALL.len()];
        for metric in Metric::ALL {
            let value = match metric {
                Metric::Srcc => self.pairs.spearman(of_pairs, scratch),
                Metric::Plcc => self.pairs.pearson(of_pairs),
                Metric::Krcc => self.pairs.kendall(of_pairs, scratch),
                Metric::Mae => mean(of_pairs.iter().zip(self.errors.iter().map(|error| error.abs()))),
                Metric::Rmse => mean(of_pairs.iter().zip(squares.clone())).map(f64::sqrt),
                Metric::Emd => mean(
                    of_pairs.iter().zip(&self.emds).filter_map(|(weight, emd)| emd.map(|emd| (weight, emd))),
                ),
                Metric::Accuracy => {
                    mean(of_pairs.iter().zip(self.agreed.iter().map(|&agreed| share(agreed))))
                }
                Metric::ScoreRate => {
                    mean(answers.clone().map(|(weight, &answered)| (weight, share(answered))))
                }
            };
            values[metric.index()] = value.unwrap_or(f64::NAN);
        }
        values
    }
}

fn share(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn mean<'a>(weighted: impl Iterator<Item = (&'a u32, f64)>) -> Option<f64> {
    let (total, sum) = weighted.fold((0.0, 0.0), |(total, sum), (&weight, value)| {
        (total + f64::from(weight), sum + f64::from(weight) * value)
    });
    (total > 0.0).then(|| sum / total)
}

/// The earth mover's distance of two rating distributions over the same bins, normalised as by Talebi and
/// Milanfar (NIMA, 2018, equation 1): `(1/N Σ |CDF_p - CDF_q|^r)^(1/r)`.
///
/// r is 1 here, as where the literature reports how close predictions are; the training loss has r = 2.
/// Distributions need not sum to exactly 1. `None` where one is empty, sums to nothing, or they differ
/// in length.
pub fn emd(p: &[f64], q: &[f64]) -> Option<f64> {
    let (total_p, total_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
    if p.len() != q.len() || !(total_p > 0.0 && total_q > 0.0 && total_p.is_finite() && total_q.is_finite()) {
        return None;
    }
    let (mut difference, mut moved) = (0.0_f64, 0.0);
    for (p, q) in p.iter().zip(q) {
        difference += p / total_p - q / total_q;
        moved += difference.abs();
    }
    Some(moved / p.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(label: f64, predicted: f64) -> Observation {
        Observation { label, predicted: Some(predicted), emd: None, answered: true }
    }

    fn value(observations: &[Observation], metric: Metric) -> f64 {
        Measured::new(observations, (1.0, 10.0)).values()[metric.index()]
    }

    #[test]
    fn errors_are_in_score_units() {
        let observations = [seen(5.0, 6.0), seen(5.0, 3.0), seen(7.0, 7.0)];
        assert_eq!(value(&observations, Metric::Mae), 1.0);
        assert_eq!(value(&observations, Metric::Rmse), (5.0_f64 / 3.0).sqrt());
    }

    #[test]
    fn accuracy_is_judged_at_the_middle_of_the_range() {
        let observations = [seen(5.6, 9.0), seen(5.4, 5.6), seen(5.5, 1.0), seen(2.0, 5.5)];
        assert_eq!(value(&observations, Metric::Accuracy), 0.75);
    }

    #[test]
    fn a_photo_without_a_score_counts_against_the_rate_alone() {
        let silent = Observation { label: 1.0, predicted: None, emd: None, answered: false };
        let observations = [seen(5.0, 5.0), silent, seen(6.0, 7.0), seen(7.0, 8.0)];
        assert_eq!(value(&observations, Metric::ScoreRate), 0.75);
        assert_eq!(value(&observations, Metric::Srcc), 1.0);
        assert_eq!(value(&observations, Metric::Mae), 2.0 / 3.0);
        assert!(value(&observations, Metric::Emd).is_nan());
        assert!(value(&[silent], Metric::Srcc).is_nan() && value(&[], Metric::ScoreRate).is_nan());
    }

    #[test]
    fn numbers_that_are_not_finite_are_no_predictions() {
        let observations = [seen(5.0, f64::NAN), seen(6.0, 7.0), seen(7.0, 8.0)];
        let measured = Measured::new(&observations, (1.0, 10.0));
        assert_eq!((measured.photos(), measured.paired()), (3, 2));
        assert_eq!(measured.values()[Metric::Mae.index()], 1.0);
    }

    #[test]
    fn emd_is_the_mean_distance_of_the_cumulative_distributions() {
        let certain = |bin: usize| -> Vec<f64> { (0..10).map(|index| share(index == bin)).collect() };
        // From the first bin to the last, nine of ten cumulative shares differ by 1.
        assert_eq!(emd(&certain(0), &certain(9)), Some(0.9));
        assert_eq!(emd(&certain(4), &certain(5)), Some(0.1));
        assert_eq!(emd(&[0.5, 0.5], &[5.0, 5.0]), Some(0.0));
        assert_eq!((emd(&[], &[]), emd(&[1.0], &[0.5, 0.5]), emd(&[0.0], &[1.0])), (None, None, None));
    }

    proptest! {
        #[test]
        fn weights_are_copies_for_every_metric(
            drawn in proptest::collection::vec((0_u8..9, proptest::option::of(0_u8..9), proptest::option::of(0.0_f64..1.0), 0_u32..4), 1..30),
        ) {
            let observation = |&(label, predicted, emd, _): &(u8, Option<u8>, Option<f64>, u32)| Observation {
                label: f64::from(label),
                predicted: predicted.map(f64::from),
                emd,
                answered: predicted.is_some(),
            };
            let observations: Vec<_> = drawn.iter().map(observation).collect();
            let weights: Vec<u32> = drawn.iter().map(|photo| photo.3).collect();
            let copies = observations.iter().zip(&weights);
            let copied: Vec<_> = copies.flat_map(|(&seen, &weight)| std::iter::repeat_n(seen, weight as usize)).collect();
            let weighted = Measured::new(&observations, (0.0, 8.0)).weighted(&weights, &mut Workspace::default());
            let expected = Measured::new(&copied, (0.0, 8.0)).values();
            for (found, expected) in weighted.into_iter().zip(expected) {
                prop_assert!((found - expected).abs() < 1e-9 || found.is_nan() && expected.is_nan(), "{weighted:?} {expected:?}");
            }
        }
    }
}
