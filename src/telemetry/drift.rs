//! Whether scores are distributed as they were: pure.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Equal bins that a model's range of scores is divided into.
pub const BINS: usize = 20;
/// A version is compared with so many of its first scores where nothing else is known of it.
pub const REFERENCE_SCORES: u64 = 2_000;
/// Scores that count as the present ones.
pub const WINDOW_SCORES: usize = 2_000;
/// With fewer present scores, chance alone would look like drift: between two samples of one distribution
/// the index is about `BINS - 1` times the sum of the samples' reciprocal sizes.
pub const FEWEST_SCORES: u64 = 500;
/// What each bin is taken to hold more than it does, so that an empty one gives no infinity.
const SMOOTHING: f64 = 0.5;

/// Scores counted in equal bins between a model's lowest and highest one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    pub min: f64,
    pub max: f64,
    /// Scores a bin, the lowest first.
    pub counts: Vec<u64>,
    pub sum: f64,
}

/// How far present scores are from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// Population stability index: the sum over bins of (present share - reference share) times the
    /// logarithm of their ratio. 0 for equal distributions; above 0.25 is called drift by convention.
    pub psi: f64,
    /// Mean of the present scores less that of the reference, in score units.
    pub mean_shift: f64,
}

impl Distribution {
    /// Without a score yet. `range` are the lowest and the highest that there can be.
    pub fn new(range: (f64, f64)) -> Self {
        Self { min: range.0, max: range.1, counts: vec![0; BINS], sum: 0.0 }
    }

    pub fn add(&mut self, score: f64) {
        let bin = self.bin(score);
        self.counts[bin] += 1;
        self.sum += score;
    }

    /// Takes back a score that was added.
    pub fn remove(&mut self, score: f64) {
        let bin = self.bin(score);
        self.counts[bin] = self.counts[bin].saturating_sub(1);
        self.sum -= score;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// NaN without a score.
    pub fn mean(&self) -> f64 {
        self.sum / self.count() as f64
    }

    /// The upper end of a bin; the last one takes what is above, too.
    pub fn upper_bound(&self, bin: usize) -> f64 {
        if bin + 1 >= self.counts.len() {
            return f64::INFINITY;
        }
        self.min + (self.max - self.min) * (bin + 1) as f64 / self.counts.len() as f64
    }

    /// Whether it holds scores in the bins that `other` has.
    pub fn is_comparable(&self, other: &Self) -> bool {
        let slack = 1e-6 * (other.max - other.min).abs();
        let close = |a: f64, b: f64| (a - b).abs() <= slack;
        self.count() > 0
            && self.sum.is_finite()
            && self.counts.len() == other.counts.len()
            && close(self.min, other.min)
            && close(self.max, other.max)
    }

    /// How far `present` is from this; `None` where there are too few to say, or the bins differ.
    pub fn drift(&self, present: &Self) -> Option<Drift> {
        if present.count() < FEWEST_SCORES || !self.is_comparable(present) {
            return None;
        }
        let shares = |of: &Self| {
            let total = of.count() as f64 + SMOOTHING * of.counts.len() as f64;
            of.counts.iter().map(|&count| (count as f64 + SMOOTHING) / total).collect::<Vec<_>>()
        };
        let pairs = shares(self).into_iter().zip(shares(present));
        let psi = pairs.map(|(reference, present)| (present - reference) * (present / reference).ln()).sum();
        Some(Drift { psi, mean_shift: present.mean() - self.mean() })
    }

    // What is no number is nobody's bin; it is not added in the first place.
    fn bin(&self, score: f64) -> usize {
        let bins = self.counts.len();
        let place = (score - self.min) / (self.max - self.min) * bins as f64;
        (place.max(0.0) as usize).min(bins - 1)
    }
}

/// The latest scores, at most [`WINDOW_SCORES`].
#[derive(Clone, Debug)]
pub struct Window {
    scores: VecDeque<f64>,
    distribution: Distribution,
}

impl Window {
    pub fn new(range: (f64, f64)) -> Self {
        Self { scores: VecDeque::new(), distribution: Distribution::new(range) }
    }

