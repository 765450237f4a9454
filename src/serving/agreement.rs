//! How closely two models agree, from what is recorded of them.

use crate::{
    evaluate::correlation,
    store::{ShadowPair, ShadowRecord, ShadowSums},
};
use serde::Serialize;

/// The agreement of a candidate with a champion, in score units where it has a unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    pub images: u64,
    /// Mean of candidate less champion: above 0 where the candidate is kinder.
    pub mean_difference: f64,
    /// MAE of one against the other.
    pub mean_absolute_difference: f64,
    /// PLCC over every image; `None` where one of the models gives a single score.
    pub pearson: Option<f64>,
    /// SRCC over the sample of pairs that is kept; `None` as above.
    pub spearman: Option<f64>,
}

impl Agreement {
    /// `None` before the first image.
    pub fn of(record: &ShadowRecord) -> Option<Self> {
        let ShadowSums { images, champion, candidate, absolute_difference, .. } = record.sums;
        let count = images as f64;
        (images > 0).then(|| Self {
            images,
            mean_difference: (candidate - champion) / count,
            mean_absolute_difference: absolute_difference / count,
            pearson: pearson(&record.sums),
            spearman: spearman(&record.sample),
        })
    }
}

/// Pearson's correlation from sums.
fn pearson(sums: &ShadowSums) -> Option<f64> {
    let count = sums.images as f64;
    let champion = sums.champion_squared - sums.champion * sums.champion / count;
    let candidate = sums.candidate_squared - sums.candidate * sums.candidate / count;
    let together = sums.product - sums.champion * sums.candidate / count;
    // What is left of equal scores after rounding is no variance.
    let noise = 1e-12 * sums.champion_squared.max(sums.candidate_squared);
    (champion > noise && candidate > noise)
        .then(|| (together / (champion * candidate).sqrt()).clamp(-1.0, 1.0))
}

/// Spearman's correlation of the sample.
fn spearman(pairs: &[ShadowPair]) -> Option<f64> {
    let champion: Vec<f64> = pairs.iter().map(|pair| pair.champion).collect();
    let candidate: Vec<f64> = pairs.iter().map(|pair| pair.candidate).collect();
    correlation::spearman(&champion, &candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ScoreId;
    use proptest::prelude::*;

    fn record(scores: &[(f64, f64)]) -> ShadowRecord {
        let sample: Vec<ShadowPair> = (0..)
            .zip(scores)
            .map(|(number, &(champion, candidate))| ShadowPair {
                id: ScoreId::of_position("t", 0, number, 0),
                champion,
                candidate,
            })
            .collect();
        ShadowRecord { candidate: "a".into(), champion: "c".into(), sums: sample.iter().collect(), sample }
    }

    /// The definitions, computed elsewhere from centred scores with exactly rounded sums.
    #[test]
    fn known_pairs_have_known_correlations() {
        let pairs = [(5.1, 5.3), (6.0, 5.9), (4.2, 4.2), (7.7, 8.1), (5.1, 4.9), (3.3, 4.2), (6.9, 6.0)];
        let agreement = Agreement::of(&record(&pairs)).unwrap();
        assert_eq!(agreement.images, 7);
        assert!((agreement.mean_difference - 0.3 / 7.0).abs() < 1e-12, "{agreement:?}");
        assert!((agreement.mean_absolute_difference - 2.7 / 7.0).abs() < 1e-12, "{agreement:?}");
        assert!((agreement.pearson.unwrap() - 0.931_818_155_105_958_3).abs() < 1e-12, "{agreement:?}");
        assert!((agreement.spearman.unwrap() - 0.981_818_181_818_181_8).abs() < 1e-12, "{agreement:?}");
    }

    #[test]
    fn a_model_that_gives_one_score_has_no_correlation() {
        let agreement = Agreement::of(&record(&[(5.1, 2.3), (5.1, 4.9), (5.1, 7.1)])).unwrap();
        assert_eq!((agreement.pearson, agreement.spearman), (None, None));
        assert_eq!(Agreement::of(&record(&[])), None);
    }

    proptest! {
        #[test]
        fn an_equal_candidate_agrees_wholly(scores in prop::collection::btree_set(1_i32..10_000, 2..200)) {
            let pairs: Vec<(f64, f64)> =
                scores.iter().map(|score| (f64::from(*score) / 1e3, f64::from(*score) / 1e3)).collect();
            let agreement = Agreement::of(&record(&pairs)).unwrap();
            prop_assert_eq!((agreement.mean_difference, agreement.mean_absolute_difference), (0.0, 0.0));
            prop_assert!((agreement.spearman.unwrap() - 1.0).abs() < 1e-9);
        }
    }
}
