//! What the outputs of some items say, for rows that look at single ones.

use crate::oracle::{Committed, Evidence};
use crate::run::IMAGE_SIZE;
use anyhow::Result;
use roc4mllm::inference::stand_in::{Sighting, sighting};
use serde::Deserialize;

/// One output, as far as rows care.
#[derive(Clone, Debug, Deserialize)]
pub struct Outcome {
    /// `None` for a record that names no object.
    pub key: Option<String>,
    pub status: String,
    pub score: Option<f64>,
    pub distributions: Vec<Vec<f32>>,
    error: Option<Reason>,
}

#[derive(Clone, Debug, Deserialize)]
struct Reason {
    code: String,
    message: String,
}

impl Outcome {
    /// The error's code; empty for an item with a score.
    pub fn code(&self) -> &str {
        self.error.as_ref().map_or("", |error| &error.code)
    }

    pub fn message(&self) -> &str {
        self.error.as_ref().map_or("", |error| &error.message)
    }
}

/// The committed outputs of objects whose key begins with `prefix`. What cannot be read, the oracle
/// complains about.
pub fn outcomes(evidence: &Evidence, prefix: &str) -> Vec<Outcome> {
    let read = |record: &Committed| serde_json::from_str::<Outcome>(record.value.as_deref()?).ok();
    let named = |outcome: &Outcome| outcome.key.as_ref().is_some_and(|key| key.starts_with(prefix));
    evidence.outputs.iter().filter_map(read).filter(named).collect()
}

/// Dead letters of that `dlq-class`.
pub fn letters(evidence: &Evidence, class: &str) -> usize {
    let is = |letter: &&Committed| {
        letter.headers.get("dlq-class").is_some_and(|found| found.as_deref() == Some(class))
    };
    evidence.dead_letters.iter().filter(is).count()
}

/// Dead letters that the load itself asks for: one for each item that had to be rejected.
pub fn rejects(evidence: &Evidence) -> usize {
    evidence.inputs.iter().flat_map(|input| &input.items).filter(|item| item.status == "rejected").count()
}

/// What a worker's scorer makes of a file.
pub fn seen_by_scorer(content: &[u8]) -> Result<Sighting> {
    Ok(sighting(content, IMAGE_SIZE)?)
}
