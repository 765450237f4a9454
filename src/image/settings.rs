//! What an image may cost before it is refused.

use super::{PREPROCESS_REVISION, error::ImageError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How closely preprocessing follows the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreprocessMode {
    /// Pixel values equal to the reference's, bit for bit.
    #[default]
    Exact,
    /// Large JPEGs are decoded at half size: about half the time, and pixel values that differ by
    /// less than 0.003 on average (normalised units). Everything else is read as exactly as ever.
    Fast,
}

/// Added to the revision of pixels that are not the reference's.
const FAST_REVISIONS: u32 = 1_000;

impl fmt::Display for PreprocessMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Exact => "exact",
            Self::Fast => "fast",
        })
    }
}

impl PreprocessMode {
    /// The revision of the pixels that this mode gives: no two modes share one, so that no score of one is
    /// taken for the other's.
    pub fn revision(self) -> u32 {
        match self {
            Self::Exact => PREPROCESS_REVISION,
            Self::Fast => FAST_REVISIONS + PREPROCESS_REVISION,
        }
    }
}

/// Limits on one image (configuration section `image`).
///
/// Dimensions are compared with the limits as soon as the header is read, before any allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSettings {
    /// Most bytes of a file.
    pub max_bytes: u64,
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Most pixels along one edge. An unpadded resize needs coefficients for each of them.
    pub max_edge: u32,
    /// Most bytes of decoded pixels; a decoder may use as much again for its own work.
    pub max_alloc_bytes: u64,
    /// `exact` or `fast`.
    pub preprocess: PreprocessMode,
}

impl Default for ImageSettings {
    /// For a worker that reads what strangers upload.
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_pixels: 64_000_000,
            max_edge: 65_535,
            max_alloc_bytes: 256 << 20,
            preprocess: PreprocessMode::Exact,
        }
    }
}

impl ImageSettings {
    /// For a user's own files: Pillow's limit of pixels, beyond which it suspects a decompression
    /// bomb, and memory for that many in any format.
    pub fn local() -> Self {
        Self { max_bytes: 1 << 30, max_pixels: 178_956_970, max_alloc_bytes: 2 << 30, ..Self::default() }
    }

    pub(super) fn admit_bytes(&self, bytes: usize) -> Result<(), ImageError> {
        if bytes == 0 {
            return Err(ImageError::Empty);
        }
        if bytes as u64 > self.max_bytes {
            return Err(ImageError::TooLarge { bytes: bytes as u64, limit: self.max_bytes });
        }
        Ok(())
    }

    pub(super) fn admit_dimensions(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooManyPixels { width, height, limit: self.max_pixels });
        }
        if width.max(height) > self.max_edge {
            return Err(ImageError::EdgeTooLong { width, height, limit: self.max_edge });
        }
        Ok(())
    }

    /// `bytes` as a buffer length, if decoding may take that much.
    pub(super) fn admit_memory(&self, width: u32, height: u32, bytes: u64) -> Result<usize, ImageError> {
        match usize::try_from(bytes) {
            Ok(length) if bytes <= self.max_alloc_bytes => Ok(length),
            _ => Err(ImageError::TooMuchMemory { width, height, needed: bytes, limit: self.max_alloc_bytes }),
        }
    }
}
