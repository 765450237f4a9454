//! One model on one set of labelled photos.

use super::{
    bootstrap::{self, BootstrapSettings, Estimate, Groups},
    metrics::{self, Measured, Metric, Observation, Workspace},
};
use crate::{
    fault::{ErrorCode, ItemError},
    score::{ModelVersion, ScoreValue},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What people said about a photo.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// One for each attribute, in score units; the first is what photos are ranked by.
    pub scores: Vec<f64>,
    /// The rating distribution of each score over the model's bins; empty where only scores are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distributions: Vec<Vec<f64>>,
}

/// What became of a photo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// One value for each `[SCORE]` of the answer, at least one.
    Scored { scores: Vec<ScoreValue> },
    /// The model answered without any `[SCORE]`: its fault, and measured as such.
    NoScore { error: ItemError },
    /// The photo can't be read or decoded: no model's fault, and no part of any metric.
    Rejected { error: ItemError },
}

impl Outcome {
    /// What a model answered about a photo, or why it did not.
    pub fn of(answer: Result<Vec<ScoreValue>, ItemError>) -> Self {
        match answer {
            Ok(scores) => Self::Scored { scores },
            Err(error) if matches!(error.code, ErrorCode::NoScoreToken | ErrorCode::NonFiniteScore) => {
                Self::NoScore { error }
            }
            Err(error) => Self::Rejected { error },
        }
    }
}

/// A labelled photo with a model's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Photo {
    /// Its name: a path or `bucket/key`.
    pub image: String,
    /// Photos with the same group are copies or near-copies of one another, and weigh together; by
    /// default a photo is alone with those of its own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    pub label: Label,
    pub outcome: Outcome,
}

/// How well one score of the answers is predicted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attribute {
    /// Photos with a label of it that could be decoded.
    pub photos: usize,
    /// Those among them that were scored.
    pub scored: usize,
    /// A metric without a value, such as a correlation with equal labels, is absent.
    pub metrics: BTreeMap<Metric, Estimate>,
}

/// One model on one set of labelled photos.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub model: ModelVersion,
    /// The lowest and the highest score the model can give.
    pub range: (f64, f64),
    /// How the metrics' intervals were computed.
    pub intervals: BootstrapSettings,
    /// One for each `[SCORE]` that any label has; the first is what photos are ranked by.
    pub attributes: Vec<Attribute>,
    /// In the order of the labels.
    pub photos: Vec<Photo>,
}

impl Photo {
    /// The label of one attribute.
    pub fn label_score(&self, attribute: usize) -> Option<f64> {
        self.label.scores.get(attribute).copied()
    }

    /// The model's value of one attribute.
    pub fn value(&self, attribute: usize) -> Option<&ScoreValue> {
        match &self.outcome {
            Outcome::Scored { scores } => scores.get(attribute),
            Outcome::NoScore { .. } | Outcome::Rejected { .. } => None,
        }
    }

    /// Prediction minus label, in score units.
    pub fn residual(&self, attribute: usize) -> Option<f64> {
        Some(self.value(attribute)?.score - self.label_score(attribute)?)
    }

    /// What photos of the same are drawn together.
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(&self.image)
    }

    /// One attribute as metrics see it; `None` without a label of it, and for a photo that no model
    /// could have scored.
    pub(super) fn observation(&self, attribute: usize) -> Option<Observation> {
        if matches!(self.outcome, Outcome::Rejected { .. }) {
            return None;
        }
        let label = self.label_score(attribute)?;
        let value = self.value(attribute);
        let emd = value.zip(self.label.distributions.get(attribute)).and_then(|(value, target)| {
            let predicted: Vec<f64> = value.distribution.iter().map(|&share| f64::from(share)).collect();
            metrics::emd(&predicted, target)
        });
        Some(Observation { label, predicted: value.map(|value| value.score), emd, answered: value.is_some() })
    }
}

impl Evaluation {
    /// Measures `photos` as `model` answered them.
    pub fn measure(
        model: ModelVersion,
        range: (f64, f64),
        photos: Vec<Photo>,
        settings: &BootstrapSettings,
    ) -> Self {
        let count = photos.iter().map(|photo| photo.label.scores.len()).max().unwrap_or(0);
        let attributes = (0..count).map(|attribute| measure(&photos, attribute, range, settings)).collect();
        Self { model, range, intervals: *settings, attributes, photos }
    }

    /// A metric of the score that photos are ranked by.
    pub fn metric(&self, metric: Metric) -> Option<&Estimate> {
        self.attributes.first()?.metrics.get(&metric)
    }

    /// The photos that were not scored, with the reasons.
    pub fn failures(&self) -> impl Iterator<Item = (&Photo, &ItemError)> {
        self.photos.iter().filter_map(|photo| match &photo.outcome {
            Outcome::NoScore { error } | Outcome::Rejected { error } => Some((photo, error)),
            Outcome::Scored { .. } => None,
        })
    }

    /// The photos whose prediction is farthest from their label, farthest first.
    pub fn worst(&self, count: usize) -> Vec<&Photo> {
        let mut photos: Vec<(f64, &Photo)> = self
            .photos
            .iter()
            .filter_map(|photo| Some((photo.residual(0)?.abs(), photo)))
            .filter(|(residual, _)| residual.is_finite())
            .collect();
        photos.sort_by(|one, other| other.0.total_cmp(&one.0).then_with(|| one.1.image.cmp(&other.1.image)));
        photos.into_iter().take(count).map(|(_, photo)| photo).collect()
    }

