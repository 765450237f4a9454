//! One input's result, and the line of JSON that stands for it.

use crate::{
    fault::ItemError,
    inference::Scored,
    score::{DecodeKind, ScoreValue},
};
use serde::Serialize;

/// What became of one input.
#[derive(Clone, Debug)]
pub struct Row {
    /// The input's name.
    pub image: String,
    pub outcome: Result<Scored, ItemError>,
}

/// A row as `--format jsonl` writes it: nothing rounded, keys in this order.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Line<'a> {
    Scored {
        image: &'a str,
        status: &'static str,
        /// The first of `scores`.
        score: f64,
        scores: Vec<f64>,
        distributions: Vec<&'a [f32]>,
        std: Vec<f64>,
        text: &'a str,
        tokens: &'a [u32],
        decode: DecodeKind,
        forwards: u32,
        model_version: &'a str,
    },
    Rejected {
        image: &'a str,
        status: &'static str,
        error: &'a ItemError,
    },
}

impl<'a> From<&'a Row> for Line<'a> {
    fn from(Row { image, outcome }: &'a Row) -> Self {
        match outcome {
            Ok(Scored { answer, version, .. }) => Self::Scored {
                image,
                status: "scored",
                score: answer.score(),
                scores: each(&answer.scores, |value| value.score),
                distributions: answer.scores.iter().map(|value| &value.distribution[..]).collect(),
                std: each(&answer.scores, |value| value.std),
                text: &answer.text,
                tokens: &answer.tokens,
                decode: answer.decode,
                forwards: answer.forwards,
                model_version: &version.version,
            },
            Err(error) => Self::Rejected { image, status: "rejected", error },
        }
    }
}

fn each(values: &[ScoreValue], part: impl Fn(&ScoreValue) -> f64) -> Vec<f64> {
    values.iter().map(part).collect()
}
