//! The scores that the models give in this process, by version, and how far they are from a reference.

use super::{
    drift::{Distribution, Drift, REFERENCE_SCORES, Window},
    metrics::{Sample, Sampled},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Versions that are followed at once; another one takes the place of the one that scored least lately.
pub const MAX_VERSIONS: usize = 8;

/// Where a reference comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceSource {
    /// What whoever published the version says of it.
    Registry,
    /// The first scores that it gave anywhere.
    FirstScores,
}

impl ReferenceSource {
    fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::FirstScores => "first_scores",
        }
    }
}

/// A version that has nothing to be compared with yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreferenced {
    pub version: String,
    /// Its first scores in this process, once there are [`REFERENCE_SCORES`] of them.
    pub first: Option<Distribution>,
}

/// What the scores of each version are like.
#[derive(Debug, Default)]
pub struct ScoreMonitor(Mutex<Vec<Followed>>);

#[derive(Debug)]
struct Followed {
    version: String,
    all: Distribution,
    first: Distribution,
    window: Window,
    reference: Option<(Distribution, ReferenceSource)>,
}

impl Followed {
    fn new(version: &str, range: (f64, f64)) -> Self {
        Self {
            version: version.to_owned(),
            all: Distribution::new(range),
            first: Distribution::new(range),
            window: Window::new(range),
            reference: None,
        }
    }
}

impl ScoreMonitor {
    /// `version` gave `score`; `range` are the lowest and the highest that it can give.
    pub fn record(&self, version: &str, range: (f64, f64), score: f64) {
        // A range without width has no bins.
        if !score.is_finite() || range.0.partial_cmp(&range.1) != Some(std::cmp::Ordering::Less) {
            return;
        }
        let mut versions = self.lock();
        let followed = match versions.iter().position(|followed| followed.version == version) {
            Some(index) => versions.remove(index),
            None => {
                if versions.len() >= MAX_VERSIONS {
                    versions.remove(0);
                }
                Followed::new(version, range)
            }
        };
        // The last one is that which scored last.
        versions.push(followed);
        let Some(followed) = versions.last_mut() else { return };
        followed.all.add(score);
        followed.window.add(score);
        if followed.first.count() < REFERENCE_SCORES {
            followed.first.add(score);
        }
    }

    /// Versions for which a reference is to be found.
    pub fn unreferenced(&self) -> Vec<Unreferenced> {
        let versions = self.lock();
        let without = versions.iter().filter(|followed| followed.reference.is_none());
        without
            .map(|followed| Unreferenced {
                version: followed.version.clone(),
                first: (followed.first.count() >= REFERENCE_SCORES).then(|| followed.first.clone()),
            })
            .collect()
    }

    /// Compares `version` with `reference` from now on. `false` if its bins are others, or nobody asks for
    /// one any more.
    pub fn refer(&self, version: &str, reference: Distribution, source: ReferenceSource) -> bool {
        let mut versions = self.lock();
        let followed = versions.iter_mut().find(|followed| followed.version == version);
        let Some(followed) = followed.filter(|followed| reference.is_comparable(&followed.all)) else {
            return false;
        };
        followed.reference = Some((reference, source));
        true
    }

