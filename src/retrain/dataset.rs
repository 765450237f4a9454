//! What a run learns from and is judged by: fixed once, written down, and the same after every restart.

use super::error::RetrainError;
use crate::{
    evaluate::gate::EvaluationSet,
    labels::{LabelledObject, Sample, Turn},
    model::checkpoint::hexadecimal,
    split::ContentHash,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::{collections::HashSet, fs, io, path::Path};

/// The name of the file in the run's folder.
const FILE: &str = "dataset.json";

/// A labelled photo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledPhoto {
    /// `bucket/key`, or a path.
    pub name: String,
    /// Where it can be fetched again; `None` for a file of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Place>,
    #[serde(with = "hash")]
    pub content: ContentHash,
    /// Photos of one group are near-copies.
    #[serde(with = "hash")]
    pub group: ContentHash,
    /// One for each `[SCORE]`.
    pub scores: Vec<f64>,
    /// The rating distribution of each score; empty where only scores are known.
    pub distributions: Vec<Vec<f64>>,
    /// How many people's votes it is; `None` where that is not known.
    pub raters: Option<u32>,
    /// The question and the answer, for training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conversations: Vec<Turn>,
}

/// An object in S3, as a label names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub bucket: String,
    pub key: String,
    pub etag: String,
}

/// How much was selected, and what was left out for which reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Labels that are new to the champion, and older ones that were drawn.
    pub new_labels: usize,
    pub older_labels: usize,
    /// What is left of them.
    pub training: usize,
    pub newest: usize,
    pub gold: usize,
    pub old: usize,
    /// Photos that are no longer in S3, or no longer what was labelled.
    pub gone: usize,
    /// Photos that are too large, or can't be decoded.
    pub unreadable: usize,
    /// Labels on objects outside `s3.buckets`, and those that don't go with the model's scale.
    pub unusable: usize,
    /// Photos near to photos of both sides.
    pub between_sides: usize,
    /// Photos of the gold file that a model may have learned from already.
    pub spoilt_gold: usize,
    /// Gold photos beyond `retrain.gold_photos`.
    pub spare_gold: usize,
}

/// Everything that one run works with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// The version that is challenged, and the labels that are new to it.
    pub champion: String,
    pub after: i64,
    pub upto: i64,
    pub training: Vec<LabelledPhoto>,
    pub newest: Vec<LabelledPhoto>,
    pub gold: Vec<LabelledPhoto>,
    pub old: Vec<LabelledPhoto>,
    pub counts: Counts,
}

impl LabelledPhoto {
    /// As the trainer takes it.
    pub fn sample(&self) -> Sample {
        Sample {
            image: self.name.clone(),
            gt_scores: self.scores.clone(),
            targets: self.distributions.clone(),
            conversations: self.conversations.clone(),
            ..Sample::default()
        }
    }
}

impl From<&LabelledObject> for Place {
    fn from(LabelledObject { bucket, key, etag }: &LabelledObject) -> Self {
        Self { bucket: bucket.clone(), key: key.clone(), etag: etag.clone() }
    }
}

impl From<&Place> for LabelledObject {
    fn from(Place { bucket, key, etag }: &Place) -> Self {
        Self { bucket: bucket.clone(), key: key.clone(), etag: etag.clone() }
    }
}

impl Dataset {
    /// The photos that a set is judged by.
    pub fn set(&self, set: EvaluationSet) -> &[LabelledPhoto] {
        match set {
            EvaluationSet::Newest => &self.newest,
            EvaluationSet::Gold => &self.gold,
            EvaluationSet::Old => &self.old,
        }
    }

    /// Every photo, some more than once.
    pub fn photos(&self) -> impl Iterator<Item = &LabelledPhoto> {
        self.training.iter().chain(&self.newest).chain(&self.gold).chain(&self.old)
    }

    pub fn contents(&self) -> HashSet<ContentHash> {
        self.photos().map(|photo| photo.content).collect()
    }

    /// `sha256:` and 64 digits, of all that decides the result: equal for equal data.
    ///
    /// # Errors
    /// When it can't be written as JSON.
    pub fn digest(&self) -> Result<String, serde_json::Error> {
        Ok(format!("sha256:{}", hexadecimal(&Sha256::digest(serde_json::to_vec(self)?))))
    }

    /// Writes it into a run's folder.
    ///
    /// # Errors
    /// [`RetrainError::Io`].
    pub fn write(&self, folder: &Path) -> Result<(), RetrainError> {
        super::cache::replace(&folder.join(FILE), &serde_json::to_vec(self)?)
    }

    /// What was written into a run's folder; `None` where nothing was, or something else than `digest`.
    ///
    /// # Errors
    /// [`RetrainError::Io`] for a file that can't be read.
    pub fn read(folder: &Path, digest: &str) -> Result<Option<Self>, RetrainError> {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(RetrainError::io(&path, "reading"))?,
        };
        let dataset: Option<Self> = serde_json::from_slice(&bytes).ok();
        Ok(dataset.filter(|dataset| dataset.digest().is_ok_and(|found| found == digest)))
    }
}

/// 64 digits.
mod hash {
    use super::*;

    pub fn serialize<S: Serializer>(hash: &ContentHash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ContentHash, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(name: &str, score: f64) -> LabelledPhoto {
        let content = ContentHash::of(name.as_bytes());
        LabelledPhoto {
            name: name.into(),
            object: Some(Place { bucket: "b".into(), key: name.into(), etag: "e".into() }),
            content,
            group: content,
            scores: vec![score],
            distributions: vec![vec![0.1, 0.2, 0.7]],
            raters: Some(3),
            conversations: Vec::new(),
        }
    }

    #[test]
    fn what_was_written_is_read_if_it_is_what_was_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Dataset {
            champion: "sha256:0".into(),
            after: 1,
            upto: 9,
            training: vec![photo("a", 0.1 + 0.2), photo("b", 1.0 / 3.0)],
            gold: vec![photo("c", 7.0)],
            ..Dataset::default()
        };
        let digest = dataset.digest().unwrap();
        assert_eq!(Dataset::read(folder.path(), &digest).unwrap(), None);
        dataset.write(folder.path()).unwrap();
        assert_eq!(Dataset::read(folder.path(), &digest).unwrap(), Some(dataset.clone()));
        let mut other = dataset.clone();
        other.training[0].scores[0] += 1e-15;
        assert_ne!(other.digest().unwrap(), digest);
        assert_eq!(Dataset::read(folder.path(), &other.digest().unwrap()).unwrap(), None);
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(Dataset::read(folder.path(), &digest).unwrap(), None);
        assert_eq!(dataset.contents().len(), 3);
    }
}
