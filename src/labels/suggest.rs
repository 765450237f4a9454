//! Which photos to label next. Pure; memory grows with what is asked for, not with what there is.
//!
//! Three lists, each with what a label of it would teach most: photos whose predicted distribution is
//! *widest* (the model is unsure), photos that model versions *disagree* about, and photos whose score is
//! *rare* (there is least to learn from). Their units have nothing in common, so they take turns instead of
//! being added up. Every tenth suggestion is drawn at *random*: a model asked only where it knows that it is
//! weak never shows where it is wrong without knowing, and what is drawn so stays a fair sample.

use super::{LabelledObject, Scale};
use sha2::{Digest, Sha256};
use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashSet},
};

/// One suggestion in so many is drawn at random.
const RANDOM_EVERY: usize = 10;

/// A photo that nobody has rated.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub object: LabelledObject,
    /// As the newest model version that scored it says.
    pub score: f64,
    /// Standard deviation of the predicted distribution, in score units.
    pub std: f64,
    /// Standard deviation of the scores that different model versions gave; 0 with one.
    pub disagreement: f64,
    pub model_version: String,
}

/// Why a photo is suggested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Spread,
    Disagreement,
    Rarity,
    Random,
}

impl Reason {
    /// The word in exports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Disagreement => "disagreement",
            Self::Rarity => "rarity",
            Self::Random => "random",
        }
    }
}

/// A photo to label.
#[derive(Clone, Debug, PartialEq)]
pub struct Suggestion {
    pub candidate: Candidate,
    pub reason: Reason,
    /// The share of all scores that lie in its score's bin.
    pub density: f64,
}

/// How many photos have a score in each bin of the scale.
#[derive(Clone, Debug)]
pub struct ScoreHistogram {
    scale: Scale,
    counts: Vec<u64>,
}

impl ScoreHistogram {
    /// Nothing counted yet.
    pub fn new(scale: Scale) -> Self {
        Self { scale, counts: vec![0; scale.num_tokens] }
    }

    /// Counts `count` more scores in the bin nearest to `score`.
    pub fn add(&mut self, score: f64, count: u64) {
        let bin = self.bin(score);
        self.counts[bin] += count;
    }

    fn bin(&self, score: f64) -> usize {
        let [(lower, share), (upper, rest)] = self.scale.spread(score);
        if rest > share { upper } else { lower }
    }

    /// The share of all scores in this one's bin.
    pub fn density(&self, score: f64) -> f64 {
        let total: u64 = self.counts.iter().sum();
        self.counts[self.bin(score)] as f64 / total.max(1) as f64
    }
}

/// Ranks candidates as they come, in any order.
pub struct Ranking {
    limit: usize,
    seed: u64,
    histogram: ScoreHistogram,
    lists: [Best; 3],
    drawn: Best,
}

/// The order in which the lists take turns.
const TURNS: [Reason; 3] = [Reason::Spread, Reason::Disagreement, Reason::Rarity];

impl Ranking {
    /// For at most `limit` suggestions. `seed` decides what is drawn, and which of equals goes first.
    pub fn new(limit: usize, seed: u64, histogram: ScoreHistogram) -> Self {
        let best = || Best::new(limit);
        Self { limit, seed, histogram, lists: [best(), best(), best()], drawn: best() }
    }

    /// Takes note of a candidate; each object once.
    pub fn offer(&mut self, candidate: Candidate) {
        let tie = draw(self.seed, &candidate.object);
        let rarity = 1.0 - self.histogram.density(candidate.score);
        let values = [candidate.std, candidate.disagreement, rarity];
        for (list, value) in self.lists.iter_mut().zip(values) {
            // Nothing that a label would teach; a NaN is none either.
            if value > 0.0 {
                list.offer(value, tie, &candidate);
            }
        }
        self.drawn.offer(0.0, tie, &candidate);
    }