    /// The same without the photos: what a row of `retrain_runs` has room for.
    pub fn without_photos(&self) -> Self {
        Self { photos: Vec::new(), model: self.model.clone(), attributes: self.attributes.clone(), ..*self }
    }
}

fn measure(photos: &[Photo], attribute: usize, range: (f64, f64), settings: &BootstrapSettings) -> Attribute {
    let observed: Vec<(&Photo, Observation)> =
        photos.iter().filter_map(|photo| Some((photo, photo.observation(attribute)?))).collect();
    let groups = Groups::by_name(observed.iter().map(|(photo, _)| photo.group()));
    let observations: Vec<Observation> = observed.iter().map(|(_, observation)| *observation).collect();
    let measured = Measured::new(&observations, range);
    let values = measured.values();
    let drawn = bootstrap::resample(&groups, settings, |weights, workspace: &mut Workspace| {
        measured.weighted(weights, workspace)
    });
    let metrics = Metric::ALL.into_iter().filter_map(|metric| {
        let drawn = drawn.iter().map(|values| values[metric.index()]);
        Some((metric, Estimate::new(values[metric.index()], drawn, settings.confidence)?))
    });
    Attribute { photos: measured.photos(), scored: measured.paired(), metrics: metrics.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Stage;

    fn model() -> ModelVersion {
        ModelVersion { model: "m".into(), version: "v".into(), preprocess_revision: 1 }
    }

    fn photo(image: &str, labels: &[f64], bins: &[usize]) -> Photo {
        let certain = |&bin: &usize| {
            let distribution = (0..10).map(|index| if index == bin { 1.0 } else { 0.0 }).collect();
            ScoreValue::from_distribution(distribution, 1.0, 10.0)
        };
        Photo {
            image: image.into(),
            group: None,
            label: Label { scores: labels.to_vec(), distributions: Vec::new() },
            outcome: Outcome::Scored { scores: bins.iter().map(certain).collect() },
        }
    }

    fn failed(image: &str, code: ErrorCode) -> Photo {
        let error = ItemError::new(code, Stage::Infer, "no");
        let outcome = match code {
            ErrorCode::NoScoreToken => Outcome::NoScore { error },
            _ => Outcome::Rejected { error },
        };
        Photo { outcome, ..photo(image, &[4.0], &[]) }
    }

    fn evaluate(photos: Vec<Photo>) -> Evaluation {
        Evaluation::measure(
            model(),
            (1.0, 10.0),
            photos,
            &BootstrapSettings { resamples: 50, ..Default::default() },
        )
    }

    #[test]
    fn each_score_of_the_answers_is_an_attribute_of_its_own() {
        let evaluation = evaluate(vec![
            photo("a", &[1.0, 9.0], &[0, 1]),
            photo("b", &[2.0, 8.0], &[1, 2]),
            photo("c", &[3.0], &[2]),
            photo("d", &[4.0, 7.0], &[4]),
        ]);
        assert_eq!(evaluation.attributes.len(), 2);
        let [first, second] = &evaluation.attributes[..] else { panic!() };
        assert_eq!((first.photos, first.scored), (4, 4));
        assert_eq!((second.photos, second.scored), (3, 2));
        assert_eq!(first.metrics[&Metric::Srcc].value, 1.0);
        assert_eq!(first.metrics[&Metric::Mae].value, 0.25);
        assert_eq!(second.metrics[&Metric::Srcc].value, -1.0);
        assert_eq!(second.metrics[&Metric::ScoreRate].value, 2.0 / 3.0);
        assert_eq!(evaluation.metric(Metric::Emd), None, "no label has a distribution");
    }

    #[test]
    fn a_broken_photo_is_no_models_fault_and_a_missing_score_is() {
        let evaluation = evaluate(vec![
            photo("a", &[3.0], &[2]),
            failed("b", ErrorCode::ImageTruncated),
            failed("c", ErrorCode::NoScoreToken),
            photo("d", &[5.0], &[5]),
        ]);
        assert_eq!(evaluation.attributes[0].photos, 3);
        assert_eq!(evaluation.metric(Metric::ScoreRate).unwrap().value, 2.0 / 3.0);
        let failures: Vec<&str> = evaluation.failures().map(|(photo, _)| photo.image.as_str()).collect();
        assert_eq!(failures, ["b", "c"]);
        assert_eq!(
            evaluation.worst(5).iter().map(|photo| photo.image.as_str()).collect::<Vec<_>>(),
            ["d", "a"]
        );
    }

    #[test]
    fn json_reads_back_as_what_was_written() {
        let evaluation = evaluate(vec![photo("a", &[3.0], &[2]), failed("b", ErrorCode::NoScoreToken)]);
        let json = serde_json::to_string(&evaluation).unwrap();
        assert_eq!(serde_json::from_str::<Evaluation>(&json).unwrap(), evaluation);
        assert!(evaluation.without_photos().photos.is_empty());
    }

    #[test]
    fn nothing_is_measured_of_nothing() {
        assert_eq!(evaluate(vec![]).attributes, []);
        let broken = evaluate(vec![failed("b", ErrorCode::ImageTruncated)]);
        assert_eq!(broken.attributes, [Attribute::default()]);
    }
}
