//! What one rater, or many at once, think of a photo; and what all of them together do.

use super::{Refusal, Scale};

/// As many as Postgres' `integer` counts.
const MOST_RATERS: u32 = i32::MAX as u32;

/// One score per attribute, and how the raters' votes spread over the scale.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Opinion {
    /// One per `[SCORE]` of the answer; a mean where there are several raters.
    pub scores: Vec<f64>,
    /// The share of raters in each of the scale's bins, a list per score. Empty where only scores are known.
    pub distributions: Vec<Vec<f64>>,
    /// How many people's it is.
    pub raters: u32,
}

impl Opinion {
    /// One rater's scores.
    pub fn of_scores(scores: Vec<f64>) -> Self {
        Self { scores, distributions: Vec::new(), raters: 1 }
    }

    /// Raters counted by the bin that each chose, a list of counts per score. The score is the mean of the
    /// bins' values.
    ///
    /// # Errors
    /// When there is not a count a bin, nobody has voted, or the lists have different numbers of raters.
    pub fn of_counts(counts: &[Vec<u64>], scale: &Scale) -> Result<Self, Refusal> {
        let mut opinion = Self::default();
        let mut first = None;
        for counts in counts {
            if counts.len() != scale.num_tokens {
                return Err(Refusal::Length { length: counts.len(), bins: scale.num_tokens });
            }
            let total = counts.iter().fold(0_u64, |total, count| total.saturating_add(*count));
            match *first.get_or_insert(total) {
                0 => return Err(Refusal::NoVotes),
                first if first != total => return Err(Refusal::UnequalVotes { first, other: total }),
                _ => {}
            }
            opinion.raters = u32::try_from(total)
                .ok()
                .filter(|raters| *raters <= MOST_RATERS)
                .ok_or(Refusal::TooManyRaters(total))?;
            let distribution: Vec<f64> = counts.iter().map(|count| *count as f64 / total as f64).collect();
            opinion.scores.push(scale.mean(&distribution));
            opinion.distributions.push(distribution);
        }
        Ok(opinion)
    }

    /// Whether every score lies on the scale, every distribution over its bins, and there are raters at all.
    ///
    /// # Errors
    /// What is wrong first.
    pub fn check(&self, scale: &Scale) -> Result<(), Refusal> {
        if self.scores.is_empty() {
            return Err(Refusal::Missing { field: "score", remedy: "give a score, or votes by bin" });
        }
        self.scores.iter().try_for_each(|score| scale.check_score(*score))?;
        if !self.distributions.is_empty() && self.distributions.len() != self.scores.len() {
            let (targets, scores) = (self.distributions.len(), self.scores.len());
            return Err(Refusal::TargetCount { targets, scores });
        }
        self.distributions.iter().try_for_each(|distribution| scale.check_distribution(distribution))?;
        match self.raters {
            0 => Err(Refusal::NoVotes),
            raters if raters > MOST_RATERS => Err(Refusal::TooManyRaters(raters.into())),
            _ => Ok(()),
        }
    }

    /// All opinions as one: each counts as often as it has raters. A score without a distribution counts as a
    /// vote for its bin, or in parts for the two bins that it lies between, which keeps the mean.
    ///
    /// `None` without opinions, or where they are of different numbers of scores or bins.
    pub fn aggregate<'a>(opinions: impl IntoIterator<Item = &'a Self>, scale: &Scale) -> Option<Self> {
        let mut total: Option<Sums> = None;
        for opinion in opinions {
            total.get_or_insert_with(|| Sums::new(opinion.scores.len(), scale)).add(opinion, scale)?;
        }
        total?.mean(scale)
    }
}

/// Sums over raters.
struct Sums {
    scores: Vec<f64>,
    distributions: Vec<Vec<f64>>,
    raters: u64,
}

impl Sums {
    fn new(attributes: usize, scale: &Scale) -> Self {
        let distributions = vec![vec![0.0; scale.num_tokens]; attributes];
        Self { scores: vec![0.0; attributes], distributions, raters: 0 }
    }

