//! Why a label is refused.

use std::io;

/// What is wrong with one label, and what mends it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("no valid JSON: {0}; write it as RFC 8259 says, without NaN, comments or trailing commas")]
    Json(String),
    #[error("{field}: expected {expected}, found {found}; write it as the format says")]
    Kind { field: String, expected: &'static str, found: &'static str },
    #[error("{field} is missing; {remedy}")]
    Missing { field: &'static str, remedy: &'static str },
    #[error("the sample is longer than {limit} bytes; look for a quote or bracket that is never closed")]
    TooLong { limit: usize },
    #[error("score {score} is outside {min} to {max}; correct it, or the range that scores have")]
    ScoreOutside { score: f64, min: f64, max: f64 },
    #[error("{scores} in gt_score, but {tokens} [SCORE] in the answers; give one for each")]
    ScoreCount { scores: usize, tokens: usize },
    #[error("{targets} distributions in target, but {scores} in gt_score; give one for each, or none")]
    TargetCount { targets: usize, scores: usize },
    #[error("a distribution has {length} bins, but a score has {bins}; give one probability a bin")]
    Length { length: usize, bins: usize },
    #[error("bin {bin} of a distribution is {value}; probabilities are numbers of 0 or more")]
    Probability { bin: usize, value: f64 },
    #[error("a distribution sums to {sum}, not to 1 within {tolerance}; divide it by its sum")]
    Sum { sum: f64, tolerance: f64 },
    #[error("turn {turn} of conversations is from {from:?}; turns are from human and gpt, by turns")]
    Role { turn: usize, from: String },
    #[error("conversations hold no answer; add a turn from gpt after one from human")]
    NoAnswer,
    #[error("no question shows the image; put <|image|> into a turn from human")]
    NoImage,
}

/// The end of reading a file of labels, or one label of it that is refused.
#[derive(Debug, thiserror::Error)]
pub enum LabelFileError {
    /// One label: those after it can be read all the same.
    #[error("{file}, line {line}: {refusal}")]
    Refused { file: String, line: usize, refusal: Refusal },
    /// The file as a whole: there is nothing after it.
    #[error("{file}, line {line}: {reason}")]
    Malformed { file: String, line: usize, reason: &'static str },
    #[error("{file}: cannot be read: {source}; check the path and its permissions")]
    Read { file: String, source: io::Error },
}
