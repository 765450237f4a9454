//! Champion and challenger on the same held-out photos, and what the gate says.

use super::{
    cache::PhotoCache,
    dataset::{Dataset, LabelledPhoto},
    error::{RetrainError, blocking},
    lease::Watch,
};
use crate::{
    evaluate::{
        Comparison, Evaluation, Evidence, GateSettings, Label, Outcome, Photo, Verdict,
        gate::{EvaluationSet, judge},
    },
    image::{Fit, ImageSettings, PREPROCESS_REVISION, Preprocessor},
    inference::{InferenceSettings, ScoreFailure, Scorer, ScoringService, StartError},
    model::{ModelError, ModelSettings, scorer::TorchScorer},
    score::ModelVersion,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How models are asked, and what they must show.
#[derive(Clone, Debug)]
pub struct Judge {
    /// Device, type and question; which checkpoint is said each time.
    pub model: ModelSettings,
    pub images: ImageSettings,
    pub inference: InferenceSettings,
    pub gate: GateSettings,
    pub cache: PhotoCache,
}

/// Both models on one set.
#[derive(Clone, Debug)]
pub struct JudgedSet {
    pub set: EvaluationSet,
    pub champion: Evaluation,
    pub challenger: Evaluation,
    pub comparison: Comparison,
    /// Votes of a label, in the median.
    pub votes: Option<f64>,
}

/// What the gate says, and why.
#[derive(Clone, Debug)]
pub struct Judgement {
    pub verdict: Verdict,
    /// In the order of [`EvaluationSet::ALL`]; those without photos are left out.
    pub sets: Vec<JudgedSet>,
    /// Of scoring.
    pub elapsed: Duration,
}

/// A model's answers to the photos of each set.
struct Answers {
    model: ModelVersion,
    range: (f64, f64),
    sets: Vec<(EvaluationSet, Vec<Photo>)>,
}

impl Judge {
    /// Has both models score every held-out photo, and judges.
    ///
    /// # Errors
    /// [`RetrainError`] when a model can't be loaded or fails, or both have other ranges.
    pub async fn judge(
        &self,
        champion: &Path,
        challenger: &Path,
        dataset: &Dataset,
        watch: &Watch,
    ) -> Result<Judgement, RetrainError> {
        let start = Instant::now();
        let photos = EvaluationSet::ALL.iter().map(|set| dataset.set(*set).len() as u64).sum();
        // One model at a time: two may not fit.
        watch.begin("scoring with the champion", photos);
        let champion = self.answers(champion, dataset, watch).await?;
        watch.begin("scoring with the challenger", photos);
        let challenger = self.answers(challenger, dataset, watch).await?;
        let elapsed = start.elapsed();
        watch.begin("judging", 0);
        let votes: Vec<Option<f64>> =
            champion.sets.iter().map(|(set, _)| median_votes(dataset.set(*set))).collect();
        let gate = self.gate.clone();
        blocking(move || {
            let sets = compare(champion, challenger, votes, &gate)?;
            let evidence: Vec<Evidence<'_>> = sets
                .iter()
                .map(|judged| Evidence {
                    set: judged.set,
                    comparison: &judged.comparison,
                    votes: judged.votes,
                })
                .collect();
            Ok(Judgement { verdict: judge(&evidence, &gate), sets, elapsed })
        })
        .await
    }

    async fn answers(
        &self,
        folder: &Path,
        dataset: &Dataset,
        watch: &Watch,
    ) -> Result<Answers, RetrainError> {
        let service = self.load(folder).await?;
        let answered = self.score_sets(&service, dataset, watch).await;
        service.shut_down().await;
        let info = service.model();
        Ok(Answers { model: (*info.version).clone(), range: info.score_range, sets: answered? })
    }

    async fn load(&self, folder: &Path) -> Result<ScoringService, RetrainError> {
        let model = ModelSettings { checkpoint: folder.to_string_lossy().into_owned(), ..self.model.clone() };
        let preprocessor = Preprocessor::open(folder)?.with_fit(Fit::Pad);
        // Nobody waits for an answer here, and a hang is ended by the lease.
        let settings = InferenceSettings {
            warm_up: false,
            hang_timeout_ms: 0,
            golden_interval_ms: 0,
            ..self.inference.clone()
        };
        let build = move || {
            TorchScorer::load(&model, PREPROCESS_REVISION).map(|scorer| Box::new(scorer) as Box<dyn Scorer>)
        };
        ScoringService::start(build, preprocessor, self.images.clone(), &settings).await.map_err(
            |error: StartError<ModelError>| match error {
                StartError::Engine(failure) => failure.into(),
                error => RetrainError::Scoring(error.to_string()),
            },
        )
    }

    async fn score_sets(
        &self,
        service: &ScoringService,
        dataset: &Dataset,
        watch: &Watch,
    ) -> Result<Vec<(EvaluationSet, Vec<Photo>)>, RetrainError> {
        let mut sets = Vec::new();
        for set in EvaluationSet::ALL.into_iter().filter(|set| !dataset.set(*set).is_empty()) {
            let photos = stream::iter(dataset.set(set))
                .map(|photo| async {
                    let answered = self.score(service, photo).await;
                    watch.advance();
                    answered
                })
                .buffered(self.inference.in_flight_capacity())
                .try_collect()
                .await?;
            sets.push((set, photos));
        }
        Ok(sets)
    }

    async fn score(&self, service: &ScoringService, photo: &LabelledPhoto) -> Result<Photo, RetrainError> {
        let path = self.cache.path(&photo.content);
        let bytes = tokio::fs::read(&path).await.map_err(RetrainError::io(&path, "reading"))?;
        let answer = match service.score(&photo.name, bytes.into()).await {
            Ok(scored) => Ok(scored.answer.scores),
            Err(ScoreFailure::Rejected { error, .. }) => Err(error),
            Err(ScoreFailure::Engine(failure)) => return Err(failure.into()),
        };
        Ok(Photo {
            image: photo.name.clone(),
            group: Some(photo.group.to_string()),
            label: Label { scores: photo.scores.clone(), distributions: photo.distributions.clone() },
            outcome: Outcome::of(answer),
        })
    }
}

fn compare(
    champion: Answers,
    challenger: Answers,
    votes: Vec<Option<f64>>,
    gate: &GateSettings,
) -> Result<Vec<JudgedSet>, RetrainError> {
    let settings = gate.bootstrap();
    let pairs = champion.sets.into_iter().zip(challenger.sets).zip(votes);
    pairs
        .map(|(((set, of_champion), (_, of_challenger)), votes)| {
            let measure = |model: &ModelVersion, range, photos| {
                Evaluation::measure(model.clone(), range, photos, &settings)
            };
            let champion = measure(&champion.model, champion.range, of_champion);
            let challenger = measure(&challenger.model, challenger.range, of_challenger);
            let comparison = Comparison::of(&champion, &challenger, &settings)?;
            Ok(JudgedSet { set, champion, challenger, comparison, votes })
        })
        .collect()
}

impl Judgement {
    /// What is recorded of it, by set.
    ///
    /// # Errors
    /// When a number can't be written as JSON.
    pub fn metrics(&self) -> Result<Map<String, Value>, serde_json::Error> {
        let of_set = |judged: &JudgedSet| {
            let described = json!({
                "votes": judged.votes,
                "comparison": serde_json::to_value(&judged.comparison)?,
                "champion": serde_json::to_value(judged.champion.without_photos())?,
                "challenger": serde_json::to_value(judged.challenger.without_photos())?,
            });
            let name = serde_json::to_value(judged.set)?.as_str().unwrap_or_default().to_owned();
            Ok((name, described))
        };
        self.sets.iter().map(of_set).collect()
    }
}

/// `None` where it is not known of every label.
fn median_votes(photos: &[LabelledPhoto]) -> Option<f64> {
    let mut votes: Vec<u32> = photos.iter().map(|photo| photo.raters).collect::<Option<_>>()?;
    votes.sort_unstable();
    let upper = *votes.get(votes.len() / 2)?;
    let lower = votes[(votes.len() - 1) / 2];
    Some(f64::midpoint(f64::from(lower), f64::from(upper)))
}