    /// As metrics.
    pub fn sampled(self: &Arc<Self>) -> Vec<Sampled> {
        let of = |name, help, read: fn(&[Followed]) -> Sample| {
            let monitor = Arc::clone(self);
            Sampled { name, help, read: Box::new(move || read(&monitor.lock())) }
        };
        vec![
            of("score", "Scores that the model gave in this process", |versions| {
                let distributions = versions.iter().map(|followed| {
                    let Distribution { counts, sum, .. } = &followed.all;
                    let bounds = (0..counts.len()).map(|bin| followed.all.upper_bound(bin));
                    (labels(followed), *sum, bounds.zip(counts.iter().copied()).collect())
                });
                Sample::Distributions(distributions.collect())
            }),
            of(
                "score_psi",
                "Population stability index of the latest scores against the version's reference",
                |versions| drifts(versions, |drift| drift.psi),
            ),
            of(
                "score_mean_shift",
                "Mean of the latest scores less that of the version's reference",
                |versions| drifts(versions, |drift| drift.mean_shift),
            ),
            of(
                "score_reference_info",
                "1 for a version whose scores are compared with a reference",
                |versions| {
                    let referred = versions.iter().filter_map(|followed| {
                        let (_, source) = followed.reference.as_ref()?;
                        let mut labels = labels(followed);
                        labels.push(("source", source.as_str().to_owned()));
                        Some((labels, 1.0))
                    });
                    Sample::Levels(referred.collect())
                },
            ),
        ]
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Followed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn labels(followed: &Followed) -> Vec<(&'static str, String)> {
    vec![("version", followed.version.clone())]
}

/// NaN until it is known: a series that an alert names is there, and compares as false.
fn drifts(versions: &[Followed], read: fn(&Drift) -> f64) -> Sample {
    let drifts = versions.iter().map(|followed| {
        let reference = followed.reference.as_ref().map(|(reference, _)| reference);
        let drift = reference.and_then(|reference| reference.drift(followed.window.distribution()));
        (labels(followed), drift.as_ref().map_or(f64::NAN, read))
    });
    Sample::Levels(drifts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    const RANGE: (f64, f64) = (1.0, 10.0);

    #[test]
    fn a_version_is_compared_with_its_first_scores_once_there_are_enough() {
        let monitor = ScoreMonitor::default();
        for index in 0..REFERENCE_SCORES {
            assert!(monitor.unreferenced().iter().all(|wanted| wanted.first.is_none()));
            monitor.record("v", RANGE, 4.0 + (index % 20) as f64 / 10.0);
        }
        let wanted = monitor.unreferenced().pop().unwrap();
        assert!(monitor.refer("v", wanted.first.unwrap(), ReferenceSource::FirstScores));
        assert!(monitor.unreferenced().is_empty());
        assert!(!monitor.refer("another", Distribution::new(RANGE), ReferenceSource::Registry));
    }

    #[test]
    fn drift_is_shown_by_version() {
        let metrics = Metrics::new();
        let mut reference = Distribution::new(RANGE);
        for index in 0..1_000 {
            metrics.scores.record("old", RANGE, 5.0);
            metrics.scores.record("new", RANGE, 8.0);
            reference.add(5.0 + (index % 3) as f64 / 100.0);
        }
        for version in ["old", "new"] {
            assert!(metrics.scores.refer(version, reference.clone(), ReferenceSource::Registry));
        }
        let text = metrics.render();
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect(name);
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value(r#"roc4mllm_score_psi{version="old"}"#) < 0.1);
        assert!(value(r#"roc4mllm_score_psi{version="new"}"#) > 0.25);
        assert!(value(r#"roc4mllm_score_mean_shift{version="new"}"#) > 2.9);
        assert_eq!(value(r#"roc4mllm_score_count{version="old"}"#), 1_000.0);
        assert_eq!(value(r#"roc4mllm_score_bucket{le="+Inf",version="old"}"#), 1_000.0);
        assert_eq!(value(r#"roc4mllm_score_reference_info{version="old",source="registry"}"#), 1.0);
    }

    #[test]
    fn series_do_not_grow_with_the_number_of_versions() {
        let metrics = Metrics::new();
        let before = metrics.render().lines().count();
        for number in 0..10_000 {
            metrics.scores.record(&format!("v{number}"), RANGE, 5.0);
        }
        let text = metrics.render();
        let versions = text.lines().filter(|line| line.starts_with("roc4mllm_score_count{")).count();
        assert_eq!(versions, MAX_VERSIONS);
        assert!(text.contains(r#"roc4mllm_score_count{version="v9999"} 1"#));
        let lines = text.lines().count() - before;
        assert!(lines <= MAX_VERSIONS * 25, "{lines} lines more");
    }

    #[test]
    fn what_is_no_score_is_not_counted() {
        let monitor = ScoreMonitor::default();
        monitor.record("v", RANGE, f64::NAN);
        monitor.record("v", (1.0, 1.0), 1.0);
        assert!(monitor.unreferenced().is_empty());
    }
}