    /// The suggestions, first the one to label first.
    pub fn finish(self) -> Vec<Suggestion> {
        let Self { limit, histogram, lists, drawn, .. } = self;
        let mut drawn = drawn.into_order();
        let share: Vec<Candidate> = drawn.by_ref().take(limit.div_ceil(RANDOM_EVERY)).collect();
        let mut taken: HashSet<LabelledObject> =
            share.iter().map(|candidate| candidate.object.clone()).collect();
        let mut share = share.into_iter();
        let mut lists = lists.map(Best::into_order);
        let mut turn = 0;
        let mut suggestions = Vec::new();
        while suggestions.len() < limit {
            let place = suggestions.len() + 1;
            let at_random = place.is_multiple_of(RANDOM_EVERY) || place == limit;
            let chosen = match at_random.then(|| share.next()).flatten() {
                Some(candidate) => Some((candidate, Reason::Random)),
                None => next_of_lists(&mut lists, &mut turn, &mut taken)
                    .or_else(|| share.next().map(|candidate| (candidate, Reason::Random)))
                    .or_else(|| {
                        let more = drawn.find(|candidate| taken.insert(candidate.object.clone()))?;
                        Some((more, Reason::Random))
                    }),
            };
            let Some((candidate, reason)) = chosen else { break };
            let density = histogram.density(candidate.score);
            suggestions.push(Suggestion { candidate, reason, density });
        }
        suggestions
    }
}

/// The best that is left of the list whose turn it is, or of the next one that has anything.
fn next_of_lists(
    lists: &mut [impl Iterator<Item = Candidate>; 3],
    turn: &mut usize,
    taken: &mut HashSet<LabelledObject>,
) -> Option<(Candidate, Reason)> {
    for _ in 0..lists.len() {
        let list = *turn % lists.len();
        *turn += 1;
        if let Some(candidate) = lists[list].find(|candidate| taken.insert(candidate.object.clone())) {
            return Some((candidate, TURNS[list]));
        }
    }
    None
}

/// The candidates with the highest values, so many at most. As many as are asked for in all are enough of
/// each list: fewer than that can have been taken by the others.
struct Best {
    limit: usize,
    entries: BTreeSet<Entry>,
}

struct Entry {
    value: f64,
    tie: u64,
    candidate: Candidate,
}

