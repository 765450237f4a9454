//! Whether a challenger may follow the champion.
//!
//! It must be better on the newest labels, beyond chance, and must be shown not to have become worse on
//! the frozen gold set and on the old domain. Not worse is a claim that needs evidence as much as better
//! does: an interval that reaches below the margin rejects, however the value itself looks, so that too
//! few photos never pass for harmlessness.
//!
//! Measured on AVA (255,502 photos, 78 to 549 votes each):
//!
//! - the paired 95% interval of a difference in SRCC is about ±0.004 with 3,000 photos, and grows with
//!   the root of fewer: ±0.010 with 500, ±0.04 with 30;
//! - labels of few votes hide differences. A label of 1, 3, 5, 10, 20 or 50 votes has SRCC .456, .650,
//!   .739, .838, .914 or .967 with the full vote, and a model's SRCC shrinks by about that factor
//!   ([`index_of_reliability`]). A margin is meant for the full vote, so that it shrinks too.
//!
//! A gate that a challenger no better than the champion passes in at most 2.5% of tries (95% intervals)
//! is still tried every night: raise `confidence` if the labels are few and the nights many.

use super::{
    bootstrap::{BootstrapSettings, Estimate},
    comparison::Comparison,
    metrics::Metric,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// When a challenger is accepted (configuration section `gate`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateSettings {
    /// The fewest held-out photos, near-duplicates counted once, that each set must have. At the default
    /// of 3,000 the interval of a difference in SRCC is about ±0.004, and a challenger that is as good
    /// as the champion fails the default margin once in a thousand times; at 1,000 (±0.007) it fails
    /// once in five.
    pub min_photos: usize,
    /// How much lower SRCC with the full vote may be on the gold set and the old domain: the whole
    /// interval of the difference must lie above minus this. Smaller where labels have few votes.
    pub margin: f64,
    /// How much lower the share of answers with `[SCORE]` may be, on each set.
    pub score_rate_margin: f64,
    /// Sets without which nothing is accepted. Leave one out only where there is no such set yet.
    pub required: Vec<EvaluationSet>,
    /// Draws of the bootstrap.
    pub resamples: u32,
    /// How often an interval is to hold the true difference, between 0 and 1.
    pub confidence: f64,
    /// Which draws of the bootstrap.
    pub seed: u64,
}

impl Default for GateSettings {
    fn default() -> Self {
        let BootstrapSettings { resamples, confidence, seed } = BootstrapSettings::default();
        Self {
            min_photos: 3_000,
            margin: 0.01,
            score_rate_margin: 0.0,
            required: EvaluationSet::ALL.into(),
            resamples,
            confidence,
            seed,
        }
    }
}

/// A setting that would let anything pass, or nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GateSettingsError {
    #[error("gate.{key} is {value}; give a number from 0 up")]
    Margin { key: &'static str, value: f64 },
    #[error("gate.confidence is {0}; give a number between 0.5 and 1, such as 0.95")]
    Confidence(f64),
    #[error("gate.resamples is {0}; give at least 100, better 2000")]
    Resamples(u32),
    #[error("gate.required leaves out newest; nothing is accepted without newer labels, so add it")]
    Newest,
}

impl GateSettings {
    /// What the comparisons that are judged are to be made with.
    pub fn bootstrap(&self) -> BootstrapSettings {
        BootstrapSettings { resamples: self.resamples, confidence: self.confidence, seed: self.seed }
    }

    /// # Errors
    /// [`GateSettingsError`] for a value that makes no gate.
    pub fn check(&self) -> Result<(), GateSettingsError> {
        for (key, value) in [("margin", self.margin), ("score_rate_margin", self.score_rate_margin)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(GateSettingsError::Margin { key, value });
            }
        }
        match self {
            Self { confidence, .. } if !(0.5..1.0).contains(confidence) => {
                Err(GateSettingsError::Confidence(*confidence))
            }
            Self { resamples: ..100, .. } => Err(GateSettingsError::Resamples(self.resamples)),
            Self { required, .. } if !required.contains(&EvaluationSet::Newest) => {
                Err(GateSettingsError::Newest)
            }
            _ => Ok(()),
        }
    }
}

/// What a challenger is judged on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationSet {
    /// Held-out photos among the labels that the champion has not seen.
    Newest,
    /// Photos chosen once, on which every model is measured.
    Gold,
    /// Held-out photos among the labels that the champion was trained on.
    Old,
}

impl EvaluationSet {
    pub const ALL: [Self; 3] = [Self::Newest, Self::Gold, Self::Old];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest labels",
            Self::Gold => "gold set",
            Self::Old => "old domain",
        }
    }
}

impl fmt::Display for EvaluationSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// Champion and challenger on one set.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    pub set: EvaluationSet,
    pub comparison: &'a Comparison,
    /// How many votes a label of the set has, in the median; `None` where that is not known, which is
    /// taken for many.
    pub votes: Option<f64>,
}

