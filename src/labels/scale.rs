//! The scale that people rate on: its range, and the bins that a score head divides it into.

use super::Refusal;

/// How far a distribution's sum may be from 1: ten probabilities rounded to four decimals stay within half of
/// it.
pub const SUM_TOLERANCE: f64 = 1e-3;

/// Equally spaced bins from the lowest to the highest score, both included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub min_score: f64,
    pub max_score: f64,
    /// Bins, `num_tokens` of a checkpoint's configuration.
    pub num_tokens: usize,
}

impl Scale {
    /// 1 to 10 in ten bins, as in the paper's experiments.
    pub const PAPER: Self = Self { min_score: 1.0, max_score: 10.0, num_tokens: 10 };

    /// A scale of at least two bins whose ends are finite and in order; `None` for anything else.
    pub fn new(min_score: f64, max_score: f64, num_tokens: usize) -> Option<Self> {
        let ordered = min_score.is_finite() && max_score.is_finite() && min_score < max_score;
        (ordered && num_tokens >= 2).then_some(Self { min_score, max_score, num_tokens })
    }

    /// The score that bin `index` stands for.
    pub fn bin(&self, index: usize) -> f64 {
        let last = self.num_tokens.saturating_sub(1).max(1) as f64;
        self.min_score + (self.max_score - self.min_score) * index as f64 / last
    }

    /// The expectation of a distribution over the bins.
    pub fn mean(&self, distribution: &[f64]) -> f64 {
        distribution.iter().enumerate().map(|(index, share)| share * self.bin(index)).sum()
    }

    /// The standard deviation of a distribution over the bins, in score units.
    pub fn std(&self, distribution: &[f64]) -> f64 {
        let mean = self.mean(distribution);
        let shares = distribution.iter().enumerate();
        shares.map(|(index, share)| share * (self.bin(index) - mean).powi(2)).sum::<f64>().sqrt()
    }

    /// The bin of a score, or the two that it lies between, with shares that sum to 1 and whose expectation
    /// is the score. A score outside the range has the nearest bin.
    pub fn spread(&self, score: f64) -> [(usize, f64); 2] {
        let last = self.num_tokens.saturating_sub(1);
        let place = (score - self.min_score) / (self.max_score - self.min_score) * last as f64;
        // Rounding puts the value of a bin a little beside it.
        let place = if (place - place.round()).abs() < 1e-9 { place.round() } else { place };
        let place = place.clamp(0.0, last as f64);
        let lower = place.floor() as usize;
        let share = place - place.floor();
        [(lower, 1.0 - share), ((lower + 1).min(last), share)]
    }

    /// Whether the score lies in the range, its ends included.
    ///
    /// # Errors
    /// [`Refusal::ScoreOutside`], for NaN too.
    pub fn check_score(&self, score: f64) -> Result<(), Refusal> {
        if (self.min_score..=self.max_score).contains(&score) {
            return Ok(());
        }
        Err(Refusal::ScoreOutside { score, min: self.min_score, max: self.max_score })
    }

    /// Whether these are the probabilities of the bins: one for each, none negative, 1 in all within
    /// [`SUM_TOLERANCE`].
    ///
    /// # Errors
    /// [`Refusal::Length`], [`Refusal::Probability`] or [`Refusal::Sum`].
    pub fn check_distribution(&self, distribution: &[f64]) -> Result<(), Refusal> {
        if distribution.len() != self.num_tokens {
            return Err(Refusal::Length { length: distribution.len(), bins: self.num_tokens });
        }
        if let Some(bin) = distribution.iter().position(|value| !value.is_finite() || *value < 0.0) {
            return Err(Refusal::Probability { bin, value: distribution[bin] });
        }
        let sum: f64 = distribution.iter().sum();
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            return Err(Refusal::Sum { sum, tolerance: SUM_TOLERANCE });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCALE: Scale = Scale { min_score: 1.0, max_score: 10.0, num_tokens: 10 };

    #[test]
    fn a_scale_has_an_order_and_two_bins() {
        assert_eq!(Scale::new(1.0, 10.0, 10), Some(SCALE));
        for (min, max, bins) in
            [(1.0, 1.0, 10), (2.0, 1.0, 10), (f64::NAN, 1.0, 10), (0.0, f64::INFINITY, 10), (0.0, 1.0, 1)]
        {
            assert_eq!(Scale::new(min, max, bins), None, "{min} {max} {bins}");
        }
    }

    #[test]
    fn raters_at_either_end_are_half_the_range_from_their_mean() {
        let mut halves = [0.0; 10];
        (halves[0], halves[9]) = (0.5, 0.5);
        assert_eq!((SCALE.mean(&halves), SCALE.std(&halves)), (5.5, 4.5));
    }

    #[test]
    fn the_value_of_a_bin_is_a_vote_for_it_alone() {
        let odd = Scale { min_score: -0.3, max_score: 7.7, num_tokens: 27 };
        for scale in [SCALE, odd] {
            for bin in 0..scale.num_tokens {
                let [(lower, share), (_, rest)] = scale.spread(scale.bin(bin));
                assert_eq!((lower, share, rest), (bin, 1.0, 0.0));
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_belong_to_it_and_nan_does_not() {
        for score in [1.0, 5.5, 10.0] {
            assert_eq!(SCALE.check_score(score), Ok(()));
        }
        for score in [0.999, 10.001, f64::NAN, f64::INFINITY, -5.0] {
            assert!(matches!(SCALE.check_score(score), Err(Refusal::ScoreOutside { .. })), "{score}");
        }
    }

    #[test]
    fn a_distribution_has_a_probability_a_bin_and_sums_to_one() {
        let mut even = vec![0.1; 10];
        assert_eq!(SCALE.check_distribution(&even), Ok(()));
        even[3] += 2.0 * SUM_TOLERANCE;
        assert!(matches!(SCALE.check_distribution(&even), Err(Refusal::Sum { .. })));
        assert_eq!(SCALE.check_distribution(&[0.5, 0.5]), Err(Refusal::Length { length: 2, bins: 10 }));
        let mut negative = vec![0.0; 10];
        (negative[0], negative[9]) = (1.5, -0.5);
        assert_eq!(SCALE.check_distribution(&negative), Err(Refusal::Probability { bin: 9, value: -0.5 }));
        negative[9] = f64::NAN;
        assert!(matches!(SCALE.check_distribution(&negative), Err(Refusal::Probability { bin: 9, .. })));
    }

    proptest! {
        #[test]
        fn a_spread_score_has_its_own_mean(score in 1.0_f64..=10.0) {
            let spread = SCALE.spread(score);
            let total: f64 = spread.iter().map(|(_, share)| share).sum();
            let mean: f64 = spread.iter().map(|(bin, share)| SCALE.bin(*bin) * share).sum();
            prop_assert!((total - 1.0).abs() < 1e-12 && (mean - score).abs() < 1e-8, "{spread:?}");
            prop_assert!(spread.iter().all(|(bin, share)| *bin < 10 && *share >= 0.0));
        }

        #[test]
        fn bins_run_from_end_to_end(min in -100.0_f64..100.0, width in 0.1_f64..100.0, bins in 2_usize..40) {
            let scale = Scale::new(min, min + width, bins).unwrap();
            prop_assert_eq!(scale.bin(0), min);
            prop_assert!((scale.bin(bins - 1) - scale.max_score).abs() < 1e-9);
            prop_assert!((1..bins).all(|index| scale.bin(index) > scale.bin(index - 1)));
        }
    }
}
