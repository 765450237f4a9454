//! Two models on the same labelled photos.

use super::{
    bootstrap::{self, BootstrapSettings, Estimate, Groups},
    evaluation::{Evaluation, Photo},
    metrics::{Measured, Metric, Observation, Values, Workspace},
};
use crate::score::ModelVersion;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A metric of both models on the photos that both scored, and the difference between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    pub champion: Estimate,
    pub challenger: Estimate,
    /// Challenger minus champion; its interval is a paired one.
    pub difference: Estimate,
}

/// A challenger beside the champion, by the score that photos are ranked by.
///
/// Correlations and errors are of the photos that both scored; the rate of answers with `[SCORE]` is of
/// all that could be decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub champion: ModelVersion,
    pub challenger: ModelVersion,
    /// Photos that both scored.
    pub photos: usize,
    /// Groups of near-duplicates among them: how many independent photos there are.
    pub groups: usize,
    /// Whether both gave the very same scores to every photo.
    pub identical: bool,
    /// How the intervals were computed.
    pub intervals: BootstrapSettings,
    /// A metric without a value is absent.
    pub metrics: BTreeMap<Metric, Compared>,
}

/// Why two evaluations can't be compared.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ComparisonError {
    #[error(
        "{champion} photos were shown to the champion and {challenger} to the challenger; evaluate both on one set"
    )]
    Count { champion: usize, challenger: usize },
    #[error(
        "photo {index} is {champion} for the champion and {challenger} for the challenger, or labelled otherwise; evaluate both on one set"
    )]
    Photo { index: usize, champion: String, challenger: String },
    #[error(
        "the champion scores from {} to {} and the challenger from {} to {}; compare models of one range",
        champion.0, champion.1, challenger.0, challenger.1
    )]
    Range { champion: (f64, f64), challenger: (f64, f64) },
}

impl Comparison {
    /// Measures what two models answered to the same photos.
    ///
    /// # Errors
    /// [`ComparisonError`] where photos, labels or ranges are not the same.
    pub fn of(
        champion: &Evaluation,
        challenger: &Evaluation,
        settings: &BootstrapSettings,
    ) -> Result<Self, ComparisonError> {
        check(champion, challenger)?;
        let both: Vec<[(&Photo, Observation); 2]> = champion
            .photos
            .iter()
            .zip(&challenger.photos)
            .filter_map(|(one, other)| Some([(one, one.observation(0)?), (other, other.observation(0)?)]))
            .collect();
        let groups = Groups::by_name(both.iter().map(|[(photo, _), _]| photo.group()));
        let scored_by_both = |sides: &[(&Photo, Observation); 2]| {
            sides.iter().all(|(_, observation)| observation.predicted.is_some())
        };
        let of_side = |side: usize| {
            let observations = both.iter().map(|sides| {
                let observation = sides[side].1;
                let predicted = observation.predicted.filter(|_| scored_by_both(sides));
                Observation { predicted, ..observation }
            });
            Measured::new(&observations.collect::<Vec<_>>(), champion.range)
        };
        let sides = [of_side(0), of_side(1)];
        let drawn = bootstrap::resample(&groups, settings, |weights, workspace: &mut Workspace| {
            pair(&sides, |side| side.weighted(weights, workspace))
        });
        let values = pair(&sides, Measured::values);
        let metrics = Metric::ALL.into_iter().filter_map(|metric| {
            let of = |values: &Pair, side: usize| values[side * Metric::ALL.len() + metric.index()];
            let estimate = |number: &dyn Fn(&Pair) -> f64| {
                Estimate::new(number(&values), drawn.iter().map(number), settings.confidence)
            };
            let compared = Compared {
                champion: estimate(&|values| of(values, 0))?,
                challenger: estimate(&|values| of(values, 1))?,
                difference: estimate(&|values| of(values, 1) - of(values, 0))?,
            };
            Some((metric, compared))
        });
        let independent =
            both.iter().filter(|sides| scored_by_both(sides)).map(|[(photo, _), _]| photo.group());
        Ok(Self {
            champion: champion.model.clone(),
            challenger: challenger.model.clone(),
            photos: sides[0].paired(),
            groups: Groups::by_name(independent).count(),
            identical: champion
                .photos
                .iter()
                .zip(&challenger.photos)
                .all(|(one, other)| one.outcome == other.outcome),
            intervals: *settings,
            metrics: metrics.collect(),
        })
    }

    /// The difference in one metric, challenger minus champion.
    pub fn difference(&self, metric: Metric) -> Option<&Estimate> {
        self.metrics.get(&metric).map(|compared| &compared.difference)
    }
}

/// The values of the champion, then those of the challenger.
type Pair = [f64; 2 * Metric::ALL.len()];

fn pair(sides: &[Measured; 2], mut values: impl FnMut(&Measured) -> Values) -> Pair {
    let mut pair = [f64::NAN; 2 * Metric::ALL.len()];
    let (champion, challenger) = pair.split_at_mut(Metric::ALL.len());
    champion.copy_from_slice(&values(&sides[0]));
    challenger.copy_from_slice(&values(&sides[1]));
    pair
}

