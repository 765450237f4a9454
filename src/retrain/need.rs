//! Whether there is anything to learn. Pure.

use super::settings::RetrainSettings;
use crate::store::LabelCounts;
use serde::Serialize;

/// Which labels are new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Labels up to this number were there when the champion was trained; 0 where that is not known.
    pub champion: i64,
    /// Labels up to this number were there when a challenger of this champion was last judged.
    pub judged: Option<i64>,
    /// The latest label.
    pub latest: i64,
}

impl Watermarks {
    /// Only labels above this one are a reason to begin. What was judged once is learned from again, but is
    /// no reason to: who tries every night on the same labels is let through by chance one night.
    pub fn since(&self) -> i64 {
        self.judged.map_or(self.champion, |judged| judged.max(self.champion))
    }
}

/// Why a run ends before it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum NothingToDo {
    #[error(
        "{found} labels are new or have changed since number {since}, and retrain.min_labels is {needed}"
    )]
    TooFewLabels { found: u64, needed: u64, since: i64 },
    #[error("{found} raters gave the labels since number {since}, and retrain.min_raters is {needed}")]
    TooFewRaters { found: u64, needed: u64, since: i64 },
    /// Photos that are gone, unreadable, held out or near to held-out ones.
    #[error("none of the {labels} new labels is of a photo that can be learned from")]
    NoPhotos { labels: usize },
}

/// What keeps a run from beginning, given what came in since [`Watermarks::since`].
pub fn refusal(counts: LabelCounts, since: i64, settings: &RetrainSettings) -> Option<NothingToDo> {
    // Not even settings that ask for none make a run of nothing.
    let (labels, raters) = (settings.min_labels.max(1), settings.min_raters);
    if counts.labels < labels {
        return Some(NothingToDo::TooFewLabels { found: counts.labels, needed: labels, since });
    }
    (counts.raters < raters).then_some(NothingToDo::TooFewRaters {
        found: counts.raters,
        needed: raters,
        since,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_judged_is_no_reason_to_begin_again() {
        let marks = |champion, judged| Watermarks { champion, judged, latest: 100 }.since();
        assert_eq!(marks(10, None), 10);
        assert_eq!(marks(10, Some(40)), 40);
        // A version from elsewhere that is ahead of what was judged.
        assert_eq!(marks(60, Some(40)), 60);
    }

    proptest! {
        #[test]
        fn a_run_begins_exactly_with_enough_of_both(
            labels in 0_u64..6, raters in 0_u64..6, min_labels in 0_u64..6, min_raters in 0_u64..6,
        ) {
            let settings = RetrainSettings { min_labels, min_raters, ..RetrainSettings::default() };
            let refused = refusal(LabelCounts { labels, raters }, 7, &settings);
            let enough = labels >= min_labels && labels > 0 && raters >= min_raters;
            prop_assert_eq!(refused.is_none(), enough);
            if let Some(refused) = refused {
                prop_assert!(refused.to_string().contains('7'));
            }
        }
    }
}
