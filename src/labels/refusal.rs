//! Why a label is refused.

use std::io;

/// What is wrong with one label, and what mends it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("no valid JSON: {0}; write it as RFC 8259 says, without NaN, comments or trailing commas")]
    Json(String),
    #[error("{field}: expected {expected}, found {found}; write it as the format says")]
    Kind { field: &'static str, expected: &'static str, found: &'static str },
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
    #[error("{field} has {length} bytes, more than {limit}, or holds a NUL; shorten it")]
    Text { field: &'static str, length: usize, limit: usize },
    #[error("the label has both score and votes; leave one of them out")]
    ScoreAndVotes,
    #[error("label.votes do not come to gt_score; change both, or remove label")]
    Disagreement,
    #[error("nobody has voted: every count is 0; leave the label out")]
    NoVotes,
    #[error("{0:?} is no number of raters; votes are whole numbers, one a bin")]
    Count(String),
    #[error("the counts of one score sum to {first}, those of another to {other}; every rater votes on each")]
    UnequalVotes { first: u64, other: u64 },
    #[error("{0} raters are more than a label can have; divide the counts by a common factor")]
    TooManyRaters(u64),
    #[error("{scores} scores, but {tokens} [SCORE] in the answers; give conversations with one for each")]
    Attributes { scores: usize, tokens: usize },
    #[error("{0:?} is no time; write it as 2026-11-23T05:44:00Z or 2026-11-23")]
    Time(String),
    #[error("labelled at {0}, which is more than a day ahead; correct the clock that stamped it")]
    Future(String),
    #[error("the line cannot be read as CSV: {0}; quote fields that hold commas, quotes or line breaks")]
    Csv(String),
    #[error("{text:?} in column {column} is no number; write 5.5, or several with spaces between them")]
    NoNumber { column: &'static str, text: String },
    #[error("the same object, rater and time as on line {line}; keep one of them, or tell the times apart")]
    Repeated { line: usize },
    #[error("bucket {0:?} is not in s3.buckets; add it there, or leave the label out")]
    Bucket(String),
    #[error("image {0:?} names no bucket; write s3://bucket/key, or give --bucket")]
    NoBucket(String),
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
    /// A CSV file whose first line does not say what is in the columns.
    #[error("{file}, line 1: {reason}")]
    Header { file: String, reason: String },
    #[error("{file}: cannot be read: {source}; check the path and its permissions")]
    Read { file: String, source: io::Error },
}
