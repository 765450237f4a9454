//! The numbers at the top of the page, and the histogram's bars.

use super::axis::{decimals, round_up};

/// Summary of a set of scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    pub mean: f64,
    /// The middle score; the mean of the two middle ones where their number is even.
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Statistics {
    /// Of `scores` in descending order; `None` without any.
    pub fn of_descending(scores: &[f64]) -> Option<Self> {
        let (highest, lowest) = (*scores.first()?, *scores.last()?);
        let middle = scores.len() / 2;
        let median = match scores.len() % 2 {
            1 => scores[middle],
            _ => f64::midpoint(scores[middle - 1], scores[middle]),
        };
        Some(Self { mean: scores.iter().sum::<f64>() / scores.len() as f64, median, lowest, highest })
    }
}

/// Equal bars over a stretch of the score axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Where the first bar begins; a multiple of `step`.
    pub low: f64,
    /// Width of a bar, in score units.
    pub step: f64,
    /// Scores in each bar; one on an edge counts to the right of it, the model's highest to the left.
    pub counts: Vec<usize>,
}

/// About as many bars as the occupied stretch gets.
const BARS: f64 = 18.0;

impl Histogram {
    /// Bars of a round width over the stretch that `scores` occupy within `range`; `None` without any.
    pub fn new(scores: &[f64], range: (f64, f64)) -> Option<Self> {
        let lowest = scores.iter().copied().min_by(f64::total_cmp)?;
        let highest = scores.iter().copied().max_by(f64::total_cmp)?;
        // A handful of nearly equal scores must not look spread out.
        let widest = (range.1 - range.0).abs().max(f64::MIN_POSITIVE);
        let step = round_up((highest - lowest).max(widest / 6.0) / BARS);
        let first = (lowest / step).floor();
        let mut last = (highest / step).floor();
        if last > first && highest >= range.1 && last * step >= range.1 {
            last -= 1.0;
        }
        let margin = ((BARS - (last - first)) / 2.0).floor().max(1.0);
        let first = (first - margin).max((range.0 / step).floor()).min(first);
        let last = (last + margin).min((range.1 / step).ceil() - 1.0).max(last);
        let mut counts = vec![0; (last - first) as usize + 1];
        for score in scores {
            let bar = ((score / step).floor() - first).max(0.0) as usize;
            let bar = bar.min(counts.len() - 1);
            counts[bar] += 1;
        }
        Some(Self { low: first * step, step, counts })
    }

    pub fn high(&self) -> f64 {
        self.edge(self.counts.len())
    }

    /// Where bar `index` begins.
    pub fn edge(&self, index: usize) -> f64 {
        self.low + self.step * index as f64
    }

    /// Decimals that tell two edges apart.
    pub fn decimals(&self) -> usize {
        decimals(self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_even_number_of_scores_has_its_median_between_the_middle_ones() {
        let statistics = Statistics::of_descending(&[8.0, 6.0, 5.0, 1.0]).unwrap();
        assert_eq!(statistics, Statistics { mean: 5.0, median: 5.5, lowest: 1.0, highest: 8.0 });
        assert_eq!(Statistics::of_descending(&[]), None);
    }

    proptest! {
        #[test]
        fn every_score_is_in_its_bar(
            low in -100.0_f64..100.0,
            width in 0.1_f64..200.0,
            positions in proptest::collection::vec(0.0_f64..=1.0, 1..200),
        ) {
            let scores: Vec<f64> = positions.iter().map(|position| low + width * position).collect();
            let histogram = Histogram::new(&scores, (low, low + width)).unwrap();
            prop_assert_eq!(histogram.counts.iter().sum::<usize>(), scores.len());
            prop_assert!(histogram.counts.len() >= 2 && histogram.counts.len() <= 60, "{}", histogram.counts.len());
            let slack = 1e-6 * histogram.step;
            for score in &scores {
                prop_assert!(histogram.low - slack <= *score && *score <= histogram.high() + slack);
            }
            for (index, count) in histogram.counts.iter().enumerate() {
                let inside = |score: &&f64| **score > histogram.edge(index) + slack && **score < histogram.edge(index + 1) - slack;
                prop_assert!(scores.iter().filter(inside).count() <= *count);
            }
        }
    }
}
