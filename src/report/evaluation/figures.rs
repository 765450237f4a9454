//! The numbers behind the charts.

use crate::evaluate::{Evaluation, Photo};

/// Label and prediction of one attribute of every photo that has both.
pub fn pairs(evaluation: &Evaluation, attribute: usize) -> Vec<(f64, f64)> {
    let pair = |photo: &Photo| Some((photo.label_score(attribute)?, photo.value(attribute)?.score));
    evaluation
        .photos
        .iter()
        .filter_map(pair)
        .filter(|(label, score)| label.is_finite() && score.is_finite())
        .collect()
}

/// A straight line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    pub intercept: f64,
    pub slope: f64,
}

impl Line {
    /// The least squares fit of the second number to the first; `None` where the first ones are all equal.
    pub fn fit(pairs: &[(f64, f64)]) -> Option<Self> {
        let count = pairs.len() as f64;
        let mean = |number: fn(&(f64, f64)) -> f64| pairs.iter().map(number).sum::<f64>() / count;
        let (mean_x, mean_y) = (mean(|pair| pair.0), mean(|pair| pair.1));
        let (mut xx, mut xy) = (0.0, 0.0);
        for (x, y) in pairs {
            xx += (x - mean_x).powi(2);
            xy += (x - mean_x) * (y - mean_y);
        }
        let slope = xy / xx;
        slope.is_finite().then_some(Self { intercept: mean_y - slope * mean_x, slope })
    }

    pub fn at(&self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }
}

/// Where the middle of some numbers lies, and how far they reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantiles {
    pub count: usize,
    /// The 5th, 25th, 50th, 75th and 95th percentile.
    pub at: [f64; 5],
}

impl Quantiles {
    /// `None` of nothing.
    pub fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_unstable_by(f64::total_cmp);
        let last = numbers.len().checked_sub(1)?;
        let at = [0.05, 0.25, 0.5, 0.75, 0.95].map(|share| {
            let place = share * last as f64;
            let (below, above) = (numbers[place.floor() as usize], numbers[place.ceil() as usize]);
            below + (above - below) * place.fract()
        });
        Some(Self { count: numbers.len(), at })
    }
}

/// Residuals by the label's bin: `edges` has one more number than there are bins.
pub fn residuals(pairs: &[(f64, f64)], edges: &[f64]) -> Vec<Option<Quantiles>> {
    let bins = edges.len().saturating_sub(1);
    let mut of_bins = vec![Vec::new(); bins];
    for (label, score) in pairs {
        let after = edges.partition_point(|edge| edge <= label);
        if let Some(bin) = of_bins.get_mut(after.saturating_sub(1).min(bins.saturating_sub(1))) {
            bin.push(score - label);
        }
    }
    of_bins.into_iter().map(Quantiles::of).collect()
}

/// Photos of about the same predicted spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpreadGroup {
    pub photos: usize,
    /// Mean of the predicted distributions' standard deviations.
    pub predicted: f64,
    /// Mean of the raters' standard deviations, where labels have distributions.
    pub raters: Option<f64>,
    /// Root mean square of prediction minus label.
    pub error: f64,
}

/// The first attribute's photos in up to `most` equal groups, by rising predicted spread. A model whose spread
/// means what it says predicts the raters' spread in each.
pub fn spreads(evaluation: &Evaluation, most: usize) -> Vec<SpreadGroup> {
    let mut photos: Vec<(f64, Option<f64>, f64)> = evaluation
        .photos
        .iter()
        .filter_map(|photo| {
            let of_raters = photo
                .label
                .distributions
                .first()
                .and_then(|distribution| deviation(distribution, evaluation.range));
            Some((photo.value(0)?.std, of_raters, photo.residual(0)?))
        })
        .filter(|(predicted, _, residual)| predicted.is_finite() && residual.is_finite())
        .collect();
    photos.sort_by(|one, other| one.0.total_cmp(&other.0));
    // Fewer than five photos to a group say nothing.
    let groups = most.min(photos.len() / 5).max(1);
    (0..groups)
        .map(|group| &photos[group * photos.len() / groups..(group + 1) * photos.len() / groups])
        .filter(|photos| !photos.is_empty())
        .map(|photos| {
            let count = photos.len() as f64;
            let raters: Vec<f64> = photos.iter().filter_map(|photo| photo.1).collect();
            SpreadGroup {
                photos: photos.len(),
                predicted: photos.iter().map(|photo| photo.0).sum::<f64>() / count,
                raters: (!raters.is_empty()).then(|| raters.iter().sum::<f64>() / raters.len() as f64),
                error: (photos.iter().map(|photo| photo.2 * photo.2).sum::<f64>() / count).sqrt(),
            }
        })
        .collect()
}

/// The standard deviation of a rating distribution over equally spaced bins, both ends included.
fn deviation(distribution: &[f64], (low, high): (f64, f64)) -> Option<f64> {
    let last = distribution.len().checked_sub(1).filter(|last| *last > 0)? as f64;
    let total: f64 = distribution.iter().sum();
    let bins = || {
        let bin = |index: usize| low + (high - low) * index as f64 / last;
        distribution.iter().enumerate().map(move |(index, share)| (bin(index), share / total))
    };
    let mean: f64 = bins().map(|(bin, share)| bin * share).sum();
    let variance: f64 = bins().map(|(bin, share)| share * (bin - mean).powi(2)).sum();
    variance.is_finite().then(|| variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_points_on_a_line_is_that_line() {
        let line = Line::fit(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]).unwrap();
        assert!((line.slope - 2.0).abs() < 1e-12 && (line.at(0.0) - 3.0).abs() < 1e-12);
        assert_eq!((Line::fit(&[(1.0, 5.0), (1.0, 7.0)]), Line::fit(&[])), (None, None));
    }

    #[test]
    fn residuals_are_by_the_label() {
        let edges = [1.0, 2.0, 3.0, 4.0];
        let pairs = [(1.0, 1.5), (1.9, 1.9), (2.0, 3.0), (4.0, 3.0), (0.5, 1.5)];
        let bins = residuals(&pairs, &edges);
        let found: Vec<_> = bins.iter().map(|bin| bin.map(|bin| (bin.count, bin.at[2]))).collect();
        assert_eq!(found, [Some((3, 0.5)), Some((1, 1.0)), Some((1, -1.0))]);
        assert_eq!(residuals(&[], &edges), [None, None, None]);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let quantiles = Quantiles::of((0..=20).map(f64::from).collect()).unwrap();
        assert_eq!(quantiles, Quantiles { count: 21, at: [1.0, 5.0, 10.0, 15.0, 19.0] });
        assert_eq!(Quantiles::of(vec![]), None);
    }

    #[test]
    fn the_deviation_is_in_score_units() {
        assert_eq!(deviation(&[0.5, 0.0, 0.5], (1.0, 5.0)), Some(2.0));
        assert_eq!(deviation(&[0.0, 3.0, 0.0], (1.0, 5.0)), Some(0.0));
        assert_eq!((deviation(&[], (1.0, 5.0)), deviation(&[0.0, 0.0], (1.0, 5.0))), (None, None));
    }
}
