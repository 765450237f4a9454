//! The `[retrain]` section of the configuration.

use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// What a run takes, and what it takes it for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrainSettings {
    /// Where photos, saved states and checkpoints are kept from one run to the next.
    pub work_dir: PathBuf,
    /// A run that has not been heard of for so long may be taken over, in milliseconds.
    pub lease_ms: u64,
    /// The fewest labels that are new to the champion, and the fewest raters of them, that a run begins with.
    /// Where a challenger of this champion has been judged, only later ones count.
    pub min_labels: u64,
    pub min_raters: u64,
    /// New labels that one run takes at most, the earliest ones; the rest is the next run's.
    pub max_labels: usize,
    /// Older labels that are replayed, as a share of the new ones: in equal numbers from each tenth of the
    /// range of scores, as far as there are.
    pub replay_share: f64,
    /// Held-out photos of the old domain at most.
    pub old_photos: u32,
    /// The gold set: a file of labels as `evaluate` reads it, and the folder that its photos are in. Its
    /// photos are never trained on.
    pub gold_labels: Option<PathBuf>,
    pub gold_images: Option<PathBuf>,
    /// Without such a file: the share of held-out photos that the gold set is made of, and how many it has
    /// at most, the first ones.
    pub gold_share: f64,
    pub gold_photos: u32,
    /// Whether rejected challengers are uploaded as well, to be looked at or promoted by force.
    pub publish_rejected: bool,
    /// Photos kept in `work_dir` after a run, in MiB.
    pub cache_mib: u64,
}

impl Default for RetrainSettings {
    fn default() -> Self {
        Self {
            work_dir: "retrain".into(),
            lease_ms: 120_000,
            min_labels: 500,
            min_raters: 3,
            max_labels: 200_000,
            replay_share: 1.0,
            old_photos: 5_000,
            gold_labels: None,
            gold_images: None,
            gold_share: 0.2,
            gold_photos: 5_000,
            publish_rejected: true,
            cache_mib: 51_200,
        }
    }
}

impl RetrainSettings {
    /// How long a run may be silent.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// What is wrong with the section, and the key; the remedy with it.
    ///
    /// # Errors
    /// Key and reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.lease_ms < 1_000 {
            return Err((
                "retrain.lease_ms",
                "is below 1000, too short for a heartbeat; give a minute or more",
            ));
        }
        if self.max_labels == 0 {
            return Err(("retrain.max_labels", "is 0, so nothing could be learned from; raise it"));
        }
        if !(self.replay_share.is_finite() && self.replay_share >= 0.0) {
            return Err(("retrain.replay_share", "is no share; give a number from 0 up, such as 1.0"));
        }
        if !(0.0..=1.0).contains(&self.gold_share) {
            return Err(("retrain.gold_share", "is no share; give a number from 0 to 1"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        let default = RetrainSettings::default();
        assert_eq!(default.check(), Ok(()));
        for (key, wrong) in [
            ("retrain.lease_ms", RetrainSettings { lease_ms: 10, ..default.clone() }),
            ("retrain.max_labels", RetrainSettings { max_labels: 0, ..default.clone() }),
            ("retrain.replay_share", RetrainSettings { replay_share: f64::NAN, ..default.clone() }),
            ("retrain.gold_share", RetrainSettings { gold_share: 1.5, ..default.clone() }),
        ] {
            assert_eq!(wrong.check().unwrap_err().0, key);
        }
    }
}
