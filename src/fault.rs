//! What went wrong with one item, in words that users, rows, outputs and dead letters share.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Exit code of a command whose dependency does not answer (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;

/// What a caller does next about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Passing: the same call may succeed later.
    Retry,
    /// The surroundings are broken, not the item: hold everything and probe.
    Hold,
    /// Permanent for this item.
    Reject,
    /// The process cannot go on.
    Stop,
}

/// Where in the item's way an error arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Parse,
    Lookup,
    Fetch,
    Decode,
    Infer,
    Pg,
    Produce,
}

impl Stage {
    /// All of them, in the order in which an item goes through them.
    pub const ALL: [Self; 7] =
        [Self::Parse, Self::Lookup, Self::Fetch, Self::Decode, Self::Infer, Self::Pg, Self::Produce];

    /// The word that metrics, spans and records have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Lookup => "lookup",
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Infer => "infer",
            Self::Pg => "pg",
            Self::Produce => "produce",
        }
    }
}

/// The closed set of reasons an item can end without a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The file is empty or its data ends before the image does.
    ImageTruncated,
    /// The decoder refused the data.
    DecodeFailed,
    /// More bytes than the configured limit.
    TooLarge,
    /// More pixels, or more decoded memory, than the configured limit.
    TooManyPixels,
    /// Not an image, or a format that is not decoded here.
    Unsupported,
    /// The input record is in none of the known envelopes.
    MalformedEvent,
    /// The key cannot be stored in Postgres (it holds a NUL).
    KeyNotStorable,
    /// The record names a bucket outside the allow-list.
    BucketNotAllowed,
    /// The answer holds no `[SCORE]`.
    NoScoreToken,
    /// The model gave a score that is no finite number.
    NonFiniteScore,
    /// The object does not exist.
    ObjectMissing,
    /// The object was overwritten after the event.
    Superseded,
    /// A passing fault did not pass in time.
    RetryExhausted,
    /// The vote is nonsense, or on a bucket that may not be named.
    InvalidLabel,
    /// The item kills the process that works on it.
    Poison,
}

macro_rules! display_as_serialized {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.serialize(formatter)
            }
        }
    };
}
display_as_serialized!(Stage);
display_as_serialized!(ErrorCode);

/// Why one item has no score. Serialized alike in `score`'s lines, outputs, rows and dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ItemError {
    /// The machine-readable reason.
    pub code: ErrorCode,
    /// Where it arose.
    pub stage: Stage,
    /// One line for people: the input, the reason and the remedy.
    pub message: String,
}

impl ItemError {
    /// An error whose message is cut to 512 bytes on a character boundary and holds no line break.
    pub fn new(code: ErrorCode, stage: Stage, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.contains(['\n', '\r']) {
            message = message.replace(['\n', '\r'], " ");
        }
        if message.len() > Self::MESSAGE_LIMIT {
            message.truncate(message.floor_char_boundary(Self::MESSAGE_LIMIT));
        }
        Self { code, stage, message }
    }

    /// The longest message that rows, outputs and dead-letter headers carry, in bytes.
    pub const MESSAGE_LIMIT: usize = 512;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_called_the_same_everywhere() {
        for stage in Stage::ALL {
            assert_eq!(stage.as_str(), stage.to_string());
        }
    }
}