    pub fn add(&mut self, score: f64) {
        if self.scores.len() == WINDOW_SCORES
            && let Some(oldest) = self.scores.pop_front()
        {
            self.distribution.remove(oldest);
        }
        self.scores.push_back(score);
        self.distribution.add(score);
    }

    pub fn distribution(&self) -> &Distribution {
        &self.distribution
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RANGE: (f64, f64) = (1.0, 10.0);

    fn of(scores: impl IntoIterator<Item = f64>) -> Distribution {
        let mut distribution = Distribution::new(RANGE);
        scores.into_iter().for_each(|score| distribution.add(score));
        distribution
    }

    /// Evenly over `low` to `high`.
    fn even(low: f64, high: f64, count: usize) -> Distribution {
        of((0..count).map(|index| low + (high - low) * index as f64 / count as f64))
    }

    #[test]
    fn equal_distributions_do_not_drift_and_shifted_ones_do() {
        let reference = even(4.0, 7.0, 2_000);
        let same = reference.drift(&even(4.0, 7.0, 1_000)).unwrap();
        assert!(same.psi < 0.01 && same.mean_shift.abs() < 0.01, "{same:?}");
        let shifted = reference.drift(&even(5.0, 8.0, 1_000)).unwrap();
        assert!(shifted.psi > 0.25, "{shifted:?}");
        assert!((shifted.mean_shift - 1.0).abs() < 0.01, "{shifted:?}");
    }

    #[test]
    fn the_index_is_what_its_definition_gives() {
        let halves = |low: usize, high: usize| {
            let scores = std::iter::repeat_n(1.1, low).chain(std::iter::repeat_n(9.9, high));
            of(scores)
        };
        let drift = halves(1_000, 1_000).drift(&halves(1_500, 500)).unwrap();
        // With bins of 1000/1000 against 1500/500, as good as unsmoothed: 0.25 ln 1.5 - 0.25 ln 0.5.
        let expected = 0.25 * 1.5_f64.ln() - 0.25 * 0.5_f64.ln();
        assert!((drift.psi - expected).abs() < 0.01, "{} is not {expected}", drift.psi);
    }

    #[test]
    fn too_few_scores_or_other_bins_say_nothing() {
        let reference = even(4.0, 7.0, 2_000);
        assert_eq!(reference.drift(&even(4.0, 7.0, 499)), None);
        assert_eq!(Distribution::new(RANGE).drift(&even(4.0, 7.0, 1_000)), None);
        let mut other = Distribution::new((0.0, 5.0));
        (0..1_000).for_each(|_| other.add(4.0));
        assert_eq!(reference.drift(&other), None);
    }

    #[test]
    fn the_window_forgets_what_is_old() {
        let mut window = Window::new(RANGE);
        (0..WINDOW_SCORES).for_each(|_| window.add(2.0));
        (0..WINDOW_SCORES).for_each(|_| window.add(8.0));
        assert_eq!(window.distribution().count(), WINDOW_SCORES as u64);
        assert!((window.distribution().mean() - 8.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn any_two_distributions_are_a_finite_distance_apart(
            one in proptest::collection::vec(0.0_f64..11.0, 1..50),
            other in proptest::collection::vec(0.0_f64..11.0, 500..600),
        ) {
            let (one, other) = (of(one), of(other));
            let drift = one.drift(&other).unwrap();
            prop_assert!(drift.psi.is_finite() && drift.psi >= 0.0);
            prop_assert!(drift.mean_shift.is_finite());
        }

        #[test]
        fn every_score_is_below_its_bins_upper_end(score in -1.0_f64..12.0) {
            let distribution = of([score]);
            let bin = distribution.counts.iter().position(|count| *count == 1).unwrap();
            prop_assert!(score <= distribution.upper_bound(bin));
        }
    }
}
