//! Which labels a run takes.

use super::{
    error::RetrainError,
    need::{self, NothingToDo, Watermarks},
    replay,
    settings::RetrainSettings,
};
use crate::{
    labels::Scale,
    store::{Store, StoredLabel, Stratum},
};
use std::collections::BTreeMap;

/// Labels that are read at once.
const PAGE: u32 = 5_000;

/// The labels of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Labels above this number and up to the other are new to the champion.
    pub after: i64,
    pub upto: i64,
    /// In the order of arrival.
    pub new: Vec<StoredLabel>,
    /// To be replayed, and known to be held out; in key order.
    pub older: Vec<StoredLabel>,
    /// The gold set's, in the order in which its photos came in; older ones among them.
    pub gold: Vec<StoredLabel>,
}

/// What is new to the version `champion`.
///
/// # Errors
/// Those of the store.
pub async fn watermarks(store: &Store, champion: &str) -> Result<Watermarks, RetrainError> {
    Ok(Watermarks {
        champion: store.label_watermark_of(champion).await?.unwrap_or(0),
        judged: store.judged_labels(champion).await?,
        latest: store.label_watermark().await?,
    })
}

/// Whether too little is new for a run.
///
/// # Errors
/// Those of the store.
pub async fn refusal(
    store: &Store,
    marks: &Watermarks,
    settings: &RetrainSettings,
) -> Result<Option<NothingToDo>, RetrainError> {
    let counts = store.count_labels(marks.since(), marks.latest).await?;
    Ok(need::refusal(counts, marks.since(), settings))
}

/// Reads the labels that a run takes: the new ones in the order of arrival, older ones to be replayed, and
/// older ones to be judged by.
///
/// # Errors
/// Those of the store.
pub async fn select(
    store: &Store,
    marks: &Watermarks,
    scale: &Scale,
    settings: &RetrainSettings,
) -> Result<Selection, RetrainError> {
    let after = marks.champion;
    let new = new_labels(store, after, marks.latest, settings.max_labels).await?;
    // Where not all were taken, the next run goes on behind the last one.
    let taken = new.last().map(|label| label.ingested).filter(|_| new.len() >= settings.max_labels);
    let upto = taken.unwrap_or(marks.latest);
    // Another run draws other labels.
    let seed = upto;
    let replayed = replay::total(new.len(), settings.replay_share);
    let mut older = replay_sample(store, after, replayed, seed, scale).await?;
    older.extend(store.sample_held_out(after, settings.old_photos, seed).await?);
    let gold = match settings.gold_labels {
        Some(_) => Vec::new(),
        None => store.gold_labels(upto, settings.gold_photos).await?,
    };
    Ok(Selection { after, upto, new, older: distinct(older), gold })
}

async fn new_labels(
    store: &Store,
    after: i64,
    upto: i64,
    most: usize,
) -> Result<Vec<StoredLabel>, RetrainError> {
    let mut labels: Vec<StoredLabel> = Vec::new();
    let mut last = after;
    while labels.len() < most && last < upto {
        let page = store.new_labels(last, upto, PAGE).await?;
        let Some(end) = page.last() else { break };
        last = end.ingested;
        labels.extend(page);
    }
    // Labels of one number belong together, since the next run begins behind it.
    let end = labels.get(most.saturating_sub(1)).map(|label| label.ingested);
    labels.retain(|label| end.is_none_or(|end| label.ingested <= end));
    Ok(labels)
}

/// `total` labels up to `upto`, as many from each part of the range of scores as from the others, as far as
/// there are.
async fn replay_sample(
    store: &Store,
    upto: i64,
    total: u64,
    seed: i64,
    scale: &Scale,
) -> Result<Vec<StoredLabel>, RetrainError> {
    if total == 0 || upto == 0 {
        return Ok(Vec::new());
    }
    let range = (scale.min_score, scale.max_score);
    let strata = store.label_strata(upto, range, replay::PARTS).await?;
    let available: Vec<u64> = strata.iter().map(|stratum| stratum.labels).collect();
    let mut labels = Vec::new();
    for (Stratum { attributes, part, .. }, count) in strata.iter().zip(replay::allocate(total, &available)) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let scores = replay::scores_of(*part, range);
        labels.extend(store.sample_labels(upto, *attributes, scores, count, seed).await?);
    }
    Ok(labels)
}

/// Each label once, in key order.
fn distinct(labels: Vec<StoredLabel>) -> Vec<StoredLabel> {
    let by_key: BTreeMap<_, StoredLabel> = labels.into_iter().map(|label| (label.key(), label)).collect();
    by_key.into_values().collect()
}