fn check(champion: &Evaluation, challenger: &Evaluation) -> Result<(), ComparisonError> {
    if champion.range != challenger.range {
        return Err(ComparisonError::Range { champion: champion.range, challenger: challenger.range });
    }
    if champion.photos.len() != challenger.photos.len() {
        return Err(ComparisonError::Count {
            champion: champion.photos.len(),
            challenger: challenger.photos.len(),
        });
    }
    let same = |one: &Photo, other: &Photo| one.image == other.image && one.label == other.label;
    match champion.photos.iter().zip(&challenger.photos).position(|(one, other)| !same(one, other)) {
        None => Ok(()),
        Some(index) => Err(ComparisonError::Photo {
            index,
            champion: champion.photos[index].image.clone(),
            challenger: challenger.photos[index].image.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evaluate::{Label, Outcome},
        fault::{ErrorCode, ItemError, Stage},
        score::ScoreValue,
    };

    fn evaluation(scores: &[Option<f64>]) -> Evaluation {
        let photos = scores.iter().enumerate().map(|(index, score)| {
            let error = || ItemError::new(ErrorCode::NoScoreToken, Stage::Infer, "no score");
            let value = |score: f64| ScoreValue { score, distribution: vec![1.0], std: 0.0 };
            Photo {
                image: format!("{index}.jpg"),
                group: None,
                label: Label { scores: vec![index as f64], distributions: Vec::new() },
                outcome: match score {
                    Some(score) => Outcome::Scored { scores: vec![value(*score)] },
                    None => Outcome::NoScore { error: error() },
                },
            }
        });
        let model =
            ModelVersion { model: "m".into(), version: scores.len().to_string(), preprocess_revision: 1 };
        let settings = BootstrapSettings { resamples: 20, ..Default::default() };
        Evaluation::measure(model, (0.0, 10.0), photos.collect(), &settings)
    }

    fn compare(champion: &Evaluation, challenger: &Evaluation) -> Result<Comparison, ComparisonError> {
        Comparison::of(champion, challenger, &BootstrapSettings::default())
    }

    #[test]
    fn both_are_measured_on_the_photos_that_both_scored() {
        let champion = evaluation(&[Some(0.0), Some(1.0), None, Some(5.0), Some(4.0)]);
        let challenger = evaluation(&[Some(0.0), Some(1.0), Some(2.0), Some(3.0), None]);
        let comparison = compare(&champion, &challenger).unwrap();
        assert_eq!((comparison.photos, comparison.groups, comparison.identical), (3, 3, false));
        let error = &comparison.metrics[&Metric::Mae];
        assert_eq!((error.champion.value, error.challenger.value), (2.0 / 3.0, 0.0));
        assert_eq!(error.difference.value, -2.0 / 3.0);
        assert_eq!(comparison.difference(Metric::ScoreRate).unwrap().value, 0.0);
    }

    #[test]
    fn the_interval_of_a_difference_is_a_paired_one() {
        let noise = |index: usize| ((index * 7919) % 101) as f64 / 20.0;
        let scores = |own: f64| -> Vec<Option<f64>> {
            (0..200)
                .map(|index| Some(index as f64 / 20.0 + noise(index) + own * noise(index * 3 + 1)))
                .collect()
        };
        let comparison = compare(&evaluation(&scores(0.0)), &evaluation(&scores(0.1))).unwrap();
        let Compared { champion, challenger, difference } = &comparison.metrics[&Metric::Srcc];
        let width = |estimate: &Estimate| estimate.half_width().unwrap();
        assert!(width(difference) < 0.5 * width(champion).min(width(challenger)));
    }

    #[test]
    fn a_model_beside_itself_differs_in_nothing() {
        let one = evaluation(&[Some(3.0), Some(1.0), Some(7.0), None]);
        let comparison = compare(&one, &one).unwrap();
        assert!(comparison.identical);
        for (metric, compared) in &comparison.metrics {
            assert_eq!(compared.difference.value, 0.0, "{metric}");
            assert!(matches!(compared.difference.interval, None | Some((0.0, 0.0))), "{metric}");
        }
    }

    #[test]
    fn other_photos_labels_or_ranges_are_refused() {
        let one = evaluation(&[Some(1.0), Some(2.0)]);
        let fewer = evaluation(&[Some(1.0)]);
        let mut relabelled = one.clone();
        relabelled.photos[1].label.scores[0] = 9.0;
        let range = Evaluation { range: (0.0, 5.0), ..one.clone() };
        assert!(matches!(compare(&one, &fewer), Err(ComparisonError::Count { champion: 2, challenger: 1 })));
        assert!(matches!(compare(&one, &relabelled), Err(ComparisonError::Photo { index: 1, .. })));
        assert!(matches!(compare(&one, &range), Err(ComparisonError::Range { .. })));
    }
}