/// Why a challenger is rejected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Reason {
    /// The same weights, or the same score for every photo.
    #[error("the challenger is the champion: both give the same scores; train it on more labels")]
    Identical,
    /// A set that the settings ask for was not evaluated.
    #[error("there is no evaluation on the {set}; evaluate on it, or take it out of gate.required")]
    NotEvaluated { set: EvaluationSet },
    #[error(
        "{photos} independent photos of the {set} were scored by both, and gate.min_photos is {needed}; hold out more labels"
    )]
    TooFewPhotos { set: EvaluationSet, photos: usize, needed: usize },
    /// All labels or all predictions are equal.
    #[error(
        "SRCC on the {set} has no value or no interval; look for equal labels or a model that gives one score to all"
    )]
    NotMeasurable { set: EvaluationSet },
    #[error("SRCC on the {set} is not higher beyond chance: {}; wait for more labels", signed(difference))]
    NotBetter { set: EvaluationSet, difference: Estimate },
    #[error(
        "SRCC on the {set} may be lower by more than {margin:.4}: {}; replay more old labels, or evaluate on more photos",
        signed(difference)
    )]
    Worse { set: EvaluationSet, difference: Estimate, margin: f64 },
    #[error(
        "{:.2}% of answers on the {set} hold a score, and {:.2}% of the champion's; look at the answers without one",
        100.0 * challenger, 100.0 * champion
    )]
    FewerScores { set: EvaluationSet, champion: f64, challenger: f64 },
}

/// What the gate decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Better by this much SRCC on the newest labels.
    Accepted { difference: Estimate },
    /// Everything that speaks against it, in the order of the sets.
    Rejected { reasons: Vec<Reason> },
}

impl Verdict {
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted { .. })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { difference } => {
                write!(formatter, "accepted: SRCC on the newest labels is higher, {}", signed(difference))
            }
            Self::Rejected { reasons } => {
                formatter.write_str("rejected")?;
                for (index, reason) in reasons.iter().enumerate() {
                    write!(formatter, "{}{reason}", if index == 0 { ": " } else { "; also, " })?;
                }
                Ok(())
            }
        }
    }
}

/// Judges a challenger. Of two pieces of evidence on one set both count.
pub fn judge(evidence: &[Evidence<'_>], settings: &GateSettings) -> Verdict {
    let mut reasons = Vec::new();
    let same_version =
        |comparison: &Comparison| comparison.identical || comparison.champion == comparison.challenger;
    if !evidence.is_empty() && evidence.iter().all(|piece| same_version(piece.comparison)) {
        reasons.push(Reason::Identical);
    }
    let mut better = None;
    for set in EvaluationSet::ALL {
        let mut of_set = evidence.iter().filter(|piece| piece.set == set).peekable();
        // Without newer labels there is nothing to accept a challenger for, whatever is required.
        if of_set.peek().is_none() && (settings.required.contains(&set) || set == EvaluationSet::Newest) {
            reasons.push(Reason::NotEvaluated { set });
        }
        for piece in of_set {
            reasons.extend(objections(piece, settings));
            if set == EvaluationSet::Newest {
                better = piece.comparison.difference(Metric::Srcc).copied();
            }
        }
    }
    match better {
        Some(difference) if reasons.is_empty() => Verdict::Accepted { difference },
        _ => Verdict::Rejected { reasons },
    }
}

/// What speaks against the challenger on one set.
fn objections(&Evidence { set, comparison, votes }: &Evidence<'_>, settings: &GateSettings) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if comparison.groups < settings.min_photos {
        reasons.push(Reason::TooFewPhotos { set, photos: comparison.groups, needed: settings.min_photos });
    }
    match comparison.difference(Metric::Srcc).and_then(|difference| Some((*difference, difference.interval?)))
    {
        None => reasons.push(Reason::NotMeasurable { set }),
        Some((difference, (low, _))) if set == EvaluationSet::Newest => {
            // A resample of one and the same photo has no interval below 0, and a value of 0 is no gain.
            if !(low > 0.0 && difference.value > 0.0) {
                reasons.push(Reason::NotBetter { set, difference });
            }
        }
        Some((difference, (low, _))) => {
            let margin = settings.margin * votes.map_or(1.0, index_of_reliability);
            if low < -margin {
                reasons.push(Reason::Worse { set, difference, margin });
            }
        }
    }
    if let Some(rate) = comparison.metrics.get(&Metric::ScoreRate) {
        let (champion, challenger) = (rate.champion.value, rate.challenger.value);
        if challenger < champion - settings.score_rate_margin {
            reasons.push(Reason::FewerScores { set, champion, challenger });
        }
    }
    reasons
}

/// How far a label that is the mean of `votes` correlates with the mean of all votes there could be, and so
/// by what factor it shrinks a model's correlation: the root of Spearman and Brown's prophecy (1910) from
/// the reliability of a single vote on AVA.
pub fn index_of_reliability(votes: f64) -> f64 {
    /// The square of .456, which a single vote has with the full vote.
    const OF_ONE: f64 = 0.456 * 0.456;
    let votes = votes.max(1.0);
    (votes * OF_ONE / (1.0 + (votes - 1.0) * OF_ONE)).sqrt()
}

fn signed(difference: &Estimate) -> String {
    match difference.interval {
        Some((low, high)) => format!("{:+.4} ({low:+.4} to {high:+.4})", difference.value),
        None => format!("{:+.4}", difference.value),
    }
}

#[cfg(test)]
mod tests;
