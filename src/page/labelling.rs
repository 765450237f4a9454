//! What to label next, and the votes that raters give.

use crate::{
    http::Problem,
    labels::{
        LabelledObject, Scale, Vote,
        suggest::{Ranking, Suggestion},
    },
    object::ScoreId,
    store::{Cursor, Store, StoreError, VoteOutcome},
};
use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    sync::PoisonError,
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use tokio::sync::Mutex;

/// Photos that a list of suggestions is drawn from; the next list goes on behind them.
const LOOKED_AT: usize = 50_000;
const PAGE: u32 = 2_000;
/// Suggestions in a list, and how many of them a rater is shown at once.
const LISTED: usize = 200;
const SHOWN: usize = 20;
/// A list stands for at least this long, and so many times as long as it took.
const AT_LEAST: Duration = Duration::from_secs(5);
const REST: u32 = 20;
/// At most so many scores to choose from: a key of the keyboard each.
const CHOICES: usize = 10;
/// And at least so many whole ones, or steps between them are offered too.
const FEWEST: f64 = 5.0;

/// The labelling view of one worker.
pub struct Labelling {
    store: Store,
    scale: Scale,
    /// Buckets that votes may name; empty, all.
    buckets: Vec<String>,
    list: Mutex<List>,
    /// Rated since the list was begun; apart from it, so that no vote waits for a list.
    rated: std::sync::Mutex<HashSet<LabelledObject>>,
}

#[derive(Default)]
struct List {
    suggestions: Vec<(Suggestion, ScoreId)>,
    /// Where the next list begins.
    after: Option<Cursor>,
    fresh_until: Option<Instant>,
    made: u64,
}

impl Labelling {
    pub fn new(store: Store, scale: Scale, buckets: Vec<String>) -> Self {
        Self { store, scale, buckets, list: Mutex::default(), rated: Default::default() }
    }

    /// The scores that a rater chooses from: the whole ones of the scale where there are five to ten, and
    /// ten equal steps elsewhere.
    pub fn choices(&self) -> Vec<f64> {
        let Scale { min_score, max_score, .. } = self.scale;
        let (first, last) = (min_score.ceil(), max_score.floor());
        let whole = last - first + 1.0;
        let even = first == min_score && last == max_score;
        if even && (FEWEST..=CHOICES as f64).contains(&whole) {
            return (0..whole as usize).map(|step| first + step as f64).collect();
        }
        let step = (max_score - min_score) / (CHOICES - 1) as f64;
        (0..CHOICES).map(|index| min_score + step * index as f64).collect()
    }

    /// The next photos to label, first the one to label first.
    ///
    /// # Errors
    /// 503 when Postgres does not answer.
    pub async fn next(&self) -> Result<Value, Problem> {
        let mut list = self.list.lock().await;
        let fresh = list.fresh_until.is_some_and(|until| Instant::now() < until);
        if !fresh {
            self.renew(&mut list).await.map_err(|error| unavailable(&error))?;
        }
        let rated = self.rated();
        let left = list.suggestions.iter().filter(|(one, _)| !rated.contains(&one.candidate.object));
        let shown: Vec<Value> = left.clone().take(SHOWN).map(|(one, id)| shown(one, *id)).collect();
        Ok(json!({"left": left.count(), "suggestions": shown}))
    }