    fn add(&mut self, opinion: &Opinion, scale: &Scale) -> Option<()> {
        if opinion.scores.len() != self.scores.len() {
            return None;
        }
        let weight = f64::from(opinion.raters);
        self.raters += u64::from(opinion.raters);
        for (attribute, score) in opinion.scores.iter().enumerate() {
            self.scores[attribute] += weight * score;
            let sums = &mut self.distributions[attribute];
            match opinion.distributions.get(attribute) {
                Some(shares) if shares.len() == sums.len() => {
                    sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += weight * share);
                }
                Some(_) => return None,
                None => scale.spread(*score).into_iter().for_each(|(bin, share)| sums[bin] += weight * share),
            }
        }
        Some(())
    }

    /// Rounding must not bring a mean of scores on the scale's end beyond it.
    fn mean(self, scale: &Scale) -> Option<Opinion> {
        let raters = self.raters as f64;
        let mean = |sum: f64| (sum / raters).clamp(scale.min_score, scale.max_score);
        let shares = |sums: Vec<f64>| sums.into_iter().map(|sum| sum / raters).collect();
        (self.raters > 0).then(|| Opinion {
            scores: self.scores.into_iter().map(mean).collect(),
            distributions: self.distributions.into_iter().map(shares).collect(),
            raters: u32::try_from(self.raters).map_or(MOST_RATERS, |raters| raters.min(MOST_RATERS)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCALE: Scale = Scale { min_score: 1.0, max_score: 10.0, num_tokens: 10 };

    #[test]
    fn counts_become_a_distribution_its_mean_and_as_many_raters() {
        let counts = vec![0, 1, 5, 17, 38, 36, 15, 6, 5, 1];
        let opinion = Opinion::of_counts(&[counts], &SCALE).unwrap();
        assert_eq!(opinion.raters, 124);
        assert_eq!(opinion.distributions[0][4], 38.0 / 124.0);
        let mean = [2., 15., 68., 190., 216., 105., 48., 45., 10.].iter().sum::<f64>() / 124.0;
        assert!((opinion.scores[0] - mean).abs() < 1e-12, "{opinion:?}");
        assert_eq!(opinion.check(&SCALE), Ok(()));
    }

    #[test]
    fn nobodys_votes_are_refused() {
        let refused = |counts: &[Vec<u64>]| Opinion::of_counts(counts, &SCALE).unwrap_err();
        assert_eq!(refused(&[vec![0; 10]]), Refusal::NoVotes);
        assert_eq!(refused(&[vec![1; 9]]), Refusal::Length { length: 9, bins: 10 });
        let unequal = Refusal::UnequalVotes { first: 10, other: 20 };
        assert_eq!(refused(&[vec![1; 10], vec![2; 10]]), unequal);
        assert!(matches!(refused(&[vec![u64::MAX; 10]]), Refusal::TooManyRaters(_)));
        assert!(matches!(Opinion::default().check(&SCALE), Err(Refusal::Missing { .. })));
    }

    #[test]
    fn opinions_of_different_shapes_have_no_mean() {
        let (one, two) = (Opinion::of_scores(vec![5.0]), Opinion::of_scores(vec![5.0, 6.0]));
        assert_eq!(Opinion::aggregate([&one, &two], &SCALE), None);
        assert_eq!(Opinion::aggregate([], &SCALE), None);
        let bins = Opinion { distributions: vec![vec![0.5, 0.5]], ..one.clone() };
        assert_eq!(Opinion::aggregate([&one, &bins], &SCALE), None);
    }

    #[test]
    fn a_mean_of_the_lowest_score_is_no_lower() {
        let scale = Scale { min_score: 0.1, max_score: 0.7, num_tokens: 7 };
        for score in [0.1, 0.7] {
            for raters in 1..200 {
                let all = vec![Opinion::of_scores(vec![score]); raters];
                assert_eq!(Opinion::aggregate(&all, &scale).unwrap().check(&scale), Ok(()), "{raters}");
            }
        }
    }

    fn opinion() -> impl Strategy<Value = Opinion> {
        prop_oneof![
            (1.0_f64..=10.0).prop_map(|score| Opinion::of_scores(vec![score])),
            proptest::collection::vec(0_u64..50, 10)
                .prop_filter_map("nobody voted", |counts| { Opinion::of_counts(&[counts], &SCALE).ok() }),
        ]
    }

    proptest! {
        /// The distribution's expectation is the mean of the scores, whichever way they were given.
        #[test]
        fn the_aggregate_is_one_opinion_of_all(opinions in proptest::collection::vec(opinion(), 1..30)) {
            let all = Opinion::aggregate(&opinions, &SCALE).unwrap();
            prop_assert_eq!(all.check(&SCALE), Ok(()));
            prop_assert_eq!(all.raters, opinions.iter().map(|opinion| opinion.raters).sum::<u32>());
            prop_assert!((all.distributions[0].iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!((SCALE.mean(&all.distributions[0]) - all.scores[0]).abs() < 1e-9);
            let mean = opinions.iter().map(|one| one.scores[0] * f64::from(one.raters)).sum::<f64>()
                / f64::from(all.raters);
            prop_assert!((all.scores[0] - mean).abs() < 1e-9);
        }

        /// Counting raters and asking each of them comes to the same.
        #[test]
        fn counts_and_single_votes_agree(counts in proptest::collection::vec(0_u64..6, 10)) {
            prop_assume!(counts.iter().sum::<u64>() > 0);
            let at_once = Opinion::of_counts(std::slice::from_ref(&counts), &SCALE).unwrap();
            let singly: Vec<Opinion> = counts
                .iter()
                .enumerate()
                .flat_map(|(bin, count)| (0..*count).map(move |_| Opinion::of_scores(vec![SCALE.bin(bin)])))
                .collect();
            let together = Opinion::aggregate(&singly, &SCALE).unwrap();
            prop_assert_eq!(together.raters, at_once.raters);
            prop_assert!((together.scores[0] - at_once.scores[0]).abs() < 1e-9);
            for (one, other) in together.distributions[0].iter().zip(&at_once.distributions[0]) {
                prop_assert!((one - other).abs() < 1e-9);
            }
        }
    }
}
