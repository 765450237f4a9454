//! Why a file has no pixels, in words that say what to do about it.

use super::sniff::Format;
use crate::fault::{Disposition, ErrorCode, ItemError, Stage};

/// A file that cannot be scored. Always permanent: the same bytes give the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("the file is empty; re-export or re-upload it")]
    Empty,
    #[error("{0} ends early; re-export or re-upload it")]
    Truncated(Format),
    #[error("{format} data is damaged ({reason}); re-export or re-upload it")]
    Damaged { format: Format, reason: String },
    #[error("{bytes} bytes exceed the limit of {limit}; export a smaller file or raise image.max_bytes")]
    TooLarge { bytes: u64, limit: u64 },
    #[error(
        "{width}x{height} pixels exceed the limit of {limit}; scale the image down or raise image.max_pixels"
    )]
    TooManyPixels { width: u32, height: u32, limit: u64 },
    #[error(
        "an edge of {width}x{height} pixels exceeds the limit of {limit}; crop the image or raise image.max_edge"
    )]
    EdgeTooLong { width: u32, height: u32, limit: u32 },
    #[error(
        "decoding {width}x{height} pixels takes {needed} bytes and the limit is {limit}; \
         scale the image down or raise image.max_alloc_bytes"
    )]
    TooMuchMemory { width: u32, height: u32, needed: u64, limit: u64 },
    #[error("{what}; {remedy}")]
    Unsupported { what: String, remedy: &'static str },
}

impl ImageError {
    /// The machine-readable reason that rows and outputs carry.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Empty | Self::Truncated(_) => ErrorCode::ImageTruncated,
            Self::Damaged { .. } => ErrorCode::DecodeFailed,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::TooManyPixels { .. } | Self::EdgeTooLong { .. } | Self::TooMuchMemory { .. } => {
                ErrorCode::TooManyPixels
            }
            Self::Unsupported { .. } => ErrorCode::Unsupported,
        }
    }

    /// Rejects the item: no error here passes with time.
    pub fn disposition(&self) -> Disposition {
        Disposition::Reject
    }

    /// The error of the item called `name` (a file name or `bucket/key`).
    pub fn item_error(&self, name: &str) -> ItemError {
        ItemError::new(self.code(), Stage::Decode, format!("{name}: {self}"))
    }
}

/// Without the item's name, for callers that prefix it themselves.
impl From<ImageError> for ItemError {
    fn from(error: ImageError) -> Self {
        Self::new(error.code(), Stage::Decode, error.to_string())
    }
}