    /// Ranks the next photos that nobody has rated.
    async fn renew(&self, list: &mut List) -> Result<(), StoreError> {
        let begun = Instant::now();
        let rated_before = self.rated().clone();
        let histogram = self.store.score_histogram(self.scale).await?;
        let mut ranking = Ranking::new(LISTED, list.made, histogram);
        let (mut seen, mut offered) = (0, HashSet::new());
        let mut may_go_round = list.after.is_some();
        while seen < LOOKED_AT {
            let page = self.store.unlabelled(&self.scale, list.after.as_ref(), PAGE).await?;
            seen += page.seen;
            for candidate in page.candidates {
                // A walk that began in the middle may come round to where it began.
                if offered.insert(candidate.object.clone()) {
                    ranking.offer(candidate);
                }
            }
            list.after = page.last;
            if list.after.is_none() && !std::mem::take(&mut may_go_round) {
                break;
            }
        }
        let suggestions = ranking.finish();
        let objects: Vec<&LabelledObject> =
            suggestions.iter().map(|suggestion| &suggestion.candidate.object).collect();
        let ids = self.store.scored_rows(&objects).await?;
        // A photo that was removed meanwhile has no row to show.
        list.suggestions =
            suggestions.into_iter().zip(ids).filter_map(|(suggestion, id)| Some((suggestion, id?))).collect();
        self.rated().retain(|object| !rated_before.contains(object));
        list.made += 1;
        let now = Instant::now();
        list.fresh_until = Some(now + AT_LEAST.max((now - begun) * REST));
        Ok(())
    }

    /// Stores a vote, in the form of the labels topic: a record without `labelled_at` is given now.
    ///
    /// # Errors
    /// 400 for what is no vote, 403 for a bucket outside the allow-list, 503 when Postgres does not answer.
    pub async fn vote(&self, body: &Bytes) -> Result<(StatusCode, Value), Problem> {
        let now = OffsetDateTime::now_utc();
        let vote = Vote::from_record(body, Some(now), &self.scale, now)
            .map_err(|refusal| Problem::new(StatusCode::BAD_REQUEST, "invalid_label", refusal.to_string()))?;
        if !self.buckets.is_empty() && !self.buckets.contains(&vote.object.bucket) {
            let detail = format!("bucket {:?} is not in s3.buckets; add it there", vote.object.bucket);
            return Err(Problem::new(StatusCode::FORBIDDEN, "bucket_not_allowed", detail));
        }
        let votes = [vote];
        let outcomes = self.store.write_votes(&votes, &self.scale).await;
        let outcomes = outcomes.map_err(|error| unavailable(&error))?;
        let [vote] = votes;
        self.rated().insert(vote.object);
        let outcome = outcomes.first().copied().unwrap_or(VoteOutcome::Superseded);
        let status = match outcome {
            VoteOutcome::Stored => StatusCode::CREATED,
            VoteOutcome::Superseded => StatusCode::OK,
        };
        Ok((status, json!({"outcome": outcome.as_str(), "score": vote.opinion.scores.first()})))
    }

    fn rated(&self) -> std::sync::MutexGuard<'_, HashSet<LabelledObject>> {
        self.rated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(suggestion: &Suggestion, id: ScoreId) -> Value {
    let Suggestion { candidate, reason, .. } = suggestion;
    json!({
        "id": id,
        "bucket": candidate.object.bucket,
        "key": candidate.object.key,
        "etag": candidate.object.etag,
        "reason": reason,
        "predicted": candidate.score,
        "std": candidate.std,
        "model_version": candidate.model_version,
    })
}

fn unavailable(error: &StoreError) -> Problem {
    tracing::warn!(%error, "the labelling view has no answer");
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", error.to_string());
    problem.retry_after(AT_LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{secret::Secret, store::PostgresSettings};

    fn choices(min_score: f64, max_score: f64) -> Vec<f64> {
        let settings =
            PostgresSettings { url: Secret::from("postgres://h/d"), ..PostgresSettings::default() };
        let store = Store::lazy(&settings).unwrap();
        let scale = Scale { min_score, max_score, num_tokens: 10 };
        Labelling::new(store, scale, Vec::new()).choices()
    }

    #[tokio::test]
    async fn every_choice_has_a_key_and_lies_on_the_scale() {
        assert_eq!(choices(1.0, 10.0), (1..=10).map(f64::from).collect::<Vec<_>>());
        assert_eq!(choices(1.0, 5.0), [1.0, 2.0, 3.0, 4.0, 5.0]);
        for (low, high) in [(0.0, 10.0), (0.0, 1.0), (-3.5, 96.5), (1.0, 10.5)] {
            let choices = choices(low, high);
            assert_eq!((choices.len(), choices[0]), (10, low));
            assert!((choices[9] - high).abs() < 1e-9, "{choices:?}");
        }
    }
}