impl Entry {
    fn rank(&self, value: f64, tie: u64, object: &LabelledObject) -> Ordering {
        // The highest value goes first.
        let order = value.total_cmp(&self.value).then_with(|| self.tie.cmp(&tie));
        order.then_with(|| self.candidate.object.cmp(object))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank(other.value, other.tie, &other.candidate.object)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl Best {
    fn new(limit: usize) -> Self {
        Self { limit, entries: BTreeSet::new() }
    }

    fn offer(&mut self, value: f64, tie: u64, candidate: &Candidate) {
        if self.entries.len() >= self.limit {
            let worst = self.entries.last();
            if worst.is_none_or(|worst| worst.rank(value, tie, &candidate.object) != Ordering::Greater) {
                return;
            }
            self.entries.pop_last();
        }
        self.entries.insert(Entry { value, tie, candidate: candidate.clone() });
    }

    fn into_order(self) -> impl Iterator<Item = Candidate> {
        self.entries.into_iter().map(|entry| entry.candidate)
    }
}

/// The same number for the same object and seed, on every machine and in every release.
fn draw(seed: u64, object: &LabelledObject) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_be_bytes());
    for part in [&object.bucket, &object.key] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let digest = hasher.finalize();
    digest[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCALE: Scale = Scale { min_score: 1.0, max_score: 10.0, num_tokens: 10 };

    fn candidate(number: usize, score: f64, std: f64, disagreement: f64) -> Candidate {
        Candidate {
            object: LabelledObject { bucket: "p".into(), key: format!("{number}.jpg"), etag: "e".into() },
            score,
            std,
            disagreement,
            model_version: "v".into(),
        }
    }

    fn ranked(candidates: &[Candidate], limit: usize, seed: u64) -> Vec<Suggestion> {
        let mut histogram = ScoreHistogram::new(SCALE);
        candidates.iter().for_each(|candidate| histogram.add(candidate.score, 1));
        let mut ranking = Ranking::new(limit, seed, histogram);
        candidates.iter().cloned().for_each(|candidate| ranking.offer(candidate));
        ranking.finish()
    }

    #[test]
    fn the_lists_take_turns_and_every_tenth_is_drawn() {
        let many: Vec<Candidate> = (0..1000)
            .map(|number| candidate(number, 5.0 + (number % 3) as f64, number as f64, 1.0 / number as f64))
            .collect();
        let reasons: Vec<&str> =
            ranked(&many, 20, 0).iter().map(|suggestion| suggestion.reason.as_str()).collect();
        let turns = ["spread", "disagreement", "rarity"];
        let expected: Vec<&str> = turns.into_iter().cycle().take(9).chain(["random"]).collect();
        assert_eq!(reasons[..10], expected);
        assert_eq!(reasons.iter().filter(|reason| **reason == "random").count(), 2);
        assert_eq!(reasons[19], "random");
    }

    #[test]
    fn one_version_disagrees_with_nobody() {
        let many: Vec<Candidate> = (0..50).map(|number| candidate(number, 5.0, 1.0, 0.0)).collect();
        assert!(ranked(&many, 20, 0).iter().all(|suggestion| suggestion.reason != Reason::Disagreement));
        let rarest = candidate(50, 9.0, 0.1, 0.0);
        let all = [many, vec![rarest.clone()]].concat();
        let rare = ranked(&all, 20, 0).into_iter().find(|one| one.reason == Reason::Rarity).unwrap();
        assert_eq!((rare.candidate, rare.density), (rarest, 1.0 / 51.0));
    }

    #[test]
    fn what_is_drawn_is_a_fair_sample_whatever_the_model_thinks() {
        let many: Vec<Candidate> =
            (0..200).map(|number| candidate(number, 5.0, (number < 100) as u8 as f64, 0.0)).collect();
        let mut unsure = 0;
        for seed in 0..400 {
            let drawn = ranked(&many, 10, seed);
            let drawn = drawn.iter().find(|suggestion| suggestion.reason == Reason::Random).unwrap();
            unsure += u32::from(drawn.candidate.std > 0.0);
        }
        // Half of 400, give or take five standard deviations.
        assert!((150..=250).contains(&unsure), "{unsure} of 400");
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one =
            (1.0_f64..=10.0, prop_oneof![Just(0.0), 0.0_f64..4.0], prop_oneof![Just(0.0), 0.0_f64..2.0]);
        proptest::collection::vec(one, 0..80).prop_map(|all| {
            let make = |(number, (score, std, other))| candidate(number, score, std, other);
            all.into_iter().enumerate().map(make).collect()
        })
    }

    proptest! {
        #[test]
        fn as_many_as_asked_for_are_suggested_and_each_once(all in candidates(), limit in 0_usize..100) {
            let suggestions = ranked(&all, limit, 7);
            prop_assert_eq!(suggestions.len(), limit.min(all.len()));
            let objects: HashSet<_> = suggestions.iter().map(|one| one.candidate.object.clone()).collect();
            prop_assert_eq!(objects.len(), suggestions.len());
            let drawn = suggestions.iter().filter(|one| one.reason == Reason::Random).count();
            prop_assert!(drawn >= limit.div_ceil(10).min(all.len()));
        }

        #[test]
        fn the_order_they_come_in_does_not_matter(all in candidates(), limit in 0_usize..40, by in 0_usize..80) {
            let mut turned = all.clone();
            turned.reverse();
            turned.rotate_left(by % all.len().max(1));
            prop_assert_eq!(ranked(&all, limit, 3), ranked(&turned, limit, 3));
        }

        /// What a list leads with is suggested, by that list or by another that had it too.
        #[test]
        fn the_best_of_each_list_is_suggested(all in candidates(), limit in 10_usize..40) {
            let suggested: HashSet<_> =
                ranked(&all, limit, 1).into_iter().map(|one| one.candidate.object).collect();
            for value in [|one: &Candidate| one.std, |one: &Candidate| one.disagreement] {
                let best = all.iter().map(value).fold(0.0, f64::max);
                let leaders: Vec<_> = all.iter().filter(|one| best > 0.0 && value(one) == best).collect();
                prop_assert!(leaders.is_empty() || leaders.iter().any(|one| suggested.contains(&one.object)));
            }
        }

        /// Within a list, what comes later is not better.
        #[test]
        fn each_list_goes_downhill(all in candidates(), limit in 0_usize..60) {
            let suggestions = ranked(&all, limit, 5);
            let of = |reason: Reason| suggestions.iter().filter(move |one| one.reason == reason);
            prop_assert!(of(Reason::Spread).is_sorted_by(|one, other| one.candidate.std >= other.candidate.std));
            prop_assert!(of(Reason::Rarity).is_sorted_by(|one, other| one.density <= other.density));
            prop_assert!(of(Reason::Disagreement)
                .is_sorted_by(|one, other| one.candidate.disagreement >= other.candidate.disagreement));
        }
    }
}
